"""Declare a wire structure once, as a NamedTuple whose annotations carry the struct codes.

>>> class Pair(NamedTuple):
...     first: U16
...     second: U32
>>> PAIR = Layout(Pair, size=6, offsets={"first": 0, "second": 2})
>>> PAIR.encode(Pair(1, 2)).hex()
'010002000000'
"""

from __future__ import annotations

import struct
from typing import Annotated, Generic, NamedTuple, TypeVar, get_type_hints

from nvmeof.errors import LocalProtocolError

U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]


def Bytes(count: int) -> str:  # noqa: N802 - reads as a type in an annotation
    """Struct code of a field of ``count`` raw bytes: ``serial: Annotated[bytes, Bytes(20)]``."""
    return f"{count}s"


T = TypeVar("T", bound=NamedTuple)


class Layout(Generic[T]):
    """Little-endian codec of one structure: ``size`` in bytes, ``offsets`` by field name.

    Reserved gaps are fields named ``reserved*`` with a default. The constructor asserts ``size`` and every offset
    given in ``offsets`` (taken from the specification's figure, not from the code).
    """

    def __init__(self, record: type[T], *, size: int, offsets: dict[str, int]) -> None:
        hints = get_type_hints(record, include_extras=True)
        codes = [hints[name].__metadata__[0] for name in record._fields]
        self.record = record
        self.struct = struct.Struct("<" + "".join(codes))
        self.size = self.struct.size
        self.offsets: dict[str, int] = {}
        position = 0
        for name, code in zip(record._fields, codes, strict=True):
            self.offsets[name] = position
            position += struct.calcsize("<" + code)
        assert self.size == size, f"{record.__name__}: {self.size} bytes, the figure says {size}"
        for name, offset in offsets.items():
            assert self.offsets[name] == offset, f"{record.__name__}.{name} at {self.offsets[name]}, figure: {offset}"

    def encode(self, value: T) -> bytes:
        """``size`` bytes. Raises LocalProtocolError when a field does not fit its width."""
        try:
            return self.struct.pack(*value)
        except struct.error as error:
            raise LocalProtocolError(f"{self.record.__name__}: {error}") from error

    def decode(self, data: bytes | bytearray | memoryview, offset: int = 0) -> T:
        """The structure at ``offset``. Raises ValueError when fewer than ``size`` bytes are there."""
        if len(data) - offset < self.size:
            raise ValueError(f"{self.record.__name__} needs {self.size} bytes, got {len(data) - offset}")
        return self.record._make(self.struct.unpack_from(data, offset))
