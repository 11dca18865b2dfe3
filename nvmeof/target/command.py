"""What every command handler shares: the unpacked command, its reply, and how an exception becomes a status."""

from __future__ import annotations

import logging
from typing import NamedTuple

from nvmeof.errors import CapacityError, NvmeofError, ReadFault, WriteFault
from nvmeof.spec.command import PSDT_MASK, PSDT_SGL, SGL_DATA_BLOCK_OFFSET, SGL_TRANSPORT_DATA_BLOCK
from nvmeof.spec.status import DNR, Status

log = logging.getLogger("nvmeof.target")


class Command(NamedTuple):
    """A submission queue entry as ``UNPACK_SQE`` gives it. In a Fabrics command ``nsid`` holds FCTYPE."""

    opcode: int
    flags: int
    cid: int
    nsid: int
    sgl_address: int
    sgl_length: int
    sgl_id: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int


class Reply(NamedTuple):
    """Successful completion: dword 0 and 1, and the data to transfer (at most what the command's SGL takes)."""

    dw0: int = 0
    dw1: int = 0
    data: bytes = b""


class CommandError(NvmeofError):
    """Ends a command with ``status`` (DNR included) and ``dw0``.

    ``location`` is the Parameter Error Location of the error log: byte of the SQE, bit in bits 10:8; FFFFh if none.
    """

    def __init__(self, status: int, dw0: int = 0, location: int = 0xFFFF) -> None:
        super().__init__(f"status {status:#06x}")
        self.status = int(status)
        self.dw0 = dw0
        self.location = location


def status_of(error: BaseException) -> int:
    """The status a command completes with after ``error``. The only place that knows."""
    match error:
        case CommandError():
            return error.status
        case ReadFault():
            return Status.UNRECOVERED_READ_ERROR
        case WriteFault():
            return Status.WRITE_FAULT | DNR
        case CapacityError():
            return Status.CAPACITY_EXCEEDED
        case MemoryError():
            return Status.INTERNAL_ERROR
    log.error("internal error while executing a command", exc_info=error)
    return Status.INTERNAL_ERROR


def check_sgl(flags: int, sgl_id: int, sgl_address: int) -> int:
    """Status for the data pointer of a command that transfers data, 0 when it is one that NVMe/TCP allows.

    NVMe/TCP Transport 1.0, section 3.3.2: one data block descriptor, in the capsule (offset 0, as ICDOFF is 0) or
    transport-specific.
    """
    if flags & PSDT_MASK != PSDT_SGL:
        return Status.INVALID_FIELD | DNR
    if sgl_id == SGL_TRANSPORT_DATA_BLOCK:
        return Status.SUCCESS
    if sgl_id != SGL_DATA_BLOCK_OFFSET:
        return Status.SGL_DESCRIPTOR_TYPE_INVALID | DNR
    return Status.SGL_OFFSET_INVALID | DNR if sgl_address else Status.SUCCESS
