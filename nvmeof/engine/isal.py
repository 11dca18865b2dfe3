"""ISA-L's parity routines, out of the shared library in pyeclib's wheel. They let other threads run.

Nothing here is trusted before it has given the right bytes once: :func:`load` answers None for a library that is
missing, too old, or wrong.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from nvmeof.engine.galois import Matrix, multiply

LIBRARY_PATTERN = "libisal*.so*"
SYSTEM_LIBRARY = "libisal.so.2"
TABLE_BYTES = 32
"""ec_init_tables makes this much for each factor."""


class IsaL:
    """The four functions of the library. Addresses are of memory that the caller keeps alive; lengths in bytes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.pq_gen = library.pq_gen
        self.xor_gen = library.xor_gen
        self._init_tables = library.ec_init_tables
        self._encode = library.ec_encode_data
        for function in (self.pq_gen, self.xor_gen):
            function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
            function.restype = ctypes.c_int
        self._init_tables.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._init_tables.restype = None
        self._encode.argtypes = (ctypes.c_int, *(ctypes.c_int,) * 2, *(ctypes.c_void_p,) * 3)
        self._encode.restype = None

    def multiply(self, factors: Matrix, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Each target becomes the sum of the sources, taken with its row of factors. Any alignment and length."""
        columns, rows = len(sources), len(targets)
        tables = ctypes.create_string_buffer(TABLE_BYTES * columns * rows)
        self._init_tables(columns, rows, b"".join(map(bytes, factors)), tables)
        self._encode(
            length, columns, rows, tables, (ctypes.c_void_p * columns)(*sources), (ctypes.c_void_p * rows)(*targets)
        )


def _candidates() -> Iterator[str]:
    """Where the library may be: what pyeclib's RECORD lists, beside its extension module, what the system has."""
    try:
        listed = importlib.metadata.files("pyeclib") or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    yield from (str(entry.locate()) for entry in listed if entry.match(LIBRARY_PATTERN))
    for name in ("pyeclib_c", "pyeclib"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            for place in list(Path(spec.origin).parents)[:2]:
                yield from (str(path) for path in sorted((place / "pyeclib.libs").glob(LIBRARY_PATTERN)))
    yield SYSTEM_LIBRARY


@cache
def load() -> IsaL | None:
    """The library, or None where no working one is found."""
    for path in _candidates():
        try:
            library = IsaL(ctypes.CDLL(path))
        except (OSError, AttributeError):
            continue
        if _works(library):
            return library
    return None


def _works(library: IsaL) -> bool:
    """Whether P, Q and a product are right, by the byte, for one stripe of 2 x 256 bytes."""
    length = 256
    memory = bytearray(7 * length + 64)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    start = -base % 64
    first, second = bytes(range(256)), bytes(index * 7 + 3 & 0xFF for index in range(256))
    memory[start : start + 2 * length] = first + second
    addresses = [base + start + index * length for index in range(7)]
    failed = library.pq_gen(4, length, (ctypes.c_void_p * 4)(*addresses[:4]))
    failed |= library.xor_gen(3, length, (ctypes.c_void_p * 3)(*addresses[:2], addresses[4]))
    library.multiply(((1, 1), (1, 2)), addresses[:2], addresses[5:], length)
    p = bytes(a ^ b for a, b in zip(first, second, strict=True))
    q = bytes(a ^ multiply(2, b) for a, b in zip(first, second, strict=True))
    return not failed and memory[start + 2 * length : start + 7 * length] == p + q + p + p + q
