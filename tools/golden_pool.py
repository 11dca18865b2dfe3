"""Makes the golden members of tests/engine/pool: a pool with something of everything in the format of today.

    PYTHONPATH=. python tools/golden_pool.py tests/engine/pool/golden-v1

Run once for each format version, never again: the test is that what it made then still opens. Refuses to overwrite.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import zstandard

from nvmeof.errors import ReadFault
from nvmeof.keys.sources import KeyFile
from nvmeof.testing.pool_driver import Driver, Shape
from nvmeof.testing.volume_conformance import read_volume

SHAPE = Shape(segments=16, encrypted=True)


async def fill(driver: Driver) -> None:
    """Namespaces of every codec, encrypted and not, of both block sizes; holes, marks, a short log behind the root."""
    settings: list[dict[str, Any]] = [
        {"codec": "auto"},
        {"codec": "zstd", "level": 3, "planes": 2},
        {"codec": "lz4", "encrypted": False},
        {"codec": "deflate", "block_size": 512},
        {"codec": "none", "encrypted": False, "write_cache": False},
    ]
    for nsid, setting in enumerate(settings, 1):
        await driver.add(40, nsid=nsid, **setting)
        for version in range(6):
            await driver.write(version * 5, 5, nsid)
        await driver.write(3, 1, nsid)
        await driver.trim([(8, 8)], nsid)
    await driver.mark(33, 2)
    await driver.resize(2000, 2)
    await driver.write(1990, 10, 2)
    await driver.add(8, nsid=9)
    await driver.write(0, 8, 9)
    await driver.delete(9)
    await driver.commit()
    for nsid in range(1, 6):
        await driver.write(6, 4, nsid)
    await driver.flush_pool()


async def digests(driver: Driver) -> dict[str, Any]:
    """What must be read for ever."""
    namespaces = {}
    for nsid, volume in sorted(driver.pool.namespaces.items()):
        size = volume.block_size
        blocks = []
        for at in range(0, volume.size, size):
            try:
                blocks.append(hashlib.sha256(await read_volume(volume, at, size)).hexdigest()[:16])
            except ReadFault:
                blocks.append("uncorrectable")
        namespaces[nsid] = {"size": volume.size, "block_size": size, "uuid": str(volume.uuid), "blocks": blocks}
    return {"uuid": str(driver.pool.uuid), "namespaces": namespaces}


async def make(directory: Path) -> None:
    """Members, key and content."""
    driver = Driver(SHAPE, Random(1), SHAPE.disks(), keys=[KeyFile.create(directory / "key")])
    await driver.create()
    await fill(driver)
    await driver.look()
    (directory / "content.json").write_text(json.dumps(await digests(driver), indent=0) + "\n")
    for number, disk in enumerate(driver.disks):
        disk.sync()
        image = zstandard.compress(disk.media(), 19)
        (directory / f"member-{number}.zst").write_bytes(image)
        print(f"{directory}/member-{number}.zst: {len(image)} bytes")
    await driver.close()


if __name__ == "__main__":
    golden = Path(sys.argv[1])
    golden.mkdir()
    asyncio.run(make(golden))
