"""A disk in memory that fails the way disks do, the same way for the same seed.

What was written reads back at once, and reaches media when ``sync`` returns. Until then :meth:`VirtualDisk.crash` may
lose it, tear it between its 512-byte sectors, garble sectors of it, let a later write land without an earlier one, or
put it in the wrong place.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Flag, auto
from random import Random
from threading import Event, Lock
from typing import Literal, NamedTuple

from nvmeof.engine.disk import ByteBuffer, Disk

SECTOR = 512
PAGE = 4096
HOLD_SECONDS_MAX = 30.0

Operation = Literal["read", "write", "sync", "discard"]


class Damage(Flag):
    """What a crash may do to writes that were not synced."""

    NONE = 0
    LOSE = auto()
    TEAR = auto()
    GARBLE = auto()
    REORDER = auto()
    MISDIRECT = auto()
    HONEST = LOSE | TEAR | REORDER
    """What a disk does that keeps its promises."""
    ALL = LOSE | TEAR | GARBLE | REORDER | MISDIRECT


class PowerLost(OSError):
    """The power went off before the operation was done, and is off until :meth:`VirtualDisk.crash`."""

    def __init__(self) -> None:
        super().__init__(errno.ENODEV, "the power is off")


class Unsynced(NamedTuple):
    """A write of ``data``, or a discard of ``length`` bytes when that is None, which is not on media yet."""

    offset: int
    length: int
    data: bytes | None

    def content(self) -> bytes:
        """What the range holds afterwards."""
        return bytes(self.length) if self.data is None else self.data


@dataclass
class _Failure:
    nth: int
    times: int
    code: int


class Hold:
    """An operation kept waiting: ``entered`` is set when one has arrived, :meth:`release` lets all of them go on."""

    def __init__(self) -> None:
        self.entered = Event()
        self._released = Event()

    def release(self) -> None:
        """Let those that wait, and all that come, pass."""
        self._released.set()

    def wait(self) -> None:
        """Arrive. Raises OSError (ETIMEDOUT) when nobody lets it pass for 30 s."""
        self.entered.set()
        if not self._released.wait(HOLD_SECONDS_MAX):
            raise OSError(errno.ETIMEDOUT, "held for too long")


class VirtualDisk(Disk):
    """``size`` bytes of zeros, with space for ``capacity`` bytes of them (all, by default), in pages of 4 KiB.

    ``damage`` is what :meth:`crash` may do. With ``waits``, ``read_now`` never succeeds, as on a cold cache.
    ``operations`` counts writes, discards and syncs.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        damage: Damage = Damage.HONEST,
        capacity: int | None = None,
        waits: bool = False,
    ) -> None:
        self.seed = seed
        self.damage = damage
        self.capacity = size if capacity is None else capacity
        self.waits = waits
        self.operations = 0
        self._random = Random(seed)
        self._lock = Lock()
        self._cache = bytearray(size)
        self._media = bytearray(size)
        self._pages: set[int] = set()
        self._unsynced: list[Unsynced] = []
        self._dropped: list[Unsynced] = []
        self._failures: dict[Operation, _Failure] = {}
        self._holds: dict[Operation, Hold] = {}
        self._operations_left: int | None = None
        self._powered = True
        self._open = True

    # -- the disk

    def read_now(self, offset: int, view: memoryview) -> bool:
        """As :meth:`Disk.read_now`; False while a read is to fail or to be held."""
        if self.waits or "read" in self._failures or "read" in self._holds:
            return False
        try:
            self.read_into(offset, view)
        except OSError:
            return False
        return True

    def read_into(self, offset: int, view: memoryview) -> None:
        """As :meth:`Disk.read_into`."""
        self._pass("read")
        with self._lock:
            self._check()
            self._fail_if_due("read")
            end = offset + len(view)
            if end > len(self._cache):
                raise OSError(errno.EIO, f"the disk ends at byte {len(self._cache)}")
            with memoryview(self._cache) as cache:
                view[:] = cache[offset:end]

    def write(self, offset: int, data: ByteBuffer) -> None:
        """As :meth:`Disk.write`. A write that fails leaves a part of itself behind."""
        self._pass("write")
        with self._lock:
            self._check()
            content = bytes(data)
            try:
                self._fail_if_due("write")
            except OSError:
                self._put(offset, content[: self._random.randrange(len(content) + 1)])
                raise
            fits = self._fit(offset, len(content))
            self._put(offset, content[:fits])
            self._count()
            if fits < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """As :meth:`Disk.sync`. After one that failed, the next says 0 although what the first lost is not there."""
        with self._lock:
            self._check()
            covered = len(self._unsynced)
        self._pass("sync")
        with self._lock:
            self._check()
            self._count()
            done, self._unsynced = self._unsynced[:covered], self._unsynced[covered:]
            try:
                self._fail_if_due("sync")
            except OSError:
                self._dropped += done
                raise
            for write in done:
                self._media[write.offset : write.offset + write.length] = write.content()

    def discard(self, offset: int, length: int) -> None:
        """As :meth:`Disk.discard`."""
        self._pass("discard")
        with self._lock:
            self._check()
            self._fail_if_due("discard")
            self._cache[offset : offset + length] = bytes(length)
            self._pages.difference_update(range(-(-offset // PAGE), (offset + length) // PAGE))
            self._unsynced.append(Unsynced(offset, length, None))
            self._count()

    def size(self) -> int:
        """As :meth:`Disk.size`."""
        with self._lock:
            self._check()
            return len(self._cache)

    def allocated(self) -> int:
        """As :meth:`Disk.allocated`."""
        with self._lock:
            self._check()
            return min(len(self._pages) * PAGE, len(self._cache))

    def close(self) -> None:
        """As :meth:`Disk.close`; :meth:`reopen` undoes it."""
        self._open = False

    # -- what goes wrong

    def reopen(self) -> VirtualDisk:
        """This disk for another user, as another descriptor of the same file would be."""
        self._open = True
        return self

    def fail(self, operation: Operation, *, nth: int = 1, times: int = 1, code: int = errno.EIO) -> None:
        """Let the ``nth`` such operation from now, and the ``times - 1`` after it, raise OSError ``code``."""
        with self._lock:
            self._failures[operation] = _Failure(nth, times, code)

    @contextmanager
    def hold(self, operation: Operation) -> Iterator[Hold]:
        """Keep every such operation waiting until the hold is released, or the block is left."""
        hold = self._holds[operation] = Hold()
        try:
            yield hold
        finally:
            del self._holds[operation]
            hold.release()

    def truncate(self, size: int) -> None:
        """Cut the disk to ``size`` bytes, as somebody else may do to a file."""
        with self._lock:
            del self._cache[size:]

    def power_off_after(self, operations: int) -> None:
        """Cut the power in the middle of the write, discard or sync that follows the next ``operations`` of them."""
        with self._lock:
            self._operations_left = operations

    def crash(self, survivors: Iterable[int] | None = None) -> VirtualDisk:
        """Lose the power and come back, open. Returns the disk.

        What was not synced meets ``damage``; or, with ``survivors``, exactly those of :meth:`unsynced` land, whole.
        """
        with self._lock:
            touched = [*self._dropped, *self._unsynced]
            if survivors is None:
                touched += self._damage()
            else:
                for index in sorted(survivors):
                    self._land(self._unsynced[index].offset, self._unsynced[index].content())
            for write in touched:
                end = write.offset + write.length
                self._cache[write.offset : end] = self._media[write.offset : end]
            self._unsynced = []
            self._dropped = []
            self._operations_left = None
            self._powered = True
        return self.reopen()

    def unsynced(self) -> list[Unsynced]:
        """What is not on media, oldest first."""
        with self._lock:
            return list(self._unsynced)

    # -- within

    def _check(self) -> None:
        if not self._powered:
            raise PowerLost
        if not self._open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def _pass(self, operation: Operation) -> None:
        hold = self._holds.get(operation)
        if hold is not None:
            hold.wait()

    def _count(self) -> None:
        self.operations += 1
        if self._operations_left is None:
            return
        if self._operations_left == 0:
            self._powered = False
            raise PowerLost
        self._operations_left -= 1

    def _fail_if_due(self, operation: Operation) -> None:
        failure = self._failures.get(operation)
        if failure is None:
            return
        failure.nth -= 1
        if failure.nth > 0:
            return
        if failure.nth == 1 - failure.times:
            del self._failures[operation]
        raise OSError(failure.code, os.strerror(failure.code))

    def _fit(self, offset: int, length: int) -> int:
        """How many of ``length`` bytes at ``offset`` there is space for; the pages they touch become allocated."""
        for page in range(offset // PAGE, -(-(offset + length) // PAGE)):
            if page not in self._pages:
                if (len(self._pages) + 1) * PAGE > -(-self.capacity // PAGE) * PAGE:
                    return max(0, page * PAGE - offset)
                self._pages.add(page)
        return length

    def _put(self, offset: int, data: bytes) -> None:
        if data:
            self._cache.extend(bytes(max(0, offset - len(self._cache))))
            self._cache[offset : offset + len(data)] = data
            self._unsynced.append(Unsynced(offset, len(data), data))

    def _land(self, offset: int, data: bytes) -> None:
        self._media[offset : offset + len(data)] = data

    def _damage(self) -> list[Unsynced]:
        """Let what was not synced land, or not; returns the ranges that were hit by mistake."""
        random = self._random
        fates = [Damage.NONE, *(self.damage & ~Damage.REORDER)]
        missed = []
        writes = [write for write in self._dropped if Damage.LOSE in self.damage and random.random() < 0.5]
        writes += self._unsynced
        if Damage.REORDER in self.damage:
            random.shuffle(writes)
        for write in writes:
            fate = random.choice(fates)
            if fate is Damage.MISDIRECT:
                sectors = max(1, (len(self._media) - write.length) // SECTOR)
                write = Unsynced(random.randrange(sectors) * SECTOR, write.length, write.content())
                missed.append(write)
            if fate is not Damage.LOSE:
                for offset, sector in _sectors(write):
                    if fate is Damage.TEAR and random.random() < 0.5:
                        continue
                    garbled = fate is Damage.GARBLE and random.random() < 0.5
                    self._land(offset, random.randbytes(len(sector)) if garbled else sector)
        return missed


def _sectors(write: Unsynced) -> Iterator[tuple[int, bytes]]:
    """The write cut at the disk's sector boundaries."""
    content = write.content()
    position = 0
    while position < write.length:
        offset = write.offset + position
        length = min(SECTOR - offset % SECTOR, write.length - position)
        yield offset, content[position : position + length]
        position += length
