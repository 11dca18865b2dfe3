"""asyncio on one side, a queue pair on the other; the same for target and initiator, asyncio and uvloop.

The write buffer limits are zero: ``pause_writing`` then means "some of it is not sent" and ``resume_writing`` "all of
it is sent", which is exactly when leases may be reused. uvloop and CPython >= 3.12 keep memoryviews until then.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

from nvmeof.errors import UsageError
from nvmeof.limits import (
    AWAKE_SECONDS,
    OUTPUT_BYTES_MAX,
    TCP_KEEPALIVE_IDLE_SECONDS,
    TCP_KEEPALIVE_INTERVAL_SECONDS,
    TCP_KEEPALIVE_PROBES,
)
from nvmeof.protocol.queue_pair import QueuePair
from nvmeof.protocol.states import State

TCP_ESTABLISHED = 1
"""tcpi_state, the first byte of struct tcp_info (linux/tcp.h)."""
TCP_INFO_BYTES = 128
"""struct tcp_info up to tcpi_bytes_acked, the last 8 bytes of these: Linux 4.1 and later."""


class Awake:
    """Keeps an event loop polling for AWAKE_SECONDS after work instead of letting its CPU go to sleep."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._until = 0.0
        self._polling = False

    def extend(self) -> None:
        self._until = perf_counter() + AWAKE_SECONDS
        if not self._polling:
            self._polling = True
            self._call_soon(self._poll)

    def _poll(self) -> None:
        if perf_counter() < self._until:
            self._call_soon(self._poll)
        else:
            self._polling = False


class Stream(asyncio.BufferedProtocol):
    """Carries one queue pair. ``on_lost(error)`` is called once when the connection is over, for whatever reason."""

    def __init__(
        self, queue: QueuePair, on_lost: Callable[[Exception | None], None], awake: Awake | None = None
    ) -> None:
        self.queue = queue
        self.closed = False
        self.after_received: Callable[[], None] | None = None
        """Called after each batch of input was handled (the initiator resolves its futures there)."""
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._transport: asyncio.Transport | None = None
        self._draining = False
        self._reading = True
        self._pump_scheduled = False
        self._aborted = False
        self._awake = awake
        self._acknowledged_before = b""
        queue.notify = self.schedule

    # --- asyncio calls ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0, low=0)
        self.pump()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.queue.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.queue.received(nbytes, self._time())
        self.pump()
        if self.after_received is not None:
            self.after_received()
        if self._awake is not None:
            self._awake.extend()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._draining = True

    def resume_writing(self) -> None:
        self._draining = False
        self.queue.drained()
        self.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.queue.notify = lambda: None
        self.queue.connection_lost()
        self._on_lost(exc)

    # --- the owner calls ----------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Send what is queued, once, at the end of this turn of the loop."""
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._scheduled_pump)

    def pump(self) -> None:
        """Send what is queued; go on with commands that waited for output to drain; close when the queue is done."""
        queue, transport = self.queue, self._transport
        if transport is None or self.closed or self._aborted:
            return
        while True:
            output = queue.take_output()
            if output:
                if len(output) == 1:
                    transport.write(output[0])
                else:
                    transport.writelines(output)
                    if not self._draining and transport.get_write_buffer_size():
                        # asyncio before 3.12.9 and 3.13.2 forgets to pause here (CVE-2024-12254); this makes it look.
                        transport.set_write_buffer_limits(high=0, low=0)
                if not self._draining:
                    queue.drained()
            if not queue.blocked or queue.output_bytes >= OUTPUT_BYTES_MAX:
                break
            queue.resume()
        if queue.blocked is self._reading:
            self._switch_reading(transport)
        if queue.state is State.CLOSED:
            transport.close()

    def tick(self, now: float) -> None:
        """Enforce the queue's time limits, about once a second."""
        if self._draining and not self.closed:
            acknowledged = self._acknowledged()
            if acknowledged != self._acknowledged_before:
                self._acknowledged_before = acknowledged
                self.queue.progressed(now)
        self.queue.tick(now)
        if self.queue.stalled:
            self.abort()

    def abort(self) -> None:
        """Drop the connection at once: nothing more is handled or sent; ``on_lost`` follows."""
        self._aborted = True
        self.queue.close()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Send what is queued, then close."""
        if self._transport is not None:
            self._transport.close()

    def peer(self) -> str:
        """The other end as HOST:PORT, for messages."""
        return format_address(self._transport.get_extra_info("peername")) if self._transport is not None else "?"

    def peer_closed(self) -> bool:
        """Whether the peer has closed or reset the connection, though what it sent before may still be unread."""
        if self._transport is None or self.closed:
            return True
        sock = self._transport.get_extra_info("socket")
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED)

    def _acknowledged(self) -> bytes:
        """How much of the output the peer has acknowledged, as a number nobody reads: tcpi_bytes_acked."""
        assert self._transport is not None
        sock = self._transport.get_extra_info("socket")
        return bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)[TCP_INFO_BYTES - 8 :])

    def _scheduled_pump(self) -> None:
        self._pump_scheduled = False
        self.pump()

    def _switch_reading(self, transport: asyncio.Transport) -> None:
        self._reading = not self.queue.blocked
        if self._reading:
            transport.resume_reading()
        else:
            transport.pause_reading()


def format_address(address: Any) -> str:
    """("::1", 4420, ...) as "[::1]:4420"."""
    if not address:
        return "?"
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def tune(sock: socket.socket, congestion: str | None = None) -> None:
    """Nagle off, keep-alive probes on, and the congestion control algorithm if one is named.

    Raises UsageError when the kernel does not offer that algorithm.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, TCP_KEEPALIVE_IDLE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, TCP_KEEPALIVE_INTERVAL_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, TCP_KEEPALIVE_PROBES)
    if congestion is not None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode(errors="backslashreplace"))
        except OSError as error:
            raise UsageError(
                f"congestion control {congestion!r}: {error.strerror}; see "
                "/proc/sys/net/ipv4/tcp_available_congestion_control"
            ) from error
