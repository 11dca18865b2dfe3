"""Fabrics commands of a connected queue: Property Get and Set, Disconnect (NVMe Base 2.0, section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvmeof.spec.command import FabricsType
from nvmeof.spec.fabrics import PropertyDwords
from nvmeof.spec.status import DNR, Status
from nvmeof.target.command import Command, CommandError, Reply

if TYPE_CHECKING:
    from nvmeof.protocol.target_queue import Sqe
    from nvmeof.target.admin import AdminQueue
    from nvmeof.target.io import IoQueue


def on_admin_queue(admin: AdminQueue, command: Command, data: memoryview | None) -> Reply:
    """A Fabrics command on a connected admin queue. Raises CommandError."""
    match command.nsid & 0xFF:
        case FabricsType.PROPERTY_GET:
            dwords = PropertyDwords.decode(command.cdw10, command.cdw11)
            value = admin.controller.property_get(dwords.offset, dwords.size)
            return Reply(dw0=value & 0xFFFF_FFFF, dw1=value >> 32)
        case FabricsType.PROPERTY_SET:
            dwords = PropertyDwords.decode(command.cdw10, command.cdw11, command.cdw12, command.cdw13)
            admin.controller.property_set(dwords.offset, dwords.size, dwords.value)
            return Reply()
        case FabricsType.CONNECT:
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR | DNR)
        case FabricsType.DISCONNECT:
            raise CommandError(Status.INVALID_QUEUE_TYPE | DNR)
    raise CommandError(Status.INVALID_OPCODE | DNR)


def on_io_queue(queue: IoQueue, sqe: Sqe) -> None:
    """A Fabrics command on a connected I/O queue: Disconnect, and nothing else."""
    command = Command._make(sqe)
    fctype = command.nsid & 0xFF
    if fctype != FabricsType.DISCONNECT:
        known = fctype in FabricsType._value2member_map_
        status = Status.COMMAND_SEQUENCE_ERROR if known else Status.INVALID_OPCODE
        queue.queue.complete(command.cid, status | DNR)
    elif command.cdw10 & 0xFFFF:
        queue.queue.complete(command.cid, Status.CONNECT_INCOMPATIBLE_FORMAT | DNR)
    else:
        queue.queue.complete(command.cid)
        queue.queue.close()
