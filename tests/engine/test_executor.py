"""Executors: what work returns or raises; inline is in order and at once, threads are others; cancellation waits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from nvmeof.engine.executor import Executor, InlineExecutor, ThreadExecutor, finished


def fails(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize("make", [InlineExecutor, lambda: ThreadExecutor(2, "test")], ids=["inline", "threads"])
async def test_results_and_errors(make: type[InlineExecutor]) -> None:
    executor: Executor = make()
    assert await executor.run(divmod, 17, 5) == (3, 2)
    with pytest.raises(ValueError, match="it does"):
        await executor.run(fails, "it does")
    assert await executor.run(list) == []
    executor.close()


async def test_inline_is_here_and_in_order() -> None:
    executor = InlineExecutor()
    seen: list[int] = []
    await asyncio.gather(*(executor.run(seen.append, number) for number in range(20)))
    assert seen == list(range(20))
    assert await executor.run(threading.get_ident) == threading.get_ident()
    executor.close()
    assert await executor.run(len, "abc") == 3


async def test_threads_are_not_the_loops_and_run_side_by_side() -> None:
    executor = ThreadExecutor(2, "side-by-side")
    barrier = threading.Barrier(2, timeout=10)

    def meet() -> str:
        barrier.wait()
        return threading.current_thread().name

    names = await asyncio.gather(executor.run(meet), executor.run(meet))
    assert len(set(names)) == 2
    assert all(name.startswith("side-by-side") for name in names)
    executor.close()
    with pytest.raises(RuntimeError):
        await executor.run(len, "abc")


async def test_closing_waits_for_what_runs() -> None:
    executor = ThreadExecutor(1, "closing")
    entered, done = threading.Event(), []

    def work() -> None:
        entered.set()
        done.append(1)

    task = asyncio.ensure_future(executor.run(work))
    await asyncio.to_thread(entered.wait, 10)
    executor.close()
    assert done == [1]
    await task


async def test_finished_gives_the_result_or_the_error() -> None:
    async def work(value: int) -> int:
        await asyncio.sleep(0)
        if value < 0:
            raise ValueError("negative")
        return value

    assert await finished(work(5)) == 5
    with pytest.raises(ValueError, match="negative"):
        await finished(work(-1))


@pytest.mark.parametrize("failing", [False, True])
async def test_who_is_cancelled_waits_for_the_end(failing: bool) -> None:
    gate, ended = asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        ended.append(1)
        if failing:
            raise ValueError("nobody hears it")

    caller = asyncio.ensure_future(finished(work()))
    await asyncio.sleep(0)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done(), "left while its work went on"
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended == [1]


async def test_work_that_is_cancelled_itself() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await finished(work())
