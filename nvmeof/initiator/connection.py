"""One TCP connection that carries one queue pair: dialling, ICReq and ICResp, time limits, the end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from nvmeof.errors import TransportError
from nvmeof.initiator.options import Options
from nvmeof.initiator.url import Url
from nvmeof.limits import CLOSE_SECONDS, TICK_SECONDS_MAX
from nvmeof.protocol.host_queue import HostQueue
from nvmeof.protocol.host_request import Request
from nvmeof.protocol.states import State
from nvmeof.spec.pdu import FatalErrorStatus
from nvmeof.transport.buffers import BufferPool
from nvmeof.transport.stream import Stream, tune


class Token(Protocol):
    """What stands behind a command in flight. Called from the event loop's callbacks; must not raise."""

    def completed(self, request: Request) -> None: ...

    def lost(self, reason: str) -> None:
        """The association is over and the outcome of the command unknown."""


class Connection:
    """``progressed`` is called once per wake-up after completions went to their tokens, ``lost`` once at the end.

    ``reason`` says why the connection ended; it is empty while it lives.
    """

    def __init__(
        self,
        options: Options,
        pool: BufferPool,
        progressed: Callable[[], None],
        lost: Callable[[Connection], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.queue = HostQueue(
            pool,
            monotonic(),
            header_digest=options.header_digest,
            data_digest=options.data_digest,
            handshake_seconds=options.connect_timeout,
        )
        self.reason = ""
        self.active = False
        """A command completed since whoever reads this last cleared it."""
        self.orderly = False
        """The owner expects this connection to end."""
        self._options = options
        self._progressed = progressed
        self._lost = lost
        self._loop = loop
        self._stream = Stream(self.queue, self._stream_lost)
        self._stream.after_received = self._after_received
        self._settled: asyncio.Future[None] = loop.create_future()
        """Done when ICResp was accepted or the connection is over."""
        self._gone: asyncio.Future[None] = loop.create_future()
        """Done when the socket is closed."""
        self._timer: asyncio.TimerHandle | None = None
        self._tick_seconds = min(TICK_SECONDS_MAX, options.io_timeout / 4, options.connect_timeout / 4)
        self._last_tick = 0.0

    async def open(self, url: Url) -> None:
        """Dial and exchange ICReq and ICResp. Raises TransportError, UsageError for ``congestion``.

        Whatever is raised, the socket is closed. The caller bounds the time.
        """
        sock = await dial(url, self._options.congestion)
        try:
            await self._loop.create_connection(lambda: self._stream, sock=sock)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise TransportError(f"{url.address}: {_text(error)}") from error
            raise
        self._last_tick = monotonic()
        self._tick()
        try:
            await self._settled
            if self.reason:
                raise TransportError(f"{url.address}: {self.reason}")
            self._check_digests(url)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Send what is queued, close the socket, wait until it is closed."""
        self._end("closed by this host")
        self._stream.close()
        try:
            await asyncio.wait([self._gone], timeout=CLOSE_SECONDS)
        finally:
            self._stream.abort()
        await self._gone

    def abort(self, reason: str = "closed by this host") -> None:
        """Drop the socket without waiting."""
        self._end(reason)
        self._stream.abort()

    async def wait_closed(self) -> None:
        """After ``abort``: until the socket is closed."""
        await self._gone

    def _check_digests(self, url: Url) -> None:
        """A digest that was asked for and declined must not be missing silently. Linux refuses it as well."""
        for name in ("header_digest", "data_digest"):
            if getattr(self._options, name) and not getattr(self.queue, name):
                raise TransportError(f"{url.address}: the controller declines {name}")

    def _after_received(self) -> None:
        queue = self.queue
        if queue.completed:
            completed, queue.completed = queue.completed, []
            for request in completed:
                request.token.completed(request)
            self.active = True
            if queue.ready:
                self._progressed()
        if not self._settled.done() and queue.ready:
            self._settled.set_result(None)
        elif not queue.ready and queue.state is not State.IC_SENT:
            self._end(self._describe(None))

    def _tick(self) -> None:
        """A tick that comes late says that this event loop was busy, which is not the controller's fault."""
        self._timer = self._loop.call_later(self._tick_seconds, self._tick)
        now = monotonic()
        late = now - self._last_tick - self._tick_seconds
        self._last_tick = now
        if late > self._tick_seconds:
            self.queue.postpone(late)
        self._stream.tick(now)
        if self.queue.stalled:
            self._end(self._describe(None))

    def _stream_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._gone.done():
            self._gone.set_result(None)
        self._end(self._describe(error))

    def _end(self, reason: str) -> None:
        if self.reason:
            return
        self.reason = reason
        if not self._settled.done():
            self._settled.set_result(None)
        for request in self.queue.take_unfinished():
            request.token.lost(reason)
        self._lost(self)

    def _describe(self, error: Exception | None) -> str:
        queue = self.queue
        if queue.failure is not None:
            return f"the controller broke the protocol: {queue.failure}"
        if queue.peer_failure is not None:
            fes, fei, _ = queue.peer_failure
            name = FatalErrorStatus(fes).name if fes in list(FatalErrorStatus) else "reserved"
            return f"the controller terminated the connection: {name}, FES {fes:#04x}, FEI {fei:#x}"
        if queue.stalled:
            return queue.stalled
        if isinstance(error, OSError):
            return _text(error)
        return "the controller closed the connection"


async def dial(url: Url, congestion: str | None) -> socket.socket:
    """A connected socket. Raises TransportError when no address of the host answers, UsageError for ``congestion``."""
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    try:
        found = await _resolve(url)
    except OSError as error:
        raise TransportError(f"{url.address}: {_text(error)}") from error
    for family, address in found:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            tune(sock, congestion)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise TransportError(f"{url.address}: {_text(failure) if failure is not None else 'no address'}") from failure


async def _resolve(url: Url) -> list[tuple[int, Any]]:
    """Addresses to try. A numeric one needs no thread."""
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    return [(info[0], info[4]) for info in found]


def _text(error: OSError) -> str:
    """What the system says about its error number; asyncio and the resolver put other things in its place."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
