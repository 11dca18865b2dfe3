"""A pool of format version 1 that was made once, opens and reads right for ever. tools/golden_pool.py made it."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
import zstandard

from nvmeof.engine.executor import InlineExecutor
from nvmeof.engine.pool import Pool
from nvmeof.errors import ReadFault, UsageError
from nvmeof.keys.sources import KeyFile
from nvmeof.testing.pool_disk import MemberDisk
from nvmeof.testing.volume_conformance import read_volume

GOLDEN = Path(__file__).parent / "golden-v1"


def members() -> list[MemberDisk]:
    files = sorted(GOLDEN.glob("member-*.zst"))
    images = [zstandard.decompress(file.read_bytes(), max_output_size=16 << 20) for file in files]
    return [MemberDisk.holding(image, seed=number) for number, image in enumerate(images)]


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    """A checkout may have made the file readable for others."""
    copy = tmp_path / "key"
    copy.write_bytes((GOLDEN / "key").read_bytes())
    copy.chmod(0o600)
    return KeyFile(copy)


async def check(disks: list[MemberDisk], key: KeyFile) -> None:
    expected = json.loads((GOLDEN / "content.json").read_text())
    pool = await Pool.open(disks, keys=key, executor=InlineExecutor())
    try:
        assert str(pool.uuid) == expected["uuid"]
        found = {str(nsid): volume for nsid, volume in pool.namespaces.items()}
        assert found.keys() == expected["namespaces"].keys()
        for nsid, want in expected["namespaces"].items():
            volume = found[nsid]
            assert (volume.size, volume.block_size, str(volume.uuid)) == (
                want["size"],
                want["block_size"],
                want["uuid"],
            )
            for block, digest in enumerate(want["blocks"]):
                try:
                    data = await read_volume(volume, block * volume.block_size, volume.block_size)
                    assert hashlib.sha256(data).hexdigest()[:16] == digest, f"namespace {nsid}, block {block}"
                except ReadFault:
                    assert digest == "uncorrectable"
    finally:
        await pool.close()


async def test_it_reads_right(key: KeyFile) -> None:
    await check(members(), key)


async def test_it_reads_right_after_this_release_has_written_to_it(key: KeyFile) -> None:
    disks = members()
    await check(disks, key)
    pool = await Pool.open([disk.reopen() for disk in disks], keys=key, executor=InlineExecutor())
    report = await pool.scrub()
    assert not report.bad
    assert not report.lost
    await pool.close()
    await check([disk.reopen() for disk in disks], key)  # type: ignore[misc]


async def test_it_reads_right_without_any_two_members(key: KeyFile, rng: Random) -> None:
    for gone in rng.sample(list(combinations(range(len(members())), 2)), 2):
        await check([disk for number, disk in enumerate(members()) if number not in gone], key)


async def test_it_is_refused_without_its_key() -> None:
    with pytest.raises(UsageError):
        await Pool.open(members(), executor=InlineExecutor())
