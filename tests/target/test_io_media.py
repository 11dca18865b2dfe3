"""Verify, Write Uncorrectable, the error log of media errors, and volumes without a write cache."""

from __future__ import annotations

import asyncio
import struct

import pytest

from nvmeof import limits
from nvmeof.errors import CapacityError, ReadFault, WriteFault
from tests.protocol import wire
from tests.target.conftest import SIZE, PoolServed
from tests.target.rawhost import RawHost
from tests.target.test_io import DNR, FLUSH, FUA, READ, ZEROES, abort, pattern, queues, settle

VERIFY, MARK = 0x0C, 0x04
INVALID_FIELD, OUT_OF_RANGE, UNRECOVERED = 0x02 | DNR, 0x80 | DNR, 0x281


async def verify(io: RawHost, slba: int, blocks: int, flags: int = 0) -> int:
    return await io.status(VERIFY, cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32, cdw12=blocks - 1 | flags)


async def mark(io: RawHost, slba: int, blocks: int) -> int:
    return await io.status(MARK, cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32, cdw12=blocks - 1)


async def newest_errors(admin: RawHost, count: int) -> list[tuple[int, int, int]]:
    """(status, LBA, NSID) of the newest entries of the error information log."""
    assert await admin.status(2, nsid=0xFFFFFFFF, sgl=(0, 64 * count, 0x5A), cdw10=1 | (16 * count - 1) << 16) == 0
    entries = [struct.unpack_from("<12xH2xQI", admin.data, 64 * index) for index in range(count)]
    return [(status >> 1, lba, nsid) for status, lba, nsid in entries]


# --- Verify -----------------------------------------------------------------------------------------------------------


async def test_verify_asks_the_volume_and_transfers_nothing(pooled: PoolServed) -> None:
    _, io = await queues(pooled)
    last = SIZE // pooled.block_size - 1
    for slba, blocks in ((0, 1), (8, 100), (last, 1), (0, limits.VERIFY_BYTES_MAX // pooled.block_size)):
        assert await verify(io, slba, blocks) == 0
        assert io.data == b""
    assert pooled.volume.calls == {"verify": 4}


@pytest.mark.parametrize(("flags", "flushes"), [(0, 0), (FUA, 1)])
async def test_verify_with_fua_puts_on_media_first(pooled: PoolServed, flags: int, flushes: int) -> None:
    _, io = await queues(pooled)
    assert await verify(io, 0, 8, flags) == 0
    assert pooled.volume.calls["flush"] == flushes


async def test_verify_refuses_what_read_does(pooled: PoolServed) -> None:
    _, io = await queues(pooled)
    count = SIZE // pooled.block_size
    assert await verify(io, count, 1) == OUT_OF_RANGE
    assert await verify(io, count - 1, 2) == OUT_OF_RANGE
    assert await verify(io, 2**64 - 1, 1) == OUT_OF_RANGE
    for bit in (26, 27, 28, 29):
        assert await verify(io, 0, 1, 1 << bit) == INVALID_FIELD
    assert await io.status(VERIFY, nsid=2) == 0x0B | DNR
    assert await io.status(VERIFY, nsid=0xFFFFFFFF) == 0x0B | DNR
    assert pooled.volume.calls["verify"] == 0


async def test_verify_of_more_than_vsl(pooled: PoolServed) -> None:
    admin, io = await queues(pooled)
    assert await admin.status(6, nsid=0, sgl=(0, 4096, 0x5A), cdw10=6) == 0
    blocks = (4096 << admin.data[0]) // pooled.block_size
    assert await verify(io, 0, blocks) == 0
    if blocks < 65536:
        assert await verify(io, 0, blocks + 1) == INVALID_FIELD
    assert pooled.volume.calls["verify"] == 1


async def test_verify_finds_a_bad_block_and_the_error_log_names_it(pooled: PoolServed) -> None:
    admin, io = await queues(pooled)
    pooled.volume.marks.add(9)
    assert await verify(io, 0, 9) == 0
    assert await verify(io, 4, 16) == UNRECOVERED
    assert await verify(io, 10, 16) == 0
    assert await newest_errors(admin, 1) == [(UNRECOVERED, 9, 1)]
    pooled.volume.fail("verify", ReadFault)
    assert await verify(io, 4, 16) == UNRECOVERED
    assert await newest_errors(admin, 2) == [(UNRECOVERED, 4, 1), (UNRECOVERED, 9, 1)], "the volume did not say which"


async def test_a_read_of_a_bad_block_is_in_the_error_log(pooled: PoolServed) -> None:
    admin, io = await queues(pooled)
    size = pooled.block_size
    pooled.volume.marks |= {9, 11}
    for slow, slba in ((False, 2), (True, 3)):
        pooled.volume.slow = slow
        assert await io.status(READ, sgl=(0, 10 * size, 0x5A), cdw10=slba, cdw12=9) == UNRECOVERED
        assert await newest_errors(admin, 1) == [(UNRECOVERED, 9, 1)]


async def test_verify_counts_as_a_read_in_smart(pooled: PoolServed) -> None:
    admin, io = await queues(pooled)
    assert await verify(io, 0, (1 << 20) // pooled.block_size) == 0
    assert await admin.status(2, nsid=0xFFFFFFFF, sgl=(0, 512, 0x5A), cdw10=2 | 127 << 16) == 0
    units, commands = (int.from_bytes(admin.data[at : at + 16], "little") for at in (32, 64))
    assert (units, commands) == (3, 1)


async def test_verify_can_be_aborted_and_holds_up_nobody(pooled: PoolServed) -> None:
    admin, io = await queues(pooled)
    gate = asyncio.Event()
    pooled.volume.delay("verify", gate)
    io.send(io.wire.capsule(wire.sqe(VERIFY, 5, cdw12=7)))
    await settle(lambda: pooled.volume.in_flight["verify"] == 1)
    assert await io.write(0, bytes(pooled.block_size), pooled.block_size) == 0
    assert await abort(admin, 1, 5)
    assert (await io.response())[4:] == (5, 0x07)
    gate.set()
    await settle(lambda: not pooled.volume.in_flight["verify"])
    assert await io.status(FLUSH) == 0


async def test_a_host_cannot_have_any_number_of_verifies_at_work(pooled: PoolServed) -> None:
    _, io = await queues(pooled)
    gate = asyncio.Event()
    pooled.volume.delay("verify", gate)
    blocks = (2 << 20) // pooled.block_size
    most = limits.OUTPUT_BYTES_MAX // limits.VERIFY_PIECE_BYTES
    io.send(b"".join(io.wire.capsule(wire.sqe(VERIFY, cid, cdw12=blocks - 1)) for cid in range(20)))
    await settle(lambda: pooled.volume.in_flight["verify"] >= most)
    await asyncio.sleep(0.05)
    assert pooled.volume.in_flight["verify"] == most
    gate.set()
    assert sorted([(await io.response())[4:] for _ in range(20)]) == [(cid, 0) for cid in range(20)]


# --- Write Uncorrectable ----------------------------------------------------------------------------------------------


async def test_marked_blocks_cannot_be_read_until_they_are_written(pooled: PoolServed) -> None:
    admin, io = await queues(pooled)
    size, each = pooled.block_size, 4096 // pooled.block_size
    data = pattern(1, 16384)
    assert await io.write(0, data, size) == 0
    assert await mark(io, each, 2 * each) == 0
    assert await io.read(0, each, size) == data[:4096]
    assert await io.read(3 * each, each, size) == data[12288:]
    for slba, blocks in ((each, 1), (0, 4 * each), (3 * each - 1, 1)):
        assert await io.status(READ, sgl=(0, blocks * size, 0x5A), cdw10=slba, cdw12=blocks - 1) == UNRECOVERED
        assert await verify(io, slba, blocks) == UNRECOVERED
    assert await newest_errors(admin, 2) == [(UNRECOVERED, 3 * each - 1, 1)] * 2
    assert await io.write(each, data[:4096], size) == 0
    assert await io.read(0, 2 * each, size) == data[:4096] * 2
    assert await io.status(ZEROES, cdw10=2 * each, cdw12=each - 1) == 0
    assert await io.read(0, 4 * each, size) == data[:4096] * 2 + bytes(4096) + data[12288:]


async def test_write_uncorrectable_is_flushed_when_the_cache_is_off(pooled: PoolServed) -> None:
    admin, io = await queues(pooled)
    each = 4096 // pooled.block_size
    assert await mark(io, 0, each) == 0
    assert pooled.volume.calls["flush"] == 0
    assert await admin.status(9, nsid=0, cdw10=6, cdw11=0) == 0
    before = pooled.volume.calls["flush"]
    assert await mark(io, 0, each) == 0
    assert pooled.volume.calls["flush"] == before + 1


async def test_what_write_uncorrectable_refuses(pooled: PoolServed) -> None:
    _, io = await queues(pooled)
    each, count = 4096 // pooled.block_size, SIZE // pooled.block_size
    assert await mark(io, count, each) == OUT_OF_RANGE
    assert await mark(io, count - each, 2 * each) == OUT_OF_RANGE
    assert await io.status(MARK, nsid=2, cdw12=each - 1) == 0x0B | DNR
    pooled.volume.uncorrectable_granule = 8192
    for slba, blocks in ((each, 2 * each), (0, each), (2 * each, 3 * each)):
        assert await mark(io, slba, blocks) == INVALID_FIELD
    assert await mark(io, 2 * each, 4 * each) == 0
    pooled.volume.can_mark_uncorrectable = False
    assert await mark(io, 2 * each, 4 * each) == INVALID_FIELD, "not Invalid Opcode: another namespace may be able to"
    assert pooled.volume.calls["write_uncorrectable"] == 1


@pytest.mark.parametrize(("error", "status"), [(WriteFault, 0x4280), (CapacityError, 0x81)])
async def test_faults_of_write_uncorrectable(
    pooled: PoolServed, monkeypatch: pytest.MonkeyPatch, error: type[WriteFault | CapacityError], status: int
) -> None:
    async def broken(offset: int, length: int) -> None:
        raise error("broken")

    monkeypatch.setattr(pooled.volume, "write_uncorrectable", broken)
    admin, io = await queues(pooled)
    each = 4096 // pooled.block_size
    assert await mark(io, 3 * each, each) == status
    assert await newest_errors(admin, 1) == [(status, 3 * each, 1)]


# --- no write cache ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4096, 65536])
async def test_a_volume_without_a_cache_writes_in_its_coroutine(pooled: PoolServed, size: int) -> None:
    """In the capsule and by R2T; the target adds no flush of its own."""
    admin, io = await queues(pooled)
    pooled.volume.write_cache = False
    assert await io.write(0, pattern(3, size), pooled.block_size) == 0
    assert pooled.volume.synced == 1
    assert pooled.volume.calls["flush"] == 0
    assert await io.read(0, size // pooled.block_size, pooled.block_size) == pattern(3, size)
    assert (await admin.command(wire.sqe(10, admin.cid(), cdw10=6)))[0] == 1, "the controller's feature is its own"


async def test_completions_of_a_volume_without_a_cache_wait_for_it(pooled: PoolServed) -> None:
    _, io = await queues(pooled)
    pooled.volume.write_cache = False
    gate = asyncio.Event()
    pooled.volume.delay("write", gate)
    write = asyncio.create_task(io.write(0, bytes(pooled.block_size), pooled.block_size))
    await settle(lambda: pooled.volume.in_flight["write"] == 1)
    await asyncio.sleep(0.02)
    assert not write.done()
    gate.set()
    assert await write == 0
    assert pooled.volume.synced == 1
