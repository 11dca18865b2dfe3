"""Where work goes that must not happen on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Executor(Protocol):
    """Runs functions of plain arguments."""

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """What ``work`` returns or raises."""

    def close(self) -> None:
        """Take no more work, and wait for what runs."""


class ThreadExecutor:
    """Threads. A hop costs 25-35 us of a core, so whole requests hop, never pieces of one."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """As :meth:`Executor.run`."""
        return await asyncio.wrap_future(self._threads.submit(work, *arguments))

    def close(self) -> None:
        """As :meth:`Executor.close`."""
        self._threads.shutdown()


class InlineExecutor:
    """Here and now: every write and sync happens in the order of the code, the same one each time."""

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """As :meth:`Executor.run`."""
        return work(*arguments)

    def close(self) -> None:
        """As :meth:`Executor.close`."""


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` to its end even if the caller is cancelled, who then is told so: threads may hold his buffers."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()
        raise
