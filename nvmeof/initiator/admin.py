"""Commands for the admin queue."""

from __future__ import annotations

from typing import NamedTuple, SupportsIndex

from nvmeof.errors import StatusError, TransportError, UsageError
from nvmeof.initiator.dispatch import Command, Dispatcher
from nvmeof.limits import HOST_TRANSFER_BYTES_MAX
from nvmeof.spec.command import (
    FEATURE_SELECT_SHIFT,
    NSID_ALL,
    SET_FEATURES_SAVE,
    AdminOpcode,
    FabricsType,
    GetLogPageDwords,
    IdentifyDwords,
    LogPage,
)
from nvmeof.spec.fabrics import PROPERTY_SIZES, PropertyDwords
from nvmeof.spec.identify import IDENTIFY_SIZE
from nvmeof.spec.logpage import INCARNATION_PAGE_UNIT, decode_incarnations
from nvmeof.spec.status import Status

NO_SUCH_PAGE = (Status.INVALID_LOG_PAGE, Status.INVALID_FIELD, Status.INVALID_OPCODE)
"""What controllers say to a log page they do not have; the Linux target says the second."""


class Completion(NamedTuple):
    """A successful completion: dwords 0 and 1 of the completion queue entry, and the data that was read."""

    dw0: int = 0
    dw1: int = 0
    data: bytes = b""


class Admin:
    """Issues admin and Fabrics commands.

    Every call raises StatusError when the controller refuses the command, ConnectionLost when the association ended
    before it was answered, TransportError when there is none, UsageError for an argument that fits no command.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._admin = dispatcher
        self.transfer_bytes_max = HOST_TRANSFER_BYTES_MAX
        """Largest transfer of one command (MDTS, and what we want to have in flight)."""

    async def admin(
        self,
        opcode: int,
        nsid: int = 0,
        *,
        cdw2: int = 0,
        cdw3: int = 0,
        cdw10: int = 0,
        cdw11: int = 0,
        cdw12: int = 0,
        cdw13: int = 0,
        cdw14: int = 0,
        cdw15: int = 0,
        data_in: int = 0,
        data_out: bytes | bytearray | memoryview = b"",
    ) -> Completion:
        """Any admin command; ``data_in`` is a number of bytes to read. The controller may return fewer.

        In a Fabrics command (opcode 7Fh) ``nsid`` holds FCTYPE.
        """
        dwords = (nsid, cdw2, cdw3, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15)
        whole = all(isinstance(each, SupportsIndex) for each in (opcode, *dwords, data_in))
        if not whole or not 0 <= opcode <= 0xFF or any(not 0 <= dword <= 0xFFFF_FFFF for dword in dwords):
            raise UsageError(f"admin command: got opcode {opcode}, dwords {dwords}, wanted 8 bits and 32 bits each")
        if data_in and len(data_out):
            raise UsageError("admin command: got data_in and data_out, wanted at most one of them")
        if not 0 <= data_in <= HOST_TRANSFER_BYTES_MAX or len(data_out) > HOST_TRANSFER_BYTES_MAX:
            raise UsageError(
                f"admin command: got {data_in or len(data_out)} bytes, wanted {HOST_TRANSFER_BYTES_MAX} at most"
            )
        command = Command(
            opcode, nsid, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15, cdw2=cdw2, cdw3=cdw3, partial=True,
            data_out=memoryview(bytes(data_out)) if len(data_out) else None,
        )  # fmt: skip
        return await self._run(command, data_in, _name(opcode, nsid))

    async def identify(self, cns: int, nsid: int = 0, cntid: int = 0, csi: int = 0) -> bytes:
        """4096 bytes of the structure ``cns`` (``nvmeof.spec.command.Cns``)."""
        _check("identify", cns=(cns, 8), nsid=(nsid, 32), cntid=(cntid, 16), csi=(csi, 8))
        cdw10, cdw11, cdw14 = IdentifyDwords(cns, cntid, csi=csi).encode()
        command = Command(AdminOpcode.IDENTIFY, nsid, cdw10, cdw11, cdw14=cdw14)
        return (await self._run(command, IDENTIFY_SIZE, f"Identify CNS {cns:02X}h")).data

    async def get_log_page(
        self,
        lid: int,
        length: int,
        offset: int = 0,
        nsid: int = NSID_ALL,
        lsp: int = 0,
        lsi: int = 0,
        rae: bool = False,
    ) -> bytes:
        """``length`` bytes of log page ``lid`` from ``offset``, both multiples of 4; in commands of at most MDTS.

        ``rae`` keeps the event that announced a change of this page; otherwise reading it allows the next one.
        """
        _check("log page", lid=(lid, 8), nsid=(nsid, 32), lsp=(lsp, 7), lsi=(lsi, 16))
        if length <= 0 or length % 4 or offset < 0 or offset % 4:
            raise UsageError(f"log page: got {length} bytes at {offset}, wanted multiples of 4, at least 4 bytes")
        _check("log page", length=(length, 34), end=(offset + length, 64))
        parts = []
        for position in range(0, length, self.transfer_bytes_max):
            size = min(length - position, self.transfer_bytes_max)
            last = position + size == length
            page = GetLogPageDwords(lid, size, offset + position, lsp, lsi, rae or not last)
            command = Command(AdminOpcode.GET_LOG_PAGE, nsid, *page.encode())
            parts.append((await self._run(command, size, f"Get Log Page {lid:02X}h")).data)
        return b"".join(parts)

    async def incarnation(self, nsid: int) -> bytes | None:
        """16 bytes that change when acknowledged writes to a namespace may have been lost before they were flushed.

        The same before a write and after a later flush: the write is on media, whatever happened to the connection.
        From the log page C0h of our own target; None from a controller that has none, which proves nothing.
        """
        try:
            page = await self.get_log_page(LogPage.INCARNATION, INCARNATION_PAGE_UNIT, nsid=nsid)
        except StatusError as error:
            if error.status_code_type << 8 | error.status_code in NO_SUCH_PAGE:
                return None
            raise
        try:
            incarnations = decode_incarnations(page)
        except ValueError as error:
            raise TransportError(f"log page C0h: {error}") from error
        if incarnations is not None and nsid not in incarnations:
            raise TransportError(f"log page C0h: got namespaces {sorted(incarnations)}, wanted {nsid}")
        return None if incarnations is None else incarnations[nsid]

    async def get_features(self, fid: int, select: int = 0, nsid: int = 0, length: int = 0) -> tuple[int, bytes]:
        """Completion dword 0 and up to ``length`` bytes of feature ``fid`` (``nvmeof.spec.command.FeatureId``)."""
        _check("get features", fid=(fid, 8), select=(select, 3), nsid=(nsid, 32))
        if not 0 <= length <= HOST_TRANSFER_BYTES_MAX:
            raise UsageError(f"get features: length: got {length}, wanted 0 to {HOST_TRANSFER_BYTES_MAX}")
        command = Command(AdminOpcode.GET_FEATURES, nsid, fid | select << FEATURE_SELECT_SHIFT, partial=True)
        completion = await self._run(command, length, f"Get Features {fid:02X}h")
        return completion.dw0, completion.data

    async def set_features(
        self, fid: int, value: int, nsid: int = 0, save: bool = False, data: bytes | bytearray | memoryview = b""
    ) -> int:
        """Set feature ``fid`` to command dword 11 and ``data``. Returns completion dword 0."""
        _check("set features", fid=(fid, 8), value=(value, 32), nsid=(nsid, 32))
        if len(data) > HOST_TRANSFER_BYTES_MAX:
            raise UsageError(f"set features: got {len(data)} bytes, wanted {HOST_TRANSFER_BYTES_MAX} at most")
        command = Command(
            AdminOpcode.SET_FEATURES, nsid, fid | (SET_FEATURES_SAVE if save else 0), value,
            data_out=memoryview(bytes(data)) if len(data) else None,
        )  # fmt: skip
        return (await self._run(command, 0, f"Set Features {fid:02X}h")).dw0

    async def property_get(self, offset: int) -> int:
        """The property at ``offset`` (``nvmeof.spec.fabrics.Property``): 8 bytes of CAP, 4 of the others."""
        _check("property get", offset=(offset, 32))
        size = PROPERTY_SIZES.get(offset, 4)
        command = Command(AdminOpcode.FABRICS, FabricsType.PROPERTY_GET, *PropertyDwords(offset, size).encode())
        completion = await self._run(command, 0, f"Property Get {offset:#x}")
        return completion.dw0 | completion.dw1 << 32 if size == 8 else completion.dw0

    async def property_set(self, offset: int, value: int) -> None:
        """Write a property. CC is the controller's life: ``open`` and ``close`` write it."""
        if offset not in PROPERTY_SIZES:
            wanted = ", ".join(f"{known:#x}" for known in PROPERTY_SIZES)
            raise UsageError(f"property set: offset: got {offset!r}, wanted one of {wanted}")
        _check("property set", value=(value, 8 * PROPERTY_SIZES[offset]))
        dwords = PropertyDwords(offset, PROPERTY_SIZES[offset], value).encode()
        command = Command(AdminOpcode.FABRICS, FabricsType.PROPERTY_SET, *dwords)
        await self._run(command, 0, f"Property Set {offset:#x}")

    async def _run(self, command: Command, data_in: int, context: str) -> Completion:
        buffer = bytearray(data_in)
        if data_in:
            command = command._replace(data_in=memoryview(buffer))
        request = await self._admin.run_one(command, context)
        return Completion(request.dw0, request.dw1, bytes(buffer[: request.received]))


def _check(command: str, **fields: tuple[int, int]) -> None:
    """(value, bits) of each field. Raises UsageError for a value that does not fit."""
    for name, (value, bits) in fields.items():
        if not isinstance(value, SupportsIndex) or not 0 <= value < 1 << bits:
            raise UsageError(f"{command}: {name}: got {value!r}, wanted 0 to {(1 << bits) - 1:#x}")


def _name(opcode: int, nsid: int) -> str:
    if opcode == AdminOpcode.FABRICS:
        known = nsid in list(FabricsType)
        return FabricsType(nsid).name.replace("_", " ").title() if known else f"Fabrics command {nsid:02X}h"
    return (
        AdminOpcode(opcode).name.replace("_", " ").title() if opcode in list(AdminOpcode) else f"opcode {opcode:02X}h"
    )
