"""Dataset Management ranges."""

from __future__ import annotations

import struct

import pytest

from nvmeof.target.ranges import decode_ranges, merged


@pytest.mark.parametrize(
    ("ranges", "result"),
    [
        ([(0, 8)] * 256, [(0, 8)]),
        ([(8, 8), (0, 8)], [(0, 16)]),
        ([(0, 100), (10, 5), (100, 1)], [(0, 101)]),
        ([(20, 5), (0, 8)], [(0, 8), (20, 5)]),
        ([], []),
    ],
)
def test_merged(ranges: list[tuple[int, int]], result: list[tuple[int, int]]) -> None:
    assert merged(ranges) == result


def test_empty_ranges_are_left_out() -> None:
    wire = struct.pack("<IIQIIQIIQ", 0, 8, 1 << 40, 0, 0, 5, 7, 1, 3)
    assert decode_ranges(memoryview(wire)) == [(1 << 40, 8), (3, 1)]
