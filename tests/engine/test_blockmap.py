"""BlockMap against a dictionary: every change, what is live where, what is dirty, what survives a resize."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nvmeof.engine.blockmap import CHUNK_ENTRIES, PAGE_ENTRIES, BlockMap
from nvmeof.engine.layout import UNCORRECTABLE, Geometry, entry_of
from nvmeof.engine.segments import Segments

SEGMENTS = 5
SIZE = 128 << 10
GEOMETRY = Geometry(b"p" * 16, 2, 2, 0, SIZE, SIZE, SEGMENTS, (256 << 10) + SEGMENTS * SIZE, 0)


def new_map(blocks: int) -> tuple[BlockMap, Segments]:
    segments = Segments(GEOMETRY)
    return BlockMap(blocks, segments), segments


class Model(RuleBasedStateMachine):
    """Entries by block; whatever the map says must be derivable from that."""

    @initialize(blocks=st.integers(1, 2000))
    def begin(self, blocks: int) -> None:
        self.blocks = blocks
        self.map, self.segments = new_map(blocks)
        self.model: dict[int, int] = {}
        self.touched: set[int] = set()
        self.unit = 0
        self.made: list[tuple[int, int, int]] = []
        self.references: Counter[int] = Counter()

    def new_entry(self, segment: int) -> int:
        self.unit += 40
        return entry_of(segment, self.unit, 40)

    def put(self, block: int, entry: int) -> None:
        if entry:
            self.model[block] = entry
        else:
            self.model.pop(block, None)
        self.touched.add(block // 512)

    @rule(at=st.floats(0, 1), segment=st.integers(0, SEGMENTS - 1), what=st.sampled_from(["entry", "zero", "bad"]))
    def set_block(self, at: float, segment: int, what: str) -> None:
        block = int(at * (self.blocks - 1))
        entry = {"entry": self.new_entry(segment), "zero": 0, "bad": UNCORRECTABLE}[what]
        self.map.set_block(block, entry)
        self.put(block, entry)
        if what == "entry":
            self.references[segment] += 1
            self.made.append((block, 1, entry))

    @rule(at=st.floats(0, 1), count=st.integers(1, 32), segment=st.integers(0, SEGMENTS - 1))
    def set_record(self, at: float, count: int, segment: int) -> None:
        count = min(count, self.blocks)
        first = int(at * (self.blocks - count))
        entry = self.new_entry(segment)
        self.map.set_record(first, count, entry)
        for index in range(count):
            self.put(first + index, entry + index)
        self.references[segment] += count
        self.made.append((first, count, entry))

    @rule(choice=st.integers(0, 1 << 30), segment=st.integers(0, SEGMENTS - 1))
    def move(self, choice: int, segment: int) -> None:
        """What the cleaner does with a record it found: some blocks of it are other records' by now, or cut off."""
        if not self.made:
            return
        first, count, old = self.made[choice % len(self.made)]
        entry = self.new_entry(segment)
        runs = self.map.live_in(first, count, old)
        live = [index for index in range(count) if self.model.get(first + index) == old + index]
        assert [index for start, length in runs for index in range(start, start + length)] == live
        assert all(right[0] > sum(left) for left, right in pairwise(runs)), "runs that touch"
        self.map.move_record(first, count, entry, old)
        for index in live:
            self.put(first + index, entry + index)
            self.references[segment] += 1
        self.made.append((first, count, entry))

    @rule(at=st.floats(0, 1), count=st.integers(0, 3000), bad=st.booleans())
    def fill(self, at: float, count: int, bad: bool) -> None:
        first = int(at * self.blocks)
        self.map.fill(first, count, UNCORRECTABLE if bad else 0)
        for block in range(first, min(first + count, self.blocks)):
            if bad:
                self.model[block] = UNCORRECTABLE
                self.touched.add(block // 512)
            else:
                self.model.pop(block, None)

    @rule(blocks=st.integers(1, 3000))
    def resize(self, blocks: int) -> None:
        assert self.map.resize(blocks) == []
        self.blocks = blocks
        self.model = {block: entry for block, entry in self.model.items() if block < blocks}
        self.touched = {page for page in self.touched if page < -(-blocks // 512)}

    @rule()
    def commit(self) -> None:
        """Pages are taken, then put into the table; a change between the two must not be lost."""
        taken = self.map.take_dirty()
        for page in taken:
            assert self.map.page_bytes(page) == self.expected_page(page)
        self.fill(0.0, self.blocks, False)
        for page in taken:
            self.map.table[page] = 1 if any(self.map.page_bytes(page)) else 0
        self.map.committing.clear()

    def expected_page(self, page: int) -> bytes:
        blocks = range(page * 512, (page + 1) * 512)
        return b"".join(self.model.get(block, 0).to_bytes(8, "little") for block in blocks)

    @invariant()
    def the_entries_are_the_models(self) -> None:
        if not hasattr(self, "map"):
            return
        found = {block: entry for block, entry in enumerate(self.map.entries[: self.blocks]) if entry}
        assert found == self.model
        assert not any(self.map.entries[self.blocks :])
        assert self.map.used() == len(self.model)

    @invariant()
    def the_live_counts_are_right(self) -> None:
        if not hasattr(self, "map"):
            return
        live = Counter(entry >> 39 & 0xFFFFF for entry in self.model.values() if entry < UNCORRECTABLE)
        assert {number: count for number, count in enumerate(self.segments.live) if count} == dict(live)
        assert {number: count for number, count in enumerate(self.segments.references) if count} == dict(
            self.references
        )


TestBlockMap = Model.TestCase
TestBlockMap.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize(
    ("blocks", "pages", "chunks"),
    [(1, 1, 1), (511, 1, 1), (512, 1, 1), (513, 2, 1), (512 * 4096, 4096, 1), (512 * 4096 + 1, 4097, 2)],
)
def test_pages_and_chunks(blocks: int, pages: int, chunks: int) -> None:
    """512 entries a page, 4096 pages a chunk (FORMAT.md, Map)."""
    blockmap, _ = new_map(blocks)
    assert (blockmap.pages, blockmap.chunk_count) == (pages, chunks)
    assert (len(blockmap.table), len(blockmap.chunks)) == (pages, chunks)
    assert (PAGE_ENTRIES, CHUNK_ENTRIES) == (512, 4096)
    blockmap.set_block(blocks - 1, entry_of(0, 1, 1))
    assert blockmap.dirty == {pages - 1}


def test_a_record_over_a_page_boundary_makes_both_dirty() -> None:
    blockmap, _ = new_map(2000)
    blockmap.set_record(500, 12, entry_of(0, 1, 1))
    assert blockmap.take_dirty() == [0]
    blockmap.set_record(500, 13, entry_of(0, 1, 1))
    assert blockmap.take_dirty() == [0, 1]
    assert blockmap.dirty == set()


def test_filling_a_large_map_with_zeros_touches_only_what_is_there() -> None:
    """Deallocate of a whole thin namespace: 64 pages and more are not looked at one by one."""
    blockmap, segments = new_map(512 * 1000)
    for page in (3, 700, 999):
        blockmap.set_block(page * 512 + 7, entry_of(2, page, 1))
    assert segments.live[2] == 3
    blockmap.take_dirty()
    blockmap.table[3] = blockmap.table[700] = blockmap.table[999] = 1
    blockmap.committing.clear()
    blockmap.fill(1, 512 * 999, 0)
    assert blockmap.dirty == {3, 700}
    assert (segments.live[2], blockmap.used()) == (1, 1)
    blockmap.fill(0, 1 << 40, 0)
    assert segments.live[2] == 0
    assert blockmap.dirty == {3, 700, 999}


def test_a_deallocation_between_taking_a_page_and_putting_it_into_the_table() -> None:
    """The page is neither dirty nor in the table then; its blocks are zeros all the same."""
    for blocks in (100, 512 * 100):
        blockmap, segments = new_map(blocks)
        blockmap.set_record(5, 10, entry_of(1, 8, 4))
        assert blockmap.take_dirty() == [0]
        blockmap.fill(0, blocks, 0)
        assert not any(blockmap.entries[:100])
        assert (segments.live[1], blockmap.dirty) == (0, {0})


def test_pages_go_to_media_and_come_back() -> None:
    random = Random(4)
    blockmap, segments = new_map(3000)
    for _ in range(60):
        blockmap.set_record(random.randrange(2960), random.randrange(1, 33), entry_of(random.randrange(5), 1, 1))
    blockmap.fill(100, 50, UNCORRECTABLE)
    again, others = new_map(3000)
    for page in range(blockmap.pages):
        content = blockmap.page_bytes(page)
        assert again.is_sane(content, SEGMENTS)
        again.load_page(page, content)
        again.table[page] = 1
    assert again.entries.tolist() == blockmap.entries.tolist()
    assert sum(others.live) == 0
    again.count_live()
    assert others.live == segments.live
    assert not again.dirty


def test_a_page_that_names_segments_there_are_not() -> None:
    blockmap, _ = new_map(512)
    good = entry_of(SEGMENTS - 1, 5, 5).to_bytes(8, "little")
    bad = entry_of(SEGMENTS, 5, 5).to_bytes(8, "little")
    lost = UNCORRECTABLE.to_bytes(8, "little")
    assert blockmap.is_sane((good + lost).ljust(4096, b"\0"), SEGMENTS)
    assert not blockmap.is_sane((good + bad).ljust(4096, b"\0"), SEGMENTS)
    assert not blockmap.is_sane(((UNCORRECTABLE | 1).to_bytes(8, "little")).ljust(4096, b"\0"), SEGMENTS)


def test_a_lost_page_is_uncorrectable() -> None:
    blockmap, segments = new_map(1024)
    blockmap.lose_page(1)
    assert set(blockmap.entries[512:1024]) == {UNCORRECTABLE}
    assert set(blockmap.entries[:512]) == {0}
    assert blockmap.dirty == {1}
    blockmap.count_live()
    assert sum(segments.live) == 0
    blockmap.set_block(600, entry_of(1, 1, 1))
    assert segments.live[1] == 1


def test_deleting_lets_go_of_everything() -> None:
    blockmap, segments = new_map(1024)
    blockmap.set_record(500, 30, entry_of(1, 8, 8))
    blockmap.set_block(3, UNCORRECTABLE)
    blockmap.forget_all()
    assert sum(segments.live) == 0
    assert blockmap.used() == 0


def test_resizing_gives_the_entries_of_lost_pages_and_chunks_back() -> None:
    blocks = 512 * (4096 + 3)
    blockmap, _ = new_map(blocks)
    for page in (0, 1, 4095, 4096, 4098):
        blockmap.table[page] = 1000 + page
    blockmap.chunks[0], blockmap.chunks[1] = 7, 8
    assert blockmap.resize(512 + 1) == [1000 + 4095, 1000 + 4096, 1000 + 4098, 8]
    assert blockmap.table.tolist() == [1000, 1001]
    assert blockmap.chunks.tolist() == [7]
    assert blockmap.dirty_chunks == {0}
    assert blockmap.resize(blocks) == []
    assert blockmap.dirty_chunks == {0, 1}
    assert blockmap.chunks.tolist() == [7, 0]


def test_what_is_cut_off_does_not_come_back() -> None:
    blockmap, segments = new_map(1000)
    blockmap.set_record(590, 20, entry_of(1, 8, 8))
    blockmap.resize(600)
    assert segments.live[1] == 10
    blockmap.resize(1000)
    assert blockmap.entries[590:620].tolist() == [entry_of(1, 8, 8) + index for index in range(10)] + [0] * 20
