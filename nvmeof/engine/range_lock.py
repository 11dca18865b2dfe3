"""Keeps operations that left the event loop apart from those that overlap them.

The kernel copies a page out to a reader while a writer copies into it (ext4, tmpfs), so a read in a thread and a
write on the loop would meet in the middle of a block. Whoever leaves the loop holds its range here: readers share,
writers exclude, first come first served. What runs on the loop holds nothing, it only asks first: it is whole before
anything else can look.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from nvmeof.limits import RANGE_LOCK_GRANULE_SHIFT as SHIFT

_EXCLUSIVE = -1


def granules(offset: int, length: int) -> range:
    """The numbers of the granules that ``length`` bytes at ``offset`` touch, ascending."""
    return range(offset >> SHIFT, ((offset + length - 1) >> SHIFT) + 1)


class RangeLock:
    """Reader-writer locks over granules of ``2 ** SHIFT`` bytes; a granule nobody holds takes no memory.

    Granules are taken in ascending order, so two holders never wait for each other. Belongs to one event loop.
    """

    __slots__ = ("_queues", "held")

    held: dict[int, int]
    """By granule: how many readers hold it, or -1 for a writer. Empty when nothing is off the loop."""

    def __init__(self) -> None:
        self.held = {}
        self._queues: dict[int, deque[tuple[bool, asyncio.Future[None]]]] = {}

    def readable(self, offset: int, length: int) -> bool:
        """Whether nobody writes there now."""
        held = self.held
        return all(held.get(granule, 0) >= 0 for granule in granules(offset, length))

    def writable(self, offset: int, length: int) -> bool:
        """Whether nobody reads or writes there now."""
        held = self.held
        return not any(granule in held for granule in granules(offset, length))

    async def acquire(self, wanted: Sequence[int], *, exclusive: bool) -> None:
        """Hold the granules ``wanted`` (ascending, each once) until :meth:`release`. Cancelled, it holds none."""
        for position, granule in enumerate(wanted):
            if granule not in self._queues and self._grant(granule, exclusive):
                continue
            waiter = asyncio.get_running_loop().create_future()
            entry = (exclusive, waiter)
            self._queues.setdefault(granule, deque()).append(entry)
            try:
                await waiter
            except BaseException:
                if waiter.cancelled():
                    self._forget(granule, entry)
                else:
                    self.release((granule,), exclusive=exclusive)
                self.release(wanted[:position], exclusive=exclusive)
                raise

    def release(self, wanted: Sequence[int], *, exclusive: bool) -> None:
        """Let go of what :meth:`acquire` took, with the same arguments."""
        held = self.held
        for granule in wanted:
            if exclusive or held[granule] == 1:
                del held[granule]
            else:
                held[granule] -= 1
            if granule in self._queues:
                self._wake(granule)

    def _grant(self, granule: int, exclusive: bool) -> bool:
        readers = self.held.get(granule, 0)
        if readers < 0 or (exclusive and readers):
            return False
        self.held[granule] = _EXCLUSIVE if exclusive else readers + 1
        return True

    def _forget(self, granule: int, entry: tuple[bool, asyncio.Future[None]]) -> None:
        """Take a cancelled waiter out, if :meth:`_wake` has not done so; those behind it may go now."""
        queue = self._queues.get(granule)
        if queue is not None and entry in queue:
            queue.remove(entry)
            self._wake(granule)

    def _wake(self, granule: int) -> None:
        """Hand the granule to those at the head of its queue who can have it now."""
        queue = self._queues[granule]
        while queue:
            exclusive, waiter = queue[0]
            if not waiter.cancelled():
                if not self._grant(granule, exclusive):
                    return
                waiter.set_result(None)
            queue.popleft()
        del self._queues[granule]
