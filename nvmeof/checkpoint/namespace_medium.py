"""Checkpoints on a raw namespace (FORMAT.md, 2)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from nvmeof.checkpoint.catalog import CatalogEntry
from nvmeof.checkpoint.extents import UNIT_BYTES, Extent, allocate, free_extents, locate
from nvmeof.checkpoint.medium import (
    COMMITTED,
    PARTS,
    WRITING,
    CheckpointInfo,
    Damage,
    DamagedError,
    Draft,
    Medium,
    Part,
    Piece,
    Plan,
    Stored,
)
from nvmeof.checkpoint.namespace_catalog import BlockNamespace, NamespaceCatalog
from nvmeof.codec.hashes import blake3_256
from nvmeof.errors import CheckpointError, UsageError

DIRECT_BYTES_MIN = 128 << 10
"""From this length on, a piece goes straight between its own memory and the wire; smaller ones are copied together with
their neighbours into one write: a copy of 128 KiB takes 10 us, a command of its own 20 us and more."""

SUPERSEDED_CHECK_SECONDS = 1.0
"""How often a save looks whether another writer took over. Two 4 KiB reads a second cost nothing."""

FLUSH_BYTES = 512 << 20
"""A Flush is sent each time so much was written, beside the writes that go on. The one that counts comes at the end;
these keep it short, so that it does not run into the time limit of a command (5 seconds at 100 MB/s)."""

_ZEROS = bytes(UNIT_BYTES)


def _rounded(length: int) -> int:
    return length + -length % UNIT_BYTES


def _infos(entries: Sequence[CatalogEntry]) -> list[CheckpointInfo]:
    return sorted(entries, key=lambda entry: (entry.sequence or 1 << 63, entry.created_ns))


class NamespaceMedium(Medium):
    """A checkpoint store on one namespace. ``on_close`` is awaited by :meth:`close`.

    ``force_format`` makes a store even of a namespace that is neither blank nor a store. ``reclaim`` lets the next save
    use the space of interrupted ones at once; only safe when their writers are known to be dead.
    """

    def __init__(
        self,
        namespace: BlockNamespace,
        name: str,
        *,
        force_format: bool = False,
        reclaim: bool = False,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._namespace = namespace
        self._name = name
        self._force_format = force_format
        self._reclaim = reclaim
        self._on_close = on_close
        self._reader = NamespaceCatalog(namespace, name)
        self._writer = NamespaceCatalog(namespace, name)
        self._settled: set[str] = set()

    @property
    def notices(self) -> list[str]:  # type: ignore[override]
        return list(dict.fromkeys(self._reader.notices + self._writer.notices))

    async def list(self) -> list[CheckpointInfo]:
        return _infos((await self._reader.load()).entries)

    async def begin(self, plan: Plan) -> Draft:
        catalog = await self._writer.prepare(self._force_format)
        if any(entry.step == plan.step and entry.state == COMMITTED for entry in catalog.entries):
            raise UsageError(f"{self._name} already has a checkpoint of step {plan.step}")
        kept = [entry for entry in catalog.entries if not self._is_over(entry)]
        offsets = []
        end = 0
        for item in plan.items:
            offsets.append(end)
            end += _rounded(item.size)
        parts = {}
        for name in PARTS:
            parts[name] = Part(end, plan.part_bytes[name], b"")
            end += _rounded(plan.part_bytes[name])
        entry = CatalogEntry(
            step=plan.step,
            state=WRITING,
            id=plan.id,
            created_ns=plan.created_ns,
            kind=plan.manifest.kind,
            items=len(plan.items),
            chunks=plan.chunks,
            size=plan.size,
            parts=parts,
            epoch=self._writer.next_epoch(),
            extents=self._allocate(kept, end),
        )
        await self._writer.publish([*kept, entry], catalog.next_sequence)
        await self._writer.confirm_own()
        return _NamespaceDraft(self, self._writer, entry, offsets)

    def _is_over(self, entry: CatalogEntry) -> bool:
        """Whether an entry's save is known to have ended without a commit, so that its space is free."""
        return entry.state == WRITING and (self._reclaim or entry.id in self._settled)

    def _allocate(self, kept: Sequence[CatalogEntry], length: int) -> tuple[Extent, ...]:
        label = self._writer.label
        claimed = [extent for entry in kept for extent in entry.extents]
        newest = max(kept, key=lambda entry: entry.created_ns, default=None)
        cursor = newest.extents[-1].end if newest else label.data_start
        try:
            return allocate(free_extents(label.data_start, label.data_end, claimed), length, cursor)
        except OSError as error:
            held = sum(extent.length for entry in kept if entry.state == WRITING for extent in entry.extents)
            hint = f"; {held} more are held by interrupted saves (--reclaim frees them)" if held else ""
            raise OSError(error.errno, f"{self._name}: {error.strerror}{hint}") from None

    def settle(self, entry: CatalogEntry) -> None:
        """The save of ``entry`` failed, but every write of it was answered: the next save may use its space."""
        self._settled.add(entry.id)

    async def open(self, info: CheckpointInfo, *, bypass_cache: bool = False) -> Stored:
        assert isinstance(info, CatalogEntry)
        return _NamespaceStored(self._namespace, self._name, info)

    async def delete(self, infos: Sequence[CheckpointInfo]) -> None:
        await self._writer.prepare(False)
        await self._writer.claim()
        catalog = self._writer.catalog
        doomed = {info.id for info in infos}
        await self._writer.publish(
            [entry for entry in catalog.entries if entry.id not in doomed], catalog.next_sequence
        )

    async def close(self) -> None:
        if self._on_close is not None:
            await self._on_close()


class _NamespaceDraft(Draft):
    """A save under way. Its region is its extents joined; items start at unit boundaries."""

    alignment = UNIT_BYTES

    def __init__(
        self, medium: NamespaceMedium, store: NamespaceCatalog, entry: CatalogEntry, offsets: Sequence[int]
    ) -> None:
        self._medium = medium
        self._store = store
        self._namespace = store.namespace
        self._entry = entry
        self.regions = [0] * len(offsets)
        self.offsets = offsets
        self._checked = time.monotonic()
        self._unflushed_bytes = 0

    async def write(self, region: int, pieces: Sequence[Piece]) -> None:
        assert region == 0
        if time.monotonic() - self._checked > SUPERSEDED_CHECK_SECONDS:
            self._checked = time.monotonic()
            await self._store.check_superseded()
        for offset, data in _writes(pieces):
            done = 0
            for extent in locate(self._entry.extents, offset, len(data)):
                await self._namespace.write(extent.offset, data[done : done + extent.length])
                done += extent.length
            assert done == len(data)
            self._unflushed_bytes += done
        if self._unflushed_bytes >= FLUSH_BYTES:
            self._unflushed_bytes = 0
            await self._namespace.flush()

    async def commit(self, parts: Mapping[str, memoryview], root_digest: bytes) -> CheckpointInfo:
        entry = self._entry
        hashed = {}
        for name, part in entry.parts.items():
            assert part.length == len(parts[name])
            hashed[name] = replace(part, hash=blake3_256(parts[name]))
            await self.write(0, [(part.offset, parts[name])])
        await self._store.confirm_own()
        catalog = self._store.catalog
        committed = replace(
            entry, state=COMMITTED, sequence=catalog.next_sequence, root_digest=root_digest, parts=hashed
        )
        kept = [other for other in catalog.entries if other.state == COMMITTED]
        await self._store.publish([*kept, committed], catalog.next_sequence + 1)
        return committed

    async def abandon(self, error: BaseException) -> None:
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self._medium.settle(self._entry)


def _writes(pieces: Sequence[Piece]) -> Iterator[tuple[int, memoryview]]:
    """Turn pieces into writes of whole units: large memory as it is, small pieces and tails joined, gaps zero."""
    joined: list[bytes | memoryview] = []
    start = end = 0
    for offset, view in pieces:
        direct = len(view) - len(view) % UNIT_BYTES
        if direct >= DIRECT_BYTES_MIN:
            if joined:
                yield start, memoryview(b"".join(joined))
                joined = []
            yield offset, view[:direct]
            offset, view = offset + direct, view[direct:]
            if not view:
                continue
        if not joined:
            start = end = offset
        assert offset == end
        padding = -len(view) % UNIT_BYTES
        joined += [view, _ZEROS[:padding]] if padding else [view]
        end = offset + len(view) + padding
    if joined:
        yield start, memoryview(b"".join(joined))


class _NamespaceStored(Stored):
    """A committed checkpoint on a namespace."""

    alignment = UNIT_BYTES

    def __init__(self, namespace: BlockNamespace, name: str, entry: CatalogEntry) -> None:
        self._namespace = namespace
        self._name = name
        self._entry = entry
        self._room = self.capacity = sum(extent.length for extent in entry.extents)
        self.info = entry

    async def read_part(self, name: str) -> bytearray:
        part = self._entry.parts[name]
        data = bytearray(part.length)
        await self.read(0, [(part.offset, memoryview(data))])
        return data

    async def read(self, region: int, pieces: Sequence[Piece]) -> None:
        small: list[Piece] = []
        for offset, view in pieces:
            if region or offset % UNIT_BYTES or offset + len(view) > self._room:
                where = self.where(region, offset, len(view))
                raise DamagedError(self.info.step, [Damage("", 0, 0, 0, where, "a chunk outside the checkpoint")])
            direct = len(view) - len(view) % UNIT_BYTES
            if direct >= DIRECT_BYTES_MIN:
                await self._read_exactly(offset, view[:direct])
                offset, view = offset + direct, view[direct:]
            if view:
                small.append((offset, view))
        for start, end, group in _neighbours(small):
            staging = memoryview(bytearray(end - start))
            await self._read_exactly(start, staging)
            for offset, view in group:
                view[:] = staging[offset - start : offset - start + len(view)]

    async def _read_exactly(self, offset: int, view: memoryview) -> None:
        done = 0
        for extent in locate(self._entry.extents, offset, len(view)):
            count = await self._namespace.readinto(extent.offset, view[done : done + extent.length])
            if count != extent.length:
                raise CheckpointError(f"{self._name}: {count} bytes read at {extent.offset}, asked for {extent.length}")
            done += count

    def where(self, region: int, offset: int, length: int) -> str:
        found = [f"{extent.offset} to {extent.end}" for extent in locate(self._entry.extents, offset, length)]
        return f"{self._name} bytes {' and '.join(found) or 'nowhere'}"

    def where_part(self, name: str) -> str:
        return self.where(0, self._entry.parts[name].offset, self._entry.parts[name].length)

    async def close(self) -> None:
        pass


def _neighbours(pieces: Sequence[Piece]) -> Iterator[tuple[int, int, list[Piece]]]:
    """Group pieces that lie in adjoining units: start, end (rounded to units) and the pieces of each group."""
    group: list[Piece] = []
    start = end = 0
    for offset, view in pieces:
        if group and offset == end:
            group.append((offset, view))
        else:
            if group:
                yield start, end, group
            group, start = [(offset, view)], offset
        end = offset + _rounded(len(view))
    if group:
        yield start, end, group
