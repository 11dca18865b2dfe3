"""One namespace of a pool, as the target sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from nvmeof.engine.blockmap import BlockMap
from nvmeof.engine.executor import finished
from nvmeof.engine.layout import (
    INDEX_MASK,
    PAGE,
    PAGE_SHIFT,
    RECORD_BLOCKS_MAX,
    SEGMENT_MASK,
    SEGMENT_SHIFT,
    UNCORRECTABLE,
    UNIT_SHIFT,
    UNITS_MAX,
    Kind,
    address_of,
)
from nvmeof.engine.record import (
    BadRecordError,
    Expected,
    Packed,
    Sealed,
    Sealer,
    check,
    content_of,
    open_into,
    raw_bytes,
)
from nvmeof.engine.segments import Piece
from nvmeof.engine.volume import Volume, VolumeHealth
from nvmeof.errors import ReadFault, UsageError, WriteFault
from nvmeof.limits import POOL_COMMIT_BYTES, POOL_RECORDS_CACHED

if TYPE_CHECKING:
    from nvmeof.engine.pool import Pool

DATA = int(Kind.DATA)
RECORD_BYTES = RECORD_BLOCKS_MAX * PAGE
LOOP_BYTES_MAX = 8 * RECORD_BYTES
"""Reads up to 1 MiB, the largest command, happen on the loop where they need not wait; else in a thread, whole. 1 MiB
takes 210 us on the loop and 520 beside threads; of bf16 weights in zstd 590 and 740: the interpreter lock changes
hands too often."""

PACK_BYTES_MAX = RECORD_BYTES // 4
"""Longer writes that are worth a codec are not packed by ``write_now``."""

PACK_LEVEL_MAX = 3
"""Up to this level of a codec the first record of a write is packed on the loop. What is stored raw, or in planes, goes
on there: planes are many short calls, between which the interpreter lock changes hands, and two threads pack 1.0 to 1.5
times what one does. 1 MiB of bf16 weights takes 1,420 us on the loop, 2,300 with a thread. zstd by itself is one long
call for each record, and gains 1.9 by two threads."""
_ZERO_PAGE = bytes(PAGE)
_NO_INDEX = ~INDEX_MASK


@dataclass
class NamespaceInfo:
    """What the root says of a namespace. ``identifier`` is the pool's own number for it, never used twice."""

    identifier: int
    nsid: int
    uuid: UUID
    size: int
    block_size: int
    codec: str
    level: int
    planes: int
    key_id: int
    write_cache: bool


class _Run(NamedTuple):
    """Consecutive blocks of one record: ``index`` within it, ``count`` of them, to ``at`` in the reader's buffer."""

    entry: int
    block: int
    index: int  # type: ignore[assignment]
    count: int  # type: ignore[assignment]
    at: int


class _Fetch(NamedTuple):
    """A run and where its record is: in memory, or in pieces on the members."""

    run: _Run
    expected: Expected
    content: bytes | None
    pieces: list[Piece]


class PoolVolume(Volume):
    """A :class:`~nvmeof.engine.volume.Volume` on a pool: thin, compressed, encrypted, verified.

    Blocks are kept in records of up to 128 KiB as they were written. Blocks of 512 bytes are kept eight to a map entry;
    writing a part of those reads the rest.
    """

    can_mark_uncorrectable = True
    uncorrectable_granule = PAGE

    def __init__(self, pool: Pool, info: NamespaceInfo, blocks: BlockMap, sealer: Sealer) -> None:
        """Made by the pool."""
        self.pool = pool
        self.info = info
        self.uuid = info.uuid
        self.block_size = info.block_size
        self.map = blocks
        self.sealer = sealer
        self.write_cache = info.write_cache
        self.visible_size = info.size
        self.closed = False
        self.media_errors = 0
        self._log = pool.log
        self._reader = pool.reader
        self._namespace = info.identifier
        self._in_flight = 0
        self._drained: asyncio.Event = asyncio.Event()
        self._cache = pool.decoded

    @property
    def incarnation(self) -> bytes:  # type: ignore[override]
        """As :attr:`Volume.incarnation`: the pool's."""
        return self.pool.incarnation

    @property
    def size(self) -> int:
        """Bytes. While it is made larger, what it was: a commit has to say so first."""
        return self.visible_size

    @property
    def allocated(self) -> int:
        """Bytes of blocks that were written and not deallocated."""
        return min(self.map.used() * PAGE, self.info.size)

    @property
    def health(self) -> VolumeHealth:
        """As the pool is; media errors are this namespace's, those that could not be healed, and degrade it."""
        health, lost = self.pool.health, self.media_errors
        if not lost:
            return replace(health, media_errors=0)
        reason = health.reason or f"{lost} reads met blocks that are lost beyond redundancy"
        return replace(health, media_errors=lost, degraded=True, reason=reason)

    # -- reading

    def read_now(self, offset: int, view: memoryview) -> bool:
        """As :meth:`Volume.read_now`."""
        length = len(view)
        if self.closed or length > LOOP_BYTES_MAX:
            return False
        if (offset | length) & (PAGE - 1):
            return self._read_part_now(offset, view)
        block = offset >> PAGE_SHIFT
        entry = self.map.entries[block]
        if length == PAGE:
            if not entry:
                view[:] = _ZERO_PAGE
                return True
            return entry < UNCORRECTABLE and self._read_run_now(entry, block, 1, view)
        return self._read_range_now(block, length >> PAGE_SHIFT, view)

    def _read_range_now(self, block: int, count: int, view: memoryview) -> bool:
        entries = self.map.entries[block : block + count]
        at = 0
        while at < count:
            entry = entries[at]
            run = 1
            if not entry:
                view[at << PAGE_SHIFT : (at + 1) << PAGE_SHIFT] = _ZERO_PAGE
            elif entry >= UNCORRECTABLE:
                return False
            else:
                while at + run < count and entries[at + run] == entry + run:
                    run += 1
                piece = view[at << PAGE_SHIFT : (at + run) << PAGE_SHIFT]
                if not self._read_run_now(entry, block + at, run, piece):
                    return False
            at += run
        return True

    def _read_run_now(self, entry: int, block: int, count: int, view: memoryview) -> bool:
        """``count`` blocks of one record. False also for what does not verify: :meth:`read` deals with it."""
        base = entry & _NO_INDEX
        cached = self._cache.get(base)
        if cached is None:
            reader = self._reader
            record = reader.now(entry)
            if record is None:
                return False
            try:
                header = check(record, Expected(DATA, self._namespace, reader.sequence, block))
                index = entry & INDEX_MASK
                if header.first + index != block or index + count > header.count:
                    return False
                if header.count == count:
                    open_into(record, header, self.sealer.key, view)
                    return True
                cached = self._keep(base, header.first, memoryview(content_of(record, header, self.sealer.key)))
            except BadRecordError:
                return False
        first, content = cached
        at = (block - first) << PAGE_SHIFT
        if block - first != entry & INDEX_MASK or at + (count << PAGE_SHIFT) > len(content):
            return False
        view[:] = content[at : at + (count << PAGE_SHIFT)]
        return True

    def _keep(self, base: int, first: int, content: memoryview) -> tuple[int, memoryview]:
        """Remember a decoded record of which a part was wanted: the rest is often wanted next."""
        cache = self._cache
        kept = cache[base] = (first, content)
        if len(cache) > POOL_RECORDS_CACHED:
            cache.popitem(last=False)
        return kept

    def _read_part_now(self, offset: int, view: memoryview) -> bool:
        """A range that is not whole map blocks: 512-byte namespaces."""
        first, end = offset & -PAGE, (offset + len(view) + PAGE - 1) & -PAGE
        whole = memoryview(bytearray(end - first))
        if end - first > LOOP_BYTES_MAX or not self.read_now(first, whole):
            return False
        view[:] = whole[offset - first : offset - first + len(view)]
        return True

    async def read(self, offset: int, view: memoryview) -> None:
        """As :meth:`Volume.read`."""
        self._check_open(ReadFault)
        await self._counted(finished(self._read(offset, view)))

    async def _read(self, offset: int, view: memoryview) -> None:
        if (offset | len(view)) & (PAGE - 1):
            first, end = offset & -PAGE, (offset + len(view) + PAGE - 1) & -PAGE
            whole = memoryview(bytearray(end - first))
            await self._read_blocks(first >> PAGE_SHIFT, whole)
            view[:] = whole[offset - first : offset - first + len(view)]
        else:
            await self._read_blocks(offset >> PAGE_SHIFT, view)

    async def _read_blocks(self, block: int, view: memoryview) -> None:
        """Whole map blocks: what each was when this was called, or later."""
        segments = self.pool.segments
        runs = self._plan(block, view)
        numbers = sorted({run.entry >> SEGMENT_SHIFT & SEGMENT_MASK for run in runs})
        segments.pin(numbers)
        try:
            await self._reader.load_starts(numbers)
            fetches = [self._fetch(run) for run in runs]
            failed = await self.pool.executor.run(self._fetch_all, fetches, view)
            for fetch, why in failed:
                await self._rebuild(fetch, why, view)
        finally:
            segments.unpin(numbers)

    def _plan(self, block: int, view: memoryview) -> list[_Run]:
        """The runs of records to read; blocks of no record become zeros. Raises ReadFault for lost blocks."""
        count = len(view) >> PAGE_SHIFT
        entries = self.map.entries[block : block + count]
        if len(entries) < count:
            raise ReadFault(f"namespace {self.info.nsid} was made smaller")
        runs = []
        at = 0
        while at < count:
            entry = entries[at]
            run = 1
            if not entry:
                view[at << PAGE_SHIFT : (at + 1) << PAGE_SHIFT] = _ZERO_PAGE
            elif entry >= UNCORRECTABLE:
                what = f"block {block + at} of 4096 bytes is marked uncorrectable"
                raise ReadFault(what, offset=(block + at) << PAGE_SHIFT)
            else:
                while at + run < count and entries[at + run] == entry + run:
                    run += 1
                runs.append(_Run(entry, block + at, entry & INDEX_MASK, run, at << PAGE_SHIFT))
            at += run
        return runs

    def _fetch(self, run: _Run) -> _Fetch:
        content, place, pieces = self._reader.locate(run.entry)
        sequence = self._reader.sequence if content is not None or place is not None else 0
        return _Fetch(run, Expected(DATA, self._namespace, sequence, run.block), content, pieces)

    def _fetch_all(self, fetches: Sequence[_Fetch], view: memoryview) -> list[tuple[_Fetch, str]]:
        """In a thread: read and open every record. Returns those that must be rebuilt, and why."""
        scratch = memoryview(bytearray(UNITS_MAX << UNIT_SHIFT))
        failed = []
        for fetch in fetches:
            try:
                if fetch.content is not None:
                    self._open(fetch, fetch.content, view)
                elif fetch.pieces:
                    self._open(fetch, self._reader.read_pieces(fetch.pieces, scratch), view)
                else:
                    raise BadRecordError("is in a stripe that is not there")
            except (BadRecordError, OSError) as error:
                failed.append((fetch, str(error)))
        return failed

    def _open(self, fetch: _Fetch, record: bytes | memoryview, view: memoryview) -> None:
        run = fetch.run
        header = check(record, fetch.expected)
        out = view[run.at : run.at + (run.count << PAGE_SHIFT)]
        if header.first + run.index != run.block or run.index + run.count > header.count:
            raise BadRecordError("is another record: stale or misdirected")
        if len(out) == raw_bytes(header):
            open_into(record, header, self.sealer.key, out)
        else:
            at = run.index << PAGE_SHIFT
            out[:] = memoryview(content_of(record, header, self.sealer.key))[at : at + len(out)]

    async def _rebuild(self, fetch: _Fetch, why: str, view: memoryview) -> None:
        address = address_of(fetch.run.entry)
        place = None
        if address.segment in self.pool.segments.starts:
            place = self.pool.segments.stripe_at(address.segment, address.unit)
        if place is None:
            raise self._lost(fetch.run.block, "is lost: its stripe is not there")
        expected = fetch.expected._replace(sequence=place.sequence)
        try:
            _, record = await self._reader.rebuild(fetch.run.entry, place, expected, why)
            self._open(fetch._replace(expected=expected), record, view)
        except (BadRecordError, ReadFault) as error:
            raise self._lost(fetch.run.block, f"is lost: {error}") from error

    def _lost(self, block: int, why: str) -> ReadFault:
        self.media_errors += 1
        return ReadFault(f"block {block} of 4096 bytes {why}", offset=block << PAGE_SHIFT)

    async def verify(self, offset: int, length: int) -> None:
        """As :meth:`Volume.verify`: every strip of every stripe that the range is in, and every record."""
        self._check_open(ReadFault)
        await self._counted(finished(self._verify(offset, length)))

    async def _verify(self, offset: int, length: int) -> None:
        first, end = offset >> PAGE_SHIFT, (offset + length + PAGE - 1) >> PAGE_SHIFT
        seen: set[tuple[int, int]] = set()
        for block in range(first, end, RECORD_BLOCKS_MAX):
            view = memoryview(bytearray(min(RECORD_BLOCKS_MAX, end - block) << PAGE_SHIFT))
            for run in self._plan(block, view):
                await self._verify_stripe(run, seen)
            await self._read_blocks(block, view)

    async def _verify_stripe(self, run: _Run, seen: set[tuple[int, int]]) -> None:
        segment = run.entry >> SEGMENT_SHIFT & SEGMENT_MASK
        segments = self.pool.segments
        segments.pin([segment])
        try:
            await self._reader.load_starts([segment])
            content, place, _ = self._reader.locate(run.entry)
            if content is None and place is not None and (segment, place.number) not in seen:
                seen.add((segment, place.number))
                await self._reader.check_stripe(place)
        finally:
            segments.unpin([segment])

    # -- writing

    def write_now(self, offset: int, view: memoryview) -> bool:
        """As :meth:`Volume.write_now`; False also for what takes long to compress."""
        length = len(view)
        log = self._log
        if self.closed or not self.write_cache or not log.has_room(length):
            return False
        if log.appended > POOL_COMMIT_BYTES or len(self.map.dirty) > self.pool.dirty_share:
            self.pool.consider()
            if self.pool.too_dirty:
                return False
        if (offset | length) & (PAGE - 1):
            return self._write_part_now(offset, view)
        if length > PACK_BYTES_MAX:
            return self._write_records_now(offset >> PAGE_SHIFT, view)
        block, count = offset >> PAGE_SHIFT, length >> PAGE_SHIFT
        entry = log.append_data(self.sealer, view, self._namespace, block, count)
        if entry:
            self.map.set_record(block, count, entry)
        return entry != 0

    def _write_records_now(self, block: int, view: memoryview) -> bool:
        """Unless the first record is worth a codec."""
        sealer, piece = self.sealer, view[:RECORD_BYTES]
        if sealer.packer.worth(piece):
            return False
        packed: Packed = 0, 0, piece
        at = 0
        while True:
            count = len(piece) >> PAGE_SHIFT
            entry = self._log.append_packed(sealer, packed, self._namespace, block, count)
            if not entry:
                return False
            self.map.set_record(block, count, entry)
            block, at = block + count, at + RECORD_BYTES
            if at >= len(view):
                return True
            piece = view[at : at + RECORD_BYTES]
            packed = sealer.pack(piece)

    def _write_part_now(self, offset: int, view: memoryview) -> bool:
        first, end = offset & -PAGE, (offset + len(view) + PAGE - 1) & -PAGE
        whole = memoryview(bytearray(end - first))
        if not self.read_now(first, whole):
            return False
        whole[offset - first : offset - first + len(view)] = view
        return self.write_now(first, whole)

    async def write(self, offset: int, view: memoryview) -> None:
        """As :meth:`Volume.write`."""
        self._check_open(WriteFault)
        await self._counted(finished(self._write(offset, view)))

    async def _write(self, offset: int, view: memoryview) -> None:
        if (offset | len(view)) & (PAGE - 1):
            await self._write_part(offset, view)
        else:
            await self._write_blocks(offset >> PAGE_SHIFT, view)
        if not self.write_cache:
            await self._log.flush()

    async def _write_blocks(self, block: int, view: memoryview) -> None:
        sealer, pool = self.sealer, self.pool
        pieces = [view[at : at + RECORD_BYTES] for at in range(0, len(view), RECORD_BYTES)]
        packed = await self._pack(sealer, pieces)
        too_dirty = pool.too_dirty
        for piece, content in zip(pieces, packed, strict=True):
            append = partial(self._append, sealer, content, block, len(piece) >> PAGE_SHIFT)
            if too_dirty or not append():
                await pool.make_room_for(append)
            block += len(piece) >> PAGE_SHIFT
        pool.consider()

    async def _pack(self, sealer: Sealer, pieces: Sequence[memoryview]) -> list[Packed]:
        """In a thread where that gains something: the first record shows whether these are long calls of a codec."""
        packed: list[Packed] = []
        if self.info.level <= PACK_LEVEL_MAX or not sealer.packer.worth(pieces[0]):
            packed.append(sealer.pack(pieces[0]))
            codec, planes, _ = packed[0]
            if not codec or planes or len(pieces) == 1:
                return packed + _pack_all(sealer, pieces[1:])
        async with self._log.packing:
            return packed + await self.pool.executor.run(_pack_all, sealer, pieces[len(packed) :])

    def _append(self, sealer: Sealer, content: Packed, first: int, count: int) -> int:
        if first + count > self.map.blocks:
            raise WriteFault(f"namespace {self.info.nsid} was made smaller")
        entry = self._log.append_packed(sealer, content, self._namespace, first, count)
        if entry:
            self.map.set_record(first, count, entry)
        return entry

    async def _write_part(self, offset: int, view: memoryview) -> None:
        """Read the blocks around, put the new bytes in, and write them if nobody else did meanwhile."""
        first, end = offset & -PAGE, (offset + len(view) + PAGE - 1) & -PAGE
        block, count = first >> PAGE_SHIFT, (end - first) >> PAGE_SHIFT
        while True:
            before = self.map.entries[block : block + count].tobytes()
            if len(before) < count << 3:
                raise WriteFault(f"namespace {self.info.nsid} was made smaller")
            whole = memoryview(bytearray(end - first))
            await self._read_around(block, whole, offset - first, len(view))
            whole[offset - first : offset - first + len(view)] = view
            number = self._log.new_write_sequence()
            done = True
            for at in range(0, len(whole), RECORD_BYTES):
                piece = whole[at : at + RECORD_BYTES]
                sealed = self.sealer.seal(piece, block + (at >> PAGE_SHIFT), number)
                done = await self._append_if_unchanged(piece, block + (at >> PAGE_SHIFT), number, sealed, before, at)
                if not done:
                    break
                number = self._log.new_write_sequence()
            if done:
                return

    async def _read_around(self, block: int, whole: memoryview, start: int, length: int) -> None:
        """Read only the first and the last block: those between are overwritten whole."""
        edges = {0: start & (PAGE - 1), len(whole) - PAGE: (start + length) & (PAGE - 1)}
        for at, within in edges.items():
            if within or len(whole) == PAGE:
                await self._read_blocks(block + (at >> PAGE_SHIFT), whole[at : at + PAGE])

    async def _append_if_unchanged(
        self, piece: memoryview, first: int, number: int, sealed: Sealed, before: bytes, at: int
    ) -> bool:
        count = len(piece) >> PAGE_SHIFT
        wanted = before[at >> PAGE_SHIFT << 3 : ((at >> PAGE_SHIFT) + count) << 3]
        unchanged = True

        def attempt() -> int:
            nonlocal unchanged
            if first + count > self.map.blocks:
                raise WriteFault(f"namespace {self.info.nsid} was made smaller")
            if self.map.entries[first : first + count].tobytes() != wanted:
                unchanged = False
                return -1
            entry = self._log.append(DATA, self._namespace, first, count, sealed, write_sequence=number)
            if entry:
                self.map.set_record(first, count, entry)
            return entry

        await self.pool.make_room_for(attempt)
        return unchanged

    async def flush(self) -> None:
        """As :meth:`Volume.flush`."""
        self._check_open(WriteFault)
        await self._log.flush()

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        """As :meth:`Volume.write_zeroes`. Zeros never take space here, so ``deallocate`` makes no difference."""
        await self.deallocate([(offset, length)])

    async def deallocate(self, ranges: Sequence[tuple[int, int]]) -> None:
        """As :meth:`Volume.deallocate`."""
        await self._fill(ranges, Kind.DEALLOCATED, 0)

    async def write_uncorrectable(self, offset: int, length: int) -> None:
        """As :meth:`Volume.write_uncorrectable`."""
        if (offset | length) & (PAGE - 1):
            raise UsageError(
                f"{length} bytes at {offset}: blocks are marked uncorrectable in multiples of {PAGE} bytes"
            )
        await self._fill([(offset, length)], Kind.UNCORRECTABLE, UNCORRECTABLE)

    async def _fill(self, ranges: Sequence[tuple[int, int]], kind: Kind, entry: int) -> None:
        self._check_open(WriteFault)
        await self._counted(finished(self._fill_all(ranges, kind, entry)))

    async def _fill_all(self, ranges: Sequence[tuple[int, int]], kind: Kind, entry: int) -> None:
        for offset, length in ranges:
            first, end = -(-offset >> PAGE_SHIFT), (offset + length) >> PAGE_SHIFT
            if end > first:
                await self._fill_blocks(first, end - first, kind, entry)
            if offset & (PAGE - 1) and first <= end:
                await self._write_part(offset, memoryview(bytes((first << PAGE_SHIFT) - offset)))
            if (offset + length) & (PAGE - 1) and first <= end:
                await self._write_part(end << PAGE_SHIFT, memoryview(bytes(offset + length - (end << PAGE_SHIFT))))
            if first > end:
                await self._write_part(offset, memoryview(bytes(length)))
        if not self.write_cache:
            await self._log.flush()

    async def _fill_blocks(self, first: int, count: int, kind: Kind, entry: int) -> None:
        def attempt() -> int:
            placed = self.pool.append_mark(kind, self._namespace, first, count)
            if placed:
                self.map.fill(first, count, entry)
            return placed

        await self.pool.make_room_for(attempt)

    # -- the end

    async def close(self) -> None:
        """As :meth:`Volume.close`. The pool stays open, and closes what is left open."""
        if not self.closed:
            self.closed = True
            while self._in_flight:
                self._drained.clear()
                await self._drained.wait()
        await self._log.flush()

    def _check_open(self, error: type[ReadFault] | type[WriteFault]) -> None:
        if self.closed:
            raise error(f"namespace {self.info.nsid} is closed")
        if error is WriteFault and self._log.fault:
            raise WriteFault(self._log.fault)

    async def _counted(self, work: Coroutine[Any, Any, None] | Awaitable[None]) -> None:
        self._in_flight += 1
        try:
            await work
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._drained.set()


def _pack_all(sealer: Sealer, pieces: Sequence[memoryview]) -> list[Packed]:
    return [sealer.pack(piece) for piece in pieces]
