"""Reading records: from memory, from one member, or rebuilt from the others; verified always (FORMAT.md, I4)."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from typing import NamedTuple

from nvmeof.engine.disk import Disk
from nvmeof.engine.executor import Executor
from nvmeof.engine.layout import (
    LENGTH_MASK,
    LENGTH_SHIFT,
    PAGE,
    SEGMENT_MASK,
    SEGMENT_SHIFT,
    UNIT,
    UNIT_OFFSET_MASK,
    UNIT_OFFSET_SHIFT,
    UNIT_SHIFT,
    UNITS_MAX,
    UNITS_PER_PAGE,
    ByteView,
    Geometry,
    RecordHeader,
    StripHeader,
    decode_strip,
)
from nvmeof.engine.log import Log, record_view
from nvmeof.engine.member import Member
from nvmeof.engine.parity import Parity
from nvmeof.engine.record import BadRecordError, Expected, check
from nvmeof.engine.segments import Piece, Segments, StripePlace
from nvmeof.engine.stripe import StripeContent, read_stripe, strip_bytes
from nvmeof.errors import ReadFault
from nvmeof.limits import POOL_MEDIA_ERRORS_KEPT, POOL_STRIPES_REBUILT_KEPT

HEALTHY, REBUILDING = 0, 2


class MediaError(NamedTuple):
    """Something on media was not what it should be. ``time`` is seconds since 1970, ``role`` -1 for a whole stripe."""

    time: float
    role: int
    segment: int
    page: int
    what: str
    healed: bool


class StripeCheck(NamedTuple):
    """Outcome of looking at a whole stripe: roles that were bad, those healed, whether it is beyond its redundancy."""

    bad: list[int]
    healed: list[int]
    failed: list[tuple[int, Disk, OSError]]
    lost: bool
    payloads: list[memoryview]
    used: int
    next_segment: int


class Reader:
    """Finds, reads, verifies, rebuilds, heals. ``errors`` keeps the latest media errors, ``error_count`` counts all."""

    def __init__(
        self, geometry: Geometry, segments: Segments, members: Sequence[Member], log: Log, executor: Executor
    ) -> None:
        self.geometry = geometry
        self.segments = segments
        self.members = members
        self.log = log
        self.executor = executor
        self.errors: deque[MediaError] = deque(maxlen=POOL_MEDIA_ERRORS_KEPT)
        self.error_count = 0
        self.sequence = 0
        """Of the stripe that the last :meth:`now` answered from."""
        self._parity = Parity(geometry.data, geometry.parity)
        self._rebuilt: OrderedDict[int, list[memoryview]] = OrderedDict()
        """Data payloads of stripes rebuilt last, by sequence: their neighbours are often read next."""
        self._scratch = memoryview(bytearray(UNITS_MAX << UNIT_SHIFT))
        self._starts = segments.starts
        self._generation = segments.generation
        self._resident = log.resident
        self._data = geometry.data
        self._width = geometry.width

    # -- at once

    def now(self, entry: int) -> ByteView | None:
        """The bytes of the record at ``entry``, unverified, if nothing has to be waited for; valid until the next."""
        segment = entry >> SEGMENT_SHIFT & SEGMENT_MASK
        unit = entry >> UNIT_OFFSET_SHIFT & UNIT_OFFSET_MASK
        units = entry >> LENGTH_SHIFT & LENGTH_MASK
        stripes = self._resident.get(segment)
        if stripes is not None and (view := record_view(stripes, unit, units)) is not None:
            self.sequence = next(stripe.sequence for stripe in stripes if 0 <= unit - stripe.first < stripe.used)
            return view
        starts = self._starts.get(segment)
        if starts is None or units > UNITS_MAX:
            return None
        index = bisect_right(starts, unit) - 1
        if index >= len(starts) - 1:
            return None
        first = starts[index]
        payload = (starts[index + 1] - first) // self._data
        strip, within = divmod(unit - first, payload)
        if within + units > payload:
            return self._now_in_pieces(segment, index, unit, units)
        self.sequence = sequence = self._generation[segment] + index
        member = self.members[(strip + sequence) % self._width]
        disk = member.disk
        if disk is None or member.state != HEALTHY:
            return None
        page = (first // self._data + index) // UNITS_PER_PAGE
        offset = self.geometry.segment_offset(segment) + page * PAGE + ((within + 1) << UNIT_SHIFT)
        view = self._scratch[: units << UNIT_SHIFT]
        return view if disk.read_now(offset, view) else None

    def _now_in_pieces(self, segment: int, index: int, unit: int, units: int) -> memoryview | None:
        place = self.segments.stripe(segment, index)
        self.sequence = place.sequence
        if unit + units > place.first + place.units:
            return None
        at = 0
        for role, offset, length in self.segments.pieces(place, unit, units):
            member = self.members[role]
            if member.disk is None or member.state != HEALTHY:
                return None
            if not member.disk.read_now(offset, self._scratch[at : at + length]):
                return None
            at += length
        return self._scratch[:at]

    # -- off the loop

    async def load_starts(self, numbers: Sequence[int]) -> None:
        """Walk the segments that nobody has walked yet."""
        for number in numbers:
            if number not in self._starts and self._generation[number]:
                starts = await self.executor.run(self._walk, number, self._generation[number])
                self._starts.setdefault(number, starts)

    def _walk(self, number: int, generation: int) -> array[int]:
        starts = array("I", [0])
        healthy = [member.disk if member.readable else None for member in self.members[: self._width]]
        for header in walk(self.geometry, healthy, number, 0, generation):
            starts.append(starts[-1] + self.geometry.data * (header.pages * UNITS_PER_PAGE - 1))
        return starts

    def disks(self) -> list[Disk | None]:
        """By role, every disk that can be asked at all."""
        return [member.disk for member in self.members[: self._width]]

    def locate(self, entry: int) -> tuple[bytes | None, StripePlace | None, list[Piece]]:
        """A copy of the record if it is in memory, else its stripe and pieces; nothing where no stripe is known."""
        segment = entry >> SEGMENT_SHIFT & SEGMENT_MASK
        unit = entry >> UNIT_OFFSET_SHIFT & UNIT_OFFSET_MASK
        units = entry >> LENGTH_SHIFT & LENGTH_MASK
        stripes = self._resident.get(segment)
        if stripes is not None and (view := record_view(stripes, unit, units)) is not None:
            self.sequence = next(stripe.sequence for stripe in stripes if 0 <= unit - stripe.first < stripe.used)
            return bytes(view), None, []
        place = self.segments.stripe_at(segment, unit) if segment in self._starts else None
        if place is None or unit + units > place.first + place.units:
            return None, None, []
        self.sequence = place.sequence
        return None, place, self.segments.pieces(place, unit, units)

    def read_pieces(self, pieces: Sequence[Piece], scratch: memoryview) -> memoryview:
        """Read a record from its members, in any thread. Raises OSError, BadRecordError."""
        at = 0
        for role, offset, length in pieces:
            member = self.members[role]
            disk = member.disk
            if disk is None or member.state != HEALTHY:
                raise BadRecordError("is on a member that is not there")
            disk.read_into(offset, scratch[at : at + length])
            at += length
        return scratch[:at]

    async def record(self, entry: int, kind: int, namespace: int, block: int) -> tuple[RecordHeader, ByteView]:
        """A record, verified, whatever it takes. Raises ReadFault. The caller has pinned the segment if need be."""
        await self.load_starts([entry >> SEGMENT_SHIFT & SEGMENT_MASK])
        if (cached := self.now(entry)) is not None:
            with suppress(BadRecordError):  # read again below, which says what is wrong and heals it
                return check(cached, Expected(kind, namespace, self.sequence, block)), bytes(cached)
        content, place, pieces = self.locate(entry)
        expected = Expected(kind, namespace, self.sequence, block)
        try:
            if content is None:
                if place is None:
                    raise BadRecordError("is in a stripe that is not there")
                scratch = memoryview(bytearray(sum(piece.length for piece in pieces)))
                content_view: ByteView = await self.executor.run(self.read_pieces, pieces, scratch)
            else:
                content_view = content
            return check(content_view, expected), content_view
        except (BadRecordError, OSError) as error:
            if place is None:
                raise ReadFault(f"a record {error}, and there is no stripe to rebuild it from") from error
            return await self.rebuild(entry, place, expected, str(error))

    async def rebuild(self, entry: int, place: StripePlace, expected: Expected, why: str) -> tuple[RecordHeader, bytes]:
        """A record that did not verify, from the rest of its stripe, which is healed. Raises ReadFault."""
        unit = entry >> UNIT_OFFSET_SHIFT & UNIT_OFFSET_MASK
        units = entry >> LENGTH_SHIFT & LENGTH_MASK
        lo, hi = (unit - place.first) << UNIT_SHIFT, (unit - place.first + units) << UNIT_SHIFT
        if hi > place.units << UNIT_SHIFT:
            raise ReadFault(f"its record reaches beyond its stripe (segment {place.segment}, page {place.page})")
        cached = self._from_rebuilt(place.sequence, lo, hi, expected)
        if cached is not None:
            return cached
        found, outcome = await self.executor.run(self._rebuild, place, lo, hi, expected)
        self.account(place, outcome)
        if not outcome.lost and not outcome.healed:  # what is healed is read again: more damage is news
            self._rebuilt[place.sequence] = outcome.payloads[: self._data]
            while len(self._rebuilt) > POOL_STRIPES_REBUILT_KEPT:
                self._rebuilt.popitem(last=False)
        if found is None:
            self._note(-1, place, f"a record {why}, and cannot be rebuilt", False)
            raise ReadFault(
                f"its record {why}, and its stripe (segment {place.segment}, "
                f"page {place.page}) has {len(outcome.bad)} bad strips of {self._width}"
            )
        return found

    def _rebuild(
        self, place: StripePlace, lo: int, hi: int, expected: Expected
    ) -> tuple[tuple[RecordHeader, bytes] | None, StripeCheck]:
        outcome, content = self._check_stripe(place, True)
        candidates: Iterator[list[memoryview]] = (
            iter([outcome.payloads]) if not outcome.lost else self._guesses(content)
        )
        for payloads in candidates:
            record = _slice(payloads[: self._data], lo, hi)
            try:
                return (check(record, expected), record), outcome
            except BadRecordError:
                continue
        return None, outcome

    def _from_rebuilt(self, sequence: int, lo: int, hi: int, expected: Expected) -> tuple[RecordHeader, bytes] | None:
        """A record of a stripe that was rebuilt a moment ago. A sequence never means another stripe."""
        payloads = self._rebuilt.get(sequence)
        if payloads is None:
            return None
        record = _slice(payloads, lo, hi)
        try:
            return check(record, expected), record
        except BadRecordError:
            return None

    def _guesses(self, content: StripeContent) -> Iterator[list[memoryview]]:
        """With more bad strips than parity: each choice of strips to rebuild, the others of them taken as they are."""
        absent = [index for index in content.bad if content.present[index] is None]
        damaged = [index for index in content.bad if content.present[index] is not None]
        spare = self.geometry.parity - len(absent)
        if spare < 0:
            strips = [strip if strip is not None else memoryview(b"") for strip in content.present]
            length = max(map(len, strips))
            if not length:
                return
            yield [strip if len(strip) else memoryview(bytes(length)) for strip in strips]
            return
        for chosen in combinations(damaged, min(spare, len(damaged))):
            strips_or_none = [None if index in chosen else strip for index, strip in enumerate(content.present)]
            yield [memoryview(strip) for strip in self._parity.recover(strips_or_none)]

    # -- whole stripes

    async def check_stripe(self, place: StripePlace, *, heal: bool = True, refill: bool = False) -> StripeCheck:
        """Read all strips of a stripe; rebuild and put back those that are bad. Never raises for what it finds.

        ``refill``: write those of members being rebuilt in any case. After a failed sync what reads well may be in a
        page cache and nowhere else.
        """
        outcome, _ = await self.executor.run(self._check_stripe, place, heal, refill)
        self.account(place, outcome)
        return outcome

    def _check_stripe(
        self, place: StripePlace, heal: bool, refill: bool = False
    ) -> tuple[StripeCheck, StripeContent]:  # fmt: skip
        content = read_stripe(self.geometry, place, self.disks())
        roles = [(index + place.sequence) % self._width for index in content.bad]
        if len(content.bad) > self.geometry.parity:
            return StripeCheck(roles, [], [], True, [], 0, 0), content
        wanted = list(content.bad)
        if refill:
            states = [self.members[(index + place.sequence) % self._width].state for index in range(self._width)]
            wanted += [index for index in range(self._width) if states[index] == REBUILDING and index not in wanted]
        if not wanted:
            payloads = [payload for payload in content.payloads if payload is not None]
            return StripeCheck([], [], [], False, payloads, content.used, content.next_segment), content
        payloads = [memoryview(payload) for payload in self._parity.recover(content.payloads)]
        healed: list[int] = []
        failed: list[tuple[int, Disk, OSError]] = []
        for index in wanted:
            role = (index + place.sequence) % self._width
            member = self.members[role]
            if heal and member.writable and member.disk is not None:
                strip = strip_bytes(self.geometry, place, index, payloads[index], content)
                try:
                    member.disk.write(self.geometry.segment_offset(place.segment) + place.page * PAGE, strip)
                    healed.append(role)
                except OSError as error:
                    failed.append((role, member.disk, error))
        return StripeCheck(roles, healed, failed, False, payloads, content.used, content.next_segment), content

    def account(self, place: StripePlace, outcome: StripeCheck) -> None:
        """Remember what was bad, on the loop. Missing strips of a member that is known to be out are no news."""
        for role, disk, error in outcome.failed:
            self.log.member_failed(role, disk, error, "write")
        if outcome.healed:
            self.log.unsynced = True
        for role in outcome.bad:
            member = self.members[role]
            if member.state == HEALTHY and member.disk is not None:
                member.errors += 1
                self._note(role, place, f"a bad strip on {member.name}", role in outcome.healed)
        if outcome.lost:
            self._note(-1, place, f"a stripe with {len(outcome.bad)} bad strips of {self._width}", False)

    def _note(self, role: int, place: StripePlace, what: str, healed: bool) -> None:
        self.error_count += 1
        self.errors.append(MediaError(time.time(), role, place.segment, place.page, what, healed))


def walk(
    geometry: Geometry, disks: Sequence[Disk | None], segment: int, page: int, sequence: int
) -> Iterator[StripHeader]:
    """The stripes of a segment from ``page`` on, while their sequences follow; one good header is enough for each."""
    while page < geometry.segment_pages:
        header = find_header(geometry, disks, segment, page, sequence)
        if header is None:
            return
        yield header
        page += header.pages
        sequence += 1


def find_header(
    geometry: Geometry, disks: Sequence[Disk | None], segment: int, page: int, sequence: int | None
) -> StripHeader | None:
    """A strip header that verifies and belongs at that page of a segment, from whichever member has one.

    Without a ``sequence`` the newest: a member that is out holds older ones.
    """
    newest: StripHeader | None = None
    unit = memoryview(bytearray(UNIT))
    for role, disk in enumerate(disks):
        if disk is None:
            continue
        try:
            disk.read_into(geometry.segment_offset(segment) + page * PAGE, unit)
        except OSError:
            continue
        header = decode_strip(unit)
        if (
            header is not None
            and header.tag == geometry.tag
            and (header.segment, header.page, header.data, header.parity)
            == (segment, page, geometry.data, geometry.parity)
            and (sequence is None or header.sequence == sequence)
            and (header.index + header.sequence) % geometry.width == role
            and 0 < header.pages <= geometry.segment_pages - page
        ):
            if sequence is not None:
                return header
            if newest is None or header.sequence > newest.sequence:
                newest = header
    return newest


def _slice(payloads: Sequence[memoryview], lo: int, hi: int) -> bytes:
    """Bytes ``lo`` to ``hi`` of the stream that the data payloads make."""
    length = len(payloads[0])
    out = bytearray()
    while lo < hi:
        strip, within = divmod(lo, length)
        count = min(hi - lo, length - within)
        out += payloads[strip][within : within + count]
        lo += count
    return bytes(out)
