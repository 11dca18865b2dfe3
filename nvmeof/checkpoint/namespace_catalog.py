"""The metadata of a raw namespace: labels, superblock rings, catalog, and the one way to change them (FORMAT.md, 2).

One object is one writer's (or reader's) session on one namespace. After a failed commit it refuses every further one:
whether the record is on media is not known until the rings are read again by a new session.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol
from uuid import UUID, uuid4

from nvmeof.checkpoint.catalog import EPOCH_SHIFT, Catalog, CatalogEntry
from nvmeof.checkpoint.extents import UNIT_BYTES
from nvmeof.checkpoint.medium import is_media_error
from nvmeof.checkpoint.superblock import CATALOG_SLOTS, LABEL_MAGIC, RECORD_BYTES, RING_BYTES, RING_SLOTS, Label, Record
from nvmeof.codec.hashes import blake3_256
from nvmeof.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    StatusError,
    UsageError,
)

PROBE_BYTES = 1 << 20
UNREADABLE = b"?" * UNIT_BYTES


class BlockNamespace(Protocol):
    """What the store needs of a namespace: ``nvmeof.initiator``'s Namespace, or anything that keeps its promises.

    Offsets and lengths are bytes, multiples of ``block_size``. Any number of operations may be in flight. ``flush``
    covers the writes that completed before it was called; ``fua`` writes are on media when they complete. A write of
    one block is atomic. An operation that raises has an unknown outcome; nothing is retried silently.
    """

    @property
    def block_size(self) -> int: ...
    @property
    def size(self) -> int: ...
    async def read(self, offset: int, length: int) -> bytearray: ...
    async def readinto(self, offset: int, buffer: memoryview) -> int: ...
    async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None: ...
    async def flush(self) -> None: ...


@dataclass(frozen=True)
class Rings:
    """The newest valid record of ring A and of ring B, and the slots that hold something else than a record."""

    newest: tuple[Record | None, Record | None]
    damaged: tuple[str, ...] = ()

    @property
    def current(self) -> Record | None:
        return max((record for record in self.newest if record), key=lambda record: record.generation, default=None)


class NamespaceCatalog:
    """The current catalog of a namespace. Call :meth:`load` first; :meth:`publish` replaces it atomically."""

    def __init__(self, namespace: BlockNamespace, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self.notices: list[str] = []
        self.catalog = Catalog(0)
        self._label: Label | None = None
        self._rings = Rings((None, None))
        self._epoch: int | None = None
        self._failed = ""
        self._labels_to_repair: tuple[int, ...] = ()

    @property
    def label(self) -> Label:
        assert self._label is not None
        return self._label

    async def load(self) -> Catalog:
        """Read labels and rings, and the catalog if it is not the one that is known.

        Raises CheckpointNotFoundError (blank, foreign, unfinished), CorruptCheckpointError, UsageError (newer format).
        """
        notices: list[str] = []
        if self._label is None:
            self._label = await self._find_label(notices)
            self.notices = notices
        rings = await self._read_rings(self.label)
        current = rings.current
        if current is None:
            raise CorruptCheckpointError(f"{self.name}: neither superblock ring has a valid record")
        for text in rings.damaged:
            if text not in self.notices:
                self.notices.append(text)
        catalog = self.catalog if self._rings.current == current else await self._read_catalog(current)
        self._rings, self.catalog = rings, catalog
        return catalog

    async def _find_label(self, notices: list[str]) -> Label:
        ends = await self._read_ends()
        labels = [Label.decode(data, self.namespace.block_size, self.namespace.size) for data in ends]
        label = labels[0] or labels[1]
        if label is None:
            if any(data[:8] == LABEL_MAGIC or data == UNREADABLE for data in ends):
                raise CorruptCheckpointError(f"{self.name}: both labels of the checkpoint store are damaged")
            if any(any(data) for data in ends):
                raise CheckpointNotFoundError(f"{self.name} holds something that is not a checkpoint store")
            raise CheckpointNotFoundError(f"no checkpoint store on {self.name}: it is blank")
        if label.size != self.namespace.size - self.namespace.size % UNIT_BYTES:
            data = await self._read_label(label.offsets[1])
            labels[1] = Label.decode(data, self.namespace.block_size, self.namespace.size)
        if labels[0] is None and not any(ends[0]) and (await self._read_rings(label)).current is None:
            raise CheckpointNotFoundError(f"no checkpoint store on {self.name}: formatting it was interrupted")
        if None in labels:
            notices.append(f"label {'AB'[labels.index(None)]} is damaged; the other copy is used")
            self._labels_to_repair = (label.offsets[labels.index(None)],)
        elif labels[0] != labels[1]:
            raise CorruptCheckpointError(f"{self.name}: the two labels are of different checkpoint stores")
        return label

    async def _read_ends(self) -> list[bytearray]:
        size = self.namespace.size - self.namespace.size % UNIT_BYTES
        if size < 2 * UNIT_BYTES:
            raise CheckpointNotFoundError(f"{self.name} of {size} bytes is too small for a checkpoint store")
        return [await self._read_label(offset) for offset in (0, size - UNIT_BYTES)]

    async def _read_label(self, offset: int) -> bytearray:
        """A unit; one that cannot be read counts as damaged, not as blank."""
        try:
            return await self.namespace.read(offset, UNIT_BYTES)
        except StatusError as error:
            if not is_media_error(error):
                raise
            return bytearray(UNREADABLE)

    async def _read_rings(self, label: Label) -> Rings:
        newest: list[Record | None] = []
        damaged = []
        for ring in (0, 1):
            best: Record | None = None
            try:
                data = bytes(await self.namespace.read(label.ring_offset(ring), RING_BYTES))
            except StatusError as error:
                if not is_media_error(error):
                    raise
                damaged.append(f"superblock ring {'AB'[ring]} is unreadable ({error})")
                data = b""
            for slot in range(len(data) // UNIT_BYTES):
                raw = data[slot * UNIT_BYTES : slot * UNIT_BYTES + RECORD_BYTES]
                record = Record.decode(raw, label.uuid, ring, slot)
                if record is None and any(raw):
                    damaged.append(f"slot {slot} of superblock ring {'AB'[ring]} is damaged")
                if record is not None and (best is None or record.generation > best.generation):
                    best = record
            newest.append(best)
        return Rings((newest[0], newest[1]), tuple(damaged))

    async def _read_catalog(self, record: Record) -> Catalog:
        length = record.catalog_bytes + -record.catalog_bytes % UNIT_BYTES
        if length > self.label.catalog_bytes:
            raise CorruptCheckpointError(f"{self.name}: a catalog of {record.catalog_bytes} bytes")
        for copy, offset in enumerate(record.catalog_offsets):
            try:
                data = bytes(await self.namespace.read(offset, length))[: record.catalog_bytes]
            except StatusError as error:
                if not is_media_error(error):
                    raise
                self.notices.append(f"catalog copy {'AB'[copy]} is unreadable ({error})")
                continue
            if blake3_256(data) == record.catalog_hash:
                catalog = Catalog.decode(data, self.label.data_start, self.label.data_end)
                if catalog.generation == record.generation:
                    return catalog
            self.notices.append(f"catalog copy {'AB'[copy]} is damaged")
        raise CorruptCheckpointError(f"{self.name}: both copies of the catalog are damaged")

    async def prepare(self, force_format: bool) -> Catalog:
        """Make ready to write: format a blank namespace, rewrite a damaged label, bring a ring that lags up to date.

        ``force_format`` also formats what is neither blank nor a good store. Raises UsageError without it.
        """
        self._refuse_if_failed()
        known = self._rings.current
        try:
            await self.load()
        except CheckpointNotFoundError:
            await self._format(force_format)
            await self.load()
        except (CorruptCheckpointError, UsageError):
            if not force_format:
                raise
            await self._format(force_format)
            await self.load()
        current = self._rings.current
        assert current is not None
        if current != known:
            self._epoch = None
        for offset in self._labels_to_repair:
            await self.namespace.write(offset, self.label.encode(), fua=True)
        self._labels_to_repair = ()
        for ring, newest in enumerate(self._rings.newest):
            if newest is None or newest.generation != current.generation:
                await self._write_record(current, ring)
        self._rings = Rings((current, current), self._rings.damaged)
        return self.catalog

    async def confirm_own(self) -> None:
        """Raise CheckpointError unless the current record is the one this session wrote last."""
        if (await self._read_rings(self.label)).current != self._rings.current:
            self._superseded()

    async def check_superseded(self) -> None:
        """As :meth:`confirm_own`, but by two reads of 4 KiB: our own slot of ring A, and the one that comes next."""
        current = self._rings.current
        assert current is not None
        for slot in (current.slot, (current.slot + 1) % RING_SLOTS):
            data = bytes(await self.namespace.read(self.label.slot_offset(0, slot), UNIT_BYTES))
            record = Record.decode(data[:RECORD_BYTES], self.label.uuid, 0, slot)
            if record is not None and record.generation >= current.generation and record != current:
                self._superseded()

    def _superseded(self) -> NoReturn:
        self._failed = "another writer has taken over this namespace"
        raise CheckpointError(f"{self.name}: {self._failed}; nothing of this save was committed")

    def _refuse_if_failed(self) -> None:
        if self._failed:
            raise CheckpointError(f"{self.name}: {self._failed}; open the store again")

    def next_epoch(self) -> int:
        """The epoch that the next commit of this session belongs to."""
        current = self._rings.current
        assert current is not None
        return self._epoch or (current.generation >> EPOCH_SHIFT) + 1

    async def publish(self, entries: Iterable[CatalogEntry], next_sequence: int) -> None:
        """Commit a catalog: everything written so far, and it, are on media and current when this returns.

        Raises, and leaves this session unable to write, if any step fails; never retries one.
        """
        self._refuse_if_failed()
        current = self._rings.current
        assert current is not None
        epoch = self.next_epoch()
        generation = current.generation + 1 if epoch == self._epoch else epoch << EPOCH_SHIFT | 1
        catalog = Catalog(generation, next_sequence, tuple(entries))
        data = catalog.encode()
        if len(data) > self.label.catalog_bytes:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: the catalog is full; delete checkpoints")
        self._epoch = epoch
        self._failed = "a commit failed, so what is on media is not known here"
        record = await self._write_catalog(data, generation, (current.slot + 1) % RING_SLOTS)
        await self.namespace.flush()
        await self._write_record(record, 0)
        await self._write_record(record, 1)
        await self.namespace.flush()
        self._failed = ""
        self._rings = replace(self._rings, newest=(record, record))
        self.catalog = catalog

    async def _write_catalog(self, data: bytes, generation: int, slot: int) -> Record:
        """Both copies, to a slot that no newest record names."""
        in_use = {record.catalog_offsets[0] for record in self._rings.newest if record}
        place = next(i for i in range(CATALOG_SLOTS) if self.label.catalog_offset(0, i) not in in_use)
        offsets = (self.label.catalog_offset(0, place), self.label.catalog_offset(1, place))
        padded = data.ljust(len(data) + -len(data) % UNIT_BYTES, b"\0")
        for offset in offsets:
            await self.namespace.write(offset, padded)
        return Record(generation, time.time_ns(), offsets, len(data), blake3_256(data), slot)

    async def _write_record(self, record: Record, ring: int) -> None:
        block = record.encode(self.label.uuid, ring, self.namespace.block_size)
        await self.namespace.write(self.label.slot_offset(ring, record.slot), block, fua=True)

    async def _format(self, force: bool) -> None:
        """FORMAT.md, 2.6. Raises UsageError if the place is not blank and ``force`` is not given."""
        unfinished = await self._interrupted_uuid()
        label = Label.plan(unfinished or uuid4(), self.namespace.block_size, self.namespace.size, time.time_ns())
        ranges = ((0, label.data_start), (label.data_end, label.data_start))
        blank = unfinished is not None or await self._all_zeros(ranges)
        if not blank and not force:
            raise UsageError(
                f"{self.name} is not blank: something is kept there. To destroy it for a checkpoint store: --format"
            )
        self._failed = "formatting failed"
        if not blank:
            for offset in label.offsets:
                await self.namespace.write(offset, bytes(UNIT_BYTES))
            await self.namespace.flush()
            for start, length in ranges:
                await self._write_zeros(start, length)
            await self.namespace.flush()
        self._label = label
        self._rings = Rings((None, None))
        await self.namespace.write(label.offsets[1], label.encode(), fua=True)
        generation = 1 << EPOCH_SHIFT | 1
        record = await self._write_catalog(Catalog(generation).encode(), generation, 0)
        await self.namespace.flush()
        await self._write_record(record, 0)
        await self._write_record(record, 1)
        await self.namespace.write(label.offsets[0], label.encode(), fua=True)
        await self.namespace.flush()
        self._failed = ""

    async def _interrupted_uuid(self) -> UUID | None:
        """The UUID of a formatting that was interrupted before label A, if there was one."""
        first, last = await self._read_ends()
        label = Label.decode(last, self.namespace.block_size, self.namespace.size)
        if any(first) or label is None or (await self._read_rings(label)).current is not None:
            return None
        return label.uuid

    async def _all_zeros(self, ranges: Iterable[tuple[int, int]]) -> bool:
        for start, length in ranges:
            for offset in range(start, start + length, PROBE_BYTES):
                count = min(PROBE_BYTES, start + length - offset)
                if await self.namespace.read(offset, count) != bytes(count):
                    return False
        return True

    async def _write_zeros(self, start: int, length: int) -> None:
        for offset in range(start, start + length, PROBE_BYTES):
            await self.namespace.write(offset, bytes(min(PROBE_BYTES, start + length - offset)))
