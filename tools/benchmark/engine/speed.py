"""Throughput of a pool beside the limit, in turns."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nvmeof.codec.packer import Packer
from tools.benchmark.engine.data import pieces
from tools.benchmark.engine.limit import Files, ReadLimit, Steps, WriteLimit, sync_latency
from tools.benchmark.engine.site import Request, Site, Tally, fill, make, pump
from tools.benchmark.workload import KIB, MIB

THREADS = (1, 2, 4)
REQUESTS = 1 << 15
BURST_BYTES = 160 * MIB
"""Written without a commit of the map, and so without a sync, which would measure the device; commits come between such
bursts and are not counted. ``-sustained`` counts them."""


class Case(NamedTuple):
    """One workload. ``wanted`` is a share of the limit, ``wanted_rate`` commands a second; 0: nothing is asked."""

    name: str
    write: bool
    block: int
    depth: int
    kind: str
    codec: str
    wanted: float
    wanted_rate: float = 0.0
    fresh: bool = False
    sustained: bool = False

    @property
    def packer(self) -> Packer:
        return Packer(self.codec)


CASES = (
    Case("1m-write-random", True, MIB, 8, "random", "auto", 0.70),
    Case("1m-write-bf16", True, MIB, 8, "bf16", "zstd", 0.85),
    Case("1m-read-random", False, MIB, 8, "random", "auto", 0.70),
    Case("1m-read-bf16", False, MIB, 8, "bf16", "zstd", 0.70),
    Case("4k-randwrite", True, 4 * KIB, 32, "random", "auto", 0.0, 60_000),
    Case("4k-randread", False, 4 * KIB, 32, "random", "auto", 0.0, 80_000),
    Case("1m-write-random-fresh", True, MIB, 8, "random", "auto", 0.70, fresh=True),
    Case("1m-write-bf16-fresh", True, MIB, 8, "bf16", "zstd", 0.85, fresh=True),
    Case("1m-write-random-sustained", True, MIB, 8, "random", "auto", 0.0, sustained=True),
    Case("4k-randwrite-sustained", True, 4 * KIB, 32, "random", "auto", 0.0, sustained=True),
)


@dataclass
class Measured:
    """A case's rounds: ours, and the steps of the limit, by turns."""

    case: Case
    ours: list[Tally] = field(default_factory=list)
    steps: list[Steps] = field(default_factory=list)
    threads: dict[int, list[Tally]] = field(default_factory=dict)

    @property
    def of_limit(self) -> float:
        """Limit over our time, median of the rounds."""
        return statistics.median(sum(b.values()) / a.us for a, b in zip(self.ours, self.steps, strict=True))

    @property
    def of_limit_cpu(self) -> float:
        """Limit over our processor time of all threads: what one core would reach."""
        return statistics.median(sum(b.values()) / a.cpu_us for a, b in zip(self.ours, self.steps, strict=True))

    @property
    def rate(self) -> float:
        return statistics.median(tally.commands / tally.seconds for tally in self.ours)

    def to_json(self) -> dict[str, Any]:
        names = self.steps[0]
        steps = {name: statistics.median(each[name] for each in self.steps) for name in names}
        return {
            "workload": self.case.name,
            "per_second": self.rate,
            "mb_s": self.rate * self.case.block / 1e6,
            "us": statistics.median(tally.us for tally in self.ours),
            "cpu_us": statistics.median(tally.cpu_us for tally in self.ours),
            "waited": statistics.median(tally.waited / tally.commands for tally in self.ours),
            "limit_us": statistics.median(sum(each.values()) for each in self.steps),
            "limit_steps_us": steps,
            "of_limit": self.of_limit,
            "of_limit_cpu": self.of_limit_cpu,
            "wanted_of_limit": self.case.wanted or None,
            "wanted_per_second": self.case.wanted_rate or None,
            "rounds_us": [tally.us for tally in self.ours],
            "rounds_limit_us": [sum(each.values()) for each in self.steps],
        }


@dataclass(frozen=True)
class Settings:
    """How long, how often, how large, where. ``seconds`` is of one run, ``member_bytes`` of each of the six files."""

    directory: Path
    seconds: float = 0.5
    repeats: int = 5
    member_bytes: int = 256 * MIB
    only: str = ""
    progress: Callable[[str], None] = lambda text: None

    @property
    def size(self) -> int:
        """Of the namespace: an eighth of what the pool holds, so that segments come back by themselves."""
        return max(MIB, self.member_bytes // 2 // MIB * MIB)


def requests(case: Case, size: int) -> list[Request]:
    """Commands over the whole namespace, in order for large blocks, at random for small ones."""
    data = pieces(case.kind)
    if not case.write:
        views = [memoryview(bytearray(case.block)) for _ in range(2 * case.depth)]
    else:
        views = [view[at : at + case.block] for at in range(0, MIB, case.block) for view in data]
    blocks = size // case.block
    if case.block >= MIB:
        return [(index * case.block, views[index % len(views)]) for index in range(blocks)]
    source = random.Random(case.block)
    return [(source.randrange(blocks) * case.block, views[index % len(views)]) for index in range(REQUESTS)]


async def measure(settings: Settings) -> list[Measured]:
    """All cases but the fresh ones on pools that were used before; those each on new files."""
    cases = [case for case in CASES if settings.only in case.name]
    found = [Measured(case) for case in cases]
    await _recycled([each for each in found if not each.case.fresh], settings)
    for number in range(settings.repeats):
        for each in found:
            if each.case.fresh:
                settings.progress(f"{each.case.name}, round {number + 1}")
                await _fresh(each, settings)
    return found


async def used_site(settings: Settings, name: str, codec: str, kind: str, threads: int = 0) -> Site:
    """A pool whose every segment was written once; the namespace is full."""
    site = await make(settings.directory / name, settings.member_bytes, settings.size, codec=codec, threads=threads)
    data = pieces("random")
    for _ in range(-(-site.stream_bytes // settings.size)):
        await fill(site.volume, data, 0, settings.size)
    await fill(site.volume, pieces(kind), 0, settings.size)
    await site.pool.commit()
    return site


async def _recycled(found: list[Measured], settings: Settings) -> None:
    if not found:
        return
    settings.progress("using every segment once")
    files = Files(settings.directory / "limit", settings.member_bytes)
    files.use_all()
    sites: dict[str, Site] = {}
    for case in (each.case for each in found):
        if case.codec not in sites:
            sites[case.codec] = await used_site(settings, case.codec, case.codec, case.kind)
    for number in range(settings.repeats):
        for each in found:
            settings.progress(f"{each.case.name}, round {number + 1}")
            await _round(each, sites[each.case.codec], files, settings)
    for site in sites.values():
        await site.close()
    files.remove()


async def _round(each: Measured, site: Site, files: Files, settings: Settings) -> None:
    case, volume = each.case, site.volume
    if not case.write and case.block < MIB:
        small = [view[at : at + case.block] for view in pieces(case.kind) for at in range(0, MIB, case.block)]
        await fill(volume, small, 0, settings.size)
    elif not case.write:
        await fill(volume, pieces(case.kind), 0, settings.size)
    await site.pool.commit()
    each.ours.append(await run(case, site, settings))
    await site.pool.commit()
    each.steps.append(limit_in_bursts(case, files, settings))


def limit_of(case: Case, files: Files, settings: Settings) -> WriteLimit | ReadLimit:
    data = pieces(case.kind)
    if case.write:
        return WriteLimit(files, data, case.block, case.packer)
    return ReadLimit(files, data, case.block, case.packer, settings.size)


def limit_in_bursts(case: Case, files: Files, settings: Settings) -> Steps:
    """As :func:`run`: with syncs in between that are not counted."""
    limit = limit_of(case, files, settings)
    found: list[Steps] = []
    end = time.perf_counter() + settings.seconds
    while not found or time.perf_counter() < end:
        files.sync()
        found.append(limit.run(settings.seconds, burst(case, settings)))
    return {name: statistics.fmean(each[name] for each in found) for name in found[0]}


def burst(case: Case, settings: Settings) -> int:
    """Commands."""
    return max(case.depth, min(BURST_BYTES, settings.size) // case.block)


async def run(case: Case, site: Site, settings: Settings) -> Tally:
    """For ``settings.seconds``, in bursts unless ``sustained``."""
    volume = site.volume
    now, later = (volume.write_now, volume.write) if case.write else (volume.read_now, volume.read)
    wanted = requests(case, settings.size)
    if case.sustained or not case.write:
        return await pump(now, later, wanted, case.depth, settings.seconds)
    commands = burst(case, settings)
    total = Tally(0, 0.0, 0.0, 0)
    while total.seconds < settings.seconds:
        await site.pool.commit()
        total += await pump(now, later, wanted, case.depth, settings.seconds, commands)
    return total


async def _fresh(each: Measured, settings: Settings) -> None:
    """Pages of the page cache and extents of the file that nothing was written to before."""
    site = await make(settings.directory / "fresh", settings.member_bytes, settings.size, codec=each.case.codec)
    volume, case = site.volume, each.case
    wanted, commands = requests(case, settings.size), burst(case, settings)
    tally = await pump(volume.write_now, volume.write, wanted, case.depth, 60.0, commands)
    await site.close()
    files = Files(settings.directory / "fresh", settings.member_bytes)
    steps = limit_of(case, files, settings).run(60.0, commands)
    files.remove()
    each.ours.append(tally)
    each.steps.append(steps)


async def measure_threads(settings: Settings) -> dict[str, dict[int, float]]:
    """Commands a second by number of threads of the pool, medians of interleaved rounds."""
    cases = [case for case in CASES if not (case.fresh or case.sustained) and settings.only in case.name]
    rates: dict[str, dict[int, list[float]]] = {case.name: {count: [] for count in THREADS} for case in cases}
    for codec in sorted({case.codec for case in cases}):
        mine = [case for case in cases if case.codec == codec]
        sites = {}
        for count in THREADS:
            settings.progress(f"using every segment once, {count} threads, {codec}")
            sites[count] = await used_site(settings, f"threads-{count}", codec, mine[0].kind, count)
        for number in range(settings.repeats):
            for case in mine:
                for count, site in sites.items():
                    settings.progress(f"{case.name}, {count} threads, round {number + 1}")
                    await site.pool.commit()
                    tally = await run(case, site, settings)
                    rates[case.name][count].append(tally.commands / tally.seconds)
        for site in sites.values():
            await site.close()
    return {name: {count: statistics.median(each) for count, each in by.items()} for name, by in rates.items()}


# --- flush ------------------------------------------------------------------------------------------------------------


async def measure_fua(settings: Settings) -> dict[str, Any]:
    """4 KiB writes each followed by a flush, one at a time and 32 at a time, and the members' fdatasync beside them."""
    site = await used_site(settings, "fua", "auto", "random")
    files = Files(settings.directory / "limit", settings.member_bytes)
    files.use_all()
    view = pieces("random")[0][: 4 * KIB]
    rows: dict[str, Any] = {}
    limit: list[float] = []
    one: list[tuple[float, float]] = []
    many: list[tuple[float, float]] = []
    for number in range(settings.repeats):
        settings.progress(f"4 KiB FUA, round {number + 1}")
        count = max(4, int(100 * settings.seconds))
        limit.append(statistics.median(sync_latency(files, count)))
        one.append(await _fua(site, view, 1, count))
        many.append(await _fua(site, view, 32, 2 * count))
    base = statistics.median(limit)
    for depth, found in ((1, one), (32, many)):
        us = statistics.median(latency for latency, _ in found)
        rows[f"depth_{depth}"] = {
            "latency_us": us * 1e6,
            "syncs_per_fua": statistics.median(syncs for _, syncs in found),
            "of_limit": statistics.median(b / a for (a, _), b in zip(found, limit, strict=True)),
        }
    await site.close()
    files.remove()
    return {"fdatasync_us": base * 1e6, **rows}


async def _fua(site: Site, view: memoryview, depth: int, count: int) -> tuple[float, float]:
    """Median latency in seconds, and syncs a command."""
    volume, log = site.volume, site.pool.log
    latencies: list[float] = []

    async def worker(first: int) -> None:
        for index in range(first, first + max(1, count // depth)):
            begin = time.perf_counter()
            offset = index * 7919 % (volume.size >> 12) << 12
            if not volume.write_now(offset, view):
                await volume.write(offset, view)
            await volume.flush()
            latencies.append(time.perf_counter() - begin)

    before = log.syncs
    await asyncio.gather(*(worker(number * count) for number in range(depth)))
    return statistics.median(latencies), (log.syncs - before) / len(latencies)


def ratios(rates: dict[int, float]) -> dict[str, float]:
    """Each number of threads over one."""
    return {f"{count}_over_1": rates[count] / rates[1] for count in rates if count != 1}


def medians(values: Sequence[float]) -> float:
    return statistics.median(values)
