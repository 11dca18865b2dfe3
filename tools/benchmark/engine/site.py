"""A pool on real files, and how commands are put to it."""

from __future__ import annotations

import asyncio
import operator
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nvmeof.engine.disk import FileDisk
from nvmeof.engine.executor import ThreadExecutor
from nvmeof.engine.pool import Pool
from nvmeof.engine.pool_volume import PoolVolume
from nvmeof.keys.sources import KeyFile
from nvmeof.limits import POOL_THREADS

MEMBERS = 6
Request = tuple[int, memoryview]


class Tally(NamedTuple):
    """One run: commands, seconds, seconds of processor time of all threads, and commands that had to wait."""

    commands: int
    seconds: float
    cpu: float
    waited: int

    def __add__(self, other: object) -> Tally:
        assert isinstance(other, Tally)
        return Tally(*map(operator.add, self, other))

    @property
    def us(self) -> float:
        return self.seconds / self.commands * 1e6

    @property
    def cpu_us(self) -> float:
        return self.cpu / self.commands * 1e6


@dataclass
class Site:
    """An open pool, raid6 4+2, encrypted, thick unless said otherwise, with namespace 1."""

    directory: Path
    pool: Pool
    disks: list[FileDisk]
    volume: PoolVolume

    @property
    def stream_bytes(self) -> int:
        """About what fits the segments together."""
        geometry = self.pool.geometry
        return geometry.segments * geometry.segment_bytes * geometry.data

    async def close(self, *, remove: bool = True) -> None:
        await self.pool.close()
        if remove:
            for disk in self.disks:
                disk.path.unlink(missing_ok=True)

    async def crash(self) -> None:
        """Let go of the files as a process that dies does: no commit. What was written but not synced stays."""
        await self.pool.log.drain()
        self.pool.closing = True
        self.pool.wake.set()
        self.pool.executor.close()
        for disk in self.disks:
            disk.close()


async def make(
    directory: Path, member_bytes: int, size: int, *, codec: str = "auto", threads: int = 0,
    thick: bool = True,
) -> Site:  # fmt: skip
    """Create a pool in ``directory`` and open it; ``threads`` 0: as many, and as many packers, as it has by itself."""
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    disks = [FileDisk.open(directory / f"member-{index}", member_bytes) for index in range(MEMBERS)]
    if thick:
        for disk in disks:
            disk.allocate()
    keys = key_file(directory)
    await Pool.create(disks, keys=keys, sparse=not thick)
    pool = await Pool.open(disks, keys=keys, executor=ThreadExecutor(threads or POOL_THREADS, "pool"))
    if threads:
        pool.log.packing = asyncio.Semaphore(threads)
    volume = await pool.create_namespace(size, codec=codec)
    return Site(directory, pool, disks, volume)


async def reopen(directory: Path) -> Site:
    """Open the pool that :func:`make` made there."""
    disks = [FileDisk.open(directory / f"member-{index}") for index in range(MEMBERS)]
    pool = await Pool.open(disks, keys=key_file(directory))
    return Site(directory, pool, disks, pool.namespaces[1])


def key_file(directory: Path) -> KeyFile:
    path = directory / "key"
    if not path.exists():
        path.touch(0o600)
        path.write_bytes(os.urandom(32))
    return KeyFile(path)


async def pump(
    now: Callable[[int, memoryview], bool],
    later: Callable[[int, memoryview], Awaitable[None]],
    requests: Sequence[Request],
    depth: int,
    seconds: float,
    commands: int = 1 << 60,
) -> Tally:
    """Keep ``depth`` commands in flight as a target does: at once where that is possible, else in a task.

    Ends after ``seconds`` or so many ``commands``, when those that wait are done as well.
    """
    waiting: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    done = waited = index = 0
    count = len(requests)
    cpu, started = time.process_time(), time.perf_counter()
    end = started + seconds
    while time.perf_counter() < end and done + waited < commands:
        for _ in range(depth - len(waiting)):
            offset, view = requests[index]
            index = (index + 1) % count
            if now(offset, view):
                done += 1
            else:
                waited += 1
                task = loop.create_task(_finish(later(offset, view)))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
        if len(waiting) == depth:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(0)
    if waiting:
        await asyncio.wait(set(waiting))
    return Tally(done + waited, time.perf_counter() - started, time.process_time() - cpu, waited)


async def _finish(work: Awaitable[None]) -> None:
    await work


async def fill(volume: PoolVolume, data: Sequence[memoryview], first: int, end: int) -> None:
    """Write a range in order, in pieces as long as those of ``data``."""
    block = len(data[0])
    for index, offset in enumerate(range(first, end, block)):
        view = data[index % len(data)]
        if not volume.write_now(offset, view):
            await volume.write(offset, view)
    await volume.flush()
