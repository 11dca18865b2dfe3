"""run_all and in_thread: bounds, first failure, and nothing left running."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from nvmeof.checkpoint.payload import Scratch
from nvmeof.checkpoint.pipeline import in_thread, run_all


async def test_all_jobs_are_done_by_a_bounded_number_of_workers() -> None:
    running = most = 0
    done = []

    async def work(job: int, scratch: Scratch) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(job)

    await run_all(iter(range(50)), work, 4)
    assert sorted(done) == list(range(50))
    assert most == 4


async def test_the_first_failure_is_raised_when_everything_in_flight_has_ended() -> None:
    finished = []

    async def work(job: int, scratch: Scratch) -> None:
        if job == 3:
            raise ValueError("three")
        await asyncio.sleep(0.02)
        finished.append(job)
        if job == 1:
            raise KeyError("later")

    with pytest.raises(ValueError, match="three"):
        await run_all(iter(range(1000)), work, 4)
    assert sorted(finished) == [0, 1, 2]


async def test_a_failing_source_of_jobs_is_a_failure() -> None:
    def jobs() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    async def work(job: int, scratch: Scratch) -> None:
        await asyncio.sleep(0.01)

    with pytest.raises(OSError, match="no more"):
        await run_all(jobs(), work, 3)


async def test_cancelling_stops_new_jobs_but_waits_for_those_in_flight() -> None:
    started, finished = [], []

    async def work(job: int, scratch: Scratch) -> None:
        started.append(job)
        await asyncio.sleep(0.05)
        finished.append(job)

    task = asyncio.create_task(run_all(iter(range(1000)), work, 3))
    await asyncio.sleep(0.01)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started == finished == [0, 1, 2]


async def test_a_cancelled_thread_call_is_waited_for() -> None:
    entered, ended = threading.Event(), threading.Event()

    def blocking() -> None:
        entered.set()
        time.sleep(0.05)
        ended.set()
        raise OSError("lost in the cancellation")

    with ThreadPoolExecutor(1) as executor:
        task = asyncio.create_task(in_thread(executor, blocking))
        await asyncio.to_thread(entered.wait)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()
        assert await in_thread(executor, lambda: 5) == 5
        with pytest.raises(OSError, match="lost"):
            await in_thread(executor, blocking)


def test_scratch_memory_is_reused() -> None:
    scratch = Scratch()
    scratch.reserve(100)
    first, second = scratch.take(60), scratch.take(40)
    first[:] = b"a" * 60
    second[:] = b"b" * 40
    assert bytes(first) == b"a" * 60
    scratch.reserve(50)
    assert bytes(scratch.take(50)) == b"a" * 50
    with pytest.raises(AssertionError):
        scratch.take(60)
