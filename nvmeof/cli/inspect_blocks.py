"""The path from a block to its bytes: map entry, record, stripe, strips; each strip checked where it lies."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

from nvmeof.cli.inspect_disk import OverlayDisk
from nvmeof.cli.pool_keys import Key, source_of
from nvmeof.cli.text import table
from nvmeof.codec.checksum import xxh3_64
from nvmeof.engine.layout import (
    PAGE,
    UNCORRECTABLE,
    UNIT,
    Geometry,
    Kind,
    RecordFlag,
    StripHeader,
    address_of,
    decode_record_header,
    decode_strip,
    stream_units,
)
from nvmeof.errors import UsageError

if TYPE_CHECKING:
    from nvmeof.engine.pool import Pool

CODECS = ("none", "zstd", "lz4", "deflate")
GOOD, BAD, MISSING = "good", "bad", "missing"

Record: TypeAlias = dict[str, Any]


@contextlib.asynccontextmanager
async def read_only(disks: Sequence[OverlayDisk], key: Key | None) -> AsyncIterator[Pool]:
    """The pool as it would be if it were opened now. Raises UsageError."""
    from nvmeof.engine.executor import InlineExecutor
    from nvmeof.engine.pool import Pool

    usable = [disk for disk in disks if not disk.problem]
    if not usable:
        raise UsageError(f"{disks[0].path}: {disks[0].problem}")
    pool = await Pool.open(usable, keys=source_of(key), executor=InlineExecutor())
    for job in pool.walks.jobs.values():
        job.cancel()  # a rebuild or scrub that would go on, all of it into memory
    try:
        yield pool
    finally:
        await pool.close()


class Strip(NamedTuple):
    """A strip as it lies on a member. ``header`` and ``payload`` are GOOD, BAD or MISSING."""

    role: int
    path: str
    offset: int
    header: str
    payload: str
    number: int
    content: bytes


class StripeFound(NamedTuple):
    """A stripe in its segment; ``first`` is its first unit in the segment's stream."""

    header: StripHeader
    first: int
    units: int


class Members:
    """The members by role."""

    def __init__(self, geometry: Geometry, by_role: dict[int, OverlayDisk]) -> None:
        self.geometry = geometry
        self._by_role = by_role

    @classmethod
    def of(cls, pool: Pool) -> Self:
        """Those of a pool that was opened by :func:`read_only`."""
        return cls(
            pool.geometry, {role: m.disk for role, m in enumerate(pool.members) if isinstance(m.disk, OverlayDisk)}
        )

    def stripes(self, segment: int, generation: int) -> Iterator[StripeFound]:
        """The stripes of a segment, as far as one follows the other."""
        page, first, sequence = 0, 0, generation
        while page < self.geometry.segment_pages:
            header = self._header(segment, page, sequence)
            if header is None:
                return
            units = stream_units(self.geometry.data, header.pages)
            yield StripeFound(header, first, units)
            page, first, sequence = page + header.pages, first + units, sequence + 1

    def _header(self, segment: int, page: int, sequence: int) -> StripHeader | None:
        """The header of the stripe that begins there, from any member that has it."""
        offset = self.geometry.segment_offset(segment) + page * PAGE
        for disk in self._by_role.values():
            header = decode_strip(disk.page(offset)[:UNIT])
            if header is not None and self._fits(header, segment, page, sequence):
                return header
        return None

    def _fits(self, header: StripHeader, segment: int, page: int, sequence: int) -> bool:
        return (
            (header.tag, header.segment, header.page) == (self.geometry.tag, segment, page)
            and header.sequence == sequence
            and 0 < header.pages <= self.geometry.segment_pages - page
        )

    def strips(self, stripe: StripHeader) -> list[Strip]:
        """All strips of a stripe, by their index, each checked."""
        geometry = self.geometry
        offset = geometry.segment_offset(stripe.segment) + stripe.page * PAGE
        found = []
        for index in range(geometry.width):
            role = (index + stripe.sequence) % geometry.width
            disk = self._by_role.get(role)
            content = None if disk is None else _content(disk, offset, stripe.pages * PAGE)
            path = "-" if disk is None else str(disk.path)
            if content is None:
                found.append(Strip(role, path, offset, MISSING, MISSING, index, b""))
                continue
            header = decode_strip(content[:UNIT])
            fits = header is not None and self._fits(header, stripe.segment, stripe.page, stripe.sequence)
            well = header is not None and fits and header.index == index and header.pages == stripe.pages
            whole = header is not None and well and xxh3_64(content[UNIT:]) == header.payload
            state = BAD if header is None else GOOD if well else "stale or misplaced"
            found.append(Strip(role, path, offset, state, GOOD if whole else BAD, index, content[UNIT:]))
        return found


def _content(disk: OverlayDisk, offset: int, length: int) -> bytes | None:
    content = bytearray(length)
    try:
        disk.read_into(offset, memoryview(content))
    except OSError:
        return None
    return bytes(content)


# --- segments ---------------------------------------------------------------------------------------------------------


def segment_record(pool: Pool, members: Members, number: int) -> Record:
    """A used segment: what is live in it, and what is bad."""
    segments = pool.segments
    stripes = list(members.stripes(number, segments.generation[number]))
    strips = [strip for stripe in stripes for strip in members.strips(stripe.header)]
    return {
        "segment": number,
        "generation": segments.generation[number],
        "stripes": len(stripes),
        "pages": sum(stripe.header.pages for stripe in stripes),
        "live": segments.live[number],
        "bad_strips": sum(strip.payload != GOOD for strip in strips),
    }


# --- one block --------------------------------------------------------------------------------------------------------


def block_record(pool: Pool, members: Members, nsid: int, lba: int) -> Record:
    """The whole path of one logical block. Raises UsageError when there is no such block."""
    volume = pool.namespaces.get(nsid)
    if volume is None:
        raise UsageError(f"namespace {nsid}: not in this pool, which has {sorted(pool.namespaces) or 'none'}")
    if lba >= volume.size // volume.block_size:
        raise UsageError(f"namespace {nsid}: block {lba} is beyond its {volume.size // volume.block_size} blocks")
    block = lba * volume.block_size // PAGE
    entry = volume.map.entries[block]
    record: Record = {"nsid": nsid, "lba": lba, "block": block, "entry": entry, "good": True}
    if not entry:
        return record | {"state": "not written: reads as zeros"}
    if entry & UNCORRECTABLE:
        return record | {"state": "marked uncorrectable", "good": False}
    address = address_of(entry)
    record |= {"state": "written", "address": address._asdict()}
    generation = pool.segments.generation[address.segment]
    for stripe in members.stripes(address.segment, generation):
        if stripe.first <= address.unit < stripe.first + stripe.units:
            return record | _found(members, stripe, address.unit, address.units)
    return record | {"state": "lost: no member has a header of its stripe", "good": False}


def _found(members: Members, stripe: StripeFound, unit: int, units: int) -> Record:
    strips = members.strips(stripe.header)
    stream = b"".join(
        strip.content or bytes(stripe.header.pages * PAGE - UNIT) for strip in strips[: members.geometry.data]
    )
    at = (unit - stripe.first) * UNIT
    sealed = stream[at : at + units * UNIT]
    payload = stripe.header.pages * PAGE - UNIT
    holding = range(at // payload, (at + len(sealed) - 1) // payload + 1)
    shown = [{**strip._asdict(), "holds_it": strip.number in holding} for strip in strips]
    for each in shown:
        del each["content"]
    record = _record(sealed)
    good = record["checksum"] == GOOD and all(strip.payload == GOOD for strip in strips)
    return {"record": record, "stripe": stripe.header._asdict(), "strips": shown, "good": good}


def _record(sealed: bytes) -> Record:
    header = decode_record_header(sealed)
    if header is None:
        return {"checksum": BAD}
    flags = [flag.name.lower() for flag in RecordFlag if header.flags & flag and flag.name]
    return {
        "checksum": GOOD,
        **header._asdict(),
        "kind": Kind(header.kind).name.lower() if header.kind in Kind._value2member_map_ else header.kind,
        "codec": CODECS[header.codec] if header.codec < len(CODECS) else header.codec,
        "flags": flags,
        "blocks": header.blocks,
    }


def block_lines(found: Record) -> list[str]:
    """For people."""
    lines = [
        f"block {found['lba']} of namespace {found['nsid']}: {found['state']}",
        f"map       entry {found['block']} is {found['entry']:#x}",
    ]
    if "address" in found:
        at = found["address"]
        place = f"segment {at['segment']}, unit {at['unit']}, {at['units']} units"
        lines.append(f"address   {place}, block {at['index']} of the record")
    if "record" in found:
        lines += [*_record_lines(found["record"]), *_stripe_lines(found["stripe"], found["strips"])]
    return lines


def _record_lines(record: Record) -> list[str]:
    if record["checksum"] != GOOD:
        return ["record    BAD as it lies in the data strips; reading it takes parity"]
    kind = " ".join([*record["flags"], record["kind"]])
    key = f", key {record['key_id']}" if record["key_id"] else ""
    planes = f" in planes of {record['planes']}" if record["planes"] > 1 else ""
    return [
        f"record    good: {kind}, blocks {record['first']} to {record['first'] + record['blocks'] - 1} of "
        f"namespace {record['namespace']} in the pool, {record['length']} bytes, {record['codec']}{planes}{key}",
        f"          write sequence {record['write_sequence']:#x}, in stripe {record['sequence']:#x}",
    ]


def _stripe_lines(stripe: Record, strips: list[Record]) -> list[str]:
    end = stripe["page"] + stripe["pages"] - 1
    line = f"stripe    {stripe['sequence']:#x} in segment {stripe['segment']}, pages {stripe['page']} to {end}"
    rows = [("", "STRIP", "ROLE", "FILE", "AT BYTE", "HEADER", "PAYLOAD")]
    for strip in strips:
        name = str(strip["number"]) if strip["number"] < stripe["data"] else "PQ"[strip["number"] - stripe["data"]]
        mark = "*" if strip["holds_it"] else ""
        offset = str(strip["offset"])
        rows.append((mark, name, str(strip["role"]), strip["path"], offset, strip["header"], strip["payload"]))
    return [line, *table(rows, right=(1, 2, 4)), "* holds the record"]
