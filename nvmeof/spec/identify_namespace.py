"""Identify Namespace data structures, 4096 bytes each.

NVM Command Set 1.0 section 4.1.5 (CNS 00h and 05h), NVMe Base 2.0 figure 280 (CNS 08h).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import Annotated, NamedTuple

from nvmeof.errors import LocalProtocolError
from nvmeof.spec.identify import IDENTIFY_SIZE
from nvmeof.spec.layout import U8, U16, U32, U64, Bytes, Layout


class NamespaceFeature(IntFlag):
    """NSFEAT of Identify Namespace."""

    THIN_PROVISIONING = 1 << 0
    ATOMIC_UNITS = 1 << 1
    DEALLOCATED_ERROR = 1 << 2
    IDENTIFIERS_NOT_REUSED = 1 << 3
    OPTIMAL_IO = 1 << 4


class DeallocateFeature(IntFlag):
    """DLFEAT of Identify Namespace; bits 2:0 say what a deallocated block reads as."""

    READS_ZEROES = 0x01
    READS_ONES = 0x02
    WRITE_ZEROES_DEALLOCATES = 0x08
    GUARD_IS_CRC = 0x10


NMIC_SHARED = 0x01
NSATTR_WRITE_PROTECTED = 0x01
NSTAT_READY = 0x01


class LbaFormat(NamedTuple):
    """LBA Format, 4 bytes: metadata bytes, block size as a power of two (9 or more; 0 for none), performance 0-3."""

    ms: U16 = 0
    lbads: U8 = 0
    rp: U8 = 0


LBA_FORMAT = Layout(LbaFormat, size=4, offsets={"ms": 0, "lbads": 2, "rp": 3})
LBA_FORMATS_MAX = 64


class IdentifyNamespace(NamedTuple):
    """CNS 00h for the NVM Command Set: NVM Command Set 1.0 section 4.1.5.1.

    ``nsze``, ``ncap`` and ``nuse`` in logical blocks; ``nlbaf``, ``nawun``, ``nawupf``, ``npwg``, ``npwa``, ``npdg``,
    ``npda``, ``nows`` and ``msrc`` are 0's based; ``nvmcap`` is a 128-bit number of bytes; ``nguid`` and ``eui64``
    are big-endian; ``lbaf`` comes from :func:`encode_lba_formats`.
    """

    nsze: U64 = 0
    ncap: U64 = 0
    nuse: U64 = 0
    nsfeat: U8 = 0
    nlbaf: U8 = 0
    flbas: U8 = 0
    mc: U8 = 0
    dpc: U8 = 0
    dps: U8 = 0
    nmic: U8 = 0
    rescap: U8 = 0
    fpi: U8 = 0
    dlfeat: U8 = 0
    nawun: U16 = 0
    nawupf: U16 = 0
    nacwu: U16 = 0
    nabsn: U16 = 0
    nabo: U16 = 0
    nabspf: U16 = 0
    noiob: U16 = 0
    nvmcap: Annotated[bytes, Bytes(16)] = bytes(16)
    npwg: U16 = 0
    npwa: U16 = 0
    npdg: U16 = 0
    npda: U16 = 0
    nows: U16 = 0
    mssrl: U16 = 0
    mcl: U32 = 0
    msrc: U8 = 0
    kpios: U8 = 0
    nulbaf: U8 = 0
    reserved83: Annotated[bytes, Bytes(9)] = bytes(9)
    anagrpid: U32 = 0
    reserved96: Annotated[bytes, Bytes(3)] = bytes(3)
    nsattr: U8 = 0
    nvmsetid: U16 = 0
    endgid: U16 = 0
    nguid: Annotated[bytes, Bytes(16)] = bytes(16)
    eui64: Annotated[bytes, Bytes(8)] = bytes(8)
    lbaf: Annotated[bytes, Bytes(256)] = bytes(256)
    vendor: Annotated[bytes, Bytes(3712)] = bytes(3712)


IDENTIFY_NAMESPACE = Layout(
    IdentifyNamespace,
    size=IDENTIFY_SIZE,
    offsets={
        "nsze": 0,
        "ncap": 8,
        "nuse": 16,
        "nsfeat": 24,
        "nlbaf": 25,
        "flbas": 26,
        "mc": 27,
        "dpc": 28,
        "dps": 29,
        "nmic": 30,
        "rescap": 31,
        "fpi": 32,
        "dlfeat": 33,
        "nawun": 34,
        "nawupf": 36,
        "nacwu": 38,
        "nabsn": 40,
        "nabo": 42,
        "nabspf": 44,
        "noiob": 46,
        "nvmcap": 48,
        "npwg": 64,
        "npwa": 66,
        "npdg": 68,
        "npda": 70,
        "nows": 72,
        "mssrl": 74,
        "mcl": 76,
        "msrc": 80,
        "nulbaf": 82,
        "anagrpid": 92,
        "nsattr": 99,
        "nvmsetid": 100,
        "endgid": 102,
        "nguid": 104,
        "eui64": 120,
        "lbaf": 128,
        "vendor": 384,
    },
)


def encode_lba_formats(formats: Sequence[LbaFormat]) -> bytes:
    """The 256 bytes of LBAF0 to LBAF63 from 1 to 64 formats; NLBAF is their number minus one."""
    if not 1 <= len(formats) <= LBA_FORMATS_MAX:
        raise LocalProtocolError(f"LBA formats: got {len(formats)}, wanted 1 to {LBA_FORMATS_MAX}")
    return b"".join(map(LBA_FORMAT.encode, formats)).ljust(4 * LBA_FORMATS_MAX, b"\0")


def formatted_lba(namespace: IdentifyNamespace) -> LbaFormat:
    """The format that FLBAS selects: bits 3:0, and bits 6:5 above them when there are more than 16 formats.

    Raises ValueError when it is none of the formats the namespace lists.
    """
    count = namespace.nlbaf + 1 + namespace.nulbaf
    index = namespace.flbas & 0xF
    if count > 16:
        index |= namespace.flbas >> 1 & 0x30
    if index >= min(count, LBA_FORMATS_MAX):
        raise ValueError(f"FLBAS {namespace.flbas:#04x} selects format {index} of {count}")
    return LBA_FORMAT.decode(namespace.lbaf, 4 * index)


class NvmIdentifyNamespace(NamedTuple):
    """CNS 05h with CSI 00h: NVM Command Set 1.0 figure 100; ``npdgl`` to ``npdal`` are of NVM 1.1."""

    lbstm: U64 = 0
    pic: U8 = 0
    reserved9: Annotated[bytes, Bytes(3)] = bytes(3)
    elbaf: Annotated[bytes, Bytes(256)] = bytes(256)
    npdgl: U32 = 0
    nprg: U32 = 0
    npra: U32 = 0
    nors: U32 = 0
    npdal: U32 = 0
    reserved288: Annotated[bytes, Bytes(3808)] = bytes(3808)


class IndependentNamespace(NamedTuple):
    """CNS 08h, I/O Command Set Independent Identify Namespace: Base 2.0 figure 280."""

    nsfeat: U8 = 0
    nmic: U8 = 0
    rescap: U8 = 0
    fpi: U8 = 0
    anagrpid: U32 = 0
    nsattr: U8 = 0
    reserved9: U8 = 0
    nvmsetid: U16 = 0
    endgid: U16 = 0
    nstat: U8 = NSTAT_READY
    reserved15: Annotated[bytes, Bytes(4081)] = bytes(4081)


NVM_IDENTIFY_NAMESPACE = Layout(
    NvmIdentifyNamespace, size=IDENTIFY_SIZE, offsets={"lbstm": 0, "pic": 8, "elbaf": 12, "npdgl": 268, "npdal": 284}
)
INDEPENDENT_NAMESPACE = Layout(
    IndependentNamespace,
    size=IDENTIFY_SIZE,
    offsets={
        "nsfeat": 0,
        "nmic": 1,
        "rescap": 2,
        "fpi": 3,
        "anagrpid": 4,
        "nsattr": 8,
        "nvmsetid": 10,
        "endgid": 12,
        "nstat": 14,
    },
)
