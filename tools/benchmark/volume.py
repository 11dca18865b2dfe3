"""What a file volume costs beside the system calls it makes, and how long the page cache makes a write wait.

These are the figures behind the constants of nvmeof/limits.py for file volumes: WRITE_STALL_SECONDS, VOLUME_THREADS,
CLEAR_BYTES_MAX.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nvmeof.engine.disk import FileDisk
from nvmeof.engine.file_volume import FileVolume
from nvmeof.limits import WRITE_STALL_SECONDS, WRITE_STALL_THREAD_SECONDS
from tools.benchmark.workload import KIB, MIB

SIZES = {"4k": 4 * KIB, "128k": 128 * KIB, "1m": MIB}
DEPTH = 32
HOLE_BYTES = 1 << 40
PUNCHED_BYTES = 256 * MIB
SYNC_PAUSE_SECONDS = 0.005


@dataclass(frozen=True)
class Settings:
    """How long, how often, and on how large a file."""

    seconds: float = 0.5
    repeats: int = 5
    size: int = 256 * MIB
    progress: Callable[[str], None] = lambda text: None


def measure(directory: Path | None, settings: Settings) -> dict[str, Any]:
    """Everything, in a directory below ``directory`` that is removed."""
    import uvloop

    with (
        tempfile.TemporaryDirectory(prefix="nvmeof-bench-", dir=directory) as scratch,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        found = runner.run(_volume(Path(scratch), settings))
        for sync in (False, True):
            settings.progress(f"stalls, {'beside a busy fdatasync' if sync else 'alone'}")
            name = "stalls_beside_fdatasync" if sync else "stalls"
            found[name] = {
                key: stalls(Path(scratch) / "stall.img", size, sync, settings) for key, size in SIZES.items()
            }
    return found


async def _volume(scratch: Path, settings: Settings) -> dict[str, Any]:
    volume = await FileVolume.open(scratch / "volume.img", settings.size)
    data = memoryview(bytearray(os.urandom(MIB)))
    for offset in range(0, settings.size, MIB):
        await volume.write(offset, data)
    await volume.flush()
    settings.progress("calls")
    found: dict[str, Any] = {"calls_us": {name: _calls(volume, data[:size], settings) for name, size in SIZES.items()}}
    settings.progress("hops")
    found["hop_us"] = await _hops(volume, settings)
    await volume.close()
    settings.progress("clearing")
    found["clear"] = await _clear(scratch, data)
    return found


def _calls(volume: FileVolume, view: memoryview, settings: Settings) -> dict[str, float]:
    """The volume's methods beside the system call, microseconds; interleaved, medians."""
    disk = volume._disk
    assert isinstance(disk, FileDisk)
    descriptor = disk._fd

    def write_now() -> None:
        volume._write_on_loop = True
        volume.write_now(4096, view)

    kinds: dict[str, Callable[[], object]] = {
        "preadv": lambda: os.preadv(descriptor, (view,), 4096, os.RWF_NOWAIT),
        "read_now": lambda: volume.read_now(4096, view),
        "pwrite": lambda: os.pwrite(descriptor, view, 4096),
        "write_now": write_now,
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(settings.repeats):
        for name, call in kinds.items():
            found[name].append(_timed(call, settings.seconds / 4))
    return {name: statistics.median(each) for name, each in found.items()}


def _timed(call: Callable[[], object], seconds: float) -> float:
    done = 0
    begin = now = time.perf_counter()
    while now < begin + seconds:
        for _ in range(8):
            call()
        done += 8
        now = time.perf_counter()
    return 1e6 * (now - begin) / done


async def _hops(volume: FileVolume, settings: Settings) -> dict[str, float]:
    """4 KiB reads through a thread, one at a time and 32 at a time: microseconds of each."""
    found: dict[str, float] = {}
    for depth in (1, DEPTH):
        rates = []
        for _ in range(settings.repeats):
            views = [memoryview(bytearray(4 * KIB)) for _ in range(depth)]
            done = 0
            begin = now = time.perf_counter()
            while now < begin + settings.seconds:
                await asyncio.gather(*(volume.read(0, view) for view in views))
                done += depth
                now = time.perf_counter()
            rates.append(1e6 * (now - begin) / done)
        found[f"depth_{depth}"] = statistics.median(rates)
    return found


async def _clear(scratch: Path, data: memoryview) -> dict[str, float]:
    """Seconds to deallocate 256 MiB of cached data, and a TiB of hole."""
    volume = await FileVolume.open(scratch / "clear.img", HOLE_BYTES)
    for offset in range(0, PUNCHED_BYTES, MIB):
        await volume.write(offset, data)
    begin = time.perf_counter()
    await volume.deallocate([(0, PUNCHED_BYTES)])
    punched = time.perf_counter()
    await volume.deallocate([(0, HOLE_BYTES)])
    end = time.perf_counter()
    await volume.close()
    return {"punch_256m_seconds": punched - begin, "hole_1t_seconds": end - punched}


def stalls(path: Path, block: int, sync: bool, settings: Settings) -> dict[str, float]:
    """Times of pwrite at random places, with and without a thread that syncs: microseconds, and how many were long."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(descriptor, settings.size)
    stop = threading.Event()

    def synchronize() -> None:
        while not stop.wait(SYNC_PAUSE_SECONDS):
            os.fdatasync(descriptor)

    other = threading.Thread(target=synchronize)
    if sync:
        other.start()
    data, source = os.urandom(block), random.Random(1)
    times: list[float] = []
    end = time.perf_counter() + settings.seconds * settings.repeats
    while not times or time.perf_counter() < end:
        offset = source.randrange(settings.size // block) * block
        begin = time.perf_counter()
        os.pwrite(descriptor, data, offset)
        times.append(time.perf_counter() - begin)
    stop.set()
    if sync:
        other.join()
    os.close(descriptor)
    path.unlink()
    times.sort()
    count = len(times)
    return {
        "writes": count,
        "p50_us": times[count // 2] * 1e6,
        "p99_us": times[count * 99 // 100] * 1e6,
        "p999_us": times[count * 999 // 1000] * 1e6,
        "max_us": times[-1] * 1e6,
        "over_stall": sum(each > WRITE_STALL_SECONDS for each in times),
        "over_thread_stall": sum(each > WRITE_STALL_THREAD_SECONDS for each in times),
    }


def print_found(console: Console, found: dict[str, Any]) -> None:
    """A line for each figure."""
    for name, part in found.items():
        console.print(name, style="bold")
        for key, value in part.items():
            inner = value if isinstance(value, dict) else {"": value}
            text = ", ".join(f"{label} {each:,.4g}".strip() for label, each in inner.items())
            console.print(f"  {key}: {text}", highlight=False)
