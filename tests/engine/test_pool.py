"""A pool as a whole: its life, its namespaces and their limits, every shape there is, what it does by itself."""

from __future__ import annotations

import asyncio
from itertools import combinations
from random import Random
from uuid import UUID

import pytest

from nvmeof.codec.compression import CodecError
from nvmeof.engine.executor import InlineExecutor
from nvmeof.engine.layout import Kind, MemberState
from nvmeof.engine.pool import Pool
from nvmeof.errors import CapacityError, ReadFault, UsageError, WriteFault
from nvmeof.limits import POOL_NAMESPACES_MAX
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .pools import SEGMENT_BYTES, SIZE, GivenKey, NamedDisk, check_counts, new_disks, new_pool, open_pool, put

BLOCK = 4096
MIB = 1 << 20


# --- life


async def test_a_pool_comes_back_as_it_was() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    data = Random(1).randbytes(SIZE)
    await write_volume(pool.namespaces[1], 0, data)
    uuid, geometry = pool.uuid, pool.geometry
    assert uuid.version == 4
    await pool.close()
    pool = await open_pool(disks)
    assert (pool.uuid, pool.geometry) == (uuid, geometry)
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data
    assert not pool.log.stripe or not pool.log.stripe.used
    await pool.close()


async def test_closing_twice_and_what_is_refused_afterwards() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"x" * BLOCK)
    await pool.close()
    await pool.close()
    view = memoryview(bytearray(BLOCK))
    assert not volume.read_now(0, view)
    assert not volume.write_now(0, view)
    with pytest.raises(ReadFault, match="closed"):
        await volume.read(0, view)
    with pytest.raises(WriteFault, match="closed"):
        await volume.write(0, view)
    for disk in disks:
        with pytest.raises(OSError, match="descriptor"):
            disk.size()


async def test_closing_waits_for_what_is_in_flight() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    volume = pool.namespaces[1]
    writes = [
        asyncio.ensure_future(volume.write(block * BLOCK, memoryview(bytes([block + 1]) * BLOCK)))
        for block in range(50)
    ]
    await asyncio.sleep(0)
    await pool.close()
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    pool = await open_pool(disks)
    for block, outcome in enumerate(outcomes):
        if outcome is None:
            assert await read_volume(pool.namespaces[1], block * BLOCK, 1) == bytes([block + 1])
    assert outcomes.count(None) > 0
    await pool.close()


async def test_with_threads_of_its_own() -> None:
    disks = new_disks(4)
    await Pool.create(disks, segment_bytes=SEGMENT_BYTES)
    pool = await Pool.open(disks)
    volume = await pool.create_namespace(SIZE)
    data = Random(2).randbytes(SIZE)
    await asyncio.gather(*(volume.write(at, memoryview(data[at : at + 65536])) for at in range(0, SIZE, 65536)))
    await volume.flush()
    assert await read_volume(volume, 0, SIZE) == data
    await pool.scrub()
    await pool.close()


async def test_a_pool_opened_twice_by_mistake_of_the_same_disks() -> None:
    """The lock is FileDisk's; here only that the same disk cannot be two members."""
    disks = new_disks(4)
    await (await new_pool(disks)).close()
    with pytest.raises(UsageError, match="is a copy of"):
        await open_pool([*disks, disks[0]])


# --- shapes


@pytest.mark.parametrize(
    ("raid", "members"),
    [("none", 2), ("none", 16), ("raid5", 3), ("raid5", 17), *(("raid6", members) for members in range(4, 19))],
)
async def test_every_shape(raid: str, members: int) -> None:
    """Written, flushed, crashed, and read with as many members missing as may be."""
    parity = {"none": 0, "raid5": 1, "raid6": 2}[raid]
    disks = new_disks(members, (256 << 10) + 12 * SEGMENT_BYTES)
    pool = await new_pool(disks, raid=raid, size=512 << 10, codec="none")
    assert (pool.geometry.data, pool.geometry.parity) == (members - parity, parity)
    data = Random(members).randbytes(512 << 10)
    for at in range(0, len(data), 40 * BLOCK):
        await write_volume(pool.namespaces[1], at, data[at : at + 40 * BLOCK])
    await pool.flush()
    for disk in disks:
        disk.crash([])
    missing = Random(members).sample(range(members), parity)
    pool = await open_pool([disk for role, disk in enumerate(disks) if role not in missing])
    volume = pool.namespaces[1]
    assert await read_volume(volume, 0, len(data)) == data
    await volume.verify(0, len(data))
    await write_volume(volume, 0, data[::-1])
    await pool.close()
    pool = await open_pool(disks)
    assert await read_volume(pool.namespaces[1], 0, len(data)) == data[::-1]
    await pool.close()


@pytest.mark.parametrize("pair", list(combinations(range(4), 2)))
async def test_two_members_die_under_load(pair: tuple[int, int]) -> None:
    """One fails its writes, the other its reads, its syncs and its writes; nobody notices but the status."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume, model, random = pool.namespaces[1], bytearray(SIZE), Random(sum(pair))

    async def some(count: int) -> None:
        for _ in range(count):
            block = random.randrange(248)
            piece = random.randbytes(8 * BLOCK)
            await write_volume(volume, block * BLOCK, piece)
            model[block * BLOCK : (block + 8) * BLOCK] = piece
        await volume.flush()

    await some(20)
    disks[pair[0]].fail("write", nth=3, times=10_000)
    await some(20)
    disks[pair[1]].fail("sync", times=10_000)
    disks[pair[1]].fail("read", times=10_000)
    await some(20)
    assert await read_volume(volume, 0, SIZE) == model
    assert [member.state is MemberState.OUT for member in pool.members] == [role in pair for role in range(4)]
    assert volume.health.degraded
    assert not volume.health.read_only
    assert volume.health.spare_percent == 0
    await pool.close()
    pool = await open_pool([disk for role, disk in enumerate(disks) if role not in pair])
    assert await read_volume(pool.namespaces[1], 0, SIZE) == model
    await pool.close()


# --- namespaces


async def test_as_many_namespaces_as_may_be() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, size=0, keys=GivenKey(1))
    for number in range(1, POOL_NAMESPACES_MAX + 1):
        assert (await pool.create_namespace(BLOCK)).info.nsid == number
    with pytest.raises(UsageError, match="a pool has 1 to 256"):
        await pool.create_namespace(BLOCK)
    assert pool.keyring is not None
    assert len(pool.keyring.table.key_ids) == 256
    for nsid in (1, 100, 256):
        await write_volume(pool.namespaces[nsid], 0, bytes([nsid % 256]) * BLOCK)
    await pool.delete_namespace(100)
    assert (await pool.create_namespace(BLOCK)).info.nsid == 100, "the lowest that is free"
    await pool.close()
    pool = await open_pool(disks, GivenKey(1))
    assert sorted(pool.namespaces) == list(range(1, 257))
    found = [(await read_volume(pool.namespaces[nsid], 0, BLOCK))[0] for nsid in (1, 100, 256)]
    assert found == [1, 0, 0]
    check_counts(pool)
    await pool.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nsid": 0}, "namespace 0: a pool has 1 to 256"),
        ({"nsid": -1}, "namespace -1: a pool has 1 to 256"),
        ({"nsid": 257}, "namespace 257: a pool has 1 to 256"),
        ({"nsid": 1}, "namespace 1: there is one already"),
        ({"size": 0}, "size 0: want a multiple of 4096 bytes"),
        ({"size": -4096}, "size -4096: want a multiple"),
        ({"size": 4097}, "size 4097: want a multiple"),
        ({"size": 512}, "size 512: want a multiple"),
        ({"size": 1 << 50}, "size 1125899906842624: "),
        ({"block_size": 1024}, r"block size 1024: want one of \(512, 4096\)"),
        ({"block_size": 0}, "block size 0"),
        ({"codec": "gzip"}, "codec 'gzip' is not known"),
        ({"codec": "zstd", "level": 99}, "level"),
        ({"planes": 3}, "plane"),
        ({"encrypted": True}, "the pool has no keys"),
    ],
)
async def test_namespaces_that_are_refused(options: dict[str, object], message: str) -> None:
    pool = await new_pool(new_disks(4))
    generation = pool.superblock.generation
    with pytest.raises(UsageError, match=message):
        await pool.create_namespace(**({"size": MIB} | options))  # type: ignore[arg-type]
    assert pool.superblock.generation == generation, "nothing was written"
    assert list(pool.namespaces) == [1]
    assert (await pool.create_namespace(MIB)).info.identifier == 2
    await pool.close()


async def test_a_thin_namespace_is_larger_than_the_pool() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, size=1 << 40)
    volume = pool.namespaces[1]
    for at in (0, 1 << 39, (1 << 40) - BLOCK):
        await write_volume(volume, at, b"x" * BLOCK)
    assert volume.allocated == 3 * BLOCK
    await pool.close()
    pool = await open_pool(disks)
    volume = pool.namespaces[1]
    assert await read_volume(volume, (1 << 40) - BLOCK, BLOCK) == b"x" * BLOCK
    assert await read_volume(volume, (1 << 38), BLOCK) == bytes(BLOCK)
    await volume.deallocate([(0, 1 << 40)])
    assert volume.allocated == 0
    assert await read_volume(volume, 1 << 39, BLOCK) == bytes(BLOCK)
    await pool.close()


async def test_resizing() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume = pool.namespaces[1]
    data = Random(1).randbytes(SIZE)
    await write_volume(volume, 0, data)
    await pool.resize_namespace(1, 100 * BLOCK)
    assert volume.size == 100 * BLOCK
    assert volume.allocated == 100 * BLOCK
    await pool.resize_namespace(1, 8 * MIB)
    assert await read_volume(volume, 0, SIZE) == data[: 100 * BLOCK] + bytes(SIZE - 100 * BLOCK), "gone for good"
    await write_volume(volume, 8 * MIB - BLOCK, b"e" * BLOCK)
    check_counts(pool)
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks)
    volume = pool.namespaces[1]
    assert volume.size == 8 * MIB
    assert await read_volume(volume, 0, SIZE) == data[: 100 * BLOCK] + bytes(SIZE - 100 * BLOCK)
    for size in (0, -BLOCK, 4097, 512, 1 << 50):
        with pytest.raises(UsageError, match=f"size {size}: "):
            await pool.resize_namespace(1, size)
    with pytest.raises(UsageError, match="namespace 2: there is none in the pool"):
        await pool.resize_namespace(2, BLOCK)
    assert volume.size == 8 * MIB
    await pool.close()


async def test_a_crash_after_shrinking_does_not_bring_records_back() -> None:
    """What the log holds of blocks that were cut off must not be rolled forward into the smaller map."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume = pool.namespaces[1]
    await write_volume(volume, 96 * BLOCK, b"o" * 8 * BLOCK)
    await pool.resize_namespace(1, 100 * BLOCK)
    await pool.resize_namespace(1, 200 * BLOCK)
    await write_volume(volume, 0, b"n" * BLOCK)
    await volume.flush()
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks)
    assert await read_volume(pool.namespaces[1], 96 * BLOCK, 8 * BLOCK) == b"o" * 4 * BLOCK + bytes(4 * BLOCK)
    check_counts(pool)
    await pool.close()


async def test_deleting() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume = await pool.create_namespace(SIZE, codec="none")
    await write_volume(volume, 0, Random(1).randbytes(SIZE))
    await pool.commit()
    free = len(pool.segments.free)
    await pool.delete_namespace(2)
    await pool.commit()
    await pool.commit()
    assert len(pool.segments.free) > free + 3
    check_counts(pool)
    with pytest.raises(WriteFault, match="closed"):
        await volume.write(0, memoryview(bytearray(BLOCK)))
    with pytest.raises(ReadFault, match="closed"):
        await volume.read(0, memoryview(bytearray(BLOCK)))
    with pytest.raises(UsageError, match="namespace 2: there is none"):
        await pool.delete_namespace(2)
    fresh = await pool.create_namespace(SIZE)
    assert fresh.info.nsid == 2
    assert await read_volume(fresh, 0, SIZE) == bytes(SIZE)
    await pool.flush()
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks)
    assert await read_volume(pool.namespaces[2], 0, SIZE) == bytes(SIZE)
    await pool.close()


async def test_two_delete_the_same() -> None:
    pool = await new_pool(new_disks(4))
    outcomes = await asyncio.gather(*(pool.delete_namespace(1) for _ in range(2)), return_exceptions=True)
    assert [type(each) for each in outcomes].count(UsageError) == 1
    assert outcomes.count(None) == 1
    await pool.close()


async def test_setting_properties() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume = pool.namespaces[1]
    text = b"all work and no play " * 2000
    await write_volume(volume, 0, text[: 4 * BLOCK])
    await pool.set_namespace(1, codec="zstd", level=5, planes=2, write_cache=False)
    assert not volume.write_cache
    assert not volume.write_now(0, memoryview(text[:BLOCK])), "a write is on media when it returns"
    await volume.write(8 * BLOCK, memoryview(text[: 4 * BLOCK]))
    assert not any(disk.unsynced() for disk in disks)
    lengths = []
    for block in (0, 8):
        header, _ = await pool.reader.record(volume.map.entries[block], Kind.DATA, 1, block)
        lengths.append(header.length)
    assert lengths[0] == 4 * BLOCK > 4 * lengths[1], "a codec is for what is written from now on"
    await pool.set_namespace(1)
    for options in ({"codec": "gzip"}, {"level": 99}, {"planes": 5}):
        with pytest.raises((UsageError, CodecError)):
            await pool.set_namespace(1, **options)
    with pytest.raises(UsageError, match="there is none"):
        await pool.set_namespace(9, level=1)
    await pool.close()
    pool = await open_pool(disks)
    info = pool.namespaces[1].info
    assert (info.codec, info.level, info.planes, info.write_cache) == ("zstd", 5, 2, False)
    await pool.close()


async def test_namespaces_are_apart() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, size=0)
    volumes = [await pool.create_namespace(SIZE, block_size=block) for block in (512, 4096, 512)]
    random, models = Random(4), [bytearray(SIZE) for _ in range(3)]
    for _ in range(300):
        number = random.randrange(3)
        block = volumes[number].block_size
        count = random.randrange(1, 20)
        at = random.randrange(SIZE // block - count) * block
        data = random.randbytes(count * block)
        await write_volume(volumes[number], at, data)
        models[number][at : at + len(data)] = data
    for volume, model in zip(volumes, models, strict=True):
        assert await read_volume(volume, 0, SIZE) == model
    await pool.close()
    pool = await open_pool(disks)
    for volume, model in zip(pool.volumes(), models, strict=True):
        assert await read_volume(volume, 0, SIZE) == model
    await pool.close()


async def test_uuids() -> None:
    uuid = UUID("0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77")
    pool = await new_pool(new_disks(4), uuid=uuid)
    assert pool.namespaces[1].uuid == uuid
    assert (await pool.create_namespace(BLOCK)).uuid != (await pool.create_namespace(BLOCK)).uuid
    await pool.close()


# --- what it does by itself


async def test_many_dirty_pages_are_committed_in_the_background() -> None:
    pool = await new_pool(new_disks(4), size=64 * MIB)
    volume = pool.namespaces[1]
    commits = pool.committer.commits
    for page in range(pool.dirty_max + 3):
        await write_volume(volume, page * 2 * MIB % (64 * MIB) + page // 32 * BLOCK, b"x" * BLOCK)
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert pool.dirty_max < 32
    assert pool.committer.commits > commits
    await pool.close()


async def test_a_full_pool_takes_deallocations_and_then_writes() -> None:
    pool = await new_pool(new_disks(4), size=64 * MIB, codec="none")
    volume, random = pool.namespaces[1], Random(3)

    async def fill() -> None:
        for block in range(0, 16384, 8):
            await write_volume(volume, block * BLOCK, random.randbytes(8 * BLOCK))

    with pytest.raises(CapacityError, match="the pool is full"):
        await fill()
    kept = await read_volume(volume, 0, 64 * BLOCK)
    for block in range(64, 16384, 64):
        await volume.deallocate([(block * BLOCK, 64 * BLOCK)])
    await write_volume(volume, 64 * BLOCK, kept)
    assert await read_volume(volume, 0, 128 * BLOCK) == kept * 2
    assert not pool.log.fault
    check_counts(pool)
    await pool.close()


async def test_background_work_that_breaks_stops_the_pool() -> None:
    """A bug there must not go unnoticed: what it should have done nobody does."""
    pool = await new_pool(new_disks(4))

    async def broken() -> None:
        raise RuntimeError("on purpose")

    pool.membership.take_spares = broken  # type: ignore[method-assign]
    pool.wake.set()
    for _ in range(5):
        await asyncio.sleep(0)
    with pytest.raises(WriteFault, match="background work failed: RuntimeError"):
        await pool.flush()
    with pytest.raises(WriteFault):
        await pool.close()


async def test_an_error_in_the_background_is_told_and_not_fatal() -> None:
    pool = await new_pool(new_disks(4))

    async def refused() -> None:
        raise UsageError("this disk will not do")

    pool.membership.take_spares = refused  # type: ignore[method-assign]
    pool.wake.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert pool.status().background_error == "this disk will not do"
    await pool.flush()
    await pool.close()


async def test_the_executor_and_the_disks_are_closed_when_an_opening_fails() -> None:
    disks: list[NamedDisk] = new_disks(4)
    await (await new_pool(disks)).close()
    closed: list[int] = []

    class Noting(InlineExecutor):
        def close(self) -> None:
            closed.append(1)

    for disk in disks[:3]:
        disk.reopen().fail("sync", times=100)
    disks[3].reopen()
    with pytest.raises(WriteFault, match="3 of 4 members are lost"):
        await Pool.open(disks, executor=Noting())
    assert closed == [1]
    for disk in disks:
        with pytest.raises(OSError, match="descriptor"):
            disk.size()


async def test_a_member_that_fails_while_opening_is_out() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    await write_volume(pool.namespaces[1], 0, b"x" * BLOCK)
    await pool.close()
    disks[2].reopen().fail("write")
    pool = await open_pool(disks)
    assert pool.members[2].state is MemberState.OUT
    assert pool.superblock.members[2].state == MemberState.OUT
    assert await read_volume(pool.namespaces[1], 0, BLOCK) == b"x" * BLOCK
    await pool.close()


async def test_a_superblock_save_names_everyone_who_failed_in_it() -> None:
    """It is written again until nobody fails meanwhile: the last one says who is out."""
    disks = new_disks(4)
    pool = await new_pool(disks)
    disks[0].fail("write")
    disks[1].fail("sync", nth=2)
    generation = pool.superblock.generation
    await pool.save_superblock()
    assert pool.superblock.generation >= generation + 2
    assert [member.state for member in pool.superblock.members] == [1, 1, 0, 0]
    await pool.close()
    put(disks[0].reopen(), 0, bytes(4096))


async def test_writers_wait_for_a_commit_when_too_many_pages_are_dirty() -> None:
    """The reserve has room for so many map pages: dirty ones are bounded, whoever dirties them and however."""
    pool = await new_pool(new_disks(4), size=1 << 30)
    volume, most = pool.namespaces[1], 0
    for page in range(4 * pool.dirty_max):
        await write_volume(volume, page * 2 * MIB, b"x" * BLOCK)
        most = max(most, pool.dirty_pages)
    assert pool.dirty_max <= most <= 2 * pool.dirty_max + 1
    assert pool.committer.commits > 2
    check_counts(pool)
    await pool.close()


async def test_everything_at_once() -> None:
    """Encrypted, sparse, with threads; namespaces come and go while one is written, scrubbed, and its key rotated."""
    disks = new_disks(5)
    await Pool.create(disks, keys=GivenKey(1), segment_bytes=SEGMENT_BYTES, sparse=True)
    pool = await Pool.open(disks, keys=GivenKey(1))
    volume = await pool.create_namespace(SIZE)
    model, random = bytearray(SIZE), Random(6)

    async def writes() -> None:
        for step in range(120):
            block = random.randrange(248)
            data = random.randbytes(8 * BLOCK)
            await write_volume(volume, block * BLOCK, data)
            model[block * BLOCK : (block + 8) * BLOCK] = data
            if step % 20 == 0:
                await volume.flush()

    async def administration() -> None:
        for number in range(4):
            other = await pool.create_namespace(SIZE)
            await write_volume(other, 0, b"o" * BLOCK)
            await pool.rotate_key(GivenKey(number + 2))
            await pool.delete_namespace(other.info.nsid)
        await pool.scrub()

    await asyncio.gather(writes(), administration())
    assert pool.export_keys()
    assert await read_volume(volume, 0, SIZE) == model
    await pool.close()
    pool = await open_pool(disks, GivenKey(5))
    assert await read_volume(pool.namespaces[1], 0, SIZE) == model
    assert list(pool.namespaces) == [1]
    check_counts(pool)
    await pool.close()


async def test_the_namespaces_of_a_pool_together() -> None:
    """96 TiB: their tables must fit the root."""
    pool = await new_pool(new_disks(4), size=0)
    with pytest.raises(UsageError, match="may be 96 TiB together"):
        await pool.create_namespace((96 << 40) + BLOCK)
    await pool.create_namespace(BLOCK)
    with pytest.raises(UsageError, match="which leaves"):
        await pool.create_namespace(96 << 40)
    with pytest.raises(UsageError, match="96 TiB"):
        await pool.resize_namespace(1, (96 << 40) + BLOCK)
    await pool.resize_namespace(1, 1 << 37)
    await pool.close()
