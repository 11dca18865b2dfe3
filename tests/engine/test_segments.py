"""Segments: addresses against a computation unit by unit, for every k and m; the table; what is free and who pins."""

from __future__ import annotations

from array import array
from random import Random

import pytest

from nvmeof.engine.layout import NONE32, Geometry
from nvmeof.engine.segments import TABLE_CHUNK, Piece, Segments

SEGMENT_PAGES = 32


def geometry(data: int = 2, parity: int = 2, segments: int = 12) -> Geometry:
    size = SEGMENT_PAGES * 4096
    return Geometry(b"p" * 16, data, parity, 0, size, size, segments, (256 << 10) + segments * size, 0)


def filled(data: int, parity: int, random: Random) -> tuple[Segments, list[int]]:
    """Segment 3 with stripes of random lengths; and their pages."""
    segments = Segments(geometry(data, parity))
    segments.begin(3, (5 << 40) + 77)
    pages: list[int] = []
    while sum(pages) < SEGMENT_PAGES:
        pages.append(random.randrange(1, min(12, SEGMENT_PAGES - sum(pages)) + 1))
        segments.add_stripe(3, pages[-1])
    return segments, pages


def every_unit(data: int, parity: int, pages: list[int]) -> list[tuple[int, int, int, int]]:
    """For each unit of the segment's stream: stripe, strip, role and offset on the disk; FORMAT.md read literally."""
    units = []
    first_page = 0
    for number, count in enumerate(pages):
        sequence = (5 << 40) + 77 + number
        for strip in range(data):
            role = (strip + sequence) % (data + parity)
            for unit in range(count * 64 - 1):
                offset = (128 << 10) + 3 * SEGMENT_PAGES * 4096 + first_page * 4096 + 64 + unit * 64
                units.append((number, strip, role, offset))
        first_page += count
    return units


@pytest.mark.parametrize("parity", [0, 1, 2])
@pytest.mark.parametrize("data", range(1, 17))
def test_pieces_are_where_the_format_says(data: int, parity: int) -> None:
    random = Random(data * 3 + parity)
    segments, pages = filled(data, parity, random)
    units = every_unit(data, parity, pages)
    for _ in range(40):
        unit = random.randrange(len(units))
        number = units[unit][0]
        left = sum(1 for each in units[unit : unit + 5000] if each[0] == number)
        count = random.choice((1, 2, random.randrange(1, left + 1), left))
        count = min(count, left)
        place = segments.stripe_at(3, unit)
        assert place is not None
        assert place.number == number
        pieces = segments.pieces(place, unit, count)
        naive: list[Piece] = []
        for _, _, role, offset in units[unit : unit + count]:
            if naive and naive[-1].role == role and naive[-1].offset + naive[-1].length == offset:
                naive[-1] = naive[-1]._replace(length=naive[-1].length + 64)
            else:
                naive.append(Piece(role, offset, 64))
        assert pieces == naive


@pytest.mark.parametrize("data", range(1, 17))
def test_stripes_are_found_by_any_of_their_units(data: int) -> None:
    segments, pages = filled(data, 2, Random(data))
    places = segments.stripes(3)
    assert [place.pages for place in places] == pages
    first = page = 0
    for number, place in enumerate(places):
        units = data * (pages[number] * 64 - 1)
        assert place == (3, number, (5 << 40) + 77 + number, page, pages[number], first, units)
        for unit in (first, first + units // 2, first + units - 1):
            assert segments.stripe_at(3, unit) == place
        first, page = first + units, page + pages[number]
    assert segments.stripe_at(3, first) is None
    assert segments.stripe_at(3, first + 1000) is None


def test_a_segment_begun_anew_has_no_stripes() -> None:
    segments, _ = filled(2, 1, Random(1))
    segments.references[3] = 9
    segments.begin(3, 1 << 41)
    assert segments.stripes(3) == []
    assert segments.stripe_at(3, 0) is None
    assert (segments.generation[3], segments.references[3]) == (1 << 41, 0)


def test_free_segments_are_given_and_taken_back() -> None:
    segments = Segments(geometry(segments=6))
    segments.find_free(busy=[1, NONE32])
    assert list(segments.free) == [0, 2, 3, 4, 5]
    assert segments.next_free() == 0
    segments.begin(0, 50)
    segments.references[0] = 4
    segments.find_free()
    assert list(segments.free) == [1, 2, 3, 4, 5]
    segments.release([0])
    assert (segments.generation[0], segments.references[0]) == (0, 0)
    assert 0 not in segments.starts
    assert [segments.next_free() for _ in range(7)] == [1, 2, 3, 4, 5, 0, NONE32]


def test_idle_is_used_with_nothing_live_and_nobody_reading() -> None:
    segments = Segments(geometry())
    assert not segments.idle(0), "a free one is not idle"
    segments.begin(0, 50)
    assert segments.idle(0)
    segments.live[0] = 1
    assert not segments.idle(0)
    segments.live[0] = 0
    segments.pin([0, 0])
    segments.unpin([0])
    assert not segments.idle(0), "pinned twice and unpinned once"
    segments.unpin([0])
    assert segments.idle(0)
    assert not segments.pins


def test_utilization() -> None:
    segments = Segments(geometry())
    assert segments.utilization(2) == 0
    segments.references[2], segments.live[2], segments.meta[2] = 8, 3, 1
    assert segments.utilization(2) == 0.5


@pytest.mark.parametrize("count", [1, 12, TABLE_CHUNK - 1, TABLE_CHUNK, TABLE_CHUNK + 1, 2 * TABLE_CHUNK + 5])
def test_the_table_comes_back(count: int) -> None:
    """Section 1, Map: a chunk is 2048 pairs of u64, generation and references."""
    random = Random(count)
    segments = Segments(geometry(segments=count))
    for number in range(count):
        if random.random() < 0.7:
            segments.generation[number] = random.randrange(1, 1 << 64)
            segments.references[number] = random.randrange(1 << 32)
    freed = {number for number in range(count) if random.random() < 0.2}
    chunks = segments.encode(freed)
    assert [len(chunk) for chunk in chunks[:-1]] == [32768] * (len(chunks) - 1)
    assert sum(map(len, chunks)) == 16 * count
    again = Segments(geometry(segments=count))
    for number, chunk in enumerate(chunks):
        again.decode(number, chunk)
    for number in range(count):
        kept = 0 if number in freed else 1
        assert again.generation[number] == kept * segments.generation[number]
        assert again.references[number] == kept * segments.references[number]


def test_golden_table() -> None:
    segments = Segments(geometry(segments=3))
    segments.generation[0], segments.references[0] = 0x0102030405060708, 9
    segments.generation[2], segments.references[2] = 0x10 << 40, 1
    (chunk,) = segments.encode({2})
    assert chunk.hex() == "08070605040302010900000000000000" + "00" * 32


def test_what_the_log_told_stands_against_the_table() -> None:
    """Segments begun behind the root are in no table yet, or in it with what they were before."""
    segments = Segments(geometry(segments=3))
    segments.begin(1, 99)
    segments.references[1] = 5
    segments.decode(0, array("Q", [1, 10, 2, 20, 3, 30]).tobytes())
    assert list(segments.generation) == [1, 99, 3]
    assert list(segments.references) == [10, 25, 30]


def test_a_table_longer_than_the_pool_is_harmless() -> None:
    segments = Segments(geometry(segments=2))
    segments.decode(0, array("Q", [7] * 200).tobytes())
    assert list(segments.generation) == [7, 7]
    segments.decode(5, array("Q", [7] * 200).tobytes())


def test_short_stripes_are_mostly_air() -> None:
    """A segment of stripes cut short by flushes is cheap to move, even if all in it is live."""
    segments = Segments(geometry())
    segments.references[2] = segments.live[2] = 10
    assert segments.utilization(2) == 1
    segments.filled[2] = 2 * (SEGMENT_PAGES * 64 - 1) // 4
    assert 0.2 < segments.utilization(2) < 0.3
    segments.live[2] = 5
    assert 0.1 < segments.utilization(2) < 0.15


def test_retired_segments_are_neither_used_nor_free() -> None:
    """Between the commit that frees them and the end of their discard."""
    segments = Segments(geometry(segments=3))
    segments.find_free()
    number = segments.next_free()
    segments.begin(number, 77)
    segments.references[number] = 5
    segments.retire([number])
    assert number not in segments.free
    assert (segments.generation[number], segments.references[number]) == (0, 0)
    assert number not in segments.starts
    segments.release([number])
    assert list(segments.free) == [1, 2, 0]
