"""Memory of a pool by blocks written. Run as a module, in a process of its own: DIRECTORY GIB, prints JSON."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import uvloop

from tools.benchmark.engine.site import fill, make
from tools.benchmark.workload import MIB

ROOT = Path(__file__).resolve().parents[3]
UNWRITTEN = 1 << 40


def resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def measure(directory: Path, mib: int) -> dict[str, Any]:
    """Data that compress well, so that many blocks take little space; a part first, some times: what is fixed."""
    size = mib * MIB
    before = resident()
    site = await make(directory, 256 * MIB, size, codec="auto")
    opened = resident()
    text = [memoryview(bytes([number]) * MIB) for number in range(8)]
    part = size // 8
    for _ in range(3):
        await fill(site.volume, text, 0, part)
        await site.pool.commit()
    after_part = resident()
    await fill(site.volume, text, part, size)
    await site.pool.commit()
    after_all = resident()
    await site.pool.create_namespace(UNWRITTEN, nsid=2)
    unwritten = resident() - after_all
    blocks = (size - part) >> 12
    written = site.volume.map.used()
    await site.close()
    per_block = (after_all - after_part) / blocks
    return {
        "blocks": written,
        "bytes_per_block": per_block,
        "fixed_mib": (after_all - before - per_block * written) / MIB,
        "opened_mib": (opened - before) / MIB,
        "unwritten_tib_mib": unwritten / MIB,
        "resident_mib": after_all / MIB,
    }


def measure_apart(directory: Path, mib: int) -> dict[str, Any]:
    """:func:`measure` in a new process."""
    command = [sys.executable, "-m", __name__, str(directory), str(mib)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(Path(sys.argv[1]), int(sys.argv[2])))))
