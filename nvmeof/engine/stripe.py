"""A stripe in memory: records are appended to it, then it is cut, given parity and headers, and written."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import NamedTuple

from nvmeof.codec.checksum import xxh3_64
from nvmeof.engine.disk import Disk
from nvmeof.engine.layout import (
    PAGE,
    UNIT,
    UNIT_SHIFT,
    UNITS_PER_PAGE,
    Geometry,
    StripHeader,
    decode_strip,
    encode_strip,
    stream_units,
)
from nvmeof.engine.parity import Parity
from nvmeof.engine.segments import StripePlace


class Stripe:
    """The open stripe, or one on its way to the members.

    ``buffer`` is its stream; ``used`` units of it are records. ``first`` is its first unit in the segment's stream.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.buffer = memoryview(memory)
        self.sequence = 0
        self.segment = 0
        self.next_segment = 0
        self.page = 0
        self.pages_max = 0
        self.first = 0
        self.used = 0
        self.room = 0
        self.flushed = 0
        self.level = 0
        """Whose records it takes: those of this level and above."""

    def begin(
        self, geometry: Geometry, *, sequence: int, segment: int, next_segment: int, page: int, first: int
    ) -> None:  # fmt: skip
        """Begin anew, behind the last stripe of ``segment``."""
        self.sequence = sequence
        self.segment = segment
        self.next_segment = next_segment
        self.page = page
        self.first = first
        self.used = 0
        self.pages_max = min(geometry.strip_bytes_max // PAGE, geometry.segment_pages - page)
        self.room = stream_units(geometry.data, self.pages_max)

    def cut(self, geometry: Geometry) -> int:
        """Pages of each strip that hold what is used; the rest of their stream becomes zeros."""
        per_strip = -(-self.used // geometry.data)
        pages = -(-(per_strip + 1) // UNITS_PER_PAGE)
        end = stream_units(geometry.data, pages) << UNIT_SHIFT
        begin = self.used << UNIT_SHIFT
        self.buffer[begin:end] = bytes(end - begin)
        return pages


def new_memory(geometry: Geometry) -> mmap.mmap:
    """Memory for the stream of the longest stripe, aligned to a page."""
    return mmap.mmap(-1, stream_units(geometry.data, geometry.strip_bytes_max // PAGE) << UNIT_SHIFT)


class Parities(NamedTuple):
    """Where P and Q are made: one strip payload each."""

    buffers: tuple[mmap.mmap, ...]

    @classmethod
    def new(cls, geometry: Geometry) -> Parities:
        """Memory for the longest strips."""
        return cls(tuple(mmap.mmap(-1, geometry.strip_bytes_max) for _ in range(geometry.parity)))


def write_stripe(
    geometry: Geometry, parity: Parity, stripe: Stripe, pages: int, disks: Sequence[Disk | None], out: Parities
) -> list[tuple[int, OSError]]:
    """Make parity and write every strip for which there is a disk. Returns ``(role, error)`` of those that failed."""
    payload_bytes = pages * PAGE - UNIT
    payloads = [stripe.buffer[i * payload_bytes : (i + 1) * payload_bytes] for i in range(geometry.data)]
    parities = [memoryview(buffer)[:payload_bytes] for buffer in out.buffers]
    if parities:
        parity.generate(payloads, parities)
    payloads += parities
    offset = geometry.segment_offset(stripe.segment) + stripe.page * PAGE
    failed = []
    for index, payload in enumerate(payloads):
        role = (index + stripe.sequence) % geometry.width
        disk = disks[role]
        if disk is None:
            continue
        header = StripHeader(
            index, geometry.data, geometry.parity, geometry.tag, stripe.sequence, stripe.segment, stripe.page, pages,
            stripe.next_segment, xxh3_64(payload), stripe.used, stripe.flushed,
        )  # fmt: skip
        try:
            disk.write_two(offset, encode_strip(header), payload)
        except OSError as error:
            failed.append((role, error))
    return failed


class StripeContent(NamedTuple):
    """What the members hold of one stripe. By strip index; None where a strip is missing or bad.

    ``bad`` are the strip indices that do not verify.
    """

    payloads: list[memoryview | None]
    used: int
    next_segment: int
    flushed: int
    bad: list[int]
    present: list[memoryview | None]
    """Bytes of bad strips that could be read all the same."""


def read_stripe(geometry: Geometry, place: StripePlace, disks: Sequence[Disk | None]) -> StripeContent:
    """Read every strip there is and keep those that verify."""
    payloads: list[memoryview | None] = [None] * geometry.width
    present: list[memoryview | None] = [None] * geometry.width
    bad = []
    used = next_segment = flushed = 0
    offset = geometry.segment_offset(place.segment) + place.page * PAGE
    for index in range(geometry.width):
        disk = disks[(index + place.sequence) % geometry.width]
        strip = None if disk is None else _read_strip(disk, offset, place.pages * PAGE)
        if strip is None:
            bad.append(index)
            continue
        header = decode_strip(strip[:UNIT])
        present[index] = strip[UNIT:]
        if (
            header is not None
            and is_strip_of(header, geometry, place, index)
            and header.payload == xxh3_64(strip[UNIT:])
        ):
            payloads[index] = strip[UNIT:]
            used, next_segment, flushed = header.used, header.next_segment, header.flushed
        else:
            bad.append(index)
    return StripeContent(payloads, used, next_segment, flushed, bad, present)


def is_strip_of(header: StripHeader, geometry: Geometry, place: StripePlace, index: int) -> bool:
    """Whether a strip header belongs to that stripe and strip."""
    return (
        (header.index, header.tag, header.sequence, header.segment, header.page, header.pages)
        == (index, geometry.tag, place.sequence, place.segment, place.page, place.pages)
        and (header.data, header.parity) == (geometry.data, geometry.parity)
    )  # fmt: skip


def strip_bytes(
    geometry: Geometry, place: StripePlace, index: int, payload: memoryview, content: StripeContent
) -> bytes:  # fmt: skip
    """Header and payload of one strip, to put back what was lost; the rest of the header is as in the other strips."""
    header = StripHeader(
        index, geometry.data, geometry.parity, geometry.tag, place.sequence, place.segment, place.page, place.pages,
        content.next_segment, xxh3_64(payload), content.used, content.flushed,
    )  # fmt: skip
    return encode_strip(header) + bytes(payload)


def _read_strip(disk: Disk, offset: int, length: int) -> memoryview | None:
    strip = memoryview(bytearray(length))
    try:
        disk.read_into(offset, strip)
    except OSError:
        return None
    return strip
