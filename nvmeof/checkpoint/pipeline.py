"""A bounded number of runs in flight, and an end at which none is left, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

from nvmeof.checkpoint.payload import Scratch

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from the event loop, after every run."""


async def run_all(jobs: Iterator[T], work: Callable[[T, Scratch], Awaitable[None]], workers: int) -> None:
    """Do ``work`` for every job, ``workers`` at a time, each with a scratch buffer of its own.

    After the first failure, or if cancelled, no further job is started, but those in flight are awaited to their end:
    an abandoned write would still read memory, or write to a file descriptor, that is somebody else's by then.
    So it takes up to one I/O timeout to cancel. Raises the first failure.
    """
    failure: BaseException | None = None

    async def worker() -> None:
        nonlocal failure
        scratch = Scratch()
        try:
            for job in jobs:
                if failure is not None:
                    break
                await work(job, scratch)
        except BaseException as error:
            if failure is None:
                failure = error

    tasks = [asyncio.create_task(worker()) for _ in range(workers)]
    pending = set(tasks)
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError as cancelled:
            failure = cancelled
            pending = {task for task in tasks if not task.done()}
    if failure is not None:
        raise failure


async def in_thread(executor: Executor, function: Callable[[], T]) -> T:
    """Run a blocking call in ``executor``. If cancelled, wait for its end first: it uses memory and file descriptors
    that the caller is about to give up."""
    future = asyncio.get_running_loop().run_in_executor(executor, function)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        future.exception()
        raise cancelled
    return future.result()
