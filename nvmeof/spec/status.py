"""Status values of completions: NVMe Base 2.0 section 3.3.3.2.1, NVM Command Set 1.0 section 3.1, Base 2.1 additions.

Everywhere in this package a status is the 15-bit field of the completion queue entry, ``sct << 8 | sc`` with the
DNR, MORE and CRD bits above it. The word on the wire is that value shifted left by one; bit 0 is the phase tag,
which is reserved in NVMe over Fabrics.

>>> hex(Status.LBA_OUT_OF_RANGE | DNR)
'0x4080'
>>> describe(Status.LBA_OUT_OF_RANGE | DNR)
'LBA Out of Range (SCT 0x0, SC 0x80, DNR)'
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

DNR = 0x4000
MORE = 0x2000
CRD_SHIFT = 11
CODE_MASK = 0x07FF


class StatusCodeType(IntEnum):
    """SCT, Base 2.0 section 3.3.3.2.1. 4h to 6h are reserved."""

    GENERIC = 0
    COMMAND_SPECIFIC = 1
    MEDIA = 2
    PATH = 3
    VENDOR = 7


class Status(IntEnum):
    """Every status defined for the base specification, the NVM Command Set and the Fabrics command set.

    Values 180h to 185h mean one thing for Fabrics commands and another for I/O commands; both names are members.
    """

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    COMMAND_ID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    ABORTED_POWER_LOSS = 0x005
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    ABORTED_SQ_DELETION = 0x008
    ABORTED_FAILED_FUSED = 0x009
    ABORTED_MISSING_FUSED = 0x00A
    INVALID_NAMESPACE_OR_FORMAT = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_SGL_SEGMENT_DESCRIPTOR = 0x00D
    INVALID_SGL_DESCRIPTOR_COUNT = 0x00E
    DATA_SGL_LENGTH_INVALID = 0x00F
    METADATA_SGL_LENGTH_INVALID = 0x010
    SGL_DESCRIPTOR_TYPE_INVALID = 0x011
    INVALID_USE_OF_CMB = 0x012
    PRP_OFFSET_INVALID = 0x013
    ATOMIC_WRITE_UNIT_EXCEEDED = 0x014
    OPERATION_DENIED = 0x015
    SGL_OFFSET_INVALID = 0x016
    HOST_IDENTIFIER_INCONSISTENT_FORMAT = 0x018
    KEEP_ALIVE_TIMER_EXPIRED = 0x019
    KEEP_ALIVE_TIMEOUT_INVALID = 0x01A
    ABORTED_PREEMPT = 0x01B
    SANITIZE_FAILED = 0x01C
    SANITIZE_IN_PROGRESS = 0x01D
    SGL_DATA_BLOCK_GRANULARITY_INVALID = 0x01E
    COMMAND_NOT_SUPPORTED_IN_CMB = 0x01F
    NAMESPACE_WRITE_PROTECTED = 0x020
    COMMAND_INTERRUPTED = 0x021
    TRANSIENT_TRANSPORT_ERROR = 0x022
    PROHIBITED_BY_LOCKDOWN = 0x023
    ADMIN_COMMAND_MEDIA_NOT_READY = 0x024
    INVALID_KEY_TAG = 0x025
    HOST_DISPERSED_NAMESPACE_NOT_ENABLED = 0x026
    HOST_IDENTIFIER_NOT_INITIALIZED = 0x027
    INCORRECT_KEY = 0x028
    FDP_DISABLED = 0x029
    INVALID_PLACEMENT_HANDLE_LIST = 0x02A
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    RESERVATION_CONFLICT = 0x083
    FORMAT_IN_PROGRESS = 0x084
    INVALID_VALUE_SIZE = 0x085
    INVALID_KEY_SIZE = 0x086
    KEY_DOES_NOT_EXIST = 0x087
    UNRECOVERED_ERROR = 0x088
    KEY_EXISTS = 0x089

    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_IDENTIFIER = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ABORT_LIMIT_EXCEEDED = 0x103
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105
    INVALID_FIRMWARE_SLOT = 0x106
    INVALID_FIRMWARE_IMAGE = 0x107
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_FORMAT = 0x10A
    FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x10B
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x110
    FIRMWARE_NEEDS_CONTROLLER_RESET = 0x111
    FIRMWARE_NEEDS_MAXIMUM_TIME_VIOLATION = 0x112
    FIRMWARE_ACTIVATION_PROHIBITED = 0x113
    OVERLAPPING_RANGE = 0x114
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x115
    NAMESPACE_IDENTIFIER_UNAVAILABLE = 0x116
    NAMESPACE_ALREADY_ATTACHED = 0x118
    NAMESPACE_IS_PRIVATE = 0x119
    NAMESPACE_NOT_ATTACHED = 0x11A
    THIN_PROVISIONING_NOT_SUPPORTED = 0x11B
    CONTROLLER_LIST_INVALID = 0x11C
    SELF_TEST_IN_PROGRESS = 0x11D
    BOOT_PARTITION_WRITE_PROHIBITED = 0x11E
    INVALID_CONTROLLER_IDENTIFIER = 0x11F
    INVALID_SECONDARY_CONTROLLER_STATE = 0x120
    INVALID_CONTROLLER_RESOURCE_COUNT = 0x121
    INVALID_RESOURCE_IDENTIFIER = 0x122
    SANITIZE_PROHIBITED_PMR_ENABLED = 0x123
    ANA_GROUP_IDENTIFIER_INVALID = 0x124
    ANA_ATTACH_FAILED = 0x125
    INSUFFICIENT_CAPACITY = 0x126
    NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED = 0x127
    LOCKDOWN_NOT_SUPPORTED = 0x128
    IO_COMMAND_SET_NOT_SUPPORTED = 0x129
    IO_COMMAND_SET_NOT_ENABLED = 0x12A
    IO_COMMAND_SET_COMBINATION_REJECTED = 0x12B
    INVALID_IO_COMMAND_SET = 0x12C
    IDENTIFIER_UNAVAILABLE = 0x12D
    NAMESPACE_IS_DISPERSED = 0x12E
    INVALID_DISCOVERY_INFORMATION = 0x12F
    ZONING_DATA_STRUCTURE_LOCKED = 0x130
    ZONING_DATA_STRUCTURE_NOT_FOUND = 0x131
    INSUFFICIENT_DISCOVERY_RESOURCES = 0x132
    REQUESTED_FUNCTION_DISABLED = 0x133
    ZONEGROUP_ORIGINATOR_INVALID = 0x134
    INVALID_HOST = 0x135
    INVALID_NVM_SUBSYSTEM = 0x136
    INVALID_CONTROLLER_DATA_QUEUE = 0x137
    NOT_ENOUGH_RESOURCES = 0x138
    CONTROLLER_SUSPENDED = 0x139
    CONTROLLER_NOT_SUSPENDED = 0x13A
    CONTROLLER_DATA_QUEUE_FULL = 0x13B

    CONNECT_INCOMPATIBLE_FORMAT = 0x180
    CONNECT_CONTROLLER_BUSY = 0x181
    CONNECT_INVALID_PARAMETERS = 0x182
    CONNECT_RESTART_DISCOVERY = 0x183
    CONNECT_INVALID_HOST = 0x184
    INVALID_QUEUE_TYPE = 0x185
    DISCOVER_RESTART = 0x190
    AUTHENTICATION_REQUIRED = 0x191

    CONFLICTING_ATTRIBUTES = 0x180
    INVALID_PROTECTION_INFORMATION = 0x181
    WRITE_TO_READ_ONLY_RANGE = 0x182
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x183
    INVALID_COMMAND_ID = 0x184
    INCOMPATIBLE_NAMESPACE_OR_FORMAT = 0x185
    FAST_COPY_NOT_POSSIBLE = 0x186
    OVERLAPPING_IO_RANGE = 0x187
    NAMESPACE_NOT_REACHABLE = 0x188
    INSUFFICIENT_RESOURCES = 0x189
    INVALID_ZONE_OPERATION_REQUEST = 0x1B6
    ZRWA_RESOURCES_UNAVAILABLE = 0x1B7
    ZONE_BOUNDARY_ERROR = 0x1B8
    ZONE_IS_FULL = 0x1B9
    ZONE_IS_READ_ONLY = 0x1BA
    ZONE_IS_OFFLINE = 0x1BB
    ZONE_INVALID_WRITE = 0x1BC
    TOO_MANY_ACTIVE_ZONES = 0x1BD
    TOO_MANY_OPEN_ZONES = 0x1BE
    INVALID_ZONE_STATE_TRANSITION = 0x1BF

    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    GUARD_CHECK_ERROR = 0x282
    APPLICATION_TAG_CHECK_ERROR = 0x283
    REFERENCE_TAG_CHECK_ERROR = 0x284
    COMPARE_FAILURE = 0x285
    ACCESS_DENIED = 0x286
    DEALLOCATED_OR_UNWRITTEN_BLOCK = 0x287
    STORAGE_TAG_CHECK_ERROR = 0x288

    INTERNAL_PATH_ERROR = 0x300
    ANA_PERSISTENT_LOSS = 0x301
    ANA_INACCESSIBLE = 0x302
    ANA_TRANSITION = 0x303
    CONTROLLER_PATHING_ERROR = 0x360
    HOST_PATHING_ERROR = 0x370
    ABORTED_BY_HOST = 0x371


_SPECIAL_NAMES: dict[int, str] = {
    0x000: "Successful Completion",
    0x001: "Invalid Command Opcode",
    0x002: "Invalid Field in Command",
    0x003: "Command ID Conflict",
    0x005: "Commands Aborted due to Power Loss Notification",
    0x007: "Command Abort Requested",
    0x008: "Command Aborted due to SQ Deletion",
    0x009: "Command Aborted due to Failed Fused Command",
    0x00A: "Command Aborted due to Missing Fused Command",
    0x00B: "Invalid Namespace or Format",
    0x00D: "Invalid SGL Segment Descriptor",
    0x00E: "Invalid Number of SGL Descriptors",
    0x00F: "Data SGL Length Invalid",
    0x010: "Metadata SGL Length Invalid",
    0x011: "SGL Descriptor Type Invalid",
    0x012: "Invalid Use of Controller Memory Buffer",
    0x013: "PRP Offset Invalid",
    0x016: "SGL Offset Invalid",
    0x01B: "Command Aborted due to Preempt and Abort",
    0x01D: "Sanitize In Progress",
    0x01E: "SGL Data Block Granularity Invalid",
    0x01F: "Command Not Supported for Queue in CMB",
    0x020: "Namespace is Write Protected",
    0x023: "Command Prohibited by Command and Feature Lockdown",
    0x026: "Host Dispersed Namespace Support Not Enabled",
    0x029: "FDP Disabled",
    0x080: "LBA Out of Range",
    0x084: "Format In Progress",
    0x087: "KV Key Does Not Exist",
    0x103: "Abort Command Limit Exceeded",
    0x105: "Asynchronous Event Request Limit Exceeded",
    0x10B: "Firmware Activation Requires Conventional Reset",
    0x10D: "Feature Identifier Not Saveable",
    0x10F: "Feature Not Namespace Specific",
    0x110: "Firmware Activation Requires NVM Subsystem Reset",
    0x111: "Firmware Activation Requires Controller Level Reset",
    0x112: "Firmware Activation Requires Maximum Time Violation",
    0x119: "Namespace Is Private",
    0x11D: "Device Self-test In Progress",
    0x121: "Invalid Number of Controller Resources",
    0x123: "Sanitize Prohibited While Persistent Memory Region is Enabled",
    0x124: "ANA Group Identifier Invalid",
    0x125: "ANA Attach Failed",
    0x128: "Prohibition of Command Execution Not Supported",
    0x129: "I/O Command Set Not Supported",
    0x12A: "I/O Command Set Not Enabled",
    0x12B: "I/O Command Set Combination Rejected",
    0x12C: "Invalid I/O Command Set",
    0x134: "ZoneGroup Originator Invalid",
    0x136: "Invalid NVM Subsystem",
    0x180: "Conflicting Attributes",
    0x181: "Invalid Protection Information",
    0x182: "Attempted Write to Read Only Range",
    0x183: "Command Size Limit Exceeded",
    0x184: "Invalid Command ID",
    0x185: "Incompatible Namespace or Format",
    0x187: "Overlapping I/O Range",
    0x1B7: "ZRWA Resources Unavailable",
    0x1B8: "Zoned Boundary Error",
    0x1B9: "Zone Is Full",
    0x1BA: "Zone Is Read Only",
    0x1BB: "Zone Is Offline",
    0x282: "End-to-end Guard Check Error",
    0x283: "End-to-end Application Tag Check Error",
    0x284: "End-to-end Reference Tag Check Error",
    0x287: "Deallocated or Unwritten Logical Block",
    0x288: "End-to-end Storage Tag Check Error",
    0x301: "Asymmetric Access Persistent Loss",
    0x302: "Asymmetric Access Inaccessible",
    0x303: "Asymmetric Access Transition",
    0x371: "Command Aborted By Host",
}
_IO_NAMES = {member.value: member.name.replace("_", " ").title() for member in Status} | _SPECIAL_NAMES
_FABRICS_NAMES = {
    0x180: "Connect Incompatible Format",
    0x181: "Connect Controller Busy",
    0x182: "Connect Invalid Parameters",
    0x183: "Connect Restart Discovery",
    0x184: "Connect Invalid Host",
    0x185: "Invalid Queue Type",
    0x190: "Discover Restart",
    0x191: "Authentication Required",
}


class StatusFields(NamedTuple):
    """The parts of a 15-bit status value: Base 2.0 section 3.3.3.2.1."""

    sct: int
    sc: int
    crd: int
    more: bool
    dnr: bool


def unpack_status(status: int) -> StatusFields:
    """Split a 15-bit status value (not the shifted wire word) into its fields."""
    return StatusFields(
        sct=status >> 8 & 7,
        sc=status & 0xFF,
        crd=status >> CRD_SHIFT & 3,
        more=bool(status & MORE),
        dnr=bool(status & DNR),
    )


def status_name(sct: int, sc: int, *, fabrics: bool = False) -> str:
    """The specification's name for a status code type (0 to 7) and status code (0 to 255).

    ``fabrics`` says that the command was a Fabrics command, which gives 180h to 185h another meaning.
    Codes without a name come back as text too; nothing is raised.
    """
    value = sct << 8 | sc
    if fabrics and value in _FABRICS_NAMES:
        return _FABRICS_NAMES[value]
    if value in _IO_NAMES:
        return _IO_NAMES[value]
    if sct == StatusCodeType.VENDOR or (sct in (0, 1, 2, 3) and sc >= 0xC0):
        return f"Vendor Specific {sc:02X}h"
    return f"Reserved {sc:02X}h"


def describe(status: int, *, fabrics: bool = False) -> str:
    """One line for a log or an error: name, status code type, status code, and DNR when it is set."""
    sct, sc, _crd, _more, dnr = unpack_status(status)
    return f"{status_name(sct, sc, fabrics=fabrics)} (SCT {sct:#x}, SC {sc:#04x}{', DNR' if dnr else ''})"
