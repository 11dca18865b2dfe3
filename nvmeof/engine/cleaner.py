"""Getting space back: what is still live in the emptiest segments is appended again, and a commit frees them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nvmeof.engine.layout import (
    PAGE,
    PAGE_SHIFT,
    RECORD_RAW_MAX,
    UNIT,
    UNIT_SHIFT,
    Kind,
    RecordHeader,
    decode_record_header,
    entry_of,
)
from nvmeof.engine.log import Level
from nvmeof.engine.record import BadRecordError, Sealed, content_of
from nvmeof.engine.segments import StripePlace
from nvmeof.errors import CapacityError
from nvmeof.limits import POOL_CLEAN_BELOW_PERCENT, POOL_RESERVE_SEGMENTS

if TYPE_CHECKING:
    from nvmeof.engine.pool import Pool
    from nvmeof.engine.pool_volume import PoolVolume

GAIN_MIN = 0.97
"""A segment fuller than this is not worth moving: a pool whose best is that is full."""


class Cleaner:
    """Cleans a pool. ``moved`` counts blocks moved, ``cleaned`` segments emptied."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.moved = 0
        self.cleaned = 0
        self._lock = asyncio.Lock()
        self._stuck: set[int] = set()
        segments = pool.geometry.segments
        self._wanted = POOL_RESERVE_SEGMENTS[Level.USER] + max(1, segments * POOL_CLEAN_BELOW_PERCENT // 100)

    @property
    def due(self) -> bool:
        """Whether free segments have become few."""
        return len(self.pool.segments.free) < self._wanted

    async def make_room(self) -> None:
        """Get at least one segment for users. Raises CapacityError when the pool is full, WriteFault."""
        enough = POOL_RESERVE_SEGMENTS[Level.USER]
        free, segments = self.pool.segments.free, self.pool.geometry.segments
        while len(free) <= enough:
            async with self._lock:
                before = len(free)
                if before > enough:
                    return
                await self.pool.commit()
                if len(free) > enough:
                    return
                await self._round()
                if len(free) <= before and len(free) <= enough:
                    raise CapacityError(f"the pool is full: {len(free)} of {segments} segments are free")

    async def tend(self) -> None:
        """Clean in the background until enough segments are free or nothing is worth it."""
        async with self._lock:
            while self.due:
                before = len(self.pool.segments.free)
                await self._round()
                if len(self.pool.segments.free) <= before:
                    return

    async def _round(self) -> None:
        """Empty a few segments, the emptiest first, and commit."""
        segments, log = self.pool.segments, self.pool.log
        budget = 1.0
        for number in self._victims():
            if not segments.generation[number] or number in log.busy_segments:  # a commit freed it meanwhile
                continue
            share = segments.utilization(number)
            if share > GAIN_MIN or (budget < share and budget < 1.0):
                break
            budget -= share
            if len(segments.free) <= POOL_RESERVE_SEGMENTS[Level.CLEANER] and not self._fits(number):
                break
            try:
                if not await self._empty(number):
                    self._stuck.add(number)
            except CapacityError:
                break
            if log.fault:
                break
        await self.pool.commit()

    def _fits(self, number: int) -> bool:
        """Whether all of a segment surely fits in what is left of the log's: then the move needs no free segment."""
        segments = self.pool.segments
        data = segments.live[number] * (PAGE + UNIT)
        pages = segments.meta[number] * (PAGE + UNIT)
        if segments.filled[number]:
            pages = min(pages, segments.filled[number] << UNIT_SHIFT)
        return data + pages + min(RECORD_RAW_MAX, data) + PAGE <= self.pool.log.room_left

    def _victims(self) -> list[int]:
        segments = self.pool.segments
        busy = self.pool.log.busy_segments
        self._stuck = {number for number in self._stuck if segments.generation[number]}
        used = [
            number
            for number in range(segments.count)
            if segments.generation[number] and number not in busy and number not in self._stuck
        ]
        return sorted(used, key=segments.utilization)

    async def _empty(self, number: int) -> bool:
        """Move everything live out of a segment; whether that succeeded."""
        segments, reader = self.pool.segments, self.pool.reader
        segments.pin([number])
        try:
            await reader.load_starts([number])
            if number not in segments.starts:
                return False
            for place in segments.stripes(number):
                if not segments.live[number] and not segments.meta[number]:
                    break
                while self.pool.log.is_in_flight(place):
                    if self.pool.log.fault:
                        return False
                    await asyncio.sleep(0)
                outcome = await reader.check_stripe(place)
                if outcome.lost:
                    continue
                stream = b"".join(outcome.payloads[: self.pool.geometry.data])
                for unit, header, record in records(stream):
                    await self._move(place, unit, header, record)
        finally:
            segments.unpin([number])
        self.cleaned += 1
        return not segments.live[number]

    async def _move(self, place: StripePlace, unit: int, header: RecordHeader, record: memoryview) -> None:
        entry = entry_of(place.segment, place.first + unit, header.units)
        if header.kind == Kind.DATA:
            volume = self.pool.by_identifier.get(header.namespace)
            if volume is not None:
                await self._move_data(volume, entry, header, record)
        elif header.kind in (Kind.MAP_PAGE, Kind.MAP_TABLE):
            volume = self.pool.by_identifier.get(header.namespace)
            if volume is None:
                return
            table, dirty = (
                (volume.map.table, volume.map.dirty)
                if header.kind == Kind.MAP_PAGE
                else (volume.map.chunks, volume.map.dirty_chunks)
            )
            if header.first < len(table) and table[header.first] == entry:
                dirty.add(header.first)

    async def _move_data(self, volume: PoolVolume, entry: int, header: RecordHeader, record: memoryview) -> None:
        """Whole if all of it is live, else its live runs, sealed anew."""
        runs = volume.map.live_in(header.first, header.count, entry)
        if not runs:
            return
        if runs == [(0, header.count)]:
            payload = record[UNIT : UNIT + header.stored]
            flags = header.flags & 1
            sealed = Sealed(header.codec, header.planes, flags, header.key_id, header.length, payload)
            await self._put(volume, header.first, header.count, sealed, entry, header.write_sequence)
            return
        try:
            content = memoryview(content_of(record, header, volume.sealer.key))
        except BadRecordError:
            return
        for index, count in runs:
            first = header.first + index
            number = self.pool.log.new_write_sequence()
            sealed = volume.sealer.seal(content[index << PAGE_SHIFT : (index + count) << PAGE_SHIFT], first, number)
            await self._put(volume, first, count, sealed, entry + index, number)

    async def _put(
        self, volume: PoolVolume, first: int, count: int, sealed: Sealed, moved_from: int, write_sequence: int
    ) -> None:
        def attempt() -> int:
            entry = self.pool.log.append(
                Kind.DATA, volume.info.identifier, first, count, sealed,
                level=Level.CLEANER, moved_from=moved_from, write_sequence=write_sequence,
            )  # fmt: skip
            if entry:
                volume.map.move_record(first, count, entry, moved_from)
            return entry

        while not attempt():
            if self.pool.log.starved:
                raise CapacityError("the cleaner's reserve of segments is used up")
            await self.pool.log.wait_room()
        self.moved += count


def records(stream: bytes | memoryview) -> Iterator[tuple[int, RecordHeader, memoryview]]:
    """The records of a stripe's stream: unit, header, bytes. Ends at the first thing that is none."""
    view = memoryview(stream)
    unit = 0
    while unit << UNIT_SHIFT < len(view):
        record = view[unit << UNIT_SHIFT :]
        header = decode_record_header(record)
        if header is None:
            return
        yield unit, header, record[: UNIT + header.stored]
        unit += header.units
