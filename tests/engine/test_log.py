"""The log: records into stripes, stripes onto members, group commit, members that fail, reserves, back-pressure."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from random import Random
from typing import TypeVar

import pytest

from nvmeof.codec.packer import Packer
from nvmeof.engine import log as module
from nvmeof.engine.disk import Disk
from nvmeof.engine.executor import Executor, InlineExecutor, ThreadExecutor
from nvmeof.engine.layout import (
    NONE32,
    Geometry,
    Kind,
    MemberState,
    address_of,
    decode_record_header,
)
from nvmeof.engine.log import Level, Log, record_view
from nvmeof.engine.member import Member
from nvmeof.engine.parity import Parity
from nvmeof.engine.record import Sealed, Sealer
from nvmeof.engine.segments import Segments
from nvmeof.engine.stripe import read_stripe
from nvmeof.errors import ReadFault, WriteFault
from nvmeof.keys.cipher import DataKey
from nvmeof.limits import POOL_STRIPES_IN_FLIGHT_MAX, POOL_STRIPES_OFF_LOOP
from nvmeof.testing.virtual_disk import VirtualDisk
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .pools import SEGMENT_BYTES, new_disks, new_pool, open_pool

T = TypeVar("T")
EPOCH = 3
SEALER = Sealer(Packer("none", 0, 0))
NOISE = Random(1).randbytes(131072)


class GatedExecutor:
    """Inline work that waits on the loop while the gate is shut."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        return work(*arguments)

    def close(self) -> None:
        """Nothing to close."""


class Rig:
    """A log over disks, without a pool. With an executor it writes there, not on the loop."""

    def __init__(self, parity: int = 2, segments: int = 22, executor: Executor | None = None) -> None:
        size = (256 << 10) + segments * SEGMENT_BYTES
        self.disks = new_disks(2 + parity, size)
        self.geometry = Geometry(b"p" * 16, 2, parity, 0, SEGMENT_BYTES, SEGMENT_BYTES, segments, size, 0)
        self.segments = Segments(self.geometry)
        self.segments.find_free()
        self.members = [Member(disk, bytes([n]) * 16, disk.path) for n, disk in enumerate(self.disks)]
        self.log = Log(self.geometry, self.segments, self.members, executor or InlineExecutor(), EPOCH)
        self.log._off_loop = 0 if executor is None else 1 << 30
        self.persisted: list[list[str]] = []
        self.log.persist = self.persist

    async def persist(self) -> None:
        self.persisted.append([member.state.name for member in self.members])

    def put(self, length: int = 4096, first: int = 0) -> int:
        return self.log.append_data(SEALER, memoryview(NOISE[:length]), 7, first, length >> 12)

    async def put_waiting(self, length: int, first: int = 0) -> int:
        while not (entry := self.put(length, first)):
            assert not self.log.starved
            await self.log.wait_room()
        return entry

    def states(self) -> str:
        return "".join(member.state.name[0] for member in self.members)

    def record(self, entry: int) -> bytes:
        """A record on media: its whole stripe read and put together."""
        address = address_of(entry)
        place = self.segments.stripe_at(address.segment, address.unit)
        assert place is not None
        content = read_stripe(self.geometry, place, self.disks)
        stream = b"".join(map(bytes, Parity(2, self.geometry.parity).recover(content.payloads)[:2]))
        at = (address.unit - place.first) * 64
        return stream[at : at + address.units * 64]


# --- append


async def test_a_record_is_in_memory_then_on_media() -> None:
    rig = Rig()
    entry = rig.put(8192, 5)
    address = address_of(entry)
    assert address == (0, 0, 129, 0)
    view = record_view(rig.log.resident[0], 0, 129)
    assert view is not None
    held = bytes(view)
    await rig.log.flush()
    assert not rig.log.resident
    assert rig.record(entry) == held
    header = decode_record_header(held)
    assert header is not None
    assert (header.kind, header.first, header.count, header.namespace) == (1, 5, 2, 7)
    assert header.sequence == EPOCH << 40
    assert header.write_sequence == (EPOCH << 40) + 1
    assert held[64 : 64 + 8192] == NOISE[:8192]


async def test_both_ways_of_appending_make_the_same_record() -> None:
    """Sealed where it lies, or sealed before: with a key, short payloads, and payloads that end within a unit."""
    for codec, data in (("zstd", bytes(4096)), ("none", NOISE[:4096]), ("zstd", NOISE[:50] * 82)):
        sealer = Sealer(Packer(codec, 1, 0), 4, DataKey(bytes(range(64))))
        records = []
        for way in range(2):
            rig = Rig()
            view = memoryview(data[:4096].ljust(4096, b"\0"))
            if way:
                entry = rig.log.append_data(sealer, view, 7, 9, 1)
            else:
                sealed = sealer.seal(view, 9, rig.log.new_write_sequence())
                entry = rig.log.append(Kind.DATA, 7, 9, 1, sealed, write_sequence=rig.log.write_sequence)
            await rig.log.flush()
            records.append(rig.record(entry))
        assert records[0] == records[1]


async def test_marks_moves_and_numbers() -> None:
    rig = Rig()
    empty = Sealed(0, 0, 0, 0, 0, b"")
    mark = rig.log.append(Kind.DEALLOCATED, 7, 3, (5 << 32) + 6, empty)
    moved = rig.log.append(Kind.DATA, 7, 3, 1, Sealed(0, 0, 1, 2, 16, b"x" * 16), moved_from=99, write_sequence=50)
    await rig.log.flush()
    header = decode_record_header(rig.record(mark))
    assert header is not None
    assert (header.blocks, header.length, header.units, header.flags) == ((5 << 32) + 6, 0, 1, 0)
    header = decode_record_header(rig.record(moved))
    assert header is not None
    assert (header.flags, header.moved_from, header.write_sequence, header.key_id) == (3, 99, 50, 2)
    assert rig.log.write_sequence == (EPOCH << 40) + 1, "a moved record has its number already"


async def test_stripes_fill_segments_one_behind_the_other() -> None:
    """Sequences follow, each strip names the next segment, a generation is the first sequence of a segment."""
    rig = Rig()
    random, entries = Random(2), []
    for _ in range(50):
        count = random.choice((1, 2, 5, 32))
        entries.append((await rig.put_waiting(count * 4096), count))
        if random.random() < 0.3:
            await rig.log.flush()
    await rig.log.drain()
    for entry, count in entries:
        header = decode_record_header(rig.record(entry))
        assert header is not None
        assert header.count == count
    used = [number for number in range(22) if rig.segments.generation[number]]
    assert used == list(range(len(used)))
    sequence = EPOCH << 40
    for number in used:
        assert rig.segments.generation[number] == sequence
        for place in rig.segments.stripes(number):
            assert place.sequence == sequence
            content = read_stripe(rig.geometry, place, rig.disks)
            assert not content.bad
            assert content.next_segment == number + 1
            sequence += 1
    assert rig.log.sequence == sequence
    assert rig.log.busy_segments == (used[-1], used[-1] + 1)


async def test_flushed_in_strips_is_what_was_synced_before() -> None:
    rig = Rig()
    for number in range(3):
        rig.put()
        await rig.log.flush()
        place = rig.segments.stripe(0, number)
        assert read_stripe(rig.geometry, place, rig.disks).flushed == number
    assert rig.log.flushed == (EPOCH << 40) + 3


# --- flush


async def test_flushes_together_share_a_sync() -> None:
    rig = Rig()
    for block in range(10):
        rig.put(4096, block)
    await asyncio.gather(*(rig.log.flush() for _ in range(50)))
    assert rig.log.syncs == 1
    assert not any(disk.unsynced() for disk in rig.disks)


async def test_a_flush_of_nothing_does_not_sync() -> None:
    rig = Rig()
    await rig.log.flush()
    assert rig.log.syncs == 0
    rig.put()
    await rig.log.flush()
    await rig.log.flush()
    assert rig.log.syncs == 1


async def test_a_flush_that_comes_while_one_syncs_gets_the_next() -> None:
    """What was appended after the first closed its stripe is not covered by it."""
    executor = GatedExecutor()
    rig = Rig(executor=executor)
    rig.put()
    executor.gate.clear()
    first = asyncio.ensure_future(rig.log.flush())
    while not executor.waiting:
        await asyncio.sleep(0)
    rig.put()
    later = [asyncio.ensure_future(rig.log.flush()) for _ in range(20)]
    await asyncio.sleep(0)
    executor.gate.set()
    await first
    await asyncio.gather(*later)
    assert rig.log.syncs == 2
    assert not any(disk.unsynced() for disk in rig.disks)


async def test_a_flush_that_is_cancelled_harms_nobody() -> None:
    executor = GatedExecutor()
    rig = Rig(executor=executor)
    rig.put()
    executor.gate.clear()
    flushes = [asyncio.ensure_future(rig.log.flush()) for _ in range(3)]
    await asyncio.sleep(0)
    flushes[0].cancel()
    await asyncio.sleep(0)
    executor.gate.set()
    assert [type(each) for each in await asyncio.gather(*flushes, return_exceptions=True)] == [
        asyncio.CancelledError, type(None), type(None),
    ]  # fmt: skip
    assert rig.log.flushed == (EPOCH << 40) + 1


# --- members that fail


@pytest.mark.parametrize("what", ["write", "sync"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_member_that_fails_is_out_before_the_flush_is_answered(what: str, code: int) -> None:
    rig = Rig()
    seen: list[tuple[int, int | None, str]] = []
    rig.log.on_failure = lambda role, error, how: seen.append((role, error.errno, how))
    rig.disks[1].fail(what, code=code)  # type: ignore[arg-type]
    rig.put()
    await rig.log.flush()
    assert seen == [(1, code, what)]
    assert rig.states() == "HOHH"
    assert rig.persisted == [["HEALTHY", "OUT", "HEALTHY", "HEALTHY"]]
    assert rig.members[1].errors == 1
    assert rig.members[1].reason.startswith(f"{what} failed: ")
    operations = rig.disks[1].operations
    rig.put()
    await rig.log.flush()
    assert rig.disks[1].operations == operations, "it is neither written nor synced any more"
    assert len(rig.persisted) == 1
    assert not rig.log.fault


async def test_a_sync_is_never_tried_again() -> None:
    rig = Rig()
    rig.disks[3].fail("sync")
    rig.put()
    await rig.log.flush()
    assert rig.states() == "HHHO"
    assert rig.disks[3].unsynced() == []
    assert all(disk.operations == 2 for disk in rig.disks)


@pytest.mark.parametrize("parity", [0, 1, 2])
async def test_one_more_than_parity_stops_it(parity: int) -> None:
    rig = Rig(parity)
    for disk in rig.disks[: parity + 1]:
        disk.fail("write", times=100)
    rig.put()
    with pytest.raises(WriteFault, match=f"{parity + 1} of {2 + parity} members are lost, {parity} may be: disk-0: "):
        await rig.log.flush()
    for _ in range(2):
        with pytest.raises(WriteFault):
            await rig.log.flush()
        with pytest.raises(WriteFault):
            await rig.log.wait_room()
        with pytest.raises(WriteFault):
            await rig.log.drain()
        with pytest.raises(WriteFault):
            rig.put(131072)
        with pytest.raises(WriteFault):
            rig.log.begin_head()
    assert not rig.persisted, "there is nobody left to say it to"


async def test_up_to_parity_it_goes_on() -> None:
    rig = Rig(2)
    rig.disks[0].fail("write", times=100)
    rig.disks[2].fail("sync", times=100)
    entry = rig.put()
    await rig.log.flush()
    assert rig.states() == "OHOH"
    assert rig.record(entry)[64 : 64 + 4096] == NOISE[:4096]


async def test_flushes_that_wait_hear_of_the_fault() -> None:
    executor = GatedExecutor()
    rig = Rig(0, executor=executor)
    rig.disks[0].fail("sync")
    rig.put()
    executor.gate.clear()
    flushes = [asyncio.ensure_future(rig.log.flush()) for _ in range(5)]
    await asyncio.sleep(0)
    executor.gate.set()
    outcomes = await asyncio.gather(*flushes, return_exceptions=True)
    assert all(isinstance(each, WriteFault) for each in outcomes)


async def test_what_was_not_written_stays_in_memory() -> None:
    """After the fault reads go on, and what is on no member is still answered from memory."""
    rig = Rig(1)
    for disk in rig.disks:
        disk.fail("write", times=100)
    entry = rig.put()
    with pytest.raises(WriteFault):
        await rig.log.flush()
    view = record_view(rig.log.resident[0], 0, 65)
    assert view is not None
    assert bytes(view[64 : 64 + 4096]) == NOISE[:4096]
    assert entry


async def test_work_that_breaks_stops_the_log() -> None:
    """Not an OSError: a bug or no memory. What was not written must not be called written."""

    class Broken(InlineExecutor):
        async def run(self, work: Callable[..., T], *arguments: object) -> T:
            raise MemoryError

    rig = Rig(executor=Broken())
    rig.put()
    with pytest.raises(WriteFault, match="a stripe could not be written: MemoryError"):
        await rig.log.flush()
    assert rig.log.flushed == EPOCH << 40


async def test_a_failed_persist_stops_the_log() -> None:
    rig = Rig()

    async def persist() -> None:
        raise RuntimeError("no superblock")

    rig.log.persist = persist
    rig.disks[0].fail("sync")
    rig.put()
    with pytest.raises(WriteFault, match="flush failed: RuntimeError"):
        await rig.log.flush()


async def test_a_failure_of_a_disk_that_is_no_member_any_more_is_nothing() -> None:
    rig = Rig()
    stranger = VirtualDisk(4096)
    rig.log.member_failed(0, stranger, OSError(errno.EIO, "x"), "write")
    rig.log.member_failed(0, None, OSError(errno.EIO, "x"), "write")
    assert rig.states() == "HHHH"
    rig.log.member_failed(0, rig.disks[0], OSError(errno.EIO, "x"), "write")
    rig.log.member_failed(0, rig.disks[0], OSError(errno.EIO, "x"), "write")
    assert (rig.states(), rig.members[0].errors) == ("OHHH", 1)


async def test_a_member_being_rebuilt_is_written_and_not_counted_upon() -> None:
    rig = Rig(2)
    rig.members[0].state = MemberState.REBUILDING
    rig.put()
    await rig.log.flush()
    assert rig.disks[0].operations == 2
    rig.disks[1].fail("write")
    rig.disks[2].fail("write")
    rig.put()
    with pytest.raises(WriteFault, match="3 of 4 members are lost"):
        await rig.log.flush()


async def test_a_member_that_is_full_is_out_and_the_pool_goes_on() -> None:
    """ENOSPC of one thinly provisioned member (engine.md, must 4)."""
    disks = new_disks(4)
    pool = await new_pool(disks)
    volume = pool.namespaces[1]
    disks[2].capacity = disks[2].allocated() + 8192
    data = Random(3).randbytes(256 << 10)
    await write_volume(volume, 0, data)
    await volume.flush()
    assert pool.members[2].state is MemberState.OUT
    assert "space" in pool.members[2].reason
    assert await read_volume(volume, 0, len(data)) == data
    await pool.close()
    pool = await open_pool([*disks[:2], disks[3]])
    assert pool.members[2].state is MemberState.OUT
    assert await read_volume(pool.namespaces[1], 0, len(data)) == data
    await pool.close()


async def test_reads_go_on_after_the_fault() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    volume = pool.namespaces[1]
    data = Random(4).randbytes(64 << 10)
    await write_volume(volume, 0, data)
    await volume.flush()
    await write_volume(volume, 65536, data)
    for disk in disks[:3]:
        disk.fail("sync")
    with pytest.raises(WriteFault, match="3 of 4 members are lost"):
        await volume.flush()
    assert volume.health.read_only
    for write in (volume.flush, pool.commit, lambda: volume.write(0, memoryview(bytearray(4096)))):
        with pytest.raises(WriteFault):
            await write()
    with pytest.raises(WriteFault):
        await volume.deallocate([(0, 4096)])
    assert await read_volume(volume, 65536, 65536) == data, "from memory"
    with pytest.raises((ReadFault, AssertionError)):
        assert await read_volume(volume, 0, 65536) != data
    with pytest.raises(WriteFault):
        await pool.close()


async def test_after_the_fault_nothing_is_taken_into_the_open_stripe() -> None:
    """It had room; but a write that returns promises that a flush can put it on media."""
    pool = await new_pool(new_disks(4))
    volume = pool.namespaces[1]
    assert volume.write_now(0, memoryview(NOISE[:4096]))
    pool.log.fail("on purpose")
    assert not volume.write_now(4096, memoryview(NOISE[:4096]))
    with pytest.raises(WriteFault, match="on purpose"):
        await volume.write(4096, memoryview(bytearray(4096)))
    assert await read_volume(volume, 0, 8192) == NOISE[:4096] + bytes(4096)
    with pytest.raises(WriteFault, match="on purpose"):
        await pool.close()


# --- room


async def test_back_pressure() -> None:
    """So many stripes on their way and no more; the next append has no room now, and is not starved."""
    executor = GatedExecutor()
    rig = Rig(segments=POOL_STRIPES_IN_FLIGHT_MAX + 10, executor=executor)
    executor.gate.clear()
    records = 0
    while rig.put(131072):
        records += 1
        await asyncio.sleep(0)
    assert executor.waiting == POOL_STRIPES_IN_FLIGHT_MAX
    assert records == POOL_STRIPES_IN_FLIGHT_MAX + 1
    assert not rig.log.starved
    assert not rig.log.has_room(131072)
    waiter = asyncio.ensure_future(rig.log.wait_room())
    await asyncio.sleep(0)
    assert not waiter.done()
    executor.gate.set()
    await waiter
    assert rig.put(131072)
    await rig.log.drain()
    assert executor.waiting == 0


async def test_those_who_wait_for_room_hear_of_a_fault() -> None:
    executor = GatedExecutor()
    rig = Rig(0, segments=POOL_STRIPES_IN_FLIGHT_MAX + 10, executor=executor)
    executor.gate.clear()
    while rig.put(131072):
        await asyncio.sleep(0)
    waiter = asyncio.ensure_future(rig.log.wait_room())
    await asyncio.sleep(0)
    rig.log.fail("on purpose")
    await waiter
    with pytest.raises(WriteFault, match="on purpose"):
        await rig.log.wait_room()
    executor.gate.set()


async def test_the_reserve_by_level() -> None:
    """Users leave four free segments, the cleaner two, a commit none (limits.py)."""
    rig = Rig(segments=12)
    sealed = Sealed(0, 0, 0, 0, 131072, NOISE)
    left = {}
    for level in (Level.USER, Level.CLEANER, Level.COMMIT):
        while rig.log.append(Kind.DATA, 7, 0, 32, sealed, level=level):
            await rig.log.drain()
        assert rig.log.starved
        left[level.name] = len(rig.segments.free)
        assert not rig.put(131072)
    assert left == {"USER": 4, "CLEANER": 2, "COMMIT": 0}
    rig.log.starved = False
    with pytest.raises(WriteFault, match="no free segment is left for the map"):
        rig.log.begin_head()


async def test_the_first_of_all_takes_two_segments() -> None:
    rig = Rig(segments=12)
    assert rig.log.busy_segments == (NONE32, NONE32)
    rig.put()
    assert rig.log.busy_segments == (0, 1)
    assert len(rig.segments.free) == 10


async def test_has_room_is_a_promise() -> None:
    """If it says so, records of that many bytes can be appended at once, whatever was before."""
    executor = GatedExecutor()
    random = Random(9)
    promised = refused = 0
    for _ in range(60):
        rig = Rig(executor=executor)
        executor.gate.clear()
        for _ in range(random.randrange(300)):
            length = random.choice((4096, 4096, 12288, 65536, 131072, 262144, 1 << 20))
            if rig.log.has_room(length):
                promised += 1
                for _ in range(0, length, 131072):
                    assert rig.put(min(length, 131072)), f"{length} bytes were promised room"
            else:
                refused += 1
                break
            await asyncio.sleep(0)
        executor.gate.set()
        await rig.log.drain()
    assert promised > 300
    assert refused > 20


async def test_a_head_is_a_new_stripe() -> None:
    rig = Rig()
    assert rig.log.begin_head() == (EPOCH << 40, 0, 0)
    assert rig.log.begin_head() == (EPOCH << 40, 0, 0), "an empty stripe is taken back"
    rig.put()
    assert rig.log.begin_head() == ((EPOCH << 40) + 1, 0, 1)
    rig.put(131072)
    sequence, segment, page = rig.log.begin_head()
    assert (sequence, segment, page) == ((EPOCH << 40) + 2, 1, 0), "the rest of the segment holds no largest record"
    await rig.log.drain()
    assert not rig.log.resident.get(0)


async def test_memory_is_used_again() -> None:
    rig = Rig()
    for _ in range(20):
        rig.put()
        await rig.log.flush()
    assert len(rig.log._spare) == 1
    assert len(rig.log._spare_parities) == 1


async def test_with_threads() -> None:
    executor = ThreadExecutor(4, "log")
    rig = Rig(executor=executor)
    random, entries = Random(5), []
    for number in range(20):
        entries.append(await rig.put_waiting(random.choice((1, 32)) * 4096, number))
        if number % 7 == 0:
            await rig.log.flush()
    await rig.log.flush()
    for number, entry in enumerate(entries):
        header = decode_record_header(rig.record(entry))
        assert header is not None
        assert header.first == number
    executor.close()


async def test_disks_are_those_that_are_written() -> None:
    rig = Rig()
    rig.members[0].state = MemberState.OUT
    rig.members[1].state = MemberState.REBUILDING
    rig.members[2].disk = None
    disks: list[Disk | None] = [None, rig.disks[1], None, rig.disks[3]]
    assert rig.log.disks() == disks


async def test_stripes_leave_the_loop_after_a_stall_and_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that had to wait for the page cache: the next few go to threads."""
    executor = GatedExecutor()
    calls: list[str] = []
    run = executor.run

    async def counted(work: Callable[..., T], *arguments: object) -> T:
        calls.append(getattr(work, "__name__", "sync"))
        return await run(work, *arguments)

    executor.run = counted  # type: ignore[method-assign]
    rig = Rig(executor=executor)
    rig.log._off_loop = 0
    monkeypatch.setattr(module, "WRITE_STALL_THREAD_SECONDS", 60.0)
    monkeypatch.setattr(module, "WRITE_STALL_SECONDS", 60.0)
    rig.put()
    await rig.log.drain()
    assert calls == [], "on the loop"
    monkeypatch.setattr(module, "WRITE_STALL_SECONDS", -1.0)
    rig.put()
    await rig.log.drain()
    assert calls == []
    monkeypatch.setattr(module, "WRITE_STALL_SECONDS", 60.0)
    for _ in range(POOL_STRIPES_OFF_LOOP):
        rig.put()
        await rig.log.drain()
    assert calls == ["_write_timed"] * POOL_STRIPES_OFF_LOOP
    rig.put()
    await rig.log.drain()
    assert len(calls) == POOL_STRIPES_OFF_LOOP, "back on the loop"


async def test_what_is_in_flight() -> None:
    executor = GatedExecutor()
    rig = Rig(executor=executor)
    executor.gate.clear()
    rig.put()
    rig.log.close_stripe()
    await asyncio.sleep(0)
    place = rig.segments.stripe(0, 0)
    assert rig.log.is_in_flight(place)
    assert not rig.log.is_in_flight(place._replace(sequence=place.sequence + 1))
    executor.gate.set()
    await rig.log.drain()
    assert not rig.log.is_in_flight(place)


async def test_the_room_that_is_left_in_a_segment() -> None:
    rig = Rig()
    assert rig.log.room_left == 0
    rig.put()
    whole = 2 * (32 * 64 - 1) * 64
    assert rig.log.room_left == whole - 65 * 64
    await rig.log.flush()
    assert rig.log.room_left == 2 * (31 * 64 - 1) * 64


async def test_no_room_for_a_short_payload_either() -> None:
    rig = Rig(segments=12)
    while rig.put(131072):
        await rig.log.drain()
    assert rig.log.append(Kind.DATA, 7, 0, 32, Sealed(0, 0, 0, 0, 131072, NOISE), level=Level.CLEANER)
    packed = Sealer(Packer("zstd", 1, 0))
    assert rig.log.append_data(packed, memoryview(bytes(4096)), 7, 0, 1) == 0, "the cleaner's stripe is not for users"
    assert rig.log.starved
