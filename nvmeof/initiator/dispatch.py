"""Batches of commands, spread over connections, with one future for each batch.

Concurrency contract. Any number of batches may run at once; they take turns, a command each, so that a large one does
not hold up a small one. Commands of one batch complete in any order. After the first failure no further command of
the batch is sent, and the batch ends when those in flight have ended: then no buffer is touched any more. Nothing is
ever sent twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Iterator
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

from nvmeof.errors import ConnectionLost, StatusError, TransportError
from nvmeof.protocol.host_queue import HostQueue
from nvmeof.protocol.host_request import Request
from nvmeof.spec.command import AdminOpcode
from nvmeof.spec.status import CODE_MASK, status_name, unpack_status

Arguments: TypeAlias = tuple[Any, ...]
"""Of ``HostQueue.submit``, behind the token and the deadline. Plain on the hot path, a Command elsewhere."""


class Command(NamedTuple):
    """Arguments by name."""

    opcode: int
    nsid: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0
    data_out: memoryview | None = None
    data_in: memoryview | None = None
    partial: bool = False
    cdw2: int = 0
    cdw3: int = 0


class Batch:
    """A Token, and what its owner awaits: the request that completed last, None when there was no command.

    Awaiting raises StatusError for the first command that failed, with ``context`` formatted in front, and
    ConnectionLost. When it is cancelled the commands may still be executed, but the buffers are no longer used.
    """

    __slots__ = ("_dispatcher", "commands", "context", "failed", "future", "last", "outstanding")

    def __init__(
        self, dispatcher: Dispatcher, commands: Iterator[Arguments] | None, context: tuple[object, ...]
    ) -> None:
        self.commands = commands
        """What is still to be sent; None once nothing is."""
        self.context = context
        """A format string and its arguments."""
        self.future: asyncio.Future[None] = dispatcher.loop.create_future()
        self.outstanding = 0
        self.last: Request | None = None
        self.failed: Request | None = None
        self._dispatcher = dispatcher

    def __await__(self) -> Generator[Any, None, Request | None]:
        try:
            yield from self.future
        except asyncio.CancelledError:
            self._dispatcher.forget(self)
            raise
        if self.failed is not None:
            text, *arguments = self.context
            raise status_error(self.failed, str(text).format(*arguments))
        return self.last

    def completed(self, request: Request) -> None:
        self.outstanding -= 1
        self.last = request
        if request.status & CODE_MASK and self.failed is None:
            self.failed = request
        if not self.outstanding and self.commands is None and not self.future.done():
            self.future.set_result(None)

    def lost(self, reason: str) -> None:
        self.commands = None
        if not self.future.done():
            self.future.set_exception(ConnectionLost(reason))


class Dispatcher:
    """Runs batches on ``queues``; ``reserved`` slots of each stay free for others. ``seconds``: limit of a command."""

    def __init__(self, seconds: float, reserved: int = 0) -> None:
        self.queues: list[HostQueue] = []
        self.seconds = seconds
        self.loop = asyncio.get_running_loop()
        self._reserved = reserved
        self._waiting: deque[Batch] = deque()
        self._closed = ""

    def start(self, commands: Iterator[Arguments], *context: object) -> Batch:
        """Begin to send. Raises TransportError when the association is over: nothing was sent."""
        batch = Batch(self, commands, context)
        self._check_open()
        self._waiting.append(batch)
        self.feed()
        return batch

    def start_one(self, command: Arguments, *context: object) -> Batch:
        """The same for a single command."""
        batch = Batch(self, None, context)
        if self._closed:
            self._check_open()
        queue = None if self._waiting else self._roomiest()
        if queue is None:
            batch.commands = iter((command,))
            self._waiting.append(batch)
        else:
            batch.outstanding = 1
            queue.submit(batch, monotonic() + self.seconds, *command)
        return batch

    async def run_one(self, command: Arguments, *context: object) -> Request:
        """Start a single command and wait for it."""
        request = await self.start_one(command, *context)
        assert request is not None
        return request

    def feed(self) -> None:
        """Send what waits while there is room. To be called after completions."""
        waiting = self._waiting
        if not waiting:
            return
        deadline = monotonic() + self.seconds
        while waiting:
            queue = self._roomiest()
            if queue is None:
                return
            batch = waiting.popleft()
            command = next(batch.commands, None) if batch.commands is not None and batch.failed is None else None
            if command is not None:
                batch.outstanding += 1
                queue.submit(batch, deadline, *command)
                waiting.append(batch)
                continue
            batch.commands = None
            if not batch.outstanding and not batch.future.done():
                batch.future.set_result(None)

    def forget(self, batch: Batch) -> None:
        """Send no more of it, and let go of its buffers."""
        batch.commands = None
        for queue in self.queues:
            queue.forget(batch)

    def close(self, reason: str) -> None:
        """Fail what waits, and everything to come. What is in flight is told by its connection."""
        self._closed = self._closed or reason
        for batch in self._waiting:
            batch.lost(reason)
        self._waiting.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError(f"not sent: {self._closed}")

    def _roomiest(self) -> HostQueue | None:
        """The queue with the fewest commands in flight, if it takes another one."""
        queues = self.queues
        if len(queues) == 1:
            return queues[0] if len(queues[0].requests) < queues[0].capacity - self._reserved else None
        best, fewest = None, 0
        for queue in queues:
            inflight = len(queue.requests)
            if inflight < queue.capacity - self._reserved and (best is None or inflight < fewest):
                best, fewest = queue, inflight
        return best


def status_error(request: Request, context: str) -> StatusError:
    """The exception for a request that did not succeed."""
    sct, sc, _crd, _more, dnr = unpack_status(request.status)
    name = status_name(sct, sc, fabrics=request.opcode == AdminOpcode.FABRICS)
    return StatusError(sct, sc, dnr=dnr, name=name, context=context, result=request.dw0)
