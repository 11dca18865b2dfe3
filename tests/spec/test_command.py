from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec import command as c
from nvmeof.spec.command import (
    CQE,
    DATASET_RANGE,
    ITER_CAPSULES,
    ITER_DIGESTED_CAPSULES,
    PACK_SQE,
    SQE,
    UNPACK_CQE,
    UNPACK_DATASET_RANGES,
    UNPACK_SQE,
    AdminOpcode,
    CompletionEntry,
    DatasetRange,
    FeatureId,
    GetLogPageDwords,
    IdentifyDwords,
    IoOpcode,
    LogPage,
    SglSubtype,
    SglType,
    SubmissionEntry,
)

from .images import assert_same_offsets

# A Read of blocks 123456789Ah to 12345678A1h of namespace 1 with FUA, as figure 87 of Base 2.0 lays it out.
READ_WIRE = bytes.fromhex(
    "02 40 34 12  01 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00"
    "00 00 00 00  00 00 00 00  00 10 00 00  00 00 00 5a"
    "9a 78 56 34  12 00 00 00  07 00 00 40  00 00 00 00  00 00 00 00  00 00 00 00"
)
READ = SubmissionEntry(
    opcode=IoOpcode.READ,
    flags=c.PSDT_SGL,
    cid=0x1234,
    nsid=1,
    sgl_length=4096,
    sgl_id=c.SGL_TRANSPORT_DATA_BLOCK,
    cdw10=0x3456789A,
    cdw11=0x12,
    cdw12=7 | c.FUA_BIT,
)


def test_submission_entry() -> None:
    assert len(READ_WIRE) == c.SQE_SIZE
    assert SQE.encode(READ) == READ_WIRE
    assert SQE.decode(READ_WIRE) == READ


def test_submission_entry_offsets_agree_with_linux() -> None:
    fields = (
        "opcode:1 flags:1 cid:2 nsid:4 cdw2:4 cdw3:4 metadata:8 sgl_address:8 sgl_length:4 -:3 sgl_id:1 "
        "cdw10:4 cdw11:4 cdw12:4 cdw13:4 cdw14:4 cdw15:4"
    )
    assert_same_offsets(SQE.offsets, 64, fields)


def test_completion_entry() -> None:
    wire = bytes.fromhex("78 56 34 12  f0 de bc 9a  11 00  22 00  34 12  05 81")
    value = CompletionEntry(0x12345678, 0x9ABCDEF0, 0x11, 0x22, 0x1234, 0x8105)
    assert CQE.encode(value) == wire
    assert CQE.decode(wire) == value == UNPACK_CQE(b"\0" + wire, 1)
    assert_same_offsets(CQE.offsets, 16, "dw0:4 dw1:4 sqhd:2 sqid:2 cid:2 status:2")


entries = st.builds(
    SubmissionEntry,
    opcode=st.integers(0, 0xFF),
    flags=st.integers(0, 0xFF),
    cid=st.integers(0, 0xFFFF),
    sgl_id=st.integers(0, 0xFF),
    **dict.fromkeys(("metadata", "sgl_reserved", "sgl_reserved_high"), st.just(0)),
    sgl_address=st.integers(0, (1 << 64) - 1),
    **dict.fromkeys(("nsid", "cdw2", "cdw3", "sgl_length"), st.integers(0, (1 << 32) - 1)),
    **dict.fromkeys(("cdw10", "cdw11", "cdw12", "cdw13", "cdw14", "cdw15"), st.integers(0, (1 << 32) - 1)),
)


@given(entries)
def test_the_quick_codecs_agree_with_the_layout(entry: SubmissionEntry) -> None:
    e = entry
    wire = SQE.encode(e)
    dwords = (e.cdw10, e.cdw11, e.cdw12, e.cdw13, e.cdw14, e.cdw15)
    sgl = (e.sgl_address, e.sgl_length, e.sgl_id)
    assert UNPACK_SQE(b"\xff" + wire, 1) == (e.opcode, e.flags, e.cid, e.nsid, *sgl, *dwords)
    capsule = bytes(range(1, 9)) + wire
    number = int.from_bytes(capsule[:8], "little")
    assert list(ITER_CAPSULES(capsule * 2)) == [(number, *UNPACK_SQE(wire))] * 2
    assert list(ITER_DIGESTED_CAPSULES((capsule + b"\xffabc") * 2)) == [(number, *UNPACK_SQE(wire))] * 2
    assert PACK_SQE(e.opcode, e.flags, e.cid, e.nsid, e.cdw2, e.cdw3, *sgl, *dwords) == wire


def test_dataset_ranges() -> None:
    wire = bytes.fromhex("01 00 00 00  08 00 00 00  ef cd ab 89 67 45 23 01") * 2
    value = DatasetRange(attributes=1, blocks=8, slba=0x0123456789ABCDEF)
    assert DATASET_RANGE.encode(value) == wire[:16]
    assert DATASET_RANGE.decode(wire, 16) == value
    assert list(UNPACK_DATASET_RANGES(wire)) == [tuple(value)] * 2


def test_opcodes_agree_with_linux() -> None:
    admin = "00 01 02 04 05 06 08 09 0a 0c 0d 10 11 14 15 18 19 1a 1c 1d 1e 7c 7f 80 81 82 84 86"
    io = "00 01 02 04 05 08 09 0c 0d 0e 11 15"
    assert set(bytes.fromhex(admin)) <= set(AdminOpcode)
    assert set(bytes.fromhex(io)) <= set(IoOpcode)
    assert (AdminOpcode.KEEP_ALIVE, AdminOpcode.ASYNC_EVENT_REQUEST, AdminOpcode.FABRICS) == (0x18, 0x0C, 0x7F)
    assert (IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT, IoOpcode.COMPARE) == (8, 9, 5)
    assert {t.name: int(t) for t in c.FabricsType} == {
        "PROPERTY_SET": 0,
        "CONNECT": 1,
        "PROPERTY_GET": 4,
        "AUTHENTICATION_SEND": 5,
        "AUTHENTICATION_RECEIVE": 6,
        "DISCONNECT": 8,
    }


def test_low_bits_of_an_opcode_tell_the_direction() -> None:
    """Base 2.0 figure 138: 01b host to controller, 10b controller to host, 00b no data."""
    no_data = {IoOpcode.FLUSH, IoOpcode.WRITE_ZEROES, IoOpcode.WRITE_UNCORRECTABLE, IoOpcode.VERIFY}
    assert {code for code in IoOpcode if code & 3 == 0} == no_data | {IoOpcode.CANCEL}
    assert {AdminOpcode.IDENTIFY & 3, AdminOpcode.GET_LOG_PAGE & 3, AdminOpcode.GET_FEATURES & 3} == {2}
    assert AdminOpcode.SET_FEATURES & 3 == IoOpcode.WRITE & 3 == IoOpcode.DATASET_MANAGEMENT & 3 == 1


def test_identifiers_agree_with_linux() -> None:
    assert (FeatureId.TIMESTAMP, FeatureId.KEEP_ALIVE_TIMER, FeatureId.HOST_BEHAVIOR_SUPPORT) == (0x0E, 0x0F, 0x16)
    assert (FeatureId.NUMBER_OF_QUEUES, FeatureId.ASYNC_EVENT_CONFIGURATION, FeatureId.HOST_IDENTIFIER) == (7, 11, 0x81)
    assert (FeatureId.VOLATILE_WRITE_CACHE, FeatureId.NAMESPACE_WRITE_PROTECTION) == (6, 0x84)
    assert (LogPage.ANA, LogPage.DISCOVERY, LogPage.CHANGED_NAMESPACES, LogPage.RESERVATION_NOTIFICATION) == (
        0x0C,
        0x70,
        0x04,
        0x80,
    )
    assert (c.Cns.INDEPENDENT_NAMESPACE, c.Cns.ALLOCATED_NAMESPACES, c.Cns.IO_COMMAND_SETS) == (8, 0x10, 0x1C)
    assert (c.NoticeEvent.ANA_CHANGE, c.NoticeEvent.DISCOVERY_LOG_CHANGED) == (3, 0xF0)
    assert {name: int(bit) for name, bit in c.DatasetAttribute.__members__.items()} == {
        "INTEGRAL_READ": 1,
        "INTEGRAL_WRITE": 2,
        "DEALLOCATE": 4,
    }


def test_control_bits_lie_where_linux_puts_them() -> None:
    """Linux names bits of the upper half of command dword 12: FUA 14, LR 15, PRACT 13, DEAC 9."""
    assert c.FUA_BIT == 1 << 16 + 14 == c.ReadWriteControl.FORCE_UNIT_ACCESS
    assert c.ReadWriteControl.LIMITED_RETRY == 1 << 16 + 15
    assert c.DEAC_BIT == 1 << 16 + 9 == c.ReadWriteControl.DEALLOCATE


def test_sgl_identifiers() -> None:
    assert SglType.DATA_BLOCK << 4 | SglSubtype.OFFSET == c.SGL_DATA_BLOCK_OFFSET == 0x01
    assert SglType.TRANSPORT_DATA_BLOCK << 4 | SglSubtype.TRANSPORT == c.SGL_TRANSPORT_DATA_BLOCK == 0x5A
    assert SglType.DATA_BLOCK << 4 | SglSubtype.ADDRESS == 0x00


def test_identify_dwords() -> None:
    assert IdentifyDwords(c.Cns.NAMESPACE_CONTROLLERS, cntid=0x1234).encode() == (0x12340012, 0, 0)
    assert IdentifyDwords.decode(0x12340012, 0x02000007, 0x81) == IdentifyDwords(0x12, 0x1234, 7, 2, 1)


def test_get_log_page_dwords_as_nvme_cli_sends_them() -> None:
    dwords = (0x03FF8170, 0x00050000, 0x00000400, 0, 0)
    value = GetLogPageDwords(lid=LogPage.DISCOVERY, length=4096, offset=1024, lsp=1, lsi=5, rae=True)
    assert value.encode() == dwords
    assert GetLogPageDwords.decode(*dwords) == value


@pytest.mark.parametrize("length", [4, 8, 4 << 16, (4 << 16) + 4, 1 << 34])
def test_get_log_page_length_is_in_dwords_and_0s_based(length: int) -> None:
    cdw10, cdw11, *_ = GetLogPageDwords(lid=0, length=length).encode()
    assert (cdw11 << 16 | cdw10 >> 16) * 4 + 4 == length


@given(
    st.builds(
        GetLogPageDwords,
        lid=st.integers(0, 255),
        length=st.integers(1, 1 << 32).map(lambda dwords: dwords * 4),
        offset=st.integers(0, (1 << 64) - 1),
        lsp=st.integers(0, 127),
        lsi=st.integers(0, 0xFFFF),
        rae=st.booleans(),
        csi=st.integers(0, 255),
        offset_is_index=st.booleans(),
        uuid_index=st.integers(0, 127),
    )
)
def test_get_log_page_round_trip(value: GetLogPageDwords) -> None:
    dwords = value.encode()
    assert all(0 <= dword < 1 << 32 for dword in dwords)
    assert GetLogPageDwords.decode(*dwords) == value


@given(
    st.builds(
        IdentifyDwords,
        st.integers(0, 255),
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFF),
        st.integers(0, 255),
        st.integers(0, 127),
    )
)
def test_identify_round_trip(value: IdentifyDwords) -> None:
    assert IdentifyDwords.decode(*value.encode()) == value
