"""A disk that is read and keeps what is written to it in memory, so that a pool can be opened and stays as it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Self

from nvmeof.engine.disk import ByteBuffer, Disk
from nvmeof.engine.layout import AREA_BYTES, PAGE, PAGE_SHIFT
from nvmeof.errors import UsageError

_ZEROS = bytes(PAGE)


class OverlayDisk(Disk):
    """``problem`` says why there are no bytes, when the file cannot be read."""

    def __init__(self, path: Path, fd: int, problem: str) -> None:
        """Take over the descriptor, -1 for none; use :meth:`open`."""
        self.path = path
        self.problem = problem
        self._fd = fd
        self._size = os.lseek(fd, 0, os.SEEK_END) if fd >= 0 else 0
        self._written: dict[int, bytes] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Any file that can be read."""
        try:
            return cls(path, os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "")
        except FileNotFoundError:
            return cls(path, -1, "missing: the link goes nowhere")
        except OSError as error:
            return cls(path, -1, f"cannot be read: {error.strerror}")

    @property
    def tail(self) -> int:
        """Byte at which the tail area begins."""
        return max(self._size - AREA_BYTES, 0)

    def page(self, offset: int) -> bytes:
        """The page at ``offset``; zeros where there is nothing to read."""
        page = bytearray(PAGE)
        try:
            self.read_into(offset, memoryview(page))
        except (OSError, ValueError):
            return _ZEROS
        return bytes(page)

    def read_into(self, offset: int, view: memoryview) -> None:
        """As :meth:`Disk.read_into`."""
        if self._fd < 0 or os.preadv(self._fd, (view,), offset) != len(view):
            raise OSError(errno.EIO, f"{self.path} ends at byte {self._size}")
        if self._written:
            self._overlay(offset, view)

    def _overlay(self, offset: int, view: memoryview) -> None:
        for number in range(offset >> PAGE_SHIFT, (offset + len(view) - 1 >> PAGE_SHIFT) + 1):
            page = self._written.get(number)
            if page is not None:
                start = (number << PAGE_SHIFT) - offset
                skipped = max(0, -start)
                length = min(PAGE - skipped, len(view) - start - skipped)
                view[start + skipped : start + skipped + length] = page[skipped : skipped + length]

    def write(self, offset: int, data: ByteBuffer) -> None:
        """As :meth:`Disk.write`, into memory."""
        view = memoryview(data)
        while len(view):
            number, within = divmod(offset, PAGE)
            count = min(PAGE - within, len(view))
            old = _ZEROS if count == PAGE else self.page(number << PAGE_SHIFT)
            self._written[number] = old[:within] + bytes(view[:count]) + old[within + count :]
            view, offset = view[count:], offset + count

    def sync(self) -> None:
        """Nothing."""

    def discard(self, offset: int, length: int) -> None:
        """As :meth:`Disk.discard`: whole pages of zeros share their memory."""
        for number in range(-(-offset // PAGE), (offset + length) // PAGE):
            self._written[number] = _ZEROS

    def size(self) -> int:
        """As :meth:`Disk.size`."""
        if self._fd < 0:
            raise UsageError(f"{self.path}: {self.problem}")
        return self._size

    def close(self) -> None:
        """As :meth:`Disk.close`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
