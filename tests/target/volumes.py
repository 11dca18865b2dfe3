"""A volume that can do what a pool's can: mark blocks uncorrectable, change its size, switch its write cache off."""

from __future__ import annotations

from nvmeof.engine.volume import Volume
from nvmeof.errors import ReadFault, UsageError
from nvmeof.testing.fault_volume import FaultVolume


class PoolLikeVolume(FaultVolume):
    """``marks`` are the bad blocks by number. ``size`` may be set, up to that of the volume behind.

    With ``write_cache`` off, ``synced`` counts the writes that went to media before they returned.
    """

    def __init__(self, volume: Volume, *, granule: int = 4096, marks: set[int] | None = None) -> None:
        super().__init__(volume)
        self.can_mark_uncorrectable = True
        self.uncorrectable_granule = granule
        self.marks = set() if marks is None else marks
        self.size_now = volume.size
        self.synced = 0

    @property
    def size(self) -> int:
        return self.size_now

    def read_now(self, offset: int, view: memoryview) -> bool:
        self._refuse_marked(offset, len(view))
        return super().read_now(offset, view)

    async def read(self, offset: int, view: memoryview) -> None:
        assert offset + len(view) <= self.size_now, "a read beyond the end has reached the volume"
        self._refuse_marked(offset, len(view))
        await super().read(offset, view)

    async def verify(self, offset: int, length: int) -> None:
        assert offset + length <= self.size_now, "a Verify beyond the end has reached the volume"
        await super().verify(offset, length)
        self._refuse_marked(offset, length)

    def write_now(self, offset: int, view: memoryview) -> bool:
        assert offset + len(view) <= self.size_now, "a write beyond the end has reached the volume"
        done = self.write_cache and super().write_now(offset, view)
        if done:
            self.marks -= self._blocks(offset, len(view))
        return done

    async def write(self, offset: int, view: memoryview) -> None:
        assert offset + len(view) <= self.size_now, "a write beyond the end has reached the volume"
        await super().write(offset, view)
        self.marks -= self._blocks(offset, len(view))
        if not self.write_cache:
            await self.volume.flush()
            self.synced += 1

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        assert offset + length <= self.size_now, "a Write Zeroes beyond the end has reached the volume"
        await super().write_zeroes(offset, length, deallocate=deallocate)
        self.marks -= self._blocks(offset, length)

    async def write_uncorrectable(self, offset: int, length: int) -> None:
        if offset % self.uncorrectable_granule or length % self.uncorrectable_granule:
            raise UsageError("not whole granules")
        self.calls["write_uncorrectable"] += 1
        self.marks |= self._blocks(offset, length)

    def _blocks(self, offset: int, length: int) -> set[int]:
        return set(range(offset // self.block_size, (offset + length) // self.block_size))

    def _refuse_marked(self, offset: int, length: int) -> None:
        bad = self.marks & self._blocks(offset, length)
        if bad:
            raise ReadFault("marked", offset=min(bad) * self.block_size)
