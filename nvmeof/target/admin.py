"""The admin queue: Identify, logs, features, asynchronous events, Abort, Keep Alive (NVMe Base 2.0, section 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from nvmeof.limits import ADMIN_IN_CAPSULE_BYTES
from nvmeof.spec.command import (
    ABORT_NOT_ABORTED,
    FUSE_MASK,
    SGL_TRANSPORT_DATA_BLOCK,
    AdminOpcode,
    GetLogPageDwords,
)
from nvmeof.spec.identify import IDENTIFY_SIZE
from nvmeof.spec.status import DNR, Status
from nvmeof.target import fabrics
from nvmeof.target.command import Command, CommandError, Reply, check_sgl, log, status_of
from nvmeof.target.identify import identify
from nvmeof.target.locations import CID, FLAGS, OPCODE, SGL, SGL_LENGTH, invalid_field
from nvmeof.target.logs import get_log_page

if TYPE_CHECKING:
    from nvmeof.protocol.target_queue import Sqe, Transfer
    from nvmeof.target.connection import Connection
    from nvmeof.target.controller import Controller


class AdminQueue:
    """Executes the commands of one admin queue (a CommandSink).

    A command is answered before ``command`` returns, unless it brings data that the host must first be asked for, is
    an Asynchronous Event Request, or was given to ``start``.
    """

    def __init__(self, connection: Connection, controller: Controller, entries: int) -> None:
        self.connection = connection
        self.controller = controller
        self.queue = connection.queue
        self.entries = entries
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """By CID; the commands that wait for a volume."""
        self._forgotten: set[asyncio.Task[None]] = set()
        self._closed = False
        controller.events.complete = self.queue.complete

    def command(self, sqe: Sqe, data: memoryview | None) -> None:
        """Execute one command. Raises RemoteProtocolError when the host overruns its queue."""
        command = Command._make(sqe)
        in_progress = [*self.tasks, *self.queue.transfers, *self.controller.events.requests]
        if len(in_progress) >= self.entries:
            raise self.queue.overflow()
        try:
            if command.cid in in_progress:
                raise CommandError(Status.COMMAND_ID_CONFLICT | DNR, location=CID)
            self._answer(command, self._execute(command, data))
        except Exception as error:
            self._fail(command, error)

    def payload(self, transfer: Transfer, view: memoryview) -> None:
        """The data of a Set Features command that ``_set_features`` asked for."""
        command: Command = transfer.context
        data = bytes(view)
        self.queue.finish(transfer)
        try:
            self._answer(command, self.controller.features.set(self, command, data))
        except Exception as error:
            self._fail(command, error)

    def start(self, command: Command, work: Coroutine[Any, Any, Reply]) -> None:
        """Run ``work`` and complete the command with what it returns or raises."""
        self.tasks[command.cid] = asyncio.get_running_loop().create_task(self._run(command, work))

    def lost(self) -> None:
        """The connection is gone. What was started goes on, but nobody hears of it."""
        self._closed = True
        self.controller.events.lost()

    def abort(self, cid: int) -> bool:
        """Abort a command of this queue if that is still possible: one that waits for an event or for its data."""
        return self.controller.events.abort(cid) or self.queue.abort_transfer(cid)

    def reset(self) -> None:
        """Controller reset: commands in progress are aborted. What they began at a volume goes on without them."""
        self._forgotten.update(self.tasks.values())
        self.tasks.clear()
        self.controller.events.abort_all()
        for cid in list(self.queue.transfers):
            self.queue.abort_transfer(cid)

    async def _run(self, command: Command, work: Coroutine[Any, Any, Reply]) -> None:
        task = asyncio.current_task()
        assert task is not None
        outcome: Reply | Exception
        try:
            outcome = await work
        except Exception as error:
            outcome = error
        if task in self._forgotten:
            self._forgotten.discard(task)
            return
        del self.tasks[command.cid]
        if isinstance(outcome, Exception):
            self._fail(command, outcome)
        else:
            self._answer(command, outcome)

    def _execute(self, command: Command, data: memoryview | None) -> Reply | None:
        if command.opcode == AdminOpcode.FABRICS:
            return fabrics.on_admin_queue(self, command, data)
        handler = HANDLERS.get(command.opcode)
        if handler is None:
            raise CommandError(Status.INVALID_OPCODE | DNR, location=OPCODE)
        if command.flags & FUSE_MASK:
            raise invalid_field(FLAGS)
        if not self.controller.ready:
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR)
        return handler(self, command, data)

    def _answer(self, command: Command, reply: Reply | None) -> None:
        if reply is None or self._closed:
            return
        if not reply.data:
            self.queue.complete(command.cid, Status.SUCCESS, reply.dw0, reply.dw1)
            return
        _require_room(command, len(reply.data))
        self.queue.send_bytes(command.cid, reply.data, reply.dw0)

    def _fail(self, command: Command, error: Exception) -> None:
        if self._closed:
            return
        status = status_of(error)
        dw0, location = (error.dw0, error.location) if isinstance(error, CommandError) else (0, 0xFFFF)
        nsid = 0 if command.opcode == AdminOpcode.FABRICS else command.nsid
        self.controller.record_error(0, command.cid, status, nsid, location=location)
        log.debug("admin queue cid %#06x opcode %#04x: status %#06x", command.cid, command.opcode, status)
        self.queue.complete(command.cid, status, dw0)


def _require_room(command: Command, nbytes: int) -> None:
    """The host's buffer must take ``nbytes``; only the transport's own descriptor can name one. Raises CommandError."""
    status = check_sgl(command.flags, command.sgl_id, command.sgl_address)
    if status:
        raise CommandError(status, location=SGL)
    if command.sgl_id != SGL_TRANSPORT_DATA_BLOCK:
        raise CommandError(Status.SGL_DESCRIPTOR_TYPE_INVALID | DNR, location=SGL)
    if command.sgl_length < nbytes:
        raise CommandError(Status.DATA_SGL_LENGTH_INVALID | DNR, location=SGL_LENGTH)


# --- commands ---------------------------------------------------------------------------------------------------------


def _identify(admin: AdminQueue, command: Command, data: memoryview | None) -> Reply:
    _require_room(command, IDENTIFY_SIZE)
    return identify(admin.controller, command)


def _get_log_page(admin: AdminQueue, command: Command, data: memoryview | None) -> Reply:
    """Reading a page changes things, so the host's buffer is looked at first."""
    dwords = GetLogPageDwords.decode(command.cdw10, command.cdw11, command.cdw12, command.cdw13, command.cdw14)
    _require_room(command, dwords.length)
    return get_log_page(admin.controller, command)


def _get_features(admin: AdminQueue, command: Command, data: memoryview | None) -> Reply:
    return admin.controller.features.get(admin.controller, command)


def _set_features(admin: AdminQueue, command: Command, data: memoryview | None) -> Reply | None:
    """Data come in the capsule, or are asked for and go to ``payload``."""
    features = admin.controller.features
    nbytes = features.check_set(admin.controller, command)
    if not nbytes:
        return features.set(admin, command, b"")
    status = check_sgl(command.flags, command.sgl_id, command.sgl_address)
    if status:
        raise CommandError(status, location=SGL)
    if not nbytes <= command.sgl_length <= ADMIN_IN_CAPSULE_BYTES:
        raise CommandError(Status.DATA_SGL_LENGTH_INVALID | DNR, location=SGL_LENGTH)
    if command.sgl_id == SGL_TRANSPORT_DATA_BLOCK:
        admin.queue.request(command.cid, command.sgl_length, command)
        return None
    if data is None or len(data) < command.sgl_length:
        raise CommandError(Status.DATA_SGL_LENGTH_INVALID | DNR, location=SGL_LENGTH)
    return features.set(admin, command, bytes(data))


def _async_event_request(admin: AdminQueue, command: Command, data: memoryview | None) -> None:
    admin.controller.events.request(command.cid)


def _abort(admin: AdminQueue, command: Command, data: memoryview | None) -> Reply:
    """Section 5.1: an immediate abort or none, so the limit of concurrent ones (ACL) is never reached."""
    sqid, cid = command.cdw10 & 0xFFFF, command.cdw10 >> 16
    queue = admin.controller.queues.get(sqid) if sqid else admin
    return Reply(dw0=0 if queue is not None and queue.abort(cid) else ABORT_NOT_ABORTED)


def _keep_alive(admin: AdminQueue, command: Command, data: memoryview | None) -> Reply:
    """Whatever a host sends keeps its controller alive (CTRATT.TBKAS); this is for one that has nothing to send."""
    return Reply()


HANDLERS: dict[int, Callable[[AdminQueue, Command, memoryview | None], Reply | None]] = {
    AdminOpcode.GET_LOG_PAGE: _get_log_page,
    AdminOpcode.IDENTIFY: _identify,
    AdminOpcode.ABORT: _abort,
    AdminOpcode.SET_FEATURES: _set_features,
    AdminOpcode.GET_FEATURES: _get_features,
    AdminOpcode.ASYNC_EVENT_REQUEST: _async_event_request,
    AdminOpcode.KEEP_ALIVE: _keep_alive,
}
"""Every controller has them all; what a discovery controller lacks are features, log pages and Identify structures."""
