"""Members that somebody has changed: the pool opens, or is refused with a clear error; nothing else (proof 7)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from random import Random

import pytest

from nvmeof.engine.executor import InlineExecutor
from nvmeof.engine.pool import Pool
from nvmeof.engine.volume import Volume
from nvmeof.errors import ReadFault, UsageError, VolumeError
from nvmeof.keys.sources import KeySource
from nvmeof.testing.pool_disk import MemberDisk
from nvmeof.testing.pool_driver import FixedKey
from nvmeof.testing.pool_mutants import BLIND, FORGED, Images, Mutation
from nvmeof.testing.pool_oracle import is_a_block
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .images import closed_pool

SECONDS_MAX = 20.0
BYTES_READ_MAX = 4 << 20


async def use(volume: Volume, *, genuine: bool) -> None:
    """Read it, write to it. Raises VolumeError at most."""
    step = max(volume.block_size, 4096)
    for offset in range(0, min(volume.size, BYTES_READ_MAX), step):
        length = min(step, volume.size - offset)
        with suppress(ReadFault):
            data = await read_volume(volume, offset, length)
            blocks = range(0, length, volume.block_size)
            if genuine:
                assert all(is_a_block(data[at : at + volume.block_size]) for at in blocks), f"garbage at {offset}"
    with suppress(VolumeError):
        await write_volume(volume, 0, bytes(volume.block_size))
        await volume.flush()
        await volume.deallocate([(0, volume.size)])
        await volume.flush()


def clear(text: str) -> str:
    assert text
    assert "\n" not in text
    return text


async def try_images(images: Images, keys: KeySource | None, *, genuine: bool) -> str:
    """Open and use what is there; what it was refused with, or nothing."""
    disks = [MemberDisk.holding(image, seed=number) for number, image in enumerate(images)]
    try:
        pool = await Pool.open(disks, keys=keys, executor=InlineExecutor())
    except (UsageError, VolumeError) as error:
        return clear(str(error))
    try:
        for volume in list(pool.namespaces.values()):
            await use(volume, genuine=genuine)
        with suppress(VolumeError, UsageError):  # one may be running already
            await pool.scrub()
        assert pool.status().to_json()
    finally:
        with suppress(VolumeError):
            await pool.close()
    return ""


async def try_seeds(mutations: Sequence[Mutation], seeds: range, *, genuine: bool) -> tuple[int, int]:
    opened = refused = 0
    pools = [await closed_pool(encrypted) for encrypted in (False, True)]
    for seed in seeds:
        random = Random(seed)
        mutate = mutations[seed % len(mutations)]
        encrypted = seed // len(mutations) % 2
        images = [bytearray(image) for image in pools[encrypted]]
        mutate(images, random)
        hint = f"{mutate.__name__}, seed {seed}, encrypted {encrypted}"
        try:
            async with asyncio.timeout(SECONDS_MAX):
                text = await try_images(images, FixedKey(1) if encrypted else None, genuine=genuine)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}; {hint}") from error
        opened, refused = opened + (not text), refused + bool(text)
    return opened, refused


@pytest.mark.parametrize("count", [15, pytest.param(1000, marks=pytest.mark.slow)])
async def test_blind_changes(count: int, rng: Random) -> None:
    start = rng.randrange(1 << 20)
    opened, refused = await try_seeds(BLIND, range(start, start + count), genuine=True)
    assert opened
    assert refused


@pytest.mark.parametrize("count", [21, pytest.param(2000, marks=pytest.mark.slow)])
async def test_changes_with_right_checksums(count: int, rng: Random) -> None:
    start = rng.randrange(1 << 20)
    opened, _ = await try_seeds(FORGED, range(start, start + count), genuine=False)
    assert opened
