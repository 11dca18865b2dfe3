"""Stores as version 1 wrote them, kept for ever, read by the store and by a reader made from FORMAT.md alone.

``python -m tests.checkpoint.test_golden`` makes the files anew: only for a new version, under a new name.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from nvmeof.checkpoint import Store

from .namespaces import CrashNamespace
from .states import assert_same

GOLDEN = Path(__file__).parent / "golden"
IMAGE = GOLDEN / "namespace-v1.bin.gz"
DIRECTORY = GOLDEN / "directory-v1"
ROOT_DIGEST = "904e99d5f5f584832c0004bdbf4fbc886550a8ac966c65b84e8945770eb80d2c"


def state() -> dict[Any, Any]:
    return {
        "model": {"w": np.arange(1000, dtype=np.int64).reshape(10, 100), "b": np.array([0.5, -2.0], dtype=np.float16)},
        "bf16": np.arange(5, dtype=np.dtype("<u2", metadata={"nvmeof.dtype": "BF16"})),
        "big_endian": np.arange(3, dtype=">f4"),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "opt": [{0: {"step": np.float32(7)}}, (1, 2.5, None, True, "\u20ac", complex(1, -2))],
        "nan": math.nan,
        "rng": bytes(range(100)),
        ("tuple", 1): bytearray(b"ba"),
    }


async def test_namespace_of_version_1() -> None:
    image = bytearray(gzip.decompress(IMAGE.read_bytes()))
    async with Store.open(CrashNamespace(len(image), 512, durable=image)) as store:
        assert [info.step for info in await store.ls()] == [1, 2]
        await store.verify()
        assert_same(await store.load(2), state())
        assert (await store.resolve(2)).root_digest.hex() == ROOT_DIGEST
        await store.save(3, state())
        await store.verify()


async def test_directory_of_version_1(tmp_path: Path) -> None:
    shutil.copytree(DIRECTORY, tmp_path / "store")
    async with Store.open(tmp_path / "store") as store:
        assert [info.step for info in await store.ls()] == [1, 2]
        await store.verify()
        assert_same(await store.load(2), state())
        assert (await store.resolve(2)).root_digest.hex() == ROOT_DIGEST


async def test_what_is_written_today_is_what_was_written_then() -> None:
    """Content, not only digests: table hashes, manifests, root. Only ids, times and places may differ."""
    namespace = CrashNamespace(4 << 20, 512)
    async with Store.open(namespace) as store:
        assert (await store.save(2, state())).root_digest.hex() == ROOT_DIGEST


def test_a_reader_made_from_the_document_alone() -> None:
    image = gzip.decompress(IMAGE.read_bytes())
    magic, version, block, _, size, data_start, catalog_bytes = struct.unpack_from("<8sII16sQQQ", image)
    assert (magic, version, block, size) == (b"NVCKLBL1", 1, 512, len(image))
    assert blake3(image[:4064]).digest() == image[4064:4096]
    assert data_start == 1 << 20
    newest: tuple[int, bytes] = (0, b"")
    for slot in range(64):
        record = image[4096 + slot * 4096 :][:512]
        if record[:8] == b"NVCKSUP1" and blake3(record[:480]).digest() == record[480:]:
            newest = max(newest, (struct.unpack_from("<Q", record, 32)[0], record))
    copy_a, copy_b, length = struct.unpack_from("<QQQ", newest[1], 48)
    catalog = image[copy_a : copy_a + length]
    assert catalog == image[copy_b : copy_b + length]
    assert 266240 <= copy_a < 266240 + 4 * catalog_bytes
    assert size - 266240 - 4 * catalog_bytes <= copy_b < size - 266240
    assert blake3(catalog).digest() == newest[1][72:104]
    entry = max(json.loads(catalog)["checkpoints"], key=lambda entry: entry["sequence"])
    assert (entry["step"], entry["state"]) == (2, "committed")
    region = b"".join(image[offset : offset + length] for offset, length in entry["extents"])
    parts = {}
    for name, (offset, length, digest) in entry["parts"].items():
        parts[name] = region[offset : offset + length]
        assert blake3(parts[name]).hexdigest() == digest
    assert hashlib.sha256(parts["root"]).hexdigest() == entry["root_digest"] == ROOT_DIGEST
    (rank,) = json.loads(parts["root"])["ranks"]
    assert blake3(parts["rank"]).hexdigest() == rank["manifest"]
    head, *items = [json.loads(line) for line in parts["rank"].splitlines()]
    assert head["items"] == len(items) == rank["items"]
    table = parts["table"]
    assert table[:24] == b"NVCKTBL1" + struct.pack("<IIQ", 64, 4 << 20, rank["chunks"])
    rows = [table[64 + 64 * row : 128 + 64 * row] for row in range(rank["chunks"])]
    assert blake3(b"".join(row[:32] for row in rows)).hexdigest() == rank["chunk_hashes"]
    contents = {}
    remaining = iter(rows)
    for item in items:
        data = b""
        while len(data) < item["bytes"]:
            row = next(remaining)
            offset, stored, source, place, flags = struct.unpack_from("<QIIII", row, 40)
            assert (stored, place, flags) == (source, 0, 0)
            chunk = region[offset : offset + stored]
            assert blake3(chunk).digest() == row[:32]
            data += chunk
        contents[item["name"]] = (item, data)
    assert contents["model.w"][1] == np.arange(1000, dtype=np.int64).tobytes()
    assert contents["bf16"][0]["dtype"] == "BF16"
    assert contents["big_endian"][0]["dtype"] == "numpy:>f4"
    assert contents["rng"][1] == bytes(range(100))


async def make() -> None:
    namespace = CrashNamespace(4 << 20, 512)
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir()
    for place in (namespace, DIRECTORY):
        async with Store.open(place) as store:
            await store.save(1, {"first": np.arange(10)})
            print((await store.save(2, state())).root_digest.hex())
    IMAGE.write_bytes(gzip.compress(namespace.durable, mtime=0))


if __name__ == "__main__":
    asyncio.run(make())
