"""Properties, Connect, discovery and NVMe Qualified Names: NVMe Base 2.0 sections 3.1.3, 4.5 and 6."""

from __future__ import annotations

import re
from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from nvmeof.errors import UsageError
from nvmeof.spec.fields import BitLayout, ascii_field
from nvmeof.spec.layout import U8, U16, U64, Bytes, Layout

PORT_IO = 4420
PORT_DISCOVERY = 8009
CNTLID_DYNAMIC = 0xFFFF
CNTLID_STATIC = 0xFFFE
CNTLID_MAX = 0xFFEF
"""Highest controller identifier a subsystem may hand out; FFF0h to FFFFh are reserved or have a meaning."""
SQHD_FLOW_CONTROL_DISABLED = 0xFFFF
"""SQHD of the Connect response when SQ flow control is off: Base 2.0 section 6.3."""
NSSR_VALUE = 0x4E56_4D65
TIMEOUT_UNIT_MS = 500
"""Unit of CAP.TO and of both halves of CRTO, in milliseconds."""


class Property(IntEnum):
    """Offsets of the properties a message-based controller has: Base 2.0 section 3.1.3."""

    CAP = 0x00
    VS = 0x08
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20
    CRTO = 0x68


PROPERTY_SIZES: dict[int, int] = {
    Property.CAP: 8,
    Property.VS: 4,
    Property.CC: 4,
    Property.CSTS: 4,
    Property.NSSR: 4,
    Property.CRTO: 4,
}
"""Size in bytes, by offset."""


class Capabilities(NamedTuple):
    """CAP, offset 0h, 64 bits: Base 2.0 section 3.1.3.1.

    ``mqes`` is 0's based; ``to`` in units of 500 ms; ``mpsmin`` and ``mpsmax`` are 2 ** (12 + n) bytes;
    ``css`` bit 0 NVM command set, bit 6 selection by CC.CSS=6, bit 7 no I/O command set.
    """

    mqes: int = 0
    cqr: int = 0
    ams: int = 0
    to: int = 0
    dstrd: int = 0
    nssrs: int = 0
    css: int = 0
    bps: int = 0
    cps: int = 0
    mpsmin: int = 0
    mpsmax: int = 0
    pmrs: int = 0
    cmbs: int = 0
    nsss: int = 0
    crwms: int = 0
    crims: int = 0


class Version(NamedTuple):
    """VS, offset 8h, and VER of Identify Controller: Base 2.0 section 3.1.3.2."""

    tertiary: int = 0
    minor: int = 0
    major: int = 0


class Configuration(NamedTuple):
    """CC, offset 14h, 32 bits: Base 2.0 section 3.1.3.5. ``iosqes`` and ``iocqes`` are powers of two (6 and 4)."""

    en: int = 0
    css: int = 0
    mps: int = 0
    ams: int = 0
    shn: int = 0
    iosqes: int = 0
    iocqes: int = 0
    crime: int = 0


class ControllerStatus(NamedTuple):
    """CSTS, offset 1Ch, 32 bits: Base 2.0 section 3.1.3.6."""

    rdy: int = 0
    cfs: int = 0
    shst: int = 0
    nssro: int = 0
    pp: int = 0
    st: int = 0


class ReadyTimeouts(NamedTuple):
    """CRTO, offset 68h: with and independent of media, in units of 500 ms."""

    crwmt: int = 0
    crimt: int = 0


CAP = BitLayout(
    Capabilities,
    {
        "mqes": (15, 0),
        "cqr": (16, 16),
        "ams": (18, 17),
        "to": (31, 24),
        "dstrd": (35, 32),
        "nssrs": (36, 36),
        "css": (44, 37),
        "bps": (45, 45),
        "cps": (47, 46),
        "mpsmin": (51, 48),
        "mpsmax": (55, 52),
        "pmrs": (56, 56),
        "cmbs": (57, 57),
        "nsss": (58, 58),
        "crwms": (59, 59),
        "crims": (60, 60),
    },
)
VS = BitLayout(Version, {"tertiary": (7, 0), "minor": (15, 8), "major": (31, 16)})
CC = BitLayout(
    Configuration,
    {
        "en": (0, 0),
        "css": (6, 4),
        "mps": (10, 7),
        "ams": (13, 11),
        "shn": (15, 14),
        "iosqes": (19, 16),
        "iocqes": (23, 20),
        "crime": (24, 24),
    },
)
CSTS = BitLayout(
    ControllerStatus, {"rdy": (0, 0), "cfs": (1, 1), "shst": (3, 2), "nssro": (4, 4), "pp": (5, 5), "st": (6, 6)}
)
CRTO = BitLayout(ReadyTimeouts, {"crwmt": (15, 0), "crimt": (31, 16)})
CSS_NVM = 0
CSS_ALL_SUPPORTED = 6
CSS_ADMIN_ONLY = 7
CAP_CSS_NVM = 1 << 0
CAP_CSS_IOCS = 1 << 6
CAP_CSS_ADMIN_ONLY = 1 << 7


class ShutdownNotification(IntEnum):
    """CC.SHN."""

    NONE = 0
    NORMAL = 1
    ABRUPT = 2


class ShutdownStatus(IntEnum):
    """CSTS.SHST."""

    NORMAL_OPERATION = 0
    IN_PROGRESS = 1
    COMPLETE = 2


class ConnectAttribute(IntFlag):
    """CATTR, byte 46 of Connect; bits 1:0 are the queue's priority class."""

    PRIORITY_MASK = 0x03
    DISABLE_SQ_FLOW_CONTROL = 0x04
    INDIVIDUAL_QUEUE_DELETION = 0x08


class ConnectDwords(NamedTuple):
    """Command dwords 10 to 12 of Connect: Base 2.0 section 6.3. ``sqsize`` is 0's based; ``kato`` in milliseconds."""

    recfmt: int = 0
    qid: int = 0
    sqsize: int = 0
    cattr: int = 0
    kato: int = 0

    def encode(self) -> tuple[int, int, int]:
        """Command dwords 10, 11 and 12."""
        return self.recfmt | self.qid << 16, self.sqsize | self.cattr << 16, self.kato

    @classmethod
    def decode(cls, cdw10: int, cdw11: int, cdw12: int) -> ConnectDwords:
        return cls(cdw10 & 0xFFFF, cdw10 >> 16, cdw11 & 0xFFFF, cdw11 >> 16 & 0xFF, cdw12)


class ConnectData(NamedTuple):
    """Data of Connect, 1024 bytes: Base 2.0 section 6.3. Both names come from :func:`encode_nqn`."""

    hostid: Annotated[bytes, Bytes(16)]
    cntlid: U16
    reserved18: Annotated[bytes, Bytes(238)] = bytes(238)
    subnqn: Annotated[bytes, Bytes(256)] = bytes(256)
    hostnqn: Annotated[bytes, Bytes(256)] = bytes(256)
    reserved768: Annotated[bytes, Bytes(256)] = bytes(256)


CONNECT_DATA = Layout(
    ConnectData,
    size=1024,
    offsets={"hostid": 0, "cntlid": 16, "reserved18": 18, "subnqn": 256, "hostnqn": 512, "reserved768": 768},
)


class ConnectField(IntEnum):
    """IPO of a field of the Connect command, in bytes from the start of the submission queue entry."""

    RECFMT = 40
    QID = 42
    SQSIZE = 44
    CATTR = 46
    KATO = 48


class ConnectDataField(IntEnum):
    """IPO of a field of the Connect data, in bytes from its start."""

    HOSTID = 0
    CNTLID = 16
    SUBNQN = 256
    HOSTNQN = 512


CONNECT_IATTR_DATA = 1 << 16
CONNECT_AUTH_TLS_REQUIRED = 1 << 17
"""ATR in completion dword 0 of Connect: authentication transaction required."""
CONNECT_AUTH_SECURE_CHANNEL_REQUIRED = 1 << 18
"""ASCR in completion dword 0 of Connect: authentication and secure channel required."""


def invalid_parameter(field: ConnectField | ConnectDataField) -> int:
    """Completion dword 0 of Connect Invalid Parameters: IPO in bits 15:0, IATTR bit 16 set for the data."""
    return field | CONNECT_IATTR_DATA if isinstance(field, ConnectDataField) else int(field)


class PropertyDwords(NamedTuple):
    """Command dwords 10 to 13 of Property Get and Property Set: Base 2.0 sections 6.5 and 6.6.

    ``size`` is 4 or 8 bytes, or 0 for a reserved ATTRIB. ``value`` is zero in Property Get.
    """

    offset: int
    size: int
    value: int = 0

    def encode(self) -> tuple[int, int, int, int]:
        """Command dwords 10 to 13."""
        return int(self.size == 8), self.offset, self.value & 0xFFFF_FFFF, self.value >> 32

    @classmethod
    def decode(cls, cdw10: int, cdw11: int, cdw12: int = 0, cdw13: int = 0) -> PropertyDwords:
        return cls(cdw11, {0: 4, 1: 8}.get(cdw10 & 7, 0), cdw12 | cdw13 << 32)


class TransportType(IntEnum):
    """TRTYPE of a discovery log entry."""

    RDMA = 1
    FIBRE_CHANNEL = 2
    TCP = 3
    INTRA_HOST = 254


class AddressFamily(IntEnum):
    """ADRFAM of a discovery log entry."""

    IPV4 = 1
    IPV6 = 2
    INFINIBAND = 3
    FIBRE_CHANNEL = 4
    INTRA_HOST = 254


class SubsystemType(IntEnum):
    """SUBTYPE of a discovery log entry."""

    REFERRAL = 1
    NVM = 2
    CURRENT_DISCOVERY = 3


class TransportRequirements(IntFlag):
    """TREQ of a discovery log entry; bits 1:0 say whether a secure channel is needed."""

    NOT_SPECIFIED = 0x0
    SECURE_CHANNEL_REQUIRED = 0x1
    SECURE_CHANNEL_NOT_REQUIRED = 0x2
    SQ_FLOW_CONTROL_DISABLE_SUPPORTED = 0x4


class SecurityType(IntEnum):
    """SECTYPE, byte 0 of TSAS for NVMe/TCP: NVMe/TCP Transport Specification 1.0."""

    NONE = 0
    TLS_1_2 = 1
    TLS_1_3 = 2


class EntryFlags(IntFlag):
    """EFLAGS of a discovery log entry."""

    DUPLICATE_RETURNED_INFORMATION = 0x1
    EXPLICIT_PERSISTENT_CONNECTION = 0x2
    NO_CDC_CONNECTIVITY = 0x4


class DiscoveryHeader(NamedTuple):
    """Head of the Discovery log page (LID 70h), 1024 bytes; ``numrec`` entries follow: Base 2.0 figure 265."""

    genctr: U64 = 0
    numrec: U64 = 0
    recfmt: U16 = 0
    reserved: Annotated[bytes, Bytes(1006)] = bytes(1006)


class DiscoveryLogEntry(NamedTuple):
    """One entry of the Discovery log page, 1024 bytes: Base 2.0 figure 264.

    ``trsvcid`` and ``traddr`` are ASCII padded with spaces, ``subnqn`` comes from :func:`encode_nqn`, ``asqsz``
    is the admin queue size in entries (not 0's based).
    """

    trtype: U8 = TransportType.TCP
    adrfam: U8 = AddressFamily.IPV4
    subtype: U8 = SubsystemType.NVM
    treq: U8 = 0
    portid: U16 = 0
    cntlid: U16 = CNTLID_DYNAMIC
    asqsz: U16 = 32
    eflags: U16 = 0
    reserved12: Annotated[bytes, Bytes(20)] = bytes(20)
    trsvcid: Annotated[bytes, Bytes(32)] = b" " * 32
    reserved64: Annotated[bytes, Bytes(192)] = bytes(192)
    subnqn: Annotated[bytes, Bytes(256)] = bytes(256)
    traddr: Annotated[bytes, Bytes(256)] = b" " * 256
    tsas: Annotated[bytes, Bytes(256)] = bytes(256)


DISCOVERY_HEADER = Layout(DiscoveryHeader, size=1024, offsets={"genctr": 0, "numrec": 8, "recfmt": 16, "reserved": 18})
DISCOVERY_ENTRY = Layout(
    DiscoveryLogEntry,
    size=1024,
    offsets={
        "trtype": 0,
        "adrfam": 1,
        "subtype": 2,
        "treq": 3,
        "portid": 4,
        "cntlid": 6,
        "asqsz": 8,
        "eflags": 10,
        "trsvcid": 32,
        "subnqn": 256,
        "traddr": 512,
        "tsas": 768,
    },
)
ADMIN_QUEUE_SIZE_MIN = 32
"""Smallest ASQSZ a discovery log entry may give."""


def tcp_entry(
    *,
    subnqn: str,
    address: str,
    port: int,
    family: AddressFamily,
    subtype: SubsystemType = SubsystemType.NVM,
    portid: int = 0,
    treq: int = 0,
    eflags: int = 0,
    security: SecurityType = SecurityType.NONE,
    asqsz: int = ADMIN_QUEUE_SIZE_MIN,
) -> DiscoveryLogEntry:
    """A discovery log entry for NVMe/TCP. Raises UsageError when a text does not fit its field."""
    return DiscoveryLogEntry(
        adrfam=family,
        subtype=subtype,
        treq=treq,
        portid=portid,
        asqsz=asqsz,
        eflags=eflags,
        trsvcid=ascii_field(str(port), 32),
        subnqn=encode_nqn(subnqn),
        traddr=ascii_field(address, 256),
        tsas=bytes([security]).ljust(256, b"\0"),
    )


DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
UUID_NQN_PREFIX = "nqn.2014-08.org.nvmexpress:uuid:"
NQN_BYTES_MAX = 223
NQN_FIELD_SIZE = 256

_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NQN = re.compile(rf"nqn\.[0-9]{{4}}-(?:0[1-9]|1[0-2])\.{_LABEL}(?:\.{_LABEL})*(?::.+)?", re.DOTALL)
_UUID = re.compile("[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def check_nqn(text: str) -> None:
    """Accept an NQN that we hand out or are configured with: Base 2.0 section 4.5.

    1 to 223 bytes of UTF-8: ``nqn.yyyy-mm.reverse.domain``, with ``:anything`` behind it or not, or
    ``nqn.2014-08.org.nvmexpress:uuid:`` and a UUID. White space, control characters and slashes are refused although
    the specification allows them: an NQN goes into URLs and shell commands. The Linux host takes at most 222 bytes.
    Raises UsageError.
    """
    check_foreign_nqn(text)
    if any(character.isspace() or not character.isprintable() or character == "/" for character in text):
        raise UsageError(f"NQN: got {text!r}, wanted no white space, control characters or slashes")
    if text.startswith(UUID_NQN_PREFIX):
        if not _UUID.fullmatch(text, len(UUID_NQN_PREFIX)):
            raise UsageError(f"NQN: got {text!r}, wanted a UUID behind {UUID_NQN_PREFIX}")
    elif not _NQN.fullmatch(text):
        raise UsageError(f"NQN: got {text!r}, wanted nqn.yyyy-mm.reverse.domain:name or {UUID_NQN_PREFIX}<uuid>")


def check_foreign_nqn(text: str) -> None:
    """Accept any NQN that fits the wire: for names that a peer chose, since peers are lax about their form.

    1 to 223 bytes of UTF-8 without NUL. Raises UsageError.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"NQN: got {text!r}, wanted text that UTF-8 can hold") from error
    if not 1 <= size <= NQN_BYTES_MAX:
        raise UsageError(f"NQN: got {size} bytes ({text[:40]!r}), wanted 1 to {NQN_BYTES_MAX}")
    if "\0" in text:
        raise UsageError(f"NQN: got {text!r}, wanted no NUL")


def encode_nqn(text: str) -> bytes:
    """The 256 bytes of an NQN field: UTF-8 padded with NUL. Raises UsageError as :func:`check_foreign_nqn` does."""
    check_foreign_nqn(text)
    return text.encode().ljust(NQN_FIELD_SIZE, b"\0")


def decode_nqn(field: bytes) -> str:
    """The text of an NQN field of 256 bytes. What lies behind the terminator is ignored, as nvmet and SPDK do.

    Raises ValueError when there is no terminator within 224 bytes, nothing before it, or no UTF-8.
    """
    text, terminator, _rest = bytes(field[: NQN_BYTES_MAX + 1]).partition(b"\0")
    if not terminator:
        raise ValueError(f"NQN field: no NUL within {NQN_BYTES_MAX + 1} bytes")
    if not text:
        raise ValueError("NQN field: empty")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"NQN field: {error}") from error
