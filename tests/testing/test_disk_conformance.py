"""Each defect a disk may have is found by some check, so that the checks mean something."""

from __future__ import annotations

import pytest

from nvmeof.engine.disk import ByteBuffer
from nvmeof.testing.disk_conformance import DISK_CHECKS, SIZE_MIN
from nvmeof.testing.virtual_disk import VirtualDisk


class NotZero(VirtualDisk):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._cache[size // 2] = 1


class TooSmall(VirtualDisk):
    def __init__(self, size: int) -> None:
        super().__init__(size // 2)


class DropsTheEnd(VirtualDisk):
    def write(self, offset: int, data: ByteBuffer) -> None:
        super().write(offset, bytes(data)[:-1] if len(data) == 4097 else data)


class OverwritesNeighbour(VirtualDisk):
    def write(self, offset: int, data: ByteBuffer) -> None:
        super().write(offset, bytes(data) + (b"!" if len(data) == 511 else b""))


class StaleReadNow(VirtualDisk):
    def read_now(self, offset: int, view: memoryview) -> bool:
        return True


class Grows(VirtualDisk):
    def write(self, offset: int, data: ByteBuffer) -> None:
        self._cache.extend(bytes(1))
        super().write(offset, data)


class ReadsPastTheEnd(VirtualDisk):
    def read_into(self, offset: int, view: memoryview) -> None:
        if offset + len(view) <= len(self._cache):
            super().read_into(offset, view)


class DiscardsTooMuch(VirtualDisk):
    def discard(self, offset: int, length: int) -> None:
        super().discard(offset, -(-length // 512) * 512)


class DiscardsNothing(VirtualDisk):
    def discard(self, offset: int, length: int) -> None:
        pass


class ZeroesTooLittle(VirtualDisk):
    def zero(self, offset: int, length: int) -> None:
        super().zero(offset, length // 512 * 512)


class ForgetsWhenClosed(VirtualDisk):
    def close(self) -> None:
        super().close()
        self._cache = bytearray(len(self._cache))


class ClosesNever(VirtualDisk):
    def close(self) -> None:
        pass


class SyncsWhenClosed(VirtualDisk):
    def sync(self) -> None:
        if self._open:
            super().sync()


@pytest.mark.parametrize(
    "defect",
    [
        NotZero,
        TooSmall,
        DropsTheEnd,
        OverwritesNeighbour,
        StaleReadNow,
        Grows,
        ReadsPastTheEnd,
        DiscardsTooMuch,
        DiscardsNothing,
        ZeroesTooLittle,
        ForgetsWhenClosed,
        ClosesNever,
        SyncsWhenClosed,
    ],
)
def test_every_defect_is_found(defect: type[VirtualDisk]) -> None:
    found = []
    for check in DISK_CHECKS:
        try:
            check(defect(SIZE_MIN).reopen)
        except (AssertionError, OSError):
            found.append(check.__name__)
            break
    assert found, f"no check minds {defect.__name__}"
