"""Free space and allocation."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.checkpoint.extents import EXTENTS_MAX, UNIT_BYTES, Extent, allocate, free_extents, locate

U = UNIT_BYTES


def test_free_is_what_is_not_claimed() -> None:
    assert free_extents(0, 10 * U, []) == [Extent(0, 10 * U)]
    claimed = [Extent(6 * U, 2 * U), Extent(U, 2 * U), Extent(3 * U, U)]
    assert free_extents(0, 10 * U, claimed) == [Extent(0, U), Extent(4 * U, 2 * U), Extent(8 * U, 2 * U)]
    assert free_extents(0, 10 * U, [Extent(0, 10 * U)]) == []
    assert free_extents(0, 10 * U, [Extent(0, 5 * U), Extent(U, U)]) == [Extent(5 * U, 5 * U)]


def test_allocation_goes_round_and_prefers_one_piece() -> None:
    free = [Extent(0, 4 * U), Extent(6 * U, 2 * U), Extent(10 * U, 4 * U)]
    assert allocate(free, 1, 0) == (Extent(0, U),)
    assert allocate(free, U, 5 * U) == (Extent(6 * U, U),)
    assert allocate(free, 3 * U, 5 * U) == (Extent(10 * U, 3 * U),)
    assert allocate(free, 3 * U, 12 * U) == (Extent(0, 3 * U),)
    assert allocate(free, 5 * U, 11 * U) == (Extent(11 * U, 3 * U), Extent(0, 2 * U))
    assert sum(extent.length for extent in allocate(free, 10 * U, 3 * U)) == 10 * U


def test_too_much_or_too_scattered_is_enospc() -> None:
    with pytest.raises(OSError, match=r"wanted 8192 bytes, 4096 are free in 1 pieces") as caught:
        allocate([Extent(0, U)], U + 1, 0)
    assert caught.value.errno == errno.ENOSPC
    crumbs = [Extent(2 * i * U, U) for i in range(EXTENTS_MAX + 1)]
    assert len(allocate(crumbs, EXTENTS_MAX * U, 0)) == EXTENTS_MAX
    with pytest.raises(OSError, match="No space"):
        allocate(crumbs, (EXTENTS_MAX + 1) * U, 0)


units = st.integers(1, 30).map(lambda n: n * U)


@given(st.lists(st.tuples(st.integers(0, 20).map(lambda n: n * U), units), max_size=12), units, st.integers(0, 500))
def test_what_is_allocated_was_free_and_is_as_long_as_asked(
    gaps: list[tuple[int, int]], length: int, cursor: int
) -> None:
    claimed = []
    end = 0
    for gap, size in gaps:
        claimed.append(Extent(end + gap, size))
        end += gap + size
    total = end + 10 * U
    free = free_extents(0, total, claimed)
    assert sum(extent.length for extent in free) == total - sum(extent.length for extent in claimed)
    try:
        taken = allocate(free, length, cursor * U)
    except OSError:
        assert sum(extent.length for extent in free) < length
        return
    assert sum(extent.length for extent in taken) == length
    units_free = {unit for extent in free for unit in range(extent.offset, extent.end, U)}
    units_taken = [unit for extent in taken for unit in range(extent.offset, extent.end, U)]
    assert set(units_taken) <= units_free
    assert len(set(units_taken)) == len(units_taken)
    flat = units_taken
    for offset in range(0, length, U):
        located = list(locate(taken, offset, length - offset))
        assert located[0].offset == flat[offset // U]
        assert sum(extent.length for extent in located) == length - offset
