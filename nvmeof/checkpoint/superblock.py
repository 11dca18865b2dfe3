"""Labels and superblock records of a raw namespace, and where everything lies on it (FORMAT.md, 2.1 and 2.2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from nvmeof.checkpoint.extents import UNIT_BYTES
from nvmeof.codec.hashes import DIGEST_BYTES, blake3_256
from nvmeof.errors import CorruptCheckpointError, UsageError

FORMAT_VERSION = 1
LABEL_MAGIC = b"NVCKLBL1"
RECORD_MAGIC = b"NVCKSUP1"

RING_SLOTS = 64
"""Commits before a slot is written again: a history for fsck, and 64 times less wear than one block would get."""

RING_BYTES = RING_SLOTS * UNIT_BYTES
CATALOG_SLOTS = 4
"""Two are named by the newest records of the rings; a third is being written; the fourth is history."""

CATALOG_BYTES_MIN = 64 << 10
CATALOG_BYTES_MAX = 16 << 20
"""16 MiB hold about 30,000 checkpoints in one extent each."""

SIZE_MIN = 4 << 20
"""Bytes of the smallest namespace: 1 MiB of metadata at each end and 2 MiB of data."""

DATA_ALIGNMENT = 1 << 20
RECORD_BYTES = 512

_LABEL = struct.Struct("<8sII16sQQQIIQ")
_RECORD = struct.Struct("<8sII16sQQQQQ32sI")
assert _LABEL.size == 72, _LABEL.size
assert _RECORD.size == 108, _RECORD.size


@dataclass(frozen=True)
class Label:
    """What a formatted namespace says of itself. Sizes in bytes; ``size`` is the namespace's when it was formatted."""

    uuid: UUID
    block_size: int
    size: int
    data_start: int
    catalog_bytes: int
    created_ns: int

    @classmethod
    def plan(cls, uuid: UUID, block_size: int, size: int, created_ns: int) -> Label:
        """The layout of a new store. Raises UsageError if the namespace does not lend itself to one."""
        size -= size % UNIT_BYTES
        if block_size < RECORD_BYTES or UNIT_BYTES % block_size:
            raise UsageError(f"logical blocks of {block_size} bytes; a checkpoint store wants 512, 1024, 2048 or 4096")
        if size < SIZE_MIN:
            raise UsageError(f"a namespace of {size} bytes is too small for a checkpoint store; wanted {SIZE_MIN}")
        catalog_bytes = size // 1024
        catalog_bytes -= catalog_bytes % UNIT_BYTES
        catalog_bytes = min(max(catalog_bytes, CATALOG_BYTES_MIN), CATALOG_BYTES_MAX)
        head = UNIT_BYTES + RING_BYTES + CATALOG_SLOTS * catalog_bytes
        return cls(uuid, block_size, size, head + -head % DATA_ALIGNMENT, catalog_bytes, created_ns)

    @property
    def data_end(self) -> int:
        return self.size - self.data_start

    @property
    def offsets(self) -> tuple[int, int]:
        """Where the two copies of the label lie."""
        return 0, self.size - UNIT_BYTES

    def slot_offset(self, ring: int, slot: int) -> int:
        """Byte offset of a superblock slot; ``ring`` is 0 for A, 1 for B."""
        return self.ring_offset(ring) + slot * UNIT_BYTES

    def ring_offset(self, ring: int) -> int:
        return UNIT_BYTES if ring == 0 else self.size - UNIT_BYTES - RING_BYTES

    def catalog_offset(self, copy: int, slot: int) -> int:
        """Byte offset of a catalog slot; ``copy`` is 0 for A, 1 for B."""
        if copy == 0:
            return UNIT_BYTES + RING_BYTES + slot * self.catalog_bytes
        return self.ring_offset(1) - (CATALOG_SLOTS - slot) * self.catalog_bytes

    def encode(self) -> bytes:
        body = _LABEL.pack(
            LABEL_MAGIC,
            FORMAT_VERSION,
            self.block_size,
            self.uuid.bytes,
            self.size,
            self.data_start,
            self.catalog_bytes,
            RING_SLOTS,
            CATALOG_SLOTS,
            self.created_ns,
        )
        body = body.ljust(UNIT_BYTES - DIGEST_BYTES, b"\0")
        return body + blake3_256(body)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, block_size: int, size: int) -> Label | None:
        """The label in ``data`` (one unit), or None if it is not a whole one.

        Raises UsageError if it is whole but of a newer version, or does not fit this namespace.
        """
        data = bytes(data)
        body, checksum = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if data[:8] != LABEL_MAGIC or blake3_256(body) != checksum:
            return None
        _, version, blocks, uuid, label_size, data_start, catalog, rings, catalogs, created = _LABEL.unpack_from(data)
        if version != FORMAT_VERSION:
            raise UsageError(f"checkpoint store of format version {version}; this program knows {FORMAT_VERSION}")
        if blocks != block_size:
            raise UsageError(f"checkpoint store made on {blocks}-byte blocks, but the namespace now has {block_size}")
        if label_size > size:
            raise CorruptCheckpointError(f"checkpoint store of {label_size} bytes on a namespace of only {size}")
        label = cls(UUID(bytes=uuid), blocks, label_size, data_start, catalog, created)
        expected = cls.plan(label.uuid, blocks, label_size, created)
        if (rings, catalogs) != (RING_SLOTS, CATALOG_SLOTS) or label != expected:
            raise CorruptCheckpointError("checkpoint store whose label describes a layout that version 1 does not have")
        return label


class Record(NamedTuple):
    """One superblock record. ``catalog_offsets`` are those of copies A and B, in bytes."""

    generation: int
    time_ns: int
    catalog_offsets: tuple[int, int]
    catalog_bytes: int
    catalog_hash: bytes
    slot: int

    def encode(self, uuid: UUID, ring: int, block_size: int) -> bytes:
        """One logical block."""
        body = _RECORD.pack(
            RECORD_MAGIC,
            FORMAT_VERSION,
            ring,
            uuid.bytes,
            self.generation,
            self.time_ns,
            *self.catalog_offsets,
            self.catalog_bytes,
            self.catalog_hash,
            self.slot,
        )
        body = body.ljust(RECORD_BYTES - DIGEST_BYTES, b"\0")
        return (body + blake3_256(body)).ljust(block_size, b"\0")

    @classmethod
    def decode(cls, data: bytes, uuid: UUID, ring: int, slot: int) -> Record | None:
        """The record in the first 512 bytes of a slot, or None if there is no valid one of this store and place."""
        body, checksum = data[: RECORD_BYTES - DIGEST_BYTES], data[RECORD_BYTES - DIGEST_BYTES : RECORD_BYTES]
        if data[:8] != RECORD_MAGIC or blake3_256(body) != checksum:
            return None
        fields = _RECORD.unpack_from(data)
        _, version, found_ring, found_uuid, generation, time_ns, a, b, length, digest, found_slot = fields
        if (version, found_ring, found_uuid, found_slot) != (FORMAT_VERSION, ring, uuid.bytes, slot) or not generation:
            return None
        return cls(generation, time_ns, (a, b), length, digest, slot)
