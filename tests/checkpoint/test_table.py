"""The chunk table: bytes, chunking, grouping into runs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.checkpoint.table import CHUNK_BYTES, RUN_BYTES, RUN_CHUNKS, ChunkTable, encoded_bytes
from nvmeof.codec.hashes import blake3_256
from nvmeof.errors import CorruptCheckpointError

SIZES = [10, 0, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 5]


def test_bytes_as_documented() -> None:
    """FORMAT.md, 1.2."""
    table = ChunkTable.build([CHUNK_BYTES + 1], [3], [0x1000])
    table.set_hash(1, bytes(range(32)))
    data = table.buffer
    assert len(data) == encoded_bytes(2) == 64 + 2 * 64
    assert data[:64] == b"NVCKTBL1" + struct.pack("<IIQ", 64, 4 << 20, 2) + bytes(40)
    assert data[64:96] == bytes(32)
    assert data[96:128] == struct.pack("<QQIIII", 0, 0x1000, CHUNK_BYTES, CHUNK_BYTES, 3, 0)
    assert data[128:160] == bytes(range(32))
    assert data[160:192] == struct.pack("<QQIIII", 0, 0x1000 + CHUNK_BYTES, 1, 1, 3, 0)
    assert table.hashes_digest() == blake3_256(bytes(32) + bytes(range(32)))


def test_chunks_of_items() -> None:
    table = ChunkTable.build(SIZES, [0] * 5, [0] * 5)
    chunks = [table.chunk_of(row) for row in range(len(table))]
    assert chunks == [
        (0, 0, 10),
        (2, 0, CHUNK_BYTES),
        (3, 0, CHUNK_BYTES),
        (3, CHUNK_BYTES, 1),
        (4, 0, CHUNK_BYTES),
        (4, CHUNK_BYTES, CHUNK_BYTES),
        (4, 2 * CHUNK_BYTES, CHUNK_BYTES - 5),
    ]
    again = ChunkTable.decode(bytearray(table.buffer), SIZES)
    assert [again.chunk_of(row) for row in range(len(again))] == chunks
    assert len(ChunkTable.decode(bytearray(ChunkTable.build([], [], []).buffer), [])) == 0
    assert list(ChunkTable.build([0, 0], [0, 0], [0, 0]).runs(1)) == []


@given(
    st.lists(st.one_of(st.integers(0, 20_000), st.integers(0, 3 * CHUNK_BYTES)), max_size=60),
    st.sampled_from([1, 4096]),
    st.integers(1, 3),
)
def test_runs_cover_every_chunk_once_in_order_without_crossing_limits(
    sizes: list[int], unit: int, regions: int
) -> None:
    offsets, where = [], []
    ends = [0] * regions
    for i, size in enumerate(sizes):
        region = i * regions // max(1, len(sizes))
        where.append(region)
        offsets.append(ends[region])
        ends[region] += size + -size % unit
    table = ChunkTable.build(sizes, where, offsets)
    runs = list(table.runs(unit))
    assert sorted(row for run in runs for row in run.rows) == list(range(len(table)))
    for run in runs:
        assert 0 < run.length <= RUN_BYTES
        assert 0 < len(run.rows) <= RUN_CHUNKS
        end = run.offset
        for row in run.rows:
            record = table.rows[row]
            assert int(record["region"]) == run.region
            assert int(record["offset"]) == end + -end % unit
            end = int(record["offset"]) + int(record["length"])
        assert end == run.offset + run.length
    small = [run for run in runs if run.length < RUN_BYTES // 2]
    assert len(small) <= len(table) // 8 + 4 * regions + sum(size > RUN_BYTES // 2 for size in sizes) * 2


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0, b"X", "wanted"),
        (8, b"\x41", "wanted"),
        (14, b"\x41", "wanted"),
        (16, b"\x03", "wanted"),
        (64 + 48, b"\1", "lengths"),
        (64 + 52, b"\1", "lengths"),
        (64 + 60, b"\1", "flags"),
        (64 + 32, b"\1", "flags"),
        (64 + 47, b"\xff", "beyond"),
    ],
)
def test_damaged_tables_are_refused(offset: int, value: bytes, text: str) -> None:
    data = ChunkTable.build([10, CHUNK_BYTES], [0, 0], [0, 4096]).buffer
    data = bytearray(data)
    data[offset : offset + len(value)] = value
    with pytest.raises(CorruptCheckpointError, match=text):
        ChunkTable.decode(data, [10, CHUNK_BYTES])


def test_tables_of_the_wrong_length_are_refused() -> None:
    data = bytearray(ChunkTable.build([10], [0], [0]).buffer)
    for wrong in (data[:10], data[:-1], data + b"\0"):
        with pytest.raises(CorruptCheckpointError):
            ChunkTable.decode(wrong, [10])
    with pytest.raises(CorruptCheckpointError):
        ChunkTable.decode(data, [CHUNK_BYTES + 1])
    with pytest.raises(CorruptCheckpointError):
        ChunkTable.decode(data, [1 << 62])
