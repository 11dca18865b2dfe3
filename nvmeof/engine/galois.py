"""GF(2**8) with polynomial 11Dh, as Linux md and ISA-L have it: tables, and which factors rebuild lost strips.

Strip ``i`` of a stripe is row ``i`` of a generator matrix times the data strips: the unit matrix, a row of ones for P,
and for Q the row ``2**i`` (H. P. Anvin, The mathematics of RAID-6). Any k rows of it are independent for k up to 255.
"""

from __future__ import annotations

from functools import lru_cache

POLYNOMIAL = 0x11D

Matrix = tuple[tuple[int, ...], ...]


def _tables() -> tuple[tuple[int, ...], tuple[int, ...]]:
    powers = [1]
    for _ in range(254):
        doubled = powers[-1] << 1
        powers.append(doubled ^ POLYNOMIAL if doubled > 0xFF else doubled)
    logarithms = [0] * 256
    for exponent, value in enumerate(powers):
        logarithms[value] = exponent
    return tuple(powers), tuple(logarithms)


POWERS, LOGARITHMS = _tables()
"""``POWERS[i]`` is 2**i for i below 255, ``LOGARITHMS`` the inverse of it; entry 0 means nothing."""


def multiply(a: int, b: int) -> int:
    """Product of two bytes."""
    return POWERS[(LOGARITHMS[a] + LOGARITHMS[b]) % 255] if a and b else 0


def inverse(a: int) -> int:
    """1 / a, for a other than 0."""
    assert a
    return POWERS[-LOGARITHMS[a] % 255]


def generator(data: int, parity: int) -> Matrix:
    """A row for each strip of a stripe of ``data + parity`` strips, a column for each data strip."""
    unit = tuple(tuple(int(row == column) for column in range(data)) for row in range(data))
    return unit + (tuple([1] * data), tuple(POWERS[:data]))[:parity]


def inverted(matrix: Matrix) -> Matrix:
    """Gauss-Jordan. The matrix is square and regular."""
    size = len(matrix)
    rows = [[*row, *(int(index == column) for column in range(size))] for index, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(index for index in range(column, size) if rows[index][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        factor = inverse(rows[column][column])
        rows[column] = [multiply(factor, value) for value in rows[column]]
        for index in range(size):
            factor = rows[index][column]
            if index != column and factor:
                rows[index] = [
                    value ^ multiply(factor, other) for value, other in zip(rows[index], rows[column], strict=True)
                ]
    return tuple(tuple(row[size:]) for row in rows)


@lru_cache(maxsize=1024)
def recovery(data: int, parity: int, missing: tuple[int, ...]) -> tuple[tuple[int, ...], Matrix]:
    """Which ``data`` strips to read, and for each strip in ``missing`` the factors those are to be taken with."""
    rows = generator(data, parity)
    present = tuple(index for index in range(data + parity) if index not in missing)[:data]
    solved = inverted(tuple(rows[index] for index in present))
    factors = tuple(
        tuple(_dot(rows[index], tuple(row[column] for row in solved)) for column in range(data)) for index in missing
    )
    return present, factors


def _dot(row: tuple[int, ...], column: tuple[int, ...]) -> int:
    total = 0
    for a, b in zip(row, column, strict=True):
        total ^= multiply(a, b)
    return total
