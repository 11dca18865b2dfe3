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
from uuid import uuid4

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
NUMBER_MAX = (1 << 63) - 1
NOTHING_COMMITTED = "a commit failed before its record was written, so nothing of it counts"
OUTCOME_UNKNOWN = "a commit failed, so what is on media is not known here"
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
    readable: tuple[bool, bool] = (True, True)

    @property
    def candidates(self) -> list[Record]:
        """The records of the highest generation. Two that differ are of writers that met; ring A's comes first."""
        records = [record for record in self.newest if record]
        highest = max((record.generation for record in records), default=0)
        return list(dict.fromkeys(record for record in records if record.generation == highest))


def _with_newest(rings: Rings, ring: int, record: Record) -> Rings:
    first, second = rings.newest
    return replace(rings, newest=(record, second) if ring == 0 else (first, record))


def _padded(data: bytes) -> bytes:
    return data.ljust(len(data) + -len(data) % UNIT_BYTES, b"\0")


class NamespaceCatalog:
    """The current catalog of a namespace. Call :meth:`load` first; :meth:`publish` replaces it atomically."""

    def __init__(self, namespace: BlockNamespace, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self.notices: list[str] = []
        self.catalog = Catalog(0)
        self._label: Label | None = None
        self._rings = Rings((None, None))
        self._current: Record | None = None
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
        candidates = rings.candidates
        if not candidates:
            raise CorruptCheckpointError(f"{self.name}: neither superblock ring has a valid record")
        for text in rings.damaged:
            if text not in self.notices:
                self.notices.append(text)
        if candidates != [self._current]:
            self._current, self.catalog = await self._read_first_catalog(candidates)
        self._rings = rings
        return self.catalog

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
        if labels[0] is None and not any(ends[0]) and not (await self._read_rings(label)).candidates:
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
        readable = [True, True]
        for ring in (0, 1):
            best: Record | None = None
            try:
                data = bytes(await self.namespace.read(label.ring_offset(ring), RING_BYTES))
            except StatusError as error:
                if not is_media_error(error):
                    raise
                damaged.append(f"superblock ring {'AB'[ring]} is unreadable ({error})")
                readable[ring] = False
                data = b""
            for slot in range(len(data) // UNIT_BYTES):
                raw = data[slot * UNIT_BYTES : slot * UNIT_BYTES + RECORD_BYTES]
                record = Record.decode(raw, label.uuid, ring, slot)
                if record is None and any(raw):
                    damaged.append(f"slot {slot} of superblock ring {'AB'[ring]} is damaged")
                if record is not None and (best is None or record.generation > best.generation):
                    best = record
            newest.append(best)
        return Rings((newest[0], newest[1]), tuple(damaged), (readable[0], readable[1]))

    async def _read_first_catalog(self, candidates: list[Record]) -> tuple[Record, Catalog]:
        """The first of these records of one generation whose catalog is whole."""
        for record in candidates[:-1]:
            try:
                return record, await self._read_catalog(record)
            except CorruptCheckpointError as error:
                self.notices.append(f"{error}; the other ring's record of the same generation is used")
        return candidates[-1], await self._read_catalog(candidates[-1])

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

        ``force_format`` also formats what is neither blank nor a store; no store is ever formatted, damaged, newer or
        not. Raises UsageError without it.
        """
        self._refuse_if_failed()
        try:
            await self.load()
        except CheckpointNotFoundError:
            await self._format(force_format)
            await self.load()
        except (CorruptCheckpointError, UsageError) as error:
            if force_format:
                error.args = (f"{error}; --format overwrites no checkpoint store: to give it up, zero both its ends",)
            raise
        current = self._current
        assert current is not None
        self._epoch = None
        for offset in self._labels_to_repair:
            await self.namespace.write(offset, self.label.encode(), fua=True)
        self._labels_to_repair = ()
        if any(newest != current for newest in self._rings.newest):
            for ring in (0, 1):
                await self._expect(*self._rings.newest)
                if self._rings.newest[ring] != current:
                    await self._write_record(current, ring)
                    self._rings = _with_newest(self._rings, ring, current)
        return self.catalog

    async def claim(self) -> None:
        """Open a new epoch by publishing the catalog as it is: what a dead writer left under way has lost from now on.

        Without it a delayed record of a writer that also found the current one would have the generation of this
        operation's only commit, and might replace it.
        """
        await self.publish(self.catalog.entries, self.catalog.next_sequence)

    async def confirm_own(self) -> None:
        """Raise CheckpointError unless the newest record of both rings is the one this session wrote last."""
        await self._expect(*self._rings.newest)

    async def _expect(self, first: Record | None, second: Record | None) -> None:
        """Read the rings and raise CheckpointError unless their newest records are these: ring A's and ring B's.

        A ring that cannot be read is passed over, as everywhere; two are an error.
        """
        found = await self._read_rings(self.label)
        pairs = zip(found.newest, (first, second), found.readable, strict=True)
        if not any(found.readable) or any(there != wanted for there, wanted, readable in pairs if readable):
            self._superseded()

    async def check_superseded(self) -> None:
        """As :meth:`confirm_own`, but by two reads of 4 KiB: our own slot of ring A, and the one that comes next."""
        current = self._current
        assert current is not None
        for slot in (current.slot, (current.slot + 1) % RING_SLOTS):
            data = bytes(await self.namespace.read(self.label.slot_offset(0, slot), UNIT_BYTES))
            record = Record.decode(data[:RECORD_BYTES], self.label.uuid, 0, slot)
            if record is not None and record.generation >= current.generation and record != current:
                self._superseded()

    def _superseded(self) -> NoReturn:
        outcome = self._failed or "nothing of this save or delete was committed"
        self._failed = "another writer has taken over this namespace"
        raise CheckpointError(f"{self.name}: {self._failed}; {outcome}")

    def _refuse_if_failed(self) -> None:
        if self._failed:
            raise CheckpointError(f"{self.name}: {self._failed}; open the store again")

    def next_epoch(self) -> int:
        """The epoch that the next commit of this save or delete belongs to."""
        current = self._current
        assert current is not None
        return self._epoch or (current.generation >> EPOCH_SHIFT) + 1

    async def publish(self, entries: Iterable[CatalogEntry], next_sequence: int) -> None:
        """Commit a catalog: everything written so far, and it, are on media and current when this returns.

        Raises, and leaves this session unable to write, if any step fails or another writer's record is found; never
        retries one.
        """
        self._refuse_if_failed()
        current = self._current
        assert current is not None
        epoch = self.next_epoch()
        generation = current.generation + 1 if epoch == self._epoch else epoch << EPOCH_SHIFT | 1
        if max(generation, next_sequence) > NUMBER_MAX:
            raise CheckpointError(f"{self.name}: generation {generation}, sequence {next_sequence}: out of numbers")
        catalog = Catalog(generation, next_sequence, tuple(entries))
        data = catalog.encode()
        if len(data) > self.label.catalog_bytes:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: the catalog is full; delete checkpoints")
        await self.confirm_own()
        self._epoch = epoch
        self._failed = NOTHING_COMMITTED
        record = await self._write_catalog(data, generation, (current.slot + 1) % RING_SLOTS)
        await self.namespace.flush()
        if await self._spoiled_copies(record, data):
            self._superseded()
        await self.confirm_own()
        before = self._rings.newest
        self._failed = OUTCOME_UNKNOWN
        await self._write_record(record, 0)
        await self._expect(record, before[1])
        await self._write_record(record, 1)
        await self.namespace.flush()
        await self._expect(record, record)
        for offset in await self._spoiled_copies(record, data):
            await self._expect(record, record)
            await self.namespace.write(offset, _padded(data), fua=True)
            await self._expect(record, record)
        self._failed = ""
        self._rings = replace(self._rings, newest=(record, record))
        self._current, self.catalog = record, catalog

    async def _write_catalog(self, data: bytes, generation: int, slot: int) -> Record:
        """Both copies, to a slot that no newest record names; the second only if no other writer has come meanwhile.

        So a writer that is late spoils one copy at most of what the other one has committed into the same slot.
        """
        in_use = {record.catalog_offsets[0] for record in self._rings.newest if record}
        place = next(i for i in range(CATALOG_SLOTS) if self.label.catalog_offset(0, i) not in in_use)
        offsets = (self.label.catalog_offset(0, place), self.label.catalog_offset(1, place))
        await self.namespace.write(offsets[0], _padded(data))
        await self.confirm_own()
        await self.namespace.write(offsets[1], _padded(data))
        return Record(generation, time.time_ns(), offsets, len(data), blake3_256(data), slot)

    async def _spoiled_copies(self, record: Record, data: bytes) -> list[int]:
        """Offsets of the copies of the catalog that another writer has written over. One that cannot be read is none.

        Looked at before the record, and again after it: by then the other one has at most one write left under way, for
        its next look at the rings stops it.
        """
        spoiled = []
        for offset in record.catalog_offsets:
            try:
                if await self.namespace.read(offset, len(_padded(data))) != _padded(data):
                    spoiled.append(offset)
            except StatusError as error:
                if not is_media_error(error):
                    raise
        return spoiled

    async def _write_record(self, record: Record, ring: int) -> None:
        block = record.encode(self.label.uuid, ring, self.namespace.block_size)
        await self.namespace.write(self.label.slot_offset(ring, record.slot), block, fua=True)

    async def _format(self, force: bool) -> None:
        """FORMAT.md, 2.6. Raises UsageError if the place is not blank and ``force`` is not given."""
        unfinished = await self._interrupted_label()
        uuid = unfinished.uuid if unfinished else uuid4()
        label = Label.plan(uuid, self.namespace.block_size, self.namespace.size, time.time_ns())
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
        self._rings, self._current = Rings((None, None)), None
        await self._confirm_formatting(unfinished.encode() if unfinished else bytes(UNIT_BYTES))
        await self.namespace.write(label.offsets[1], label.encode(), fua=True)
        generation = 1 << EPOCH_SHIFT | 1
        record = await self._write_catalog(Catalog(generation).encode(), generation, 0)
        await self.namespace.flush()
        await self._confirm_formatting(label.encode())
        await self._write_record(record, 0)
        await self._write_record(record, 1)
        await self._confirm_formatting(label.encode())
        await self.namespace.write(label.offsets[0], label.encode(), fua=True)
        await self.namespace.flush()
        self._failed = ""

    async def _confirm_formatting(self, second: bytes) -> None:
        """Raise CheckpointError unless there is no label A, and label B is ``second``: nobody else is formatting."""
        first, last = await self._read_ends()
        if any(first) or last != second:
            self._superseded()

    async def _interrupted_label(self) -> Label | None:
        """Label B of a formatting that was interrupted before label A, if there was one."""
        first, last = await self._read_ends()
        label = Label.decode(last, self.namespace.block_size, self.namespace.size)
        if any(first) or label is None or (await self._read_rings(label)).candidates:
            return None
        return label

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
