"""The control socket: who may use it, what it refuses, and what becomes of requests that nobody waits for."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nvmeof.cli import pool_control
from nvmeof.cli.pool_control import ControlServer, ask, connect
from nvmeof.cli.pool_directory import PoolDirectory
from nvmeof.cli.pool_session import Session
from nvmeof.errors import NvmeofError, UsageError, WriteFault
from nvmeof.limits import CONTROL_BYTES_MAX, CONTROL_CONNECTIONS_MAX

LONG = "a" * 200


class Report:
    bad: dict[int, int] = {}
    lost = 0

    def to_json(self) -> dict[str, Any]:
        return {"stripes": 3}


class StandIn:
    """As much of a pool as the socket needs: a scrub that waits until it is told."""

    def __init__(self) -> None:
        self.state = "healthy"
        self.geometry = SimpleNamespace(segment_bytes=5, width=2)
        self.walks = SimpleNamespace(walk=None, jobs={})
        self.members: list[object] = []
        self.spares: list[object] = []
        self.namespaces: dict[int, object] = {}
        self.reader = SimpleNamespace(errors=[])
        self.health = SimpleNamespace(degraded=False, reason="")
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.stopped = asyncio.Event()
        self.error: Exception | None = None
        self.answer: dict[str, Any] = {"state": "healthy", "scrub": {"lost": 0}}

    def status(self) -> StandIn:
        if self.error is not None:
            raise self.error
        return self

    def to_json(self) -> dict[str, Any]:
        return self.answer

    async def scrub(self, rate: int | None, progress: Callable[[int, int], None] | None) -> Report:
        assert progress is not None
        progress(1, 2)
        walk = self.walks.walk = SimpleNamespace(stopped=False)
        self.begun.set()
        while not walk.stopped and not self.go.is_set():
            await asyncio.sleep(0.001)
        if walk.stopped:
            self.stopped.set()
        return Report()


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[tuple[PoolDirectory, StandIn]]:
    pool = StandIn()
    with PoolDirectory.open(path) as directory:
        async with ControlServer(Session(directory, cast("Any", pool))):
            yield directory, pool


def connected(directory: PoolDirectory) -> socket.socket:
    sock = connect(directory)
    assert sock is not None
    return sock


@pytest.mark.parametrize("depth", [0, 1])
async def test_an_answer(tmp_path: Path, depth: int) -> None:
    place = tmp_path.joinpath(*[LONG] * depth)
    place.mkdir(parents=True, exist_ok=True)
    async with listening(place) as (directory, _):
        answer = await ask(connected(directory), "status", {}, None)
        assert answer["directory"] == str(place)
        assert answer["healthy"]
        assert stat.S_IMODE((place / "control").stat().st_mode) == 0o600
    assert not (place / "control").exists()
    with PoolDirectory.open(place) as directory:
        assert connect(directory) is None


async def test_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    async with listening(tmp_path) as (directory, pool):
        pool.go.set()
        answer = await ask(connected(directory), "scrub", {}, lambda done, total: seen.append((done, total)))
    assert answer["stripes"] == 3
    assert answer["good"]
    assert seen == [(10, 20)]


async def test_who_hangs_up_ends_what_he_waited_for(tmp_path: Path) -> None:
    async with listening(tmp_path) as (directory, pool):
        sock = connected(directory)
        sock.setblocking(True)
        sock.sendall(b'{"operation": "scrub", "arguments": {}}\n')
        await pool.begun.wait()
        sock.close()
        await asyncio.wait_for(pool.stopped.wait(), 5)


async def test_a_server_that_ends_says_so(tmp_path: Path) -> None:
    async with listening(tmp_path) as (directory, pool):
        waiting = asyncio.ensure_future(ask(connected(directory), "scrub", {}, None))
        await pool.begun.wait()
    with pytest.raises(NvmeofError, match="the serving process is ending"):
        await waiting


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UsageError("role 7: got 7"), UsageError, "^role 7: got 7$"),
        (WriteFault("no"), NvmeofError, "^no$"),
        (OSError(28, "No space left on device"), NvmeofError, "^No space left on device$"),
        (ZeroDivisionError("odd"), NvmeofError, "internal error in the serving process: ZeroDivisionError"),
    ],
)
async def test_errors(tmp_path: Path, error: Exception, kind: type[Exception], message: str) -> None:
    async with listening(tmp_path) as (directory, pool):
        pool.error = error
        with pytest.raises(kind, match=message):
            await ask(connected(directory), "status", {}, None)
        pool.error = None
        assert (await ask(connected(directory), "status", {}, None))["healthy"]


async def test_an_answer_that_is_too_long(tmp_path: Path) -> None:
    async with listening(tmp_path) as (directory, pool):
        pool.answer |= {"what": "x" * CONTROL_BYTES_MAX}
        with pytest.raises(NvmeofError, match="the answer has"):
            await ask(connected(directory), "status", {}, None)


@pytest.mark.parametrize(
    "sent",
    [
        b"\n",
        b"status\n",
        b"[]\n",
        b"{}\n",
        b"\xff\xfe\n",
        b'{"operation": 1, "arguments": {}}\n',
        b'{"operation": "status"}\n',
        b'{"operation": "status", "arguments": []}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (CONTROL_BYTES_MAX + 100) + b"\n",
        b'{"operation": "bogus", "arguments": {}}\n',
        b'{"operation": "status", "arguments": {"a": 1}}\n',
        b'{"operation": "replace", "arguments": {"role": true}}\n',
        b'{"operation": "replace", "arguments": {"role": "1"}}\n',
        b'{"operation": "replace", "arguments": {}}\n',
        b'{"operation": "rotate-key", "arguments": {"kind": "hope", "value": "x"}}\n',
    ],
)
async def test_requests_that_are_none(tmp_path: Path, sent: bytes) -> None:
    async with listening(tmp_path) as (directory, _):
        reader, writer = await asyncio.open_unix_connection(sock=connected(directory))
        writer.write(sent)
        answer = json.loads(await reader.readline())
        assert answer["error"]["code"] == 64
        assert not await reader.read()
        writer.close()
        assert (await ask(connected(directory), "status", {}, None))["healthy"]


async def test_no_more_than_so_many(tmp_path: Path) -> None:
    async with listening(tmp_path) as (directory, _):
        socks = [connected(directory) for _ in range(CONTROL_CONNECTIONS_MAX)]
        await asyncio.sleep(0.1)
        with pytest.raises(NvmeofError, match="has 16 commands to do already; try again later"):
            await ask(connected(directory), "status", {}, None)
        for sock in socks:
            sock.close()
        await asyncio.sleep(0.1)
        assert (await ask(connected(directory), "status", {}, None))["healthy"]


async def test_nothing_is_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_control, "CONTROL_SECONDS", 0.05)
    async with listening(tmp_path) as (directory, _):
        reader, writer = await asyncio.open_unix_connection(sock=connected(directory))
        assert json.loads(await asyncio.wait_for(reader.readline(), 5))["error"]["code"] == 3
        writer.close()


async def test_a_socket_of_a_process_that_is_gone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control"))
    with PoolDirectory.open(tmp_path) as directory:
        assert connect(directory) is None
    async with listening(tmp_path) as (directory, _):
        assert (await ask(connected(directory), "status", {}, None))["healthy"]


async def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("mine")
    with pytest.raises(UsageError, match="control: is in the way"):
        async with listening(tmp_path):
            pass
    assert (tmp_path / "control").read_text() == "mine"


async def test_another_user_is_not_welcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(tmp_path) as (directory, _):
        sock = connected(directory)
        monkeypatch.setattr(pool_control, "_owners", lambda: {os.geteuid() + 1})
        with pytest.raises(NvmeofError, match="the serving process"):
            await ask(sock, "status", {}, None)
