"""Identify Controller data structures, 4096 bytes each: NVMe Base 2.0 figure 275, NVM Command Set 1.0 figure 102.

Fields that Base 2.1 added are named where they lie in what was reserved before.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from nvmeof.spec.layout import U8, U16, U32, U64, Bytes, Layout

IDENTIFY_SIZE = 4096


class MultipathCapability(IntFlag):
    """CMIC of Identify Controller."""

    SEVERAL_PORTS = 0x1
    SEVERAL_CONTROLLERS = 0x2
    VIRTUAL_FUNCTION = 0x4
    ANA_REPORTING = 0x8


class AsyncEventBit(IntFlag):
    """OAES of Identify Controller, and the same bits of the Asynchronous Event Configuration feature."""

    NAMESPACE_ATTRIBUTE = 1 << 8
    FIRMWARE_ACTIVATION = 1 << 9
    TELEMETRY_LOG = 1 << 10
    ANA_CHANGE = 1 << 11
    PREDICTABLE_LATENCY = 1 << 12
    LBA_STATUS = 1 << 13
    ENDURANCE_GROUP = 1 << 14
    SUBSYSTEM_SHUTDOWN = 1 << 15
    ZONE_DESCRIPTOR = 1 << 27
    DISCOVERY_LOG = 1 << 31


class ControllerAttribute(IntFlag):
    """CTRATT of Identify Controller."""

    HOST_ID_128 = 1 << 0
    NON_OPERATIONAL_POWER_PERMISSIVE = 1 << 1
    NVM_SETS = 1 << 2
    READ_RECOVERY_LEVELS = 1 << 3
    ENDURANCE_GROUPS = 1 << 4
    PREDICTABLE_LATENCY = 1 << 5
    TRAFFIC_BASED_KEEP_ALIVE = 1 << 6
    NAMESPACE_GRANULARITY = 1 << 7
    SQ_ASSOCIATIONS = 1 << 8
    UUID_LIST = 1 << 9
    MULTI_DOMAIN = 1 << 10
    EXTENDED_LBA_FORMATS = 1 << 15


class ControllerType(IntEnum):
    """CNTRLTYPE of Identify Controller; 0 is not reported."""

    NOT_REPORTED = 0
    IO = 1
    DISCOVERY = 2
    ADMINISTRATIVE = 3


class DiscoveryControllerType(IntEnum):
    """DCTYPE of Identify Controller."""

    NOT_REPORTED = 0
    DIRECT = 1
    CENTRAL = 2


class OptionalAdminCommand(IntFlag):
    """OACS of Identify Controller."""

    SECURITY = 1 << 0
    FORMAT_NVM = 1 << 1
    FIRMWARE = 1 << 2
    NAMESPACE_MANAGEMENT = 1 << 3
    SELF_TEST = 1 << 4
    DIRECTIVES = 1 << 5
    NVME_MI = 1 << 6
    VIRTUALIZATION = 1 << 7
    DOORBELL_BUFFER = 1 << 8
    GET_LBA_STATUS = 1 << 9
    LOCKDOWN = 1 << 10


class FirmwareUpdates(IntFlag):
    """FRMW of Identify Controller; bits 3:1 are the number of slots (1 to 7)."""

    SLOT_1_READ_ONLY = 0x01
    ACTIVATION_WITHOUT_RESET = 0x10


class LogPageAttribute(IntFlag):
    """LPA of Identify Controller."""

    SMART_PER_NAMESPACE = 1 << 0
    COMMANDS_SUPPORTED_AND_EFFECTS = 1 << 1
    EXTENDED_DATA = 1 << 2
    TELEMETRY = 1 << 3
    PERSISTENT_EVENT = 1 << 4
    SUPPORTED_PAGES = 1 << 5


class OptionalNvmCommand(IntFlag):
    """ONCS of Identify Controller."""

    COMPARE = 1 << 0
    WRITE_UNCORRECTABLE = 1 << 1
    DATASET_MANAGEMENT = 1 << 2
    WRITE_ZEROES = 1 << 3
    SAVE_AND_SELECT = 1 << 4
    RESERVATIONS = 1 << 5
    TIMESTAMP = 1 << 6
    VERIFY = 1 << 7
    COPY = 1 << 8


class WriteCache(IntFlag):
    """VWC of Identify Controller. Bits 2:1 say what Flush with NSID FFFFFFFFh does: 10b refused, 11b flushes all."""

    PRESENT = 0x1
    FLUSH_ALL_NOT_SUPPORTED = 0x4
    FLUSH_ALL_SUPPORTED = 0x6


class SglSupport(IntFlag):
    """SGLS of Identify Controller. Bits 1:0: 01b no alignment needed, 10b dword alignment."""

    SUPPORTED = 1 << 0
    DWORD_ALIGNED = 1 << 1
    KEYED_DATA_BLOCK = 1 << 2
    BIT_BUCKET = 1 << 16
    BYTE_ALIGNED_METADATA = 1 << 17
    LONGER_THAN_DATA = 1 << 18
    METADATA_SGL = 1 << 19
    OFFSET_ADDRESS = 1 << 20
    TRANSPORT_DATA_BLOCK = 1 << 21


FCATT_STATIC_CONTROLLERS = 0x01
OFCS_DISCONNECT = 0x0001
SQES_64 = 0x66
CQES_16 = 0x44


class PowerState(NamedTuple):
    """Power State Descriptor, 32 bytes: Base 2.0 figure 276. ``mp`` in 0.01 W; latencies in microseconds."""

    mp: U16 = 0
    reserved2: U8 = 0
    flags: U8 = 0
    enlat: U32 = 0
    exlat: U32 = 0
    rrt: U8 = 0
    rrl: U8 = 0
    rwt: U8 = 0
    rwl: U8 = 0
    idlp: U16 = 0
    ips: U8 = 0
    reserved19: U8 = 0
    actp: U16 = 0
    apw: U8 = 0
    reserved23: Annotated[bytes, Bytes(9)] = bytes(9)


POWER_STATE = Layout(
    PowerState,
    size=32,
    offsets={"mp": 0, "flags": 3, "enlat": 4, "exlat": 8, "rrt": 12, "rwl": 15, "idlp": 16, "ips": 18, "actp": 20},
)


class IdentifyController(NamedTuple):
    """CNS 01h: Base 2.0 figure 275.

    ``sn``, ``mn`` and ``fr`` come from :func:`nvmeof.spec.fields.ascii_field`, ``subnqn`` from
    :func:`nvmeof.spec.fabrics.encode_nqn`. ``mdts`` is a power of two of CAP.MPSMIN pages, 0 for no limit;
    ``kas`` in units of 100 ms; ``anatt`` in seconds; ``crdt*`` in units of 100 ms; ``ioccsz`` and ``iorcsz`` in
    units of 16 bytes; ``acl``, ``aerl``, ``elpe``, ``npss``, ``awun`` and ``awupf`` are 0's based; temperatures in
    kelvin; ``tnvmcap``, ``unvmcap`` and ``megcap`` are 128-bit numbers of bytes (:func:`nvmeof.spec.fields.u128`).
    """

    vid: U16 = 0
    ssvid: U16 = 0
    sn: Annotated[bytes, Bytes(20)] = b" " * 20
    mn: Annotated[bytes, Bytes(40)] = b" " * 40
    fr: Annotated[bytes, Bytes(8)] = b" " * 8
    rab: U8 = 0
    ieee: Annotated[bytes, Bytes(3)] = bytes(3)
    cmic: U8 = 0
    mdts: U8 = 0
    cntlid: U16 = 0
    ver: U32 = 0
    rtd3r: U32 = 0
    rtd3e: U32 = 0
    oaes: U32 = 0
    ctratt: U32 = 0
    rrls: U16 = 0
    bpcap: U8 = 0
    reserved103: U8 = 0
    nssl: U32 = 0
    reserved108: Annotated[bytes, Bytes(2)] = bytes(2)
    plsi: U8 = 0
    cntrltype: U8 = 0
    fguid: Annotated[bytes, Bytes(16)] = bytes(16)
    crdt1: U16 = 0
    crdt2: U16 = 0
    crdt3: U16 = 0
    crcap: U8 = 0
    reserved135: Annotated[bytes, Bytes(118)] = bytes(118)
    nvmsr: U8 = 0
    vwci: U8 = 0
    mec: U8 = 0
    oacs: U16 = 0
    acl: U8 = 0
    aerl: U8 = 0
    frmw: U8 = 0
    lpa: U8 = 0
    elpe: U8 = 0
    npss: U8 = 0
    avscc: U8 = 0
    apsta: U8 = 0
    wctemp: U16 = 0
    cctemp: U16 = 0
    mtfa: U16 = 0
    hmpre: U32 = 0
    hmmin: U32 = 0
    tnvmcap: Annotated[bytes, Bytes(16)] = bytes(16)
    unvmcap: Annotated[bytes, Bytes(16)] = bytes(16)
    rpmbs: U32 = 0
    edstt: U16 = 0
    dsto: U8 = 0
    fwug: U8 = 0
    kas: U16 = 0
    hctma: U16 = 0
    mntmt: U16 = 0
    mxtmt: U16 = 0
    sanicap: U32 = 0
    hmminds: U32 = 0
    hmmaxd: U16 = 0
    nsetidmax: U16 = 0
    endgidmax: U16 = 0
    anatt: U8 = 0
    anacap: U8 = 0
    anagrpmax: U32 = 0
    nanagrpid: U32 = 0
    pels: U32 = 0
    domainid: U16 = 0
    reserved358: Annotated[bytes, Bytes(10)] = bytes(10)
    megcap: Annotated[bytes, Bytes(16)] = bytes(16)
    tmpthha: U8 = 0
    reserved385: Annotated[bytes, Bytes(127)] = bytes(127)
    sqes: U8 = SQES_64
    cqes: U8 = CQES_16
    maxcmd: U16 = 0
    nn: U32 = 0
    oncs: U16 = 0
    fuses: U16 = 0
    fna: U8 = 0
    vwc: U8 = 0
    awun: U16 = 0
    awupf: U16 = 0
    icsvscc: U8 = 0
    nwpc: U8 = 0
    acwu: U16 = 0
    cdfs: U16 = 0
    sgls: U32 = 0
    mnan: U32 = 0
    maxdna: Annotated[bytes, Bytes(16)] = bytes(16)
    maxcna: U32 = 0
    reserved564: Annotated[bytes, Bytes(204)] = bytes(204)
    subnqn: Annotated[bytes, Bytes(256)] = bytes(256)
    reserved1024: Annotated[bytes, Bytes(768)] = bytes(768)
    ioccsz: U32 = 0
    iorcsz: U32 = 0
    icdoff: U16 = 0
    fcatt: U8 = 0
    msdbd: U8 = 0
    ofcs: U16 = 0
    dctype: U8 = 0
    reserved1807: Annotated[bytes, Bytes(241)] = bytes(241)
    psd0: Annotated[bytes, Bytes(32)] = bytes(32)
    psd_rest: Annotated[bytes, Bytes(31 * 32)] = bytes(31 * 32)
    vendor: Annotated[bytes, Bytes(1024)] = bytes(1024)


IDENTIFY_CONTROLLER = Layout(
    IdentifyController,
    size=IDENTIFY_SIZE,
    offsets={
        "vid": 0,
        "ssvid": 2,
        "sn": 4,
        "mn": 24,
        "fr": 64,
        "rab": 72,
        "ieee": 73,
        "cmic": 76,
        "mdts": 77,
        "cntlid": 78,
        "ver": 80,
        "rtd3r": 84,
        "rtd3e": 88,
        "oaes": 92,
        "ctratt": 96,
        "rrls": 100,
        "plsi": 110,
        "cntrltype": 111,
        "fguid": 112,
        "crdt1": 128,
        "crdt3": 132,
        "nvmsr": 253,
        "mec": 255,
        "oacs": 256,
        "acl": 258,
        "aerl": 259,
        "frmw": 260,
        "lpa": 261,
        "elpe": 262,
        "npss": 263,
        "avscc": 264,
        "apsta": 265,
        "wctemp": 266,
        "cctemp": 268,
        "mtfa": 270,
        "hmpre": 272,
        "hmmin": 276,
        "tnvmcap": 280,
        "unvmcap": 296,
        "rpmbs": 312,
        "edstt": 316,
        "fwug": 319,
        "kas": 320,
        "hctma": 322,
        "sanicap": 328,
        "hmminds": 332,
        "hmmaxd": 336,
        "endgidmax": 340,
        "anatt": 342,
        "anacap": 343,
        "anagrpmax": 344,
        "nanagrpid": 348,
        "pels": 352,
        "domainid": 356,
        "megcap": 368,
        "sqes": 512,
        "cqes": 513,
        "maxcmd": 514,
        "nn": 516,
        "oncs": 520,
        "fuses": 522,
        "fna": 524,
        "vwc": 525,
        "awun": 526,
        "awupf": 528,
        "icsvscc": 530,
        "nwpc": 531,
        "acwu": 532,
        "cdfs": 534,
        "sgls": 536,
        "mnan": 540,
        "maxdna": 544,
        "maxcna": 560,
        "subnqn": 768,
        "ioccsz": 1792,
        "iorcsz": 1796,
        "icdoff": 1800,
        "fcatt": 1802,
        "msdbd": 1803,
        "ofcs": 1804,
        "dctype": 1806,
        "psd0": 2048,
        "psd_rest": 2080,
        "vendor": 3072,
    },
)


class NvmIdentifyController(NamedTuple):
    """CNS 06h with CSI 00h: NVM Command Set 1.0 figure 102.

    ``vsl``, ``wzsl`` and ``wusl`` are powers of two of CAP.MPSMIN pages; ``dmrl`` is a number of ranges, ``dmrsl`` and
    ``dmsl`` are in logical blocks; 0 means no limit is reported.
    """

    vsl: U8 = 0
    wzsl: U8 = 0
    wusl: U8 = 0
    dmrl: U8 = 0
    dmrsl: U32 = 0
    dmsl: U64 = 0
    reserved16: Annotated[bytes, Bytes(4080)] = bytes(4080)


NVM_IDENTIFY_CONTROLLER = Layout(
    NvmIdentifyController,
    size=IDENTIFY_SIZE,
    offsets={"vsl": 0, "wzsl": 1, "wusl": 2, "dmrl": 3, "dmrsl": 4, "dmsl": 8, "reserved16": 16},
)
