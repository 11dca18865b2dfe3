"""PDUs of the NVMe/TCP Transport Specification 1.0, section 3.6.2."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from nvmeof.spec.layout import U8, U16, U32, Bytes, Layout


class PduType(IntEnum):
    """Figure 16: PDU types. 08h is reserved."""

    ICREQ = 0x00
    ICRESP = 0x01
    H2C_TERM_REQ = 0x02
    C2H_TERM_REQ = 0x03
    CAPSULE_CMD = 0x04
    CAPSULE_RESP = 0x05
    H2C_DATA = 0x06
    C2H_DATA = 0x07
    R2T = 0x09


class PduFlag(IntFlag):
    """FLAGS field of the common header; which of them apply depends on the type."""

    HDGST = 0x01
    DDGST = 0x02
    LAST = 0x04
    SUCCESS = 0x08


class FatalErrorStatus(IntEnum):
    """FES of a TermReq PDU (section 3.6.2.4 and 3.6.2.5)."""

    INVALID_HEADER_FIELD = 0x01
    PDU_SEQUENCE_ERROR = 0x02
    HEADER_DIGEST_ERROR = 0x03
    DATA_OUT_OF_RANGE = 0x04
    R2T_LIMIT_EXCEEDED = 0x05
    UNSUPPORTED_PARAMETER = 0x06


class CommonHeader(NamedTuple):
    """First 8 bytes of every PDU. ``plen`` is the whole PDU in bytes, digests and padding included."""

    pdu_type: U8
    flags: U8
    hlen: U8
    pdo: U8
    plen: U32


class InitializeConnection(NamedTuple):
    """ICReq and ICResp, 128 bytes. ``alignment`` is HPDA or CPDA in dwords, 0's based (0 to 31).

    ``limit`` is MAXR2T (0's based) in an ICReq and MAXH2CDATA (bytes) in an ICResp.
    """

    pdu_type: U8
    flags: U8
    hlen: U8
    pdo: U8
    plen: U32
    pfv: U16
    alignment: U8
    digest: U8
    limit: U32
    reserved: Annotated[bytes, Bytes(112)] = bytes(112)


class TermReq(NamedTuple):
    """H2CTermReq and C2HTermReq, 24 bytes, followed by up to 128 bytes of the offending header."""

    pdu_type: U8
    flags: U8
    hlen: U8
    pdo: U8
    plen: U32
    fes: U16
    fei: U32
    reserved: Annotated[bytes, Bytes(10)] = bytes(10)


class DataPdu(NamedTuple):
    """H2CData and C2HData headers, and R2T (whose datao/datal are R2TO/R2TL), 24 bytes.

    ``ttag`` is reserved in C2HData. ``datao`` and ``datal`` are in bytes.
    """

    pdu_type: U8
    flags: U8
    hlen: U8
    pdo: U8
    plen: U32
    cccid: U16
    ttag: U16
    datao: U32
    datal: U32
    reserved: Annotated[bytes, Bytes(4)] = bytes(4)


_HEADER = {"pdu_type": 0, "flags": 1, "hlen": 2, "pdo": 3, "plen": 4}
COMMON_HEADER = Layout(CommonHeader, size=8, offsets=_HEADER)
INITIALIZE_CONNECTION = Layout(
    InitializeConnection, size=128, offsets=_HEADER | {"pfv": 8, "alignment": 10, "digest": 11, "limit": 12}
)
TERM_REQ = Layout(TermReq, size=24, offsets=_HEADER | {"fes": 8, "fei": 10})
DATA_PDU = Layout(DataPdu, size=24, offsets=_HEADER | {"cccid": 8, "ttag": 10, "datao": 12, "datal": 16})

HEADER_SIZE = 8
IC_SIZE = 128
CAPSULE_CMD_HLEN = 72
CAPSULE_RESP_HLEN = 24
DATA_HLEN = 24
TERM_REQ_HLEN = 24
TERM_REQ_DATA_MAX = 128
DIGEST_SIZE = 4
DIGEST_HEADER_BIT = 0x01
DIGEST_DATA_BIT = 0x02
PDO_OFFSET = 3

# For the two receive loops and the senders; a golden test compares them with the layouts above.
UNPACK_HEADER = struct.Struct("<BBBBI").unpack_from
# A data PDU after its common header: cccid, ttag, datao, datal.
UNPACK_DATA = struct.Struct("<HHII").unpack_from
# A whole data or R2T header: type, flags, hlen, pdo, plen, cccid, ttag, datao, datal.
PACK_DATA_INTO = struct.Struct("<BBBBIHHII4x").pack_into
# A CapsuleResp: type, flags, hlen, pdo, plen, dw0, dw1, sqhd, sqid, cid, status (already shifted).
PACK_RESP_INTO = struct.Struct("<BBBBIIIHHHH").pack_into
UNPACK_RESP = struct.Struct("<IIHHHH").unpack_from
