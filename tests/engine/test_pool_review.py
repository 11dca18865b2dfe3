"""What a review of the pool engine found. Each test is named for the property that did not hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

import pytest

from nvmeof.engine import commit, layout
from nvmeof.engine import pool as pool_module
from nvmeof.engine.executor import Executor, InlineExecutor
from nvmeof.engine.layout import MemberState
from nvmeof.engine.pool import Pool
from nvmeof.engine.segments import Segments
from nvmeof.errors import CapacityError, ReadFault, UsageError, VolumeError, WriteFault
from nvmeof.keys.sources import KeySource
from nvmeof.testing.virtual_disk import Damage, VirtualDisk
from nvmeof.testing.volume_conformance import read_volume, write_volume

MIB = 1 << 20
BLOCK = 4096
T = TypeVar("T")


class HeldExecutor:
    """Runs everything at once, but what is called ``held``, which waits until ``go`` is set."""

    def __init__(self, held: str = "") -> None:
        self.held = held
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        if getattr(work, "__name__", "") == self.held:
            self.entered.set()
            await self.go.wait()
        return work(*arguments)

    def close(self) -> None:
        pass


class YieldingExecutor:
    """Others go on before and after each piece of work, as with threads, but the same way each time."""

    def __init__(self, turns: int = 1) -> None:
        self.turns = turns

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        result = work(*arguments)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return result

    def close(self) -> None:
        pass


class FixedKey(KeySource):
    """A key of one byte, again and again."""

    def __init__(self, byte: int) -> None:
        self.byte = byte

    @property
    def kind(self) -> str:
        return f"key {self.byte}"

    def kek(self, kdf: object) -> bytes:
        return bytes([self.byte]) * 32

    def new_kdf(self) -> dict[str, object]:
        return {"name": "none"}


def make_disks(count: int = 4, size: int = 3 * MIB) -> list[VirtualDisk]:
    return [VirtualDisk(size, seed=number) for number in range(count)]


async def make_pool(
    disks: list[VirtualDisk], size: int = 4 * MIB, *, executor: Executor | None = None, raid: str = "raid6",
    segment_bytes: int = 128 << 10, keys: KeySource | None = None, sparse: bool = False, **options: object,
) -> Pool:  # fmt: skip
    await Pool.create(disks, raid=raid, segment_bytes=segment_bytes, keys=keys, sparse=sparse)
    pool = await Pool.open(disks, keys=keys, executor=executor or InlineExecutor())
    await pool.create_namespace(size, **{"codec": "none", **options})  # type: ignore[arg-type]
    return pool


async def reopened(disks: list[VirtualDisk], keys: KeySource | None = None) -> Pool:
    return await Pool.open([disk.reopen() for disk in disks], keys=keys, executor=InlineExecutor())


def copies(disks: list[VirtualDisk]) -> list[VirtualDisk]:
    """What a crash that loses nothing leaves."""
    result = []
    for disk in disks:
        copy = VirtualDisk(len(disk._cache), seed=disk.seed)
        copy._cache[:] = disk._cache
        copy._media[:] = disk._cache
        result.append(copy)
    return result


# --- namespaces and the map -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
async def test_write_zeroes_during_a_commit_zeroes_blocks_that_were_never_committed(wide: bool) -> None:
    executor = HeldExecutor()
    pool = await make_pool(make_disks(), 512 * MIB, executor=executor)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"x" * BLOCK)
    executor.held = "_seal_pages"
    commit = asyncio.create_task(pool.commit())
    await executor.entered.wait()
    await volume.write_zeroes(0, volume.size if wide else BLOCK, deallocate=True)
    assert await read_volume(volume, 0, BLOCK) == bytes(BLOCK)
    executor.go.set()
    await commit
    assert await read_volume(volume, 0, BLOCK) == bytes(BLOCK)
    await pool.close()


async def test_a_resize_that_fails_leaves_a_pool_that_opens() -> None:
    disks = make_disks()
    pool = await make_pool(disks)
    await write_volume(pool.namespaces[1], 0, b"x" * BLOCK)
    with pytest.raises(UsageError):
        await pool.resize_namespace(1, (1 << 50) - BLOCK)
    assert pool.namespaces[1].size == 4 * MIB
    with pytest.raises(UsageError):
        await pool.create_namespace((1 << 50) - BLOCK)
    await pool.close()
    pool = await reopened(disks)
    assert await read_volume(pool.namespaces[1], 0, BLOCK) == b"x" * BLOCK
    await pool.close()


async def test_a_root_too_large_to_be_read_is_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = make_disks()
    pool = await make_pool(disks)
    with pytest.raises(UsageError, match="together"):
        await pool.create_namespace(97 << 40)
    monkeypatch.setattr(pool_module, "POOL_MAP_CHUNKS_MAX", 200)
    await pool.create_namespace(150 << 33)
    with pytest.raises(UsageError, match="leaves"):
        await pool.create_namespace(50 << 33)
    await pool.create_namespace(49 << 33)
    with pytest.raises(UsageError, match="leaves"):
        await pool.resize_namespace(1, (2 << 33))
    await pool.close()
    pool = await reopened(disks)
    assert pool.namespaces[2].size == 150 << 33
    await pool.close()


@pytest.mark.parametrize("operation", ["read", "write", "part", "verify"])
async def test_an_operation_that_a_shrink_overtakes_fails_properly(operation: str) -> None:
    pool = await make_pool(make_disks(), executor=YieldingExecutor(), block_size=512)
    volume = pool.namespaces[1]
    await write_volume(volume, 2 * MIB, b"x" * 65536)
    await volume.flush()
    view = memoryview(bytearray(65536))
    work = {
        "read": lambda: volume.read(2 * MIB, view),
        "write": lambda: volume.write(2 * MIB, view),
        "part": lambda: volume.write(2 * MIB + 512, view[:1024]),
        "verify": lambda: volume.verify(2 * MIB, 65536),
    }[operation]()
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    shrink = asyncio.ensure_future(pool.resize_namespace(1, MIB))
    result = (await asyncio.gather(task, return_exceptions=True))[0]
    await shrink
    assert result is None or isinstance(result, VolumeError), repr(result)
    await pool.close()


# --- members and superblocks ------------------------------------------------------------------------------------------


async def test_an_opening_refused_for_missing_members_changes_nothing() -> None:
    """Two are out; the pool is opened without a third by mistake, and then with all that there is."""
    disks = make_disks(6, 4 * MIB)
    pool = await make_pool(disks)
    await write_volume(pool.namespaces[1], 0, b"x" * BLOCK)
    disks[0].fail("write", times=1)
    disks[1].fail("write", times=1)
    await write_volume(pool.namespaces[1], BLOCK, b"y" * BLOCK)
    await pool.namespaces[1].flush()
    assert [member.state for member in pool.members[:2]] == [MemberState.OUT] * 2
    await pool.close()
    before = [bytes(disk._cache) for disk in disks]
    with pytest.raises(UsageError, match="bring back"):
        await reopened(disks[:5])
    assert [bytes(disk._cache) for disk in disks] == before
    pool = await reopened(disks)
    assert await read_volume(pool.namespaces[1], BLOCK, BLOCK) == b"y" * BLOCK
    await pool.close()


async def test_a_member_that_is_out_does_not_keep_the_pool_from_opening_with_what_it_holds() -> None:
    """Its strips are of older uses of the segments."""
    for role in range(4):
        disks = make_disks()
        pool = await make_pool(disks, 2 * MIB)
        volume, random = pool.namespaces[1], Random(1)
        for _ in range(4):
            await write_volume(volume, 0, random.randbytes(MIB))
        disks[role].fail("write", times=1)
        for _ in range(30):
            await write_volume(volume, 0, random.randbytes(MIB))
            data = random.randbytes(BLOCK)
            await write_volume(volume, 0, data)
        await pool.commit()
        await write_volume(volume, 0, data)
        await pool.commit()
        for index in range(12):
            await pool.commit()
            await write_volume(volume, 0, data)
            await volume.flush()
            again = await reopened(copies(disks))
            assert await read_volume(again.namespaces[1], 0, BLOCK) == data, index
            await again.close()
        await pool.close()


async def test_an_epoch_is_never_used_twice_when_a_member_comes_and_goes() -> None:
    """A crash within a superblock write, then openings without and with the one member it reached."""
    disks = make_disks()
    pool = await make_pool(disks)
    await pool.commit()
    behind = copies(disks)
    await pool.commit()
    await pool.close()
    ahead = copies(disks)[0]
    for disk in behind[1:]:
        disk.reopen()
    pool = await reopened(behind[1:])
    epoch = pool.epoch
    await pool.close()
    pool = await reopened([ahead, *behind[1:]])
    assert pool.epoch > epoch
    await pool.close()


async def test_more_spares_than_a_superblock_names_are_refused() -> None:
    disks = make_disks()
    pool = await make_pool(disks)
    for number in range(layout.MEMBERS_MAX - 4):
        await pool.add_spare(VirtualDisk(3 * MIB, seed=100 + number))
    with pytest.raises(UsageError, match="spares"):
        await pool.add_spare(VirtualDisk(3 * MIB))
    await pool.close()
    pool = await reopened(disks)
    await pool.close()


async def test_a_flush_while_a_member_is_replaced_is_on_all_members_that_count() -> None:
    """A flush is answered between the swap and the superblock: then the power fails."""
    disks = make_disks()
    executor = HeldExecutor()
    pool = await make_pool(disks, executor=executor)
    volume = pool.namespaces[1]
    data = Random(1).randbytes(BLOCK)
    await write_volume(volume, 0, b"o" * BLOCK)
    await volume.flush()
    spare = VirtualDisk(3 * MIB, seed=50)

    async def slow_save(**changes: object) -> None:
        executor.entered.set()
        await executor.go.wait()
        await save(**changes)

    save = pool.save_superblock
    pool.save_superblock = slow_save  # type: ignore[method-assign]
    pool.log.persist = slow_save
    replacing = asyncio.create_task(pool.replace(0, spare))
    await executor.entered.wait()
    await write_volume(volume, 0, data)
    flush = asyncio.create_task(volume.flush())
    for _ in range(100):
        await asyncio.sleep(0)
    if flush.done():
        after = copies(disks)
        for pair in ((1, 2), (1, 3), (2, 3)):
            left = [after[number] for number in range(4) if number not in pair]
            again = await reopened(copies(left))
            assert await read_volume(again.namespaces[1], 0, BLOCK) == data, pair
            await again.close()
    executor.go.set()
    await replacing
    await flush
    await pool.close()


async def test_a_member_that_rejoins_after_a_failed_sync_is_written_anew() -> None:
    """What it failed to sync still reads well, from the page cache, and a later sync says 0."""
    disks = make_disks()
    for disk in disks:
        disk.damage = Damage.NONE
    pool = await make_pool(disks)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, Random(1).randbytes(16 * BLOCK))
    disks[0].fail("sync")
    await volume.flush()
    assert next(member.state.name for member in pool.members) == "OUT"
    await pool.rejoin(0)
    assert (await pool.rebuild()).finished
    assert next(member.state.name for member in pool.members) == "HEALTHY"
    await pool.close()
    disks[0].crash()
    pool = await reopened(disks)
    report = await pool.scrub()
    assert not report.bad
    await pool.close()


async def test_the_second_label_of_a_disk_larger_than_the_others_is_found() -> None:
    disks = make_disks()
    disks[1] = VirtualDisk(4 * MIB + 512, seed=9)
    pool = await make_pool(disks)
    await pool.close()
    disks[1].reopen().write(0, bytes(BLOCK))
    pool = await reopened(disks)
    assert pool.members[1].state is MemberState.HEALTHY
    await pool.close()


async def test_map_pages_are_not_given_up_while_members_are_missing() -> None:
    """Two are missing and a strip of a third is bad: with the two back, everything is there."""
    disks = make_disks()
    pool = await make_pool(disks)
    data = Random(1).randbytes(BLOCK)
    await write_volume(pool.namespaces[1], 0, data)
    await pool.commit()
    entry = pool.namespaces[1].map.table[0]
    for _ in range(3):
        await write_volume(pool.namespaces[1], 1024 * BLOCK - BLOCK, data)
        await pool.commit()
    await pool.close()
    address = layout.address_of(entry)
    place = pool.segments.stripe_at(address.segment, address.unit)
    assert place is not None
    role, at, _ = pool.segments.pieces(place, address.unit, address.units)[0]
    gone = [number for number in range(4) if number != role][:2]
    disks[role].reopen().write(at + 70, b"rot")
    with pytest.raises(UsageError, match="bring"):
        await reopened([disk for number, disk in enumerate(disks) if number not in gone])
    pool = await reopened(disks)
    assert await read_volume(pool.namespaces[1], 0, BLOCK) == data
    assert not pool.opened.lost_map_pages
    await pool.close()


async def test_a_size_is_not_shown_before_it_would_survive_a_crash() -> None:
    executor = HeldExecutor()
    pool = await make_pool(make_disks(), executor=executor)
    volume = pool.namespaces[1]
    executor.held = "write_superblock"
    growing = asyncio.create_task(pool.resize_namespace(1, 8 * MIB))
    await executor.entered.wait()
    assert volume.size == 4 * MIB
    executor.go.set()
    await growing
    assert volume.size == 8 * MIB
    await pool.resize_namespace(1, MIB)
    assert volume.size == MIB
    await pool.close()


# --- walks ------------------------------------------------------------------------------------------------------------


async def test_a_rebuild_that_stops_within_a_segment_goes_on_there() -> None:
    disks = make_disks()
    pool = await make_pool(disks, segment_bytes=256 << 10)
    volume = pool.namespaces[1]
    for block in range(24):
        await write_volume(volume, block * BLOCK, Random(block).randbytes(BLOCK))
        await volume.flush()
    spare = VirtualDisk(3 * MIB, seed=50)
    await pool.replace(0, spare)
    check = pool.reader.check_stripe
    looked = 0

    async def stopping(place: object, **options: bool) -> object:
        nonlocal looked
        looked += 1
        if looked == 3 and pool.walks.walk is not None:
            pool.walks.walk.stopped = True
        return await check(place, **options)  # type: ignore[arg-type]

    pool.reader.check_stripe = stopping  # type: ignore[method-assign, assignment]
    assert not (await pool.rebuild()).finished
    assert (await pool.rebuild()).finished
    pool.reader.check_stripe = check  # type: ignore[method-assign]
    assert pool.members[0].state is MemberState.HEALTHY
    report = await pool.scrub()
    assert not report.bad, "healthy, and strips are missing"
    await pool.close()


async def test_a_walk_after_a_crash_does_not_call_unflushed_stripes_lost() -> None:
    disks = make_disks()
    pool = await make_pool(disks)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"x" * BLOCK)
    await volume.flush()
    before = copies(disks)
    await write_volume(volume, 0, b"y" * BLOCK)
    await volume.flush()
    torn = [before[0], before[1], before[2], copies(disks)[3]]
    for _ in range(3):
        pool = await reopened(torn)
        assert await read_volume(pool.namespaces[1], 0, BLOCK) == b"x" * BLOCK
        report = await pool.scrub()
        assert not report.lost
        assert not pool.media_errors
        await pool.close()


async def test_cleaning_stripes_in_flight_is_no_media_error() -> None:
    disks = make_disks()
    executor = YieldingExecutor(3)
    pool = await make_pool(disks, 64 * MIB, executor=executor)
    volume, random = pool.namespaces[1], Random(3)
    live = 300

    async def writer(first: int) -> None:
        for _ in range(400):
            await write_volume(volume, random.randrange(first, first + live // 4) * BLOCK, random.randbytes(BLOCK))

    async def cleaner() -> None:
        for _ in range(60):
            async with pool.cleaner._lock:
                await pool.cleaner._round()

    async def committer() -> None:
        for _ in range(200):
            await pool.commit()
            await asyncio.sleep(0)

    await asyncio.gather(*(writer(n * live // 4) for n in range(4)), cleaner(), committer())
    assert not pool.reader.errors
    await pool.close()


# --- space ------------------------------------------------------------------------------------------------------------


class StealingExecutor(InlineExecutor):
    """Lets others go on whenever the commit leaves the loop."""

    steal: Callable[[], None] | None = None

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        if self.steal is not None and getattr(work, "__name__", "") == "_seal_pages":
            self.steal()
        return work(*arguments)


async def test_users_never_take_the_room_a_commit_needs() -> None:
    """Writes join the stripes that the commit of a full pool opens: after some rounds there was nothing left."""
    executor = StealingExecutor()
    pool = await make_pool(make_disks(6, 24 * MIB), 1024 * MIB, executor=executor, segment_bytes=512 << 10)
    volume, random = pool.namespaces[1], Random(5)
    big, written = memoryview(random.randbytes(32 * BLOCK)), 0
    with contextlib.suppress(CapacityError):
        while True:
            await volume.write(written * BLOCK, big)
            written += 32

    def steal() -> None:
        while volume.write_now(random.randrange(written // 32) * 32 * BLOCK, big):
            pass

    executor.steal = steal
    for _ in range(10):
        for first in range(0, written, 512):
            await volume.deallocate([((first + random.randrange(512)) * BLOCK, BLOCK)])
        await pool.commit()
    assert not pool.log.fault
    await volume.deallocate([(0, written // 2 * BLOCK)])
    executor.steal = None
    for first in range(0, written // 4, 32):
        await volume.write(first * BLOCK, big)
    await pool.close()


async def test_a_full_pool_of_scattered_blocks_can_be_trimmed() -> None:
    """In the smallest segments, each block on a map page of its own, after openings that each began a new segment."""
    disks = make_disks()
    pool = await make_pool(disks, 4096 * MIB)
    random, written = Random(7), []
    volume = pool.namespaces[1]
    with contextlib.suppress(CapacityError):
        while True:
            block = random.randrange(volume.size // BLOCK)
            await write_volume(volume, block * BLOCK, random.randbytes(BLOCK))
            written.append(block)
    for _ in range(2):
        await pool.close()
        pool = await reopened(disks)
    volume = pool.namespaces[1]
    for block in written:
        await volume.deallocate([(block * BLOCK, BLOCK)])
    for block in written[:50]:
        await write_volume(volume, block * BLOCK, random.randbytes(BLOCK))
    await pool.close()


async def test_small_flushed_writes_do_not_fill_the_pool() -> None:
    """Each takes a short stripe: the cleaner must see that such segments are mostly air."""
    disks = make_disks(6, 4 * MIB)
    pool = await make_pool(disks, 64 * MIB)
    volume, random = pool.namespaces[1], Random(5)
    blocks = pool.capacity * 60 // 100 // BLOCK
    for block in range(blocks):
        await write_volume(volume, block * BLOCK, random.randbytes(BLOCK))
        await volume.flush()
    await pool.close()


async def test_a_spree_of_trims_never_outgrows_what_a_commit_can_write() -> None:
    disks = make_disks(6, 8 * MIB)
    pool = await make_pool(disks, 4096 * MIB, executor=YieldingExecutor())
    volume = pool.namespaces[1]
    for page in range(2048):
        await write_volume(volume, page * 512 * BLOCK, b"x" * BLOCK)
        if not page % 64:
            await pool.commit()
    most = 0

    async def trimmer(start: int) -> None:
        nonlocal most
        for page in range(start, 2048, 8):
            await volume.deallocate([(page * 512 * BLOCK, BLOCK)])
            most = max(most, len(volume.map.dirty))

    await asyncio.gather(*(trimmer(start) for start in range(8)))
    assert most <= 2 * pool.dirty_max + 16
    await pool.close()


# --- faults -----------------------------------------------------------------------------------------------------------


async def test_after_a_fault_every_write_is_refused() -> None:
    disks = make_disks()
    pool = await make_pool(disks)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"x" * BLOCK)
    for disk in disks[:3]:
        disk.fail("sync", times=1)
    with pytest.raises(WriteFault):
        await volume.flush()
    with pytest.raises(WriteFault):
        await write_volume(volume, BLOCK, b"y" * BLOCK)
    with pytest.raises(WriteFault):
        await pool.close()


async def test_a_fault_in_the_middle_leaves_no_write_behind() -> None:
    """Records in the open stripe when the fault comes: no more join them."""
    disks = make_disks()
    pool = await make_pool(disks)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"x" * BLOCK)
    pool.log.fail("by hand")
    with pytest.raises(WriteFault):
        await write_volume(volume, BLOCK, b"y" * BLOCK)
    with pytest.raises(WriteFault):
        await pool.close()


@pytest.mark.parametrize(("count", "raid"), [(1, "none"), (2, "none"), (4, "raid6")])
async def test_a_stripe_nobody_can_read_is_a_read_fault(count: int, raid: str) -> None:
    disks = make_disks(count, 12 * MIB)
    pool = await make_pool(disks, raid=raid, segment_bytes=512 << 10)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"x" * BLOCK)
    await volume.flush()
    for disk in disks:
        disk.fail("read", times=1000)
    with pytest.raises(ReadFault):
        await volume.read(0, memoryview(bytearray(BLOCK)))
    for disk in disks:
        disk._failures.clear()
    await pool.close()


@pytest.mark.parametrize("operation", ["write", "sync"])
async def test_one_member_failing_a_key_write_does_not_stop_the_pool(operation: str) -> None:
    disks = make_disks()
    pool = await make_pool(disks, keys=FixedKey(1))
    disks[2].fail(operation, times=1)  # type: ignore[arg-type]
    await pool.rotate_key(FixedKey(2))
    assert pool.members[2].state is MemberState.OUT
    await write_volume(pool.namespaces[1], 0, b"x" * BLOCK)
    await pool.namespaces[1].flush()
    await pool.close()
    pool = await reopened(disks, FixedKey(2))
    assert await read_volume(pool.namespaces[1], 0, BLOCK) == b"x" * BLOCK
    await pool.close()
    with pytest.raises(UsageError, match="wrong key"):
        await reopened(disks, FixedKey(1))


async def test_a_spare_keeps_no_key_that_was_destroyed() -> None:
    disks = make_disks()
    pool = await make_pool(disks, keys=FixedKey(1))
    spare = VirtualDisk(3 * MIB, seed=50)
    await pool.add_spare(spare)
    await pool.rotate_key(FixedKey(2))
    await pool.close()
    old, new = layout.KEYS_OFFSET, disks[0]
    assert spare._cache[old : old + layout.KEYS_BYTES] == new._cache[old : old + layout.KEYS_BYTES]


async def test_closing_a_faulted_pool_waits_for_all_volumes() -> None:
    executor = HeldExecutor()
    pool = await make_pool(make_disks(), executor=executor)
    await pool.create_namespace(MIB)
    volume = pool.namespaces[2]
    await write_volume(volume, 0, b"x" * BLOCK)
    await volume.flush()
    executor.held = "_fetch_all"
    reading = asyncio.create_task(volume.read(0, memoryview(bytearray(BLOCK))))
    await executor.entered.wait()
    pool.log.fail("by hand")
    closing = asyncio.create_task(pool.close())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done()
    executor.go.set()
    await reading
    with pytest.raises(WriteFault):
        await closing


# --- hostile images ---------------------------------------------------------------------------------------------------


def forge(disks: list[VirtualDisk], change: Callable[[layout.Superblock], layout.Superblock]) -> list[VirtualDisk]:
    """Copies on which the newest superblock is another."""
    forged = copies(disks)
    for disk in forged:
        size = len(disk._cache)
        for area in (0, size - layout.AREA_BYTES):
            best = None
            for slot in range(layout.RING_SLOTS):
                at = area + layout.RING_OFFSET + slot * 4096
                found = layout.decode_superblock(bytes(disk._cache[at : at + 4096]))
                if found is not None and (best is None or found.generation > best[1].generation):
                    best = (at, found)
            assert best is not None
            disk._cache[best[0] : best[0] + 4096] = layout.encode_superblock(change(best[1]))
    return forged


MAX64 = (1 << 64) - 1
MAX32 = (1 << 32) - 1


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": MAX32}, {"epoch": (1 << 24) - 1}, {"generation": MAX64}, {"media_errors": MAX64},
        {"sequence": MAX64}, {"scrub_cursor": MAX32 - 1}, {"scrub_stripes": MAX64}, {"scrub_lost": MAX64},
        {"root": MAX64}, {"segment": MAX32}, {"page": MAX32}, {"root_sequence": MAX64},
    ],
    ids=str,
)  # fmt: skip
async def test_a_forged_superblock_opens_or_is_refused(change: dict[str, Any]) -> None:
    disks = make_disks()
    pool = await make_pool(disks)
    await write_volume(pool.namespaces[1], 0, b"x" * BLOCK)
    await pool.close()
    try:
        pool = await reopened(forge(disks, lambda sb: sb._replace(**change)))
        await pool.scrub()
        pool.reader.error_count += 5
        await pool.close()
    except (UsageError, VolumeError):
        pass


async def test_one_disk_in_two_roles_is_refused() -> None:
    disks = make_disks()
    pool = await make_pool(disks)
    await pool.close()

    def twice(sb: layout.Superblock) -> layout.Superblock:
        return sb._replace(members=(sb.members[0], sb.members[0], *sb.members[2:]))

    with pytest.raises(UsageError):
        await reopened(forge(disks, twice))


@pytest.mark.parametrize(
    "forged",
    [
        b'{"namespaces": [], "segments": [Infinity], "next": 1}',
        b'{"namespaces": [], "segments": [-5], "next": 1}',
        b'{"namespaces": [], "segments": [-4398046511000], "next": 1}',
        b'{"namespaces": [{"id":1,"nsid":1,"uuid":"0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77","size":1152921504606842880,'
        b'"block_size":4096,"codec":"none","level":1,"planes":0,"key_id":0,"write_cache":true,"chunks":[]}],'
        b'"segments": [SELF], "next": 2}',
        b'{"namespaces": [{"id":1,"nsid":1,"uuid":"0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77","size":70368744177664,'
        b'"block_size":4096,"codec":"none","level":1,"planes":0,"key_id":0,"write_cache":true,"chunks":[]}],'
        b'"segments": [SELF], "next": 2}',
        b'{"namespaces": 5, "segments": [SELF], "next": 2}',
        b'{"namespaces": [], "segments": [], "next": 2}',
    ],
)
async def test_a_forged_root_is_refused(forged: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = make_disks()
    pool = await make_pool(disks)
    monkeypatch.setattr(commit, "encode_root", lambda pool, tables: forged.replace(b"SELF", str(tables[0]).encode()))
    await pool.close()
    monkeypatch.undo()
    with pytest.raises((UsageError, VolumeError)):
        await reopened(disks)


async def test_a_forged_segment_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = make_disks()
    pool = await make_pool(disks)
    monkeypatch.setattr(Segments, "encode", lambda self, freed: [b"\xff" * 13])
    await pool.close()
    monkeypatch.undo()
    with pytest.raises((UsageError, VolumeError)):
        await reopened(disks)


@pytest.mark.parametrize("cached", [False, True])
async def test_a_forged_map_gives_no_other_blocks_bytes(cached: bool) -> None:
    pool = await make_pool(make_disks())
    volume = pool.namespaces[1]
    await write_volume(volume, 0, Random(1).randbytes(8 * BLOCK))
    await volume.flush()
    entries = volume.map.entries
    if cached:
        await read_volume(volume, BLOCK, BLOCK)
    entries[5] = entries[3]
    for index in range(8, 12):
        entries[index] = entries[0] + index
    for first, count in ((5, 1), (6, 6), (7, 2), (8, 1), (8, 2)):
        view = memoryview(bytearray(count * BLOCK))
        assert not volume.read_now(first * BLOCK, view)
        with pytest.raises(ReadFault):
            await volume.read(first * BLOCK, view)
    await pool.close()
