from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import UsageError
from nvmeof.spec import fabrics as f
from nvmeof.spec.command import PACK_SQE, PSDT_SGL, SGL_DATA_BLOCK_OFFSET, UNPACK_SQE, AdminOpcode, FabricsType
from nvmeof.spec.fabrics import (
    CAP,
    CC,
    CONNECT_DATA,
    CRTO,
    CSTS,
    DISCOVERY_ENTRY,
    DISCOVERY_HEADER,
    VS,
    AddressFamily,
    Capabilities,
    Configuration,
    ConnectAttribute,
    ConnectData,
    ConnectDataField,
    ConnectDwords,
    ConnectField,
    ControllerStatus,
    DiscoveryHeader,
    Property,
    PropertyDwords,
    ReadyTimeouts,
    SecurityType,
    SubsystemType,
    Version,
    encode_nqn,
    invalid_parameter,
    tcp_entry,
)
from nvmeof.spec.fields import ascii_text

from .images import assert_same_offsets, image

HOST_NQN = "nqn.2014-08.org.nvmexpress:uuid:01234567-89ab-cdef-0123-456789abcdef"
SUB_NQN = "nqn.2024-01.io.example:disk"


def test_property_offsets_agree_with_linux() -> None:
    assert {name: int(value) for name, value in Property.__members__.items()} == {
        "CAP": 0x0,
        "VS": 0x8,
        "CC": 0x14,
        "CSTS": 0x1C,
        "NSSR": 0x20,
        "CRTO": 0x68,
    }
    assert [offset for offset, size in f.PROPERTY_SIZES.items() if size == 8] == [Property.CAP]


def test_capabilities_agree_with_the_bits_linux_reads() -> None:
    value = Capabilities(mqes=127, cqr=1, to=30, dstrd=1, nssrs=1, css=0x41, mpsmin=0, mpsmax=4, crwms=1)
    register = 127 | 1 << 16 | 30 << 24 | 1 << 32 | 1 << 36 | 0x41 << 37 | 4 << 52 | 1 << 59
    assert CAP.encode(value) == register == 0x0840_0831_1E01_007F
    assert CAP.decode(register) == value
    assert register & 0xFFFF == 127
    assert register >> 24 & 0xFF == 30
    assert register >> 37 & 0xFF == f.CAP_CSS_NVM | f.CAP_CSS_IOCS
    assert CAP.encode(Capabilities(crims=1)) == 1 << 60
    assert CAP.encode(Capabilities(cmbs=1)) == 1 << 57


def test_configuration_a_linux_host_writes() -> None:
    register = 0x0046_0001
    assert CC.decode(register) == Configuration(en=1, iosqes=6, iocqes=4)
    assert CC.encode(Configuration(en=1, css=f.CSS_ALL_SUPPORTED, iosqes=6, iocqes=4)) == register | 0x60
    assert CC.encode(Configuration(shn=f.ShutdownNotification.NORMAL)) == 1 << 14
    assert CC.encode(Configuration(mps=15, ams=7, crime=1)) == 0xF << 7 | 7 << 11 | 1 << 24


def test_status_version_and_timeouts() -> None:
    assert CSTS.encode(ControllerStatus(rdy=1)) == 1
    assert CSTS.encode(ControllerStatus(cfs=1)) == 2
    assert CSTS.encode(ControllerStatus(rdy=1, shst=f.ShutdownStatus.COMPLETE)) == 0b1001
    assert CSTS.decode(0x70) == ControllerStatus(nssro=1, pp=1, st=1)
    assert VS.encode(Version(major=2, minor=1)) == 0x20100
    assert VS.decode(0x10403) == Version(tertiary=3, minor=4, major=1)
    assert CRTO.decode(0x0002_0003) == ReadyTimeouts(crwmt=3, crimt=2)


CONNECT_WIRE = bytes.fromhex(
    "7f 40 00 00  01 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00"
    "00 00 00 00  00 00 00 00  00 04 00 00  00 00 00 01"
    "00 00 03 00  7f 00 04 00  c0 d4 01 00  00 00 00 00  00 00 00 00  00 00 00 00"
)


def test_connect_command() -> None:
    dwords = ConnectDwords(qid=3, sqsize=127, cattr=ConnectAttribute.DISABLE_SQ_FLOW_CONTROL, kato=120_000)
    sgl = (0, 1024, SGL_DATA_BLOCK_OFFSET)
    connect = PACK_SQE(AdminOpcode.FABRICS, PSDT_SGL, 0, FabricsType.CONNECT, 0, 0, *sgl, *dwords.encode(), 0, 0, 0)
    assert connect == CONNECT_WIRE
    opcode, _flags, _cid, fctype, *_sgl, cdw10, cdw11, cdw12, _cdw13, _cdw14, _cdw15 = UNPACK_SQE(CONNECT_WIRE)
    assert (opcode, fctype & 0xFF) == (0x7F, FabricsType.CONNECT)
    assert ConnectDwords.decode(cdw10, cdw11, cdw12) == dwords


def test_connect_fields_lie_where_linux_puts_them() -> None:
    assert_same_offsets(
        {field.name.lower(): field.value for field in ConnectField},
        64,
        "-:40 recfmt:2 qid:2 sqsize:2 cattr:1 -:1 kato:4 -:12",
    )
    assert_same_offsets(CONNECT_DATA.offsets, 1024, "hostid:16 cntlid:2 -:238 subnqn:256 hostnqn:256 -:256")
    assert {field.name.lower(): field.value for field in ConnectDataField}.items() <= CONNECT_DATA.offsets.items()


def test_connect_data() -> None:
    wire = image(
        1024,
        {
            0: "0123456789abcdef0123456789abcdef",
            16: "ffff",
            256: SUB_NQN.encode().hex(),
            512: HOST_NQN.encode().hex(),
        },
    )
    value = ConnectData(
        hostid=bytes.fromhex("0123456789abcdef0123456789abcdef"),
        cntlid=f.CNTLID_DYNAMIC,
        subnqn=encode_nqn(SUB_NQN),
        hostnqn=encode_nqn(HOST_NQN),
    )
    assert CONNECT_DATA.encode(value) == wire
    assert CONNECT_DATA.decode(wire) == value


def test_invalid_parameter_says_where() -> None:
    assert invalid_parameter(ConnectField.SQSIZE) == 44
    assert invalid_parameter(ConnectDataField.HOSTID) == 0x10000
    assert invalid_parameter(ConnectDataField.SUBNQN) == 0x10100
    assert invalid_parameter(ConnectDataField.HOSTNQN) == 0x10200


def test_property_dwords() -> None:
    assert PropertyDwords(Property.CAP, 8).encode() == (1, 0, 0, 0)
    assert PropertyDwords(Property.CC, 4, 0x460001).encode() == (0, 0x14, 0x460001, 0)
    assert PropertyDwords.decode(1, 0) == PropertyDwords(0, 8)
    assert PropertyDwords.decode(0, 0x14, 0x460001, 0x7) == PropertyDwords(0x14, 4, 0x7_0046_0001)


@pytest.mark.parametrize("attribute", range(2, 8))
def test_a_reserved_property_size_reads_as_zero(attribute: int) -> None:
    assert PropertyDwords.decode(attribute, 0).size == 0


@given(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFF)))
def test_connect_round_trip(parts: tuple[int, int, int, int]) -> None:
    value = ConnectDwords(*parts, kato=0xFFFFFFFF)
    assert ConnectDwords.decode(*value.encode()) == value


def test_discovery_header() -> None:
    wire = image(1024, {0: "88 77 66 55 44 33 22 11", 8: "02", 16: "00 00"})
    assert DISCOVERY_HEADER.encode(DiscoveryHeader(genctr=0x1122334455667788, numrec=2)) == wire
    assert DISCOVERY_HEADER.decode(wire) == DiscoveryHeader(genctr=0x1122334455667788, numrec=2)
    assert_same_offsets(DISCOVERY_HEADER.offsets, 1024, "genctr:8 numrec:8 recfmt:2 -:1006")


def test_discovery_entry() -> None:
    wire = image(
        1024,
        {
            0: "03 02 02 04 01 00 ff ff 20 00 02 00",
            32: b"4420".ljust(32).hex(),
            256: SUB_NQN.encode().hex(),
            512: b"fd00::1".ljust(256).hex(),
            768: "02",
        },
    )
    value = tcp_entry(
        subnqn=SUB_NQN,
        address="fd00::1",
        port=4420,
        family=AddressFamily.IPV6,
        portid=1,
        treq=f.TransportRequirements.SQ_FLOW_CONTROL_DISABLE_SUPPORTED,
        eflags=f.EntryFlags.EXPLICIT_PERSISTENT_CONNECTION,
        security=SecurityType.TLS_1_3,
    )
    assert DISCOVERY_ENTRY.encode(value) == wire
    assert DISCOVERY_ENTRY.decode(wire) == value
    assert (ascii_text(value.traddr), ascii_text(value.trsvcid), f.decode_nqn(value.subnqn)) == (
        "fd00::1",
        "4420",
        SUB_NQN,
    )


def test_discovery_entry_offsets_agree_with_linux() -> None:
    fields = (
        "trtype:1 adrfam:1 subtype:1 treq:1 portid:2 cntlid:2 asqsz:2 eflags:2 -:20 trsvcid:32 -:192 "
        "subnqn:256 traddr:256 tsas:256"
    )
    assert_same_offsets(DISCOVERY_ENTRY.offsets, 1024, fields)
    assert [int(kind) for kind in SubsystemType] == [1, 2, 3]


def test_an_address_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="wanted at most 256"):
        tcp_entry(subnqn=SUB_NQN, address="a" * 257, port=4420, family=AddressFamily.IPV4)
