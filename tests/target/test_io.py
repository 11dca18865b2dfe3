"""I/O commands over a real socket: data, every refusal, faults, FUA, abort, and what a dead connection leaves."""

from __future__ import annotations

import asyncio
import random
import struct
import zlib

import pytest

from nvmeof import limits
from nvmeof.engine.volume import VolumeHealth
from nvmeof.errors import CapacityError, ReadFault, WriteFault
from tests.protocol import wire
from tests.target.conftest import SIZE, Served
from tests.target.rawhost import RawHost, connect_data, connect_sqe

FUA, LIMITED_RETRY, DEALLOCATE = 1 << 30, 1 << 31, 1 << 25
DNR = 0x4000
FLUSH, WRITE, READ, ZEROES, DSM = 0, 1, 2, 8, 9


def pattern(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def queues(served: Served, digest: int = 0) -> tuple[RawHost, RawHost]:
    admin = await served.admin(digest)
    return admin, await served.io(admin, digest)


async def settle(condition: object) -> None:
    """Let the loop run until ``condition()`` holds."""
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("digest", range(4))
@pytest.mark.parametrize("size", [4096, 16384, 20480, 131072, 1 << 20])
async def test_what_was_written_is_read(served: Served, digest: int, size: int) -> None:
    _, io = await queues(served, digest)
    data = pattern(size, size)
    assert await io.write(8, data, served.block_size) == 0
    assert await io.read(8, size // served.block_size, served.block_size) == data
    with served.path.open("rb") as file:
        file.seek(8 * served.block_size)
        assert file.read(size) == data


@pytest.mark.parametrize("digest", [0, 3])
async def test_the_slow_path_does_the_same(served: Served, digest: int) -> None:
    served.volume.slow = True
    _, io = await queues(served, digest)
    for size in (served.block_size, 1 << 20):
        data = pattern(size, size)
        assert await io.write(0, data, served.block_size) == 0
        assert await io.read(0, size // served.block_size, served.block_size) == data


async def test_unwritten_blocks_read_as_zeros(served: Served) -> None:
    _, io = await queues(served)
    assert not any(await io.read(100, 8, served.block_size))


async def test_without_flow_control_reads_end_with_the_success_flag(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin, cattr=4)
    data = pattern(1, 4096)
    assert await io.write(0, data, served.block_size) == 0
    assert await io.read(0, 4096 // served.block_size, served.block_size) == data
    served.volume.slow = True
    assert await io.read(0, 4096 // served.block_size, served.block_size) == data


async def test_many_commands_in_one_segment(served: Served) -> None:
    _, io = await queues(served)
    size = served.block_size
    blocks = [pattern(n, size) for n in range(100)]
    io.send(b"".join(
        io.wire.capsule(wire.sqe(WRITE, n, sgl=(0, size, 1), cdw10=n), block) for n, block in enumerate(blocks)
    ))  # fmt: skip
    assert [(await io.response())[4:] for _ in blocks] == [(n, 0) for n in range(100)]
    io.send(b"".join(io.wire.capsule(wire.sqe(READ, n, sgl=(0, size, 0x5A), cdw10=n)) for n in range(100)))
    for n, block in enumerate(blocks):
        assert (await io.response())[4:] == (n, 0)
        assert io.data == block


@pytest.mark.parametrize(
    ("opcode", "fields", "status"),
    [
        (READ, {"nsid": 2}, 0x0B),
        (READ, {"nsid": 0}, 0x0B),
        (READ, {"nsid": 0xFFFFFFFF}, 0x0B),
        (WRITE, {"nsid": 2, "data": 1}, 0x0B),
        (FLUSH, {"nsid": 2}, 0x0B),
        (ZEROES, {"nsid": 2}, 0x0B),
        (DSM, {"nsid": 2}, 0x0B),
        (READ, {"flags": 0}, 0x02),
        (READ, {"flags": 0x80}, 0x02),
        (READ, {"flags": 0x41}, 0x02),
        (WRITE, {"flags": 0x42, "data": 1}, 0x02),
        (READ, {"sgl": "block", "kind": 0x00}, 0x11),
        (READ, {"sgl": "block", "kind": 0x01}, 0x11),
        (READ, {"sgl": "block", "kind": 0x40}, 0x11),
        (WRITE, {"sgl": "block", "kind": 0x01, "address": 4, "data": 1}, 0x16),
        (READ, {"sgl": "half"}, 0x0F),
        (READ, {"sgl": "double"}, 0x0F),
        (WRITE, {"sgl": "block", "kind": 0x01}, 0x0F),
        (READ, {"past": 0}, 0x80),
        (WRITE, {"past": 0, "data": 1}, 0x80),
        (ZEROES, {"past": 0}, 0x80),
        (READ, {"wrap": 1}, 0x80),
        (READ, {"cdw12": 1 << 29}, 0x02),
        (ZEROES, {"cdw12": 1 << 26}, 0x02),
        (5, {}, 0x01),
        (0x19, {}, 0x01),
        (0xFF, {}, 0x01),
    ],
)
async def test_refusals(served: Served, opcode: int, fields: dict[str, object], status: int) -> None:
    admin, io = await queues(served)
    size, count = served.block_size, SIZE // served.block_size
    lengths = {"half": size // 2, "double": 2 * size}
    sgl = (int(str(fields.get("address", 0))), lengths.get(str(fields.get("sgl")), size), fields.get("kind", 0x5A))
    if fields.get("data") and sgl[2] == 0x5A:
        sgl = (0, size, 0x01)
    slba = count if "past" in fields else 2**64 - 1 if "wrap" in fields else 0
    extra = {name: fields[name] for name in ("nsid", "flags", "cdw12") if name in fields}
    answer = await io.status(
        opcode, bytes(size) if fields.get("data") else b"", sgl=sgl, cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32, **extra
    )
    assert answer == status | DNR
    assert served.subsystem.controllers[admin.cntlid].errors.count == 1
    assert await io.status(FLUSH) == 0


async def test_the_last_block_and_a_straddling_request(served: Served) -> None:
    _, io = await queues(served)
    size, last = served.block_size, SIZE // served.block_size - 1
    assert await io.write(last, pattern(1, size), size) == 0
    assert await io.read(last, 1, size) == pattern(1, size)
    assert await io.status(READ, sgl=(0, 2 * size, 0x5A), cdw10=last, cdw12=1) == 0x80 | DNR


@pytest.mark.parametrize(("extra", "status"), [(-1, 0), (0, 0), (1, 0x02 | DNR)])
async def test_mdts(served: Served, extra: int, status: int) -> None:
    _, io = await queues(served)
    blocks = limits.MDTS_BYTES // served.block_size + extra
    assert await io.status(READ, sgl=(0, blocks * served.block_size, 0x5A), cdw12=blocks - 1) == status


async def test_limited_retry_changes_nothing(served: Served) -> None:
    _, io = await queues(served)
    data = pattern(2, served.block_size)
    assert await io.write(0, data, served.block_size, LIMITED_RETRY) == 0
    sgl = (0, served.block_size, 0x5A)
    assert await io.status(READ, sgl=sgl, cdw12=LIMITED_RETRY) == 0
    assert io.data == data


@pytest.mark.parametrize("size", [4096, 65536])
async def test_fua_and_a_switched_off_cache_sync_before_they_answer(served: Served, size: int) -> None:
    admin, io = await queues(served)
    assert await io.write(0, pattern(3, size), served.block_size) == 0
    assert served.volume.calls["flush"] == 0
    assert await io.write(0, pattern(4, size), served.block_size, FUA) == 0
    assert served.volume.calls["flush"] == 1
    assert await admin.status(9, nsid=0, cdw10=6, cdw11=0) == 0
    before = served.volume.calls["flush"]
    assert await io.write(0, pattern(5, size), served.block_size) == 0
    assert served.volume.calls["flush"] == before + 1


async def test_a_write_whose_data_comes_after_the_cache_was_switched_off_is_synced(served: Served) -> None:
    admin, io = await queues(served)
    size = 65536
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, size, 0x5A), cdw12=size // served.block_size - 1)))
    await settle(
        lambda: any(queue.queue.transfers for queue in served.subsystem.controllers[admin.cntlid].queues.values())
    )
    assert await admin.status(9, nsid=0, cdw10=6, cdw11=0) == 0
    before = served.volume.calls["flush"]
    assert await io.answer_r2t(bytes(size)) == 0
    assert served.volume.calls["flush"] == before + 1


async def test_flush_of_one_and_of_all_namespaces(served: Served) -> None:
    _, io = await queues(served)
    assert await io.status(FLUSH) == 0
    assert await io.status(FLUSH, nsid=0xFFFFFFFF) == 0
    assert served.volume.calls["flush"] == 2


async def test_flush_waits_for_the_sync(served: Served) -> None:
    _, io = await queues(served)
    gate = asyncio.Event()
    served.volume.delay("flush", gate)
    flush = asyncio.create_task(io.status(FLUSH))
    await settle(lambda: served.volume.in_flight["flush"] == 1)
    assert not flush.done()
    gate.set()
    assert await flush == 0


@pytest.mark.parametrize("flags", [0, DEALLOCATE, FUA, FUA | DEALLOCATE])
async def test_write_zeroes(served: Served, flags: int) -> None:
    _, io = await queues(served)
    size = served.block_size
    assert await io.write(0, b"\xff" * 8 * size, size) == 0
    assert await io.status(ZEROES, cdw10=2, cdw12=flags | 3) == 0
    assert await io.read(0, 8, size) == b"\xff" * 2 * size + bytes(4 * size) + b"\xff" * 2 * size
    assert served.volume.calls["flush"] == bool(flags & FUA)


async def test_write_zeroes_takes_the_most_that_a_command_can_name(served: Served) -> None:
    _, io = await queues(served)
    blocks = min(65536, SIZE // served.block_size)
    assert await io.status(ZEROES, cdw12=blocks - 1) == 0


@pytest.mark.parametrize("inline", [True, False])
async def test_deallocate(served: Served, inline: bool) -> None:
    _, io = await queues(served)
    size = served.block_size
    assert await io.write(0, b"\xff" * (1 << 20), size) == 0
    ranges = struct.pack("<IIQIIQIIQ", 0, 8, 0, 0, 0, 5, 0, 16, 32).ljust(4096, b"\0")
    if inline:
        status = await io.status(DSM, ranges, sgl=(0, 4096, 1), cdw10=2, cdw11=4)
    else:
        io.send(io.wire.capsule(wire.sqe(DSM, 5, sgl=(0, 4096, 0x5A), cdw10=2, cdw11=4)))
        status = await io.answer_r2t(ranges)
    assert status == 0
    assert await io.read(0, 64, size) == bytes(8 * size) + b"\xff" * 24 * size + bytes(16 * size) + b"\xff" * 16 * size


async def test_dataset_management_hints_and_refusals(served: Served) -> None:
    _, io = await queues(served)
    count = SIZE // served.block_size
    good, bad = struct.pack("<IIQ", 0, 8, 0), struct.pack("<IIQ", 0, 2, count - 1)
    assert await io.write(0, b"\xff" * served.block_size, served.block_size) == 0
    assert await io.status(DSM, good, sgl=(0, 16, 1), cdw11=1) == 0
    assert any(await io.read(0, 1, served.block_size)), "a hint must not deallocate"
    assert await io.status(DSM, good + bad, sgl=(0, 32, 1), cdw10=1, cdw11=4) == 0x80 | DNR
    assert any(await io.read(0, 1, served.block_size)), "nothing is deallocated when one range is out of range"
    assert await io.status(DSM, good, sgl=(0, 16, 1), cdw10=1, cdw11=4) == 0x0F | DNR
    assert await io.status(DSM, sgl=(0, 4097, 0x5A), cdw10=255, cdw11=4) == 0x0F | DNR
    assert await io.status(DSM, good, sgl=(0, 16, 1), cdw11=4) == 0


@pytest.mark.parametrize(
    ("operation", "error", "status"),
    [
        ("read", ReadFault, 0x281),
        ("write", WriteFault, 0x4280),
        ("write", CapacityError, 0x81),
        ("flush", WriteFault, 0x4280),
    ],
)
async def test_faults_become_statuses(
    served: Served, operation: str, error: type[ReadFault] | type[WriteFault] | type[CapacityError], status: int
) -> None:
    admin, io = await queues(served)
    served.volume.fail(operation, error)  # type: ignore[arg-type]
    size = served.block_size
    match operation:
        case "read":
            answer = await io.status(READ, sgl=(0, size, 0x5A), cdw10=7)
        case "write":
            answer = await io.write(7, bytes(size), size)
        case _:
            answer = await io.status(FLUSH)
    assert answer == status
    errors = served.subsystem.controllers[admin.cntlid].errors
    assert errors.count == 1
    assert await io.write(7, bytes(size), size) == 0


async def test_a_bug_in_the_volume_fails_the_command_and_nothing_else(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, io = await queues(served)
    namespace = served.subsystem.namespaces[1]

    def broken(offset: int, view: memoryview) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(namespace, "read_now", broken)
    monkeypatch.setattr(namespace, "write_now", broken)
    size = served.block_size
    assert await io.status(READ, sgl=(0, size, 0x5A)) == 0x06
    assert await io.write(0, bytes(size), size) == 0x06
    assert await io.write(0, bytes(65536), size) == 0x06
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert await io.write(0, bytes(size), size) == 0


async def test_read_only_is_said_in_smart(served: Served) -> None:
    admin, _ = await queues(served)
    served.volume.health_override = VolumeHealth(read_only=True, reason="sync failed", media_errors=3)
    assert await admin.status(2, nsid=0xFFFFFFFF, sgl=(0, 512, 0x5A), cdw10=2 | 127 << 16) == 0
    assert admin.data[0] & 0x08
    assert int.from_bytes(admin.data[160:176], "little") == 3


# --- several at once, abort, conflicts -------------------------------------------------------------------------------


async def slow_read(served: Served, io: RawHost, cid: int) -> asyncio.Event:
    """Start a read that waits for the returned event."""
    gate = asyncio.Event()
    served.volume.delay("read", gate)
    before = served.volume.in_flight["read"]
    io.send(io.wire.capsule(wire.sqe(READ, cid, sgl=(0, served.block_size, 0x5A))))
    await settle(lambda: served.volume.in_flight["read"] == before + 1)
    return gate


async def abort(admin: RawHost, sqid: int, cid: int) -> bool:
    """Whether the Abort command says that it was aborted."""
    answer = await admin.command(wire.sqe(8, admin.cid(), cdw10=cid << 16 | sqid))
    assert answer[5] == 0
    return not answer[0] & 1


async def test_a_slow_read_does_not_hold_up_others(served: Served) -> None:
    _, io = await queues(served)
    gate = await slow_read(served, io, 0x77)
    served.volume.clear()
    assert await io.write(9, pattern(1, served.block_size), served.block_size) == 0
    assert await io.read(9, 1, served.block_size) == pattern(1, served.block_size)
    gate.set()
    assert (await io.response())[4:] == (0x77, 0)


async def test_a_command_identifier_in_use_is_refused(served: Served) -> None:
    _, io = await queues(served)
    gate = await slow_read(served, io, 5)
    io.send(io.wire.capsule(wire.sqe(FLUSH, 5)))
    assert (await io.response())[4:] == (5, 0x03 | DNR)
    gate.set()
    assert (await io.response())[4:] == (5, 0)


async def test_abort_of_a_read_completes_it_at_once(served: Served) -> None:
    admin, io = await queues(served)
    gate = await slow_read(served, io, 5)
    assert await abort(admin, 1, 5)
    assert (await io.response())[4:] == (5, 0x07)
    served.volume.clear()
    assert await io.status(FLUSH) == 0
    gate.set()
    await settle(lambda: not served.volume.in_flight["read"])
    assert await io.read(0, 1, served.block_size) == bytes(served.block_size)


async def test_abort_of_a_write_that_waits_for_data(served: Served) -> None:
    admin, io = await queues(served)
    size = 65536
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, size, 0x5A), cdw12=size // served.block_size - 1)))
    r2t = await io.pdu()
    assert r2t[0] == 9
    assert await abort(admin, 1, 5)
    io.send(io.wire.h2c_data(5, 5, 0, b"\xff" * size, last=True))
    assert (await io.response())[4:] == (5, 0x07)
    assert not any(await io.read(0, 8, served.block_size))


async def test_abort_of_a_write_at_the_volume_says_not_aborted(served: Served) -> None:
    admin, io = await queues(served)
    gate = asyncio.Event()
    served.volume.delay("write", gate)
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, served.block_size, 1)), b"\xee" * served.block_size))
    await settle(lambda: served.volume.in_flight["write"] == 1)
    assert not await abort(admin, 1, 5)
    gate.set()
    assert (await io.response())[4:] == (5, 0)
    assert await io.read(0, 1, served.block_size) == b"\xee" * served.block_size


async def test_abort_of_what_does_not_exist(served: Served) -> None:
    admin, _ = await queues(served)
    assert not await abort(admin, 1, 1234)
    assert not await abort(admin, 77, 0)


async def test_more_commands_than_the_queue_holds_end_the_connection(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin, sqsize=3)
    served.volume.delay("read", asyncio.Event())
    size = served.block_size
    io.send(b"".join(io.wire.capsule(wire.sqe(READ, cid, sgl=(0, size, 0x5A))) for cid in range(4)))
    await settle(lambda: served.volume.in_flight["read"] == 4)
    io.send(io.wire.capsule(wire.sqe(READ, 4, sgl=(0, size, 0x5A))))
    assert wire.term_req(await io.pdu())[0] == 2
    served.volume._delays["read"].set()  # type: ignore[union-attr]


# --- a dead connection's commands ------------------------------------------------------------------------------------


async def test_connect_waits_for_what_a_dead_association_left_at_the_volume(served: Served) -> None:
    admin, io = await queues(served)
    gate = asyncio.Event()
    served.volume.delay("write", gate)
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, served.block_size, 1)), b"\xaa" * served.block_size))
    await settle(lambda: served.volume.in_flight["write"] == 1)
    await io.close()
    await admin.close()
    await settle(lambda: not served.subsystem.controllers)
    again = asyncio.create_task(served.admin())
    other = await served.admin(hostid=b"another host id!")
    assert other.cntlid
    await asyncio.sleep(0.05)
    assert not again.done(), "the ghost write is still in progress"
    gate.set()
    host = await again
    served.volume.clear()
    new_io = await served.io(host)
    assert await new_io.read(0, 1, served.block_size) == b"\xaa" * served.block_size


@pytest.mark.parametrize("close_admin", [True, False])
async def test_commands_unread_in_a_closed_socket_are_not_executed_after_the_next_connect(
    served: Served, close_admin: bool
) -> None:
    admin, io = await queues(served)
    (old,) = [each for each in served.target.connections if each.queue.qid == 1]
    assert old.stream._transport is not None
    old.stream._transport.pause_reading()
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, served.block_size, 1)), b"\xaa" * served.block_size))
    await io.close()
    if close_admin:
        await admin.close()
    await asyncio.sleep(0.02)
    new_io = await served.io(await served.admin())
    old.stream._transport.resume_reading()
    assert await new_io.read(0, 1, served.block_size) == bytes(served.block_size)
    await settle(lambda: old not in served.target.connections)


async def test_live_associations_of_one_host_stand_side_by_side(served: Served) -> None:
    first, first_io = await queues(served)
    second, second_io = await queues(served)
    assert first.cntlid != second.cntlid
    gate = await slow_read(served, first_io, 5)
    third = await served.admin()
    assert third.cntlid
    gate.set()
    assert (await first_io.response())[4:] == (5, 0)
    assert await second_io.status(FLUSH) == 0


async def test_a_connection_lost_while_data_comes_leaves_nothing(served: Served) -> None:
    _, io = await queues(served)
    size = 1 << 20
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, size, 0x5A), cdw12=size // served.block_size - 1)))
    assert (await io.pdu())[0] == 9
    io.send(io.wire.h2c_data(5, 5, 0, b"\xff" * 262144, last=False)[:200000])
    await asyncio.sleep(0.05)
    io.writer.transport.abort()
    await settle(lambda: len(served.target.connections) == 1)
    other = await served.io(await served.admin())
    assert not any(await other.read(0, 16, served.block_size))


async def test_a_reader_that_stops_reading_is_held_back_and_others_do_not_notice(served: Served) -> None:
    admin, io = await queues(served)
    size = limits.MDTS_BYTES
    data = pattern(9, size)
    other = await served.io(admin)
    assert await other.write(0, data, served.block_size) == 0
    blocks = size // served.block_size
    count = 60
    io.send(b"".join(
        io.wire.capsule(wire.sqe(READ, n, sgl=(0, size, 0x5A), cdw12=blocks - 1)) for n in range(count)
    ))  # fmt: skip
    await asyncio.sleep(0.2)
    assert served.target.pool.leased < 20
    assert await other.read(0, 8, served.block_size) == data[: 8 * served.block_size]
    for n in range(count):
        assert (await io.response())[4:] == (n, 0)
        assert zlib.crc32(io.data) == zlib.crc32(data)


async def test_random_mixed_io_equals_a_model(served: Served) -> None:
    """Two queues, every kind of command, sizes from one block to MDTS; the volume sometimes answers late."""
    seed = 20261120
    print("seed", seed)
    rng = random.Random(seed)
    admin = await served.admin(3)
    hosts = [await served.io(admin, 3), await served.io(admin, 3, cattr=4)]
    size, model = served.block_size, bytearray(4 << 20)
    count = len(model) // size
    for step in range(150):
        served.volume.slow = rng.random() < 0.3
        io = rng.choice(hosts)
        blocks = min(rng.choice([1, 2, 7, 32, 200, limits.MDTS_BYTES // size]), count)
        slba = rng.randrange(count - blocks + 1)
        place = slice(slba * size, (slba + blocks) * size)
        match rng.randrange(4):
            case 0 | 1:
                data = pattern(step, blocks * size)
                assert await io.write(slba, data, size, rng.choice([0, FUA])) == 0
                model[place] = data
            case 2:
                assert await io.status(ZEROES, cdw10=slba, cdw12=blocks - 1 | rng.choice([0, DEALLOCATE])) == 0
                model[place] = bytes(blocks * size)
            case _:
                assert await io.read(slba, blocks, size) == model[place]
    for at in range(0, len(model), limits.MDTS_BYTES):
        expected = model[at : at + limits.MDTS_BYTES]
        assert await hosts[0].read(at // size, limits.MDTS_BYTES // size, size) == expected


async def test_io_before_connect_is_a_sequence_error(served: Served) -> None:
    host = await served.open()
    assert await host.status(READ, sgl=(0, 4096, 0x5A)) == 0x0C
    answer = await host.command(connect_sqe(), connect_data(served.subsystem.nqn))
    assert answer[5] == 0
