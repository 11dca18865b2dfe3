"""Opening a pool: which disks, which superblock, the root, and the log rolled forward (FORMAT.md, section 2, 6)."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nvmeof.engine.blockmap import CHUNK_ENTRIES
from nvmeof.engine.cleaner import records
from nvmeof.engine.commit import BadRootError, decode_root
from nvmeof.engine.disk import Disk
from nvmeof.engine.layout import (
    EPOCH_SHIFT,
    NONE32,
    PAGE,
    ROLE_SPARE,
    SEGMENT_MASK,
    SEGMENT_SHIFT,
    UNCORRECTABLE,
    Geometry,
    Kind,
    Label,
    LabelFlag,
    MemberState,
    RecordHeader,
    Superblock,
    entry_of,
    is_entry,
    stream_units,
)
from nvmeof.engine.member import Member, disk_name, read_label, read_superblocks
from nvmeof.engine.reader import find_header, walk
from nvmeof.engine.record import BadRecordError, content_of
from nvmeof.engine.segments import TABLE_CHUNK, StripePlace
from nvmeof.engine.stripe import read_stripe
from nvmeof.errors import ReadFault, UsageError

if TYPE_CHECKING:
    from nvmeof.engine.pool import Pool
    from nvmeof.engine.pool_volume import PoolVolume


EPOCHS_MAX = (1 << 24) - 1
"""A stripe's sequence has 24 bits for the epoch."""

GENERATIONS_MAX = 1 << 63
"""Nobody writes so many superblocks; room for more of them is left."""


@dataclass
class OpenReport:
    """What opening did. ``rolled_forward_bytes`` are on the members, ``dropped_stripes`` were never flushed."""

    clean: bool = True
    rolled_forward_stripes: int = 0
    rolled_forward_bytes: int = 0
    dropped_stripes: int = 0
    repaired_strips: int = 0
    lost_map_pages: int = 0
    missing_members: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


class Found:
    """The disks of a pool, sorted out: ``members`` by role, ``spares``, and the newest superblock."""

    def __init__(self, geometry: Geometry, members: list[Member], spares: list[Member], superblock: Superblock) -> None:
        self.geometry = geometry
        self.members = members
        self.spares = spares
        self.superblock = superblock


# --- which disks ------------------------------------------------------------------------------------------------------


def find(disks: Sequence[Disk]) -> Found:
    """Sort the disks out. Reads only. Raises UsageError, which names the member and what to do."""
    labelled = _labelled(disks)
    geometry = _agreed(labelled)
    short = {label.member: (disk, name) for disk, name, label in labelled if disk.size() < geometry.member_bytes}
    labelled = [each for each in labelled if each[2].member not in short]
    superblocks = [each for disk, _, _ in labelled for each in read_superblocks(disk, geometry)]
    superblocks = [each for each in superblocks if len(each.members) >= geometry.width]
    if not superblocks:
        hint = f" ({', '.join(name for _, name in short.values())}: cut short; bring back the whole)" if short else ""
        raise UsageError(f"no superblock of the pool verifies on any member; it cannot be opened{hint}")
    newest = max(superblocks, key=lambda each: (each.generation, each.epoch))
    if newest.epoch >= EPOCHS_MAX:
        raise UsageError(f"the pool was opened {EPOCHS_MAX} times, which is all it can be; copy it to a new one")
    if newest.generation >= GENERATIONS_MAX:
        raise UsageError(f"the superblock's generation {newest.generation} cannot be; it cannot be opened")
    if len({entry.member for entry in newest.members}) != len(newest.members):
        raise UsageError("the superblock names a member twice; it cannot be opened")
    by_identity = {label.member: (disk, name) for disk, name, label in labelled}
    members = []
    for number, entry in enumerate(newest.members):
        known = by_identity.get(entry.member)
        member = Member(known and known[0], entry.member, known[1] if known else f"member {number}").adopt(entry)
        if entry.member in short:
            disk, member.name = short[entry.member]
            member.out(f"was cut short to {disk.size()} of {geometry.member_bytes} bytes")
        elif member.disk is None:
            member.out("missing")
        elif entry.state == MemberState.OUT:
            member.reason = "was out when the pool was last open"
        members.append(member)
    width = geometry.width
    _enough(geometry, members[:width], labelled, newest)
    spares = [member for member in members[width:] if member.disk is not None]
    for spare in spares:
        spare.state = MemberState.SPARE
    return Found(geometry, members[:width], spares, newest)


def _labelled(disks: Sequence[Disk]) -> list[tuple[Disk, str, Label]]:
    """The disks that have a label. The second of one larger than its pool's members is where the others' is."""
    labelled, others = [], []
    for index, disk in enumerate(disks):
        name = disk_name(disk, index)
        label = read_label(disk, name)
        if label is not None:
            labelled.append((disk, name, label))
        else:
            others.append((disk, name))
    if not labelled:
        raise UsageError("none of the disks has a pool's label; create a pool first (nvmeof pool create)")
    geometry = Counter(label.geometry for _, _, label in labelled).most_common(1)[0][0]
    for disk, name in others:
        label = read_label(disk, name, geometry.member_bytes)
        if label is not None and label.geometry == geometry:
            labelled.append((disk, name, label))
    return labelled


def _agreed(labelled: Sequence[tuple[Disk, str, Label]]) -> Geometry:
    """The one geometry. Two pools' members, or two disks that are the same member, are refused."""
    pools = Counter(label.geometry for _, _, label in labelled)
    geometry = pools.most_common(1)[0][0]
    for _, name, label in labelled:
        if label.geometry.pool != geometry.pool:
            raise UsageError(f"{name}: belongs to another pool ({label.geometry.pool.hex()}); take it out")
        if label.geometry != geometry:
            raise UsageError(f"{name}: its label contradicts those of the other members; replace this member")
    names: dict[bytes, str] = {}
    for _, name, label in labelled:
        if label.member in names:
            raise UsageError(f"{name}: is a copy of {names[label.member]}; take one of them out")
        names[label.member] = name
    return geometry


def _enough(
    geometry: Geometry, members: Sequence[Member], labelled: Sequence[tuple[Disk, str, Label]], newest: Superblock
) -> None:
    missing = [member for member in members if member.disk is None]
    absent = [member for member in members if not member.readable]
    if len(absent) > geometry.parity >= len(missing):
        reasons = "; ".join(f"{member.name}: {member.reason or member.state.name.lower()}" for member in absent)
        raise UsageError(
            f"{len(absent)} of {geometry.width} members cannot be counted upon, {geometry.parity} may be ({reasons}); "
            "bring back those that are missing"
        )
    if len(missing) > geometry.parity:
        known = {entry.member for entry in newest.members}
        strangers = [name for _, name, label in labelled if label.member not in known and label.role != ROLE_SPARE]
        hint = f"; {', '.join(strangers)}: not a member any more" if strangers else ""
        raise UsageError(
            f"{len(missing)} of {geometry.width} members are missing, {geometry.parity} may be: bring back "
            f"{', '.join(_wanted(member) for member in missing)}{hint}"
        )


def _wanted(member: Member) -> str:
    return member.name if member.reason == "missing" else f"{member.name} ({member.reason})"


# --- the log's tail ---------------------------------------------------------------------------------------------------


@dataclass
class Tail:
    """The stripes behind the root, in order, and how many unflushed ones there were behind a gap.

    ``rest`` is the segment and page behind the last, if something of a stripe that does not count lies there.
    """

    places: list[StripePlace]
    dropped: int
    rest: tuple[int, int] | None = None


def scan_tail(pool: Pool, superblock: Superblock) -> Tail:
    """Walk the log from the superblock's head to its end. Blocks. Raises UsageError if flushed stripes are lost."""
    geometry, segments = pool.geometry, pool.segments
    disks = pool.reader.disks()
    segment, page, sequence = superblock.segment, superblock.page, superblock.sequence
    places: list[StripePlace] = []
    if not superblock.root:
        return Tail(places, 0)
    _begin_at(pool, segment, page, sequence)
    following = NONE32
    while True:
        header = find_header(geometry, disks, segment, page, sequence) if page < geometry.segment_pages else None
        if header is None and following < geometry.segments and (segment, page) != (following, 0):
            header = find_header(geometry, disks, following, 0, sequence)
            if header is not None:
                segment, page = following, 0
                segments.begin(segment, sequence)
        if header is None:
            break
        starts = segments.starts[segment]
        place = StripePlace(
            segment, len(starts) - 1, sequence, page, header.pages, starts[-1],
            stream_units(geometry.data, header.pages),
        )  # fmt: skip
        bad = len(read_stripe(geometry, place, disks).bad)
        if bad > geometry.parity:
            if sequence <= superblock.root_sequence:
                raise _lost(place, bad, geometry)
            break
        segments.add_stripe(segment, header.pages)
        segments.filled[segment] += min(header.used, place.units)
        places.append(place)
        following, page, sequence = header.next_segment, page + header.pages, sequence + 1
    if sequence <= superblock.root_sequence:
        raise UsageError(
            f"the log ends at stripe {sequence:#x} in segment {segment}, page {page}, before the root's "
            f"({superblock.root_sequence:#x}): more was lost than {geometry.parity} members hold; it cannot be opened"
        )
    torn = page < geometry.segment_pages and find_header(geometry, disks, segment, page, sequence) is not None
    return Tail(places, _dropped(pool, segment, page, following, sequence), (segment, page) if torn else None)


def _begin_at(pool: Pool, segment: int, page: int, sequence: int) -> None:
    """Know the stripes of the head's segment that lie before the head."""
    geometry, segments = pool.geometry, pool.segments
    if segment >= geometry.segments or page >= geometry.segment_pages:
        raise UsageError("the superblock names a place that is not there; it cannot be opened")
    disks = pool.reader.disks()
    first = find_header(geometry, disks, segment, 0, None) if page else None
    segments.begin(segment, first.sequence if first is not None else sequence)
    if first is None:
        if page:
            raise UsageError(
                f"segment {segment}: its first stripe is lost and the log goes on in it; it cannot be opened"
            )
        return
    for header in walk(geometry, disks, segment, 0, first.sequence):
        if header.page >= page:
            break
        segments.add_stripe(segment, header.pages)
    reached = segments.generation[segment] + len(segments.starts[segment]) - 1
    if reached != sequence:
        raise UsageError(f"segment {segment}: stripes before the log's head are lost; it cannot be opened")


def _dropped(pool: Pool, segment: int, page: int, following: int, sequence: int) -> int:
    """Stripes of this log behind its end: written, never flushed. Raises UsageError if they say it was."""
    geometry, disks = pool.geometry, pool.reader.disks()
    epoch = sequence >> EPOCH_SHIFT
    dropped = 0
    for number, first in ((segment, page), (following, 0)):
        if number >= geometry.segments or (number == segment and first != page):
            continue
        at = first
        while at < geometry.segment_pages:
            header = find_header(geometry, disks, number, at, None)
            if header is None or header.sequence >> EPOCH_SHIFT != epoch or header.sequence < sequence:
                at += 1
                continue
            place = StripePlace(number, 0, header.sequence, at, header.pages, 0, 0)
            if (sequence & NONE32) < header.flushed and header.sequence > sequence:
                raise _lost(place._replace(sequence=sequence), geometry.width, geometry)
            dropped += 1
            at += header.pages
    return dropped


def _lost(place: StripePlace, bad: int, geometry: Geometry) -> UsageError:
    return UsageError(
        f"stripe {place.sequence:#x} of the log, near segment {place.segment}, page {place.page}, was flushed and is "
        f"lost: {bad} of {geometry.width} strips are bad, {geometry.parity} may be; bring back missing members, or "
        "restore a backup"
    )


# --- the root and the map ---------------------------------------------------------------------------------------------


async def load_root(pool: Pool, superblock: Superblock) -> int:
    """Namespaces, segment table and maps as of the root. Returns map pages lost. Raises UsageError."""
    if not superblock.root:
        return 0
    root = _entry(superblock.root, pool.geometry)
    try:
        content = await _metadata(pool, root, Kind.ROOT, 0, 0)
        namespaces, tables, pool.next_identifier = decode_root(content)
        if len(tables) != -(-pool.geometry.segments // TABLE_CHUNK):
            raise BadRootError(f"{len(tables)} segment tables cannot be")
        for number, entry in enumerate(tables):
            content = await _metadata(pool, _entry(entry, pool.geometry), Kind.SEGMENT_TABLE, 0, number)
            if len(content) != 16 * min(TABLE_CHUNK, pool.geometry.segments - number * TABLE_CHUNK):
                raise BadRootError("a segment table has another length")
            pool.segments.decode(number, content)
    except (ReadFault, BadRecordError, BadRootError) as error:
        raise UsageError(f"the pool's root is damaged beyond redundancy: {error}; restore a backup") from error
    pool.committer.root, pool.committer.tables = root, tuple(tables)
    lost = 0
    for info, chunks in namespaces:
        volume = pool.attach(info)
        if len(chunks) != volume.map.chunk_count:
            raise UsageError(
                f"namespace {info.nsid}: the root names {len(chunks)} map chunks, want {volume.map.chunk_count}"
            )
        lost += await _load_map(pool, volume, chunks)
    for entry in (
        root,
        *tables,
        *(entry for volume in pool.volumes() for entry in (*volume.map.chunks, *volume.map.table)),
    ):
        if entry:
            pool.segments.meta[entry >> SEGMENT_SHIFT & SEGMENT_MASK] += 1
    for volume in pool.volumes():
        volume.map.count_live()
    return lost


def _entry(entry: int, geometry: Geometry) -> int:
    if not entry or not is_entry(entry, geometry.segments):
        raise UsageError(f"the pool's root names {entry:#x}, which is no place in it; it cannot be opened")
    return entry


async def _load_map(pool: Pool, volume: PoolVolume, chunks: Sequence[int]) -> int:
    lost = 0
    for number, entry in enumerate(chunks):
        first = number * CHUNK_ENTRIES
        count = min(CHUNK_ENTRIES, volume.map.pages - first)
        content = None
        if entry:
            content = await _metadata_or_none(pool, entry, Kind.MAP_TABLE, volume.info.identifier, number, 8 * count)
            if content is None:
                lost += count
                for page in range(first, first + count):
                    volume.map.lose_page(page)
                volume.map.dirty_chunks.add(number)
                continue
            volume.map.chunks[number] = entry
            with memoryview(content) as view:
                volume.map.table[first : first + count] = type(volume.map.table)("Q", bytes(view))
        for page in range(first, first + count):
            lost += await _load_page(pool, volume, page)
    return lost


async def _load_page(pool: Pool, volume: PoolVolume, page: int) -> int:
    entry = volume.map.table[page]
    if not entry:
        return 0
    content = await _metadata_or_none(pool, entry, Kind.MAP_PAGE, volume.info.identifier, page, PAGE)
    if content is None or not volume.map.is_sane(content, pool.geometry.segments):
        volume.map.table[page] = 0
        volume.map.lose_page(page)
        return 1
    volume.map.load_page(page, content)
    return 0


async def _metadata_or_none(pool: Pool, entry: int, kind: Kind, namespace: int, number: int, size: int) -> bytes | None:
    try:
        content = await _metadata(pool, _entry(entry, pool.geometry), kind, namespace, number)
    except (ReadFault, BadRecordError, UsageError):
        return None
    return content if len(content) == size else None


async def _metadata(pool: Pool, entry: int, kind: Kind, namespace: int, number: int) -> bytes:
    """The content of a metadata record. Raises ReadFault, BadRecordError."""
    header, record = await pool.reader.record(entry, kind, namespace, number)
    return bytes(content_of(record, header))


# --- rolling forward --------------------------------------------------------------------------------------------------


async def roll_forward(pool: Pool, tail: Tail) -> tuple[int, set[int]]:
    """Apply the records behind the root, and heal their stripes. Strips repaired, segments with more than metadata."""
    repaired, holding = 0, set()
    for place in tail.places:
        outcome = await pool.reader.check_stripe(place)
        if outcome.lost:
            raise _lost(place, len(outcome.bad), pool.geometry)
        repaired += len(outcome.healed)
        stream = b"".join(outcome.payloads[: pool.geometry.data])
        for unit, header, _ in records(stream):
            if header.kind in (Kind.DATA, Kind.DEALLOCATED, Kind.UNCORRECTABLE):
                holding.add(place.segment)
                _apply(pool, header, entry_of(place.segment, place.first + unit, header.units))
    return repaired, holding


def _apply(pool: Pool, header: RecordHeader, entry: int) -> None:
    volume = pool.by_identifier.get(header.namespace)
    if volume is None or header.first >= volume.map.blocks:
        return
    first, room = header.first, volume.map.blocks - header.first
    if header.kind == Kind.DATA:
        count = min(header.count, room, 32)
        if header.moved_from:
            volume.map.move_record(first, count, entry, header.moved_from)
        elif count:
            volume.map.set_record(first, count, entry)
    else:
        volume.map.fill(first, min(header.blocks, room), UNCORRECTABLE if header.kind == Kind.UNCORRECTABLE else 0)


async def open_into(pool: Pool, superblock: Superblock) -> OpenReport:
    """Everything from the new epoch to the first commit. Raises UsageError, WriteFault."""
    started = time.monotonic()
    report = OpenReport(clean=superblock.clean)
    if not superblock.clean:
        pool.incarnation = secrets.token_bytes(16)
    tail = await pool.executor.run(scan_tail, pool, superblock)
    report.lost_map_pages = await load_root(pool, superblock)
    if report.lost_map_pages and any(member.disk is None for member in pool.members):
        raise UsageError(
            f"{report.lost_map_pages} pages of the map are lost while members are missing; bring those back, or all "
            "blocks in these pages are lost"
        )
    await pool.save_superblock(epoch=pool.epoch, clean=False)
    report.repaired_strips, holding = await roll_forward(pool, tail)
    await _cut(pool, tail)
    report.rolled_forward_stripes = len(tail.places)
    report.rolled_forward_bytes = sum(place.pages for place in tail.places) * PAGE * pool.geometry.width
    report.dropped_stripes = tail.dropped
    report.missing_members = sum(member.disk is None for member in pool.members)
    _find_free(pool, tail, holding)
    await pool.commit()
    report.seconds = time.monotonic() - started
    return report


async def _cut(pool: Pool, tail: Tail) -> None:
    """Take away the header of a torn stripe behind the log's end: who walks the segment later must not go on there."""
    if tail.rest is None:
        return
    segment, page = tail.rest
    offset = pool.geometry.segment_offset(segment) + page * PAGE
    for role, disk in enumerate(pool.log.disks()):
        if disk is not None:
            try:
                await pool.executor.run(disk.write, offset, bytes(PAGE))
            except OSError as error:
                pool.log.member_failed(role, disk, error, "write")
    pool.log.unsynced = True


def _find_free(pool: Pool, tail: Tail, holding: set[int]) -> None:
    """Free segments. A crash in a commit may have left none: then what only that commit wrote to is free already."""
    segments = pool.segments
    segments.find_free()
    for place in reversed(tail.places):
        number = place.segment
        if len(segments.free) >= 3 or number in holding or segments.live[number] or segments.meta[number]:
            break
        if segments.generation[number]:
            segments.release([number])


def is_encrypted(geometry: Geometry) -> bool:
    """Whether the pool has a key table."""
    return bool(geometry.flags & LabelFlag.ENCRYPTED)
