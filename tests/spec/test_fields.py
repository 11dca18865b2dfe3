from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import LocalProtocolError, UsageError
from nvmeof.spec.fields import BitLayout, ascii_field, ascii_text, u128, u128_value


class Sample(NamedTuple):
    low: int = 0
    flag: int = 0
    high: int = 0


SAMPLE = BitLayout(Sample, {"low": (3, 0), "flag": (6, 6), "high": (31, 16)})


def test_bits_go_where_they_are_said_to() -> None:
    assert SAMPLE.encode(Sample(0xF, 1, 0xABCD)) == 0xABCD004F
    assert SAMPLE.decode(0xABCD004F) == Sample(0xF, 1, 0xABCD)
    assert SAMPLE.mask == 0xFFFF004F


def test_reserved_bits_are_ignored() -> None:
    assert SAMPLE.decode(0xFFFFFFFF) == Sample(0xF, 1, 0xFFFF)


@pytest.mark.parametrize("value", [Sample(low=16), Sample(flag=2), Sample(high=-1)])
def test_a_value_too_wide_is_our_own_error(value: Sample) -> None:
    with pytest.raises(LocalProtocolError, match=r"Sample\."):
        SAMPLE.encode(value)


def test_overlapping_or_missing_fields_are_refused() -> None:
    with pytest.raises(AssertionError, match="flag overlaps"):
        BitLayout(Sample, {"low": (3, 0), "flag": (3, 3), "high": (31, 16)})
    with pytest.raises(AssertionError, match="fields and bits differ"):
        BitLayout(Sample, {"low": (3, 0), "high": (31, 16)})


@given(st.builds(Sample, st.integers(0, 15), st.integers(0, 1), st.integers(0, 0xFFFF)))
def test_bits_round_trip(value: Sample) -> None:
    assert SAMPLE.decode(SAMPLE.encode(value)) == value


def test_ascii_is_padded_with_spaces() -> None:
    assert ascii_field("SN-1", 8) == b"SN-1    "
    assert ascii_field("", 2) == b"  "
    assert ascii_field("12345678", 8) == b"12345678"


@pytest.mark.parametrize("text", ["123456789", "é", "a\0", "tab\t", "\x7f"])
def test_ascii_that_cannot_be_written(text: str) -> None:
    with pytest.raises(UsageError, match="ASCII field: got"):
        ascii_field(text, 8)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (b"4420    ", "4420"),
        (b"4420\0\0\0\0", "4420"),
        (b"4420\0xyz", "4420"),
        (b" a b ", " a b"),
        (b"\xff\x1b[0m", "??[0m"),
        (b"", ""),
    ],
)
def test_ascii_from_any_peer_is_printable(field: bytes, text: str) -> None:
    assert ascii_text(field) == text


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20))
def test_ascii_round_trip(text: str) -> None:
    assert ascii_text(ascii_field(text, 20)) == text.rstrip(" ")


@given(st.binary(max_size=64))
def test_ascii_text_never_fails(field: bytes) -> None:
    assert ascii_text(field).isprintable()


def test_128_bit_numbers_are_little_endian() -> None:
    assert u128(0x0102) == bytes([2, 1]) + bytes(14)
    assert u128((1 << 128) - 1) == b"\xff" * 16
    assert u128_value(u128(10**30)) == 10**30


@pytest.mark.parametrize("value", [-1, 1 << 128])
def test_128_bit_overflow(value: int) -> None:
    with pytest.raises(LocalProtocolError):
        u128(value)
