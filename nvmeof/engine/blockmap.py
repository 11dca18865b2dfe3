"""The map of one namespace: where each block of 4096 bytes is (FORMAT.md, Map).

Eight bytes a block of flat memory; pages of it that nothing was written to are not there. One block is read and set
through a ``memoryview``, ranges through numpy over the same memory.
"""

from __future__ import annotations

import mmap
from array import array

import numpy as np
import numpy.typing as npt

from nvmeof.engine.layout import PAGE, SEGMENT_MASK, SEGMENT_SHIFT, UNCORRECTABLE
from nvmeof.engine.segments import Segments
from nvmeof.errors import UsageError

PAGE_ENTRIES = PAGE // 8
PAGE_ENTRIES_SHIFT = PAGE_ENTRIES.bit_length() - 1
CHUNK_ENTRIES = 4096
Entries = npt.NDArray[np.uint64]

_STEPS = np.arange(32, dtype=np.uint64)
_LIVE_SHIFT = np.uint64(SEGMENT_SHIFT)
_UNCORRECTABLE = np.uint64(UNCORRECTABLE)


class BlockMap:
    """``entries[block]`` for every block, ``table[page]`` where each map page is in the log, and what is dirty.

    Setting entries keeps ``segments`` informed of what is live.
    """

    def __init__(self, blocks: int, segments: Segments) -> None:
        self.blocks = blocks
        self.dirty: set[int] = set()
        self.committing: set[int] = set()
        """Map pages that a commit took and has not put into the table yet."""
        self.dirty_chunks: set[int] = set()
        self._segments = segments
        self._use(_memory_for(blocks))
        self.table = array("Q", bytes(8 * self.pages))
        self.chunks = array("Q", bytes(8 * self.chunk_count))

    @property
    def pages(self) -> int:
        """Map pages."""
        return -(-self.blocks // PAGE_ENTRIES)

    @property
    def chunk_count(self) -> int:
        """Map table chunks."""
        return -(-self.pages // CHUNK_ENTRIES)

    def _use(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.entries = memoryview(memory).cast("Q")
        self._array: Entries = np.frombuffer(memory, np.uint64)

    def set_block(self, block: int, entry: int) -> None:
        """Point one block at ``entry``, 0 for nothing."""
        entries, live, references = self.entries, self._segments.live, self._segments.references
        old = entries[block]
        if old:
            live[old >> SEGMENT_SHIFT & SEGMENT_MASK] -= old < UNCORRECTABLE
        if entry and entry < UNCORRECTABLE:
            live[entry >> SEGMENT_SHIFT & SEGMENT_MASK] += 1
            references[entry >> SEGMENT_SHIFT & SEGMENT_MASK] += 1
        entries[block] = entry
        self.dirty.add(block >> PAGE_ENTRIES_SHIFT)

    def set_record(self, first: int, count: int, entry: int) -> None:
        """Point ``count`` (1 to 32) blocks at the blocks of one record."""
        if count == 1:
            self.set_block(first, entry)
            return
        old = self._array[first : first + count]
        was = self.entries[first] >> SEGMENT_SHIFT
        if 0 < was <= SEGMENT_MASK and ((old >> _LIVE_SHIFT) == was).all():  # one record for another, nearly always
            self._segments.live[was] -= count
        elif old.any():
            self._forget(old)
        np.add(_STEPS[:count], np.uint64(entry), out=old)
        segment = entry >> SEGMENT_SHIFT & SEGMENT_MASK
        self._segments.live[segment] += count
        self._segments.references[segment] += count
        self._touch(first, count)

    def move_record(self, first: int, count: int, entry: int, moved_from: int) -> None:
        """Point those of ``count`` blocks at ``entry`` that still point where the record was before."""
        for index in range(count):
            if first + index < self.blocks and self.entries[first + index] == moved_from + index:
                self.set_block(first + index, entry + index)

    def fill(self, first: int, count: int, entry: int) -> None:
        """Make ``count`` blocks 0 or UNCORRECTABLE. Map pages that hold nothing are passed over for 0."""
        end = min(first + count, self.blocks)
        if end <= first:
            return
        pages = range(first >> PAGE_ENTRIES_SHIFT, ((end - 1) >> PAGE_ENTRIES_SHIFT) + 1)
        for page in pages if entry or len(pages) < 64 else [page for page in self._present() if page in pages]:
            piece = self._array[max(first, page << PAGE_ENTRIES_SHIFT) : min(end, (page + 1) << PAGE_ENTRIES_SHIFT)]
            if entry or ((self.table[page] or page in self.dirty or page in self.committing) and piece.any()):
                self._forget(piece)
                piece[:] = entry
                self.dirty.add(page)

    def live_in(self, first: int, count: int, entry: int) -> list[tuple[int, int]]:
        """Runs ``(index, blocks)`` of a record's blocks that the map still points at."""
        runs: list[tuple[int, int]] = []
        entries, blocks = self.entries, self.blocks
        for index in range(count):
            if first + index < blocks and entries[first + index] == entry + index:
                if runs and sum(runs[-1]) == index:
                    runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                else:
                    runs.append((index, 1))
        return runs

    def used(self) -> int:
        """Blocks that take space."""
        return sum(int(np.count_nonzero(self._page(page))) for page in self._present())

    def take_dirty(self) -> list[int]:
        """The dirty map pages, which are being committed from now on."""
        self.committing, self.dirty = self.dirty, set()
        return sorted(self.committing)

    def page_bytes(self, page: int) -> bytes:
        """The 4096 bytes of a map page."""
        return self._page(page).tobytes()

    def load_page(self, page: int, content: bytes) -> None:
        """Take a map page from media; counts nothing as live."""
        self._page(page)[:] = np.frombuffer(content, np.uint64)

    def lose_page(self, page: int) -> None:
        """A map page is lost for good: so are its blocks."""
        self._page(page)[:] = _UNCORRECTABLE
        self.dirty.add(page)

    def count_live(self) -> None:
        """Tell ``segments`` what the loaded map keeps alive."""
        for page in self._present():
            self._tally(self._page(page), 1)

    def forget_all(self) -> None:
        """Nothing here keeps anything alive any more: the namespace is deleted."""
        for page in self._present():
            self._forget(self._page(page))
            self._page(page)[:] = 0

    def is_sane(self, content: bytes, segments: int) -> bool:
        """Whether a map page names only segments there are."""
        entries = np.frombuffer(content, np.uint64)
        plain = entries[entries != _UNCORRECTABLE]
        return bool((plain >> _LIVE_SHIFT < segments).all())

    def resize(self, blocks: int) -> list[int]:
        """Grow or shrink. Returns the entries of map pages and chunks that are no more. Raises UsageError."""
        memory = _memory_for(blocks)
        if blocks < self.blocks:
            self.fill(blocks, self.blocks - blocks, 0)
        old, present = self._array, self._present()
        old_table, old_chunks = self.table, self.chunks
        self.blocks = blocks
        self._use(memory)
        for page in present:
            if page < self.pages:
                at = page * PAGE_ENTRIES
                self._array[at : at + PAGE_ENTRIES] = old[at : at + PAGE_ENTRIES]
        self.dirty = {page for page in self.dirty if page < self.pages}
        self.committing = {page for page in self.committing if page < self.pages}
        self.table = _resized(old_table, self.pages)
        self.chunks = _resized(old_chunks, self.chunk_count)
        self.dirty_chunks = set(range(self.chunk_count))
        return [entry for entry in (*old_table[self.pages :], *old_chunks[self.chunk_count :]) if entry]

    def _present(self) -> list[int]:
        """Map pages in which anything was ever set, in order."""
        on_media = np.flatnonzero(np.frombuffer(self.table, np.uint64)).tolist() if len(self.table) else []
        return sorted(self.dirty.union(self.committing, on_media))

    def _page(self, page: int) -> Entries:
        return self._array[page * PAGE_ENTRIES : (page + 1) * PAGE_ENTRIES]

    def _touch(self, first: int, count: int) -> None:
        page = first >> PAGE_ENTRIES_SHIFT
        self.dirty.add(page)
        last = (first + count - 1) >> PAGE_ENTRIES_SHIFT
        if last != page:
            self.dirty.add(last)

    def _forget(self, old: Entries) -> None:
        self._tally(old, -1)

    def _tally(self, entries: Entries, sign: int) -> None:
        """Add ``sign`` to the live count of every entry's segment."""
        plain = entries[(entries != 0) & (entries < _UNCORRECTABLE)]
        if len(plain):
            live = self._segments.live
            numbers, counts = np.unique(plain >> _LIVE_SHIFT, return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                live[number] += sign * count


def _memory_for(blocks: int) -> mmap.mmap:
    """Zeros, of which only those written to take memory."""
    pages = max(1, -(-blocks // PAGE_ENTRIES))
    try:
        return mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise UsageError(
            f"a map of {blocks} blocks is {pages * PAGE} bytes, more than this machine's memory could hold"
        ) from error


def chunks_for(size: int) -> int:
    """Map table chunks of a namespace of ``size`` bytes."""
    return -(-size // (PAGE * PAGE_ENTRIES * CHUNK_ENTRIES))


def _resized(old: array[int], count: int) -> array[int]:
    return array("Q", old[:count].tobytes() + bytes(8 * max(0, count - len(old))))
