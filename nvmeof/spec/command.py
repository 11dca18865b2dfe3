"""Submission and completion queue entries, opcodes and command dwords.

NVMe Base 2.0 sections 3.3.3, 5 and 7, NVM Command Set 1.0 section 3, with the additions of Base 2.1 and NVM 1.1.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from nvmeof.spec.layout import U8, U16, U32, U64, Layout

SQE_SIZE = 64
CQE_SIZE = 16
NSID_ALL = 0xFFFF_FFFF
PSDT_SGL = 0x40
PSDT_MASK = 0xC0
FUSE_MASK = 0x03


class AdminOpcode(IntEnum):
    """Opcodes for the admin queue: Base 2.0 figure 138."""

    DELETE_IO_SQ = 0x00
    CREATE_IO_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_IO_CQ = 0x04
    CREATE_IO_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    FIRMWARE_COMMIT = 0x10
    FIRMWARE_IMAGE_DOWNLOAD = 0x11
    DEVICE_SELF_TEST = 0x14
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    DIRECTIVE_SEND = 0x19
    DIRECTIVE_RECEIVE = 0x1A
    VIRTUALIZATION_MANAGEMENT = 0x1C
    NVME_MI_SEND = 0x1D
    NVME_MI_RECEIVE = 0x1E
    CAPACITY_MANAGEMENT = 0x20
    DISCOVERY_INFORMATION_MANAGEMENT = 0x21
    LOCKDOWN = 0x24
    DOORBELL_BUFFER_CONFIG = 0x7C
    FABRICS = 0x7F
    FORMAT_NVM = 0x80
    SECURITY_SEND = 0x81
    SECURITY_RECEIVE = 0x82
    SANITIZE = 0x84
    GET_LBA_STATUS = 0x86


class IoOpcode(IntEnum):
    """Opcodes for an I/O queue: Base 2.0 section 7 and NVM Command Set 1.0 section 3."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    RESERVATION_REGISTER = 0x0D
    RESERVATION_REPORT = 0x0E
    RESERVATION_ACQUIRE = 0x11
    IO_MANAGEMENT_RECEIVE = 0x12
    RESERVATION_RELEASE = 0x15
    CANCEL = 0x18
    COPY = 0x19
    IO_MANAGEMENT_SEND = 0x1D
    FABRICS = 0x7F


class FabricsType(IntEnum):
    """FCTYPE, byte 4 of a command whose opcode is 7Fh: Base 2.0 section 6."""

    PROPERTY_SET = 0x00
    CONNECT = 0x01
    PROPERTY_GET = 0x04
    AUTHENTICATION_SEND = 0x05
    AUTHENTICATION_RECEIVE = 0x06
    DISCONNECT = 0x08


class SglType(IntEnum):
    """SGL descriptor type, bits 7:4 of the SGL identifier: Base 2.0 section 4.1.2."""

    DATA_BLOCK = 0x0
    BIT_BUCKET = 0x1
    SEGMENT = 0x2
    LAST_SEGMENT = 0x3
    KEYED_DATA_BLOCK = 0x4
    TRANSPORT_DATA_BLOCK = 0x5
    VENDOR = 0xF


class SglSubtype(IntEnum):
    """SGL descriptor sub type, bits 3:0 of the SGL identifier: Base 2.0 section 4.1.2."""

    ADDRESS = 0x0
    OFFSET = 0x1
    TRANSPORT = 0xA


SGL_DATA_BLOCK_OFFSET = 0x01
SGL_TRANSPORT_DATA_BLOCK = 0x5A


class SubmissionEntry(NamedTuple):
    """Common command format with one SGL data descriptor, 64 bytes: Base 2.0 figure 87.

    ``sgl_length`` is in bytes; ``metadata`` is MPTR. In a Fabrics command ``nsid`` holds FCTYPE in its low byte.
    """

    opcode: U8 = 0
    flags: U8 = 0
    cid: U16 = 0
    nsid: U32 = 0
    cdw2: U32 = 0
    cdw3: U32 = 0
    metadata: U64 = 0
    sgl_address: U64 = 0
    sgl_length: U32 = 0
    sgl_reserved: U16 = 0
    sgl_reserved_high: U8 = 0
    sgl_id: U8 = 0
    cdw10: U32 = 0
    cdw11: U32 = 0
    cdw12: U32 = 0
    cdw13: U32 = 0
    cdw14: U32 = 0
    cdw15: U32 = 0


class CompletionEntry(NamedTuple):
    """Common completion queue entry, 16 bytes: Base 2.0 section 3.3.3.2.

    ``status`` is the wire word: the 15-bit status value shifted left by one. ``sqid`` is reserved over fabrics.
    """

    dw0: U32 = 0
    dw1: U32 = 0
    sqhd: U16 = 0
    sqid: U16 = 0
    cid: U16 = 0
    status: U16 = 0


class DatasetRange(NamedTuple):
    """One Dataset Management range, 16 bytes: NVM Command Set 1.0 section 3.2.3. ``blocks`` is not 0's based."""

    attributes: U32 = 0
    blocks: U32 = 0
    slba: U64 = 0


SQE = Layout(
    SubmissionEntry,
    size=SQE_SIZE,
    offsets={
        "opcode": 0,
        "flags": 1,
        "cid": 2,
        "nsid": 4,
        "cdw2": 8,
        "cdw3": 12,
        "metadata": 16,
        "sgl_address": 24,
        "sgl_length": 32,
        "sgl_id": 39,
        "cdw10": 40,
        "cdw11": 44,
        "cdw12": 48,
        "cdw13": 52,
        "cdw14": 56,
        "cdw15": 60,
    },
)
CQE = Layout(
    CompletionEntry, size=CQE_SIZE, offsets={"dw0": 0, "dw1": 4, "sqhd": 8, "sqid": 10, "cid": 12, "status": 14}
)
DATASET_RANGE = Layout(DatasetRange, size=16, offsets={"attributes": 0, "blocks": 4, "slba": 8})
DATASET_RANGES_MAX = 256

# For the receive loop of the target: opcode, flags, cid, nsid, sgl_address, sgl_length, sgl_id, cdw10 to cdw15.
UNPACK_SQE = struct.Struct("<BBHI16xQI3xB6I").unpack_from
# Capsules without data in a row, with and without header digests: the common header as one number, then the same.
ITER_CAPSULES = struct.Struct("<QBBHI16xQI3xB6I").iter_unpack
ITER_DIGESTED_CAPSULES = struct.Struct("<QBBHI16xQI3xB6I4x").iter_unpack
# For the host: opcode, flags, cid, nsid, cdw2, cdw3, sgl_address, sgl_length, sgl_id, cdw10 to cdw15.
PACK_SQE = struct.Struct("<BBHIII8xQI3xB6I").pack
# dw0, dw1, sqhd, sqid, cid, status word.
UNPACK_CQE = struct.Struct("<IIHHHH").unpack_from
UNPACK_DATASET_RANGES = struct.Struct("<IIQ").iter_unpack


class FeatureId(IntEnum):
    """Feature identifiers: Base 2.0 figure 316 and 2.1 additions. 03h and 05h are the NVM Command Set's."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    LBA_RANGE_TYPE = 0x03
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    AUTONOMOUS_POWER_STATE_TRANSITION = 0x0C
    HOST_MEMORY_BUFFER = 0x0D
    TIMESTAMP = 0x0E
    KEEP_ALIVE_TIMER = 0x0F
    HOST_THERMAL_MANAGEMENT = 0x10
    NON_OPERATIONAL_POWER_STATE = 0x11
    READ_RECOVERY_LEVEL = 0x12
    PREDICTABLE_LATENCY_CONFIGURATION = 0x13
    PREDICTABLE_LATENCY_WINDOW = 0x14
    LBA_STATUS_REPORT_INTERVAL = 0x15
    HOST_BEHAVIOR_SUPPORT = 0x16
    SANITIZE_CONFIGURATION = 0x17
    ENDURANCE_GROUP_EVENT_CONFIGURATION = 0x18
    IO_COMMAND_SET_PROFILE = 0x19
    SPINUP_CONTROL = 0x1A
    POWER_LOSS_SIGNALING = 0x1B
    PERFORMANCE_CHARACTERISTICS = 0x1C
    FLEXIBLE_DATA_PLACEMENT = 0x1D
    FLEXIBLE_DATA_PLACEMENT_EVENTS = 0x1E
    NAMESPACE_ADMIN_LABEL = 0x1F
    CONTROLLER_DATA_QUEUE = 0x21
    ENHANCED_CONTROLLER_METADATA = 0x7D
    CONTROLLER_METADATA = 0x7E
    NAMESPACE_METADATA = 0x7F
    SOFTWARE_PROGRESS_MARKER = 0x80
    HOST_IDENTIFIER = 0x81
    RESERVATION_NOTIFICATION_MASK = 0x82
    RESERVATION_PERSISTENCE = 0x83
    NAMESPACE_WRITE_PROTECTION = 0x84
    BOOT_PARTITION_WRITE_PROTECTION = 0x85


class FeatureSelect(IntEnum):
    """SEL of Get Features, command dword 10 bits 10:8: Base 2.0 section 5.15."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    SUPPORTED = 3


class FeatureCapability(IntFlag):
    """Completion dword 0 of Get Features with ``FeatureSelect.SUPPORTED``: Base 2.0 figure 195."""

    SAVEABLE = 0x1
    NAMESPACE_SPECIFIC = 0x2
    CHANGEABLE = 0x4


class LogPage(IntEnum):
    """Log page identifiers: Base 2.0 figure 202 and 2.1 additions."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR_INFORMATION = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMANDS_SUPPORTED_AND_EFFECTS = 0x05
    DEVICE_SELF_TEST = 0x06
    TELEMETRY_HOST = 0x07
    TELEMETRY_CONTROLLER = 0x08
    ENDURANCE_GROUP = 0x09
    PREDICTABLE_LATENCY = 0x0A
    PREDICTABLE_LATENCY_EVENT_AGGREGATE = 0x0B
    ANA = 0x0C
    PERSISTENT_EVENT = 0x0D
    LBA_STATUS = 0x0E
    ENDURANCE_GROUP_EVENT_AGGREGATE = 0x0F
    MEDIA_UNIT_STATUS = 0x10
    SUPPORTED_CAPACITY_CONFIGURATIONS = 0x11
    FEATURES_SUPPORTED_AND_EFFECTS = 0x12
    MI_COMMANDS_SUPPORTED_AND_EFFECTS = 0x13
    LOCKDOWN = 0x14
    BOOT_PARTITION = 0x15
    ROTATIONAL_MEDIA = 0x16
    DISPERSED_NAMESPACE = 0x17
    MANAGEMENT_ADDRESS_LIST = 0x18
    REACHABILITY_GROUPS = 0x1A
    REACHABILITY_ASSOCIATIONS = 0x1B
    CHANGED_ALLOCATED_NAMESPACES = 0x1C
    DISCOVERY = 0x70
    HOST_DISCOVERY = 0x71
    AVE_DISCOVERY = 0x72
    RESERVATION_NOTIFICATION = 0x80
    SANITIZE_STATUS = 0x81
    INCARNATION = 0xC0
    """Of this target; laid out in :class:`nvmeof.spec.logpage.IncarnationHeader`."""


class Cns(IntEnum):
    """Controller or Namespace Structure of Identify: Base 2.0 figure 273 and 2.1 additions."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    NVM_SETS = 0x04
    CSI_NAMESPACE = 0x05
    CSI_CONTROLLER = 0x06
    CSI_ACTIVE_NAMESPACES = 0x07
    INDEPENDENT_NAMESPACE = 0x08
    NAMESPACE_FORMAT = 0x09
    CSI_NAMESPACE_FORMAT = 0x0A
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    NAMESPACE_CONTROLLERS = 0x12
    CONTROLLERS = 0x13
    PRIMARY_CONTROLLER = 0x14
    SECONDARY_CONTROLLERS = 0x15
    NAMESPACE_GRANULARITY = 0x16
    UUIDS = 0x17
    DOMAINS = 0x18
    ENDURANCE_GROUPS = 0x19
    CSI_ALLOCATED_NAMESPACES = 0x1A
    CSI_ALLOCATED_NAMESPACE = 0x1B
    IO_COMMAND_SETS = 0x1C
    INDEPENDENT_ALLOCATED_NAMESPACE = 0x1F


class CommandSet(IntEnum):
    """Command Set Identifier (CSI): Base 2.0 figure 274."""

    NVM = 0x00
    KEY_VALUE = 0x01
    ZONED = 0x02


class AsyncEventType(IntEnum):
    """Bits 2:0 of completion dword 0 of Asynchronous Event Request: Base 2.0 figure 143."""

    ERROR = 0
    SMART = 1
    NOTICE = 2
    IMMEDIATE = 3
    IO_COMMAND_SPECIFIC = 6
    VENDOR = 7


class ErrorEvent(IntEnum):
    """Event information of ``AsyncEventType.ERROR``: Base 2.0 figure 144."""

    INVALID_DOORBELL_REGISTER = 0x00
    INVALID_DOORBELL_VALUE = 0x01
    DIAGNOSTIC_FAILURE = 0x02
    PERSISTENT_INTERNAL_ERROR = 0x03
    TRANSIENT_INTERNAL_ERROR = 0x04
    FIRMWARE_IMAGE_LOAD_ERROR = 0x05


class SmartEvent(IntEnum):
    """Event information of ``AsyncEventType.SMART``: Base 2.0 figure 145."""

    RELIABILITY = 0x00
    TEMPERATURE_THRESHOLD = 0x01
    SPARE_BELOW_THRESHOLD = 0x02


class NoticeEvent(IntEnum):
    """Event information of ``AsyncEventType.NOTICE``: Base 2.0 figure 146."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0x00
    FIRMWARE_ACTIVATION_STARTING = 0x01
    TELEMETRY_LOG_CHANGED = 0x02
    ANA_CHANGE = 0x03
    PREDICTABLE_LATENCY_EVENT = 0x04
    LBA_STATUS_ALERT = 0x05
    ENDURANCE_GROUP_EVENT = 0x06
    ALLOCATED_NAMESPACE_ATTRIBUTE_CHANGED = 0x09
    DISCOVERY_LOG_CHANGED = 0xF0
    HOST_DISCOVERY_LOG_CHANGED = 0xF1


class ReadWriteControl(IntFlag):
    """Command dword 12 of Read, Write, Write Zeroes and Verify above NLB (bits 15:0, 0's based)."""

    DEALLOCATE = 1 << 25
    PRINFO_REFERENCE_TAG = 1 << 26
    PRINFO_APPLICATION_TAG = 1 << 27
    PRINFO_GUARD = 1 << 28
    PRINFO_ACTION = 1 << 29
    FORCE_UNIT_ACCESS = 1 << 30
    LIMITED_RETRY = 1 << 31


NLB_MASK = 0xFFFF
FUA_BIT = 1 << 30
DEAC_BIT = 1 << 25


class DatasetAttribute(IntFlag):
    """Command dword 11 of Dataset Management: NVM Command Set 1.0 section 3.2.3."""

    INTEGRAL_READ = 0x1
    INTEGRAL_WRITE = 0x2
    DEALLOCATE = 0x4


class IdentifyDwords(NamedTuple):
    """Command dwords 10, 11 and 14 of Identify: Base 2.0 section 5.17."""

    cns: int
    cntid: int = 0
    cns_specific: int = 0
    csi: int = 0
    uuid_index: int = 0

    def encode(self) -> tuple[int, int, int]:
        """Command dwords 10, 11 and 14."""
        return self.cns | self.cntid << 16, self.cns_specific | self.csi << 24, self.uuid_index

    @classmethod
    def decode(cls, cdw10: int, cdw11: int, cdw14: int) -> IdentifyDwords:
        return cls(cdw10 & 0xFF, cdw10 >> 16, cdw11 & 0xFFFF, cdw11 >> 24, cdw14 & 0x7F)


class GetLogPageDwords(NamedTuple):
    """Command dwords 10 to 14 of Get Log Page: Base 2.0 figures 197 to 201.

    ``length`` is in bytes, a multiple of 4 from 4 to 2**34 (NUMD is dwords, 0's based). ``offset`` is in bytes,
    or an index of a data structure when ``offset_is_index``.
    """

    lid: int
    length: int
    offset: int = 0
    lsp: int = 0
    lsi: int = 0
    rae: bool = False
    csi: int = 0
    offset_is_index: bool = False
    uuid_index: int = 0

    def encode(self) -> tuple[int, int, int, int, int]:
        """Command dwords 10 to 14."""
        dwords_minus_one = self.length // 4 - 1
        return (
            self.lid | self.lsp << 8 | self.rae << 15 | (dwords_minus_one & 0xFFFF) << 16,
            dwords_minus_one >> 16 | self.lsi << 16,
            self.offset & 0xFFFF_FFFF,
            self.offset >> 32,
            self.uuid_index | self.offset_is_index << 23 | self.csi << 24,
        )

    @classmethod
    def decode(cls, cdw10: int, cdw11: int, cdw12: int, cdw13: int, cdw14: int) -> GetLogPageDwords:
        return cls(
            lid=cdw10 & 0xFF,
            length=(cdw10 >> 16 | (cdw11 & 0xFFFF) << 16) * 4 + 4,
            offset=cdw12 | cdw13 << 32,
            lsp=cdw10 >> 8 & 0x7F,
            lsi=cdw11 >> 16,
            rae=bool(cdw10 & 1 << 15),
            csi=cdw14 >> 24,
            offset_is_index=bool(cdw14 & 1 << 23),
            uuid_index=cdw14 & 0x7F,
        )


SET_FEATURES_SAVE = 1 << 31
"""SV, command dword 10 bit 31 of Set Features: Base 2.0 figure 314."""
FEATURE_SELECT_SHIFT = 8
ABORT_NOT_ABORTED = 0x1
"""Completion dword 0 of Abort: set when the command was not aborted. Base 2.0 section 5.1."""
