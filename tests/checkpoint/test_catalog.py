"""The catalog of a namespace: round trip, and refusal of anything that would let space be used twice."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nvmeof.checkpoint import canonical
from nvmeof.checkpoint.catalog import Catalog, CatalogEntry
from nvmeof.checkpoint.extents import EXTENTS_MAX, Extent
from nvmeof.checkpoint.medium import COMMITTED, WRITING, Part
from nvmeof.errors import CorruptCheckpointError, UsageError

START, END = 1 << 20, 1 << 24
PARTS = {name: Part(4096 * i, 100, bytes([i]) * 32) for i, name in enumerate(("rank", "root", "table"))}
GOOD = CatalogEntry(
    step=3,
    state=COMMITTED,
    id="ab" * 16,
    sequence=1,
    created_ns=5,
    kind="state",
    items=2,
    chunks=2,
    size=10,
    root_digest=b"\7" * 32,
    parts=PARTS,
    epoch=2,
    extents=(Extent(START, 8192), Extent(START + 16384, 8192)),
)


def test_round_trip() -> None:
    blank = {name: Part(part.offset, part.length, b"") for name, part in PARTS.items()}
    writing = replace(
        GOOD,
        state=WRITING,
        root_digest=b"",
        sequence=0,
        parts=blank,
        extents=(Extent(START + 8192, 8192), Extent(START + 65536, 4096)),
    )
    catalog = Catalog(2 << 32 | 4, 2, (GOOD, writing))
    assert Catalog.decode(catalog.encode(), START, END) == catalog
    assert Catalog.decode(Catalog(1).encode(), START, END) == Catalog(1)


def broken(**changes: Any) -> bytes:
    record = json.loads(Catalog(1, 1, (GOOD,)).encode())
    record["checkpoints"][0].update(changes)
    return canonical.encode(record)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "verified"},
        {"step": -1},
        {"step": "3"},
        {"root_digest": ""},
        {"parts": {}},
        {"parts": {"rank": [0, 1, "x"], "root": [0, 1, "x"], "table": [0, 1, "x"]}},
        {"extents": []},
        {"extents": [[START, 8192]] * 2},
        {"extents": [[START + 1, 8192]]},
        {"extents": [[START, 8193]]},
        {"extents": [[START, 0]]},
        {"extents": [[START - 4096, 65536]]},
        {"extents": [[END - 4096, 65536]]},
        {"extents": [[START, 4096]]},
        {"extents": [[START + 8192 * i, 4096] for i in range(EXTENTS_MAX + 1)]},
        {"extents": [["x", 4096]]},
        {"extents": [[START, True]]},
    ],
)
def test_damaged_catalogs_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptCheckpointError):
        Catalog.decode(broken(**changes), START, END)


def test_two_checkpoints_cannot_claim_the_same_space() -> None:
    other = replace(GOOD, id="cd" * 16, extents=(Extent(START + 4096, 65536),))
    with pytest.raises(CorruptCheckpointError, match="two checkpoints claim"):
        Catalog.decode(Catalog(1, 1, (GOOD, other)).encode(), START, END)


def test_a_newer_catalog_is_not_called_corrupt() -> None:
    record = json.loads(Catalog(1).encode())
    record["version"] = 2
    with pytest.raises(UsageError, match="version 2"):
        Catalog.decode(canonical.encode(record), START, END)
