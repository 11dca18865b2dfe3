"""Bytes on the members for bytes written, before and after the cleaner."""

from __future__ import annotations

from typing import Any

from tools.benchmark.engine.data import pieces
from tools.benchmark.engine.site import Site, make
from tools.benchmark.engine.speed import Settings
from tools.benchmark.workload import KIB, MIB


async def measure(settings: Settings) -> dict[str, Any]:
    """64 KiB in order, and 4 KiB each followed by a flush; 1.5 is the parity's own share."""
    return {
        "64k-sequential": await _case(settings, 64 * KIB, settings.size // (64 * KIB), flush=False),
        "4k-flushed": await _case(settings, 4 * KIB, min(settings.size, 16 * MIB) // (4 * KIB), flush=True),
    }


async def _case(settings: Settings, block: int, count: int, *, flush: bool) -> dict[str, Any]:
    settings.progress(f"space, {count} writes of {block} bytes")
    site = await make(settings.directory / "space", settings.member_bytes, settings.size)
    volume = site.volume
    data = pieces("random")
    await site.pool.commit()
    before = occupied(site)
    for index in range(count):
        view = data[index % len(data)][index * block % MIB :][:block]
        if not volume.write_now(index * block, view):
            await volume.write(index * block, view)
        if flush:
            await volume.flush()
    await site.pool.commit()
    used = occupied(site) - before
    await clean(site)
    cleaned = occupied(site) - before
    await site.close()
    total = count * block
    return {"bytes": total, "overhead": used / total, "overhead_cleaned": cleaned / total}


def occupied(site: Site) -> int:
    """Bytes of stripes in segments that are not free, on all members."""
    segments = site.pool.segments
    return sum(
        place.pages * 4096 * site.pool.geometry.width
        for number in segments.starts
        if segments.generation[number]
        for place in segments.stripes(number)
    )


async def clean(site: Site) -> None:
    """Let the cleaner have its way until it gains nothing."""
    cleaner = site.pool.cleaner
    await site.pool.commit()
    while True:
        free, moved = len(site.pool.segments.free), cleaner.moved
        await cleaner._round()
        if len(site.pool.segments.free) <= free or cleaner.moved == moved:
            return
