"""What a field holds besides a plain integer: bit fields and padded ASCII text.

>>> class Version(NamedTuple):
...     tertiary: int = 0
...     minor: int = 0
...     major: int = 0
>>> VERSION = BitLayout(Version, {"tertiary": (7, 0), "minor": (15, 8), "major": (31, 16)})
>>> hex(VERSION.encode(Version(major=2, minor=1)))
'0x20100'
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from nvmeof.errors import LocalProtocolError, UsageError

T = TypeVar("T", bound=NamedTuple)


class BitLayout(Generic[T]):
    """Codec between an integer and a NamedTuple of its bit fields; bits that no field names are reserved.

    ``bits`` gives the highest and lowest bit of each field, in the order of the record and as the figures write
    them. Two fields that overlap are an assertion error.
    """

    def __init__(self, record: type[T], bits: dict[str, tuple[int, int]]) -> None:
        assert tuple(bits) == record._fields, f"{record.__name__}: fields and bits differ"
        self.record = record
        self.mask = 0
        self.places: list[tuple[int, int]] = []
        for name, (high, low) in bits.items():
            limit = (1 << high - low + 1) - 1
            assert not self.mask & limit << low, f"{record.__name__}.{name} overlaps"
            self.mask |= limit << low
            self.places.append((low, limit))

    def encode(self, value: T) -> int:
        """The integer, reserved bits zero. Raises LocalProtocolError when a field does not fit its width."""
        total = 0
        for name, item, (low, limit) in zip(self.record._fields, value, self.places, strict=True):
            if not 0 <= item <= limit:
                raise LocalProtocolError(f"{self.record.__name__}.{name}: got {item}, wanted 0 to {limit}")
            total |= int(item) << low
        return total

    def decode(self, value: int) -> T:
        """The fields of ``value``; reserved bits are ignored."""
        return self.record._make([value >> low & limit for low, limit in self.places])


def ascii_field(text: str, size: int) -> bytes:
    """``text`` left justified in ``size`` bytes and padded with spaces, as the specification fills ASCII strings.

    Raises UsageError when it does not fit or holds something else than printable ASCII (20h to 7Eh).
    """
    if len(text) > size:
        raise UsageError(f"ASCII field: got {len(text)} characters ({text!r}), wanted at most {size}")
    if any(not " " <= character <= "~" for character in text):
        raise UsageError(f"ASCII field: got {text!r}, wanted printable ASCII only")
    return text.encode("ascii").ljust(size)


def ascii_text(field: bytes) -> str:
    """The text of an ASCII field: up to the first NUL if there is one, without trailing spaces.

    Some targets pad with NUL bytes instead of spaces. Bytes outside printable ASCII become ``?``.
    """
    text = field.split(b"\0", 1)[0].decode("ascii", "replace").rstrip(" ")
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def u128(value: int) -> bytes:
    """A 128-bit little-endian field. Raises LocalProtocolError when ``value`` does not fit."""
    if not 0 <= value < 1 << 128:
        raise LocalProtocolError(f"128-bit field: got {value}, wanted 0 to 2**128 - 1")
    return value.to_bytes(16, "little")


def u128_value(field: bytes) -> int:
    """The value of a 128-bit little-endian field."""
    return int.from_bytes(field, "little")
