"""The controller's queue pair, fed bytes: golden PDUs, every fatal error, any segmentation, hostile input."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof import limits
from nvmeof.protocol.states import State
from nvmeof.protocol.target_queue import Sqe, TargetQueue, Transfer
from nvmeof.transport.buffers import BufferPool
from tests.protocol import wire
from tests.protocol.wire import Wire

READ, WRITE = 2, 1
INVALID_FIELD, SEQUENCE, DIGEST, OUT_OF_RANGE, LIMIT, UNSUPPORTED = range(1, 7)


class MemorySink:
    """A sink over a bytearray: opcode 1 writes, 2 reads ``cdw12`` bytes at ``cdw10``, anything else succeeds."""

    def __init__(self, size: int = 1 << 21) -> None:
        self.memory = bytearray(size)
        self.commands: list[Sqe] = []
        self.queue: TargetQueue

    def command(self, sqe: Sqe, data: memoryview | None) -> None:
        self.commands.append(sqe)
        opcode, _, cid, _, _, length, sgl_id, offset, _, nbytes, _, _, _ = sqe
        if opcode == READ:
            self.queue.send_bytes(cid, self.memory[offset : offset + nbytes])
        elif opcode == WRITE and sgl_id == 0x5A:
            self.queue.request(cid, length, offset)
        elif opcode == WRITE:
            assert data is not None
            self.memory[offset : offset + len(data)] = data
            self.queue.complete(cid)
        else:
            self.queue.complete(cid)

    def payload(self, transfer: Transfer, view: memoryview) -> None:
        offset: int = transfer.context
        self.memory[offset : offset + len(view)] = view
        self.queue.complete(transfer.cid)
        self.queue.finish(transfer)


class Bench(wire.Bench):
    """A TargetQueue with its sink and pool; ``feed`` returns what the controller sends in answer."""

    queue: TargetQueue

    def __init__(self, *, digest: int = 0, hpda: int = 0, cpda: int = 0, ready: bool = True) -> None:
        self.pool = BufferPool()
        self.sink = MemorySink()
        self.queue = self.sink.queue = TargetQueue(self.sink, self.pool, 0.0, cpda=cpda)
        self.wire = Wire(bool(digest & 1), bool(digest & 2))
        if ready:
            self.icresp = self.feed(wire.icreq(digest=digest, hpda=hpda))
            self.queue.set_queue(1, 128, flow_control=True)
            self.queue.established()

    def pdus(self, data: bytes, step: int = 0) -> list[bytes]:
        return self.wire.split(self.feed(data, step))

    def fatal(self, data: bytes) -> tuple[int, int, bytes]:
        """The controller must answer with one C2HTermReq, ignore what follows and give everything back."""
        answer = wire.term_req(self.pdus(data)[-1])
        assert self.queue.state is State.TERMINATING
        assert self.feed(self.wire.capsule(wire.sqe(0, 1)) * 3) == b""
        self.queue.connection_lost()
        assert self.pool.leased == 0
        return answer


# --- golden PDUs -----------------------------------------------------------------------------------------------------


def test_icresp_is_figure_28() -> None:
    bench = Bench(digest=3)
    assert bench.icresp == bytes.fromhex("010080008000000000000003") + struct.pack("<I", 256 << 10) + bytes(112)


@pytest.mark.parametrize("digest", range(4))
def test_icresp_accepts_exactly_the_digests_asked_for(digest: int) -> None:
    assert Bench(digest=digest).icresp[11] == digest


def test_reserved_digest_bits_are_not_echoed() -> None:
    bench = Bench(ready=False)
    assert bench.feed(wire.icreq(digest=0xFF))[11] == 3


def test_response_capsule_is_figure_31() -> None:
    (pdu,) = Bench().pdus(Wire().capsule(wire.sqe(0, 0x1234)))
    assert pdu == bytes.fromhex("050018001800000000000000000000000100010034120000")


def test_response_capsule_with_header_digest() -> None:
    bench = Bench(digest=1)
    (pdu,) = bench.pdus(bench.wire.capsule(wire.sqe(0, 7)))
    assert pdu[:8] == bytes.fromhex("050118001c000000")
    bench.wire.check_header(pdu)


@pytest.mark.parametrize("digest", range(4))
@pytest.mark.parametrize("hpda", [0, 1, 7, 31])
def test_read_data_is_aligned_as_the_host_asked(digest: int, hpda: int) -> None:
    bench = Bench(digest=digest, hpda=hpda)
    dirty = bench.pool.lease()
    dirty[:] = b"\xee" * len(dirty)
    bench.pool.release(dirty)
    bench.sink.memory[:4096] = bytes(range(256)) * 16
    data, answer = bench.pdus(bench.wire.capsule(wire.sqe(READ, 3, sgl=(0, 4096, 0x5A), cdw12=4096)))
    assert bench.wire.data_of(data) == bytes(range(256)) * 16
    assert data[3] % (4 * (hpda + 1)) == 0
    assert not any(data[24 + 4 * (digest & 1) : data[3]]), "padding shows what the slab held before"
    assert data[3] < 24 + 4 + 4 * (hpda + 1)
    assert data[1] & (wire.LAST | wire.SUCCESS) == wire.LAST
    assert wire.response(answer)[4:] == (3, 0)


def test_success_flag_replaces_the_response_only_without_flow_control() -> None:
    bench = Bench()
    bench.queue.set_queue(1, 128, flow_control=False)
    bench.queue.established()
    (data,) = bench.pdus(bench.wire.capsule(wire.sqe(READ, 3, sgl=(0, 512, 0x5A), cdw12=512)))
    assert data[1] & (wire.LAST | wire.SUCCESS) == wire.LAST | wire.SUCCESS


def test_sqhd_counts_modulo_the_queue_size() -> None:
    bench = Bench()
    bench.queue.set_queue(1, 3, flow_control=True)
    pdus = bench.pdus(b"".join(bench.wire.capsule(wire.sqe(0, cid)) for cid in range(5)))
    assert [wire.response(pdu)[2] for pdu in pdus] == [1, 2, 0, 1, 2]


def test_sqhd_is_ffff_in_the_connect_response_without_flow_control_and_reserved_afterwards() -> None:
    bench = Bench()
    bench.queue.set_queue(1, 3, flow_control=False)
    bench.queue.complete(1)
    bench.queue.established()
    bench.queue.complete(2)
    assert [wire.response(pdu)[2] for pdu in bench.wire.split(bench.take())] == [0xFFFF, 0]


@pytest.mark.parametrize("digest", range(4))
def test_write_asks_with_one_r2t_and_takes_any_splitting(digest: int) -> None:
    bench = Bench(digest=digest)
    payload = bytes(i * 7 & 0xFF for i in range(20000))
    (r2t,) = bench.pdus(bench.wire.capsule(wire.sqe(WRITE, 9, sgl=(0, len(payload), 0x5A), cdw10=100)))
    bench.wire.check_header(r2t)
    kind, _, hlen, pdo, plen, cccid, ttag, offset, length = struct.unpack_from("<BBBBIHHII", r2t)
    assert (kind, hlen, pdo, plen) == (9, 24, 0, len(r2t))
    assert (cccid, offset, length) == (9, 0, len(payload))
    pieces = [(0, 4), (4, 4096), (4100, 12000), (16100, 3900)]
    stream = b"".join(
        bench.wire.h2c_data(9, ttag, at, payload[at : at + size], last=at + size == len(payload)) for at, size in pieces
    )
    (answer,) = bench.pdus(stream)
    assert wire.response(answer)[4:] == (9, 0)
    assert bench.sink.memory[100:20100] == payload


@pytest.mark.parametrize(("pieces", "leased"), [(1, False), (2, True)])
def test_a_transfer_of_one_pdu_is_delivered_from_the_scratch(pieces: int, leased: bool) -> None:
    bench = Bench()
    seen: list[bool] = []
    plain = bench.sink.payload

    def payload(transfer: Transfer, view: memoryview) -> None:
        seen.append(transfer.buffer is not None)
        plain(transfer, view)

    bench.sink.payload = payload  # type: ignore[method-assign]
    size = 131072
    bench.feed(bench.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, size, 0x5A))))
    part = size // pieces
    for at in range(0, size, part):
        bench.feed(bench.wire.h2c_data(5, 5, at, b"x" * part, last=at + part == size), step=50000)
    assert seen == [leased]
    assert bench.sink.memory[:size] == b"x" * size


# --- segmentation ----------------------------------------------------------------------------------------------------


def conversation(bench: Bench) -> bytes:
    """Everything a host may send, with payloads that do and do not fit into the scratch."""
    w = bench.wire
    small, large = bytes(range(256)) * 8, bytes(range(256)) * (limits.MAXH2CDATA_BYTES // 256)
    return b"".join(
        [
            w.capsule(wire.sqe(0, 1)),
            w.capsule(wire.sqe(WRITE, 2, sgl=(0, len(small), 1), cdw10=4096), small),
            w.capsule(wire.sqe(WRITE, 3, sgl=(0, len(small), 0x5A), cdw10=8192)),
            w.h2c_data(3, 3, 0, small[:1000], last=False),
            w.capsule(wire.sqe(READ, 4, sgl=(0, 2048, 0x5A), cdw10=4096, cdw12=2048)),
            w.h2c_data(3, 3, 1000, small[1000:], last=True),
            w.capsule(wire.sqe(WRITE, 5, sgl=(0, 2 * len(large), 0x5A), cdw10=65536)),
            w.h2c_data(5, 5, 0, large, last=False),
            w.h2c_data(5, 5, len(large), large, last=True),
            w.capsule(wire.sqe(READ, 6, sgl=(0, 512, 0x5A), cdw10=65536, cdw12=512)),
        ]
    )


@pytest.mark.parametrize(
    ("digest", "step"),
    [(3, 1), (3, 7), *((d, s) for d in range(4) for s in (73, 1000, 65536))],
)
def test_any_segmentation_gives_the_same_answers(digest: int, step: int) -> None:
    whole = Bench(digest=digest)
    expected = whole.feed(conversation(whole))
    bench = Bench(digest=digest)
    assert bench.feed(conversation(bench), step) == expected
    assert bench.sink.memory == whole.sink.memory
    bench.queue.connection_lost()
    assert bench.pool.leased == 0


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(digest=st.integers(0, 3), cuts=st.lists(st.integers(1, 70000), min_size=1, max_size=40))
def test_random_segmentation_gives_the_same_answers(digest: int, cuts: list[int]) -> None:
    whole = Bench(digest=digest)
    stream = conversation(whole)
    expected = whole.feed(stream)
    bench, output, at = Bench(digest=digest), b"", 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        output += bench.feed(stream[at : at + size])
        at += size
    assert output == expected
    assert bench.sink.memory == whole.sink.memory


# --- fatal errors: status, field and the returned header -------------------------------------------------------------


def test_command_before_icreq_is_a_sequence_error() -> None:
    bench = Bench(ready=False)
    capsule = Wire().capsule(wire.sqe(0, 1))
    assert bench.fatal(capsule) == (SEQUENCE, 0, capsule[:72])


def test_second_icreq_is_a_sequence_error() -> None:
    assert Bench().fatal(wire.icreq())[:2] == (SEQUENCE, 0)


@pytest.mark.parametrize("kind", [1, 3, 5, 7, 8, 9, 10, 255])
def test_pdu_types_a_controller_never_receives(kind: int) -> None:
    pdu = struct.pack("<BBBBI", kind, 0, 24, 0, 24) + bytes(16)
    assert Bench().fatal(pdu) == (INVALID_FIELD, 0, pdu)


@pytest.mark.parametrize(
    ("request_pdu", "fes", "fei"),
    [
        (wire.icreq(pfv=1), UNSUPPORTED, 8),
        (wire.icreq(hpda=32), INVALID_FIELD, 10),
        (wire.icreq(hlen=127), INVALID_FIELD, 2),
        (wire.icreq(plen=129), INVALID_FIELD, 4),
    ],
)
def test_bad_icreq(request_pdu: bytes, fes: int, fei: int) -> None:
    assert Bench(ready=False).fatal(request_pdu)[:2] == (fes, fei)


def test_hpda_at_the_limit_is_accepted() -> None:
    assert Bench(ready=False).feed(wire.icreq(hpda=31))[0] == 1


@pytest.mark.parametrize("plen", [0, 8, 71, 72 + 4 + 124 + limits.IN_CAPSULE_BYTES + 5, 0xFFFFFFFF])
def test_capsule_length_out_of_bounds(plen: int) -> None:
    pdu = struct.pack("<BBBBI", 4, 0, 72, 0, plen) + wire.sqe(0, 1)
    assert Bench().fatal(pdu) == (INVALID_FIELD, 4, pdu)


def test_in_capsule_data_at_and_above_the_limit() -> None:
    bench = Bench()
    at = bytes(limits.IN_CAPSULE_BYTES)
    (answer,) = bench.pdus(bench.wire.capsule(wire.sqe(WRITE, 1, sgl=(0, len(at), 1)), at))
    assert wire.response(answer)[5] == 0
    assert Bench().fatal(bench.wire.capsule(wire.sqe(WRITE, 1, sgl=(0, 0, 1)), at + b"1234"))[:2] == (INVALID_FIELD, 4)


@pytest.mark.parametrize("pdo", [0, 71, 73, 74, 75])
def test_capsule_data_offset_wrong(pdo: int) -> None:
    pdu = struct.pack("<BBBBI", 4, 0, 72, pdo, 72 + 64) + wire.sqe(WRITE, 1) + bytes(64)
    assert Bench().fatal(pdu)[:2] == (INVALID_FIELD, 3)


def test_capsule_data_may_be_padded() -> None:
    bench = Bench()
    (answer,) = bench.pdus(bench.wire.capsule(wire.sqe(WRITE, 1, sgl=(0, 16, 1)), b"0123456789abcdef", pad=56))
    assert wire.response(answer)[5] == 0
    assert bench.sink.memory[:16] == b"0123456789abcdef"


def test_cpda_demands_its_alignment() -> None:
    bench = Bench(cpda=3)
    assert bench.icresp[10] == 3
    (answer,) = bench.pdus(bench.wire.capsule(wire.sqe(WRITE, 1, sgl=(0, 4, 1)), b"data", pad=8))
    assert wire.response(answer)[5] == 0
    assert bench.fatal(bench.wire.capsule(wire.sqe(WRITE, 1, sgl=(0, 4, 1)), b"data"))[:2] == (INVALID_FIELD, 3)


def test_header_digest_error_reports_the_digest_received() -> None:
    bench = Bench(digest=1)
    pdu = bytearray(bench.wire.capsule(wire.sqe(0, 1)))
    pdu[10] ^= 1
    (received,) = struct.unpack_from("<I", pdu, 72)
    assert bench.fatal(bytes(pdu)) == (DIGEST, received, bytes(pdu[:72]))


def test_header_digest_flag_must_be_set() -> None:
    bench = Bench(digest=1)
    header = struct.pack("<BBBBI", 4, 0, 72, 0, 76) + wire.sqe(0, 1)
    assert bench.fatal(bench.wire.seal(header))[:2] == (INVALID_FIELD, 1)


@pytest.mark.parametrize("digest", [0, 1])
@pytest.mark.parametrize("position", [1, 5])
@pytest.mark.parametrize(
    ("offset", "error"), [(0, (INVALID_FIELD, 0)), (2, (INVALID_FIELD, 2)), (7, (INVALID_FIELD, 4)), (12, None)]
)
def test_one_bad_capsule_among_many(digest: int, position: int, offset: int, error: tuple[int, int] | None) -> None:
    """Those before it are answered, it is the one that is returned, and those behind it are never looked at."""
    bench = Bench(digest=digest)
    capsules = [bytearray(bench.wire.capsule(wire.sqe(0, cid))) for cid in range(8)]
    bad = capsules[position]
    bad[offset] ^= 0xF0
    if error is None and not digest:
        assert [wire.response(pdu)[4] for pdu in bench.pdus(b"".join(capsules))] == list(range(8))
        return
    *answers, last = bench.pdus(b"".join(capsules))
    assert [wire.response(pdu)[4] for pdu in answers] == list(range(position))
    assert [sqe[2] for sqe in bench.sink.commands] == list(range(position))
    received = struct.unpack_from("<I", bad, 72)[0] if digest else 0
    fes, fei, header = wire.term_req(last)
    assert (fes, fei) == (error or (DIGEST, received))
    assert header
    assert b"".join(capsules[position:]).startswith(header)


@pytest.mark.parametrize("digest", [0, 1])
def test_an_overflow_returns_the_capsule_that_caused_it(digest: int) -> None:
    bench = Bench(digest=digest)
    capsules = [bench.wire.capsule(wire.sqe(0, cid)) for cid in range(6)]
    execute = bench.sink.command

    def command(sqe: Sqe, data: memoryview | None) -> None:
        if sqe[2] == 4:
            raise bench.queue.overflow()
        execute(sqe, data)

    bench.sink.command = command  # type: ignore[method-assign]
    assert bench.fatal(b"".join(capsules)) == (SEQUENCE, 0, capsules[4][:72])
    assert len(bench.sink.commands) == 4


@pytest.mark.parametrize("digest", [0, 1])
def test_capsules_behind_the_one_that_closes_the_queue_are_not_executed(digest: int) -> None:
    bench = Bench(digest=digest)
    execute = bench.sink.command

    def command(sqe: Sqe, data: memoryview | None) -> None:
        execute(sqe, data)
        if sqe[2] == 2:
            bench.queue.close()

    bench.sink.command = command  # type: ignore[method-assign]
    bench.feed(b"".join(bench.wire.capsule(wire.sqe(0, cid)) for cid in range(6)))
    assert len(bench.sink.commands) == 3


def asked(bench: Bench, length: int = 8192, cid: int = 5) -> Wire:
    bench.pdus(bench.wire.capsule(wire.sqe(WRITE, cid, sgl=(0, length, 0x5A))))
    return bench.wire


@pytest.mark.parametrize(
    ("pdu", "fes", "fei"),
    [
        (Wire().h2c_data(5, 6, 0, bytes(512), last=False), INVALID_FIELD, 10),
        (Wire().h2c_data(6, 5, 0, bytes(512), last=False), INVALID_FIELD, 8),
        (Wire().h2c_data(5, 5, 512, bytes(512), last=False), OUT_OF_RANGE, 12),
        (Wire().h2c_data(5, 5, 0, bytes(8193), last=True), OUT_OF_RANGE, 16),
        (Wire().h2c_data(5, 5, 0, bytes(8192), last=False), INVALID_FIELD, 1),
        (Wire().h2c_data(5, 5, 0, bytes(512), last=True), INVALID_FIELD, 1),
        (struct.pack("<BBBBIHHII4x", 6, 0, 24, 24, 24, 5, 5, 0, 0), INVALID_FIELD, 16),
        (struct.pack("<BBBBIHHII4x", 6, 0, 25, 24, 536, 5, 5, 0, 512), INVALID_FIELD, 2),
        (struct.pack("<BBBBIHHII4x", 6, 0, 24, 20, 532, 5, 5, 0, 512), INVALID_FIELD, 3),
        (struct.pack("<BBBBIHHII4x", 6, 0, 24, 26, 538, 5, 5, 0, 512), INVALID_FIELD, 3),
        (struct.pack("<BBBBIHHII4x", 6, 0, 24, 24, 535, 5, 5, 0, 512), INVALID_FIELD, 4),
        (struct.pack("<BBBBIHHII4x", 6, 2, 24, 24, 540, 5, 5, 0, 512), INVALID_FIELD, 1),
    ],
)
def test_bad_h2c_data(pdu: bytes, fes: int, fei: int) -> None:
    bench = Bench()
    asked(bench)
    assert bench.fatal(pdu) == (fes, fei, pdu[:24])


def test_data_after_the_last_is_refused() -> None:
    bench = Bench()
    w = asked(bench)
    bench.feed(w.h2c_data(5, 5, 0, bytes(8192), last=True))
    assert bench.fatal(w.h2c_data(5, 5, 0, bytes(8192), last=True))[:2] == (INVALID_FIELD, 10)


@pytest.mark.parametrize(("size", "accepted"), [(-1, True), (0, True), (4, False)])
def test_maxh2cdata(size: int, accepted: bool) -> None:
    bench = Bench()
    w = asked(bench, limits.MDTS_BYTES)
    pdu = w.h2c_data(5, 5, 0, bytes(limits.MAXH2CDATA_BYTES + size), last=False)
    if accepted:
        assert bench.feed(pdu) == b""
    else:
        assert bench.fatal(pdu)[:2] == (LIMIT, 16)


# --- what fails one command only -------------------------------------------------------------------------------------


def test_data_digest_error_in_a_capsule_fails_that_command_alone() -> None:
    bench = Bench(digest=2)
    bad = bytearray(bench.wire.capsule(wire.sqe(WRITE, 1, sgl=(0, 512, 1)), bytes(512)))
    bad[100] ^= 1
    first, second = bench.pdus(bytes(bad) + bench.wire.capsule(wire.sqe(0, 2)))
    assert wire.response(first)[4:] == (1, 0x22)
    assert wire.response(second)[4:] == (2, 0)
    assert not any(bench.sink.memory)


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("pieces", [1, 2])
def test_data_digest_error_in_h2c_data_fails_that_command_alone(step: int, pieces: int) -> None:
    bench = Bench(digest=2)
    w = asked(bench, 1024)
    size = 1024 // pieces
    good = [w.h2c_data(5, 5, at, b"x" * size, last=at + size == 1024) for at in range(0, 1024, size)]
    bad = bytearray(good[0])
    bad[30] ^= 0x80
    first, second = bench.pdus(bytes(bad) + b"".join(good[1:]) + w.capsule(wire.sqe(0, 2)), step)
    assert wire.response(first)[4:] == (5, 0x22)
    assert wire.response(second)[4:] == (2, 0)
    assert not any(bench.sink.memory)


# --- limits and time -------------------------------------------------------------------------------------------------


def test_no_more_is_asked_for_than_the_connection_may_hold() -> None:
    bench = Bench()
    count = limits.R2T_BYTES_MAX // limits.MDTS_BYTES + 2
    sqes = [bench.wire.capsule(wire.sqe(WRITE, cid, sgl=(0, limits.MDTS_BYTES, 0x5A))) for cid in range(count)]
    assert len(bench.pdus(b"".join(sqes))) == count - 2
    half = bytes(limits.MAXH2CDATA_BYTES)
    stream = b"".join(
        bench.wire.h2c_data(0, 0, at, half, last=at + len(half) == limits.MDTS_BYTES)
        for at in range(0, limits.MDTS_BYTES, len(half))
    )
    answer, r2t = bench.pdus(stream)
    assert wire.response(answer)[4] == 0
    assert r2t[0] == 9
    assert struct.unpack_from("<H", r2t, 8)[0] == count - 2


def test_unsent_output_stops_commands_until_it_drains() -> None:
    bench = Bench()
    reads = b"".join(
        bench.wire.capsule(wire.sqe(READ, cid, sgl=(0, limits.MDTS_BYTES, 0x5A), cdw12=limits.MDTS_BYTES))
        for cid in range(20)
    )
    buffer = bench.queue.get_buffer()
    buffer[: len(reads)] = reads
    bench.queue.received(len(reads), 0.0)
    assert bench.queue.blocked
    assert len(bench.sink.commands) == limits.OUTPUT_BYTES_MAX // limits.MDTS_BYTES
    total = 0
    while bench.queue.blocked:
        total += len(bench.take())
        bench.queue.resume()
    total += len(bench.take())
    assert len(bench.sink.commands) == 20
    assert total == 20 * (24 + limits.MDTS_BYTES + 24)


def test_data_still_comes_in_while_commands_wait_for_output() -> None:
    bench = Bench()
    w = asked(bench)
    bench.queue.hold(limits.OUTPUT_BYTES_MAX)
    (answer,) = bench.pdus(w.h2c_data(5, 5, 0, bytes(8192), last=True))
    assert wire.response(answer)[4:] == (5, 0)


@pytest.mark.parametrize("late", [False, True])
def test_connect_must_come_in_time(late: bool) -> None:
    bench = Bench(ready=False)
    bench.feed(wire.icreq())
    bench.queue.tick(limits.HANDSHAKE_SECONDS + (0.1 if late else -0.1))
    assert bool(bench.queue.stalled) is late


@pytest.mark.parametrize("size", [3, 40, 71, 200])
def test_a_pdu_must_be_completed_in_time(size: int) -> None:
    bench = Bench()
    bench.feed(bench.wire.capsule(wire.sqe(WRITE, 1, sgl=(0, 4096, 1)), bytes(4096))[:size], now=100.0)
    bench.queue.tick(100.0 + limits.PDU_SECONDS - 0.1)
    assert not bench.queue.stalled
    bench.queue.tick(100.0 + limits.PDU_SECONDS + 0.1)
    assert bench.queue.stalled
    bench.queue.connection_lost()
    assert bench.pool.leased == 0


def test_a_trickle_does_not_extend_the_time_of_a_pdu() -> None:
    bench = Bench()
    bench.feed(bench.wire.capsule(wire.sqe(0, 1))[:40], now=100.0)
    bench.feed(b"x", now=100.0 + limits.PDU_SECONDS - 1)
    bench.queue.tick(100.0 + limits.PDU_SECONDS + 0.1)
    assert bench.queue.stalled


def test_data_asked_for_must_come_in_time() -> None:
    bench = Bench()
    asked(bench)
    bench.queue.tick(limits.PDU_SECONDS - 0.1)
    assert not bench.queue.stalled
    bench.queue.tick(limits.PDU_SECONDS + 0.1)
    assert bench.queue.stalled


def test_output_must_be_taken_in_time() -> None:
    bench = Bench()
    bench.queue.complete(1)
    assert bench.queue.take_output()
    bench.queue.tick(limits.OUTPUT_SECONDS + 0.1)
    assert bench.queue.stalled


def test_an_idle_connection_has_no_time_limit() -> None:
    bench = Bench()
    bench.feed(bench.wire.capsule(wire.sqe(0, 1)), now=5.0)
    bench.queue.tick(1e9)
    assert not bench.queue.stalled


def test_terminating_ends_in_time() -> None:
    bench = Bench()
    bench.feed(wire.icreq())
    states = []
    for early in (0.1, -0.1):
        bench.queue.tick(limits.TERMINATE_SECONDS - early)
        states.append(bench.queue.state)
    assert states == [State.TERMINATING, State.CLOSED]


@pytest.mark.parametrize("plen", [24, 96, 152, 153, 23])
def test_h2c_term_req_closes(plen: int) -> None:
    bench = Bench()
    pdu = struct.pack("<BBBBIHI10x", 2, 0, 24, 0, plen, 3, 0xCAFE0001).ljust(plen, b"h")[:plen]
    assert bench.feed(pdu + bench.wire.capsule(wire.sqe(0, 1))) == b""
    assert bench.queue.state is State.CLOSED
    if 24 <= plen <= 152:
        assert bench.queue.peer_failure == (3, 0xCAFE0001, b"h" * (plen - 24))


def test_aborting_a_transfer_that_was_not_asked_for_yet_completes_it_at_once() -> None:
    bench = Bench()
    count = limits.R2T_BYTES_MAX // limits.MDTS_BYTES + 1
    for cid in range(count):
        bench.feed(bench.wire.capsule(wire.sqe(WRITE, cid, sgl=(0, limits.MDTS_BYTES, 0x5A))))
    assert bench.queue.abort_transfer(count - 1)
    assert wire.response(bench.take())[4:] == (count - 1, 7)
    assert not bench.queue.abort_transfer(count - 1)


def test_aborting_a_transfer_that_was_asked_for_completes_it_when_its_data_came() -> None:
    bench = Bench()
    w = asked(bench)
    assert bench.queue.abort_transfer(5)
    assert bench.take() == b""
    (answer,) = bench.pdus(w.h2c_data(5, 5, 0, b"x" * 8192, last=True))
    assert wire.response(answer)[4:] == (5, 7)
    assert not any(bench.sink.memory)


# --- hostile input: only our own protocol error, and everything is given back ----------------------------------------


@st.composite
def hostile_streams(draw: Any) -> tuple[int, bytes]:
    """A legal conversation with bytes changed, cut or inserted."""
    digest = draw(st.integers(0, 3))
    w = Wire(bool(digest & 1), bool(digest & 2))
    pieces = [
        w.capsule(wire.sqe(0, 1)),
        w.capsule(wire.sqe(WRITE, 2, sgl=(0, 512, 1)), bytes(512)),
        w.capsule(wire.sqe(WRITE, 3, sgl=(0, 1024, 0x5A))),
        w.h2c_data(3, 3, 0, bytes(500), last=False),
        w.h2c_data(3, 3, 500, bytes(524), last=True),
        w.capsule(wire.sqe(READ, 4, sgl=(0, 512, 0x5A), cdw12=512)),
    ]
    stream = bytearray(b"".join(draw(st.permutations(pieces)) if draw(st.booleans()) else pieces))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(stream) - 1))
        match draw(st.integers(0, 2)):
            case 0:
                stream[at] = draw(st.integers(0, 255))
            case 1:
                del stream[at : at + draw(st.integers(1, 40))]
            case _:
                stream[at:at] = draw(st.binary(max_size=40))
        if not stream:
            break
    return digest, bytes(stream)


@settings(max_examples=400, deadline=None)
@given(hostile=hostile_streams(), step=st.sampled_from([0, 1, 13, 100]))
def test_hostile_streams_end_in_answers_or_a_term_req(hostile: tuple[int, bytes], step: int) -> None:
    digest, stream = hostile
    bench = Bench(digest=digest)

    def command(sqe: Sqe, data: memoryview | None) -> None:
        bench.queue.complete(sqe[2])

    bench.sink.command = command  # type: ignore[method-assign]
    for pdu in bench.pdus(stream, step):
        assert pdu[0] in (3, 5, 7, 9)
    bench.queue.connection_lost()
    assert bench.pool.leased == 0


@settings(max_examples=300, deadline=None)
@given(stream=st.binary(max_size=600), ready=st.booleans())
def test_garbage_never_escapes_the_core(stream: bytes, ready: bool) -> None:
    bench = Bench(ready=ready)
    bench.feed(stream)
    bench.queue.connection_lost()
    assert bench.pool.leased == 0
