"""A namespace of a pool is a volume like any other, on disks of every kind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from nvmeof.engine.disk import Disk, FileDisk
from nvmeof.engine.executor import Executor, InlineExecutor, ThreadExecutor
from nvmeof.engine.pool import Pool
from nvmeof.engine.volume import Volume
from nvmeof.errors import CapacityError, ReadFault, UsageError
from nvmeof.keys.sources import KeyFile
from nvmeof.testing.fault_volume import FaultVolume
from nvmeof.testing.virtual_disk import VirtualDisk
from nvmeof.testing.volume_conformance import SIZE_MIN, VOLUME_CHECKS, OpenVolume, read_volume, write_volume

MIB = 1 << 20


class Owner(FaultVolume):
    """A pool's first namespace, which takes the pool with it when it is closed."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.namespaces[1])
        self.pool = pool

    async def close(self) -> None:
        await super().close()
        await self.pool.close()


def opener(tmp_path: Path, kind: str, block_size: int, codec: str, write_cache: bool) -> OpenVolume:
    """Open the same pool again and again."""
    key = tmp_path / "key"
    keys = KeyFile.create(key)
    virtual = [VirtualDisk(12 * MIB, seed=number, waits=kind == "waiting") for number in range(4)]
    made = False

    async def open_volume() -> Volume:
        nonlocal made
        disks: list[Disk]
        if kind == "files":
            disks = [FileDisk.open(tmp_path / f"member-{number}", 12 * MIB) for number in range(4)]
        else:
            disks = [disk.reopen() for disk in virtual]
        if not made:
            await Pool.create(disks, raid="raid6", keys=keys, segment_bytes=512 << 10)
        executor: Executor = InlineExecutor() if kind == "virtual" else ThreadExecutor(3, "pool")
        pool = await Pool.open(disks, keys=keys, executor=executor)
        if not made:
            await pool.create_namespace(SIZE_MIN, block_size=block_size, codec=codec, write_cache=write_cache)
        made = True
        return Owner(pool)

    return open_volume


@pytest.mark.parametrize("check", VOLUME_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("kind", "block_size", "codec", "write_cache"),
    [
        pytest.param("virtual", 4096, "auto", True, id="virtual"),
        pytest.param("files", 512, "zstd", True, id="files-512", marks=pytest.mark.slow),
        pytest.param("waiting", 4096, "none", False, id="waiting", marks=pytest.mark.slow),
    ],
)
async def test_conformance(
    check: object, kind: str, block_size: int, codec: str, write_cache: bool, tmp_path: Path
) -> None:  # fmt: skip
    await check(opener(tmp_path, kind, block_size, codec, write_cache))  # type: ignore[operator]


async def small_pool(disks: list[VirtualDisk], size: int = 4 * MIB, **options: object) -> Pool:
    await Pool.create(disks, raid="raid6", segment_bytes=128 << 10)
    pool = await Pool.open(disks, executor=InlineExecutor())
    await pool.create_namespace(size, **options)  # type: ignore[arg-type]
    return pool


async def fill(volume: Volume, random: Random, written: list[bytes]) -> None:
    """Write pieces of 32 KiB one behind the other until that fails."""
    for block in range(0, volume.size >> 12, 8):
        data = random.randbytes(8 * 4096)
        await write_volume(volume, block * 4096, data)
        written.append(data)


async def test_a_full_pool_says_so_and_recovers() -> None:
    disks = [VirtualDisk(3 * MIB, seed=number) for number in range(4)]
    pool = await small_pool(disks, 64 * MIB, codec="none")
    volume = pool.namespaces[1]
    random = Random(5)
    written: list[bytes] = []
    with pytest.raises(CapacityError, match="full"):
        await fill(volume, random, written)
    assert len(written) * 8 * 4096 > pool.capacity, "less fits than is promised"
    for number, data in enumerate(written):
        assert await read_volume(volume, number * 8 * 4096, 8 * 4096) == data
    await volume.flush()
    await volume.deallocate([(0, len(written) // 2 * 8 * 4096)])
    for number in range(len(written) // 4):
        await write_volume(volume, number * 8 * 4096, written[-1])
    assert await read_volume(volume, 0, 8 * 4096) == written[-1]
    await pool.close()


async def test_overwriting_for_ever_is_cleaned_up_after() -> None:
    disks = [VirtualDisk(3 * MIB, seed=number) for number in range(4)]
    pool = await small_pool(disks, 2 * MIB, codec="none")
    volume, random, model = pool.namespaces[1], Random(6), bytearray(2 * MIB)
    for _ in range(40):
        await write_volume(volume, 0, random.randbytes(MIB))
    model[:MIB] = await read_volume(volume, 0, MIB)
    for _ in range(3000):
        block, data = random.randrange(512), random.randbytes(4096)
        await write_volume(volume, block * 4096, data)
        model[block * 4096 : (block + 1) * 4096] = data
    assert await read_volume(volume, 0, 2 * MIB) == model
    assert pool.cleaner.moved > 0
    await pool.close()
    pool = await Pool.open([disk.reopen() for disk in disks], executor=InlineExecutor())
    assert await read_volume(pool.namespaces[1], 0, 2 * MIB) == model
    await pool.close()


async def test_a_block_marked_uncorrectable_fails_until_it_is_written() -> None:
    pool = await small_pool([VirtualDisk(3 * MIB, seed=number) for number in range(4)])
    volume = pool.namespaces[1]
    await write_volume(volume, 0, bytes(range(256)) * 64)
    await volume.write_uncorrectable(4096, 4096)
    with pytest.raises(ReadFault, match="uncorrectable"):
        await volume.read(0, memoryview(bytearray(16384)))
    assert await read_volume(volume, 0, 4096) == bytes(range(256)) * 16
    await write_volume(volume, 4096, b"x" * 4096)
    assert await read_volume(volume, 4096, 4096) == b"x" * 4096
    with pytest.raises(UsageError, match="4096"):
        await volume.write_uncorrectable(512, 512)
    await pool.close()


async def test_flushes_that_come_together_share_one_sync() -> None:
    pool = await small_pool([VirtualDisk(3 * MIB, seed=number) for number in range(4)])
    volume = pool.namespaces[1]
    before = pool.log.syncs
    for block in range(16):
        await write_volume(volume, block * 4096, b"y" * 4096)
    await asyncio.gather(*(volume.flush() for _ in range(16)))
    assert pool.log.syncs - before == 1
    await volume.flush()
    assert pool.log.syncs - before == 1, "a flush of nothing synced"
    await pool.close()
