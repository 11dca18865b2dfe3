"""The bytes of the pool format, against the tables of FORMAT.md and golden bytes; every flipped bit is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.engine import layout
from nvmeof.engine.layout import (
    NONE32,
    ROLE_SPARE,
    UNCORRECTABLE,
    Address,
    Geometry,
    Kind,
    Label,
    LabelFlag,
    MemberEntry,
    MemberState,
    RecordFlag,
    RecordHeader,
    StripHeader,
    Superblock,
    address_of,
    decode_label,
    decode_record_header,
    decode_strip,
    decode_superblock,
    encode_label,
    encode_record_header,
    encode_strip,
    encode_superblock,
    entry_of,
    is_entry,
    label_version,
    stream_units,
)

FORMAT = (Path(layout.__file__).parent / "FORMAT.md").read_text()
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "8s": 8, "16s": 16}
Field = tuple[int, int]
"""Offset and size."""


def table(heading: str) -> list[Field]:
    """The fields of the table under a heading of FORMAT.md; the lines of one row side by side."""
    section = FORMAT.split(f"### {heading}")[1]
    fields = []
    for row in re.findall(r"^\| (\d+) \| ([^|]+) \| [^\n]*\|$", section.split("\n###")[0], re.M):
        at = int(row[0])
        for name in row[1].split():
            if name not in SIZES:
                break
            fields.append((at, SIZES[name]))
            at += SIZES[name]
    return fields


def placed(fields: list[Field], values: list[int | bytes], size: int) -> bytearray:
    """``values`` where the table says they are, little-endian."""
    assert len(fields) == len(values)
    content = bytearray(size)
    for (at, width), value in zip(fields, values, strict=True):
        content[at : at + width] = value if isinstance(value, bytes) else value.to_bytes(width, "little")
    return content


def xxh3(content: bytes | bytearray) -> int:
    return xxhash.xxh3_64_intdigest(bytes(content))


GEOMETRY = Geometry(
    pool=bytes(range(0x10, 0x20)),
    data=4,
    parity=2,
    flags=3,
    segment_bytes=1 << 20,
    strip_bytes_max=266240,
    segments=77,
    member_bytes=(77 << 20) + (256 << 10),
    created=1_700_000_000,
)
LABEL = Label(GEOMETRY, bytes(range(0x30, 0x40)), 5)
MEMBERS = (MemberEntry(b"a" * 16, 0, 0, 7), MemberEntry(b"b" * 16, 2, 0x0102, 1 << 40), MemberEntry(b"c" * 16, 3, 0, 0))
SUPERBLOCK = Superblock(
    generation=0x1122334455667788,
    pool=GEOMETRY.pool,
    incarnation=bytes(range(0x50, 0x60)),
    epoch=0x00ABCDEF,
    clean=True,
    root=0x0123456789ABCDEF,
    sequence=0xABCDEF0000000101,
    segment=0x01020304,
    page=0x0A0B0C0D,
    root_sequence=0xABCDEF0000000109,
    media_errors=0x1111111122222222,
    scrub_cursor=0x31323334,
    scrub_stripes=0x4142434445464748,
    scrub_healed=0x5152535455565758,
    scrub_lost=0x6162636465666768,
    members=MEMBERS,
)
STRIP = StripHeader(
    index=3,
    data=4,
    parity=2,
    tag=GEOMETRY.tag,
    sequence=0xABCDEF0000000102,
    segment=0x01020304,
    page=0x05060708,
    pages=0x090A0B0C,
    next_segment=0x0D0E0F10,
    payload=0x1112131415161718,
    used=0x191A1B1C,
    flushed=0x1D1E1F20,
)
RECORD = RecordHeader(
    kind=1,
    codec=2,
    planes=4,
    flags=3,
    key_id=0x0B0C,
    namespace=0x01020304,
    count=0x1A,
    first=0x2122232425262728,
    length=100,
    count_high=0x31323334,
    sequence=0xABCDEF0000000102,
    write_sequence=0xABCDEF0000000203,
    moved_from=0x0123456789ABCDE0,
)
PAYLOAD = bytes(range(100))


@pytest.mark.parametrize(
    ("heading", "end", "count"),
    [
        ("Label", 80, 14),
        ("Superblock", 128, 20),
        ("Segment, stripe, strip", 64, 15),
        ("Record", 64, 15),
    ],
)
def test_the_tables_have_no_holes(heading: str, end: int, count: int) -> None:
    """Every byte up to ``end`` is some field's, and only the checksum of a page is elsewhere."""
    fields = table(heading)
    covered = [byte for at, width in fields for byte in range(at, at + width)]
    assert covered == [*range(end), *(range(4088, 4096) if end > 64 else ())]
    assert len(fields) == count


def test_label_is_as_the_format_says() -> None:
    fields = table("Label")
    g = GEOMETRY
    values: list[int | bytes] = [
        b"NVMEOFLB", 1, 4, 2, 3, g.pool, LABEL.member, 5, 1 << 20, 266240, 77, g.member_bytes, g.created,
    ]  # fmt: skip
    expected = placed(fields, [*values, 0], 4096)
    expected[4088:] = xxh3(expected[:4088]).to_bytes(8, "little")
    assert encode_label(LABEL) == expected
    assert decode_label(expected) == LABEL
    assert expected[:80].hex() == (
        "4e564d454f464c42" "01000000" "04" "02" "0300" "101112131415161718191a1b1c1d1e1f"
        "303132333435363738393a3b3c3d3e3f" "05000000" "00001000" "00100400" "4d000000" "0000d40400000000"
        "00f1536500000000"
    )  # fmt: skip


def test_superblock_is_as_the_format_says() -> None:
    s = SUPERBLOCK
    values: list[int | bytes] = [
        b"NVMEOFSB", s.generation, s.pool, s.incarnation, s.epoch, 1, 3, 0, s.root, s.sequence, s.segment, s.page,
        s.root_sequence, s.media_errors, s.scrub_cursor, 0, s.scrub_stripes, s.scrub_healed, s.scrub_lost,
    ]  # fmt: skip
    expected = placed(table("Superblock"), [*values, 0], 4096)
    for number, member in enumerate(MEMBERS):
        at = 128 + 32 * number
        expected[at : at + 16] = member.member
        expected[at + 16 : at + 20] = int(member.state).to_bytes(4, "little")
        expected[at + 20 : at + 24] = member.cursor.to_bytes(4, "little")
        expected[at + 24 : at + 32] = member.errors.to_bytes(8, "little")
    expected[4088:] = xxh3(expected[:4088]).to_bytes(8, "little")
    assert encode_superblock(s) == expected
    assert decode_superblock(expected) == s
    unclean = s._replace(clean=False)
    assert encode_superblock(unclean)[52] == 0
    assert decode_superblock(encode_superblock(unclean)) == unclean


def test_strip_header_is_as_the_format_says() -> None:
    h = STRIP
    values: list[int | bytes] = [
        0, int.from_bytes(b"STRP", "little"), 3, 4, 2, 0, int.from_bytes(GEOMETRY.pool[:8], "little"), h.sequence,
        h.segment, h.page, h.pages, h.next_segment, h.payload, h.used, h.flushed,
    ]  # fmt: skip
    expected = placed(table("Segment, stripe, strip"), values, 64)
    expected[:8] = xxh3(expected[8:]).to_bytes(8, "little")
    assert encode_strip(h) == expected
    assert decode_strip(expected) == h
    assert expected[8:].hex() == (
        "53545250" "03040200" "1011121314151617" "0201000000efcdab" "04030201" "08070605" "0c0b0a09" "100f0e0d"
        "1817161514131211" "1c1b1a19" "201f1e1d"
    )  # fmt: skip


def test_record_header_is_as_the_format_says() -> None:
    r = RECORD
    values: list[int | bytes] = [
        0, 0x5245, 1, 2, 4, 3, r.key_id, r.namespace, r.count, r.first, 100, r.count_high, r.sequence,
        r.write_sequence, r.moved_from,
    ]  # fmt: skip
    expected = placed(table("Record"), values, 64) + PAYLOAD
    expected[:8] = xxh3(expected[8:]).to_bytes(8, "little")
    assert sealed_record(r, PAYLOAD) == expected
    assert decode_record_header(expected) == r
    assert decode_record_header(expected + b"the next record") == r
    assert bytes(expected[8:10]) == b"ER"


def sealed_record(header: RecordHeader, payload: bytes, offset: int = 0) -> bytes:
    buffer = bytearray(b"?" * offset) + bytearray(64) + payload
    encode_record_header(buffer, offset, header)
    assert buffer[:offset] == b"?" * offset
    return bytes(buffer[offset:])


def test_a_record_header_is_written_where_it_belongs() -> None:
    assert sealed_record(RECORD, PAYLOAD, 192) == sealed_record(RECORD, PAYLOAD)


@pytest.mark.parametrize(("length", "stored", "units"), [
    (0, 0, 1), (1, 16, 2), (15, 16, 2), (16, 16, 2), (17, 17, 2), (63, 63, 2), (64, 64, 2), (65, 65, 3),
    (4096, 4096, 65), (131072, 131072, 2049),
])  # fmt: skip
def test_units_of_a_record(length: int, stored: int, units: int) -> None:
    """``ceil((64 + stored) / 64)`` with 16 bytes of payload at least; no payload at all is none."""
    header = RECORD._replace(length=length)
    assert (header.stored, header.units) == (stored, units)


def test_marks_count_beyond_32_bits() -> None:
    assert RECORD._replace(kind=Kind.DEALLOCATED, count=5, count_high=3).blocks == (3 << 32) + 5


@pytest.mark.parametrize(
    ("content", "decode"),
    [
        (encode_label(LABEL), decode_label),
        (encode_label(LABEL), label_version),
        (encode_superblock(SUPERBLOCK), decode_superblock),
        (encode_strip(STRIP), decode_strip),
        (sealed_record(RECORD, PAYLOAD), decode_record_header),
    ],
    ids=["label", "label version", "superblock", "strip", "record"],
)
def test_every_flipped_bit_is_found(content: bytes, decode: Callable[[bytearray], Any]) -> None:
    damaged = bytearray(content)
    for at in range(len(content)):
        for bit in range(8):
            damaged[at] ^= 1 << bit
            assert decode(damaged) is None, f"bit {bit} of byte {at}"
            damaged[at] ^= 1 << bit
    assert decode(damaged) is not None


@pytest.mark.parametrize(
    ("content", "decode"),
    [
        (encode_label(LABEL), decode_label),
        (encode_superblock(SUPERBLOCK), decode_superblock),
        (encode_strip(STRIP), decode_strip),
        (sealed_record(RECORD, PAYLOAD), decode_record_header),
    ],
    ids=["label", "superblock", "strip", "record"],
)
def test_what_is_cut_short_is_nothing(content: bytes, decode: Callable[[bytes], Any]) -> None:
    for length in (0, 1, 8, 63, len(content) - 1):
        assert decode(content[:length]) is None
    assert decode(bytes(len(content))) is None
    assert decode(memoryview(content)) is not None  # type: ignore[arg-type]


def test_one_kind_of_page_is_not_taken_for_the_other() -> None:
    assert decode_superblock(encode_label(LABEL)) is None
    assert decode_label(encode_superblock(SUPERBLOCK)) is None


def resealed(page: bytes, at: int, value: bytes) -> bytes:
    body = page[:at] + value + page[at + len(value) : 4088]
    return body + xxh3(body).to_bytes(8, "little")


def test_another_version_is_known_and_not_decoded() -> None:
    for version in (0, 2, 0xFFFFFFFF):
        page = resealed(encode_label(LABEL), 8, version.to_bytes(4, "little"))
        assert label_version(page) == version
        assert decode_label(page) is None
    assert label_version(encode_label(LABEL)) == 1


@pytest.mark.parametrize(
    ("change", "sane"),
    [
        ({"data": 0}, False),
        ({"data": 1}, True),
        ({"data": 16}, True),
        ({"data": 17}, False),
        ({"parity": 3}, False),
        ({"parity": 0}, True),
        ({"segment_bytes": 0}, False),
        ({"segment_bytes": (1 << 20) + 2048}, False),
        ({"segment_bytes": 16 << 20, "segments": 4}, True),
        ({"segment_bytes": (16 << 20) + 4096, "segments": 4}, False),
        ({"strip_bytes_max": 0}, False),
        ({"strip_bytes_max": 4096 + 512}, False),
        ({"strip_bytes_max": 1 << 20}, True),
        ({"strip_bytes_max": (1 << 20) + 4096}, False),
        ({"strip_bytes_max": 36864}, True),  # 4 * (9 * 64 - 1) = 2300 units; 2049 must fit
        ({"strip_bytes_max": 32768}, False),  # 2044
        ({"segments": 0}, False),
        ({"segments": 78}, False),
        ({"segments": 76}, True),
        ({"segments": 1 << 20, "segment_bytes": 36864, "strip_bytes_max": 36864, "member_bytes": 1 << 44}, True),
        ({"segments": (1 << 20) + 1, "segment_bytes": 36864, "strip_bytes_max": 36864, "member_bytes": 1 << 44}, False),
        ({"member_bytes": (77 << 20) + (256 << 10) - 1}, False),
        ({"member_bytes": 1 << 60}, True),
    ],
)
def test_a_label_that_makes_no_sense_is_none(change: dict[str, int], sane: bool) -> None:
    label = LABEL._replace(geometry=GEOMETRY._replace(**change), role=0)  # type: ignore[arg-type]
    assert decode_label(encode_label(label)) == (label if sane else None)


@pytest.mark.parametrize(("role", "sane"), [(0, True), (5, True), (6, False), (ROLE_SPARE, True), (NONE32 - 1, False)])
def test_roles(role: int, sane: bool) -> None:
    assert (decode_label(encode_label(LABEL._replace(role=role))) is not None) is sane


@pytest.mark.parametrize("count", [0, 1, 18, 64])
def test_a_superblock_with_that_many_members(count: int) -> None:
    superblock = SUPERBLOCK._replace(members=tuple(MemberEntry(bytes([n]) * 16, n % 4, n, n) for n in range(count)))
    assert decode_superblock(encode_superblock(superblock)) == superblock


def test_a_superblock_that_makes_no_sense_is_none() -> None:
    page = encode_superblock(SUPERBLOCK)
    assert decode_superblock(resealed(page, 53, bytes([65]))) is None
    assert decode_superblock(resealed(page, 128 + 16, bytes([4]))) is None
    assert decode_superblock(resealed(page, 128 + 16, bytes([3]))) is not None


def test_numbers_of_the_format() -> None:
    """Section 1 in figures: areas, units, entries, flags, kinds, states."""
    assert (layout.PAGE, layout.UNIT, layout.UNITS_PER_PAGE) == (4096, 64, 64)
    assert (layout.AREA_BYTES, layout.KEYS_OFFSET, layout.RING_OFFSET) == (128 << 10, 32 << 10, 64 << 10)
    assert (layout.KEYS_BYTES, layout.RING_SLOTS, layout.FORMAT_VERSION) == (32 << 10, 8, 1)
    assert [kind.value for kind in Kind] == [1, 2, 3, 4, 5, 6, 7]
    assert (LabelFlag.ENCRYPTED, LabelFlag.SPARSE, RecordFlag.ENCRYPTED, RecordFlag.MOVED) == (1, 2, 1, 2)
    assert [state.name for state in MemberState] == ["HEALTHY", "OUT", "REBUILDING", "SPARE"]
    assert [int(state) for state in MemberState] == [0, 1, 2, 3]
    assert GEOMETRY.segment_offset(0) == 128 << 10
    assert GEOMETRY.segment_offset(3) == (128 << 10) + (3 << 20)
    assert (GEOMETRY.width, GEOMETRY.segment_pages) == (6, 256)
    assert GEOMETRY.tag == 0x1716151413121110


@pytest.mark.parametrize(("data", "pages", "units"), [(1, 1, 63), (4, 1, 252), (2, 65, 8318), (16, 32, 32752)])
def test_units_of_a_stream(data: int, pages: int, units: int) -> None:
    """``k * (pages * 64 - 1)``."""
    assert stream_units(data, pages) == units


def test_entry_is_as_the_format_says() -> None:
    """Bits 0-4 index, 5-16 units, 17-38 first unit, 39-58 segment."""
    assert entry_of(1, 0, 0) == 1 << 39
    assert entry_of(0, 1, 0) == 1 << 17
    assert entry_of(0, 0, 1) == 1 << 5
    assert entry_of((1 << 20) - 1, (1 << 22) - 1, (1 << 12) - 1) | 31 == (1 << 59) - 1
    assert UNCORRECTABLE == 1 << 63


@given(st.integers(0, (1 << 20) - 1), st.integers(0, (1 << 22) - 1), st.integers(1, (1 << 12) - 1), st.integers(0, 31))
def test_entries_come_apart_as_they_were_put_together(segment: int, unit: int, units: int, index: int) -> None:
    entry = entry_of(segment, unit, units) + index
    assert address_of(entry) == Address(segment, unit, units, index)
    assert is_entry(entry, segment + 1)
    assert not is_entry(entry, segment)


def test_what_is_no_entry() -> None:
    assert is_entry(0, 1)
    assert not is_entry(entry_of(0, 5, 0), 1), "a record of no units"
    assert not is_entry(UNCORRECTABLE, 1)
    assert not is_entry(entry_of(0, 5, 2) | UNCORRECTABLE, 1 << 20)
    assert not is_entry(entry_of(0, 5, 2) | 1 << 59, 1 << 20)
