"""The segments: which are free, what is live in the others, and where their stripes begin."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nvmeof.engine.layout import NONE32, PAGE, UNIT, UNITS_PER_PAGE, Geometry, stream_units

TABLE_CHUNK = 2048
"""Segments in one segment table chunk: 16 bytes each, 32 KiB."""


class StripePlace(NamedTuple):
    """Where a stripe is. ``first`` and ``units`` are of the segment's stream, ``page`` and ``pages`` of each strip."""

    segment: int
    number: int
    sequence: int
    page: int
    pages: int
    first: int
    units: int


class Piece(NamedTuple):
    """Bytes of one member: ``offset`` on the disk, ``length`` in bytes."""

    role: int
    offset: int
    length: int


class Segments:
    """By segment: ``generation`` (0 free), ``live`` blocks, ``meta`` records referred to, ``references`` ever made.

    ``filled`` are the units that records took; 0 where nobody knows.
    """

    def __init__(self, geometry: Geometry) -> None:
        count = geometry.segments
        self.geometry = geometry
        self.count = count
        self.generation = array("Q", bytes(8 * count))
        self.live = array("l", bytes(8 * count))
        self.meta = array("l", bytes(8 * count))
        self.references = array("L", bytes(8 * count))
        self.filled = array("L", bytes(8 * count))
        self._stream = stream_units(geometry.data, geometry.segment_pages)
        self.starts: dict[int, array[int]] = {}
        """By segment, the first unit of each stripe, and behind them the end; absent until walked or written."""
        self.pins: Counter[int] = Counter()
        """Segments somebody reads off the loop; they are not given away meanwhile."""
        self.free: deque[int] = deque()

    def find_free(self, busy: Iterable[int] = ()) -> None:
        """Collect the free segments anew."""
        taken = set(busy)
        self.free = deque(number for number in range(self.count) if not self.generation[number] and number not in taken)

    def retire(self, numbers: Iterable[int]) -> None:
        """Nobody is to look at these any more; :meth:`release` gives them back."""
        for number in numbers:
            self.generation[number] = 0
            self.references[number] = 0
            self.filled[number] = 0
            self.starts.pop(number, None)

    def release(self, numbers: Sequence[int]) -> None:
        """Give segments back."""
        self.retire(numbers)
        self.free.extend(numbers)

    def idle(self, number: int) -> bool:
        """Whether nothing is live in a used segment and nobody reads it."""
        return bool(self.generation[number]) and not self.live[number] and number not in self.pins

    def utilization(self, number: int) -> float:
        """What of a segment would have to be moved, 0 to 1: stripes that were cut short are mostly air."""
        filled = (self.filled[number] or self._stream) / self._stream
        return min(1.0, filled) * (self.live[number] + self.meta[number]) / max(1, self.references[number])

    def pin(self, numbers: Iterable[int]) -> None:
        """Keep segments from being given away; :meth:`unpin` with the same."""
        self.pins.update(numbers)

    def unpin(self, numbers: Iterable[int]) -> None:
        """Undo :meth:`pin`."""
        pins = self.pins
        for number in numbers:
            pins[number] -= 1
            if not pins[number]:
                del pins[number]

    # -- addresses

    def begin(self, number: int, sequence: int) -> None:
        """A segment gets its first stripe."""
        self.generation[number] = sequence
        self.references[number] = 0
        self.filled[number] = 0
        self.starts[number] = array("I", [0])

    def add_stripe(self, number: int, pages: int) -> None:
        """A stripe of ``pages`` was put behind the others."""
        starts = self.starts[number]
        starts.append(starts[-1] + stream_units(self.geometry.data, pages))

    def stripe_at(self, number: int, unit: int) -> StripePlace | None:
        """The stripe that holds a unit of the segment's stream; None past the last."""
        starts = self.starts[number]
        index = bisect_right(starts, unit) - 1
        return self.stripe(number, index) if index < len(starts) - 1 else None

    def stripe(self, number: int, index: int) -> StripePlace:
        """The stripe with that position in its segment."""
        starts, data = self.starts[number], self.geometry.data
        first, end = starts[index], starts[index + 1]
        page = (first // data + index) // UNITS_PER_PAGE
        pages = ((end - first) // data + 1) // UNITS_PER_PAGE
        return StripePlace(number, index, self.generation[number] + index, page, pages, first, end - first)

    def stripes(self, number: int) -> list[StripePlace]:
        """All stripes of a walked segment."""
        return [self.stripe(number, index) for index in range(len(self.starts[number]) - 1)]

    def pieces(self, place: StripePlace, unit: int, units: int) -> list[Piece]:
        """Where ``units`` from ``unit`` of the segment's stream are on the members."""
        geometry = self.geometry
        payload = place.units // geometry.data
        base = geometry.segment_offset(place.segment) + place.page * PAGE + UNIT
        pieces = []
        strip, within = divmod(unit - place.first, payload)
        while units:
            count = min(units, payload - within)
            role = (strip + place.sequence) % geometry.width
            pieces.append(Piece(role, base + within * UNIT, count * UNIT))
            strip, within, units = strip + 1, 0, units - count
        return pieces

    # -- the segment table

    def encode(self, freed: set[int]) -> list[bytes]:
        """The segment table in chunks, with the segments in ``freed`` as free."""
        chunks = []
        for first in range(0, self.count, TABLE_CHUNK):
            pairs = array("Q")
            for number in range(first, min(first + TABLE_CHUNK, self.count)):
                gone = number in freed
                pairs.append(0 if gone else self.generation[number])
                filled = min(self.filled[number], NONE32) << 32
                pairs.append(0 if gone else min(self.references[number], NONE32) | filled)
            chunks.append(pairs.tobytes())
        return chunks

    def decode(self, chunk: int, content: bytes) -> None:
        """Take one chunk from media; segments known already (of the log's tail) keep what is known."""
        pairs = array("Q", content)
        for index in range(len(pairs) // 2):
            number = chunk * TABLE_CHUNK + index
            if number < self.count:
                self.generation[number] = self.generation[number] or pairs[2 * index]
                self.references[number] += pairs[2 * index + 1] & NONE32
                self.filled[number] += pairs[2 * index + 1] >> 32

    def next_free(self) -> int:
        """Take a free segment; NONE32 when there is none."""
        return self.free.popleft() if self.free else NONE32
