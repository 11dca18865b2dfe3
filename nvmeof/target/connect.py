"""Connect: what makes a connection an admin or an I/O queue (NVMe Base 2.0, section 6.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvmeof.limits import ADMIN_QUEUE_ENTRIES_MAX, KEEP_ALIVE_MS_MAX, QUEUE_ENTRIES_MAX
from nvmeof.spec.command import SGL_DATA_BLOCK_OFFSET
from nvmeof.spec.fabrics import (
    CNTLID_DYNAMIC,
    CONNECT_DATA,
    ConnectAttribute,
    ConnectDataField,
    ConnectDwords,
    ConnectField,
    decode_nqn,
    invalid_parameter,
)
from nvmeof.spec.status import DNR, Status
from nvmeof.target.admin import AdminQueue
from nvmeof.target.command import Command, CommandError, check_sgl, log
from nvmeof.target.controller import Controller
from nvmeof.target.io import IoQueue

if TYPE_CHECKING:
    from nvmeof.target.connection import Connection
    from nvmeof.target.subsystem import Subsystem

CONNECT_DATA_SIZE = CONNECT_DATA.size


def _invalid(field: ConnectField | ConnectDataField) -> CommandError:
    """Connect Invalid Parameters, naming the field in dword 0 (figure 381)."""
    return CommandError(Status.CONNECT_INVALID_PARAMETERS | DNR, invalid_parameter(field))


def connect_needs_data(command: Command, data: memoryview | None) -> bool:
    """Whether the Connect data must still be asked for. Raises CommandError for an unusable SGL."""
    status = check_sgl(command.flags, command.sgl_id, command.sgl_address)
    if status:
        raise CommandError(status)
    in_capsule = command.sgl_id == SGL_DATA_BLOCK_OFFSET
    if command.sgl_length != CONNECT_DATA_SIZE or (in_capsule and (data is None or len(data) < CONNECT_DATA_SIZE)):
        raise CommandError(Status.DATA_SGL_LENGTH_INVALID | DNR)
    return not in_capsule


@dataclass(frozen=True)
class ConnectRequest:
    """A Connect command whose names and sizes are acceptable."""

    cid: int
    qid: int
    entries: int
    flow_control: bool
    kato_ms: int
    hostid: bytes
    hostnqn: str
    cntlid: int
    subsystem: Subsystem

    @classmethod
    def parse(cls, connection: Connection, command: Command, data: bytes) -> ConnectRequest:
        """Check everything that does not depend on a controller. Raises CommandError."""
        dwords = ConnectDwords.decode(command.cdw10, command.cdw11, command.cdw12)
        if dwords.recfmt:
            raise CommandError(Status.CONNECT_INCOMPATIBLE_FORMAT | DNR)
        entries_max = QUEUE_ENTRIES_MAX if dwords.qid else ADMIN_QUEUE_ENTRIES_MAX
        if not 1 <= dwords.sqsize < entries_max:
            raise _invalid(ConnectField.SQSIZE)
        if not dwords.qid and dwords.kato > KEEP_ALIVE_MS_MAX:
            raise _invalid(ConnectField.KATO)
        fields = CONNECT_DATA.decode(data)
        subsystem = _find_subsystem(connection, fields.subnqn)
        try:
            hostnqn = decode_nqn(fields.hostnqn)
        except ValueError as error:
            raise _invalid(ConnectDataField.HOSTNQN) from error
        if not subsystem.allows(hostnqn):
            log.warning("%s: host %s is not allowed at %s", connection.peer, hostnqn, subsystem.nqn)
            raise CommandError(Status.CONNECT_INVALID_HOST | DNR)
        return cls(
            cid=command.cid,
            qid=dwords.qid,
            entries=dwords.sqsize + 1,
            flow_control=not dwords.cattr & ConnectAttribute.DISABLE_SQ_FLOW_CONTROL,
            kato_ms=dwords.kato,
            hostid=fields.hostid,
            hostnqn=hostnqn,
            cntlid=fields.cntlid,
            subsystem=subsystem,
        )


def _find_subsystem(connection: Connection, field: bytes) -> Subsystem:
    try:
        nqn = decode_nqn(field)
    except ValueError as error:
        raise _invalid(ConnectDataField.SUBNQN) from error
    subsystem = connection.target.find_subsystem(nqn, connection.listener)
    if subsystem is None:
        raise _invalid(ConnectDataField.SUBNQN)
    return subsystem


def connect(connection: Connection, request: ConnectRequest) -> None:
    """Make the connection an admin or an I/O queue and answer. Raises CommandError."""
    if connection.target.draining:
        raise CommandError(Status.CONNECT_CONTROLLER_BUSY)
    cntlid = _connect_io(connection, request) if request.qid else _connect_admin(connection, request)
    queue = connection.queue
    queue.set_queue(request.qid, request.entries, flow_control=request.flow_control)
    queue.complete(request.cid, Status.SUCCESS, cntlid)
    queue.established()


def _connect_admin(connection: Connection, request: ConnectRequest) -> int:
    subsystem = request.subsystem
    if request.cntlid != CNTLID_DYNAMIC:
        raise _invalid(ConnectDataField.CNTLID)
    cntlid = subsystem.new_cntlid()
    if cntlid is None:
        raise CommandError(Status.CONNECT_CONTROLLER_BUSY)
    controller = Controller(subsystem, cntlid, request.hostid, request.hostnqn, request.kato_ms)
    subsystem.controllers[cntlid] = controller
    controller.admin = connection.owner = AdminQueue(connection, controller, request.entries)
    connection.queue.sink = controller.admin
    log.info("controller %d of %s for %s at %s", cntlid, subsystem.nqn, request.hostnqn, connection.peer)
    return cntlid


def _connect_io(connection: Connection, request: ConnectRequest) -> int:
    controller = request.subsystem.controllers.get(request.cntlid)
    if controller is None:
        raise _invalid(ConnectDataField.CNTLID)
    if controller.hostnqn != request.hostnqn:
        raise _invalid(ConnectDataField.HOSTNQN)
    if controller.hostid != request.hostid:
        raise _invalid(ConnectDataField.HOSTID)
    if controller.is_discovery or request.qid > controller.features.io_queues or request.qid in controller.queues:
        raise _invalid(ConnectField.QID)
    if not controller.ready:
        raise CommandError(Status.COMMAND_SEQUENCE_ERROR)
    queue = IoQueue(connection, controller, request.qid, request.entries)
    controller.queues[request.qid] = connection.owner = queue
    connection.queue.sink = queue
    return controller.cntlid
