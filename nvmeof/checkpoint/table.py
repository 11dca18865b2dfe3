"""The chunk table: 64 bytes a chunk, hash and place (FORMAT.md, 1.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvmeof.codec.hashes import DIGEST_BYTES, blake3_256
from nvmeof.errors import CorruptCheckpointError

CHUNK_BYTES = 4 << 20
"""Bytes of source that one hash covers. Large enough that a write of one chunk is bandwidth, not latency; small enough
that a damaged one says precisely where."""

MAGIC = b"NVCKTBL1"
_HEADER = struct.Struct("<8sIIQ40x")

ROW = np.dtype(
    [
        ("hash", "u1", (DIGEST_BYTES,)),
        ("stored_xxh3", "<u8"),
        ("offset", "<u8"),
        ("stored_length", "<u4"),
        ("length", "<u4"),
        ("region", "<u4"),
        ("flags", "<u4"),
    ]
)
assert ROW.itemsize == 64, ROW.itemsize
assert _HEADER.size == 64, _HEADER.size

RUN_BYTES = CHUNK_BYTES
"""Bytes that one read or write of the pipeline carries at most."""

RUN_CHUNKS = 512
"""Chunks in one run at most: below IOV_MAX (1024), the limit of one gathering system call."""


@dataclass(slots=True)
class Run:
    """Chunks that lie together on the medium and travel in one read or write. Offsets and lengths in bytes."""

    region: int
    offset: int
    length: int
    rows: list[int]


class ChunkTable:
    """All chunks of one rank, in the order of items and of offset in the item.

    ``buffer`` is the table as stored, header included; ``rows`` a numpy view into it.
    """

    def __init__(self, buffer: bytearray, sizes: Sequence[int]) -> None:
        self.buffer = buffer
        self.rows: NDArray[np.void] = np.frombuffer(memoryview(buffer)[_HEADER.size :], dtype=ROW)
        counts = chunk_counts(sizes)
        self.first_row: NDArray[np.int64] = np.concatenate(([0], np.cumsum(counts)))
        self.item_of_row: NDArray[np.int64] = np.repeat(np.arange(len(sizes)), counts)

    @classmethod
    def build(cls, sizes: Sequence[int], regions: Sequence[int], offsets: Sequence[int]) -> ChunkTable:
        """A table for items of these ``sizes`` placed at ``offsets`` of ``regions``; hashes still zero."""
        count = int(chunk_counts(sizes).sum())
        buffer = bytearray(encoded_bytes(count))
        _HEADER.pack_into(buffer, 0, MAGIC, ROW.itemsize, CHUNK_BYTES, count)
        table = cls(buffer, sizes)
        item = table.item_of_row
        lengths = table.lengths(sizes)
        table.rows["offset"] = np.asarray(offsets, dtype=np.int64)[item] + table.offsets_in_items()
        table.rows["region"] = np.asarray(regions, dtype=np.int64)[item]
        table.rows["length"] = lengths
        table.rows["stored_length"] = lengths
        return table

    @classmethod
    def decode(cls, data: bytearray, sizes: Sequence[int]) -> ChunkTable:
        """Check a stored table against the ``sizes`` of the items. Raises CorruptCheckpointError."""
        if len(data) < _HEADER.size:
            raise CorruptCheckpointError(f"chunk table of {len(data)} bytes has no header")
        magic, row_size, chunk_bytes, count = _HEADER.unpack_from(data)
        expected = (MAGIC, ROW.itemsize, CHUNK_BYTES, int(chunk_counts(sizes).sum()))
        if (magic, row_size, chunk_bytes, count) != expected or len(data) != encoded_bytes(count):
            raise CorruptCheckpointError(
                f"chunk table: {(magic, row_size, chunk_bytes, count)} in {len(data)} bytes, wanted {expected}"
            )
        table = cls(data, sizes)
        rows = table.rows
        lengths = table.lengths(sizes)
        if (rows["length"] != lengths).any() or (rows["stored_length"] != lengths).any():
            raise CorruptCheckpointError("chunk table: lengths do not add up to the items")
        if rows["flags"].any() or rows["stored_xxh3"].any():
            raise CorruptCheckpointError("chunk table: flags that this version does not know")
        if (rows["offset"] >= 1 << 62).any():
            raise CorruptCheckpointError("chunk table: an offset beyond any medium")
        return table

    def __len__(self) -> int:
        return len(self.rows)

    def offsets_in_items(self) -> NDArray[np.int64]:
        """Of each row, the chunk's offset in its item."""
        index = np.arange(len(self.item_of_row), dtype=np.int64)
        return (index - self.first_row[self.item_of_row]) * CHUNK_BYTES

    def lengths(self, sizes: Sequence[int]) -> NDArray[np.int64]:
        """Of each row, the chunk's length in bytes."""
        left: NDArray[np.int64] = np.asarray(sizes, dtype=np.int64)[self.item_of_row] - self.offsets_in_items()
        return np.minimum(left, np.int64(CHUNK_BYTES))

    def chunk_of(self, row: int) -> tuple[int, int, int]:
        """Item index, offset in the item and length in bytes of the chunk of ``row``."""
        item = int(self.item_of_row[row])
        return item, (row - int(self.first_row[item])) * CHUNK_BYTES, int(self.rows["length"][row])

    def hash_of(self, row: int) -> bytes:
        return bytes(self.rows["hash"][row])

    def set_hash(self, row: int, digest: bytes) -> None:
        start = _HEADER.size + row * ROW.itemsize
        self.buffer[start : start + DIGEST_BYTES] = digest

    def hashes_digest(self) -> bytes:
        """BLAKE3 of all chunk hashes joined."""
        return blake3_256(np.ascontiguousarray(self.rows["hash"]).reshape(-1).data)

    def runs(self, alignment: int) -> Iterator[Run]:
        """Chunks grouped by place: neighbours (but for padding up to ``alignment``) up to RUN_BYTES together."""
        order: NDArray[Any] = np.lexsort((self.rows["offset"], self.rows["region"]))
        run: Run | None = None
        for row in order.tolist():
            record = self.rows[row]
            region, offset, length = int(record["region"]), int(record["offset"]), int(record["stored_length"])
            if run is not None:
                end = run.offset + run.length
                if (
                    region == run.region
                    and offset == end + -end % alignment
                    and offset + length - run.offset <= RUN_BYTES
                    and len(run.rows) < RUN_CHUNKS
                ):
                    run.length = offset + length - run.offset
                    run.rows.append(row)
                    continue
                yield run
            run = Run(region, offset, length, [row])
        if run is not None:
            yield run


def chunk_counts(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Number of chunks of each item."""
    return -(-np.asarray(sizes, dtype=np.int64) // CHUNK_BYTES)


def encoded_bytes(chunks: int) -> int:
    """Length in bytes of a stored table of ``chunks`` rows."""
    return _HEADER.size + chunks * ROW.itemsize
