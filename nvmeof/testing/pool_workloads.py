"""Short things to do with a pool, each of which is crashed at every operation it makes on its members."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from nvmeof.engine.layout import AREA_BYTES
from nvmeof.errors import CapacityError
from nvmeof.testing.pool_driver import Driver, FixedKey, Shape

Work = Callable[[Driver], Awaitable[None]]


@dataclass(frozen=True)
class Workload:
    """``prepare`` comes before the crashes, ``run`` is what is crashed; ``out`` members are lost on the way."""

    name: str
    run: Work
    prepare: Work
    shape: Shape
    out: int = 0


WORKLOADS: dict[str, Workload] = {}


async def _one_namespace(driver: Driver) -> None:
    await driver.add(64)
    await driver.write(0, 32)
    await driver.flush()


@dataclass
class _Register:
    shape: Shape = field(default_factory=Shape)
    prepare: Work = _one_namespace
    out: int = 0

    def __call__(self, run: Work) -> Work:
        name = getattr(run, "__name__", "")
        WORKLOADS[name] = Workload(name, run, self.prepare, self.shape, self.out)
        return run


def workload(shape: Shape | None = None, prepare: Work = _one_namespace, out: int = 0) -> _Register:
    """Put a function among :data:`WORKLOADS`."""
    return _Register(shape or Shape(), prepare, out)


async def _nothing(driver: Driver) -> None:
    """No namespace yet."""


# -- writes and flushes


@workload(prepare=_nothing)
async def first_namespace(driver: Driver) -> None:
    await driver.add(64)
    await driver.write(0, 4)
    await driver.flush()


@workload()
async def overwrite(driver: Driver) -> None:
    for first in (0, 8, 0, 4):
        await driver.write(first, 8)
    await driver.flush()
    await driver.write(2, 8)
    await driver.write(2, 2)


@workload()
async def partial_overwrite(driver: Driver) -> None:
    """Blocks in the middle and at the edges of a record of 32."""
    for first, count in ((7, 1), (0, 1), (31, 1), (12, 9)):
        await driver.write(first, count)
        await driver.look()
    await driver.flush()
    await driver.write(30, 4)
    await driver.flush()


@workload()
async def flush_each(driver: Driver) -> None:
    for block in range(6):
        await driver.write(driver.random.randrange(60), 1 + block % 3)
        await driver.flush()


@workload()
async def unflushed(driver: Driver) -> None:
    """Full stripes go out by themselves; nothing of them is promised."""
    for round_number in range(3):
        for first in range(0, 64, 16):
            await driver.write(first, 16 - round_number)


@workload()
async def fua(driver: Driver) -> None:
    await asyncio.gather(*(driver.fua(block * 5, 2) for block in range(4)))
    await driver.write(40, 3)
    await driver.fua(41, 1)


@workload()
async def concurrent_flushes(driver: Driver) -> None:
    async def work(block: int) -> None:
        for _ in range(2):
            await driver.write(block)
            await asyncio.sleep(0)
            await driver.flush()

    await asyncio.gather(*(work(block) for block in range(8)))


@workload(Shape(members=6, segments=12))
async def large_writes(driver: Driver) -> None:
    """Across stripes and segments, six members."""
    await driver.resize(300)
    await driver.write(0, 256)
    await driver.flush()
    await driver.write(100, 150)


@workload(Shape(encrypted=True))
async def encrypted(driver: Driver) -> None:
    await driver.add(32, nsid=2, encrypted=False)
    for nsid in (1, 2):
        await driver.write(0, 12, nsid)
        await driver.write(5, 2, nsid)
    await driver.flush()
    await driver.write(6, 1)


@workload()
async def write_cache_off(driver: Driver) -> None:
    await driver.pool.set_namespace(1, write_cache=False)
    await driver.write(0, 2)
    await driver.zeroes(1)
    await driver.write(9)
    await driver.trim([(9, 1), (20, 3)])
    await driver.pool.set_namespace(1, write_cache=True)
    await driver.write(1)


# -- giving back


@workload()
async def deallocate_small(driver: Driver) -> None:
    await driver.trim([(3, 1)])
    await driver.trim([(8, 4), (20, 2), (40, 3)])
    await driver.write(9)
    await driver.flush()
    await driver.trim([(9, 1), (0, 1)])
    await driver.flush()


async def _spread(driver: Driver) -> None:
    await driver.add(1 << 12)
    for first in (0, 700, 2500, 4080):
        await driver.write(first, 10)
    await driver.flush()


@workload(prepare=_spread)
async def deallocate_large(driver: Driver) -> None:
    """Ranges of many map pages, of which few were ever written."""
    await driver.trim([(5, 2500)])
    await driver.flush()
    await driver.write(6, 2)
    await driver.trim([(0, 1 << 12)])
    await driver.flush()


@workload()
async def write_zeroes(driver: Driver) -> None:
    await driver.zeroes(4, 3)
    await driver.zeroes(10, 30, deallocate=True)
    await driver.flush()
    await driver.write(11, 2)
    await driver.zeroes(0, 64)
    await driver.flush()


# -- namespaces


@workload()
async def resize(driver: Driver) -> None:
    await driver.write(48, 16)
    await driver.resize(20)
    await driver.resize(128)
    await driver.look()
    await driver.write(100, 8)
    await driver.write(19, 3)
    await driver.flush()
    await driver.resize(101)


@workload()
async def namespaces(driver: Driver) -> None:
    await driver.add(32, nsid=3, codec="none")
    await driver.write(0, 8, 3)
    await driver.flush(3)
    await driver.delete(1)
    await driver.add(16, nsid=1, codec="lz4")
    await driver.write(3, 2)
    await driver.flush()
    await driver.delete(3)


@workload(Shape(encrypted=True))
async def crypto_erase(driver: Driver) -> None:
    await driver.add(16, nsid=2)
    await driver.write(0, 8, 2)
    await driver.flush(2)
    await driver.delete(1)
    await driver.write(2, 2, 2)


@workload(prepare=_nothing)
async def codecs(driver: Driver) -> None:
    names = ("zstd", "lz4", "deflate", "none", "auto")
    for nsid, codec in enumerate(names, 1):
        await driver.add(16, nsid=nsid, codec=codec, planes=2 if codec == "zstd" else 0)
    for _ in range(5):
        for nsid in range(1, 6):
            await driver.write(driver.random.randrange(12), 4, nsid)
    await driver.pool.set_namespace(2, codec="zstd", level=3)
    await driver.write(0, 16, 2)
    await driver.flush()


async def _small_blocks(driver: Driver) -> None:
    await driver.add(256, block_size=512)
    await driver.write(0, 64)
    await driver.flush()


@workload(prepare=_small_blocks)
async def blocks_of_512(driver: Driver) -> None:
    """Each write changes parts of 4096-byte blocks."""
    await driver.write(3, 1)
    await driver.write(5, 9)
    await driver.trim([(17, 3)])
    await driver.flush()
    await asyncio.gather(*(driver.write(block, 1) for block in range(24, 32)))
    await driver.zeroes(30, 12)
    await driver.write(200, 2)
    await driver.flush()


@workload()
async def uncorrectable(driver: Driver) -> None:
    await driver.mark(3, 2)
    await driver.look()
    await driver.flush()
    await driver.write(4)
    await driver.mark(10, 8)
    await driver.zeroes(12, 2)
    await driver.flush()
    await driver.trim([(13, 4)])


# -- the pool's own doings


@workload()
async def commits(driver: Driver) -> None:
    for first in (1, 30):
        await driver.write(first, 10)
        await driver.commit()
    await driver.write(4, 2)
    await driver.flush()
    await driver.write(5, 2)


async def _filled(driver: Driver) -> None:
    await driver.add(800, codec="none")
    for first in range(0, 480, 32):
        await driver.write(first, 32)
    await driver.flush()


@workload(Shape(segments=16), prepare=_filled)
async def cleaner(driver: Driver) -> None:
    """More is written than there is space for, so that segments are moved and used again."""
    random = driver.random

    async def work() -> None:
        for _ in range(9):
            first = random.randrange(450)
            try:
                await driver.write(first, random.randrange(1, 30))
            except CapacityError:
                await driver.flush()
            await driver.read(random.randrange(450), 20)
            await asyncio.sleep(0)

    await asyncio.gather(work(), work())
    await driver.flush()
    if not driver.pool.cleaner.cleaned:
        raise AssertionError("nothing was cleaned")


@workload(Shape(segments=14), prepare=_filled)
async def full(driver: Driver) -> None:
    """Until Capacity Exceeded; then space is given back and writes go on."""
    refused = 0
    for first in range(480, 800, 32):
        try:
            await driver.write(first, 32)
        except CapacityError:
            refused += 1
            if refused == 2:
                break
    if not refused:
        raise AssertionError("the pool never was full")
    await driver.look("of a full pool")
    await driver.trim([(0, 480)])
    await driver.flush()
    await driver.commit()
    await driver.write(0, 32)
    await driver.flush()


@workload()
async def reopened(driver: Driver) -> None:
    await driver.write(3, 4)
    await driver.reopen()
    await driver.write(4, 4)
    await driver.reopen()


@workload(Shape(encrypted=True))
async def rotate_key(driver: Driver) -> None:
    await driver.write(3, 2)
    await driver.rotate_key(FixedKey(2))
    await driver.write(4, 2)
    await driver.flush()
    await driver.rotate_key(FixedKey(3))


@workload(out=2)
async def scrub(driver: Driver) -> None:
    """Two members have rotten here and there."""
    await driver.commit()
    rot(driver, driver.random, (0, 2))
    await driver.write(40, 2)
    await driver.pool.scrub()
    await driver.flush()


def rot(driver: Driver, random: Random, members: tuple[int, ...], count: int = 12) -> None:
    """Flip bits in the segments of members."""
    for member in members:
        disk = driver.disks[member]
        for _ in range(count):
            offset = AREA_BYTES + random.randrange(driver.shape.segments * driver.shape.segment_bytes // 3)
            disk.flip(offset, 1 << random.randrange(8))


# -- members that fail


@workload(out=1)
async def write_error(driver: Driver) -> None:
    await driver.write(3, 4)
    driver.disks[1].fail("write", times=1 << 30)
    await driver.flush()
    await driver.write(5, 8)
    await driver.flush()
    await driver.look()


@workload(out=2)
async def sync_errors(driver: Driver) -> None:
    """One member fails the sync of a flush, another one that of the next; each says 0 afterwards."""
    for member in (2, 0):
        driver.disks[member].fail("sync")
        await driver.write(member, 4)
        await driver.flush()
        await driver.look()
    await driver.write(20, 4)
    await driver.flush()


@workload(out=1)
async def read_errors(driver: Driver) -> None:
    driver.disks[1].fail("read", times=1 << 30)
    await driver.look()
    await driver.write(5, 8)
    await driver.flush()
    await driver.look()


@workload(out=1)
async def no_space_on_one(driver: Driver) -> None:
    disk = driver.disks[3]
    disk.capacity = disk.allocated() + 4096
    for first in range(0, 64, 8):
        await driver.write(first, 8)
        await driver.flush()
    await driver.look()


@workload(out=1)
async def rebuild(driver: Driver) -> None:
    await driver.commit()
    await driver.replace(1)
    await driver.write(8, 6)
    await driver.flush()
    await driver.rebuilt()
    await driver.write(9, 6)
    await driver.flush()


@workload(out=1)
async def spare(driver: Driver) -> None:
    """A spare takes the place of a member that fails."""
    await driver.pool.add_spare(driver.new_disk())
    driver.disks[0].fail("write", code=errno.EIO, times=1 << 30)
    await driver.write(8, 6)
    await driver.flush()
    await driver.rebuilt()
    await driver.write(9, 6)
    await driver.flush()
    await driver.look()


@workload(out=1)
async def comes_back(driver: Driver) -> None:
    """A member is away for a while, and what it holds then is old."""
    await driver.close()
    away = driver.disks.pop(2)
    await driver.open()
    await driver.write(0, 8)
    await driver.zeroes(20, 4)
    await driver.flush()
    await driver.close()
    driver.disks.insert(2, away)
    await driver.open()
    await driver.look("with a member that was away")
    await driver.write(4, 2)
    await driver.flush()


# -- other levels


@workload(Shape(raid="raid5", members=3))
async def raid5(driver: Driver) -> None:
    await driver.write(3, 8)
    await driver.flush()
    await driver.trim([(0, 5)])
    await driver.commit()
    await driver.write(2, 2)


@workload(Shape(raid="none", members=2))
async def no_parity(driver: Driver) -> None:
    await driver.write(3, 8)
    await driver.flush()
    await driver.trim([(0, 5)])
    await driver.commit()
    await driver.write(2, 2)
