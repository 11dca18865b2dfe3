"""Admin commands over a real socket: dispatch, refusals, data both ways, asynchronous ones, Abort, the error log."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof import limits
from nvmeof.engine.volume import VolumeHealth
from nvmeof.errors import WriteFault
from nvmeof.target.admin import AdminQueue
from nvmeof.target.command import Command
from nvmeof.target.discovery import DiscoverySubsystem
from nvmeof.testing.fault_volume import FaultVolume
from tests.protocol import wire
from tests.target.conftest import Served
from tests.target.direct import Direct, direct_controller
from tests.target.rawhost import HOST_ID, RawHost, connect_data, connect_sqe
from tests.target.test_io import settle

DNR = 0x4000
GET_LOG, IDENTIFY, ABORT, SET, GET, AER, KEEP_ALIVE = 0x02, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18
DISCOVERY = "nqn.2014-08.org.nvmexpress.discovery"
KNOWN = {GET_LOG, IDENTIFY, ABORT, SET, GET, AER, KEEP_ALIVE, 0x7F}
TIMESTAMP, WRITE_CACHE, HOST_BEHAVIOR, QUEUES = 0x0E, 0x06, 0x16, 0x07


def smallest(opcode: int, cid: int) -> bytes:
    """A command of that opcode that is answered at once and would succeed on an enabled controller."""
    fields = {
        GET_LOG: {"sgl": (0, 512, 0x5A), "cdw10": 2 | 127 << 16},
        IDENTIFY: {"sgl": (0, 4096, 0x5A), "cdw10": 1},
        ABORT: {"cdw10": 0xFFFF_0000},
        SET: {"cdw10": 1},
        GET: {"cdw10": 1},
    }
    return wire.sqe(opcode, cid, nsid=0, **fields.get(opcode, {}))  # type: ignore[arg-type]


async def errors(admin: RawHost) -> list[tuple[int, ...]]:
    """The error log, newest first: (count, sqid, cid, status, location, lba, nsid)."""
    assert await admin.status(GET_LOG, nsid=0, sgl=(0, 4096, 0x5A), cdw10=1 | 1023 << 16) == 0
    entries = [struct.unpack_from("<QHHHHQI", admin.data, at) for at in range(0, 4096, 64)]
    return [(*entry[:3], entry[3] >> 1, *entry[4:]) for entry in entries if entry[0]]


@contextlib.contextmanager
def held(served: Served, operation: Literal["write", "flush"]) -> Iterator[asyncio.Event]:
    """Such operations wait until the event is set, or until a failing test leaves."""
    gate = asyncio.Event()
    served.volume.delay(operation, gate)
    try:
        yield gate
    finally:
        gate.set()


@pytest.mark.parametrize("subnqn", ["", DISCOVERY])
async def test_unknown_opcodes(served: Served, subnqn: str) -> None:
    admin = await (served.admin(subnqn=subnqn) if subnqn else served.admin())
    for opcode in sorted(set(range(256)) - KNOWN):
        assert await admin.status(opcode, nsid=0) == 0x01 | DNR, hex(opcode)
    count, sqid, _, *rest = (await errors(admin))[0]
    assert (count, sqid, rest) == (256 - len(KNOWN), 0, [0x01 | DNR, 0, 0, 0])


@pytest.mark.parametrize("opcode", sorted(KNOWN - {0x7F, AER}))
async def test_before_it_is_enabled_a_controller_takes_fabrics_commands_only(served: Served, opcode: int) -> None:
    admin = await served.admin(enable=False)
    assert (await admin.command(smallest(opcode, 1)))[5] == 0x0C
    await admin.property_set(0x14, 0x460001)
    assert (await admin.command(smallest(opcode, 2)))[5] == 0
    await admin.property_set(0x14, 0x460000)
    assert (await admin.command(smallest(opcode, 3)))[5] == 0x0C


async def test_fused_admin_commands_do_not_exist(served: Served) -> None:
    admin = await served.admin()
    for fuse in (1, 2):
        assert await admin.status(IDENTIFY, flags=0x40 | fuse, sgl=(0, 4096, 0x5A), cdw10=1) == 0x02 | DNR


@pytest.mark.parametrize("digest", range(4))
async def test_data_arrive_whole_with_every_digest(served: Served, digest: int) -> None:
    admin = await served.admin(digest)
    assert await admin.status(IDENTIFY, sgl=(0, 4096, 0x5A), cdw10=0) == 0
    assert struct.unpack_from("<Q", admin.data) == (served.volume.size // served.block_size,)
    assert len(admin.data) == 4096


@pytest.mark.parametrize(
    ("sgl", "flags", "status", "location"),
    [
        ((0, 4095, 0x5A), 0x40, 0x0F | DNR, 32),
        ((0, 0, 0x5A), 0x40, 0x0F | DNR, 32),
        ((0, 4096, 0x01), 0x40, 0x11 | DNR, 24),
        ((0, 4096, 0x00), 0x40, 0x11 | DNR, 24),
        ((0, 4096, 0x30), 0x40, 0x11 | DNR, 24),
        ((0, 4096, 0x5A), 0x00, 0x02 | DNR, 24),
    ],
)
@pytest.mark.parametrize("opcode", [IDENTIFY, GET_LOG])
async def test_where_data_cannot_go(
    served: Served, opcode: int, sgl: tuple[int, int, int], flags: int, status: int, location: int
) -> None:
    admin = await served.admin()
    cdw10 = 1 | (1023 << 16 if opcode == GET_LOG else 0)
    assert await admin.status(opcode, nsid=0, flags=flags, sgl=sgl, cdw10=cdw10) == status
    assert (await errors(admin))[0][3:5] == (status, location)


async def test_a_larger_buffer_is_filled_as_far_as_there_is_data(served: Served) -> None:
    admin = await served.admin()
    assert await admin.status(GET, nsid=0, sgl=(0, 4096, 0x5A), cdw10=0x81, cdw11=1) == 0
    assert admin.data == HOST_ID
    assert await admin.status(GET, nsid=0, sgl=(0, 15, 0x5A), cdw10=0x81, cdw11=1) == 0x0F | DNR


async def test_a_page_that_cannot_be_delivered_is_not_read(served: Served) -> None:
    admin = await served.admin()
    served.subsystem.remove_namespace(1)
    served.subsystem.add_namespace(served.volume, 1)
    assert await admin.status(GET_LOG, nsid=0, sgl=(0, 2048, 0x5A), cdw10=4 | 1023 << 16) == 0x0F | DNR
    assert await admin.status(GET_LOG, nsid=0, sgl=(0, 4096, 0x5A), cdw10=4 | 1023 << 16) == 0
    assert admin.data == struct.pack("<I", 1).ljust(4096, b"\0")


@pytest.mark.parametrize("inline", [True, False])
async def test_set_features_data_in_the_capsule_or_asked_for(served: Served, inline: bool) -> None:
    admin = await served.admin()
    for fid, data in ((TIMESTAMP, struct.pack("<Q", 1 << 40)), (HOST_BEHAVIOR, b"\1".ljust(512, b"\0"))):
        sqe = wire.sqe(SET, admin.cid(), nsid=0, sgl=(0, len(data), 1 if inline else 0x5A), cdw10=fid)
        if inline:
            assert (await admin.command(sqe, data))[5] == 0
        else:
            admin.send(admin.wire.capsule(sqe))
            assert await admin.answer_r2t(data) == 0
        assert await admin.status(GET, nsid=0, sgl=(0, len(data), 0x5A), cdw10=fid) == 0
        if fid == TIMESTAMP:
            (value,) = struct.unpack("<Q", admin.data)
            assert 0 <= (value & (1 << 48) - 1) - (1 << 40) < 60_000
            assert value >> 48 == 1 << 1
        else:
            assert admin.data == data


@pytest.mark.parametrize(
    ("sgl", "data", "status"),
    [
        ((0, 7, 0x5A), b"", 0x0F | DNR),
        ((0, limits.ADMIN_IN_CAPSULE_BYTES + 1, 0x5A), b"", 0x0F | DNR),
        ((0, 8, 0x01), b"", 0x0F | DNR),
        ((0, 8, 0x01), b"1234567", 0x0F | DNR),
        ((8, 8, 0x01), b"12345678", 0x16 | DNR),
        ((0, 8, 0x00), b"12345678", 0x11 | DNR),
    ],
)
async def test_set_features_without_its_data(
    served: Served, sgl: tuple[int, int, int], data: bytes, status: int
) -> None:
    admin = await served.admin()
    assert await admin.status(SET, data, nsid=0, sgl=sgl, cdw10=TIMESTAMP) == status


async def test_data_that_are_asked_for_may_be_wrong_too(served: Served) -> None:
    admin = await served.admin()
    admin.send(admin.wire.capsule(wire.sqe(SET, 9, nsid=0, sgl=(0, 512, 0x5A), cdw10=HOST_BEHAVIOR)))
    assert await admin.answer_r2t(b"\7" * 512) == 0x02 | DNR
    assert (await errors(admin))[0][2:5] == (9, 0x02 | DNR, 44)


async def test_number_of_queues_before_and_after_queues(served: Served) -> None:
    admin = await served.admin()
    answer = await admin.command(wire.sqe(SET, admin.cid(), nsid=0, cdw10=QUEUES, cdw11=1 | 7 << 16))
    assert (answer[0], answer[5]) == (1 | 7 << 16, 0)
    io = await served.io(admin)
    assert await admin.status(SET, nsid=0, cdw10=QUEUES, cdw11=3 | 3 << 16) == 0x0C | DNR
    await io.close()
    controller = served.subsystem.controllers[admin.cntlid]
    await settle(lambda: not controller.queues)
    assert await admin.status(SET, nsid=0, cdw10=QUEUES, cdw11=3 | 3 << 16) == 0


async def test_the_write_cache_goes_off_when_all_is_on_media(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin)
    assert await io.write(0, bytes(served.block_size), served.block_size) == 0
    with held(served, "flush") as gate:
        admin.send(admin.wire.capsule(wire.sqe(SET, 0x51, nsid=0, cdw10=WRITE_CACHE, cdw11=0)))
        await settle(lambda: served.volume.in_flight["flush"] == 1)
        assert await admin.status(KEEP_ALIVE, nsid=0) == 0, "other commands are not held up"
        gate.set()
        assert (await admin.response())[4:] == (0x51, 0)
        answer = await admin.command(wire.sqe(GET, admin.cid(), nsid=0, cdw10=WRITE_CACHE))
        assert answer[0] == 0
        flushes = served.volume.calls["flush"]
        assert await io.write(0, bytes(served.block_size), served.block_size) == 0
        assert served.volume.calls["flush"] == flushes + 1
        assert await admin.status(SET, nsid=0, cdw10=WRITE_CACHE, cdw11=1) == 0
        assert await io.write(0, bytes(served.block_size), served.block_size) == 0
        assert served.volume.calls["flush"] == flushes + 1


async def test_the_write_cache_waits_for_writes_under_way(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin)
    with held(served, "write") as gate:
        io.send(io.wire.capsule(wire.sqe(1, 5, sgl=(0, served.block_size, 1)), bytes(served.block_size)))
        await settle(lambda: served.volume.in_flight["write"] == 1)
        admin.send(admin.wire.capsule(wire.sqe(SET, 0x51, nsid=0, cdw10=WRITE_CACHE, cdw11=0)))
        assert await admin.status(KEEP_ALIVE, nsid=0) == 0
        assert served.volume.calls["flush"] == 0
        gate.set()
        assert (await io.response())[4:] == (5, 0)
        assert (await admin.response())[4:] == (0x51, 0)
        assert served.volume.calls["flush"] == 1


async def test_the_write_cache_stays_on_when_it_cannot_be_emptied(served: Served) -> None:
    admin = await served.admin()
    served.volume.fail("flush", WriteFault)
    assert await admin.status(SET, nsid=0, cdw10=WRITE_CACHE, cdw11=0) == 0x4280
    answer = await admin.command(wire.sqe(GET, admin.cid(), nsid=0, cdw10=WRITE_CACHE))
    assert answer[0] == 1


async def test_a_reset_forgets_a_command_in_progress(served: Served) -> None:
    admin = await served.admin()
    with held(served, "flush") as gate:
        admin.send(admin.wire.capsule(wire.sqe(SET, 0x51, nsid=0, cdw10=WRITE_CACHE, cdw11=0)))
        admin.send(admin.wire.capsule(wire.sqe(AER, 0x52, nsid=0)))
        await settle(lambda: served.volume.in_flight["flush"] == 1)
        await admin.property_set(0x14, 0x460000)
        await admin.property_set(0x14, 0x460001)
        gate.set()
        await settle(lambda: not served.volume.in_flight["flush"])
        served.subsystem.remove_namespace(1)
        served.subsystem.add_namespace(served.volume, 1)
        answer = await admin.command(wire.sqe(GET, 0x51, nsid=0, cdw10=WRITE_CACHE))
        assert (answer[0], answer[4], answer[5]) == (1, 0x51, 0)


async def test_an_admin_queue_lost_with_a_command_in_progress(served: Served) -> None:
    admin = await served.admin()
    with held(served, "flush") as gate:
        admin.send(admin.wire.capsule(wire.sqe(SET, 0x51, nsid=0, cdw10=WRITE_CACHE, cdw11=0)))
        await settle(lambda: served.volume.in_flight["flush"] == 1)
        await admin.close()
        await settle(lambda: not served.subsystem.controllers)
        gate.set()
        await settle(lambda: not served.volume.in_flight["flush"])


async def test_events_over_the_wire(served: Served) -> None:
    admin = await served.admin()
    for cid in range(limits.ASYNC_EVENT_REQUESTS_MAX):
        admin.send(admin.wire.capsule(wire.sqe(AER, 0x700 + cid, nsid=0)))
    assert await admin.status(AER, nsid=0) == 0x105 | DNR
    served.subsystem.remove_namespace(1)
    answer = await admin.response()
    assert (answer[0], answer[4], answer[5]) == (0x040002, 0x700, 0)
    served.subsystem.add_namespace(served.volume, 1)
    assert await admin.status(GET_LOG, nsid=0, sgl=(0, 4096, 0x5A), cdw10=4 | 1023 << 16) == 0
    assert admin.data[:8] == struct.pack("<II", 1, 0)
    served.volume.health_override = VolumeHealth(read_only=True, degraded=True, reason="injected")
    answers = [await admin.response() for _ in range(2)]
    assert {(answer[0], answer[5]) for answer in answers} == {(0x040002, 0), (0x020001, 0)}
    assert [answer[4] for answer in answers] == [0x701, 0x702]
    assert await admin.status(GET_LOG, nsid=0, sgl=(0, 512, 0x5A), cdw10=2 | 127 << 16) == 0
    assert admin.data[0] == 0x0C
    served.volume.health_override = None


async def test_abort_of_an_event_request(served: Served) -> None:
    admin = await served.admin()
    admin.send(admin.wire.capsule(wire.sqe(AER, 0x701, nsid=0)))
    admin.send(admin.wire.capsule(wire.sqe(ABORT, 0x702, nsid=0, cdw10=0x701 << 16)))
    assert (await admin.response())[4:] == (0x701, 0x07)
    answer = await admin.response()
    assert (answer[0], answer[4], answer[5]) == (0, 0x702, 0)
    answer = await admin.command(wire.sqe(ABORT, 0x703, nsid=0, cdw10=0x701 << 16))
    assert (answer[0], answer[5]) == (1, 0)


async def test_abort_of_a_command_that_waits_for_its_data(served: Served) -> None:
    admin = await served.admin()
    admin.send(admin.wire.capsule(wire.sqe(SET, 0x11, nsid=0, sgl=(0, 8, 0x5A), cdw10=TIMESTAMP)))
    r2t = await admin.pdu()
    answer = await admin.command(wire.sqe(ABORT, 0x12, nsid=0, cdw10=0x11 << 16))
    assert (answer[0], answer[5]) == (0, 0)
    _, ttag = struct.unpack_from("<HH", r2t, 8)
    admin.send(admin.wire.h2c_data(0x11, ttag, 0, struct.pack("<Q", 1 << 40), last=True))
    assert (await admin.response())[4:] == (0x11, 0x07)
    assert await admin.status(GET, nsid=0, sgl=(0, 8, 0x5A), cdw10=TIMESTAMP) == 0
    assert struct.unpack("<Q", admin.data)[0] >> 48 == 0, "it was not set"


async def test_a_command_identifier_in_use_is_refused(served: Served) -> None:
    admin = await served.admin()
    admin.send(admin.wire.capsule(wire.sqe(AER, 0x701, nsid=0)))
    assert (await admin.command(wire.sqe(KEEP_ALIVE, 0x701, nsid=0)))[5] == 0x03 | DNR
    admin.send(admin.wire.capsule(wire.sqe(SET, 0x11, nsid=0, sgl=(0, 8, 0x5A), cdw10=TIMESTAMP)))
    assert (await admin.pdu())[0] == 9
    assert (await admin.command(wire.sqe(KEEP_ALIVE, 0x11, nsid=0)))[5] == 0x03 | DNR


async def test_more_commands_than_the_queue_holds_end_the_connection(served: Served) -> None:
    host = await served.open()
    assert (await host.command(connect_sqe(sqsize=2), connect_data(served.subsystem.nqn)))[5] == 0
    await host.property_set(0x14, 0x460001)
    for cid in (1, 2, 3):
        host.send(host.wire.capsule(wire.sqe(AER, 0x700 + cid, nsid=0)))
    host.send(host.wire.capsule(wire.sqe(KEEP_ALIVE, 0x10, nsid=0)))
    pdu_sequence_error = 2
    assert wire.term_req(await host.pdu())[0] == pdu_sequence_error
    await host.close()
    await settle(lambda: not served.subsystem.controllers)


async def test_the_error_log_has_admin_and_io_commands(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin)
    beyond = served.volume.size // served.block_size
    assert await io.status(2, sgl=(0, served.block_size, 0x5A), cdw10=beyond) == 0x80 | DNR
    assert await admin.status(IDENTIFY, nsid=3000, sgl=(0, 4096, 0x5A), cdw10=0) == 0x0B | DNR
    assert await admin.status(GET_LOG, nsid=0, sgl=(0, 64, 0x5A), cdw10=0x7E | 15 << 16) == 0x109 | DNR
    newest = await errors(admin)
    assert [entry[0] for entry in newest] == [3, 2, 1]
    assert [entry[1] for entry in newest] == [0, 0, 1]
    assert [entry[3] for entry in newest] == [0x109 | DNR, 0x0B | DNR, 0x80 | DNR]
    assert [entry[4] for entry in newest] == [40, 4, 0xFFFF]
    assert [entry[5:] for entry in newest] == [(0, 0), (0, 3000), (beyond, 1)]


async def test_smart_counts_what_was_done(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin)
    for block in range(3):
        assert await io.write(block, b"x" * served.block_size, served.block_size) == 0
    assert await io.read(0, 2, served.block_size) == b"x" * 2 * served.block_size
    assert await admin.status(GET_LOG, nsid=0, sgl=(0, 512, 0x5A), cdw10=2 | 127 << 16) == 0
    counters = [int.from_bytes(admin.data[at : at + 16], "little") for at in range(32, 96, 16)]
    assert counters == [1, 1, 1, 3]


async def test_a_discovery_controller_has_no_write_cache(served: Served) -> None:
    admin = await served.admin(subnqn=DISCOVERY)
    assert await admin.status(SET, nsid=0, cdw10=WRITE_CACHE, cdw11=0) == 0x02 | DNR
    assert await admin.status(SET, nsid=0, cdw10=0x0F, cdw11=30_000) == 0
    assert await admin.status(KEEP_ALIVE, nsid=0) == 0


class Recorder:
    """The queue pair under an admin queue, as far as commands see it."""

    def __init__(self) -> None:
        self.transfers: dict[int, Command] = {}
        self.answers: list[tuple[int, int]] = []

    def complete(self, cid: int, status: int = 0, dw0: int = 0, dw1: int = 0) -> None:
        assert 0 <= dw0 < 1 << 32
        assert 0 <= dw1 < 1 << 32
        self.answers.append((cid, status))

    def send_bytes(self, cid: int, data: bytes, dw0: int = 0) -> None:
        assert len(data) <= limits.MDTS_BYTES
        self.complete(cid, 0, dw0)

    def request(self, cid: int, length: int, context: Command) -> None:
        assert 0 < length <= limits.ADMIN_IN_CAPSULE_BYTES
        self.transfers[cid] = context

    def finish(self, transfer: SimpleNamespace) -> None:
        del self.transfers[transfer.cid]

    def abort_transfer(self, cid: int) -> bool:
        return False


@cache
def volumes() -> dict[int, FaultVolume]:
    return direct_controller().volumes


DWORD = st.one_of(st.integers(0, 0xFFFF_FFFF), st.sampled_from([0, 1, 7, 0xFFFF, 1 << 31, 0xFFFF_FFFF]))


@given(
    opcode=st.one_of(st.sampled_from(sorted(KNOWN - {0x7F})), st.integers(0, 255)),
    flags=st.sampled_from([0x40, 0x40, 0x40, 0x00, 0x41, 0xC0]),
    nsid=st.one_of(st.sampled_from([0, 1, 2, 3, 7, 1024, 1025, 0xFFFF_FFFF]), st.integers(0, 0xFFFF_FFFF)),
    sgl=st.tuples(DWORD, DWORD, st.sampled_from([0x5A, 0x01, 0x00, 0x30])),
    selector=st.integers(0, 0xFF),
    upper=st.sampled_from([0, 0, 0x0001_0000, 0x00FF_0100, 0x8000_0000, 0x0000_0300]),
    dwords=st.tuples(DWORD, DWORD, DWORD, DWORD, DWORD),
    data=st.one_of(st.none(), st.binary(max_size=600), st.just(bytes(512)), st.just(b"\xff" * 8192)),
    discovery=st.booleans(),
)
@settings(max_examples=400)
def test_whatever_a_host_sends_is_answered_once_and_is_no_internal_error(
    opcode: int, flags: int, nsid: int, sgl: tuple[int, int, int], selector: int, upper: int, dwords: tuple[int, ...],
    data: bytes | None, discovery: bool,
) -> None:  # fmt: skip
    direct = Direct(volumes())
    queue: Any = Recorder()
    connection: Any = SimpleNamespace(queue=queue, local_address=("127.0.0.1", 4420))
    if discovery:
        view: Any = SimpleNamespace(listeners=[], subsystems={})
        direct.controller.subsystem = DiscoverySubsystem(view)
    admin = direct.controller.admin = AdminQueue(connection, direct.controller, 32)
    direct.controller.ready = True
    direct.controller.namespace_changed(7)
    started: list[int] = []
    admin.start = lambda command, work: (started.append(command.cid), work.close())  # type: ignore[assignment, func-returns-value, method-assign]
    sqe: Any = (opcode, flags, 9, nsid, *sgl, upper | selector, *dwords)
    admin.command(sqe, None if data is None else memoryview(data))
    if queue.transfers:
        transfer: Any = SimpleNamespace(cid=9, context=queue.transfers[9])
        admin.payload(transfer, memoryview((data or b"")[:512].ljust(512, b"\1")))
    waiting = [*started, *direct.controller.events.requests]
    assert [cid for cid, _ in queue.answers] + waiting == [9]
    assert all(status & 0x7FF != 0x06 for _, status in queue.answers)
