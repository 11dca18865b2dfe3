"""Items, the rank manifest and the root manifest (FORMAT.md, section 1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from nvmeof.checkpoint import canonical
from nvmeof.checkpoint.canonical import Fields
from nvmeof.checkpoint.table import CHUNK_BYTES
from nvmeof.codec.hashes import DIGEST_BYTES, sha256
from nvmeof.errors import CorruptCheckpointError

FORMAT_VERSION = 1
RANK_FORMAT = "nvmeof-rank-manifest"
ROOT_FORMAT = "nvmeof-checkpoint"

STATE = "state"
FILES = "files"

ORIGINS = {"array": ("numpy", "scalar", "torch"), "bytes": ("bytes", "bytearray")}


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor, byte string, file, directory or symbolic link. ``size`` in bytes; the rest as in FORMAT.md."""

    name: str
    kind: str
    size: int = 0
    dtype: str = ""
    shape: tuple[int, ...] = ()
    origin: str = ""
    mode: int = 0
    target: str = ""

    def record(self) -> dict[str, object]:
        """The item's line in the rank manifest."""
        record: dict[str, object] = {"name": self.name, "kind": self.kind, "bytes": self.size}
        if self.kind == "array":
            record |= {"dtype": self.dtype, "shape": list(self.shape), "origin": self.origin}
        elif self.kind == "bytes":
            record["origin"] = self.origin
        elif self.kind in ("file", "directory"):
            record["mode"] = self.mode
        else:
            record["target"] = self.target
        return record


@dataclass(frozen=True)
class RankManifest:
    """What one rank saved, without places or hashes. ``kind`` is ``state`` or ``files``; ``skeleton`` is encoded."""

    kind: str
    items: tuple[Item, ...]
    skeleton: object = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    rank: int = 0

    def encode(self) -> bytes:
        head = {
            "format": RANK_FORMAT,
            "version": FORMAT_VERSION,
            "rank": self.rank,
            "kind": self.kind,
            "items": len(self.items),
            "chunk_bytes": CHUNK_BYTES,
            "metadata": dict(self.metadata),
            "skeleton": self.skeleton,
        }
        lines = [canonical.encode(head)]
        lines.extend(canonical.encode(item.record()) for item in self.items)
        lines.append(b"")
        return b"\n".join(lines)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> RankManifest:
        """Raises CorruptCheckpointError, or UsageError for a newer version."""
        lines = bytes(data).split(b"\n")
        head = canonical.decode(lines[0], "rank manifest")
        head.expect(RANK_FORMAT, FORMAT_VERSION)
        kind = head.one_of("kind", STATE, FILES)
        if head.size("chunk_bytes") != CHUNK_BYTES:
            raise CorruptCheckpointError(f"rank manifest: 'chunk_bytes' is not {CHUNK_BYTES}")
        if head.size("items") != len(lines) - 2 or lines[-1]:
            raise CorruptCheckpointError(
                f"rank manifest: 'items' is {head.size('items')}, there are {len(lines) - 2} lines"
            )
        metadata = head.fields("metadata").value
        items = tuple(
            _decode_item(canonical.decode(line, f"rank manifest, item {i}"), kind) for i, line in enumerate(lines[1:-1])
        )
        if kind == FILES and len({item.name for item in items}) < len(items):
            raise CorruptCheckpointError("rank manifest: two files of one name")
        return cls(kind, items, head.value.get("skeleton"), {k: str(v) for k, v in metadata.items()}, head.size("rank"))


def _decode_item(record: Fields, manifest_kind: str) -> Item:
    allowed = ("array", "bytes") if manifest_kind == STATE else ("file", "directory", "symlink")
    kind = record.one_of("kind", *allowed)
    item = Item(
        name=record.get("name", str),
        kind=kind,
        size=record.size("bytes"),
        dtype=record.get("dtype", str) if kind == "array" else "",
        shape=tuple(_dimension(record, value) for value in record.get("shape", list)) if kind == "array" else (),
        origin=record.one_of("origin", *ORIGINS[kind]) if kind in ORIGINS else "",
        mode=record.size("mode") if kind in ("file", "directory") else 0,
        target=record.get("target", str) if kind == "symlink" else "",
    )
    if item.size and kind in ("directory", "symlink"):
        raise CorruptCheckpointError(f"{record.what}: a {kind} of {item.size} bytes")
    if json.loads(canonical.encode(item.record())) != record.value:
        raise CorruptCheckpointError(f"{record.what}: fields that a {kind} does not have: {sorted(record.value)}")
    return item


def _dimension(record: Fields, value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise CorruptCheckpointError(f"{record.what}: dimension {value!r:.30}")
    return value


@dataclass(frozen=True, slots=True)
class RankSummary:
    """What the root manifest says of one rank: totals, and what pins its manifest and its chunk hashes."""

    items: int
    chunks: int
    size: int
    manifest: bytes
    chunk_hashes: bytes
    rank: int = 0


@dataclass(frozen=True)
class RootManifest:
    """The root of the tree of hashes: everything in the checkpoint but its place."""

    step: int
    kind: str
    ranks: tuple[RankSummary, ...]

    def encode(self) -> bytes:
        ranks = [
            {
                "rank": rank.rank,
                "items": rank.items,
                "chunks": rank.chunks,
                "bytes": rank.size,
                "manifest": rank.manifest.hex(),
                "chunk_hashes": rank.chunk_hashes.hex(),
            }
            for rank in self.ranks
        ]
        return canonical.encode(
            {"format": ROOT_FORMAT, "version": FORMAT_VERSION, "step": self.step, "kind": self.kind, "ranks": ranks}
        )

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> RootManifest:
        """Raises CorruptCheckpointError, or UsageError for a newer version or for more than one rank."""
        head = canonical.decode(data, "root manifest")
        head.expect(ROOT_FORMAT, FORMAT_VERSION)
        ranks = tuple(
            RankSummary(
                rank.size("items"),
                rank.size("chunks"),
                rank.size("bytes"),
                rank.digest("manifest"),
                rank.digest("chunk_hashes"),
                rank.size("rank"),
            )
            for rank in head.objects("ranks")
        )
        return cls(head.size("step"), head.one_of("kind", STATE, FILES), ranks)

    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes: the root digest."""
        return sha256(self.encode())


def root_size(step: int, kind: str, items: int, chunks: int, size: int) -> int:
    """Length in bytes of the root manifest: it does not depend on the digests, so that space can be claimed first."""
    blank = bytes(DIGEST_BYTES)
    return len(RootManifest(step, kind, (RankSummary(items, chunks, size, blank, blank),)).encode())
