"""PDUs byte by byte: NVMe/TCP Transport Specification 1.0 section 3.6.2; offsets also in Linux nvme-tcp.h."""

from __future__ import annotations

import struct

import pytest

from nvmeof.spec.layout import Layout
from nvmeof.spec.pdu import (
    COMMON_HEADER,
    DATA_PDU,
    IC_SIZE,
    INITIALIZE_CONNECTION,
    PACK_DATA_INTO,
    PACK_RESP_INTO,
    TERM_REQ,
    UNPACK_DATA,
    UNPACK_HEADER,
    UNPACK_RESP,
    CommonHeader,
    DataPdu,
    FatalErrorStatus,
    InitializeConnection,
    PduFlag,
    PduType,
    TermReq,
)

from .images import assert_same_offsets, image

HEADER = "pdu_type:1 flags:1 hlen:1 pdo:1 plen:4 "


@pytest.mark.parametrize(
    ("layout", "size", "fields"),
    [
        (COMMON_HEADER, 8, HEADER),
        (INITIALIZE_CONNECTION, 128, HEADER + "pfv:2 alignment:1 digest:1 limit:4 -:112"),
        (TERM_REQ, 24, HEADER + "fes:2 fei:4 -:10"),
        (DATA_PDU, 24, HEADER + "cccid:2 ttag:2 datao:4 datal:4 -:4"),
    ],
)
def test_offsets_agree_with_linux(layout: Layout[CommonHeader], size: int, fields: str) -> None:
    assert_same_offsets(layout.offsets, size, fields)


def test_initialize_connection_request_of_a_linux_host() -> None:
    wire = image(IC_SIZE, {0: "00 00 80 00 80 00 00 00", 11: "03"})
    request = InitializeConnection(PduType.ICREQ, 0, 128, 0, 128, pfv=0, alignment=0, digest=3, limit=0)
    assert INITIALIZE_CONNECTION.encode(request) == wire
    assert INITIALIZE_CONNECTION.decode(wire) == request


def test_initialize_connection_response() -> None:
    wire = image(IC_SIZE, {0: "01 00 80 00 80 00 00 00 00 00 1f 01 00 00 10 00"})
    response = InitializeConnection(PduType.ICRESP, 0, 128, 0, 128, pfv=0, alignment=31, digest=1, limit=1 << 20)
    assert INITIALIZE_CONNECTION.encode(response) == wire
    assert INITIALIZE_CONNECTION.decode(wire) == response


def test_terminate_connection_request() -> None:
    wire = bytes.fromhex("03 00 18 00 20 00 00 00  03 00 78 56 34 12") + bytes(10)
    value = TermReq(PduType.C2H_TERM_REQ, 0, 24, 0, 32, FatalErrorStatus.HEADER_DIGEST_ERROR, 0x12345678)
    assert TERM_REQ.encode(value) == wire
    assert TERM_REQ.decode(wire) == value


DATA_WIRE = bytes.fromhex("07 0c 18 18 18 10 00 00  34 12 00 00  00 20 00 00  00 10 00 00  00 00 00 00")
DATA_VALUE = DataPdu(PduType.C2H_DATA, PduFlag.LAST | PduFlag.SUCCESS, 24, 24, 4120, 0x1234, 0, 8192, 4096)
R2T_WIRE = bytes.fromhex("09 00 18 00 18 00 00 00  34 12 05 00  00 20 00 00  00 10 00 00  00 00 00 00")
R2T_VALUE = DataPdu(PduType.R2T, 0, 24, 0, 24, 0x1234, 5, 8192, 4096)


@pytest.mark.parametrize(("wire", "value"), [(DATA_WIRE, DATA_VALUE), (R2T_WIRE, R2T_VALUE)])
def test_data_and_ready_to_transfer(wire: bytes, value: DataPdu) -> None:
    assert DATA_PDU.encode(value) == wire
    assert DATA_PDU.decode(wire) == value


def test_the_quick_codecs_agree_with_the_layouts() -> None:
    assert UNPACK_HEADER(DATA_WIRE, 0) == DATA_VALUE[:5] == tuple(COMMON_HEADER.decode(DATA_WIRE))
    assert UNPACK_DATA(DATA_WIRE, 8) == DATA_VALUE[5:9]
    buffer = bytearray(b"\xff" * 26)
    PACK_DATA_INTO(buffer, 1, *DATA_VALUE[:9])
    assert buffer == b"\xff" + DATA_WIRE + b"\xff"


def test_a_response_capsule() -> None:
    wire = bytes.fromhex("05 00 18 00 18 00 00 00  2a 00 00 00 00 00 00 00  07 00 00 00 34 12 00 81")
    buffer = bytearray(24)
    PACK_RESP_INTO(buffer, 0, PduType.CAPSULE_RESP, 0, 24, 0, 24, 42, 0, 7, 0, 0x1234, 0x4080 << 1)
    assert buffer == wire
    assert UNPACK_RESP(wire, 8) == (42, 0, 7, 0, 0x1234, 0x8100)


def test_no_pdu_type_is_eight() -> None:
    assert sorted(PduType) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert struct.calcsize("<BBBBI") == COMMON_HEADER.size
