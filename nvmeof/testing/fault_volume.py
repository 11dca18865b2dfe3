"""A volume in front of another that fails, dawdles, or never answers at once, when told to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from nvmeof.engine.volume import Volume, VolumeHealth
from nvmeof.errors import VolumeError

Operation = Literal["read", "write", "flush", "write_zeroes", "deallocate", "verify", "write_uncorrectable", "close"]


@dataclass
class _Failure:
    error: type[VolumeError]
    nth: int
    times: int


class FaultVolume(Volume):
    """Passes everything on to ``volume`` and owns it.

    ``slow`` makes ``read_now`` and ``write_now`` return False; an operation with a delay or a failure set does so too.
    ``calls`` counts operations that got as far as to be tried; ``in_flight`` those whose coroutine has not returned.
    """

    def __init__(self, volume: Volume, *, slow: bool = False) -> None:
        self.volume = volume
        self.uuid = volume.uuid
        self.block_size = volume.block_size
        self.incarnation = volume.incarnation
        self.write_cache = volume.write_cache
        self.can_mark_uncorrectable = volume.can_mark_uncorrectable
        self.uncorrectable_granule = volume.uncorrectable_granule
        self.slow = slow
        self.calls: Counter[Operation] = Counter()
        self.in_flight: Counter[Operation] = Counter()
        self.health_override: VolumeHealth | None = None
        self._delays: dict[Operation, asyncio.Event | float] = {}
        self._failures: dict[Operation, _Failure] = {}

    def delay(self, operation: Operation, until: asyncio.Event | float) -> None:
        """Let each such operation wait first, for the event or for so many seconds, until :meth:`clear`."""
        self._delays[operation] = until

    def fail(self, operation: Operation, error: type[VolumeError], *, nth: int = 1, times: int = 1) -> None:
        """Let the ``nth`` such operation from now, and the ``times - 1`` after it, raise ``error``.

        It does nothing else but wait as long as :meth:`delay` says.
        """
        self._failures[operation] = _Failure(error, nth, times)

    def clear(self) -> None:
        """Neither delay nor fail what comes from now on, and answer at once again."""
        self._delays.clear()
        self._failures.clear()
        self.slow = False
        self.health_override = None

    @property
    def size(self) -> int:
        """As the volume behind."""
        return self.volume.size

    @property
    def allocated(self) -> int:
        """As the volume behind."""
        return self.volume.allocated

    @property
    def health(self) -> VolumeHealth:
        """``health_override`` if there is one, else as the volume behind."""
        return self.health_override or self.volume.health

    def read_now(self, offset: int, view: memoryview) -> bool:
        """As :meth:`Volume.read_now`."""
        return self._is_plain("read") and self._counted("read", self.volume.read_now(offset, view))

    async def read(self, offset: int, view: memoryview) -> None:
        """As :meth:`Volume.read`."""
        await self._pass("read", lambda: self.volume.read(offset, view))

    def write_now(self, offset: int, view: memoryview) -> bool:
        """As :meth:`Volume.write_now`."""
        return self._is_plain("write") and self._counted("write", self.volume.write_now(offset, view))

    async def write(self, offset: int, view: memoryview) -> None:
        """As :meth:`Volume.write`."""
        await self._pass("write", lambda: self.volume.write(offset, view))

    async def flush(self) -> None:
        """As :meth:`Volume.flush`."""
        await self._pass("flush", self.volume.flush)

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        """As :meth:`Volume.write_zeroes`."""
        await self._pass("write_zeroes", lambda: self.volume.write_zeroes(offset, length, deallocate=deallocate))

    async def deallocate(self, ranges: Sequence[tuple[int, int]]) -> None:
        """As :meth:`Volume.deallocate`."""
        await self._pass("deallocate", lambda: self.volume.deallocate(ranges))

    async def verify(self, offset: int, length: int) -> None:
        """As :meth:`Volume.verify`."""
        await self._pass("verify", lambda: self.volume.verify(offset, length))

    async def write_uncorrectable(self, offset: int, length: int) -> None:
        """As :meth:`Volume.write_uncorrectable`."""
        await self._pass("write_uncorrectable", lambda: self.volume.write_uncorrectable(offset, length))

    async def close(self) -> None:
        """As :meth:`Volume.close`; a failure set for it is raised after the volume behind is closed."""
        try:
            await self._pass("close", self.volume.close)
        except VolumeError:
            await self.volume.close()
            raise

    def _is_plain(self, operation: Operation) -> bool:
        return not self.slow and operation not in self._delays and operation not in self._failures

    def _counted(self, operation: Operation, done: bool) -> bool:
        self.calls[operation] += done
        return done

    async def _pass(self, operation: Operation, work: Callable[[], Awaitable[None]]) -> None:
        self.calls[operation] += 1
        self.in_flight[operation] += 1
        try:
            until = self._delays.get(operation)
            if isinstance(until, asyncio.Event):
                await until.wait()
            elif until is not None:
                await asyncio.sleep(until)
            self._fail_if_due(operation)
            await work()
        finally:
            self.in_flight[operation] -= 1

    def _fail_if_due(self, operation: Operation) -> None:
        failure = self._failures.get(operation)
        if failure is None:
            return
        failure.nth -= 1
        if failure.nth > 0:
            return
        if failure.nth == 1 - failure.times:
            del self._failures[operation]
        raise failure.error(f"{operation}: injected")
