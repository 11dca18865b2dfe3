"""Free space of a namespace: what no catalog entry claims (FORMAT.md, 2.4)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

UNIT_BYTES = 4096
"""Every extent starts and ends at a multiple of this."""

EXTENTS_MAX = 1024
"""Pieces that one checkpoint may be scattered over: 20 KiB of catalog, and far beyond what rotation makes."""


class Extent(NamedTuple):
    """``length`` bytes from byte ``offset`` of the namespace."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def free_extents(start: int, end: int, claimed: Iterable[Extent]) -> list[Extent]:
    """What is left of ``[start, end)``, in address order, neighbours joined."""
    free = []
    for extent in sorted(claimed):
        if extent.offset > start:
            free.append(Extent(start, extent.offset - start))
        start = max(start, extent.end)
    if end > start:
        free.append(Extent(start, end - start))
    return free


def allocate(free: Iterable[Extent], length: int, cursor: int) -> tuple[Extent, ...]:
    """Take ``length`` bytes out of ``free``: from ``cursor`` on, wrapping round; in one piece if one is large enough.

    Rotation keeps space that was just given up out of use for as long as possible. Raises OSError(ENOSPC).
    """
    length += -length % UNIT_BYTES
    rotated = _rotate(sorted(free), cursor)
    for extent in rotated:
        if extent.length >= length:
            return (Extent(extent.offset, length),)
    taken: list[Extent] = []
    missing = length
    for extent in rotated:
        piece = min(extent.length, missing)
        taken.append(Extent(extent.offset, piece))
        missing -= piece
        if not missing:
            break
    if missing or len(taken) > EXTENTS_MAX:
        available = sum(extent.length for extent in rotated)
        detail = f"wanted {length} bytes, {available} are free in {len(rotated)} pieces"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {detail}")
    return tuple(taken)


def _rotate(free: list[Extent], cursor: int) -> list[Extent]:
    before: list[Extent] = []
    after: list[Extent] = []
    for extent in free:
        if extent.end <= cursor:
            before.append(extent)
        elif extent.offset >= cursor:
            after.append(extent)
        else:
            before.append(Extent(extent.offset, cursor - extent.offset))
            after.append(Extent(cursor, extent.end - cursor))
    return after + before


def locate(extents: Iterable[Extent], offset: int, length: int) -> Iterator[Extent]:
    """Where on the namespace bytes ``[offset, offset + length)`` of the joined extents lie; less if they end before."""
    for extent in extents:
        if offset < extent.length:
            piece = min(length, extent.length - offset)
            yield Extent(extent.offset + offset, piece)
            length -= piece
            offset = 0
            if not length:
                return
        else:
            offset -= extent.length
