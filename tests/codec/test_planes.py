"""Planes are a transposition, and come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.codec.planes import join_planes, split_planes
from nvmeof.errors import UsageError
from tests.codec.samples import noise


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("elements", [0, 1, 2, 3, 511, 512, 16384])
def test_planes_by_definition(width: int, elements: int) -> None:
    data = noise(width * elements)
    planes = b"".join(data[index::width] for index in range(width))
    for view in (data, bytearray(data), memoryview(data), memoryview(bytearray(data))):
        assert split_planes(view, width) == planes
    for view in (planes, bytearray(planes), memoryview(planes)):
        assert join_planes(view, width) == data


def test_an_example() -> None:
    assert split_planes(b"AaBbCc", 2) == b"ABCabc"
    assert split_planes(b"0123abcd", 4) == b"0a1b2c3d"
    assert join_planes(b"0a1b2c3d", 4) == b"0123abcd"


@given(width=st.sampled_from([2, 4, 8]), data=st.binary(max_size=400))
def test_round_trip_at_any_alignment(width: int, data: bytes) -> None:
    view = memoryview(data)[len(data) % width :]
    assert join_planes(split_planes(view, width), width) == view
    assert split_planes(join_planes(view, width), width) == view


@pytest.mark.parametrize(("width", "length"), [(0, 8), (1, 8), (3, 9), (16, 16), (-2, 8), (2, 3), (4, 6), (8, 12)])
def test_what_cannot_be(width: int, length: int) -> None:
    for function in (split_planes, join_planes):
        with pytest.raises(UsageError):
            function(bytes(length), width)
