"""One accepted socket: before Connect it accepts nothing else, afterwards it belongs to an admin or an I/O queue."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nvmeof.limits import CONNECTIONS_MAX
from nvmeof.protocol.target_queue import Sqe, TargetQueue, Transfer
from nvmeof.spec.command import AdminOpcode, FabricsType
from nvmeof.spec.status import Status
from nvmeof.target.command import Command, CommandError, log, status_of
from nvmeof.target.connect import CONNECT_DATA_SIZE, ConnectRequest, connect, connect_needs_data
from nvmeof.target.io import IoQueue
from nvmeof.transport.stream import Stream, format_address

if TYPE_CHECKING:
    from nvmeof.target.admin import AdminQueue
    from nvmeof.target.server import Listener, Target


class TargetStream(Stream):
    """A stream that is refused when the target has too many."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.queue, connection.lost, connection.target.awake)
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connection.made(transport)


class Connection:
    """Owns the stream and the queue pair; a CommandSink until Connect has made someone else that."""

    def __init__(self, target: Target, listener: Listener) -> None:
        self.target = target
        self.listener = listener
        self.queue = TargetQueue(self, target.pool, asyncio.get_running_loop().time())
        self.stream = TargetStream(self)
        self.owner: AdminQueue | IoQueue | None = None
        self.local_address: tuple[str, int] = (listener.host, listener.port)
        self.peer = "?"
        self._connect: asyncio.Task[None] | None = None

    def made(self, transport: asyncio.BaseTransport) -> None:
        self.local_address = transport.get_extra_info("sockname")[:2]
        self.peer = format_address(transport.get_extra_info("peername"))
        if len(self.target.connections) >= CONNECTIONS_MAX:
            log.warning("%s: refused, the target has %d connections", self.peer, CONNECTIONS_MAX)
            self.abort()
        elif self.target.draining:
            self.abort()
        self.target.connections.add(self)

    def abort(self) -> None:
        """Drop the socket; ``lost`` follows."""
        self.stream.abort()

    # --- before Connect -----------------------------------------------------------------------------------------------

    def command(self, sqe: Sqe, data: memoryview | None) -> None:
        command = Command._make(sqe)
        is_connect = command.opcode == AdminOpcode.FABRICS and command.nsid & 0xFF == FabricsType.CONNECT
        if not is_connect or self._connect is not None or self.queue.transfers:
            self.queue.complete(command.cid, Status.COMMAND_SEQUENCE_ERROR)
            return
        try:
            if connect_needs_data(command, data):
                self.queue.request(command.cid, CONNECT_DATA_SIZE, command)
            else:
                assert data is not None
                self._begin(command, bytes(data))
        except CommandError as error:
            self.queue.complete(command.cid, error.status, error.dw0)

    def payload(self, transfer: Transfer, view: memoryview) -> None:
        command: Command = transfer.context
        data = bytes(view)
        self.queue.finish(transfer)
        self._begin(command, data)

    def _begin(self, command: Command, data: bytes) -> None:
        """Answer at once unless a dead association of that host must be waited for first."""
        try:
            request = ConnectRequest.parse(self, command, data)
            self.target.fence(request.hostid)
            if request.subsystem.fenced(request.hostid):
                connect(self, request)
            else:
                self._connect = asyncio.get_running_loop().create_task(self._connect_fenced(request))
        except Exception as error:
            self._refuse(command.cid, error)

    async def _connect_fenced(self, request: ConnectRequest) -> None:
        self.queue.suspend_handshake()
        await request.subsystem.wait_fenced(request.hostid)
        self._connect = None
        if self.stream.closed:
            return
        self.queue.resume_handshake(asyncio.get_running_loop().time())
        try:
            connect(self, request)
        except Exception as error:
            self._refuse(request.cid, error)

    def _refuse(self, cid: int, error: Exception) -> None:
        status = status_of(error)
        log.info("%s: Connect refused with status %#06x", self.peer, status)
        self.queue.complete(cid, status, error.dw0 if isinstance(error, CommandError) else 0)

    # --- the end ------------------------------------------------------------------------------------------------------

    def lost(self, error: Exception | None) -> None:
        self.target.connections.discard(self)
        self._log_end(error)
        if self._connect is not None:
            self._connect.cancel()
        if isinstance(self.owner, IoQueue):
            self.owner.controller.queue_lost(self.owner)
        elif self.owner is not None:
            self.owner.lost()
            self.owner.controller.end("admin queue disconnected")

    def _log_end(self, error: Exception | None) -> None:
        queue = self.queue
        if queue.failure is not None:
            log.warning("%s queue %d: protocol error: %s", self.peer, queue.qid, queue.failure)
        elif queue.peer_failure is not None:
            fes, fei, _ = queue.peer_failure
            log.warning("%s queue %d: the host terminated it, FES %#x FEI %#x", self.peer, queue.qid, fes, fei)
        elif queue.stalled:
            log.warning("%s queue %d: dropped, %s", self.peer, queue.qid, queue.stalled)
        else:
            log.debug("%s queue %d: closed (%s)", self.peer, queue.qid, error)
