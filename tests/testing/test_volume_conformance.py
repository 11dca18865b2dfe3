"""Each defect a volume may have is found by some check, so that the checks mean something."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

import pytest

from nvmeof.engine.file_volume import FileVolume
from nvmeof.engine.volume import Volume, VolumeHealth
from nvmeof.errors import NvmeofError, ReadFault
from nvmeof.testing.virtual_disk import VirtualDisk
from nvmeof.testing.volume_conformance import SIZE_MIN, VOLUME_CHECKS, OpenVolume
from tests.target.volumes import PoolLikeVolume

UUID_ONE = UUID("0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77")


class Plain(FileVolume):
    def __init__(self, disk: VirtualDisk) -> None:
        super().__init__(disk, uuid=UUID_ONE, block_size=4096)
        self.virtual = disk


class OddBlocks(Plain):
    def __init__(self, disk: VirtualDisk) -> None:
        super().__init__(disk)
        self.block_size = 1024


class Sick(Plain):
    @property
    def health(self) -> VolumeHealth:
        return VolumeHealth(degraded=True)


class KeepsTheView(Plain):
    """Writes when the next operation comes, as one would who takes the view for its own."""

    kept: tuple[int, memoryview] | None = None

    def write_now(self, offset: int, view: memoryview) -> bool:
        self.settle()
        self.kept = (offset, memoryview(view.obj))
        return True

    def settle(self) -> None:
        if self.kept is not None:
            offset, view = self.kept
            self.kept = None
            super().write_now(offset, view)

    def read_now(self, offset: int, view: memoryview) -> bool:
        self.settle()
        return super().read_now(offset, view)


class OverrunsTheView(Plain):
    async def read(self, offset: int, view: memoryview) -> None:
        whole = memoryview(view.obj)
        await super().read(offset, view)
        if len(whole) > len(view):
            whole[-1] = 0


class ZeroesTooLittle(Plain):
    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        await super().write_zeroes(offset, max(0, length - 4096) if deallocate else length, deallocate=deallocate)


class OneRangeOnly(Plain):
    async def deallocate(self, ranges: Sequence[tuple[int, int]]) -> None:
        await super().deallocate(ranges[:1])


class TakesNoSpace(Plain):
    @property
    def allocated(self) -> int:
        return 0


class AnotherUuid(Plain):
    def __init__(self, disk: VirtualDisk) -> None:
        super().__init__(disk)
        self.uuid = uuid4()


class ForgetsWhenClosed(Plain):
    async def close(self) -> None:
        await super().close()
        self.virtual._cache[4096:4160] = bytes(64)


class OneFlushAtATime(Plain):
    flushing = False

    async def flush(self) -> None:
        assert not self.flushing, "busy"
        self.flushing = True
        try:
            await super().flush()
        finally:
            self.flushing = False


class SharesABuffer(Plain):
    """One bounce buffer for all reads."""

    def __init__(self, disk: VirtualDisk) -> None:
        super().__init__(disk)
        self.bounce = bytearray(SIZE_MIN)

    def read_now(self, offset: int, view: memoryview) -> bool:
        return False

    async def read(self, offset: int, view: memoryview) -> None:
        bounce = memoryview(self.bounce)[: len(view)]
        await super().read(offset, bounce)
        await asyncio.sleep(0)
        view[:] = bounce


class HalfAWrite(Plain):
    """A write in two steps, with others in between."""

    async def write(self, offset: int, view: memoryview) -> None:
        middle = len(view) // 2 + 2048
        await super().write(offset, view[:middle])
        await super().write(offset + middle, view[middle:])


class LeavesTheThreadBehind(Plain):
    """A cancelled read returns at once, and its buffer is filled later."""

    async def read(self, offset: int, view: memoryview) -> None:
        try:
            await super().read(offset, view)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(0.001, view.__setitem__, 0, 0)
            raise


class NeverCloses(Plain):
    async def close(self) -> None:
        await self.flush()


class VerifyChangesData(Plain):
    async def verify(self, offset: int, length: int) -> None:
        await super().verify(offset, length)
        await super().write_zeroes(offset, min(length, 4096), deallocate=False)


class VerifyMindsHoles(Plain):
    async def verify(self, offset: int, length: int) -> None:
        data = memoryview(bytearray(4096))
        await self.read(offset, data)
        if not any(data):
            raise ReadFault("nothing there")


class NewIncarnationAtFlush(Plain):
    async def flush(self) -> None:
        await super().flush()
        self.incarnation = uuid4().bytes


class NoIncarnation(Plain):
    def __init__(self, disk: VirtualDisk) -> None:
        super().__init__(disk)
        self.incarnation = bytes(16)


class MarksThoughItCannot(Plain):
    async def write_uncorrectable(self, offset: int, length: int) -> None:
        pass


class MarksNothing(MarksThoughItCannot):
    can_mark_uncorrectable = True
    uncorrectable_granule = 4096


class Marking(PoolLikeVolume):
    """Without a defect; the marks are kept beside the disk."""

    marks_of: ClassVar[WeakKeyDictionary[VirtualDisk, set[int]]] = WeakKeyDictionary()

    def __init__(self, disk: VirtualDisk) -> None:
        super().__init__(Plain(disk), marks=self.marks_of.setdefault(disk, set()))


class ForgetsMarks(PoolLikeVolume):
    def __init__(self, disk: VirtualDisk) -> None:
        super().__init__(Plain(disk))


class NeverForgetsMarks(Marking):
    def write_now(self, offset: int, view: memoryview) -> bool:
        return self.volume.write_now(offset, view)


class ForgetsNeighboursToo(Marking):
    def write_now(self, offset: int, view: memoryview) -> bool:
        self.marks.discard(offset // 4096 + 1)
        return super().write_now(offset, view)


class VerifyDoesNotSeeMarks(Marking):
    async def verify(self, offset: int, length: int) -> None:
        await self.volume.verify(offset, length)


@pytest.mark.parametrize(
    "defect",
    [
        OddBlocks,
        Sick,
        KeepsTheView,
        OverrunsTheView,
        ZeroesTooLittle,
        OneRangeOnly,
        TakesNoSpace,
        AnotherUuid,
        ForgetsWhenClosed,
        OneFlushAtATime,
        SharesABuffer,
        HalfAWrite,
        LeavesTheThreadBehind,
        NeverCloses,
        VerifyChangesData,
        VerifyMindsHoles,
        NewIncarnationAtFlush,
        NoIncarnation,
        MarksThoughItCannot,
        MarksNothing,
        ForgetsMarks,
        NeverForgetsMarks,
        ForgetsNeighboursToo,
        VerifyDoesNotSeeMarks,
    ],
)
def test_every_defect_is_found(defect: Callable[[VirtualDisk], Volume]) -> None:
    found = []
    for check in VOLUME_CHECKS:
        disk = VirtualDisk(SIZE_MIN)

        async def open_volume(disk: VirtualDisk = disk) -> Volume:
            return defect(disk.reopen())

        with asyncio.Runner() as runner:
            try:
                runner.run(asyncio.wait_for(check(open_volume), 20))
            except (AssertionError, NvmeofError):
                found.append(check.__name__)
                break
    assert found, f"no check minds {defect}"


@pytest.mark.parametrize("flawless", [Plain, Marking])
def test_the_volume_without_a_defect_passes(flawless: Callable[[VirtualDisk], Volume]) -> None:
    async def run(check: Callable[[OpenVolume], Awaitable[None]]) -> None:
        disk = VirtualDisk(SIZE_MIN)

        async def open_volume() -> Volume:
            return flawless(disk.reopen())

        await check(open_volume)

    for check in VOLUME_CHECKS:
        asyncio.run(run(check))
