"""The cleaner: what it moves and how, that it never moves what was overwritten meanwhile, and when it gives up."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from nvmeof.engine.cleaner import records
from nvmeof.engine.layout import RecordHeader, address_of, decode_record_header
from nvmeof.engine.log import Level
from nvmeof.engine.pool import Pool
from nvmeof.engine.pool_volume import PoolVolume
from nvmeof.errors import CapacityError, ReadFault, WriteFault
from nvmeof.limits import POOL_RESERVE_SEGMENTS
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .pools import GivenKey, check_counts, flip, new_disks, new_pool, open_pool, place_of, put, strip_offset

BLOCK = 4096
MIB = 1 << 20


async def record(pool: Pool, volume: PoolVolume, block: int) -> tuple[RecordHeader, bytes]:
    """The record that holds a block, as it is stored."""
    header, content = await pool.reader.record(volume.map.entries[block], 1, volume.info.identifier, block)
    return header, bytes(content)


async def leave_segment(pool: Pool) -> None:
    """Fill the segment that is written now, so that it may be cleaned."""
    segment = pool.log.segment
    filler = pool.namespaces[1]
    at = 128 * BLOCK
    while pool.log.segment == segment:
        await write_volume(filler, at, Random(at).randbytes(16 * BLOCK))
        at += 16 * BLOCK
    await filler.flush()


async def test_a_whole_live_record_moves_as_it_is() -> None:
    """Sealed payload, first block, write sequence and so the tweak are kept; a key is not needed."""
    pool = await new_pool(new_disks(4), keys=GivenKey(1), codec="zstd")
    volume = pool.namespaces[1]
    data = b"all work and no play " * 1000
    await write_volume(volume, 5 * BLOCK, data[: 4 * BLOCK])
    await volume.flush()
    await leave_segment(pool)
    entry = volume.map.entries[5]
    before, sealed = await record(pool, volume, 5)
    assert await pool.cleaner._empty(address_of(entry).segment)
    await volume.flush()
    after, moved = await record(pool, volume, 5)
    assert volume.map.entries[5] != entry
    assert moved[64:] == sealed[64:]
    assert after == before._replace(
        flags=before.flags | 2, moved_from=entry, sequence=after.sequence
    ), "all else is kept, above all first block and write sequence"  # fmt: skip
    assert after.flags == 3
    assert await read_volume(volume, 5 * BLOCK, 4 * BLOCK) == data[: 4 * BLOCK]
    check_counts(pool)
    await pool.close()


async def test_the_live_runs_of_a_record_are_sealed_anew() -> None:
    """Each with a write sequence of its own: the same tweak for other data would be a break of XTS."""
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1), codec="none")
    volume = pool.namespaces[1]
    data = Random(1).randbytes(32 * BLOCK)
    await write_volume(volume, 0, data)
    for block in (0, 3, 4, 10, 31):
        await write_volume(volume, block * BLOCK, b"n" * BLOCK)
    await volume.flush()
    await leave_segment(pool)
    entry = volume.map.entries[1]
    old, _ = await record(pool, volume, 1)
    moved = pool.cleaner.moved
    assert await pool.cleaner._empty(address_of(entry).segment)
    assert pool.cleaner.moved - moved >= 27
    runs = [(1, 2), (5, 5), (11, 20)]
    sequences = {old.write_sequence}
    for first, count in runs:
        header, _ = await record(pool, volume, first)
        assert (header.first, header.count, header.moved_from) == (first, count, entry + first - 1)
        assert header.flags == 3
        sequences.add(header.write_sequence)
        for block in range(first, first + count):
            assert await read_volume(volume, block * BLOCK, BLOCK) == data[block * BLOCK : (block + 1) * BLOCK]
    assert len(sequences) == 4
    await volume.flush()
    check_counts(pool)
    model = await read_volume(volume, 0, volume.size)
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks, GivenKey(1))
    assert await read_volume(pool.namespaces[1], 0, pool.namespaces[1].size) == model, "rolled forward the same way"
    check_counts(pool)
    await pool.close()


async def test_what_was_overwritten_or_deallocated_is_not_moved() -> None:
    pool = await new_pool(new_disks(4), codec="none")
    volume = pool.namespaces[1]
    await write_volume(volume, 0, Random(1).randbytes(8 * BLOCK))
    await volume.flush()
    segment = address_of(volume.map.entries[0]).segment
    await leave_segment(pool)
    await write_volume(volume, 0, b"n" * 4 * BLOCK)
    await volume.deallocate([(4 * BLOCK, 4 * BLOCK)])
    await volume.flush()
    entries = volume.map.entries[:8].tolist()
    appended = pool.log.write_sequence
    assert await pool.cleaner._empty(segment) or pool.segments.live[segment] == 0
    assert volume.map.entries[:8].tolist() == entries
    assert pool.log.write_sequence - appended < 64
    check_counts(pool)
    await pool.close()


async def test_a_write_between_reading_and_moving_wins() -> None:
    """The compare-and-move: the map points at the copy only if it still points at the original."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"old!" * 8 * 1024)
    await volume.flush()
    segment = address_of(volume.map.entries[0]).segment
    await leave_segment(pool)
    move = pool.cleaner._move
    new = b"new!" * 1024

    async def overwritten(*arguments: object) -> None:
        await write_volume(volume, 3 * BLOCK, new)
        await move(*arguments)  # type: ignore[arg-type]
        await write_volume(volume, 5 * BLOCK, new)

    pool.cleaner._move = overwritten  # type: ignore[method-assign,assignment]
    await pool.cleaner._empty(segment)
    await volume.flush()
    expected = b"".join(new if block in (3, 5) else b"old!" * 1024 for block in range(8))
    assert await read_volume(volume, 0, 8 * BLOCK) == expected
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks)
    assert await read_volume(pool.namespaces[1], 0, 8 * BLOCK) == expected
    check_counts(pool)
    await pool.close()


async def test_map_pages_and_chunks_are_written_again() -> None:
    pool = await new_pool(new_disks(4))
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"x" * BLOCK)
    await pool.commit()
    page, chunk = volume.map.table[0], volume.map.chunks[0]
    await leave_segment(pool)
    volume.map.dirty.clear()
    await pool.cleaner._empty(address_of(page).segment)
    assert 0 in volume.map.dirty
    assert 0 in volume.map.dirty_chunks
    await pool.commit()
    assert volume.map.table[0] != page
    assert volume.map.chunks[0] != chunk
    check_counts(pool)
    await pool.close()


async def test_the_emptiest_go_first_and_those_in_use_not_at_all() -> None:
    pool = await new_pool(new_disks(4), codec="none", size=2 << 20)
    volume = pool.namespaces[1]
    for block in range(0, 480, 16):
        await write_volume(volume, block * BLOCK, Random(block).randbytes(16 * BLOCK))
    await volume.flush()
    for block in range(0, 480, 48):
        await volume.deallocate([(block * BLOCK, 20 * BLOCK)])
    victims = pool.cleaner._victims()
    shares = [pool.segments.utilization(number) for number in victims]
    assert shares == sorted(shares)
    assert len(victims) > 5
    assert not set(victims) & set(pool.log.busy_segments)
    assert not set(victims) & set(pool.segments.free)
    await pool.close()


async def test_a_stripe_beyond_redundancy_keeps_its_segment_and_not_the_cleaner() -> None:
    """The segment is stuck: tried once, left alone; all else is cleaned, and the loss is said when it is read."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none", size=2 << 20)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, Random(1).randbytes(4 * BLOCK))
    await volume.flush()
    place = place_of(pool, volume, 0)
    for index in range(3):
        put(disks[(index + place.sequence) % 4], strip_offset(pool.geometry, place), bytes(4096))
    random = Random(2)
    for _ in range(300):
        await write_volume(volume, random.randrange(8, 400) * BLOCK, random.randbytes(4 * BLOCK))
    assert pool.cleaner.cleaned > 0
    assert pool.cleaner._stuck == {place.segment}
    assert pool.segments.generation[place.segment]
    with pytest.raises(ReadFault, match="block 0"):
        await volume.read(0, memoryview(bytearray(BLOCK)))
    await write_volume(volume, 0, b"x" * 4 * BLOCK)
    await pool.commit()
    await pool.commit()
    pool.cleaner._victims()
    assert not pool.cleaner._stuck, "what nothing refers to any more is free after all"
    await pool.close()


async def test_damage_within_redundancy_is_no_hindrance() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume = pool.namespaces[1]
    data = Random(1).randbytes(8 * BLOCK)
    await write_volume(volume, 0, data)
    await volume.flush()
    await leave_segment(pool)
    place = place_of(pool, volume, 0)
    for index in (0, 1):
        flip(disks[(index + place.sequence) % 4], strip_offset(pool.geometry, place) + 300)
    assert await pool.cleaner._empty(place.segment)
    assert await read_volume(volume, 0, 8 * BLOCK) == data
    await pool.close()


async def test_reserves_are_kept() -> None:
    """Users never go below theirs, whatever they write; a full pool still commits, deallocates and cleans."""
    pool = await new_pool(new_disks(4), codec="none", size=64 << 20)
    volume, random = pool.namespaces[1], Random(3)

    async def fill() -> int:
        written = 0
        try:
            while True:
                await write_volume(volume, written * BLOCK, random.randbytes(8 * BLOCK))
                written += 8
        except CapacityError:
            return written

    first = await fill()
    assert len(pool.segments.free) >= POOL_RESERVE_SEGMENTS[Level.CLEANER]
    for _ in range(3):
        await pool.commit()
        await volume.deallocate([(0, first * BLOCK)])
        again = await fill()
        assert abs(first - again) <= 64, "space is lost somewhere"
    check_counts(pool)
    await pool.close()


async def test_the_same_blocks_overwritten_by_many_at_once() -> None:
    """Far more writes than the pool holds, from many tasks: none of them is told that the pool is full."""
    pool = await new_pool(new_disks(4), codec="none")
    volume = pool.namespaces[1]
    last: dict[int, bytes] = {}

    async def writer(number: int) -> None:
        random = Random(number)
        for _ in range(60):
            block = number * 8 + random.randrange(4)
            data = random.randbytes(4 * BLOCK)
            await write_volume(volume, block * BLOCK, data)
            last.update({block + index: data[index * BLOCK : (index + 1) * BLOCK] for index in range(4)})
            await asyncio.sleep(0)

    await asyncio.gather(*(writer(number) for number in range(16)))
    for block, data in last.items():
        assert await read_volume(volume, block * BLOCK, BLOCK) == data
    check_counts(pool)
    await pool.close()


async def test_records_of_a_stream() -> None:
    pool = await new_pool(new_disks(4), codec="none")
    volume = pool.namespaces[1]
    for block in (3, 9, 200):
        await write_volume(volume, block * BLOCK, Random(block).randbytes(BLOCK))
    await volume.flush()
    outcome = await pool.reader.check_stripe(place_of(pool, volume, 3))
    stream = b"".join(map(bytes, outcome.payloads[:2]))
    found = list(records(stream))
    assert [header.first for _, header, _ in found] == [3, 9, 200]
    assert [unit for unit, _, _ in found] == [0, 65, 130]
    for unit, header, content in found:
        assert decode_record_header(content) == header
        assert bytes(content) == stream[unit * 64 :][: 64 + BLOCK]
    assert list(records(b"")) == []
    assert list(records(bytes(6400))) == []
    damaged = bytearray(stream)
    damaged[66 * 64] ^= 1
    assert [header.first for _, header, _ in records(memoryview(damaged))] == [3], "it ends at what is none"
    await pool.close()


async def test_sparse_members_get_their_space_back() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none", sparse=True, size=2 << 20)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, Random(1).randbytes(MIB))
    await pool.commit()
    full = [disk.allocated() for disk in disks]
    assert min(full) > MIB // 2
    await volume.deallocate([(0, volume.size)])
    for _ in range(3):
        await pool.commit()
    assert max(disk.allocated() for disk in disks) < MIB // 2 + (256 << 10)
    await write_volume(volume, 0, Random(2).randbytes(MIB))
    assert await read_volume(volume, 0, MIB) == Random(2).randbytes(MIB)
    await pool.close()
    dense = new_disks(4)
    pool = await new_pool(dense, codec="none", size=2 << 20)
    await write_volume(pool.namespaces[1], 0, Random(1).randbytes(MIB))
    await pool.commit()
    before = [disk.allocated() for disk in dense]
    await pool.namespaces[1].deallocate([(0, 2 << 20)])
    for _ in range(3):
        await pool.commit()
    assert all(disk.allocated() >= held for disk, held in zip(dense, before, strict=True)), "not asked for"
    await pool.close()


async def test_a_disk_that_cannot_discard_is_only_not_smaller() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none", sparse=True)
    disks[1].fail("discard", times=1000)
    volume = pool.namespaces[1]
    for seed in range(8):
        await write_volume(volume, 0, Random(seed).randbytes(1 << 20))
        await pool.commit()
    assert not pool.health.degraded
    assert await read_volume(volume, 0, 1 << 20) == Random(7).randbytes(1 << 20)
    await pool.close()


async def test_a_stripe_on_its_way_is_waited_for() -> None:
    """What is on the members is no measure of it yet: it would be called lost."""
    pool = await new_pool(new_disks(4), codec="none")
    volume = pool.namespaces[1]
    data = Random(1).randbytes(8 * BLOCK)
    await write_volume(volume, 0, data)
    segment = address_of(volume.map.entries[0]).segment
    while pool.log.segment == segment:
        await write_volume(volume, 128 * BLOCK, Random(2).randbytes(32 * BLOCK))
    assert await pool.cleaner._empty(segment)
    assert not pool.reader.errors
    assert await read_volume(volume, 0, 8 * BLOCK) == data
    await pool.close()


async def test_records_of_namespaces_that_are_gone_are_left_behind() -> None:
    pool = await new_pool(new_disks(4), codec="none")
    volume = await pool.create_namespace(MIB, codec="none")
    await write_volume(volume, 0, Random(1).randbytes(8 * BLOCK))
    await write_volume(pool.namespaces[1], 0, b"k" * BLOCK)
    await pool.flush()
    segment = address_of(volume.map.entries[0]).segment
    await pool.delete_namespace(2)
    await leave_segment(pool)
    assert await pool.cleaner._empty(segment)
    assert await read_volume(pool.namespaces[1], 0, BLOCK) == b"k" * BLOCK
    check_counts(pool)
    await pool.close()


async def test_a_stopped_pool_is_not_cleaned() -> None:
    pool = await new_pool(new_disks(4), codec="none")
    volume = pool.namespaces[1]
    await write_volume(volume, 0, Random(1).randbytes(8 * BLOCK))
    await volume.flush()
    await leave_segment(pool)
    pool.log.fail("on purpose")
    for work in (pool.cleaner._round, pool.cleaner.make_room):
        pool.segments.free.clear()
        with pytest.raises(WriteFault, match="on purpose"):
            await work()
    with pytest.raises(WriteFault):
        await pool.close()


async def test_a_pool_whose_segments_are_all_full_is_left_alone() -> None:
    """Nothing is worth moving: no writes for nothing."""
    pool = await new_pool(new_disks(4), codec="none", size=2 * MIB)
    volume = pool.namespaces[1]
    for block in range(0, 480, 8):
        await write_volume(volume, block * BLOCK, Random(block).randbytes(8 * BLOCK))
    await pool.commit()
    moved = pool.cleaner.moved
    pool.segments.utilization = lambda number: 0.98  # type: ignore[method-assign]
    await pool.cleaner._round()
    assert pool.cleaner.moved == moved
    await pool.close()
