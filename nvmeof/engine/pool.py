"""A pool: members, namespaces, and everything that works on them (nvmeof/ARCHITECTURE.md, The engine)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self
from uuid import UUID, uuid4

from nvmeof.codec.packer import Packer
from nvmeof.engine import creation, opening
from nvmeof.engine.blockmap import BlockMap, chunks_for
from nvmeof.engine.cleaner import Cleaner
from nvmeof.engine.commit import Committer
from nvmeof.engine.creation import capacity
from nvmeof.engine.disk import Disk
from nvmeof.engine.executor import Executor, ThreadExecutor, finished
from nvmeof.engine.keyring import Keyring
from nvmeof.engine.layout import (
    COUNT_MAX,
    PAGE,
    PAGE_SHIFT,
    RECORD_RAW_MAX,
    UNIT,
    Geometry,
    Kind,
    LabelFlag,
    Superblock,
    stream_units,
)
from nvmeof.engine.log import Level, Log
from nvmeof.engine.member import HEAD, TAIL, Member, write_superblock
from nvmeof.engine.membership import Membership
from nvmeof.engine.opening import Found, OpenReport, is_encrypted
from nvmeof.engine.pool_status import PoolStatus, status_of
from nvmeof.engine.pool_volume import NamespaceInfo, PoolVolume
from nvmeof.engine.reader import Reader
from nvmeof.engine.record import Sealed, Sealer
from nvmeof.engine.scrub import Progress, ScrubReport, Walks
from nvmeof.engine.segments import Segments
from nvmeof.engine.volume import VolumeHealth
from nvmeof.errors import CapacityError, UsageError, VolumeError, WriteFault
from nvmeof.keys.sources import KeySource
from nvmeof.limits import (
    POOL_COMMIT_BYTES,
    POOL_COMMIT_PAGES_SHARE,
    POOL_MAP_CHUNKS_MAX,
    POOL_NAMESPACES_MAX,
    POOL_THREADS,
    VOLUME_BLOCK_SIZES,
)

_EMPTY = Sealed(0, 0, 0, 0, 0, b"")


class Pool:
    """An open pool. Make one with :meth:`create`, open it with :meth:`open`; it owns its disks until :meth:`close`.

    Belongs to the event loop it was opened on. ``opened`` says what opening did,
    ``background_error`` what last went wrong where nobody waited for it.
    """

    uuid: UUID
    geometry: Geometry
    incarnation: bytes
    opened: OpenReport

    def __init__(self, found: Found, keyring: Keyring | None, executor: Executor) -> None:
        """Use :meth:`open`."""
        self.geometry = found.geometry
        self.uuid = UUID(bytes=found.geometry.pool)
        self.members = found.members
        self.spares = found.spares
        self.keyring = keyring
        self.executor = executor
        self.superblock = found.superblock
        self.incarnation = found.superblock.incarnation
        self.epoch = found.superblock.epoch + 1
        self.background_error = ""
        self._errors_before = found.superblock.media_errors
        self.wake = asyncio.Event()
        self.segments = Segments(self.geometry)
        self.log = Log(self.geometry, self.segments, self.members, executor, self.epoch)
        self.log.persist = self.save_superblock
        self.log.on_failure = lambda role, error, what: self.wake.set()
        self.reader: Reader = Reader(self.geometry, self.segments, self.members, self.log, executor)
        self.committer = Committer(self)
        self.cleaner = Cleaner(self)
        self.decoded: OrderedDict[int, tuple[int, memoryview]] = OrderedDict()
        """Decoded records by entry: first block and content."""
        self.namespaces: dict[int, PoolVolume] = {}
        self.by_identifier: dict[int, PoolVolume] = {}
        self.next_identifier = 1
        self.opened = OpenReport()
        sb = found.superblock
        self.scrub_state = (sb.scrub_cursor, sb.scrub_stripes, sb.scrub_healed, sb.scrub_lost)
        self.membership = Membership(self)
        self.walks = Walks(self)
        stream = stream_units(self.geometry.data, self.geometry.segment_pages) * UNIT
        self.dirty_max = max(8, stream // POOL_COMMIT_PAGES_SHARE // (PAGE + UNIT))
        self.dirty_share = self.dirty_max
        """Of one namespace: below that nobody need look at the others."""
        self.admin = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._tender: asyncio.Task[None] | None = None
        self.closing = False
        self._disks: list[Disk] = []

    # -- life

    @staticmethod
    async def create(
        disks: Sequence[Disk], *, raid: str = "raid6", keys: KeySource | None = None, segment_bytes: int | None = None,
        sparse: bool = False, force: bool = False,
    ) -> Geometry:  # fmt: skip
        """Format ``disks`` as a new, empty pool; they stay open. Raises UsageError, OSError.

        A disk that has a pool's label is refused without ``force``. ``keys`` None: an unencrypted pool.
        """
        return await asyncio.to_thread(
            creation.create, disks, raid=raid, keys=keys, segment_bytes=segment_bytes, sparse=sparse, force=force
        )

    @classmethod
    async def open(
        cls, disks: Sequence[Disk], *, keys: KeySource | None = None, executor: Executor | None = None
    ) -> Self:
        """Open the pool on ``disks`` (in any order, up to m missing) and own them. Raises UsageError, WriteFault."""
        executor = executor or ThreadExecutor(POOL_THREADS, "pool")
        disks = list(disks)
        try:
            found = await executor.run(opening.find, disks)
            keyring = None
            if is_encrypted(found.geometry):
                if keys is None:
                    raise UsageError("the pool is encrypted: give its key file, passphrase or key command")
                held = [member.disk for member in found.members if member.readable]
                stale = [member.disk for member in found.members if not member.readable]
                keyring = await executor.run(Keyring.load, found.geometry, held, stale, keys)
            pool = cls(found, keyring, executor)
            pool.log.check_members()
            pool.opened = await opening.open_into(pool, found.superblock)
            await pool._drop_orphaned_keys()
            await pool._renew_keys()
        except BaseException:
            executor.close()
            for disk in disks:
                disk.close()
            raise
        pool._disks = disks
        pool._tender = asyncio.get_running_loop().create_task(pool._tend())
        pool.walks.resume()
        return pool

    async def close(self) -> None:
        """Stop what runs, put everything on media, and let go of the disks. Idempotent. Raises WriteFault."""
        if self.closing:
            return
        self.closing = True
        try:
            await self._stop_jobs()
            for volume in self.volumes():
                with contextlib.suppress(WriteFault):  # the log's fault, which is raised at the end
                    await volume.close()
            if not self.log.fault:
                async with self.admin:
                    await finished(self.committer.commit(clean=True))
        finally:
            self.executor.close()
            for disk in (*self._disks, *(member.disk for member in (*self.members, *self.spares))):
                if disk is not None:
                    disk.close()
        if self.log.fault:
            raise WriteFault(self.log.fault)

    async def _stop_jobs(self) -> None:
        self.wake.set()
        await self.walks.stop()
        if self._tender is not None:
            await asyncio.gather(self._tender, return_exceptions=True)

    async def flush(self) -> None:
        """Put every completed write of every namespace on media. Raises WriteFault."""
        await self.log.flush()

    async def commit(self) -> None:
        """Put the map on media, so that the next opening has less to roll forward. Raises WriteFault."""
        async with self.admin:
            await finished(self.committer.commit())

    # -- namespaces

    def volumes(self) -> Iterator[PoolVolume]:
        """All namespaces."""
        return iter(list(self.namespaces.values()))

    def attach(self, info: NamespaceInfo) -> PoolVolume:
        """A volume for a namespace that the root names or that is new."""
        key = None
        if info.key_id:
            if self.keyring is None:
                raise UsageError(f"namespace {info.nsid} is encrypted, and the pool has no keys")
            key = self.keyring.key(info.key_id)
        sealer = Sealer(Packer(info.codec, info.level, info.planes), info.key_id, key)
        blocks = BlockMap(-(-info.size >> PAGE_SHIFT), self.segments)
        volume = PoolVolume(self, info, blocks, sealer)
        self.namespaces[info.nsid] = self.by_identifier[info.identifier] = volume
        self.dirty_share = max(1, self.dirty_max // len(self.namespaces))
        return volume

    async def create_namespace(
        self, size: int, *, nsid: int | None = None, block_size: int = 4096, codec: str = "auto", level: int = 1,
        planes: int = 0, encrypted: bool | None = None, write_cache: bool = True, uuid: UUID | None = None,
    ) -> PoolVolume:  # fmt: skip
        """A new namespace of ``size`` bytes, thin: it may be larger than the pool. Raises UsageError, WriteFault.

        ``nsid`` None: the lowest that is free. ``encrypted`` None: if the pool is.
        """
        async with self.admin:
            if nsid is None:
                nsid = next(number for number in range(1, POOL_NAMESPACES_MAX + 2) if number not in self.namespaces)
            self._check_namespace(nsid, block_size)
            self._check_size(size)
            Packer(codec, level, planes)
            encrypted = self.keyring is not None if encrypted is None else encrypted
            if encrypted and self.keyring is None:
                raise UsageError("the pool has no keys: it was created without encryption")
            key_id = await self._new_key() if encrypted else 0
            info = NamespaceInfo(
                self.next_identifier, nsid, uuid or uuid4(), size, block_size, codec, level, planes, key_id, write_cache
            )
            self.next_identifier += 1
            try:
                volume = self.attach(info)
            except UsageError:
                await self._drop_orphaned_keys()
                raise
            await finished(self.committer.commit())
            return volume

    def _check_namespace(self, nsid: int, block_size: int) -> None:
        if not 1 <= nsid <= POOL_NAMESPACES_MAX or len(self.namespaces) >= POOL_NAMESPACES_MAX:
            raise UsageError(f"namespace {nsid}: a pool has 1 to {POOL_NAMESPACES_MAX}")
        if nsid in self.namespaces:
            raise UsageError(f"namespace {nsid}: there is one already")
        if block_size not in VOLUME_BLOCK_SIZES:
            raise UsageError(f"block size {block_size}: want one of {VOLUME_BLOCK_SIZES}")

    def _check_size(self, size: int, instead_of: int = 0) -> None:
        """Whether a namespace of ``size`` fits beside the others, in place of one of so many bytes."""
        if size <= 0 or size % PAGE:
            raise UsageError(f"size {size}: want a multiple of {PAGE} bytes")
        others = sum(volume.map.chunk_count for volume in self.volumes()) - chunks_for(instead_of)
        if others + chunks_for(size) > POOL_MAP_CHUNKS_MAX:
            left = (POOL_MAP_CHUNKS_MAX - others) << 33
            raise UsageError(f"size {size}: the namespaces of a pool may be 96 TiB together, which leaves {left} bytes")

    async def resize_namespace(self, nsid: int, size: int) -> None:
        """Grow a namespace, or cut it off; what is cut off is gone. Raises UsageError, WriteFault."""
        async with self.admin:
            volume = self._namespace(nsid)
            self._check_size(size, volume.info.size)
            for entry in volume.map.resize(size >> PAGE_SHIFT):
                self.committer.forget(entry)
            volume.info.size = size
            volume.visible_size = min(volume.visible_size, size)
            await finished(self.committer.commit())
            volume.visible_size = size

    async def set_namespace(
        self, nsid: int, *, write_cache: bool | None = None, codec: str | None = None, level: int | None = None,
        planes: int | None = None,
    ) -> None:  # fmt: skip
        """Change properties; None leaves one as it is. A codec is for what is written from now on.

        Raises UsageError, WriteFault.
        """
        async with self.admin:
            volume = self._namespace(nsid)
            info = volume.info
            packer = Packer(
                info.codec if codec is None else codec,
                info.level if level is None else level,
                info.planes if planes is None else planes,
            )
            info.codec, info.level = codec or info.codec, info.level if level is None else level
            info.planes = info.planes if planes is None else planes
            info.write_cache = info.write_cache if write_cache is None else write_cache
            volume.sealer = Sealer(packer, volume.sealer.key_id, volume.sealer.key)
            volume.write_cache = info.write_cache
            await finished(self.committer.commit())

    async def delete_namespace(self, nsid: int) -> None:
        """Delete a namespace, and destroy its key if it has one. Raises UsageError, WriteFault."""
        volume = self._namespace(nsid)
        await volume.close()
        async with self.admin:
            if self.namespaces.get(nsid) is not volume:
                raise UsageError(f"namespace {nsid}: is deleted already")
            volume.map.forget_all()
            for entry in (*volume.map.table, *volume.map.chunks):
                self.committer.forget(entry)
            del self.namespaces[nsid], self.by_identifier[volume.info.identifier]
            self.dirty_share = max(1, self.dirty_max // max(1, len(self.namespaces)))
            await finished(self.committer.commit())
            await self._drop_orphaned_keys()

    def _namespace(self, nsid: int) -> PoolVolume:
        if nsid not in self.namespaces:
            raise UsageError(f"namespace {nsid}: there is none in the pool")
        return self.namespaces[nsid]

    # -- keys

    async def _new_key(self) -> int:
        assert self.keyring is not None
        key_id = self.keyring.add()
        await self.save_keys()
        return key_id

    async def _drop_orphaned_keys(self) -> None:
        """Destroy keys of namespaces that are deleted, or that never came to be."""
        if self.keyring is None:
            return
        used = {volume.info.key_id for volume in self.volumes()}
        orphans = [key_id for key_id in self.keyring.table.key_ids if key_id not in used]
        for key_id in orphans:
            self.keyring.table.remove(key_id)
        if orphans:
            await self.save_keys()

    async def _renew_keys(self) -> None:
        """Write the table over copies of older ones."""
        held = [*self.log.disks(), *(spare.disk for spare in self.spares)]
        if self.keyring is not None and not await self.executor.run(self.keyring.is_everywhere, held):
            await self.save_keys()

    async def save_keys(self) -> None:
        """Write the key table to the members; one that fails is out. Raises WriteFault."""
        assert self.keyring is not None
        disks, spares = self.log.disks(), list(self.spares)
        everyone = [*disks, *(spare.disk for spare in spares)]
        for role, error in await finished(self.executor.run(self.keyring.save, everyone)):
            if role < len(disks):
                self.log.member_failed(role, disks[role], error, "write")
            else:
                self._drop_spare(spares[role - len(disks)], error)
        await self.log.flush()

    def _drop_spare(self, spare: Member, error: OSError) -> None:
        """A spare that fails is none."""
        self.background_error = f"{spare.name}: cannot be a spare any more: {error.strerror or error}"
        if spare in self.spares:
            self.spares.remove(spare)
        if spare.disk is not None:
            spare.disk.close()

    async def rotate_key(self, new: KeySource) -> None:
        """Wrap the data keys by another key; the old one opens the pool no more. Raises UsageError, WriteFault."""
        async with self.admin:
            if self.keyring is None:
                raise UsageError("the pool is not encrypted: there is no key to rotate")
            self.keyring.table = await self.executor.run(self.keyring.table.rewrap, new)
            await self.save_keys()

    def export_keys(self) -> bytes:
        """The wrapped keys, for a safe place: with the key they open a pool whose key tables are lost."""
        if self.keyring is None:
            raise UsageError("the pool is not encrypted: it has no keys")
        return self.keyring.table.export(self.geometry.pool)

    @staticmethod
    async def import_keys(disks: Sequence[Disk], content: bytes, *, keys: KeySource, force: bool = False) -> int:
        """Put an export of :meth:`export_keys` back on the ``disks`` of a pool that is not open; they stay open.

        Returns how many keys it has. ``force``: also over a table that verifies. Raises UsageError, OSError.
        """
        return await asyncio.to_thread(_import_keys, disks, content, keys, force)

    # -- superblock

    async def save_superblock(self, **changes: Any) -> None:
        """Write the next superblock, both rings, synced, until no member fails meanwhile. Raises WriteFault."""
        async with self._saving:
            while True:
                self.superblock = self._next_superblock(changes)
                before = [member.state for member in self.members]
                for end in (HEAD, TAIL):
                    await self._write_superblocks(end)
                if self.log.fault:
                    raise WriteFault(self.log.fault)
                if [member.state for member in self.members] == before:
                    return

    def _next_superblock(self, changes: dict[str, Any]) -> Superblock:
        cursor, stripes, healed, lost = self.scrub_state
        return self.superblock._replace(
            generation=self.superblock.generation + 1,
            incarnation=self.incarnation,
            media_errors=min(self.media_errors, COUNT_MAX),
            scrub_cursor=cursor,
            scrub_stripes=stripes,
            scrub_healed=healed,
            scrub_lost=lost,
            members=tuple(member.entry() for member in (*self.members, *self.spares)),
            **changes,
        )

    async def _write_superblocks(self, end: int) -> None:
        for role, disk in enumerate(self.log.disks()):
            if disk is not None:
                try:
                    await self.executor.run(write_superblock, disk, self.geometry, end, self.superblock)
                except OSError as error:
                    self.log.member_failed(role, disk, error, "write")
        await self.log.sync_members()

    @property
    def media_errors(self) -> int:
        """Media errors over the pool's life."""
        return self._errors_before + self.reader.error_count

    # -- space

    async def make_room_for(self, attempt: Callable[[], int]) -> None:
        """Try until ``attempt`` is nonzero, making room in between. Raises CapacityError, WriteFault."""
        while self.too_dirty:
            async with self.admin:
                if self.too_dirty:
                    await finished(self.committer.commit())
        while not attempt():
            if self.log.starved:
                try:
                    await self.cleaner.make_room()
                except CapacityError:  # not for users; but a mark may fit, and it is what gives space back
                    if not attempt():
                        raise
                    break
            else:
                await self.log.wait_room()
        self.consider()

    def append_mark(self, kind: Kind, namespace: int, first: int, count: int) -> int:
        """Append a record without payload: deallocated or uncorrectable blocks. It may use the cleaner's reserve, and
        the commit's where that surely leaves enough: it is what gives space back."""
        entry = self.log.append(kind, namespace, first, count, _EMPTY, level=Level.CLEANER)
        if not entry and self.log.starved:
            commit = 2 * RECORD_RAW_MAX + (self.dirty_pages + 2) * (PAGE + UNIT)
            stream = stream_units(self.geometry.data, self.geometry.segment_pages) * UNIT
            if self.log.room_left + len(self.segments.free) * stream > min(commit, stream * 3 // 4):
                entry = self.log.append(kind, namespace, first, count, _EMPTY, level=Level.COMMIT)
        return entry

    async def release(self, numbers: Iterable[int]) -> None:
        """Segments that a durable root does not refer to are free, but for those somebody looks at."""
        freed = [number for number in numbers if number not in self.segments.pins]
        self.segments.retire(freed)
        self.decoded.clear()
        if self.geometry.flags & LabelFlag.SPARSE and freed:
            await self.executor.run(self._discard, freed)
        self.segments.release(freed)

    def _discard(self, numbers: list[int]) -> None:
        """Give the space of segments back to the file systems; where that fails it is only not given back."""
        for disk in self.log.disks():
            for number in numbers:
                if disk is not None:
                    with contextlib.suppress(OSError):
                        disk.discard(self.geometry.segment_offset(number), self.geometry.segment_bytes)

    @property
    def dirty_pages(self) -> int:
        """Map pages that the next commit writes."""
        return sum(len(volume.map.dirty) for volume in self.namespaces.values())

    @property
    def too_dirty(self) -> bool:
        """Whether writers must wait for a commit: the reserve has room for so many map pages."""
        return self.dirty_pages > 2 * self.dirty_max

    def consider(self) -> None:
        """Wake the background if there is something to tend to."""
        if self.log.appended > POOL_COMMIT_BYTES or self.cleaner.due or self.dirty_pages > self.dirty_max:
            self.wake.set()

    async def _tend(self) -> None:
        """Commit, clean, and put a spare in for a member that went out, when it is time."""
        while not self.closing:
            await self.wake.wait()
            self.wake.clear()
            if self.closing:
                return
            try:
                await self.membership.take_spares()
                if self.log.appended > POOL_COMMIT_BYTES or self.dirty_pages > self.dirty_max:
                    await self.commit()
                if self.cleaner.due:
                    await self.cleaner.tend()
            except (VolumeError, UsageError, OSError) as error:
                self.background_error = str(error)
            except Exception as error:
                self.log.fail(f"the pool's background work failed: {error!r}")
                raise

    # -- members

    async def replace(self, role: int, disk: Disk) -> None:
        """Give the role to ``disk``, and own it; :meth:`rebuild` fills it. Raises UsageError, WriteFault, OSError."""
        await self.membership.replace(role, disk)

    async def rejoin(self, role: int) -> None:
        """Take a member that is out but there back in; :meth:`rebuild` fills it. Raises UsageError, WriteFault."""
        await self.membership.rejoin(role)

    async def add_spare(self, disk: Disk) -> None:
        """Keep ``disk`` for the first member that goes out, and own it. Raises UsageError, WriteFault, OSError."""
        await self.membership.add_spare(disk)

    # -- scrub and rebuild

    async def scrub(self, rate: float | None = None, progress: Progress | None = None) -> ScrubReport:
        """Read every strip of every stripe and heal what is bad; goes on where an unfinished one stopped.

        ``rate`` is in bytes a second of each member. Raises UsageError while another walk is on, WriteFault.
        """
        return await self.walks.scrub(rate, progress)

    async def rebuild(self, rate: float | None = None, progress: Progress | None = None) -> ScrubReport:
        """Fill members that were replaced; goes on where it stopped. Raises as :meth:`scrub`."""
        return await self.walks.rebuild(rate, progress)

    def start_scrub(self, rate: float | None = None) -> None:
        """Scrub in the background."""
        self.walks.start_scrub(rate)

    def start_rebuild(self, rate: float | None = None) -> None:
        """Rebuild in the background; a scrub that runs stops, and goes on the next time."""
        self.walks.start_rebuild(rate)

    # -- what is said of it

    @property
    def health(self) -> VolumeHealth:
        """For SMART: spare is what is left of the redundancy, used what is left of the space."""
        lost = sum(not member.readable for member in self.members)
        parity = self.geometry.parity
        absent = [member for member in self.members if not member.readable]
        reasons = [f"{member.name}: {member.reason or member.state.name.lower()}" for member in absent]
        free = len(self.segments.free)
        return VolumeHealth(
            read_only=bool(self.log.fault),
            degraded=lost > 0 or bool(self.log.fault),
            reason=self.log.fault or "; ".join(reasons),
            media_errors=self.media_errors,
            spare_percent=100 if not parity else max(0, 100 * (parity - lost) // parity),
            used_percent=100 - 100 * free // self.geometry.segments,
        )

    def status(self) -> PoolStatus:
        """Everything about the pool and its members."""
        return status_of(self)

    @property
    def capacity(self) -> int:
        """Bytes that namespaces may fill together, if nothing compresses."""
        return capacity(self.geometry)


def _import_keys(disks: Sequence[Disk], content: bytes, keys: KeySource, force: bool) -> int:
    found = opening.find(disks)
    if not is_encrypted(found.geometry):
        raise UsageError("the pool is not encrypted: it has no keys")
    held = [member.disk for member in (*found.members, *found.spares)]
    keyring = Keyring.restore(found.geometry, held, content, keys, force=force)
    for _, error in keyring.save(held):
        raise error
    return len(keyring.table.key_ids)
