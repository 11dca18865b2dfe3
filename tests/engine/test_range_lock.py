"""Readers share, writers exclude, in order of arrival, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from nvmeof.engine.range_lock import RangeLock, granules
from nvmeof.limits import RANGE_LOCK_GRANULE_SHIFT

GRANULE = 1 << RANGE_LOCK_GRANULE_SHIFT


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 1, [0]),
        (0, GRANULE, [0]),
        (0, GRANULE + 1, [0, 1]),
        (GRANULE - 1, 1, [0]),
        (GRANULE - 1, 2, [0, 1]),
        (3 * GRANULE, 2 * GRANULE, [3, 4]),
    ],
)
def test_granules_cover_the_range(offset: int, length: int, expected: list[int]) -> None:
    assert list(granules(offset, length)) == expected


async def test_readers_share_and_writers_exclude() -> None:
    lock = RangeLock()
    assert lock.readable(0, 1)
    assert lock.writable(0, 1)
    await lock.acquire([0, 1], exclusive=False)
    await lock.acquire([1], exclusive=False)
    assert lock.readable(0, 2 * GRANULE)
    assert not lock.writable(GRANULE, 1)
    assert lock.writable(2 * GRANULE, GRANULE)
    writer = asyncio.create_task(lock.acquire([1], exclusive=True))
    await settle()
    assert not writer.done()
    lock.release([1], exclusive=False)
    await settle()
    assert not writer.done()
    lock.release([0, 1], exclusive=False)
    await writer
    assert not lock.readable(GRANULE - 1, 2)
    assert lock.readable(0, GRANULE)
    lock.release([1], exclusive=True)
    assert not lock.held


async def test_a_writer_is_not_starved_by_readers() -> None:
    lock = RangeLock()
    await lock.acquire([0], exclusive=False)
    writer = asyncio.create_task(lock.acquire([0], exclusive=True))
    await settle()
    late = asyncio.create_task(lock.acquire([0], exclusive=False))
    await settle()
    assert not late.done(), "a reader overtook a waiting writer"
    lock.release([0], exclusive=False)
    await writer
    await settle()
    assert not late.done()
    lock.release([0], exclusive=True)
    await late
    lock.release([0], exclusive=False)
    assert not lock.held


async def test_cancelled_while_waiting_holds_nothing() -> None:
    lock = RangeLock()
    await lock.acquire([2], exclusive=False)
    writer = asyncio.create_task(lock.acquire([0, 1, 2], exclusive=True))
    await settle()
    reader = asyncio.create_task(lock.acquire([2], exclusive=False))
    await settle()
    assert not lock.writable(0, 1)
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    await reader
    assert lock.held == {2: 2}
    lock.release([2], exclusive=False)
    lock.release([2], exclusive=False)
    assert not lock.held
    assert not lock._queues


async def test_cancelled_in_the_moment_of_the_grant_passes_it_on() -> None:
    lock = RangeLock()
    await lock.acquire([0], exclusive=True)
    first = asyncio.create_task(lock.acquire([0], exclusive=True))
    second = asyncio.create_task(lock.acquire([0], exclusive=True))
    await settle()
    lock.release([0], exclusive=True)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    lock.release([0], exclusive=True)
    assert not lock.held
    assert not lock._queues


async def test_cancelled_just_before_the_release_is_passed_over() -> None:
    lock = RangeLock()
    await lock.acquire([0], exclusive=True)
    first = asyncio.create_task(lock.acquire([0], exclusive=True))
    second = asyncio.create_task(lock.acquire([0], exclusive=True))
    await settle()
    first.cancel()
    lock.release([0], exclusive=True)
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    lock.release([0], exclusive=True)
    assert not lock.held
    assert not lock._queues


@pytest.mark.parametrize("seed", range(10))
async def test_any_mixture_excludes_and_ends(seed: int) -> None:
    random = Random(seed)
    lock = RangeLock()
    readers: Counter[int] = Counter()
    writers: Counter[int] = Counter()

    async def use(wanted: range, exclusive: bool, turns: int) -> None:
        await lock.acquire(wanted, exclusive=exclusive)
        try:
            for granule in wanted:
                assert not writers[granule], f"seed {seed}"
                assert not (exclusive and readers[granule]), f"seed {seed}"
                (writers if exclusive else readers)[granule] += 1
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            for granule in wanted:
                (writers if exclusive else readers)[granule] -= 1
            lock.release(wanted, exclusive=exclusive)

    tasks = []
    for _ in range(300):
        start = random.randrange(10)
        wanted = range(start, start + random.randrange(1, 4))
        tasks.append(asyncio.create_task(use(wanted, random.random() < 0.4, random.randrange(4))))
        if random.random() < 0.3:
            random.choice(tasks).cancel()
        if random.random() < 0.5:
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), f"seed {seed}"
    assert not lock.held, f"seed {seed}"
    assert not lock._queues, f"seed {seed}"
