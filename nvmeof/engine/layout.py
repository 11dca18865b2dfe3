"""The bytes of the pool format: FORMAT.md, section 1. Packing and unpacking, no behaviour.

Every ``decode`` returns None for bytes that do not verify; what that means is for the caller to say.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from nvmeof.codec.checksum import xxh3_64

FORMAT_VERSION = 1
PAGE = 4096
PAGE_SHIFT = 12
UNIT = 64
UNIT_SHIFT = 6
UNITS_PER_PAGE = PAGE // UNIT
AREA_BYTES = 128 << 10
KEYS_OFFSET = 32 << 10
KEYS_BYTES = 32 << 10
RING_OFFSET = 64 << 10
RING_SLOTS = 8
ROLE_SPARE = 0xFFFFFFFF
NONE32 = 0xFFFFFFFF
COUNT_MAX = 0xFFFFFFFFFFFFFFFF
"""Where counters in the superblock stay."""
EPOCH_SHIFT = 40

ByteView = bytes | bytearray | memoryview


# --- map entries ------------------------------------------------------------------------------------------------------

INDEX_BITS, LENGTH_BITS, UNIT_BITS, SEGMENT_BITS = 5, 12, 22, 20
INDEX_MASK = (1 << INDEX_BITS) - 1
LENGTH_SHIFT = INDEX_BITS
LENGTH_MASK = (1 << LENGTH_BITS) - 1
UNIT_OFFSET_SHIFT = LENGTH_SHIFT + LENGTH_BITS
UNIT_OFFSET_MASK = (1 << UNIT_BITS) - 1
SEGMENT_SHIFT = UNIT_OFFSET_SHIFT + UNIT_BITS
SEGMENT_MASK = (1 << SEGMENT_BITS) - 1
SEGMENTS_MAX = 1 << SEGMENT_BITS
RECORD_BLOCKS_MAX = 1 << INDEX_BITS
RECORD_RAW_MAX = RECORD_BLOCKS_MAX * PAGE
UNCORRECTABLE = 1 << 63
ENTRY_BITS_MASK = (1 << (SEGMENT_SHIFT + SEGMENT_BITS)) - 1


class Address(NamedTuple):
    """A map entry, taken apart. ``unit`` and ``units`` are in units of 64 bytes."""

    segment: int
    unit: int
    units: int
    index: int  # type: ignore[assignment]


def entry_of(segment: int, unit: int, units: int) -> int:
    """The entry of the first block of a record."""
    return segment << SEGMENT_SHIFT | unit << UNIT_OFFSET_SHIFT | units << LENGTH_SHIFT


def address_of(entry: int) -> Address:
    """Take an entry apart; not for 0 and not for UNCORRECTABLE."""
    return Address(
        entry >> SEGMENT_SHIFT & SEGMENT_MASK,
        entry >> UNIT_OFFSET_SHIFT & UNIT_OFFSET_MASK,
        entry >> LENGTH_SHIFT & LENGTH_MASK,
        entry & INDEX_MASK,
    )


# --- pages ------------------------------------------------------------------------------------------------------------


def _sealed(body: bytes) -> bytes:
    """``body``, zeros, and the checksum of all that: one PAGE."""
    page = body + bytes(PAGE - 8 - len(body))
    return page + xxh3_64(page).to_bytes(8, "little")


def _opened(page: ByteView, magic: bytes) -> bool:
    return (
        len(page) == PAGE
        and bytes(page[:8]) == magic
        and xxh3_64(page[: PAGE - 8]) == int.from_bytes(page[PAGE - 8 :], "little")
    )


class LabelFlag(IntFlag):
    """Flags of a label."""

    ENCRYPTED = 1
    SPARSE = 2


class Geometry(NamedTuple):
    """What every member of a pool agrees on. ``data`` and ``parity`` are k and m; sizes are in bytes."""

    pool: bytes
    data: int
    parity: int
    flags: int
    segment_bytes: int
    strip_bytes_max: int
    segments: int
    member_bytes: int
    created: int

    @property
    def width(self) -> int:
        """Strips of a stripe: k + m."""
        return self.data + self.parity

    @property
    def segment_pages(self) -> int:
        """Pages of a segment on each member."""
        return self.segment_bytes >> PAGE_SHIFT

    @property
    def tag(self) -> int:
        """The pool's mark in strip headers."""
        return int.from_bytes(self.pool[:8], "little")

    def segment_offset(self, segment: int) -> int:
        """Byte of a member at which a segment begins."""
        return AREA_BYTES + segment * self.segment_bytes


class Label(NamedTuple):
    """One member's label."""

    geometry: Geometry
    member: bytes
    role: int


LABEL_MAGIC = b"NVMEOFLB"
_LABEL = struct.Struct("<8sIBBH16s16sIIIIQQ")


def encode_label(label: Label) -> bytes:
    """4096 bytes."""
    g = label.geometry
    body = _LABEL.pack(
        LABEL_MAGIC, FORMAT_VERSION, g.data, g.parity, g.flags, g.pool, label.member, label.role,
        g.segment_bytes, g.strip_bytes_max, g.segments, g.member_bytes, g.created,
    )  # fmt: skip
    return _sealed(body)


def label_version(page: ByteView) -> int | None:
    """The format version of something that verifies as a label, of whatever version; None for anything else."""
    return int.from_bytes(page[8:12], "little") if _opened(page, LABEL_MAGIC) else None


def decode_label(page: ByteView) -> Label | None:
    """The label in a PAGE of version FORMAT_VERSION that makes sense."""
    if label_version(page) != FORMAT_VERSION:
        return None
    _, _, data, parity, flags, pool, member, role, segment, strip, segments, size, created = _LABEL.unpack_from(page)
    geometry = Geometry(pool, data, parity, flags, segment, strip, segments, size, created)
    return Label(geometry, member, role) if _is_sane(geometry, role) else None


def _is_sane(g: Geometry, role: int) -> bool:
    return (
        1 <= g.data <= 16
        and g.parity <= 2
        and (role < g.width or role == ROLE_SPARE)
        and 0 < g.segment_bytes <= 16 << 20
        and 0 < g.strip_bytes_max <= g.segment_bytes
        and g.segment_bytes % PAGE == 0 == g.strip_bytes_max % PAGE
        and stream_units(g.data, g.strip_bytes_max >> PAGE_SHIFT) >= UNITS_MAX
        and 0 < g.segments <= SEGMENTS_MAX
        and g.member_bytes >= 2 * AREA_BYTES + g.segments * g.segment_bytes
    )


class MemberState(IntEnum):
    """State of a member in the superblock."""

    HEALTHY = 0
    OUT = 1
    REBUILDING = 2
    SPARE = 3


class MemberEntry(NamedTuple):
    """A line of the superblock's member table. ``cursor`` is the next segment to rebuild."""

    member: bytes
    state: int
    cursor: int
    errors: int


class Superblock(NamedTuple):
    """FORMAT.md, Superblock. ``members`` are by role, the spares behind them."""

    generation: int
    pool: bytes
    incarnation: bytes
    epoch: int
    clean: bool
    root: int
    sequence: int
    segment: int
    page: int
    root_sequence: int
    media_errors: int
    scrub_cursor: int
    scrub_stripes: int
    scrub_healed: int
    scrub_lost: int
    members: tuple[MemberEntry, ...]


SUPERBLOCK_MAGIC = b"NVMEOFSB"
MEMBERS_MAX = 64
_SUPERBLOCK = struct.Struct("<8sQ16s16sIBBHQQIIQQIIQQQ")
_MEMBER = struct.Struct("<16sIIQ")
assert _SUPERBLOCK.size == 128
assert _MEMBER.size == 32


def encode_superblock(sb: Superblock) -> bytes:
    """4096 bytes."""
    body = _SUPERBLOCK.pack(
        SUPERBLOCK_MAGIC, sb.generation, sb.pool, sb.incarnation, sb.epoch, sb.clean, len(sb.members), 0,
        sb.root, sb.sequence, sb.segment, sb.page, sb.root_sequence, sb.media_errors,
        sb.scrub_cursor, 0, sb.scrub_stripes, sb.scrub_healed, sb.scrub_lost,
    )  # fmt: skip
    return _sealed(body + b"".join(_MEMBER.pack(*member) for member in sb.members))


def decode_superblock(page: ByteView) -> Superblock | None:
    """The superblock in a PAGE."""
    if not _opened(page, SUPERBLOCK_MAGIC):
        return None
    (_, generation, pool, incarnation, epoch, clean, count, _, root, sequence, segment, first_page, root_sequence,
     media_errors, cursor, _, stripes, healed, lost) = _SUPERBLOCK.unpack_from(page)  # fmt: skip
    if count > MEMBERS_MAX:
        return None
    members = tuple(MemberEntry(*_MEMBER.unpack_from(page, 128 + 32 * index)) for index in range(count))
    if any(member.state not in MemberState._value2member_map_ for member in members):
        return None
    return Superblock(
        generation, pool, incarnation, epoch, clean == 1, root, sequence, segment, first_page, root_sequence,
        media_errors, cursor, stripes, healed, lost, members,
    )  # fmt: skip


# --- strips -----------------------------------------------------------------------------------------------------------

STRIP_MAGIC = 0x50525453
_STRIP = struct.Struct("<QIBBBBQQIIIIQII")
_STRIP_BODY = struct.Struct("<IBBBBQQIIIIQII")
assert _STRIP.size == UNIT


class StripHeader(NamedTuple):
    """FORMAT.md, strip. ``page`` and ``pages`` are in pages of 4096 bytes, ``used`` in units of the stream.

    ``flushed`` is the low half of the sequence below which every stripe was synced when this one was written.
    """

    index: int  # type: ignore[assignment]
    data: int
    parity: int
    tag: int
    sequence: int
    segment: int
    page: int
    pages: int
    next_segment: int
    payload: int
    used: int
    flushed: int


def encode_strip(header: StripHeader) -> bytes:
    """64 bytes."""
    h = header
    body = _STRIP_BODY.pack(
        STRIP_MAGIC, h.index, h.data, h.parity, 0, h.tag, h.sequence, h.segment, h.page, h.pages,
        h.next_segment, h.payload, h.used, h.flushed,
    )  # fmt: skip
    return xxh3_64(body).to_bytes(8, "little") + body


def decode_strip(unit: ByteView) -> StripHeader | None:
    """The strip header in a UNIT."""
    if len(unit) != UNIT:
        return None
    (checksum, magic, index, data, parity, _, tag, sequence, segment, page, pages, next_segment, payload, used,
     flushed) = _STRIP.unpack(unit)  # fmt: skip
    if magic != STRIP_MAGIC or checksum != xxh3_64(unit[8:]):
        return None
    return StripHeader(index, data, parity, tag, sequence, segment, page, pages, next_segment, payload, used, flushed)


def is_entry(entry: int, segments: int) -> bool:
    """Whether ``entry`` could be one: 0, or a record in one of ``segments`` segments."""
    has_length = bool(entry & (LENGTH_MASK << LENGTH_SHIFT))
    return entry == 0 or (has_length and entry >> SEGMENT_SHIFT < segments)


def stream_units(data: int, pages: int) -> int:
    """Units of the stream of a stripe whose strips have ``pages`` pages."""
    return data * (pages * UNITS_PER_PAGE - 1)


# --- records ----------------------------------------------------------------------------------------------------------

RECORD_MAGIC = 0x5245
RECORD = struct.Struct("<QHBBBBHIIQIIQQQ")
RECORD_BODY = struct.Struct("<HBBBBHIIQIIQQQ")
assert RECORD.size == UNIT
STORED_MIN = 16
UNITS_MAX = (UNIT + RECORD_RAW_MAX) // UNIT


class Kind(IntEnum):
    """What a record is."""

    DATA = 1
    DEALLOCATED = 2
    UNCORRECTABLE = 3
    MAP_PAGE = 4
    MAP_TABLE = 5
    SEGMENT_TABLE = 6
    ROOT = 7


class RecordFlag(IntFlag):
    """Flags of a record."""

    ENCRYPTED = 1
    MOVED = 2


class RecordHeader(NamedTuple):
    """FORMAT.md, record; ``length`` is the payload's, in bytes, before padding."""

    kind: int
    codec: int
    planes: int
    flags: int
    key_id: int
    namespace: int
    count: int  # type: ignore[assignment]
    first: int
    length: int
    count_high: int
    sequence: int
    write_sequence: int
    moved_from: int

    @property
    def blocks(self) -> int:
        """Blocks of 4096 bytes, for kinds 1 to 3."""
        return self.count_high << 32 | self.count

    @property
    def stored(self) -> int:
        """Bytes of payload on media, before the padding to a unit."""
        return max(STORED_MIN, self.length) if self.length else 0

    @property
    def units(self) -> int:
        """Units the record takes."""
        return (UNIT + self.stored + UNIT - 1) >> UNIT_SHIFT


def encode_record_header(buffer: bytearray | memoryview, offset: int, header: RecordHeader) -> None:
    """Write the header at ``offset``, with the checksum over it and the payload, which lies behind it already."""
    RECORD_BODY.pack_into(buffer, offset + 8, RECORD_MAGIC, *header)
    end = offset + UNIT + header.stored
    with memoryview(buffer) as view:
        checksum = xxh3_64(view[offset + 8 : end])
        view[offset : offset + 8] = checksum.to_bytes(8, "little")


def decode_record_header(record: ByteView) -> RecordHeader | None:
    """The header of the record that begins ``record``, if the checksum holds; more may follow it."""
    if len(record) < UNIT:
        return None
    checksum, magic, *fields = RECORD.unpack_from(record)
    if magic != RECORD_MAGIC:
        return None
    header = RecordHeader(*fields)
    end = UNIT + header.stored
    if end > len(record) or xxh3_64(record[8:end]) != checksum:
        return None
    return header
