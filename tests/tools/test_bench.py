"""The load generators of tools/bench: that they count right and notice what is wrong, not how fast anything is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.pdu import DATA_PDU, DataPdu, PduFlag, PduType
from tools.benchmark.load import ByteFeed, CountingLoad, Feed, Load, ParsingLoad, PieceFeed, Shape
from tools.benchmark.nvme import NvmeRun, response_shape
from tools.benchmark.servers import NQN, Place, Server, target
from tools.benchmark.wire import BenchError, Digests, digest, h2c_header
from tools.benchmark.workload import KIB, MIB, Result, Workload, plan, result

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BOTH = Digests(header=True, data=True)
SPLITS = st.lists(st.integers(1, 9000), min_size=1, max_size=40)
needs_target = pytest.mark.skipif(not (ROOT / "nvmeof" / "__main__.py").exists(), reason="there is no nvmeof serve")


class ScriptedSocket:
    """Gives out ``stream`` in pieces of the sizes in ``splits``, over and over, and keeps what is sent."""

    def __init__(self, stream: bytes, splits: list[int]) -> None:
        self.stream = stream
        self.splits = splits
        self.sent = bytearray()
        self.turn = 0

    def recv_into(self, view: memoryview) -> int:
        size = min(self.splits[self.turn % len(self.splits)], len(view), len(self.stream))
        self.turn += 1
        view[:size] = self.stream[:size]
        self.stream = self.stream[size:]
        return size

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def sendmsg(self, pieces: list[bytes]) -> int:
        """Half of it at most, as a busy kernel may."""
        data = b"".join(pieces)
        accepted = len(data) // 2 + 1 if data else 0
        self.sent += data[:accepted]
        return accepted


class NullFeed:
    """Counts what is asked for."""

    def __init__(self) -> None:
        self.issued = 0
        self.ahead = bytearray()

    def send(self, count: int, ahead: list[Any]) -> None:
        self.issued += count
        self.ahead += b"".join(ahead)


def as_socket(scripted: ScriptedSocket) -> socket.socket:
    return cast(socket.socket, scripted)


def completions(load: Load, scripted: ScriptedSocket) -> int:
    """Let the load take the whole stream."""
    total = 0
    while scripted.stream:
        total += load._turn()
    return total


def c2h_data(cid: int, data: bytes, flags: PduFlag, digests: Digests) -> bytes:
    pdo = 28 if digests.header else 24
    plen = pdo + len(data) + (4 if digests.data else 0)
    header = DATA_PDU.encode(DataPdu(PduType.C2H_DATA, flags, 24, pdo, plen, cid, 0, 0, len(data)))
    header += digest(header) if digests.header else b""
    return header + data + (digest(data) if digests.data else b"")


def response(cid: int, status: int, digests: Digests) -> bytes:
    size = 28 if digests.header else 24
    pdu = bytes([PduType.CAPSULE_RESP, 0, 24, 0, size, 0, 0, 0]) + bytes(12) + cid.to_bytes(2, "little")
    pdu += (status << 1).to_bytes(2, "little")
    return pdu + (digest(pdu) if digests.header else b"")


@pytest.mark.parametrize("digests", [Digests(), BOTH])
@given(splits=SPLITS)
def test_counting_finds_every_completion_however_it_is_cut(digests: Digests, splits: list[int]) -> None:
    scripted = ScriptedSocket(b"".join(response(cid, 0, digests) for cid in range(300)), splits)
    load = CountingLoad(as_socket(scripted), NullFeed(), 1, response_shape(digests))
    assert completions(load, scripted) == 300


@given(splits=SPLITS, bad=st.integers(0, 99), status=st.sampled_from([0x02, 0x80, 0x100, 0x4002, 0x286]))
def test_counting_notices_one_bad_status(splits: list[int], bad: int, status: int) -> None:
    stream = b"".join(response(cid, status if cid == bad else 0, Digests()) for cid in range(100))
    scripted = ScriptedSocket(stream, splits)
    load = CountingLoad(as_socket(scripted), NullFeed(), 1, response_shape(Digests()))
    with pytest.raises(BenchError, match="error status"):
        completions(load, scripted)


@given(splits=SPLITS)
def test_counting_notices_a_completion_of_another_size(splits: list[int]) -> None:
    data = c2h_data(1, bytes(512), PduFlag.LAST | PduFlag.SUCCESS, Digests())
    scripted = ScriptedSocket(data * 3 + response(1, 2, Digests()) + data * 3, splits)
    load = CountingLoad(as_socket(scripted), NullFeed(), 1, Shape(len(data), ((0, b"\x07"),)))
    with pytest.raises(BenchError):
        completions(load, scripted)


@pytest.mark.parametrize("digests", [Digests(), BOTH])
@given(splits=SPLITS)
def test_parsing_counts_data_with_success_and_responses(digests: Digests, splits: list[int]) -> None:
    success = PduFlag.LAST | PduFlag.SUCCESS
    one = c2h_data(1, bytes(3000), PduFlag(0), digests) + c2h_data(1, bytes(70), success, digests)
    two = c2h_data(2, bytes(5000), PduFlag.LAST, digests) + response(2, 0, digests)
    scripted = ScriptedSocket((one + two) * 10, splits)
    load = ParsingLoad(as_socket(scripted), NullFeed(), 1, digests)
    assert completions(load, scripted) == 20


def test_parsing_counts_a_read_only_when_its_last_byte_has_come() -> None:
    pdu = c2h_data(1, bytes(5000), PduFlag.LAST | PduFlag.SUCCESS, Digests())
    scripted = ScriptedSocket(pdu, [len(pdu) - 1, 1])
    load = ParsingLoad(as_socket(scripted), NullFeed(), 1, Digests())
    assert [load._turn(), load._turn()] == [0, 1]


@pytest.mark.parametrize("digests", [Digests(), BOTH])
@given(splits=SPLITS)
def test_parsing_answers_r2t_within_the_limit(digests: Digests, splits: list[int]) -> None:
    payload = bytes(range(256)) * 40
    size = 28 if digests.header else 24
    ask = DATA_PDU.encode(DataPdu(PduType.R2T, 0, 24, 0, size, 7, 9, 0, len(payload)))
    ask += digest(ask) if digests.header else b""
    scripted = ScriptedSocket((ask + response(7, 0, digests)) * 3, splits)
    load = ParsingLoad(as_socket(scripted), NullFeed(), 1, digests, payload, 4096)
    assert completions(load, scripted) == 3
    expected = b""
    for start in range(0, len(payload), 4096):
        piece = payload[start : start + 4096]
        expected += h2c_header(7, 9, start, len(piece), start + len(piece) == len(payload), digests) + piece
        expected += digest(piece) if digests.data else b""
    assert b"".join(load._ahead) == expected * 3


@pytest.mark.parametrize("pdu", [response(1, 2, Digests()), bytes([PduType.C2H_TERM_REQ, 0, 24, 0, 24]) + bytes(19)])
def test_parsing_notices_errors(pdu: bytes) -> None:
    scripted = ScriptedSocket(pdu, [9000])
    with pytest.raises(BenchError):
        ParsingLoad(as_socket(scripted), NullFeed(), 1, Digests())._turn()


def test_closed_connection_is_an_error() -> None:
    load = ParsingLoad(as_socket(ScriptedSocket(b"", [1])), NullFeed(), 1, Digests())
    with pytest.raises(BenchError, match="closed"):
        load.run(1.0)


@pytest.mark.parametrize("counts", [[3, 1, 2, 3, 3, 1], [1] * 9])
def test_feeds_repeat_their_commands_in_order(counts: list[int]) -> None:
    commands = [bytes([index]) * 8 for index in range(5)]
    scripted = ScriptedSocket(b"", [1])
    feeds: list[tuple[Feed, bytes]] = [
        (ByteFeed(as_socket(scripted), b"".join(commands), 8, 3), b""),
        (PieceFeed(as_socket(scripted), commands, b"payload", 3), b"payload"),
    ]
    for feed, payload in feeds:
        scripted.sent.clear()
        for count in counts:
            feed.send(count, [b"ahead"])
        number = 0
        expected = b""
        for count in counts:
            expected += b"ahead"
            for _ in range(count):
                expected += commands[number % 5] + payload
                number += 1
        assert scripted.sent == expected
        assert feed.issued == sum(counts)


def test_names_of_the_plan_are_distinct() -> None:
    names = [workload.name for workload in plan()]
    assert len(set(names)) == len(names) == 14
    assert [workload.name for workload in plan("1m-")] == ["1m-read-qd8", "1m-write-qd8"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with target(Place(tmp_path_factory.mktemp("bench"), None, 16 * MIB)) as running:
        yield running


@needs_target
@pytest.mark.parametrize(
    "digests",
    [
        Digests(),
        pytest.param(Digests(header=True), marks=pytest.mark.slow),
        pytest.param(Digests(data=True), marks=pytest.mark.slow),
        BOTH,
    ],
)
@pytest.mark.parametrize(
    ("write", "block", "depth"),
    [(False, 4 * KIB, 1), (False, 4 * KIB, 32), (False, 128 * KIB, 4), (False, MIB, 2), (True, 4 * KIB, 1),
     (True, 4 * KIB, 32), (True, 128 * KIB, 4), (True, MIB, 2)],
)  # fmt: skip
def test_against_the_target(server: Server, write: bool, block: int, depth: int, digests: Digests) -> None:
    workload = Workload(write, block < MIB, block, depth, digests)
    image = None if write else server.image
    tally, _spent = NvmeRun(server.address, NQN, workload, 16 * MIB, image).measure(30.0, commands=40)
    measured: Result = result(workload, tally)
    assert tally.completed >= 40
    assert measured.iops > 0


@pytest.mark.slow
@needs_target
def test_command_line(tmp_path: Path) -> None:
    options = "--only 4k-randread-qd1 --seconds 0.02 --repeats 1 --size 16m --idle-seconds 0 --cpus none --json"
    command = [str(ROOT / "tools" / "bench"), "target", *options.split(), "--peers", "", "--scratch", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHON": sys.executable}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    found = {(row["workload"], row["subject"]) for row in report["results"]}
    assert {("4k-randread-qd1", "nvmeof"), ("4k-randread-qd128", "null")} <= found
    assert report["errors"] == []


@pytest.mark.parametrize("arguments", ["--repeats 2", "--size 0", "--peers nobody", "--only nothing", "load nowhere"])
def test_bad_arguments_are_refused(arguments: str) -> None:
    done = subprocess.run(
        [str(ROOT / "tools" / "bench"), *arguments.split()],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHON": sys.executable}, timeout=60,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
