"""Where an item's bytes come from when a checkpoint is saved, and where they land when it is loaded."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from nvmeof.checkpoint.manifest import RankManifest
from nvmeof.errors import CheckpointError


class Scratch:
    """Memory that one worker lends to one run at a time. Grows to what was asked for, then stays."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._used = 0

    def reserve(self, length: int) -> None:
        """Start a new run of at most ``length`` bytes; what was taken before is given up."""
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        self._used = 0

    def take(self, length: int) -> memoryview:
        """The next ``length`` bytes of what was reserved."""
        start = self._used
        self._used += length
        assert self._used <= len(self._buffer)
        return memoryview(self._buffer)[start : self._used]


class Payload(ABC):
    """The bytes of one item to be saved. Called from several threads, for disjoint ranges, in any order."""

    size: int

    @abstractmethod
    def view(self, offset: int, length: int, scratch: Scratch) -> memoryview:
        """Bytes ``[offset, offset + length)``: the source memory itself, or a copy in ``scratch`` if there is none."""

    def release(self, length: int) -> None:
        """``length`` bytes got from :meth:`view` are no longer needed."""
        return

    def check(self) -> None:
        """Called when everything was read. Raises CheckpointError if the source changed meanwhile."""
        return


class MemoryPayload(Payload):
    """Bytes that already lie in memory."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.size = memory.nbytes

    def view(self, offset: int, length: int, scratch: Scratch) -> memoryview:
        return self._memory[offset : offset + length]


class LazyPayload(Payload):
    """Bytes that must be made contiguous (or fetched from an accelerator): on first use, freed after the last."""

    def __init__(self, size: int, make: Callable[[], memoryview]) -> None:
        self.size = size
        self._make = make
        self._memory: memoryview | None = None
        self._left = size
        self._lock = threading.Lock()

    def view(self, offset: int, length: int, scratch: Scratch) -> memoryview:
        with self._lock:
            if self._memory is None:
                self._memory = self._make()
            return self._memory[offset : offset + length]

    def release(self, length: int) -> None:
        with self._lock:
            self._left -= length
            if self._left == 0:
                self._memory = None


@dataclass(frozen=True)
class FileStamp:
    """What tells that a file was not touched while it was being read. Only ctime cannot be set back by a program."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


class FilePayload(Payload):
    """``size`` bytes at ``start`` of a file. The file is opened for each chunk, so any number of them can be saved."""

    def __init__(self, path: str, start: int, size: int, stamp: FileStamp) -> None:
        self._path = path
        self._start = start
        self.size = size
        self._stamp = stamp

    def view(self, offset: int, length: int, scratch: Scratch) -> memoryview:
        memory = scratch.take(length)
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            done = 0
            while done < length:
                count = os.preadv(fd, [memory[done:]], self._start + offset + done)
                if count == 0:
                    raise CheckpointError(f"{self._path} became shorter while it was being saved")
                done += count
        finally:
            os.close(fd)
        return memory

    def check(self) -> None:
        if FileStamp.of(os.stat(self._path, follow_symlinks=False)) != self._stamp:
            raise CheckpointError(f"{self._path} changed while it was being saved")


@dataclass(frozen=True)
class Contents:
    """What is to be saved: the manifest, and one payload for each of its items."""

    manifest: RankManifest
    payloads: tuple[Payload, ...]

    def __post_init__(self) -> None:
        sizes = [(item.size, payload.size) for item, payload in zip(self.manifest.items, self.payloads, strict=True)]
        assert all(a == b for a, b in sizes), sizes


class Destination(ABC):
    """Where the bytes of one item go when it is loaded. Called from several threads, for disjoint ranges."""

    @abstractmethod
    def memory(self, offset: int, length: int) -> memoryview | None:
        """Where the bytes should land, or None if they should come through a scratch buffer."""

    def verified(self, offset: int, data: memoryview) -> None:
        """``data`` of ``offset`` landed and its hash is right. Blocking. Only for a destination without memory."""
        return


class MemoryDestination(Destination):
    """Bytes land in ``buffer``, which must not be used unless the whole load succeeded."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer

    def memory(self, offset: int, length: int) -> memoryview | None:
        return self.buffer[offset : offset + length]


class Discard(Destination):
    """Bytes are only verified."""

    def memory(self, offset: int, length: int) -> memoryview | None:
        return None


class FileDestination(Destination):
    """Verified bytes are written at ``start`` of an existing file; nothing unverified ever reaches it."""

    def __init__(self, path: str, start: int = 0) -> None:
        self._path = path
        self._start = start

    def memory(self, offset: int, length: int) -> memoryview | None:
        return None

    def verified(self, offset: int, data: memoryview) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            write_all(fd, [data], self._start + offset)
        finally:
            os.close(fd)


def write_all(fd: int, views: list[memoryview], offset: int) -> None:
    """Write all of ``views`` one after the other at ``offset``, however short the single writes are. Blocking."""
    views = list(views)
    while views:
        count = os.pwritev(fd, views, offset)
        offset += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views:
            views[0] = views[0][count:]


def read_all(fd: int, views: list[memoryview], offset: int) -> int:
    """Fill ``views`` one after the other from ``offset``. Returns the bytes read: fewer than asked at end of file."""
    views = list(views)
    done = 0
    while views:
        count = os.preadv(fd, views, offset + done)
        if count == 0:
            break
        done += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views:
            views[0] = views[0][count:]
    return done
