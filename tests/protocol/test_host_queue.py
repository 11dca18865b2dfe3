"""The host's queue pair, fed bytes: golden PDUs, every fatal error, any segmentation, every habit, hostile input."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof import limits
from nvmeof.errors import LocalProtocolError
from nvmeof.protocol.digest import crc32c
from nvmeof.protocol.host_queue import PACK_CAPSULE_INTO, HostQueue
from nvmeof.protocol.host_request import Request
from nvmeof.protocol.states import State
from nvmeof.protocol.target_queue import Sqe, TargetQueue, Transfer
from nvmeof.spec.command import SQE, SubmissionEntry
from nvmeof.spec.pdu import COMMON_HEADER, CommonHeader
from nvmeof.transport.buffers import BufferPool
from tests.protocol import wire
from tests.protocol.wire import LAST, SUCCESS, Wire
from tests.protocol.wire_controller import (
    READ,
    WRITE,
    WireController,
    c2h_data,
    c2h_term_req,
    capsule_resp,
    icresp,
    r2t,
)

INVALID_FIELD, SEQUENCE, DIGEST, OUT_OF_RANGE, LIMIT, UNSUPPORTED = range(1, 7)
BOTH_DIGESTS = {"header_digest": True, "data_digest": True}
TRANSIENT_TRANSPORT_ERROR = 0x22


class Bench(wire.Bench):
    """A HostQueue and its pool; ``feed`` returns what the host sends in answer."""

    queue: HostQueue

    def __init__(self, *, ready: bool = True, cpda: int = 0, maxh2cdata: int = 131072, **options: Any) -> None:
        self.pool = BufferPool()
        self.queue = HostQueue(self.pool, 0.0, **options)
        self.wire = Wire()
        self.icreq = self.take()
        if ready:
            digest = self.icreq[11]
            assert self.feed(icresp(digest=digest, cpda=cpda, maxh2cdata=maxh2cdata)) == b""
            self.wire = Wire(bool(digest & 1), bool(digest & 2))
            self.queue.capacity = 64
            self.queue.established()

    def read(self, length: int, **more: Any) -> tuple[int, bytearray]:
        """Submit a read; its CID and buffer."""
        buffer = bytearray(length)
        return self.submit(READ, data_in=memoryview(buffer), **more), buffer

    def write(self, data: bytes | bytearray, **more: Any) -> int:
        return self.submit(WRITE, data_out=memoryview(data), **more)

    def submit(self, opcode: int, token: object = None, deadline: float = 30.0, **more: Any) -> int:
        return self.queue.submit(token, deadline, opcode, 1, **more)

    def completed(self) -> list[Request]:
        completed, self.queue.completed = self.queue.completed, []
        return completed

    def assert_terminated(self, output: bytes, fes: int, fei: int = 0) -> None:
        """The last PDU is an H2CTermReq, and the connection is over."""
        assert output[:1] == b"\x02"
        found = struct.unpack_from("<xBBBIHI", output)
        assert found == (0, 24, 0, len(output), fes, fei)
        assert len(output) <= 152
        assert self.queue.state is State.TERMINATING
        assert self.queue.failure is not None

    def close(self) -> None:
        self.queue.connection_lost()
        assert self.pool.leased == 0


# --- golden PDUs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", range(4))
def test_icreq(digest: int) -> None:
    bench = Bench(ready=False, header_digest=bool(digest & 1), data_digest=bool(digest & 2), hpda=5, maxr2t=3)
    assert bench.icreq == wire.icreq(digest=digest, hpda=5, maxr2t=3)


@pytest.mark.parametrize("options", [{}, BOTH_DIGESTS])
def test_capsule_without_data(options: dict[str, bool]) -> None:
    bench = Bench(**options)
    cid, _ = bench.read(8192, cdw10=0x11, cdw11=0x22, cdw12=0x33, cdw13=0x44, cdw14=0x55, cdw15=0x66)
    entry = wire.sqe(READ, cid, sgl=(0, 8192, 0x5A), cdw10=0x11, cdw11=0x22, cdw12=0x33, cdw13=0x44, cdw14=0x55,
                     cdw15=0x66)  # fmt: skip
    assert bench.take() == bench.wire.capsule(entry)
    cid = bench.submit(0, cdw2=0x77, cdw3=0x88)
    entry = wire.sqe(0, cid)
    assert bench.take() == bench.wire.capsule(entry[:8] + struct.pack("<II", 0x77, 0x88) + entry[16:])


@pytest.mark.parametrize("options", [{}, {"header_digest": True}, {"data_digest": True}, BOTH_DIGESTS])
@pytest.mark.parametrize("cpda", [0, 7, 31])
def test_capsule_with_data(options: dict[str, bool], cpda: int) -> None:
    bench = Bench(cpda=cpda, **options)
    data = random.Random(1).randbytes(4096)
    cid = bench.write(data)
    bare = 76 if bench.wire.header_digest else 72
    pad = -bare % (4 * (cpda + 1))
    assert bench.take() == bench.wire.capsule(wire.sqe(WRITE, cid, sgl=(0, 4096, 0x01)), data, pad)


def test_padding_is_zero_in_a_reused_slab() -> None:
    bench = Bench(cpda=31)
    bench.write(b"\xff" * 8192)
    bench.take()
    cid = bench.write(b"\xee" * 512)
    assert bench.take() == bench.wire.capsule(wire.sqe(WRITE, cid, sgl=(0, 512, 0x01)), b"\xee" * 512, 128 - 72)


@pytest.mark.parametrize("options", [{}, {"header_digest": True}, {"data_digest": True}, BOTH_DIGESTS])
@pytest.mark.parametrize("cpda", [0, 15])
def test_h2c_data_is_split_at_maxh2cdata(options: dict[str, bool], cpda: int) -> None:
    """Small payloads are copied, large ones sent from where they lie: both must look the same."""
    for maxh2cdata in (4096, 65536):
        bench = Bench(cpda=cpda, maxh2cdata=maxh2cdata, **options)
        data = random.Random(2).randbytes(2 * maxh2cdata + 512)
        bench.queue.in_capsule_bytes = 0
        cid = bench.write(data)
        assert bench.take() == bench.wire.capsule(wire.sqe(WRITE, cid, sgl=(0, len(data), 0x5A)))
        pad = -(28 if bench.wire.header_digest else 24) % (4 * (cpda + 1))
        output = bench.feed(r2t(bench.wire, cid, 0x1234, 0, len(data)))
        expected = b"".join(
            bench.wire.h2c_data(cid, 0x1234, at, data[at : at + maxh2cdata], last=at == 2 * maxh2cdata, pad=pad)
            for at in range(0, len(data), maxh2cdata)
        )
        assert output == expected
        bench.feed(capsule_resp(bench.wire, cid))
        assert [request.status for request in bench.completed()] == [0]
        bench.close()


def test_the_packer_agrees_with_the_layouts() -> None:
    buffer = bytearray(72)
    PACK_CAPSULE_INTO(buffer, 0, 4, 1, 72, 76, 4172, *range(1, 5), *range(5, 16))
    header = COMMON_HEADER.encode(CommonHeader(4, 1, 72, 76, 4172))
    entry = SubmissionEntry(1, 2, 3, 4, 5, 6, 0, 7, 8, 0, 0, 9, 10, 11, 12, 13, 14, 15)
    assert bytes(buffer) == header + SQE.encode(entry)


# --- ICResp -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "fes", "fei"),
    [
        (icresp(hlen=127), INVALID_FIELD, 2),
        (icresp(plen=132), INVALID_FIELD, 4),
        (icresp(pfv=1), UNSUPPORTED, 8),
        (icresp(cpda=32), INVALID_FIELD, 10),
        (icresp(digest=1), INVALID_FIELD, 11),
        (icresp(digest=2), INVALID_FIELD, 11),
        (icresp(maxh2cdata=4092), INVALID_FIELD, 12),
        (icresp(maxh2cdata=4098), INVALID_FIELD, 12),
        (icresp(maxh2cdata=0), INVALID_FIELD, 12),
        (capsule_resp(Wire(), 0), SEQUENCE, 0),
        (wire.icreq(), INVALID_FIELD, 0),
        (b"\x08\x00\x18\x00\x18\x00\x00\x00", INVALID_FIELD, 0),
        (b"\x07\x00\x18\x18\xff\xff\xff\xff", SEQUENCE, 0),
    ],
)
def test_bad_icresp(response: bytes, fes: int, fei: int) -> None:
    bench = Bench(ready=False)
    bench.assert_terminated(bench.feed(response), fes, fei)
    bench.close()


def test_a_second_icresp_is_a_sequence_error() -> None:
    bench = Bench()
    bench.assert_terminated(bench.feed(icresp()), SEQUENCE)


def test_a_controller_may_decline_digests() -> None:
    bench = Bench(ready=False, **BOTH_DIGESTS)
    assert bench.feed(icresp(digest=2)) == b""
    assert (bench.queue.ready, bench.queue.header_digest, bench.queue.data_digest) == (True, False, True)


def test_the_smallest_and_largest_icresp() -> None:
    for cpda, maxh2cdata in ((0, 4096), (31, 0xFFFF_FFFC)):
        bench = Bench(ready=False)
        assert bench.feed(icresp(cpda=cpda, maxh2cdata=maxh2cdata)) == b""
        assert bench.queue.ready


# --- commands ---------------------------------------------------------------------------------------------------------


def test_submit_needs_room_and_a_ready_connection() -> None:
    bench = Bench(ready=False)
    with pytest.raises(LocalProtocolError, match="IC_SENT"):
        bench.submit(0)
    bench = Bench()
    bench.queue.capacity = 2
    bench.submit(0)
    bench.submit(0)
    with pytest.raises(LocalProtocolError, match="2 of 2"):
        bench.submit(0)


def test_cids_are_not_soon_reused_and_never_while_in_flight() -> None:
    bench = Bench()
    held = bench.submit(0)
    seen = set()
    for _ in range(66_000):
        cid = bench.submit(0)
        assert cid != held
        assert cid <= 0xFFFE
        seen.add(cid)
        bench.queue.take_output()
        bench.queue.drained()
        bench.feed(capsule_resp(bench.wire, cid))
    assert len(seen) == 0xFFFE
    assert len(bench.completed()) == 66_000


def test_a_completion_carries_everything() -> None:
    bench = Bench()
    token = object()
    cid = bench.submit(6, token)
    bench.take()
    bench.feed(capsule_resp(bench.wire, cid, status=0x4002, dw0=0xDEAD_BEEF, dw1=0x0102_0304, sqhd=0xFFFF))
    (request,) = bench.completed()
    assert (request.token, request.status, request.dw0, request.dw1) == (token, 0x4002, 0xDEAD_BEEF, 0x0102_0304)
    assert (request.opcode, bench.queue.sqhd) == (6, 0xFFFF)
    assert not bench.queue.requests


def test_large_admin_data_waits_for_an_r2t() -> None:
    bench = Bench()
    small, large = bench.write(bytes(8192)), bench.write(bytes(8196))
    output = bench.take()
    assert len(output) == 72 + 8192 + 72
    assert bench.queue.requests[small].asked == 8192
    assert bench.queue.requests[large].asked == 0


def test_a_phase_bit_is_ignored() -> None:
    bench = Bench()
    cid = bench.submit(0)
    response = bytearray(capsule_resp(bench.wire, cid))
    response[-2] |= 1
    bench.feed(bytes(response))
    assert bench.completed()[0].status == 0


# --- what a target may do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, BOTH_DIGESTS, {"hpda": 10}, {"hpda": 10, **BOTH_DIGESTS}])
@pytest.mark.parametrize("size", [512, 4096, limits.BULK_BYTES_MIN, 1 << 20])
@pytest.mark.parametrize("success", [False, True])
def test_read_in_one_pdu(options: dict[str, Any], size: int, success: bool) -> None:
    """SPDK sets SUCCESS on every queue, whether flow control is off or not."""
    bench = Bench(**options)
    cid, buffer = bench.read(size)
    data = random.Random(3).randbytes(size)
    alignment = 4 * (options.get("hpda", 0) + 1)
    stream = c2h_data(bench.wire, cid, 0, data, success=success, alignment=alignment)
    if not success:
        stream += capsule_resp(bench.wire, cid)
    bench.take()
    assert bench.feed(stream) == b""
    (request,) = bench.completed()
    assert (request.status, request.received) == (0, size)
    assert buffer == data


@pytest.mark.parametrize("last", [False, True])
def test_c2h_data_in_pieces(last: bool) -> None:
    """LAST may be missing: what counts is that all data came. Two commands take turns."""
    bench = Bench()
    first, first_buffer = bench.read(8192)
    second, second_buffer = bench.read(8192)
    bench.feed(c2h_data(bench.wire, first, 0, b"a" * 4096, last=False))
    bench.feed(c2h_data(bench.wire, second, 0, b"b" * 8192, success=True))
    bench.feed(c2h_data(bench.wire, first, 4096, b"c" * 4096, last=last))
    bench.feed(capsule_resp(bench.wire, first))
    assert [request.cid for request in bench.completed()] == [second, first]
    assert first_buffer == b"a" * 4096 + b"c" * 4096
    assert second_buffer == b"b" * 8192


def test_an_error_may_come_before_or_amid_the_data() -> None:
    bench = Bench()
    bench.queue.in_capsule_bytes = 0
    read, _ = bench.read(8192)
    write = bench.write(bytes(8192))
    bench.feed(c2h_data(bench.wire, read, 0, bytes(4096), last=False))
    bench.feed(r2t(bench.wire, write, 1, 0, 4096))
    bench.feed(capsule_resp(bench.wire, read, status=0x281) + capsule_resp(bench.wire, write, status=0x280))
    assert [request.status for request in bench.completed()] == [0x281, 0x280]
    assert bench.queue.ready


def test_a_partial_read_is_for_commands_that_allow_it() -> None:
    bench = Bench()
    for success in (False, True):
        cid, buffer = bench.read(4096, partial=True)
        stream = c2h_data(bench.wire, cid, 0, b"x" * 8, success=success)
        bench.feed(stream if success else stream + capsule_resp(bench.wire, cid))
        (request,) = bench.completed()
        assert (request.status, request.received, bytes(buffer[:9])) == (0, 8, b"x" * 8 + b"\0")
    cid, _ = bench.read(4096, partial=True)
    bench.feed(capsule_resp(bench.wire, cid))
    assert bench.completed()[0].received == 0


def test_several_r2ts_at_once_when_maxr2t_allows() -> None:
    bench = Bench(maxr2t=1)
    bench.queue.in_capsule_bytes = 0
    data = random.Random(4).randbytes(8192)
    cid = bench.write(data)
    bench.take()
    output = bench.feed(r2t(bench.wire, cid, 1, 0, 4096) + r2t(bench.wire, cid, 2, 4096, 4096))
    assert output == bench.wire.h2c_data(cid, 1, 0, data[:4096], last=True) + bench.wire.h2c_data(
        cid, 2, 4096, data[4096:], last=True
    )


@pytest.mark.parametrize("size", [4096, 262144])
def test_a_bad_data_digest_fails_that_command_alone(size: int) -> None:
    bench = Bench(**BOTH_DIGESTS)
    bad, _ = bench.read(size)
    good, buffer = bench.read(size)
    stream = bytearray(c2h_data(bench.wire, bad, 0, bytes(size), success=True))
    stream[-size // 2] ^= 1
    bench.take()
    assert bench.feed(bytes(stream)) == b""
    bench.feed(c2h_data(bench.wire, good, 0, b"g" * size, success=True))
    failed, fine = bench.completed()
    assert (failed.cid, failed.status) == (bad, TRANSIENT_TRANSPORT_ERROR)
    assert (fine.cid, fine.status, bytes(buffer)) == (good, 0, b"g" * size)


def test_a_bad_digest_does_not_hide_the_controllers_own_error() -> None:
    bench = Bench(**BOTH_DIGESTS)
    cid, _ = bench.read(4096)
    stream = bytearray(c2h_data(bench.wire, cid, 0, bytes(4096)))
    stream[-1] ^= 1
    bench.feed(bytes(stream) + capsule_resp(bench.wire, cid, status=0x281))
    assert bench.completed()[0].status == 0x281


# --- what a target must not do ----------------------------------------------------------------------------------------


def bad_c2h(**fields: int) -> bytes:
    """A C2HData PDU for 4096 bytes with some header fields wrong."""
    values: dict[str, int] = {
        "flags": LAST,
        "hlen": 24,
        "pdo": 24,
        "plen": 24 + 4096,
        "offset": 0,
        "length": 4096,
    } | fields
    header = struct.pack("<BBBBIHHII4x", 7, values["flags"], values["hlen"], values["pdo"], values["plen"],
                         values["cid"], 0, values["offset"], values["length"])  # fmt: skip
    return header + bytes(4096)


@pytest.mark.parametrize(
    ("fields", "fes", "fei"),
    [
        ({"hlen": 25}, INVALID_FIELD, 2),
        ({"pdo": 20}, INVALID_FIELD, 3),
        ({"pdo": 25, "plen": 25 + 4096}, INVALID_FIELD, 3),
        ({"plen": 24 + 4095}, INVALID_FIELD, 4),
        ({"flags": LAST | 2}, INVALID_FIELD, 1),
        ({"flags": SUCCESS}, INVALID_FIELD, 1),
        ({"cid": 0x7777}, INVALID_FIELD, 8),
        ({"offset": 4}, INVALID_FIELD, 12),
        ({"offset": 4096}, OUT_OF_RANGE, 16),
        ({"offset": 0xFFFF_FFFF}, OUT_OF_RANGE, 16),
        ({"length": 0, "plen": 24}, INVALID_FIELD, 16),
    ],
)
def test_bad_c2h_data(fields: dict[str, int], fes: int, fei: int) -> None:
    bench = Bench()
    cid, _ = bench.read(4100)
    bench.take()
    stream = bad_c2h(**{"cid": cid, **fields})
    bench.assert_terminated(bench.feed(stream), fes, fei)


@pytest.mark.parametrize(
    ("script", "fes", "fei"),
    [
        (lambda wire, cid: c2h_data(wire, cid, 0, bytes(8192)), OUT_OF_RANGE, 16),
        (lambda wire, cid: c2h_data(wire, cid, 0, bytes(2048), success=True), INVALID_FIELD, 1),
        (lambda wire, cid: c2h_data(wire, cid, 0, bytes(2048)) + c2h_data(wire, cid, 2048, bytes(2048)), SEQUENCE, 0),
        (lambda wire, cid: c2h_data(wire, cid, 0, bytes(2048)) + capsule_resp(wire, cid), SEQUENCE, 0),
        (lambda wire, cid: capsule_resp(wire, cid), SEQUENCE, 0),
        (lambda wire, cid: 2 * c2h_data(wire, cid, 0, bytes(4096), success=True), INVALID_FIELD, 8),
        (lambda wire, cid: c2h_data(wire, cid, 0, bytes(4096)) + c2h_data(wire, cid, 4096, bytes(4)), OUT_OF_RANGE, 16),
        (lambda wire, cid: r2t(wire, cid, 1, 0, 4096), INVALID_FIELD, 8),
        (lambda wire, cid: capsule_resp(wire, cid + 1), INVALID_FIELD, 20),
    ],
)  # fmt: skip
def test_bad_answers_to_a_read(script: Callable[[Wire, int], bytes], fes: int, fei: int) -> None:
    bench = Bench()
    cid, _ = bench.read(4096)
    bench.take()
    bench.assert_terminated(bench.feed(script(bench.wire, cid)), fes, fei)
    assert not [request for request in bench.completed() if not request.received]


@pytest.mark.parametrize(
    ("script", "fes", "fei"),
    [
        (lambda wire, cid: r2t(wire, cid, 1, 4, 4096), INVALID_FIELD, 12),
        (lambda wire, cid: r2t(wire, cid, 1, 0, 0), INVALID_FIELD, 16),
        (lambda wire, cid: r2t(wire, cid, 1, 0, 8196), OUT_OF_RANGE, 16),
        (lambda wire, cid: r2t(wire, cid, 1, 0xFFFF_FFFC, 8), OUT_OF_RANGE, 16),
        (lambda wire, cid: r2t(wire, cid + 1, 1, 0, 4096), INVALID_FIELD, 8),
        (lambda wire, cid: r2t(wire, cid, 1, 0, 4096) + r2t(wire, cid, 2, 4096, 4096), LIMIT, 0),
        (lambda wire, cid: r2t(wire, cid, 1, 0, 8192) + r2t(wire, cid, 2, 0, 4096), INVALID_FIELD, 12),
        (lambda wire, cid: capsule_resp(wire, cid), SEQUENCE, 0),
        (lambda wire, cid: r2t(wire, cid, 1, 0, 4096) + capsule_resp(wire, cid), SEQUENCE, 0),
        (lambda wire, cid: r2t(wire, cid, 1, 0, 8192) + capsule_resp(wire, cid), SEQUENCE, 0),
        (lambda wire, cid: c2h_data(wire, cid, 0, bytes(512)), INVALID_FIELD, 8),
        (lambda wire, cid: r2t(wire, cid, 1, 0, 8192)[:4] + b"\x1c" + r2t(wire, cid, 1, 0, 8192)[5:], INVALID_FIELD, 4),
        (lambda wire, cid: r2t(wire, cid, 1, 0, 8192)[:2] + b"\x1c" + r2t(wire, cid, 1, 0, 8192)[3:], INVALID_FIELD, 2),
    ],
)  # fmt: skip
def test_bad_answers_to_a_write(script: Callable[[Wire, int], bytes], fes: int, fei: int) -> None:
    bench = Bench()
    bench.queue.in_capsule_bytes = 0
    cid = bench.write(bytes(8192))
    bench.take()
    output = bench.feed(script(bench.wire, cid))
    while output[:1] == b"\x06":
        output = output[struct.unpack_from("<I", output, 4)[0] :]
    bench.assert_terminated(output, fes, fei)
    assert not bench.completed()


def test_an_r2t_for_in_capsule_data() -> None:
    bench = Bench()
    cid = bench.write(bytes(4096))
    bench.take()
    bench.assert_terminated(bench.feed(r2t(bench.wire, cid, 1, 0, 4096)), INVALID_FIELD, 12)


@pytest.mark.parametrize(("at", "value", "fei"), [(2, 16, 2), (4, 28, 4)])
def test_bad_capsule_resp(at: int, value: int, fei: int) -> None:
    bench = Bench()
    cid = bench.submit(0)
    bench.take()
    response = bytearray(capsule_resp(bench.wire, cid))
    response[at] = value
    bench.assert_terminated(bench.feed(bytes(response)), INVALID_FIELD, fei)


@pytest.mark.parametrize("kind", ["response", "data", "r2t"])
def test_a_bad_header_digest_ends_the_connection(kind: str) -> None:
    bench = Bench(**BOTH_DIGESTS)
    bench.queue.in_capsule_bytes = 0
    if kind == "data":
        stream = bytearray(c2h_data(bench.wire, bench.read(4096)[0], 0, bytes(4096)))
    elif kind == "r2t":
        stream = bytearray(r2t(bench.wire, bench.write(bytes(4096)), 1, 0, 4096))
    else:
        stream = bytearray(capsule_resp(bench.wire, bench.submit(0)))
    bench.take()
    stream[8] ^= 0x40
    (received,) = struct.unpack_from("<I", stream, 24)
    assert received != crc32c(bytes(stream[:24]))
    bench.assert_terminated(bench.feed(bytes(stream)), DIGEST, received)


def test_the_offending_header_is_returned() -> None:
    bench = Bench()
    bench.take()
    pdu = capsule_resp(bench.wire, 0x4242)
    assert bench.feed(pdu)[24:] == pdu


def test_a_term_req_from_the_controller() -> None:
    bench = Bench()
    bench.submit(0)
    bench.take()
    assert bench.feed(c2h_term_req(OUT_OF_RANGE, 16, b"header")) == b""
    assert bench.queue.state is State.CLOSED
    assert bench.queue.peer_failure == (OUT_OF_RANGE, 16, b"header")
    assert len(bench.queue.take_unfinished()) == 1


def test_input_after_the_end_is_ignored() -> None:
    bench = Bench()
    bench.feed(capsule_resp(bench.wire, 1))
    assert bench.feed(capsule_resp(bench.wire, 1) * 3) == b""
    bench.close()


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_command_without_an_answer_ends_the_connection() -> None:
    bench = Bench()
    bench.feed(capsule_resp(bench.wire, bench.submit(0)), now=100.0)
    bench.submit(12, deadline=float("inf"))
    late = bench.submit(2, deadline=130.0)
    bench.queue.tick(130.0)
    assert bench.queue.ready
    bench.queue.tick(130.1)
    assert bench.queue.state is State.CLOSED
    assert f"{late:#06x}" in bench.queue.stalled


def test_time_in_which_nobody_looked_is_not_counted() -> None:
    bench = Bench()
    bench.submit(2, deadline=30.0)
    bench.queue.postpone(100.0)
    bench.queue.tick(130.0)
    assert bench.queue.ready
    bench.queue.tick(130.1)
    assert bench.queue.stalled
    bench = Bench(ready=False, handshake_seconds=3.0)
    bench.queue.postpone(100.0)
    bench.queue.tick(102.9)
    assert not bench.queue.stalled


def test_the_handshake_is_bounded() -> None:
    bench = Bench(ready=False, handshake_seconds=3.0)
    bench.queue.tick(2.9)
    assert not bench.queue.stalled
    bench.queue.tick(3.1)
    assert bench.queue.stalled


def test_a_stalled_payload_is_bounded() -> None:
    bench = Bench()
    cid, _ = bench.read(1 << 20, deadline=1e9)
    bench.feed(c2h_data(bench.wire, cid, 0, bytes(1 << 20))[:100_000], now=1.0)
    bench.queue.tick(limits.PDU_SECONDS)
    assert not bench.queue.stalled
    bench.queue.tick(limits.PDU_SECONDS + 2.0)
    assert bench.queue.stalled


def test_waiting_for_the_close_after_a_term_req_is_bounded() -> None:
    bench = Bench()
    bench.feed(capsule_resp(bench.wire, 1))
    bench.queue.tick(limits.TERMINATE_SECONDS + 0.1)
    assert bench.queue.stalled


# --- buffers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, BOTH_DIGESTS])
@pytest.mark.parametrize("cut", [0, 10, 24, 5000, 100_000])
def test_forgotten_read_data_is_thrown_away(options: dict[str, bool], cut: int) -> None:
    """Also when it is forgotten while a payload is landing."""
    bench = Bench(**options)
    token = object()
    cid, buffer = bench.read(1 << 17, token=token)
    other, other_buffer = bench.read(4096)
    stream = c2h_data(bench.wire, cid, 0, b"\xaa" * (1 << 17), success=True)
    bench.feed(stream[:cut])
    bench.queue.forget(token)
    before = bytes(buffer)
    bench.feed(stream[cut:])
    bench.feed(c2h_data(bench.wire, other, 0, b"\xbb" * 4096, success=True))
    assert bytes(buffer) == before
    buffer.clear()
    assert other_buffer == b"\xbb" * 4096
    assert [request.cid for request in bench.completed()] == [cid, other]


def test_forgotten_write_data_is_sent_as_it_was() -> None:
    bench = Bench()
    bench.queue.in_capsule_bytes = 0
    token = object()
    data = bytearray(b"\xaa" * 8192)
    cid = bench.submit(WRITE, token, data_out=memoryview(data))
    bench.take()
    bench.queue.forget(token)
    data[:] = bytes(8192)
    data.clear()
    assert bench.feed(r2t(bench.wire, cid, 1, 0, 8192)) == bench.wire.h2c_data(cid, 1, 0, b"\xaa" * 8192, last=True)


@pytest.mark.parametrize("landing", [False, True])
def test_unfinished_commands_let_go_of_their_buffers(landing: bool) -> None:
    bench = Bench()
    cid, buffer = bench.read(1 << 17)
    stream = c2h_data(bench.wire, cid, 0, b"\xaa" * (1 << 17))
    bench.feed(stream[: 50_000 if landing else 0])
    before = bytes(buffer)
    requests = bench.queue.take_unfinished()
    assert [request.cid for request in requests] == [cid]
    del requests
    bench.feed(stream[50_000 if landing else 0 :][:1000])
    assert bytes(buffer) == before
    bench.close()
    buffer.clear()


def test_large_writes_are_not_copied() -> None:
    bench = Bench(maxh2cdata=1 << 20)
    data = bytearray(random.Random(5).randbytes(1 << 20))
    cid = bench.write(data)
    bench.take()
    buffer = bench.queue.get_buffer()
    request = r2t(bench.wire, cid, 1, 0, 1 << 20)
    buffer[: len(request)] = request
    bench.queue.received(len(request), 0.0)
    output = bench.queue.take_output()
    data[7] ^= 0xFF
    assert b"".join(output) == bench.wire.h2c_data(cid, 1, 0, bytes(data), last=True)


def test_large_reads_land_in_place() -> None:
    bench = Bench()
    cid, buffer = bench.read(1 << 20)
    header = c2h_data(bench.wire, cid, 0, bytes(1 << 20), success=True)[:24]
    bench.feed(header)
    landing = bench.queue.get_buffer()
    assert len(landing) == 1 << 20
    landing[:] = b"\x77" * (1 << 20)
    assert buffer == b"\x77" * (1 << 20)
    bench.queue.received(1 << 20, 0.0)
    assert bench.completed()[0].status == 0


# --- properties -------------------------------------------------------------------------------------------------------


def run_commands(bench: Bench, exchange: Callable[[bytes], bytes], rng: random.Random, size: int) -> None:
    """Write ranges, then read them back, up to 16 at a time; ``exchange`` carries bytes to the controller and back."""
    blocks = [rng.randbytes(size) for _ in range(12)]
    for phase in (WRITE, READ):
        buffers = {}
        output = b""
        for index, block in enumerate(blocks):
            buffer = bytearray(block) if phase == WRITE else bytearray(size)
            buffers[index] = buffer
            view: dict[str, Any] = {"data_out" if phase == WRITE else "data_in": memoryview(buffer)}
            bench.submit(phase, index, cdw10=index * size, cdw12=size, **view)
            if rng.random() < 0.5:
                output += bench.take()
        output += bench.take()
        bench_output = output
        for _ in range(100_000):
            incoming = exchange(bench_output)
            if not incoming and not bench.queue.requests:
                break
            step = rng.choice((0, 4096, len(incoming) // 50 + 1, len(incoming) < 4000))
            bench_output = bench.feed(incoming, step=step)
        assert bench.queue.failure is None
        assert sorted(request.token for request in bench.queue.completed) == list(range(len(blocks)))
        assert not any(request.status for request in bench.completed())
        assert [bytes(buffers[index]) for index in range(len(blocks))] == blocks


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1 << 32),
    digest=st.integers(0, 3),
    accepted=st.integers(0, 3),
    cpda=st.sampled_from([0, 1, 3, 31]),
    hpda=st.sampled_from([0, 1, 3, 31]),
    maxr2t=st.integers(0, 3),
    maxh2cdata=st.sampled_from([4096, 8192, 1 << 20]),
    success=st.booleans(),
    size=st.sampled_from([4, 512, 4096, 12288, 65536]),
    in_capsule=st.sampled_from([0, 4096, 8192]),
)
def test_any_controller(
    seed: int, digest: int, accepted: int, cpda: int, hpda: int, maxr2t: int, maxh2cdata: int, success: bool, size: int,
    in_capsule: int,
) -> None:  # fmt: skip
    rng = random.Random(seed)
    controller = WireController(rng, digest=accepted, cpda=cpda, maxh2cdata=maxh2cdata, success=success)
    bench = Bench(ready=False, header_digest=bool(digest & 1), data_digest=bool(digest & 2), hpda=hpda, maxr2t=maxr2t)
    controller.feed(bench.icreq)
    bench.feed(controller.step())
    bench.queue.capacity = 64
    bench.queue.in_capsule_bytes = in_capsule

    def exchange(output: bytes) -> bytes:
        controller.feed(output)
        incoming = b""
        for _ in range(rng.randrange(1, 6)):
            if not controller.idle:
                incoming += controller.step()
        return incoming

    run_commands(bench, exchange, rng, size)
    bench.close()


class MemorySink:
    """Executes reads and writes of our own TargetQueue."""

    def __init__(self) -> None:
        self.memory = bytearray(1 << 20)
        self.queue: TargetQueue

    def command(self, sqe: Sqe, data: memoryview | None) -> None:
        opcode, _, cid, _, _, length, _, offset, _, _, _, _, _ = sqe
        if opcode == READ:
            self.queue.send_bytes(cid, self.memory[offset : offset + length])
        elif data is None:
            self.queue.request(cid, length, offset)
        else:
            self.memory[offset : offset + length] = data
            self.queue.complete(cid)

    def payload(self, transfer: Transfer, view: memoryview) -> None:
        self.memory[transfer.context : transfer.context + len(view)] = view
        self.queue.complete(transfer.cid)
        self.queue.finish(transfer)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1 << 32),
    digest=st.integers(0, 3),
    cpda=st.sampled_from([0, 1, 3, 31]),
    hpda=st.sampled_from([0, 1, 3, 31]),
    size=st.sampled_from([4, 512, 4096, 12288, 65536]),
    in_capsule=st.sampled_from([0, 4096, 8192]),
    flow_control=st.booleans(),
)
def test_our_two_ends_understand_each_other(
    seed: int, digest: int, cpda: int, hpda: int, size: int, in_capsule: int, flow_control: bool
) -> None:
    rng = random.Random(seed)
    sink = MemorySink()
    pool = BufferPool()
    target = sink.queue = TargetQueue(sink, pool, 0.0, cpda=cpda)
    bench = Bench(ready=False, header_digest=bool(digest & 1), data_digest=bool(digest & 2), hpda=hpda)

    def exchange(output: bytes) -> bytes:
        incoming = b""
        while output:
            buffer = target.get_buffer()
            size = min(len(buffer), len(output), rng.choice((len(output) // 50 + 1, 1000, 1 << 20)))
            buffer[:size] = output[:size]
            output = output[size:]
            target.received(size, 0.0)
            incoming += b"".join(map(bytes, target.take_output()))
            target.drained()
        assert target.failure is None
        return incoming

    assert bench.feed(exchange(bench.icreq)) == b""
    target.set_queue(1, 64, flow_control=flow_control)
    bench.queue.capacity = 63
    bench.queue.in_capsule_bytes = in_capsule
    run_commands(bench, exchange, rng, size)
    bench.close()
    target.connection_lost()
    assert pool.leased == 0


def answers(bench: Bench, rng: random.Random) -> bytes:
    """A plausible mixture of answers to what is in flight, much of it wrong."""
    stream = b""
    cids = [*bench.queue.requests, rng.randrange(1 << 16)]
    for _ in range(rng.randrange(1, 12)):
        cid = rng.choice(cids)
        offset, length = rng.choice((0, 0, 512, 4096, 0xFFFF_FFFF)), rng.choice((0, 4, 512, 4096))
        kind = rng.randrange(6)
        if kind == 0:
            stream += capsule_resp(bench.wire, cid, status=rng.choice((0, 0, 0x4002, 0x281)))
        elif kind == 1:
            stream += r2t(bench.wire, cid, rng.randrange(1 << 16), offset, length)
        elif kind == 5:
            stream += rng.choice((c2h_term_req(1, 2, b"x"), icresp(), rng.randbytes(24)))
        else:
            stream += c2h_data(
                bench.wire, cid, offset, bytes(length), last=rng.random() < 0.7, success=rng.random() < 0.3
            )
    return stream


@settings(max_examples=300)
@given(
    seed=st.integers(0, 1 << 32), digest=st.integers(0, 3), flips=st.integers(0, 3), step=st.sampled_from([0, 1, 13])
)
def test_hostile_controller(seed: int, digest: int, flips: int, step: int) -> None:
    """Nothing but the queue's own verdict comes out of it, and a read that succeeds was complete."""
    rng = random.Random(seed)
    bench = Bench(header_digest=bool(digest & 1), data_digest=bool(digest & 2))
    bench.queue.in_capsule_bytes = rng.choice((0, 8192))
    for _ in range(8):
        bench.read(rng.choice((4, 512, 4096)), partial=rng.random() < 0.2)
        bench.write(bytes(rng.choice((4, 512, 4096))))
    bench.take()
    stream = bytearray(answers(bench, rng))
    for _ in range(flips):
        stream[rng.randrange(len(stream))] ^= 1 << rng.randrange(8)
    output = bench.feed(bytes(stream), step=step)
    for request in bench.completed():
        if not request.status and not request.partial:
            assert request.received == request.in_length
            assert request.asked == request.out_length
    if bench.queue.failure is not None:
        assert bench.queue.state is State.TERMINATING
        assert b"\x02\x00\x18\x00" in output
    bench.queue.tick(1000.0)
    bench.close()


@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    for ready in (False, True):
        bench = Bench(ready=ready)
        bench.feed(data)
        bench.close()
