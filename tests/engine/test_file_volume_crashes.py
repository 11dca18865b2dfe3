"""Power loss at every write, discard and sync: a block is what was last flushed, or something written since.

A plain file has no way to make a block whole that the disk tears, so blocks are the disk's own 512-byte sectors here,
or the disk does not tear. What a disk garbles or misdirects a plain file cannot notice; the engine's tests do that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import combinations
from random import Random
from uuid import UUID

import pytest

from nvmeof.engine.file_volume import FileVolume
from nvmeof.errors import WriteFault
from nvmeof.testing.virtual_disk import Damage, VirtualDisk
from nvmeof.testing.volume_conformance import read_volume, write_volume

pytestmark = pytest.mark.slow

BLOCKS = 16
UUID_ONE = UUID("0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77")

MakeDisk = Callable[[], VirtualDisk]
MakeVolume = Callable[[VirtualDisk, int], FileVolume]


def honest_volume(disk: VirtualDisk, block_size: int) -> FileVolume:
    return FileVolume(disk, uuid=UUID_ONE, block_size=block_size)


class LyingVolume(FileVolume):
    """Answers flushes without a sync."""

    def _sync(self) -> None:
        pass


class EarlyVolume(FileVolume):
    """Answers a flush with the sync that is running already."""

    async def _commit(self) -> None:
        if self._syncing:
            while self._syncing:
                await asyncio.sleep(0)
            return
        await super()._commit()


def lying_volume(disk: VirtualDisk, block_size: int) -> FileVolume:
    return LyingVolume(disk, uuid=UUID_ONE, block_size=block_size)


def early_volume(disk: VirtualDisk, block_size: int) -> FileVolume:
    return EarlyVolume(disk, uuid=UUID_ONE, block_size=block_size)


class Oracle:
    """What each block may hold after a crash: versions, of which every write has its own, and 0 is zeros."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.allowed: list[dict[int, bool]] = [{0: True} for _ in range(BLOCKS)]
        """By version that may be found: whether its write has completed."""
        self.version = 0

    def content(self, block: int, version: int) -> bytes:
        stamp = block.to_bytes(4, "little") + version.to_bytes(4, "little")
        return bytes(self.block_size) if version == 0 else stamp * (self.block_size // 8)

    def begin(self, first: int, count: int, *, zero: bool = False) -> int:
        """A write of ``count`` blocks is about to be asked for; its version."""
        self.version += 1
        for block in range(first, first + count):
            allowed = self.allowed[block]
            if zero:
                allowed.pop(0, None)
            allowed[0 if zero else self.version] = False
        return self.version

    def complete(self, first: int, count: int, version: int) -> None:
        for block in range(first, first + count):
            self.allowed[block][version] = True

    def snapshot(self) -> list[int]:
        """Call before a flush: for each block the newest version that is complete."""
        return [[version for version, done in allowed.items() if done][-1] for allowed in self.allowed]

    def flushed(self, snapshot: list[int]) -> None:
        """The flush returned: nothing older than ``snapshot`` may be found."""
        for block, floor in enumerate(snapshot):
            allowed = self.allowed[block]
            while floor in allowed and next(iter(allowed)) != floor:
                del allowed[next(iter(allowed))]

    async def check(self, volume: FileVolume, hint: str) -> None:
        for block in range(BLOCKS):
            found = await read_volume(volume, block * self.block_size, self.block_size)
            allowed = [version for version in self.allowed[block] if self.content(block, version) == found]
            assert allowed, f"block {block} holds {found[:8].hex()}..., allowed {self.allowed[block]}; {hint}"


async def one_after_another(volume: FileVolume, oracle: Oracle, random: Random) -> None:
    """Writes, zeroes, deallocates and flushes, until they are done or a fault ends them."""
    size = oracle.block_size
    for _ in range(24):
        first = random.randrange(BLOCKS)
        count = random.randrange(1, min(4, BLOCKS - first) + 1)
        choice = random.randrange(8)
        if choice < 4:
            version = oracle.begin(first, count)
            data = b"".join(oracle.content(block, version) for block in range(first, first + count))
            await write_volume(volume, first * size, data)
            oracle.complete(first, count, version)
        elif choice < 6:
            oracle.begin(first, count, zero=True)
            if choice == 4:
                await volume.write_zeroes(first * size, count * size, deallocate=random.random() < 0.5)
            else:
                await volume.deallocate([(first * size, count * size)])
            oracle.complete(first, count, 0)
        else:
            snapshot = oracle.snapshot()
            await volume.flush()
            oracle.flushed(snapshot)


async def again_and_again(volume: FileVolume, oracle: Oracle, random: Random) -> None:
    for _ in range(10):
        await one_after_another(volume, oracle, random)


async def all_at_once(volume: FileVolume, oracle: Oracle, random: Random) -> None:
    """A task for each block, which writes and flushes it, so that flushes meet writes and each other."""

    async def work(block: int, seed: int) -> None:
        random = Random(seed)
        for _ in range(6):
            version = oracle.begin(block, 1)
            await write_volume(volume, block * oracle.block_size, oracle.content(block, version))
            oracle.complete(block, 1, version)
            for _ in range(random.randrange(3)):
                await asyncio.sleep(0)
            if random.random() < 0.5:
                snapshot = oracle.snapshot()
                await volume.flush()
                oracle.flushed(snapshot)

    outcomes = await asyncio.gather(
        *(work(block, random.randrange(1 << 30)) for block in range(BLOCKS)), return_exceptions=True
    )
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


Workload = Callable[[FileVolume, Oracle, Random], Coroutine[None, None, None]]


async def until_power_off(
    disk: VirtualDisk, block_size: int, seed: int, workload: Workload, cut: int | None, make: MakeVolume
) -> Oracle:
    """Run the workload on a new volume until the power goes off after ``cut`` operations."""
    if cut is not None:
        disk.power_off_after(cut)
    oracle = Oracle(block_size)
    volume = make(disk, block_size)
    try:
        await workload(volume, oracle, Random(seed))
    except WriteFault:
        assert cut is not None
    try:
        await volume.close()
        if cut is None:
            oracle.flushed(oracle.snapshot())
    except WriteFault:
        assert cut is not None
    return oracle


async def enumerate_crashes(
    make_disk: MakeDisk, block_size: int, seed: int, workload: Workload, make: MakeVolume
) -> int:
    """Crash once at every operation, and look; how many there were."""
    disk = make_disk()
    oracle = await until_power_off(disk, block_size, seed, workload, None, make)
    operations = disk.operations
    for cut in range(operations + 1):
        disk = make_disk()
        oracle = await until_power_off(disk, block_size, seed, workload, cut, make)
        hint = f"seed {seed}, power off in operation {cut} of {operations}"
        volume = honest_volume(disk.crash(), block_size)
        await oracle.check(volume, hint)
        await volume.close()
    return operations


async def try_seeds(damage: Damage, workload: Workload, make: MakeVolume) -> None:
    for seed in range(20):

        def make_disk(seed: int = seed) -> VirtualDisk:
            return VirtualDisk(BLOCKS * 512, seed=seed, damage=damage)

        await enumerate_crashes(make_disk, 512, seed, workload, make)


@pytest.mark.parametrize("workload", [one_after_another, all_at_once])
@pytest.mark.parametrize(
    ("block_size", "damage", "waits"),
    [
        (512, Damage.HONEST, False),
        pytest.param(512, Damage.HONEST, True, marks=pytest.mark.slow),
        pytest.param(512, Damage.TEAR, False, marks=pytest.mark.slow),
        pytest.param(512, Damage.NONE, False, marks=pytest.mark.slow),
        (4096, Damage.LOSE | Damage.REORDER, True),
    ],
)
async def test_every_crash_keeps_what_was_flushed(
    block_size: int, damage: Damage, waits: bool, workload: Workload
) -> None:
    for seed in range(2):

        def make_disk(seed: int = seed) -> VirtualDisk:
            return VirtualDisk(BLOCKS * block_size, seed=seed, damage=damage, waits=waits)

        assert await enumerate_crashes(make_disk, block_size, seed, workload, honest_volume) > 15


async def test_every_subset_of_unsynced_writes_is_allowed() -> None:
    """Not samples: at each crash point, each choice of up to three writes that reached the media."""
    block_size, seed = 512, 1
    disk = VirtualDisk(BLOCKS * block_size)
    await until_power_off(disk, block_size, seed, one_after_another, None, honest_volume)
    choices = 0
    for cut in range(disk.operations):
        without_power = VirtualDisk(BLOCKS * block_size)
        await until_power_off(without_power, block_size, seed, one_after_another, cut, honest_volume)
        unsynced = range(len(without_power.unsynced()))
        for survivors in (choice for count in range(4) for choice in combinations(unsynced, count)):
            disk = VirtualDisk(BLOCKS * block_size)
            oracle = await until_power_off(disk, block_size, seed, one_after_another, cut, honest_volume)
            volume = honest_volume(disk.crash(survivors), block_size)
            await oracle.check(volume, f"seed {seed}, cut {cut}, survivors {survivors}")
            await volume.close()
            choices += 1
    assert choices > 50


async def test_a_failed_sync_promises_nothing_and_loses_nothing_older() -> None:
    """The disk drops what it could not sync and then says 0: nobody may be told that it is there."""
    block_size = 512
    for seed in range(20):
        disk = VirtualDisk(BLOCKS * block_size, seed=seed)
        disk.fail("sync", nth=1 + seed % 3)
        oracle = Oracle(block_size)
        volume = honest_volume(disk, block_size)
        with pytest.raises(WriteFault):
            await again_and_again(volume, oracle, Random(seed))
        with pytest.raises(WriteFault):
            await volume.flush()
        with pytest.raises(WriteFault):
            await volume.close()
        volume = honest_volume(disk.crash(), block_size)
        await oracle.check(volume, f"seed {seed}")
        await volume.close()


@pytest.mark.parametrize(
    ("make", "workload"), [(lying_volume, one_after_another), (lying_volume, all_at_once), (early_volume, all_at_once)]
)
async def test_the_oracle_catches_a_volume_that_lies(make: MakeVolume, workload: Workload) -> None:
    with pytest.raises(AssertionError, match="power off in operation"):
        await try_seeds(Damage.LOSE, workload, make)


async def test_the_oracle_catches_a_disk_that_garbles_or_misdirects() -> None:
    for damage in (Damage.GARBLE, Damage.MISDIRECT):
        with pytest.raises(AssertionError, match="power off in operation"):
            await try_seeds(damage, one_after_another, honest_volume)
