"""What every byte of a pool's members is, from the format alone: for tests that change some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nvmeof.codec.checksum import xxh3_64
from nvmeof.engine.layout import (
    AREA_BYTES,
    KEYS_OFFSET,
    PAGE,
    RING_OFFSET,
    RING_SLOTS,
    UNIT,
    UNITS_PER_PAGE,
    Geometry,
    Kind,
    Label,
    StripHeader,
    Superblock,
    decode_label,
    decode_record_header,
    decode_strip,
    decode_superblock,
    encode_strip,
)

Image = bytes | bytearray


class Span(NamedTuple):
    """``length`` bytes at ``offset`` of member ``member``."""

    member: int
    offset: int
    length: int


class Strip(NamedTuple):
    """One strip on media. ``offset`` is of its header."""

    member: int
    offset: int
    header: StripHeader


class RecordPlace(NamedTuple):
    """A record in a stripe's stream, in units."""

    kind: int
    unit: int
    units: int
    namespace: int
    first: int
    blocks: int


class StripeOnMedia(NamedTuple):
    """A stripe all of whose strips are there, by strip index."""

    strips: tuple[Strip, ...]

    @property
    def sequence(self) -> int:
        """Its place in the log."""
        return self.strips[0].header.sequence

    @property
    def payload_bytes(self) -> int:
        """Of each strip."""
        return self.strips[0].header.pages * PAGE - UNIT

    def stream(self, images: Sequence[Image]) -> bytes:
        """Its data payloads, one behind the other."""
        data = self.strips[: self.strips[0].header.data]
        return b"".join(images[s.member][s.offset + UNIT : s.offset + UNIT + self.payload_bytes] for s in data)

    def records(self, images: Sequence[Image]) -> Iterator[RecordPlace]:
        """What is in it."""
        stream = self.stream(images)
        unit = 0
        while unit < self.strips[0].header.used:
            header = decode_record_header(stream[unit * UNIT :])
            if header is None:
                raise ValueError(f"no record in stripe {self.sequence:#x} at unit {unit}")
            yield RecordPlace(header.kind, unit, header.units, header.namespace, header.first, header.blocks)
            unit += header.units

    def spans(self, start: int, length: int) -> Iterator[Span]:
        """Where ``length`` bytes from byte ``start`` of the stream are."""
        while length:
            index, within = divmod(start, self.payload_bytes)
            count = min(length, self.payload_bytes - within)
            strip = self.strips[index]
            yield Span(strip.member, strip.offset + UNIT + within, count)
            start, length = start + count, length - count


class Anatomy:
    """The members of a closed pool, taken apart; ``images`` are in any order."""

    def __init__(self, images: Sequence[Image]) -> None:
        self.images = images
        labels = [label_of(image) for image in images]
        self.geometry: Geometry = labels[0].geometry
        self.roles = [label.role for label in labels]

    def superblocks(self, member: int) -> Iterator[tuple[int, Superblock]]:
        """Offset and content of every superblock of a member."""
        for area in self.areas():
            for slot in range(RING_SLOTS):
                offset = area + RING_OFFSET + slot * PAGE
                superblock = decode_superblock(self.images[member][offset : offset + PAGE])
                if superblock is not None:
                    yield offset, superblock

    def areas(self) -> tuple[int, int]:
        """Where the head and the tail area begin."""
        return 0, self.geometry.member_bytes - AREA_BYTES

    def strips(self, member: int) -> Iterator[Strip]:
        """The strips of a member: in each segment as far as they follow each other."""
        image = self.images[member]
        for segment in range(self.geometry.segments):
            page, sequence = 0, None
            while page < self.geometry.segment_pages:
                offset = self.geometry.segment_offset(segment) + page * PAGE
                header = decode_strip(image[offset : offset + UNIT])
                if header is None or (sequence is not None and header.sequence != sequence + 1):
                    break
                yield Strip(member, offset, header)
                page, sequence = page + max(1, header.pages), header.sequence

    def stripes(self) -> list[StripeOnMedia]:
        """Whole stripes, oldest first."""
        found: dict[int, dict[int, Strip]] = {}
        for member in range(len(self.images)):
            for strip in self.strips(member):
                found.setdefault(strip.header.sequence, {})[strip.header.index] = strip
        width = self.geometry.width
        whole = [strips for _, strips in sorted(found.items()) if len(strips) == width]
        return [StripeOnMedia(tuple(strips[index] for index in range(width))) for strips in whole]

    def classes(self) -> dict[str, list[Span]]:
        """All spans of bytes that mean something, by what they are."""
        spans: dict[str, list[Span]] = {}

        def note(name: str, span: Span) -> None:
            spans.setdefault(name, []).append(span)

        for member in range(len(self.images)):
            for area in self.areas():
                note("label", Span(member, area, 80))
                note("label", Span(member, area + PAGE - 16, 16))
                if self.images[member][area + KEYS_OFFSET : area + KEYS_OFFSET + 8] == b"NVMEOFKT":
                    length = int.from_bytes(self.images[member][area + KEYS_OFFSET + 8 :][:4], "little")
                    note("key table", Span(member, area + KEYS_OFFSET, 32))
                    note("key table", Span(member, area + KEYS_OFFSET + 32, min(length, 512)))
            newest = max(superblock.generation for _, superblock in self.superblocks(member))
            for offset, superblock in self.superblocks(member):
                name = "superblock" if superblock.generation == newest else "older superblock"
                note(name, Span(member, offset, 128 + 32 * len(superblock.members)))
                note(name, Span(member, offset + PAGE - 16, 16))
        for stripe in self.stripes():
            for name, span in self._stripe_classes(stripe):
                note(name, span)
        return spans

    def _stripe_classes(self, stripe: StripeOnMedia) -> Iterator[tuple[str, Span]]:
        for strip in stripe.strips:
            yield "strip header", Span(strip.member, strip.offset, UNIT)
            if strip.header.index >= strip.header.data:
                name = "P" if strip.header.index == strip.header.data else "Q"
                yield name, Span(strip.member, strip.offset + UNIT, stripe.payload_bytes)
        end = 0
        for record in stripe.records(self.images):
            name = Kind(record.kind).name.lower().replace("_", " ")
            for span in stripe.spans(record.unit * UNIT, UNIT):
                yield f"{name} header", span
            for span in stripe.spans((record.unit + 1) * UNIT, (record.units - 1) * UNIT):
                yield f"{name} payload", span
            end = record.unit + record.units
        units = self.geometry.data * (stripe.strips[0].header.pages * UNITS_PER_PAGE - 1)
        for span in stripe.spans(end * UNIT, (units - end) * UNIT):
            yield "padding", span


def label_of(image: Image) -> Label:
    """Its label, of either end. Raises ValueError."""
    for offset in (0, len(image) - AREA_BYTES):
        label = decode_label(image[offset : offset + PAGE])
        if label is not None:
            return label
    raise ValueError("no label")


def sealed_page(page: Image) -> bytes:
    """A label or superblock whose checksum is right again."""
    body = bytes(page[: PAGE - 8])
    return body + xxh3_64(body).to_bytes(8, "little")


def sealed_strip(image: bytearray, strip: Strip) -> None:
    """Make both checksums of a strip right for the payload that is there now."""
    length = strip.header.pages * PAGE
    payload = image[strip.offset + UNIT : strip.offset + length]
    image[strip.offset : strip.offset + UNIT] = encode_strip(strip.header._replace(payload=xxh3_64(payload)))


def sealed_record(stream: bytearray, unit: int) -> None:
    """Make the checksum of the record at ``unit`` right for what is there now."""
    at = unit * UNIT
    length = int.from_bytes(stream[at + 32 : at + 36], "little")
    end = at + UNIT + (max(16, length) if length else 0)
    stream[at : at + 8] = xxh3_64(bytes(stream[at + 8 : end])).to_bytes(8, "little")
