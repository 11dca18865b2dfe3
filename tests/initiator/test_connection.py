"""Dialling, the handshake, and every way a connection can end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from nvmeof.errors import TransportError, UsageError
from nvmeof.initiator.connection import Connection, dial
from nvmeof.initiator.options import ConnectOptions, Options
from nvmeof.initiator.url import Url
from nvmeof.protocol.host_request import Request
from nvmeof.transport.buffers import BufferPool
from tests.protocol.wire import Wire
from tests.protocol.wire_controller import c2h_term_req, capsule_resp, icresp

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script, host: str = "127.0.0.1") -> AsyncIterator[Url]:
    """A server that runs ``script`` for each connection; the URL names it."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(run, host, 0)
    try:
        yield Url(host, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*filter(None, tasks)), 5)


class Owner:
    """Counts what a connection tells, and is a token for commands."""

    def __init__(self, **options: object) -> None:
        chosen: ConnectOptions = {**options}  # type: ignore[typeddict-item]
        self.pool = BufferPool()
        self.completions: list[Request] = []
        self.reasons: list[str] = []
        self.ends: list[str] = []
        self.progress = 0
        self.done = asyncio.Event()
        self.connection = Connection(Options.check(**chosen), self.pool, self.progressed, self.connection_lost)

    def progressed(self) -> None:
        self.progress += 1
        self.done.set()

    def connection_lost(self, connection: Connection) -> None:
        assert connection is self.connection
        self.ends.append(connection.reason)
        self.done.set()

    def completed(self, request: Request) -> None:
        self.completions.append(request)

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)

    def submit(self, seconds: float = 30.0, data_in: memoryview | None = None) -> int:
        self.connection.queue.capacity = 64
        return self.connection.queue.submit(self, time.monotonic() + seconds, 2, 1, data_in=data_in)

    async def wait(self) -> None:
        async with asyncio.timeout(5):
            await self.done.wait()
        self.done.clear()


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A good handshake, then silence."""
    icreq = await reader.readexactly(128)
    writer.write(icresp(digest=icreq[11]))
    while await reader.read(65536):
        pass


async def test_open_and_close() -> None:
    async with serving(hold) as url:
        owner = Owner()
        await owner.connection.open(url)
        assert owner.connection.queue.ready
        assert owner.connection.reason == ""
        await owner.connection.close()
        assert owner.ends == ["closed by this host"]
        assert owner.pool.leased == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_names_and_both_families(host: str) -> None:
    try:
        async with serving(hold, host) as url:
            owner = Owner(congestion="reno")
            await owner.connection.open(url)
            await owner.connection.close()
    except OSError as error:
        pytest.skip(f"{host} is not here: {error}")


async def test_socket_options() -> None:
    async with serving(hold) as url:
        sock = await dial(url, "reno")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
        sock.close()


async def test_unknown_congestion_control() -> None:
    async with serving(hold) as url:
        with pytest.raises(UsageError, match="congestion control 'none-such'"):
            await Owner(congestion="none-such").connection.open(url)


async def test_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = Url("127.0.0.1", sock.getsockname()[1])
        with pytest.raises(TransportError, match=rf"127\.0\.0\.1:{url.port}: .*refused"):
            await Owner().connection.open(url)


async def test_an_unknown_name() -> None:
    with pytest.raises(TransportError, match=r"no\.such\.host\.invalid:4420: "):
        await Owner().connection.open(Url("no.such.host.invalid", 4420))


async def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(hold) as url:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
                     for port in (sock.getsockname()[1], url.port)]  # fmt: skip
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
            (await dial(url, None)).close()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "the controller closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "broke the protocol: PDU type 0x48"),
        (icresp(maxh2cdata=0), "broke the protocol: MAXH2CDATA 0"),
        (c2h_term_req(1, 8), "terminated the connection: INVALID_HEADER_FIELD, FES 0x01, FEI 0x8"),
        (c2h_term_req(0x99), "terminated the connection: reserved, FES 0x99"),
        (icresp(digest=1), "broke the protocol: digests"),
        (icresp(digest=0), "declines data_digest"),
    ],
)
async def test_handshakes_that_fail(answer: bytes, text: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(128)
        writer.write(answer)
        if answer:
            await reader.read()

    async with serving(script) as url:
        owner = Owner(data_digest=True)
        with pytest.raises(TransportError, match=text):
            await owner.connection.open(url)
        assert owner.pool.leased == 0
        assert len(owner.ends) == 1


async def test_a_handshake_that_never_ends() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(icresp()[:100])
        await reader.read()
        await reader.read()

    async with serving(script) as url:
        owner = Owner(connect_timeout=0.2)
        with pytest.raises(TransportError, match="no progress in state IC_SENT"):
            await owner.connection.open(url)


async def test_cancelled_while_opening() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass

    async with serving(script) as url:
        for steps in range(12):
            owner = Owner()
            task = asyncio.create_task(owner.connection.open(url))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_completions_come_in_one_wake_up() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold_until(reader, writer, 3)
        writer.write(b"".join(capsule_resp(Wire(), cid) for cid in (2, 0, 1)))
        await reader.read()

    async with serving(script) as url:
        owner = Owner()
        await owner.connection.open(url)
        for _ in range(3):
            owner.submit()
        await owner.wait()
        assert [request.cid for request in owner.completions] == [2, 0, 1]
        assert (owner.progress, owner.connection.active) == (1, True)
        await owner.connection.close()
        assert owner.reasons == []


async def hold_until(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, capsules: int) -> None:
    """A good handshake, then so many capsules without data."""
    await reader.readexactly(128)
    writer.write(icresp())
    await reader.readexactly(72 * capsules)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "the controller closed the connection"),
        (c2h_term_req(4, 16), "terminated the connection: DATA_OUT_OF_RANGE"),
        (capsule_resp(Wire(), 77), "broke the protocol: CapsuleResp for CID 0x004d"),
    ],
)
async def test_what_is_in_flight_is_told_once(answer: bytes, text: str) -> None:
    received = b""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await hold_until(reader, writer, 2)
        writer.write(answer)
        if answer:
            received = await reader.read()

    async with serving(script) as url:
        owner = Owner()
        await owner.connection.open(url)
        buffer = bytearray(512)
        owner.submit()
        owner.submit(data_in=memoryview(buffer))
        await owner.wait()
        assert len(owner.reasons) == 2
        assert text in owner.reasons[0]
        buffer.clear()
        await owner.connection.close()
        assert len(owner.ends) == 1
        assert owner.pool.leased == 0
    assert received[:1] == (b"\x02" if "broke" in text else b"")


async def test_a_success_beside_a_protocol_error_counts() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold_until(reader, writer, 2)
        writer.write(capsule_resp(Wire(), 0) + capsule_resp(Wire(), 77))
        await reader.read()

    async with serving(script) as url:
        owner = Owner()
        await owner.connection.open(url)
        owner.submit()
        owner.submit()
        await owner.wait()
        assert [request.cid for request in owner.completions] == [0]
        assert len(owner.reasons) == 1
        assert owner.progress == 0
        await owner.connection.close()


async def test_a_command_without_an_answer() -> None:
    async with serving(hold) as url:
        owner = Owner(io_timeout=0.2)
        await owner.connection.open(url)
        owner.submit(0.2)
        await owner.wait()
        assert "was not answered in time" in owner.reasons[0]
        await owner.connection.close()


async def test_reset_by_peer() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold_until(reader, writer, 1)
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with serving(script) as url:
        owner = Owner()
        await owner.connection.open(url)
        owner.submit()
        await owner.wait()
        assert owner.reasons == ["Connection reset by peer"]
        await owner.connection.close()


async def test_abort_gives_its_reason() -> None:
    async with serving(hold) as url:
        owner = Owner()
        await owner.connection.open(url)
        owner.submit()
        owner.connection.abort("because")
        owner.connection.abort("and again")
        assert owner.reasons == owner.ends == ["because"]
        await owner.connection.wait_closed()


async def test_close_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer takes nothing, and we have more queued than the kernel does."""
    monkeypatch.setattr("nvmeof.initiator.connection.CLOSE_SECONDS", 0.1)
    release = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(128)
        writer.write(icresp())
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await release.wait()

    async with serving(script) as url:
        owner = Owner()
        await owner.connection.open(url)
        owner.connection.queue.capacity = 1024
        for _ in range(1000):
            owner.connection.queue.submit(owner, float("inf"), 1, 1, data_out=memoryview(bytes(8192)))
        await asyncio.sleep(0.05)
        await owner.connection.close()
        release.set()
        assert len(owner.reasons) == 1000
