"""Checkpoints in a directory of any file system, shards readable by any safetensors loader (FORMAT.md, 3).

Nothing here is retried. A failed fsync may have thrown the dirty pages away and marked them clean, so a second one that
succeeds proves nothing (PostgreSQL's fsyncgate, https://lwn.net/Articles/752063/): the save raises.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from nvmeof.checkpoint import directory_files as files
from nvmeof.checkpoint.directory_files import DirectoryEntry
from nvmeof.checkpoint.manifest import Item, RankManifest
from nvmeof.checkpoint.medium import (
    COMMITTED,
    CORRUPT,
    PARTS,
    WRITING,
    CheckpointInfo,
    Damage,
    Draft,
    Medium,
    Part,
    Piece,
    Plan,
    Stored,
)
from nvmeof.checkpoint.payload import read_all, write_all
from nvmeof.checkpoint.pipeline import in_thread
from nvmeof.checkpoint.safetensors_layout import (
    alignment_rank,
    encode_header,
    header_names,
    header_type,
    read_header,
)
from nvmeof.checkpoint.table import ChunkTable
from nvmeof.codec.hashes import blake3_256
from nvmeof.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, UsageError

SHARD_BYTES_MAX = 4 << 30
"""Data of one shard unless a single item is larger: what other frameworks' loaders map and move around with ease."""

T = TypeVar("T")


class DirectoryMedium(Medium):
    """A checkpoint store in the directory ``root``. Blocking calls run in ``executor``.

    ``force_format`` makes a store of a directory that holds other files; it never touches those. ``reclaim`` lets the
    next save remove what interrupted saves and deletes left.
    """

    def __init__(self, root: str, executor: Executor, *, force_format: bool = False, reclaim: bool = False) -> None:
        self.root = root
        self.notices = []
        self._executor = executor
        self._force_format = force_format
        self._reclaim = reclaim

    async def run(self, function: Callable[[], T]) -> T:
        """A blocking call, in a thread."""
        return await in_thread(self._executor, function)

    async def list(self) -> list[CheckpointInfo]:
        def blocking() -> list[CheckpointInfo]:
            if not files.check_label(self.root):
                raise CheckpointNotFoundError(f"no checkpoint store in {self.root}")
            return list(files.scan(self.root))

        return await self.run(blocking)

    async def begin(self, plan: Plan) -> Draft:
        return await self.run(lambda: self._begin(plan))

    def _begin(self, plan: Plan) -> Draft:
        if not self._is_store():
            files.create_root(self.root)
        lock = self._lock()
        try:
            if not self._is_store():
                files.create_label(self.root)
            entries = files.scan(self.root)
            for entry in entries:
                if entry.step == plan.step and entry.state in (COMMITTED, CORRUPT):
                    raise UsageError(f"{self.root} already has a {entry.state} checkpoint of step {plan.step}")
            if self._reclaim:
                self._remove_remains(entries)
            files.next_sequence(self.root, entries)
            space = os.statvfs(self.root)
            wanted = plan.size + sum(plan.part_bytes.values())
            if space.f_bavail * space.f_frsize < wanted:
                detail = f"wanted {wanted} bytes, {space.f_bavail * space.f_frsize} are free"
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {self.root}: {detail}")
            return _DirectoryDraft(self, plan, lock)
        except BaseException:
            os.close(lock)
            raise

    def _is_store(self) -> bool:
        try:
            return files.check_label(self.root)
        except CheckpointNotFoundError as error:
            if not self._force_format:
                raise UsageError(f"{error}; to make one beside what is there: --format") from None
            return False

    def _lock(self) -> int:
        fd, notice = files.lock(self.root)
        if notice and notice not in self.notices:
            self.notices.append(notice)
        return fd

    def _remove_remains(self, entries: Sequence[DirectoryEntry]) -> None:
        """What dead saves and deletes left. Nobody uses it: the lock is ours."""
        for entry in entries:
            if entry.state == WRITING and entry.path != os.path.join(self.root, files.step_name(entry.step)):
                shutil.rmtree(entry.path)

    async def open(self, info: CheckpointInfo, *, bypass_cache: bool = False) -> Stored:
        assert isinstance(info, DirectoryEntry)
        return await self.run(lambda: _DirectoryStored(self, info, bypass_cache))

    async def delete(self, infos: Sequence[CheckpointInfo]) -> None:
        def blocking() -> None:
            lock = self._lock()
            try:
                self._delete(infos)
            finally:
                os.close(lock)

        await self.run(blocking)

    def _delete(self, infos: Sequence[CheckpointInfo]) -> None:
        for info in infos:
            assert isinstance(info, DirectoryEntry)
            path = info.path
            if path == os.path.join(self.root, files.step_name(info.step)):
                path = f"{path}.uncommitted-{os.urandom(16).hex()}"
                os.rename(info.path, path)
                files.fsync_directory(self.root)
            shutil.rmtree(path)
        files.fsync_directory(self.root)

    async def close(self) -> None:
        pass


def _shards(items: Sequence[Item]) -> list[list[int]]:
    """Item indices of each shard, in the order in which they lie there."""
    shards: list[list[int]] = []
    filled = 0
    for index, item in enumerate(items):
        if item.kind in ("directory", "symlink"):
            continue
        if not shards or (filled and filled + item.size > SHARD_BYTES_MAX):
            shards.append([])
            filled = 0
        shards[-1].append(index)
        filled += item.size
    return [sorted(shard, key=lambda index: (alignment_rank(items[index]), index)) for shard in shards]


class _DirectoryDraft(Draft):
    """A save under way in ``step-N.tmp-ID``, which holds the store's lock. The constructor blocks."""

    alignment = 1

    def __init__(self, medium: DirectoryMedium, plan: Plan, lock: int) -> None:
        self._medium = medium
        self._plan = plan
        self._final = os.path.join(medium.root, files.step_name(plan.step))
        self._path = f"{self._final}.tmp-{plan.id}"
        self._fds: list[int] = []
        self._regions = [0] * len(plan.items)
        self._offsets = [0] * len(plan.items)
        self.regions = self._regions
        self.offsets = self._offsets
        self._directory: int | None = None
        self._lock: int | None = None
        os.mkdir(self._path)
        try:
            self._directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            names = header_names(plan.items)
            for number, shard in enumerate(_shards(plan.items)):
                metadata = plan.manifest.metadata if number == 0 else {}
                self._create_shard(number, shard, [names[index] for index in shard], metadata)
        except BaseException:
            self._discard()
            raise
        self._lock = lock

    def _create_shard(
        self, number: int, shard: Sequence[int], names: Sequence[str], metadata: Mapping[str, str]
    ) -> None:
        header = encode_header([self._plan.items[index] for index in shard], names, metadata)
        path = os.path.join(self._path, files.shard_name(number))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._fds.append(fd)
        write_all(fd, [memoryview(header)], 0)
        offset = len(header)
        for index in shard:
            self._regions[index] = number
            self._offsets[index] = offset
            offset += self._plan.items[index].size

    async def write(self, region: int, pieces: Sequence[Piece]) -> None:
        await self._medium.run(lambda: write_all(self._fds[region], [view for _, view in pieces], pieces[0][0]))

    async def commit(self, parts: Mapping[str, memoryview], root_digest: bytes) -> CheckpointInfo:
        return await self._medium.run(lambda: self._commit(parts, root_digest))

    def _commit(self, parts: Mapping[str, memoryview], root_digest: bytes) -> CheckpointInfo:
        plan = self._plan
        for name in PARTS:
            files.write_durably(os.path.join(self._path, name), parts[name])
        shards = len(self._fds)
        while self._fds:
            os.fsync(self._fds[-1])
            os.close(self._fds.pop())
        assert self._directory is not None
        os.fsync(self._directory)
        self._publish()
        entry = DirectoryEntry(
            step=plan.step,
            state=COMMITTED,
            id=plan.id,
            sequence=files.next_sequence(self._medium.root, files.scan(self._medium.root)),
            created_ns=plan.created_ns,
            kind=plan.manifest.kind,
            items=len(plan.items),
            chunks=plan.chunks,
            size=plan.size,
            root_digest=root_digest,
            parts={name: Part(0, len(parts[name]), blake3_256(parts[name])) for name in PARTS},
            path=self._final,
            shards=shards,
        )
        temporary = f"{files.COMMIT}.tmp"
        files.write_durably(temporary, entry.commit_record(), self._directory)
        os.rename(temporary, files.COMMIT, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        os.fsync(self._directory)
        if not os.path.samestat(os.stat(self._final), os.fstat(self._directory)):
            raise CheckpointError(f"{self._final} was replaced by somebody else while it was being committed")
        self._release()
        return entry

    def _publish(self) -> None:
        """Give the directory its final name, which nothing that was committed may have."""
        root = self._medium.root
        if os.path.lexists(self._final):
            if os.path.lexists(os.path.join(self._final, files.COMMIT)):
                raise UsageError(f"{self._final} was committed by somebody else meanwhile")
            os.rename(self._final, f"{self._final}.uncommitted-{os.urandom(16).hex()}")
        os.rename(self._path, self._final)
        files.fsync_directory(root)

    async def abandon(self, error: BaseException) -> None:
        await self._medium.run(self._discard)

    def _discard(self) -> None:
        while self._fds:
            try:
                os.close(self._fds.pop())
            except OSError:
                pass
        shutil.rmtree(self._path, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class _DirectoryStored(Stored):
    """A committed checkpoint in a directory. The constructor blocks."""

    alignment = 1

    def __init__(self, medium: DirectoryMedium, entry: DirectoryEntry, bypass_cache: bool) -> None:
        self._medium = medium
        self._entry = entry
        self.info = entry
        self._fds: list[int] = []
        self.capacity = 0
        try:
            for number in range(entry.shards):
                self._fds.append(files.open_regular(self._shard(number)))
                self.capacity += os.fstat(self._fds[-1]).st_size
                if bypass_cache:
                    os.posix_fadvise(self._fds[-1], 0, 0, os.POSIX_FADV_DONTNEED)
        except FileNotFoundError as error:
            self._close()
            what = f"checkpoint of step {entry.step} is corrupt"
            raise CorruptCheckpointError(f"{what}: {error.filename} is missing") from None
        except BaseException:
            self._close()
            raise

    def _shard(self, number: int) -> str:
        return os.path.join(self._entry.path, files.shard_name(number))

    async def read_part(self, name: str) -> bytearray:
        path = os.path.join(self._entry.path, name)

        def blocking() -> bytearray:
            try:
                return files.read_exactly(path, self._entry.parts[name].length)
            except FileNotFoundError:
                step = self._entry.step
                raise CorruptCheckpointError(f"checkpoint of step {step} is corrupt: {path} is missing") from None

        return await self._medium.run(blocking)

    async def read(self, region: int, pieces: Sequence[Piece]) -> None:
        if region >= len(self._fds):
            raise OSError(errno.EIO, f"there is no {self._shard(region)}")

        def blocking() -> None:
            views = [view for _, view in pieces]
            wanted = sum(len(view) for view in views)
            done = read_all(self._fds[region], views, pieces[0][0])
            if done < wanted:
                raise OSError(errno.EIO, f"{self._shard(region)} ends at {pieces[0][0] + done}")

        await self._medium.run(blocking)

    def where(self, region: int, offset: int, length: int) -> str:
        return f"{self._shard(region)} bytes {offset} to {offset + length}"

    def where_part(self, name: str) -> str:
        return os.path.join(self._entry.path, name)

    async def check_layout(self, manifest: RankManifest, table: ChunkTable) -> Sequence[Damage]:
        return await self._medium.run(lambda: self._check_headers(manifest, table))

    def _check_headers(self, manifest: RankManifest, table: ChunkTable) -> list[Damage]:
        """Other loaders trust the shard headers: they must say what manifest and table say."""
        wanted: list[dict[str, tuple[str, tuple[int, ...], int]]] = [{} for _ in self._fds]
        for index, (item, name) in enumerate(zip(manifest.items, header_names(manifest.items), strict=True)):
            row = int(table.first_row[index])
            if item.size and int(table.rows["region"][row]) < len(wanted):
                dtype, shape = header_type(item)
                wanted[int(table.rows["region"][row])][name] = (dtype, shape, int(table.rows["offset"][row]))
        damage = []
        for number, fd in enumerate(self._fds):
            try:
                tensors, _, data_start = read_header(fd, self._shard(number))
            except UsageError as error:
                damage.append(Damage("", 0, 0, 0, self._shard(number), f"shard header damaged ({error})"))
                continue
            found = {tensor.name: (tensor.dtype, tensor.shape, data_start + tensor.start) for tensor in tensors}
            where = f"{self._shard(number)} bytes 0 to {data_start}"
            for name, tensor in wanted[number].items():
                if found.get(name) != tensor:
                    damage.append(Damage("", 0, 0, 0, where, f"the shard header's entry {name!r} is damaged"))
        return damage

    async def close(self) -> None:
        await self._medium.run(self._close)

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
