"""A stream between a real socket and a queue pair: back-pressure, reuse of leases, polling, options."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from nvmeof.errors import UsageError
from nvmeof.limits import AWAKE_SECONDS, MDTS_BYTES, OUTPUT_BYTES_MAX, OUTPUT_SECONDS
from nvmeof.protocol.target_queue import Sqe, TargetQueue, Transfer
from nvmeof.transport.buffers import BufferPool
from nvmeof.transport.stream import Awake, Stream, format_address, tune
from tests.protocol import wire
from tests.protocol.wire import Wire


class FillSink:
    """Answers every command with MDTS bytes of its CID."""

    def __init__(self) -> None:
        self.pool = BufferPool()
        self.queue = TargetQueue(self, self.pool, asyncio.get_running_loop().time())
        self.executed = 0

    def command(self, sqe: Sqe, data: memoryview | None) -> None:
        self.executed += 1
        self.queue.send_bytes(sqe[2], bytes([sqe[2]]) * MDTS_BYTES)

    def payload(self, transfer: Transfer, view: memoryview) -> None:
        raise AssertionError("nothing was asked for")


@dataclass
class Link:
    sink: FillSink
    stream: Stream
    lost: list[Exception | None]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    loop = asyncio.get_running_loop()
    sink = FillSink()
    lost: list[Exception | None] = []
    stream = Stream(sink.queue, lost.append)
    server = await loop.create_server(lambda: stream, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(wire.icreq())
    await reader.readexactly(128)
    yield Link(sink, stream, lost, reader, writer)
    stream.abort()
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass
    server.close()
    async with asyncio.timeout(10):
        while not lost:
            await asyncio.sleep(0.001)
    assert len(lost) == 1
    assert sink.pool.leased == 0


async def test_a_slow_reader_is_kept_as_long_as_it_takes_something(link: Link) -> None:
    """The output never drains, for longer than OUTPUT_SECONDS: only a peer that takes nothing is gone."""
    link.sink.queue.established()
    link.writer.write(b"".join(Wire().capsule(wire.sqe(0, cid)) for cid in range(40)))
    await asyncio.sleep(0.1)
    now = asyncio.get_running_loop().time()
    for _ in range(6):
        await link.reader.readexactly(MDTS_BYTES)
        await asyncio.sleep(0.02)
        now += 0.6 * OUTPUT_SECONDS
        link.stream.tick(now)
        assert link.sink.queue.stalled == ""
    await asyncio.sleep(0.1)
    link.stream.tick(now + 0.1)
    link.stream.tick(now + 0.2 + OUTPUT_SECONDS)
    assert "took no output" in link.sink.queue.stalled


async def test_a_slow_reader_gets_every_byte_unchanged_and_holds_a_bounded_number_of_leases(link: Link) -> None:
    count = 40
    link.writer.write(b"".join(Wire().capsule(wire.sqe(0, cid)) for cid in range(count)))
    await asyncio.sleep(0.1)
    assert link.sink.executed < count
    for cid in range(count):
        data = await link.reader.readexactly(24 + MDTS_BYTES)
        assert Wire().data_of(data) == bytes([cid]) * MDTS_BYTES
        assert wire.response(await link.reader.readexactly(24))[4] == cid
        assert link.sink.pool.leased <= 2 * OUTPUT_BYTES_MAX // MDTS_BYTES + 2


class ForgetfulTransport(asyncio.Transport):
    """Takes nothing, and does not pause the protocol after ``writelines``: asyncio before 3.12.9 and 3.13.2."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self.buffered: list[bytes | memoryview] = []

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.buffered += list_of_data

    def write(self, data: Any) -> None:
        self.buffered.append(data)
        self.set_write_buffer_limits(0, 0)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.buffered))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self.buffered:
            self.stream.pause_writing()


async def test_leases_are_not_reused_before_they_are_sent_whatever_the_transport_forgets() -> None:
    sink = FillSink()
    stream = Stream(sink.queue, lambda error: None)
    transport = ForgetfulTransport(stream)
    stream.connection_made(transport)
    for part in (wire.icreq(), b"".join(Wire().capsule(wire.sqe(0, cid)) for cid in range(3))):
        stream.get_buffer(0)[: len(part)] = part
        stream.buffer_updated(len(part))
        if len(part) == 128:
            transport.buffered.clear()
            stream.resume_writing()
    sent = b"".join(transport.buffered)
    assert len(transport.buffered) > 1
    sink.queue.complete(99)
    stream.pump()
    assert b"".join(transport.buffered)[: len(sent)] == sent
    for cid in range(3):
        start = cid * (24 + MDTS_BYTES + 24)
        assert Wire().data_of(sent[start : start + 24 + MDTS_BYTES]) == bytes([cid]) * MDTS_BYTES
    transport.buffered.clear()
    stream.connection_lost(None)
    assert sink.pool.leased == 0


async def test_output_from_outside_received_is_sent(link: Link) -> None:
    link.sink.queue.complete(77)
    assert wire.response(await link.reader.readexactly(24))[4] == 77


async def test_a_closed_queue_sends_what_it_has_and_closes(link: Link) -> None:
    link.sink.queue.complete(1)
    link.sink.queue.close()
    link.stream.pump()
    assert wire.response(await link.reader.readexactly(24))[4] == 1
    assert await link.reader.read() == b""


async def test_a_stalled_queue_is_aborted(link: Link) -> None:
    link.writer.write(b"\x04")
    await asyncio.sleep(0.02)
    link.stream.tick(asyncio.get_running_loop().time() + 1e6)
    async with asyncio.timeout(10):
        while not link.lost:
            await asyncio.sleep(0.001)


async def test_peer_closed_is_seen_though_data_is_unread(link: Link) -> None:
    assert not link.stream.peer_closed()
    assert link.stream._transport is not None
    link.stream._transport.pause_reading()
    link.writer.write(b"x" * 1000)
    link.writer.close()
    await asyncio.sleep(0.02)
    assert link.stream.peer_closed()
    assert not link.lost


async def test_polling_ends_by_itself() -> None:
    loop = asyncio.get_running_loop()
    awake = Awake(loop)
    awake.extend()
    assert awake._polling
    await asyncio.sleep(AWAKE_SECONDS * 100)
    assert not awake._polling


@pytest.mark.parametrize(
    ("address", "text"), [(("1.2.3.4", 5), "1.2.3.4:5"), (("::1", 5, 0, 0), "[::1]:5"), ((), "?"), (None, "?")]
)
def test_format_address(address: object, text: str) -> None:
    assert format_address(address) == text


def test_tune() -> None:
    with socket.socket() as sock:
        tune(sock, "reno")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with pytest.raises(UsageError, match="no-such"):
            tune(sock, "no-such")
