"""The chain from the root digest to the bytes: every link is checked, also where somebody made the next ones fit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvmeof.checkpoint import DamagedError, Store, canonical
from nvmeof.checkpoint.medium import CheckpointInfo, Part, Piece, Stored
from nvmeof.checkpoint.payload import Discard
from nvmeof.checkpoint.reader import Reader, read_metadata
from nvmeof.codec.hashes import blake3_256
from nvmeof.errors import CorruptCheckpointError, StatusError, UsageError

from .states import small_state

Parts = dict[str, bytes]


class InMemory(Stored):
    """A stored checkpoint whose metadata and bytes lie in memory."""

    alignment = 1

    def __init__(self, info: CheckpointInfo, parts: Parts, data: bytes) -> None:
        self.info = replace(info, parts={name: Part(0, len(part), blake3_256(part)) for name, part in parts.items()})
        self.parts = parts
        self.data = data
        self.capacity = len(data)
        self.fail: Callable[[int, int], None] = lambda offset, length: None

    async def read_part(self, name: str) -> bytearray:
        return bytearray(self.parts[name])

    async def read(self, region: int, pieces: Sequence[Piece]) -> None:
        for offset, view in pieces:
            self.fail(offset, len(view))
            view[:] = self.data[offset : offset + len(view)]

    def where(self, region: int, offset: int, length: int) -> str:
        return f"memory {offset}"

    def where_part(self, name: str) -> str:
        return name

    async def close(self) -> None:
        pass


@pytest.fixture
async def stored(tmp_path: Path) -> InMemory:
    async with Store.open(tmp_path / "s") as store:
        info = await store.save(3, small_state(3))
    parts = {name: (tmp_path / "s/step-3" / name).read_bytes() for name in ("table", "rank", "root")}
    return InMemory(info, parts, (tmp_path / "s/step-3/shard-00000.safetensors").read_bytes())


async def examine(stored: InMemory) -> list[str]:
    manifest, table = await read_metadata(stored)
    with ThreadPoolExecutor(1) as executor:
        reader = Reader(stored, manifest, table, [Discard()] * len(manifest.items), executor, collect=True)
        await reader.run(2)
    return [damage.item for damage in reader.damage]


async def test_good(stored: InMemory) -> None:
    assert await examine(stored) == []


def forge(stored: InMemory, **parts: bytes) -> InMemory:
    """Replace parts; the commit record's hashes of them are made to fit."""
    return InMemory(stored.info, {**stored.parts, **parts}, stored.data)


def edit_root(stored: InMemory, *, rank: dict[str, object] | None = None, **changes: object) -> bytes:
    root = json.loads(stored.parts["root"])
    root.update(changes)
    root["ranks"][0].update(rank or {})
    return canonical.encode(root)


def with_root(stored: InMemory, root: bytes) -> InMemory:
    """A forged root manifest, and the root digest in the commit record to fit."""
    forged = forge(stored, root=root)
    forged.info = replace(forged.info, root_digest=hashlib.sha256(root).digest())
    return forged


async def test_the_root_manifest_is_pinned_by_the_root_digest(stored: InMemory) -> None:
    rank = stored.parts["rank"].replace(b'"name":"rng"', b'"name":"gnr"')
    root = edit_root(stored, rank={"manifest": blake3_256(rank).hex()})
    with pytest.raises(CorruptCheckpointError, match="does not match the root digest"):
        await read_metadata(forge(stored, rank=rank, root=root))
    forged = with_root(stored, root)
    with pytest.raises(CorruptCheckpointError, match="rank manifest does not match"):
        await read_metadata(forged)


async def test_the_rank_manifest_is_pinned_by_the_root_manifest(stored: InMemory) -> None:
    rank = stored.parts["rank"].replace(b'"name":"rng"', b'"name":"gnr"')
    with pytest.raises(CorruptCheckpointError, match="rank manifest does not match"):
        await read_metadata(forge(stored, rank=rank))


async def test_chunk_hashes_are_pinned_by_the_root_manifest(stored: InMemory) -> None:
    """Data changed and its hash in the table with it: the root manifest still knows better."""
    table = bytearray(stored.parts["table"])
    offset = int.from_bytes(table[64 + 40 : 64 + 48], "little")
    length = int.from_bytes(table[64 + 52 : 64 + 56], "little")
    data = bytearray(stored.data)
    data[offset] ^= 1
    table[64:96] = blake3_256(bytes(data[offset : offset + length]))
    forged = forge(stored, table=bytes(table))
    forged.data = bytes(data)
    with pytest.raises(CorruptCheckpointError, match="do not match the root manifest"):
        await examine(forged)


async def test_places_may_differ_but_not_contents(stored: InMemory) -> None:
    table = bytearray(stored.parts["table"])
    table[64 + 40] ^= 8
    assert len(await examine(forge(stored, table=bytes(table)))) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 4},
        {"kind": "files"},
        {"ranks": []},
        {"rank": {"items": 1}},
        {"rank": {"chunks": 1}},
        {"rank": {"bytes": 1}},
        {"rank": {"rank": 1}},
    ],
)
async def test_a_root_manifest_that_says_something_else_is_refused(
    stored: InMemory, changes: dict[str, object]
) -> None:
    if "ranks" in changes:
        root = canonical.encode({**json.loads(stored.parts["root"]), **changes})
    else:
        root = edit_root(stored, **changes)  # type: ignore[arg-type]
    with pytest.raises(CorruptCheckpointError):
        await read_metadata(with_root(stored, root))


async def test_several_ranks_are_refused_for_now(stored: InMemory) -> None:
    ranks = json.loads(stored.parts["root"])["ranks"]
    root = edit_root(stored)
    two = canonical.encode({**json.loads(root), "ranks": ranks * 2})
    with pytest.raises(UsageError, match="2 ranks"):
        await read_metadata(with_root(stored, two))


async def test_errors_that_are_not_of_the_media_are_not_damage(stored: InMemory) -> None:
    def refuse(offset: int, length: int) -> None:
        raise StatusError(0, 0x82, dnr=False, name="Namespace Not Ready")

    stored.fail = refuse
    with pytest.raises(StatusError, match="Not Ready"):
        await examine(stored)


async def test_media_errors_are_narrowed_down_to_chunks(stored: InMemory) -> None:
    _, table = await read_metadata(stored)
    bad = int(table.rows["offset"][2])

    def fail(offset: int, length: int) -> None:
        if offset <= bad < offset + length:
            raise OSError(5, "Input/output error")

    stored.fail = fail
    assert len(await examine(stored)) == 1
    manifest, table = await read_metadata(stored)
    with ThreadPoolExecutor(1) as executor:
        reader = Reader(stored, manifest, table, [Discard()] * len(manifest.items), executor)
        with pytest.raises(DamagedError, match="unreadable"):
            await reader.run(2)


async def test_items_far_larger_than_their_place_are_corruption_before_memory_is_taken(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "s") as store:
        await store.save(1, {"a": np.zeros(100 << 20, dtype=np.uint8)})
        os.truncate(tmp_path / "s/step-1/shard-00000.safetensors", 1000)
        with pytest.raises(CorruptCheckpointError, match="bytes in a place of 1000"):
            await store.load(1)
        commit = tmp_path / "s/step-1/COMMIT"
        record = json.loads(commit.read_bytes())
        record["parts"]["rank"][1] = 1 << 62
        commit.write_text(json.dumps(record))
        with pytest.raises(CorruptCheckpointError, match=f"wanted {1 << 62}"):
            await store.load(1)
