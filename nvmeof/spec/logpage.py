"""Log pages: NVMe Base 2.0 section 5.16.1. The Discovery log page is in :mod:`nvmeof.spec.fabrics`.

Vendor log page C0h: the incarnation of each namespace
------------------------------------------------------
A Flush promises what was written since the cache it flushes was last lost. The incarnation, 16 random bytes, is new
whenever acknowledged writes that were not flushed may have been lost. A host reads it before it writes and after it has
flushed: if both are the same, the Flush covers every write between them, whatever reconnects there were.

======== =================================================================================================
bytes    header, 64 bytes, little-endian
======== =================================================================================================
0:15     ``nvmeof incarnate`` in ASCII; LID C0h of another vendor holds something else here
16:17    version, 1; a newer one only gives meaning to reserved bytes or makes entries longer
18:19    bytes of an entry, 32
20:23    number of entries
24:63    reserved, zero
======== =================================================================================================

======== =================================================================================================
bytes    entry, 32 bytes, one for each namespace, by ascending NSID
======== =================================================================================================
0:15     incarnation
16:19    NSID
20:31    reserved, zero
======== =================================================================================================

NSID of the command: one namespace, whose entry is then the only one (Invalid Namespace or Format if it is not active);
0 or FFFFFFFFh for all. Zeroes follow up to a multiple of 512 bytes. Offsets (LPO) are in bytes. No event belongs to
the page, so Retain Asynchronous Event has no effect.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from nvmeof.errors import LocalProtocolError
from nvmeof.spec.command import NSID_ALL
from nvmeof.spec.fields import BitLayout
from nvmeof.spec.identify_lists import NAMESPACE_LIST_MAX, decode_namespace_list, encode_namespace_list
from nvmeof.spec.layout import U8, U16, U32, U64, Bytes, Layout

SUPPORTED_LOG_PAGES_SIZE = 1024
ERROR_ENTRY_SIZE = 64
SMART_SIZE = 512
FIRMWARE_SLOT_SIZE = 512
COMMANDS_SUPPORTED_SIZE = 4096
INCARNATION_PAGE_UNIT = 512


class LogPageSupport(IntFlag):
    """One dword of the Supported Log Pages log (LID 00h); bits 31:16 are specific to the page: Base 2.0 figure 204."""

    SUPPORTED = 0x1
    INDEX_OFFSET = 0x2


def encode_supported_log_pages(pages: Mapping[int, int]) -> bytes:
    """LID 00h, 1024 bytes: the support dword of each log page identifier (0 to 255), zero for the others."""
    return _dword_table(pages, "supported log pages")


def decode_supported_log_pages(data: bytes | bytearray | memoryview) -> dict[int, int]:
    """The support dwords that say supported, by identifier. Raises ValueError below 1024 bytes."""
    _require(data, SUPPORTED_LOG_PAGES_SIZE, "supported log pages")
    return {lid: dword for lid, dword in enumerate(struct.unpack_from("<256I", data)) if dword & 1}


NO_PARAMETER = 0xFFFF
"""Parameter error location, SQID or CID of an error that belongs to no parameter, queue or command."""


class ErrorEntry(NamedTuple):
    """One entry of the Error Information log (LID 01h), 64 bytes, newest first: Base 2.0 figure 206.

    ``status`` is the wire word of the completion (status value shifted left by one); ``parameter_error`` comes from
    :func:`parameter_error`; ``vendor_page`` is a log page identifier of 80h or more, or 0.
    """

    error_count: U64 = 0
    sqid: U16 = NO_PARAMETER
    cid: U16 = NO_PARAMETER
    status: U16 = 0
    parameter_error: U16 = NO_PARAMETER
    lba: U64 = 0
    nsid: U32 = 0
    vendor_page: U8 = 0
    trtype: U8 = 0
    reserved30: Annotated[bytes, Bytes(2)] = bytes(2)
    command_specific: U64 = 0
    transport_specific: U16 = 0
    reserved42: Annotated[bytes, Bytes(22)] = bytes(22)


ERROR_ENTRY = Layout(
    ErrorEntry,
    size=ERROR_ENTRY_SIZE,
    offsets={
        "error_count": 0,
        "sqid": 8,
        "cid": 10,
        "status": 12,
        "parameter_error": 14,
        "lba": 16,
        "nsid": 24,
        "vendor_page": 28,
        "trtype": 29,
        "command_specific": 32,
        "transport_specific": 40,
    },
)


def parameter_error(byte: int, bit: int = 0) -> int:
    """Parameter Error Location: byte of the submission queue entry (0 to 63) and bit in it (0 to 7)."""
    return byte | bit << 8


class SmartWarning(IntFlag):
    """Critical Warning of the SMART log; the same bits enable events in Asynchronous Event Configuration."""

    SPARE = 0x01
    TEMPERATURE = 0x02
    RELIABILITY = 0x04
    READ_ONLY = 0x08
    VOLATILE_BACKUP = 0x10
    PERSISTENT_MEMORY = 0x20


class SmartLog(NamedTuple):
    """SMART / Health Information (LID 02h), 512 bytes: Base 2.0 figure 207.

    Temperatures in kelvin; the counters of 16 bytes are 128-bit numbers (:func:`nvmeof.spec.fields.u128`).
    ``data_units_*`` count thousands of 512 bytes, rounded up; ``controller_busy_time`` in minutes.
    """

    critical_warning: U8 = 0
    temperature: U16 = 0
    available_spare: U8 = 100
    available_spare_threshold: U8 = 0
    percentage_used: U8 = 0
    endurance_group_warning: U8 = 0
    reserved7: Annotated[bytes, Bytes(25)] = bytes(25)
    data_units_read: Annotated[bytes, Bytes(16)] = bytes(16)
    data_units_written: Annotated[bytes, Bytes(16)] = bytes(16)
    host_read_commands: Annotated[bytes, Bytes(16)] = bytes(16)
    host_write_commands: Annotated[bytes, Bytes(16)] = bytes(16)
    controller_busy_time: Annotated[bytes, Bytes(16)] = bytes(16)
    power_cycles: Annotated[bytes, Bytes(16)] = bytes(16)
    power_on_hours: Annotated[bytes, Bytes(16)] = bytes(16)
    unsafe_shutdowns: Annotated[bytes, Bytes(16)] = bytes(16)
    media_errors: Annotated[bytes, Bytes(16)] = bytes(16)
    error_log_entries: Annotated[bytes, Bytes(16)] = bytes(16)
    warning_temperature_time: U32 = 0
    critical_temperature_time: U32 = 0
    temperature_sensors: Annotated[bytes, Bytes(16)] = bytes(16)
    thermal_transitions_1: U32 = 0
    thermal_transitions_2: U32 = 0
    thermal_time_1: U32 = 0
    thermal_time_2: U32 = 0
    reserved232: Annotated[bytes, Bytes(280)] = bytes(280)


SMART_LOG = Layout(
    SmartLog,
    size=SMART_SIZE,
    offsets={
        "critical_warning": 0,
        "temperature": 1,
        "available_spare": 3,
        "available_spare_threshold": 4,
        "percentage_used": 5,
        "endurance_group_warning": 6,
        "data_units_read": 32,
        "data_units_written": 48,
        "host_read_commands": 64,
        "host_write_commands": 80,
        "controller_busy_time": 96,
        "power_cycles": 112,
        "power_on_hours": 128,
        "unsafe_shutdowns": 144,
        "media_errors": 160,
        "error_log_entries": 176,
        "warning_temperature_time": 192,
        "critical_temperature_time": 196,
        "temperature_sensors": 200,
        "thermal_transitions_1": 216,
        "thermal_time_2": 228,
        "reserved232": 232,
    },
)


class FirmwareSlotLog(NamedTuple):
    """Firmware Slot Information (LID 03h), 512 bytes: Base 2.0 figure 209.

    ``afi``: bits 2:0 the active slot, bits 6:4 the slot for the next reset. ``frs*`` are ASCII, zero when empty.
    """

    afi: U8 = 1
    reserved1: Annotated[bytes, Bytes(7)] = bytes(7)
    frs1: Annotated[bytes, Bytes(8)] = bytes(8)
    frs2: Annotated[bytes, Bytes(8)] = bytes(8)
    frs3: Annotated[bytes, Bytes(8)] = bytes(8)
    frs4: Annotated[bytes, Bytes(8)] = bytes(8)
    frs5: Annotated[bytes, Bytes(8)] = bytes(8)
    frs6: Annotated[bytes, Bytes(8)] = bytes(8)
    frs7: Annotated[bytes, Bytes(8)] = bytes(8)
    reserved64: Annotated[bytes, Bytes(448)] = bytes(448)


FIRMWARE_SLOT_LOG = Layout(
    FirmwareSlotLog, size=FIRMWARE_SLOT_SIZE, offsets={"afi": 0, "frs1": 8, "frs7": 56, "reserved64": 64}
)


def encode_changed_namespaces(nsids: Iterable[int]) -> bytes:
    """Changed Namespace List (LID 04h), 4096 bytes. More than 1024 become the single entry FFFFFFFFh."""
    numbers = sorted(set(nsids))
    return encode_namespace_list(numbers if len(numbers) <= NAMESPACE_LIST_MAX else [NSID_ALL])


def decode_changed_namespaces(data: bytes | bytearray | memoryview) -> list[int]:
    """Namespaces that changed; ``[0xFFFFFFFF]`` says any of them may have. Raises ValueError below 4096 bytes."""
    return decode_namespace_list(data)


class CommandEffect(IntFlag):
    """One dword of the Commands Supported and Effects log (LID 05h). Bits 18:16 are CSE, bits 31:20 the scope."""

    SUPPORTED = 1 << 0
    BLOCK_CONTENT_CHANGE = 1 << 1
    NAMESPACE_CAPABILITY_CHANGE = 1 << 2
    NAMESPACE_INVENTORY_CHANGE = 1 << 3
    CONTROLLER_CAPABILITY_CHANGE = 1 << 4
    ALONE_IN_NAMESPACE = 1 << 16
    ALONE_IN_CONTROLLER = 1 << 17
    UUID_SELECTION = 1 << 19
    NAMESPACE_SCOPE = 1 << 20
    CONTROLLER_SCOPE = 1 << 21


class CommandEffects(NamedTuple):
    """Commands Supported and Effects (LID 05h), 4096 bytes: Base 2.0 figure 210. Dwords by opcode."""

    admin: Mapping[int, int]
    io: Mapping[int, int]

    def encode(self) -> bytes:
        tables = _dword_table(self.admin, "admin effects") + _dword_table(self.io, "I/O effects")
        return tables.ljust(COMMANDS_SUPPORTED_SIZE, b"\0")

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> CommandEffects:
        """Opcodes that are supported. Raises ValueError below 4096 bytes."""
        _require(data, COMMANDS_SUPPORTED_SIZE, "commands supported and effects")
        dwords = struct.unpack_from("<512I", data)
        return cls(
            {opcode: dword for opcode, dword in enumerate(dwords[:256]) if dword & 1},
            {opcode: dword for opcode, dword in enumerate(dwords[256:]) if dword & 1},
        )


class AnaState(IntEnum):
    """Asymmetric Namespace Access state of a group."""

    OPTIMIZED = 0x1
    NON_OPTIMIZED = 0x2
    INACCESSIBLE = 0x3
    PERSISTENT_LOSS = 0x4
    CHANGE = 0xF


class AnaHeader(NamedTuple):
    """Head of the ANA log (LID 0Ch), 16 bytes."""

    change_count: U64 = 0
    groups: U16 = 0
    reserved10: Annotated[bytes, Bytes(6)] = bytes(6)


class AnaDescriptor(NamedTuple):
    """ANA Group Descriptor, 32 bytes, followed by ``nsid_count`` NSIDs of 4 bytes."""

    group: U32
    nsid_count: U32
    change_count: U64
    state: U8
    reserved17: Annotated[bytes, Bytes(15)] = bytes(15)


ANA_HEADER = Layout(AnaHeader, size=16, offsets={"change_count": 0, "groups": 8})
ANA_DESCRIPTOR = Layout(
    AnaDescriptor, size=32, offsets={"group": 0, "nsid_count": 4, "change_count": 8, "state": 16, "reserved17": 17}
)


class AnaGroup(NamedTuple):
    """One ANA group as it stands in the log."""

    group: int
    state: int
    nsids: Sequence[int] = ()
    change_count: int = 0


def encode_ana(change_count: int, groups: Sequence[AnaGroup]) -> bytes:
    """The ANA log with the NSIDs of each group (RGO cleared)."""
    parts = [ANA_HEADER.encode(AnaHeader(change_count, len(groups)))]
    for group, state, nsids, group_change_count in groups:
        parts.append(ANA_DESCRIPTOR.encode(AnaDescriptor(group, len(nsids), group_change_count, state)))
        parts.append(struct.pack(f"<{len(nsids)}I", *nsids))
    return b"".join(parts)


def decode_ana(data: bytes | bytearray | memoryview) -> list[AnaGroup]:
    """The groups of an ANA log. Raises ValueError when it ends before they do."""
    header = ANA_HEADER.decode(data)
    position = ANA_HEADER.size
    groups = []
    for _ in range(header.groups):
        descriptor = ANA_DESCRIPTOR.decode(data, position)
        position += ANA_DESCRIPTOR.size
        _require(data, position + 4 * descriptor.nsid_count, "ANA log")
        nsids = struct.unpack_from(f"<{descriptor.nsid_count}I", data, position)
        position += 4 * descriptor.nsid_count
        groups.append(AnaGroup(descriptor.group, descriptor.state & 0xF, nsids, descriptor.change_count))
    return groups


INCARNATION_MAGIC = b"nvmeof incarnate"
INCARNATION_VERSION = 1


class IncarnationHeader(NamedTuple):
    """Head of vendor log page C0h, 64 bytes; the docstring of this module explains it."""

    magic: Annotated[bytes, Bytes(16)] = INCARNATION_MAGIC
    version: U16 = INCARNATION_VERSION
    entry_size: U16 = 32
    entries: U32 = 0
    reserved24: Annotated[bytes, Bytes(40)] = bytes(40)


class IncarnationEntry(NamedTuple):
    """One namespace of vendor log page C0h, 32 bytes."""

    incarnation: Annotated[bytes, Bytes(16)] = bytes(16)
    nsid: U32 = 0
    reserved20: Annotated[bytes, Bytes(12)] = bytes(12)


INCARNATION_HEADER = Layout(
    IncarnationHeader, size=64, offsets={"magic": 0, "version": 16, "entry_size": 18, "entries": 20, "reserved24": 24}
)
INCARNATION_ENTRY = Layout(IncarnationEntry, size=32, offsets={"incarnation": 0, "nsid": 16, "reserved20": 20})


def encode_incarnations(incarnations: Mapping[int, bytes]) -> bytes:
    """Vendor log page C0h from incarnations (16 bytes) by NSID."""
    header = INCARNATION_HEADER.encode(IncarnationHeader(entries=len(incarnations)))
    entries = [INCARNATION_ENTRY.encode(IncarnationEntry(incarnations[nsid], nsid)) for nsid in sorted(incarnations)]
    page = b"".join([header, *entries])
    return page.ljust(-(-len(page) // INCARNATION_PAGE_UNIT) * INCARNATION_PAGE_UNIT, b"\0")


def decode_incarnations(data: bytes | bytearray | memoryview) -> dict[int, bytes] | None:
    """Incarnations by NSID, as far as ``data`` holds entries; None when it is the page of another vendor.

    Raises ValueError below 64 bytes and for entries that are shorter than those of version 1.
    """
    header = INCARNATION_HEADER.decode(data)
    if header.magic != INCARNATION_MAGIC:
        return None
    if header.entry_size < INCARNATION_ENTRY.size:
        raise ValueError(f"incarnations: got entries of {header.entry_size} bytes, wanted {INCARNATION_ENTRY.size}")
    held = min(header.entries, (len(data) - INCARNATION_HEADER.size) // header.entry_size)
    places = range(INCARNATION_HEADER.size, INCARNATION_HEADER.size + held * header.entry_size, header.entry_size)
    entries = [INCARNATION_ENTRY.decode(data, place) for place in places]
    return {entry.nsid: entry.incarnation for entry in entries}


class AsyncEvent(NamedTuple):
    """Completion dword 0 of Asynchronous Event Request: Base 2.0 figure 143. ``log_page`` clears the event."""

    event_type: int = 0
    info: int = 0
    log_page: int = 0


ASYNC_EVENT = BitLayout(AsyncEvent, {"event_type": (2, 0), "info": (15, 8), "log_page": (23, 16)})


def _dword_table(entries: Mapping[int, int], what: str) -> bytes:
    if any(not 0 <= index <= 255 for index in entries):
        raise LocalProtocolError(f"{what}: got {sorted(entries)}, wanted indexes from 0 to 255")
    return struct.pack("<256I", *(entries.get(index, 0) for index in range(256)))


def _require(data: bytes | bytearray | memoryview, size: int, what: str) -> None:
    if len(data) < size:
        raise ValueError(f"{what} needs {size} bytes, got {len(data)}")
