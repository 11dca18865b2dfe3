"""Labels and superblock records: bytes as documented, every flipped bit noticed, regions that do not overlap."""

from __future__ import annotations

import random
import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.checkpoint.extents import UNIT_BYTES
from nvmeof.checkpoint.superblock import CATALOG_SLOTS, RING_SLOTS, SIZE_MIN, Label, Record
from nvmeof.codec.hashes import blake3_256
from nvmeof.errors import UsageError

NAME = UUID(int=0x00112233445566778899AABBCCDDEEFF)
LABEL = Label.plan(NAME, 512, 64 << 20, 123456789)
RECORD = Record(5 << 32 | 9, 42, (0x41000, 0x3F70000), 777, bytes(range(32)), 17)


def test_label_bytes_as_documented() -> None:
    """FORMAT.md, 2.1."""
    data = LABEL.encode()
    assert len(data) == 4096
    assert data[:16] == b"NVCKLBL1" + struct.pack("<II", 1, 512)
    assert data[16:32] == NAME.bytes
    assert data[32:72] == struct.pack("<QQQIIQ", 64 << 20, 1 << 20, 64 << 10, 64, 4, 123456789)
    assert data[72:4064] == bytes(3992)
    assert data[4064:] == blake3_256(data[:4064])
    assert Label.decode(data, 512, 64 << 20) == LABEL
    assert Label.decode(data, 512, 80 << 20) == LABEL


@pytest.mark.parametrize("block_size", [512, 4096])
def test_record_bytes_as_documented(block_size: int) -> None:
    """FORMAT.md, 2.2: one logical block, everything in its first 512 bytes."""
    data = RECORD.encode(NAME, 1, block_size)
    assert len(data) == block_size
    assert data[:16] == b"NVCKSUP1" + struct.pack("<II", 1, 1)
    assert data[16:32] == NAME.bytes
    assert data[32:72] == struct.pack("<QQQQQ", 5 << 32 | 9, 42, 0x41000, 0x3F70000, 777)
    assert data[72:104] == bytes(range(32))
    assert data[104:108] == struct.pack("<I", 17)
    assert data[108:480] == bytes(372)
    assert data[480:512] == blake3_256(data[:480])
    assert not any(data[512:])
    assert Record.decode(data[:512], NAME, 1, 17) == RECORD


def test_misdirected_and_foreign_records_do_not_count() -> None:
    data = RECORD.encode(NAME, 1, 512)
    assert Record.decode(data, NAME, 0, 17) is None
    assert Record.decode(data, NAME, 1, 18) is None
    assert Record.decode(data, UUID(int=1), 1, 17) is None
    assert Record.decode(RECORD._replace(generation=0).encode(NAME, 1, 512), NAME, 1, 17) is None


def test_every_flipped_bit_is_noticed() -> None:
    rng = random.Random(1)
    record = RECORD.encode(NAME, 0, 512)
    for bit in range(512 * 8):
        broken = bytearray(record)
        broken[bit // 8] ^= 1 << bit % 8
        assert Record.decode(bytes(broken), NAME, 0, 17) is None
    label = LABEL.encode()
    for bit in [*range(80 * 8), *rng.sample(range(4096 * 8), 300)]:
        broken = bytearray(label)
        broken[bit // 8] ^= 1 << bit % 8
        assert Label.decode(broken, 512, 64 << 20) is None


@given(st.integers(SIZE_MIN, 1 << 46), st.sampled_from([512, 1024, 2048, 4096]))
def test_regions_do_not_overlap_and_fill_both_ends(size: int, block_size: int) -> None:
    label = Label.plan(NAME, block_size, size, 0)
    regions = []
    for side in (0, 1):
        regions.append((label.offsets[side], UNIT_BYTES))
        regions += [(label.slot_offset(side, slot), UNIT_BYTES) for slot in range(RING_SLOTS)]
        regions += [(label.catalog_offset(side, slot), label.catalog_bytes) for slot in range(CATALOG_SLOTS)]
    regions.append((label.data_start, label.data_end - label.data_start))
    end = 0
    for offset, length in sorted(regions):
        assert offset >= end
        assert offset % UNIT_BYTES == length % UNIT_BYTES == 0
        assert length > 0
        end = offset + length
    assert end == label.size == size - size % UNIT_BYTES
    assert label.data_end - label.data_start >= label.size // 2
    assert Label.decode(label.encode(), block_size, size) == label


@pytest.mark.parametrize(("block_size", "size"), [(256, 1 << 30), (8192, 1 << 30), (520, 1 << 30), (512, SIZE_MIN - 1)])
def test_unsuitable_namespaces_are_refused(block_size: int, size: int) -> None:
    with pytest.raises(UsageError):
        Label.plan(NAME, block_size, size, 0)
