"""Committing the map: dirty pages, tables and root to the log, then the superblock (FORMAT.md, section 2, 4)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from nvmeof.engine.blockmap import CHUNK_ENTRIES
from nvmeof.engine.layout import PAGE, SEGMENT_MASK, SEGMENT_SHIFT, Kind
from nvmeof.engine.log import Level
from nvmeof.engine.pool_volume import NamespaceInfo
from nvmeof.engine.record import Sealed, seal_metadata
from nvmeof.errors import WriteFault

if TYPE_CHECKING:
    from nvmeof.engine.pool import Pool
    from nvmeof.engine.pool_volume import PoolVolume

_BATCH = 64


class Committer:
    """Commits a pool's map, one at a time. ``root`` and ``tables`` are the entries of the last one."""

    def __init__(self, pool: Pool, root: int = 0, tables: tuple[int, ...] = ()) -> None:
        self.pool = pool
        self.root = root
        self.tables = tables
        self.commits = 0

    async def commit(self, *, clean: bool = False) -> None:
        """Make the map as it is now what the next opening begins with. Raises WriteFault.

        It cannot be left halfway: whatever interrupts it stops the pool.
        """
        try:
            await self._commit(clean)
        except BaseException as error:
            self.pool.log.fail(f"a commit of the map failed: {error!r}")
            raise

    async def _commit(self, clean: bool) -> None:
        pool, segments = self.pool, self.pool.segments
        sequence, segment, page = pool.log.begin_head()
        pool.log.appended = 0
        busy = pool.log.busy_segments
        idle = {number for number in range(segments.count) if segments.idle(number) and number not in busy}
        dirty = [
            (each, number, each.map.page_bytes(number)) for each in pool.volumes() for number in each.map.take_dirty()
        ]
        for at in range(0, len(dirty), _BATCH):
            await self._put_pages(dirty[at : at + _BATCH])
        for volume in pool.volumes():
            volume.map.committing.clear()
            await self._put_chunks(volume)
        for entry in (*self.tables, self.root):
            self.forget(entry)
        freed = {number for number in idle if not segments.meta[number] and number not in segments.pins}
        tables = []
        for number, content in enumerate(segments.encode(freed)):
            tables.append(await self._put(Kind.SEGMENT_TABLE, 0, number, len(content), seal_metadata(content)))
        content = encode_root(pool, tables)
        root = await self._put(Kind.ROOT, 0, 0, len(content), seal_metadata(content))
        root_sequence = pool.log.sequence if pool.log.stripe is None else pool.log.stripe.sequence
        await pool.log.flush()
        await pool.save_superblock(
            root=root, root_sequence=root_sequence, sequence=sequence, segment=segment, page=page, clean=clean
        )
        self.root, self.tables = root, tuple(tables)
        self.commits += 1
        await pool.release(freed)

    async def _put_pages(self, batch: list[tuple[PoolVolume, int, bytes]]) -> None:
        sealed = await self.pool.executor.run(_seal_pages, [content for _, _, content in batch])
        for (volume, number, _), each in zip(batch, sealed, strict=True):
            entry = 0
            if each is not None:
                entry = await self._put(Kind.MAP_PAGE, volume.info.identifier, number, PAGE, each)
            self.forget(volume.map.table[number])
            volume.map.table[number] = entry
            volume.map.dirty_chunks.add(number // CHUNK_ENTRIES)

    async def _put_chunks(self, volume: PoolVolume) -> None:
        numbers, volume.map.dirty_chunks = sorted(volume.map.dirty_chunks), set()
        for number in numbers:
            content = volume.map.table[number * CHUNK_ENTRIES : (number + 1) * CHUNK_ENTRIES].tobytes()
            sealed = seal_metadata(content)
            entry = await self._put(Kind.MAP_TABLE, volume.info.identifier, number, len(content), sealed)
            self.forget(volume.map.chunks[number])
            volume.map.chunks[number] = entry

    async def _put(self, kind: Kind, namespace: int, number: int, raw: int, sealed: Sealed) -> int:
        log, segments = self.pool.log, self.pool.segments
        while not (entry := log.append(kind, namespace, number, raw, sealed, level=Level.COMMIT)):
            if log.starved:
                log.fail("no free segment is left for the map: the reserve is used up")
                raise WriteFault(log.fault)
            await log.wait_room()
        segment = entry >> SEGMENT_SHIFT & SEGMENT_MASK
        segments.meta[segment] += 1
        segments.references[segment] += 1
        return entry

    def forget(self, entry: int) -> None:
        """Nothing refers to a metadata record any more; its segment is one reference poorer."""
        if entry:
            self.pool.segments.meta[entry >> SEGMENT_SHIFT & SEGMENT_MASK] -= 1


def _seal_pages(contents: list[bytes]) -> list[Sealed | None]:
    return [seal_metadata(content) if any(content) else None for content in contents]


def encode_root(pool: Pool, tables: list[int]) -> bytes:
    """The root's JSON."""
    namespaces = [
        {
            "id": volume.info.identifier,
            "nsid": volume.info.nsid,
            "uuid": str(volume.info.uuid),
            "size": volume.info.size,
            "block_size": volume.info.block_size,
            "codec": volume.info.codec,
            "level": volume.info.level,
            "planes": volume.info.planes,
            "key_id": volume.info.key_id,
            "write_cache": volume.info.write_cache,
            "chunks": list(volume.map.chunks),
        }
        for volume in pool.volumes()
    ]
    return json.dumps({"namespaces": namespaces, "segments": tables, "next": pool.next_identifier}).encode()


class BadRootError(Exception):
    """The root verifies as a record and yet makes no sense."""


def decode_root(content: bytes) -> tuple[list[tuple[NamespaceInfo, list[int]]], list[int], int]:
    """Namespaces with their chunks' entries, entries of the segment table, next identifier. Raises BadRootError."""
    try:
        fields = json.loads(content)
        namespaces = [_namespace(each) for each in fields["namespaces"]]
        segments = [_checked(entry) for entry in fields["segments"]]
        return namespaces, segments, _integer(fields, "next", 1, 1 << 32)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadRootError(f"the root makes no sense: {error!r}") from error


def _namespace(fields: dict[str, Any]) -> tuple[NamespaceInfo, list[int]]:
    info = NamespaceInfo(
        identifier=_integer(fields, "id", 1, 1 << 32),
        nsid=_integer(fields, "nsid", 1, 1 << 32),
        uuid=UUID(fields["uuid"]),
        size=_integer(fields, "size", 1, 1 << 50),
        block_size=_one_of(fields, "block_size", (512, 4096).__contains__),
        codec=str(fields["codec"]),
        level=_integer(fields, "level", -100, 100),
        planes=_integer(fields, "planes", 0, 9),
        key_id=_integer(fields, "key_id", 0, 1 << 16),
        write_cache=bool(fields["write_cache"]),
    )
    if info.size % info.block_size:
        raise ValueError("size is no multiple of the block size")
    return info, [_checked(entry) for entry in fields["chunks"]]


def _integer(fields: dict[str, Any], name: str, low: int, end: int) -> int:
    return _one_of(fields, name, lambda value: low <= value < end)


def _one_of(fields: dict[str, Any], name: str, accept: Callable[[int], bool]) -> int:
    value = fields[name]
    if type(value) is not int or not accept(value):
        raise ValueError(f"{name} is {value!r}")
    return value


def _checked(entry: object) -> int:
    if type(entry) is not int or not 0 <= entry < 1 << 64:
        raise ValueError(f"{entry!r} is no entry")
    return entry
