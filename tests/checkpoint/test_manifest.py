"""Rank manifest and root manifest: canonical bytes, and nothing else is accepted."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from nvmeof.checkpoint import canonical
from nvmeof.checkpoint.manifest import Item, RankManifest, RankSummary, RootManifest, root_size
from nvmeof.errors import CorruptCheckpointError, UsageError

STATE_ITEMS = (
    Item("w", "array", 24, dtype="F32", shape=(2, 3), origin="numpy"),
    Item("b", "bytes", 5, origin="bytearray"),
)
FILE_ITEMS = (
    Item("d", "directory", mode=0o755),
    Item("d/\udc80.bin", "file", 7, mode=0o640),
    Item("link", "symlink", target="d/x"),
)


def test_rank_manifest_bytes_as_documented() -> None:
    """FORMAT.md, 1.1."""
    manifest = RankManifest("state", STATE_ITEMS, {"d": [["w", {"i": 0}], ["b", {"i": 1}]]}, {"framework": "x"})
    assert manifest.encode() == (
        b'{"chunk_bytes":4194304,"format":"nvmeof-rank-manifest","items":2,"kind":"state","metadata":{"framework":"x"},'
        b'"rank":0,"skeleton":{"d":[["w",{"i":0}],["b",{"i":1}]]},"version":1}\n'
        b'{"bytes":24,"dtype":"F32","kind":"array","name":"w","origin":"numpy","shape":[2,3]}\n'
        b'{"bytes":5,"kind":"bytes","name":"b","origin":"bytearray"}\n'
    )
    assert RankManifest.decode(manifest.encode()) == manifest


def test_file_manifest_keeps_undecodable_names() -> None:
    manifest = RankManifest("files", FILE_ITEMS)
    assert b'"name":"d/\\udc80.bin"' in manifest.encode()
    assert RankManifest.decode(manifest.encode()) == manifest
    assert RankManifest.decode(RankManifest("files", ()).encode()).items == ()


def edit(data: bytes, line: int, **changes: Any) -> bytes:
    lines = data.split(b"\n")
    record = json.loads(lines[line])
    record.update(changes)
    lines[line] = canonical.encode({key: value for key, value in record.items() if value is not ...})
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        (0, {"items": 3}),
        (0, {"items": True}),
        (0, {"kind": "files"}),
        (0, {"format": "x"}),
        (0, {"chunk_bytes": 1 << 20}),
        (0, {"metadata": []}),
        (0, {"rank": -1}),
        (1, {"bytes": -1}),
        (1, {"bytes": 1.0}),
        (1, {"bytes": 1 << 63}),
        (1, {"kind": "file"}),
        (1, {"shape": [2, -3]}),
        (1, {"shape": "23"}),
        (1, {"origin": "elsewhere"}),
        (1, {"dtype": ...}),
        (1, {"surprise": 1}),
        (2, {"shape": []}),
    ],
)
def test_damaged_rank_manifests_are_refused(line: int, changes: dict[str, Any]) -> None:
    data = RankManifest("state", STATE_ITEMS, {"d": []}).encode()
    with pytest.raises(CorruptCheckpointError):
        RankManifest.decode(edit(data, line, **changes))


def test_a_newer_manifest_is_not_called_corrupt() -> None:
    with pytest.raises(UsageError, match="format version 2"):
        RankManifest.decode(edit(RankManifest("state", ()).encode(), 0, version=2))
    with pytest.raises(CorruptCheckpointError):
        RankManifest.decode(edit(RankManifest("state", ()).encode(), 0, version=0))


@pytest.mark.parametrize("data", [b"", b"\n", b"[]", b"{", b"\xff", b"[" * 100_000, b"null\n"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError):
        RankManifest.decode(data)
    with pytest.raises(CorruptCheckpointError):
        RootManifest.decode(data)


def test_truncated_rank_manifest_is_refused() -> None:
    data = RankManifest("state", STATE_ITEMS, {"d": []}).encode()
    for end in range(len(data)):
        with pytest.raises(CorruptCheckpointError):
            RankManifest.decode(data[:end])


def test_root_manifest_bytes_digest_and_size() -> None:
    """FORMAT.md, 1.3: SHA-256 over the canonical bytes; the size does not depend on the digests."""
    root = RootManifest(7, "state", (RankSummary(2, 1, 29, b"\xab" * 32, b"\x01" * 32),))
    data = root.encode()
    assert data == (
        b'{"format":"nvmeof-checkpoint","kind":"state","ranks":[{"bytes":29,"chunk_hashes":"'
        + b"01" * 32
        + b'","chunks":1,'
        b'"items":2,"manifest":"' + b"ab" * 32 + b'","rank":0}],"step":7,"version":1}'
    )
    assert root.digest() == hashlib.sha256(data).digest()
    assert root_size(7, "state", 2, 1, 29) == len(data)
    assert RootManifest.decode(data) == root


@pytest.mark.parametrize("digest", ["", "AB" * 32, "ab" * 31, "zz" * 32, "ab" * 31 + "a ", 5])
def test_digests_have_one_spelling(digest: object) -> None:
    data = json.loads(RootManifest(7, "state", (RankSummary(2, 1, 29, bytes(32), bytes(32)),)).encode())
    data["ranks"][0]["manifest"] = digest
    with pytest.raises(CorruptCheckpointError):
        RootManifest.decode(canonical.encode(data))
