"""The interface between the target and whatever keeps a namespace's blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from nvmeof.errors import UsageError
from nvmeof.limits import VERIFY_PIECE_BYTES


@dataclass(frozen=True)
class VolumeHealth:
    """What SMART and the error log say about a volume.

    ``read_only`` is set after a failed sync; ``reason`` is the sentence for people. Counters are since it was opened.
    """

    read_only: bool = False
    degraded: bool = False
    reason: str = ""
    media_errors: int = 0
    spare_percent: int = 100
    used_percent: int = 0


class Volume(ABC):
    """An array of blocks, addressed in bytes that are multiples of ``block_size``.

    Contract. The caller has checked alignment and range. Operations on disjoint ranges may be in flight together in
    any number; two in flight on overlapping ranges have no order, but while power is on a block is always one of them
    whole.

    The ``*_now`` methods are the hot path: they do the work before they return and never wait for the disk, or return
    False having done nothing, and then the caller awaits the coroutine of the same name. A ``memoryview`` passed to
    a ``*_now`` method is not kept; one passed to a coroutine must stay untouched until it returns. A coroutine that
    is cancelled returns only once nobody touches its view any more.

    Errors surface from the operation itself (:class:`~nvmeof.errors.ReadFault`, ``WriteFault``, ``CapacityError``).
    A write that returned may be in a volatile cache. ``flush`` returning means that every write which completed
    before ``flush`` was called is on media; concurrent flushes share one sync. After a failed sync the volume refuses
    flush and every write with WriteFault until it is closed and opened again; reads go on. After ``close``, which may
    be repeated, ``*_now`` return False, reads raise ReadFault and everything else WriteFault.
    """

    uuid: UUID
    """Stable across restarts; NGUID and EUI-64 are derived from it."""
    block_size: int
    """512 or 4096 bytes."""
    incarnation: bytes
    """16 bytes, new whenever writes that were acknowledged and not flushed may have been lost: at an opening that was
    not after a clean close, at least. Vendor log page C0h shows it."""
    write_cache: bool = True
    """Whether a completed write may still be volatile. Switched off, every write is on media when it returns."""
    can_mark_uncorrectable: bool = False
    """Whether :meth:`write_uncorrectable` works."""
    uncorrectable_granule: int = 0
    """Bytes; :meth:`write_uncorrectable` takes multiples of it."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes, a multiple of ``block_size``."""

    @property
    @abstractmethod
    def allocated(self) -> int:
        """Bytes that take space on the backing store (Identify Namespace NUSE)."""

    @property
    @abstractmethod
    def health(self) -> VolumeHealth:
        """Cheap; read at every SMART log page."""

    @abstractmethod
    def read_now(self, offset: int, view: memoryview) -> bool:
        """Fill ``view`` from byte ``offset``, or return False if that would wait."""

    @abstractmethod
    async def read(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from byte ``offset``. Raises ReadFault."""

    @abstractmethod
    def write_now(self, offset: int, view: memoryview) -> bool:
        """Write ``view`` at byte ``offset``, or return False if that would wait. Raises WriteFault, CapacityError."""

    @abstractmethod
    async def write(self, offset: int, view: memoryview) -> None:
        """Write ``view`` at byte ``offset``. Raises WriteFault, CapacityError."""

    @abstractmethod
    async def flush(self) -> None:
        """Put every write completed so far on media. Raises WriteFault, after which writes are refused."""

    @abstractmethod
    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        """Make the range read as zeros; give the space back when ``deallocate``. Raises WriteFault, CapacityError."""

    @abstractmethod
    async def deallocate(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Give back ``(offset, length)`` ranges in bytes; they read as zeros then. Raises WriteFault, CapacityError."""

    async def verify(self, offset: int, length: int) -> None:
        """Check the range on media, with all its checksums and redundancy, and return nothing. Raises ReadFault."""
        piece = memoryview(bytearray(min(length, VERIFY_PIECE_BYTES)))
        for at in range(offset, offset + length, VERIFY_PIECE_BYTES):
            await self.read(at, piece[: offset + length - at])

    async def write_uncorrectable(self, offset: int, length: int) -> None:
        """Let the range fail with ReadFault until it is written again. Raises WriteFault, CapacityError, UsageError."""
        raise UsageError("this volume cannot mark blocks uncorrectable")

    @abstractmethod
    async def close(self) -> None:
        """Flush what can be flushed and let go of the backing store. Raises WriteFault if the last sync failed."""
