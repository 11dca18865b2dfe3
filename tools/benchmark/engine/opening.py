"""How long opening takes: after a crash, by the length of the log's tail, and of a pool that was closed."""

from __future__ import annotations

import os
import random
import statistics
import time
from typing import Any

from tools.benchmark.engine.data import pieces
from tools.benchmark.engine.site import MEMBERS, Site, fill, make, reopen
from tools.benchmark.engine.speed import Settings
from tools.benchmark.workload import KIB, MIB

TAIL_BYTES_MAX = 224 * MIB
"""Below POOL_COMMIT_BYTES, at which the map is committed and the tail begins anew."""

LARGE = 64
"""Times the usual namespace: 8 GiB, 4,096 map pages."""


async def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of Pool.open, with the members' files in the page cache and not."""
    rows: dict[str, Any] = {}
    tail = min(TAIL_BYTES_MAX, settings.size)
    for name, block in (("1m", MIB), ("4k", 4 * KIB)):
        settings.progress(f"opening after a crash, {name} writes")
        site = await _written(settings, name)
        await site.pool.commit()
        await _append(site, block, tail)
        await site.volume.flush()
        await site.crash()
        rows[f"crash_{name}"] = await _rounds(settings, name, crash=True)
    for name, times in (("clean", 1), ("clean_large_map", LARGE)):
        settings.progress(f"opening, {name}")
        site = await _written(settings, name, times)
        await site.close(remove=False)
        rows[name] = await _rounds(settings, name, crash=False)
    for path in settings.directory.glob("open-*/member-*"):
        path.unlink()
    return rows


async def _written(settings: Settings, name: str, times: int = 1) -> Site:
    """A pool in which the namespace is full; with one so many times larger, of data that compress well."""
    directory = settings.directory / f"open-{name}"
    for path in directory.glob("member-*"):
        path.unlink()
    site = await make(directory, settings.member_bytes, settings.size * times)
    data = pieces("random") if times == 1 else [memoryview(bytes([number]) * MIB) for number in range(8)]
    await fill(site.volume, data, 0, site.volume.size)
    return site


async def _append(site: Site, block: int, total: int) -> None:
    volume = site.volume
    source = random.Random(1)
    data = pieces("random")[0]
    for _ in range(total // block):
        view = data[:block] if block == MIB else data[(at := source.randrange(256) * block) : at + block]
        offset = source.randrange(volume.size // block) * block
        if not volume.write_now(offset, view):
            await volume.write(offset, view)


async def _rounds(settings: Settings, name: str, *, crash: bool) -> dict[str, Any]:
    """The same crash is opened again and again: the files are put back as they were."""
    directory = settings.directory / f"open-{name}"
    warm: list[float] = []
    cold: list[float] = []
    report: dict[str, Any] = {}
    pages = 0
    areas = _areas(settings, name)
    for number in range(settings.repeats):
        for seconds, cached in ((warm, True), (cold, False)):
            _put_back(settings, name, areas)
            _cache(settings, name, cached)
            begin = time.perf_counter()
            site = await reopen(directory)
            seconds.append(time.perf_counter() - begin)
            report = site.pool.opened.to_json()
            pages = site.volume.map.pages
            assert report["clean"] is not crash, (number, report)
            await site.crash()
    tail = report["rolled_forward_bytes"] * 4 / MEMBERS
    result: dict[str, Any] = {
        "seconds": statistics.median(warm),
        "seconds_uncached": statistics.median(cold),
        "tail_mib": tail / MIB,
        "stripes": report["rolled_forward_stripes"],
        "map_pages": pages,
    }
    for key, value in (("seconds_per_gib", warm), ("seconds_per_gib_uncached", cold)):
        result[key] = statistics.median(value) * (1 << 30) / tail if crash else None
    return result


def _areas(settings: Settings, name: str) -> list[list[bytes]]:
    """Head and tail areas of the members: what an opening overwrites, but for new segments."""
    return [
        [path.read_bytes()[: 128 * KIB], path.read_bytes()[-128 * KIB :]]
        for path in sorted((settings.directory / f"open-{name}").glob("member-*"))
    ]


def _put_back(settings: Settings, name: str, areas: list[list[bytes]]) -> None:
    for path, (head, tail) in zip(sorted((settings.directory / f"open-{name}").glob("member-*")), areas, strict=True):
        with path.open("r+b") as file:
            file.write(head)
            file.seek(-len(tail), os.SEEK_END)
            file.write(tail)


def _cache(settings: Settings, name: str, cached: bool) -> None:
    """Have the files in the page cache, or not."""
    for path in (settings.directory / f"open-{name}").glob("member-*"):
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.fsync(descriptor)
            if not cached:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while os.read(descriptor, 8 * MIB):
                    pass
        finally:
            os.close(descriptor)
