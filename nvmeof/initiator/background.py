"""What an admin queue does by itself: Keep Alive and Asynchronous Event Requests. Neither is a task."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import NamedTuple

from nvmeof.errors import ConnectionLost
from nvmeof.initiator.connection import Connection
from nvmeof.limits import HOST_EVENTS_KEPT_MAX
from nvmeof.protocol.host_request import Request
from nvmeof.spec.command import AdminOpcode
from nvmeof.spec.status import CODE_MASK, describe

log = logging.getLogger("nvmeof.initiator")


class Event(NamedTuple):
    """An asynchronous event: Base 2.0 figure 145.

    ``type`` is a ``nvmeof.spec.command.AsyncEventType``, ``info`` what happened in that type (``NoticeEvent``, ...),
    ``log_page`` the log page to read. Until it is read the controller reports no further event of that type.
    """

    type: int
    info: int
    log_page: int


class EventFeed:
    """A Token for Asynchronous Event Requests: keeps ``count`` of them outstanding and collects what they report."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._kept: deque[Event] = deque(maxlen=HOST_EVENTS_KEPT_MAX)
        self._news = asyncio.Event()
        self._reason: str | None = None
        self._orderly = False

    def arm(self, count: int) -> None:
        """Send ``count`` requests, unless the connection is over."""
        for _ in range(count if self._connection.queue.ready else 0):
            self._connection.queue.submit(self, float("inf"), AdminOpcode.ASYNC_EVENT_REQUEST, 0)

    def end(self, reason: str, *, orderly: bool) -> None:
        """No more events will come."""
        if self._reason is None:
            self._reason = reason
            self._orderly = orderly
            self._news.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._kept:
                yield self._kept.popleft()
            if self._reason is not None:
                if self._orderly:
                    return
                raise ConnectionLost(self._reason)
            self._news.clear()
            await self._news.wait()

    def completed(self, request: Request) -> None:
        if request.status & CODE_MASK:
            log.debug("no more asynchronous events: %s", describe(request.status))
            return
        dw0 = request.dw0
        self._kept.append(Event(dw0 & 7, dw0 >> 8 & 0xFF, dw0 >> 16 & 0xFF))
        self._news.set()
        self.arm(1)

    def lost(self, reason: str) -> None:
        pass


class KeepAlive:
    """A Token for Keep Alive: one every half of the timeout, with its own time limit.

    ``traffic_based`` (CTRATT.TBKAS): any command restarts the controller's timer, so none is sent after a quarter in
    which a command completed; ``active()`` says so, and forgets. ``refused(reason)``: the controller will give us up.
    """

    def __init__(
        self,
        connection: Connection,
        seconds: float,
        traffic_based: bool,
        active: Callable[[], bool],
        refused: Callable[[str], None],
    ) -> None:
        self._queue = connection.queue
        self._seconds = seconds
        self._traffic_based = traffic_based
        self._active = active
        self._interval = seconds / (4 if traffic_based else 2)
        self._outstanding = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._interval, self._tick)
        self._refused = refused

    def cancel(self) -> None:
        self._timer.cancel()

    def completed(self, request: Request) -> None:
        self._outstanding = False
        if request.status & CODE_MASK:
            self._refused(f"Keep Alive was refused: {describe(request.status)}")

    def lost(self, reason: str) -> None:
        self.cancel()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._tick)
        if self._outstanding or (self._active() and self._traffic_based):
            return
        self._outstanding = True
        self._queue.submit(self, monotonic() + self._seconds, AdminOpcode.KEEP_ALIVE, 0)
