"""Namespaces to test on: one kept in a real file, one that loses power at a chosen operation."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from nvmeof.errors import ConnectionLost, StatusError


class FileNamespace:
    """A namespace in a file: positioned I/O in threads, fdatasync on Flush and FUA."""

    def __init__(self, path: Path, size: int, block_size: int = 4096) -> None:
        self.path = path
        self.size = size
        self.block_size = block_size
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        os.close(self._fd)

    def _check(self, offset: int, length: int) -> None:
        assert offset % self.block_size == 0, offset
        assert length % self.block_size == 0, length
        assert 0 < length <= self.size - offset

    async def read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        await self.readinto(offset, memoryview(data))
        return data

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        self._check(offset, len(buffer))
        return await asyncio.to_thread(os.preadv, self._fd, [buffer], offset)

    async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
        self._check(offset, len(data))
        written = await asyncio.to_thread(os.pwrite, self._fd, data, offset)
        assert written == len(data)
        if fua:
            await self.flush()

    async def flush(self) -> None:
        await asyncio.to_thread(os.fdatasync, self._fd)


@dataclass
class Operation:
    """One write, FUA write or flush as it was submitted."""

    kind: str
    offset: int = 0
    data: bytes = b""


@dataclass
class CrashNamespace:
    """A namespace in memory with a volatile write cache, whose power fails at operation number ``crash_at``.

    Writes complete out of order after a random delay. A flush makes durable what had completed when it was submitted;
    a FUA write what it carries. At the crash every later operation raises ConnectionLost, and :meth:`after_crash` gives
    the image that the next start finds: durable blocks, and of the others any subset, block by block.
    """

    size: int
    block_size: int = 4096
    seed: int = 0
    crash_at: int = 1 << 60
    durable: bytearray = field(default_factory=bytearray)
    trace: list[Operation] = field(default_factory=list)
    ignore_fua: bool = False
    lose_flush: bool = False

    def __post_init__(self) -> None:
        self.durable = self.durable or bytearray(self.size)
        self.live = bytearray(self.durable)
        self.volatile: list[tuple[int, bytes]] = []
        self.in_flight: list[tuple[int, bytes]] = []
        self.crashed = False
        self._random = random.Random(self.seed)

    async def _begin(self, operation: Operation) -> None:
        if self.crashed or len(self.trace) >= self.crash_at:
            self.crashed = True
            raise ConnectionLost("the power failed")
        self.trace.append(operation)

    async def _delay(self) -> None:
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)
        if self.crashed:
            raise ConnectionLost("the power failed")

    async def read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        await self.readinto(offset, memoryview(data))
        return data

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        assert offset % self.block_size == 0, offset
        assert len(buffer) % self.block_size == 0, len(buffer)
        await self._delay()
        buffer[:] = self.live[offset : offset + len(buffer)]
        return len(buffer)

    async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
        content = bytes(data)
        assert offset % self.block_size == 0, offset
        assert content, "an empty write"
        assert len(content) % self.block_size == 0, len(content)
        await self._begin(Operation("fua" if fua else "write", offset, content))
        entry = (offset, content)
        self.in_flight.append(entry)
        await self._delay()
        self.in_flight.remove(entry)
        self.live[offset : offset + len(content)] = content
        if fua and not self.ignore_fua:
            self.durable[offset : offset + len(content)] = content
        else:
            self.volatile.append(entry)

    async def flush(self) -> None:
        await self._begin(Operation("flush"))
        covered = list(self.volatile)
        await self._delay()
        if self.lose_flush:
            return
        for offset, content in covered:
            self.durable[offset : offset + len(content)] = content
        self.volatile = [entry for entry in self.volatile if not any(entry is other for other in covered)]

    def after_crash(self, mode: str, seed: int) -> bytearray:
        """The image after the power came back. ``mode``: how many unsynced blocks are there (none, some, all)."""
        image = bytearray(self.durable)
        if mode == "none":
            return image
        chooser = random.Random(seed)
        unsynced = self.volatile + self.in_flight
        if mode == "some":
            chooser.shuffle(unsynced)
        for offset, content in unsynced:
            for start in range(0, len(content), self.block_size):
                if mode == "all" or chooser.random() < 0.5:
                    image[offset + start : offset + start + self.block_size] = content[start : start + self.block_size]
        return image


class BadBlocks(CrashNamespace):
    """Reads that touch one of ``bad`` (byte offsets of blocks) complete with Unrecovered Read Error."""

    bad: frozenset[int] = frozenset()

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        if any(offset <= block < offset + len(buffer) for block in self.bad):
            raise StatusError(2, 0x81, dnr=True, name="Unrecovered Read Error")
        return await super().readinto(offset, buffer)
