"""A namespace in a plain file: byte 0 of the file is byte 0 of the namespace, and nothing else is in it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Self, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from nvmeof.engine.disk import Disk, FileDisk
from nvmeof.engine.range_lock import RangeLock, granules
from nvmeof.engine.sidecar import Identity, load_identity, sidecar_path, store_identity
from nvmeof.engine.volume import Volume, VolumeHealth
from nvmeof.errors import CapacityError, ReadFault, UsageError, VolumeError, WriteFault
from nvmeof.limits import (
    CLEAR_BYTES_MAX,
    VOLUME_BLOCK_SIZES,
    VOLUME_THREADS,
    WRITE_STALL_SECONDS,
    WRITE_STALL_THREAD_SECONDS,
    WRITES_OFF_LOOP,
)

T = TypeVar("T")

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_BATCH_RANGES_MAX = 256


class FileVolume(Volume):
    """A :class:`~nvmeof.engine.volume.Volume` whose blocks lie one after another on a disk, usually a sparse file.

    Reads that the page cache can answer, and writes into the page cache, happen on the loop; everything else in the
    volume's own threads, one of them for syncs alone. Blocks are whole against each other while power is on. Across a
    power loss they are only as whole as the disk's own sectors: a plain file has nowhere to put a second copy.

    A write that failed other than for space, a failed sync, and a file that somebody made shorter latch the volume
    read-only. Belongs to the event loop it is first used on.
    """

    def __init__(self, disk: Disk, *, uuid: UUID, block_size: int, name: str = "disk") -> None:
        """Serve the whole of ``disk`` and own it from here; ``name`` is for messages. Raises UsageError."""
        size = disk.size()
        _check_geometry(name, size, block_size)
        self.uuid = uuid
        self.block_size = block_size
        self.name = name
        self.incarnation = uuid4().bytes
        self._disk = disk
        self._size = size
        self._read_disk_now = disk.read_now
        self._write_disk = disk.write
        self._lock = RangeLock()
        self._held = self._lock.held
        self._threads = ThreadPoolExecutor(VOLUME_THREADS, thread_name_prefix="volume-io")
        self._sync_thread = ThreadPoolExecutor(1, thread_name_prefix="volume-sync")

        self._fault = ""
        self._media_errors = 0
        self._write_on_loop = True
        self._off_loop_left = 0

        self._syncing = False
        self._next_sync: asyncio.Future[None] | None = None
        self._in_flight = 0
        self._drained: asyncio.Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, path: str | Path, size: int | None = None, block_size: int | None = None, uuid: UUID | None = None
    ) -> Self:
        """Serve the file or block device at ``path``; a missing file is made, sparse, when ``size`` (bytes) is given.

        ``block_size`` and ``uuid`` left out are what they were when the file was first served; for a new one 4096
        bytes and a random UUID. They are kept in a sidecar (see :mod:`nvmeof.engine.sidecar`), except for a block
        device, whose UUID is derived from ``path`` as it was given. Raises UsageError, naming the file.
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix="volume-open")
        job = executor.submit(_open_disk, Path(path), size, block_size, uuid)
        executor.shutdown(wait=False)
        try:
            disk, identity = await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            job.add_done_callback(_abandon)
            raise
        return cls(disk, uuid=identity.uuid, block_size=identity.block_size, name=str(path))

    @property
    def size(self) -> int:
        """Bytes, a multiple of ``block_size``."""
        return self._size

    @property
    def allocated(self) -> int:
        """Bytes the file takes on its file system; 0 once the volume is closed."""
        try:
            return min(self._disk.allocated(), self._size)
        except OSError:
            return 0

    @property
    def health(self) -> VolumeHealth:
        """Read-only after the first failed sync or write; degraded from the first error on."""
        faulty = bool(self._fault)
        return VolumeHealth(
            read_only=faulty,
            degraded=faulty or self._media_errors > 0,
            reason=self._fault,
            media_errors=self._media_errors,
        )

    def read_now(self, offset: int, view: memoryview) -> bool:
        """As :meth:`Volume.read_now`. Never raises: what is wrong comes out of :meth:`read`."""
        if self._held and not self._lock.readable(offset, len(view)):
            return False
        return self._read_disk_now(offset, view)

    async def read(self, offset: int, view: memoryview) -> None:
        """As :meth:`Volume.read`."""
        length = len(view)
        what = f"read of {length} bytes at {offset}"
        await self._off_loop(what, granules(offset, length), False, self._disk.read_into, offset, view)

    def write_now(self, offset: int, view: memoryview) -> bool:
        """As :meth:`Volume.write_now`; False also while the page cache is throttled."""
        if not self._write_on_loop or (self._held and not self._lock.writable(offset, len(view))):
            return False
        start = perf_counter()
        try:
            self._write_disk(offset, view)
        except OSError as error:
            raise self._failed(f"write of {len(view)} bytes at {offset}", True, error) from error
        if perf_counter() - start > WRITE_STALL_SECONDS:
            self._leave_loop()
        return True

    async def write(self, offset: int, view: memoryview) -> None:
        """As :meth:`Volume.write`."""
        length = len(view)
        what = f"write of {length} bytes at {offset}"
        seconds = await self._off_loop(what, granules(offset, length), True, self._write_timed, offset, view)
        if self._off_loop_left:
            self._consider_loop(seconds)

    async def flush(self) -> None:
        """As :meth:`Volume.flush`: waits for a sync that starts after this call."""
        self._check_open(True)
        await self._commit()
        self._check_fault()

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        """As :meth:`Volume.write_zeroes`."""
        work = self._disk.discard if deallocate else self._disk.zero
        await self._clear(f"write of {length} zeroes at {offset}", [(offset, length)], work)

    async def deallocate(self, ranges: Sequence[tuple[int, int]]) -> None:
        """As :meth:`Volume.deallocate`."""
        await self._clear("deallocate", ranges, self._disk.discard)

    async def close(self) -> None:
        """As :meth:`Volume.close`: waits for what is in flight, syncs, and lets go of the file. Idempotent."""
        if self._closing is None:
            self._write_on_loop = False
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)
        self._check_fault()

    # -- off the loop

    async def _off_loop(
        self, what: str, wanted: Sequence[int], exclusive: bool, work: Callable[..., T], *arguments: object
    ) -> T:
        """Do ``work`` in a thread, holding the granules ``wanted``. Raises VolumeError; ``what`` is for its text.

        Cancelled, it still waits for a thread that has begun: the caller's buffer is in its hands.
        """
        self._check_open(exclusive)
        self._in_flight += 1
        try:
            await self._lock.acquire(wanted, exclusive=exclusive)
            try:
                if exclusive:
                    self._check_fault()
                job = self._threads.submit(work, *arguments)
                try:
                    return await asyncio.wrap_future(job)
                except asyncio.CancelledError:
                    if isinstance(error := await _outcome(job), OSError):
                        self._failed(what, exclusive, error)
                    raise
            except OSError as error:
                raise self._failed(what, exclusive, error) from error
            finally:
                self._lock.release(wanted, exclusive=exclusive)
        finally:
            self._in_flight -= 1
            if not self._in_flight and self._drained is not None:
                self._drained.set_result(None)

    def _write_timed(self, offset: int, view: memoryview) -> float:
        start = perf_counter()
        self._disk.write(offset, view)
        return perf_counter() - start

    async def _clear(self, what: str, ranges: Sequence[tuple[int, int]], work: Callable[[int, int], None]) -> None:
        self._check_open(True)

        def clear(batch: list[tuple[int, int]]) -> None:
            for offset, length in batch:
                work(offset, length)

        for batch in _batches(ranges):
            wanted = sorted({granule for offset, length in batch for granule in granules(offset, length)})
            await self._off_loop(what, wanted, True, clear, batch)

    # -- stalls

    def _leave_loop(self) -> None:
        """The page cache made the loop wait: write in threads until it is quick again."""
        self._off_loop_left = WRITES_OFF_LOOP
        self._write_on_loop = False

    def _consider_loop(self, seconds: float) -> None:
        """Count a write of ``seconds`` in a thread; go back to the loop after enough quick ones in a row."""
        self._off_loop_left = WRITES_OFF_LOOP if seconds > WRITE_STALL_THREAD_SECONDS else self._off_loop_left - 1
        if not self._off_loop_left:
            self._write_on_loop = not self._fault and self._closing is None

    # -- group commit

    async def _commit(self) -> None:
        """Return when a sync that started after this call has ended, well or not, or been called off by a fault."""
        if self._next_sync is None:
            self._next_sync = asyncio.get_running_loop().create_future()
        batch = self._next_sync
        if not self._syncing:
            self._start_sync()
        await asyncio.shield(batch)

    def _start_sync(self) -> None:
        """One sync for everybody who waits on ``_next_sync``; who comes later shares the one after."""
        batch, self._next_sync = self._next_sync, None
        assert batch is not None
        waiters = batch
        self._syncing = True
        sync = asyncio.wrap_future(self._sync_thread.submit(self._sync))
        sync.add_done_callback(lambda sync: self._finish_sync(waiters, sync.exception()))

    def _sync(self) -> None:
        self._disk.sync()
        if (size := self._disk.size()) < self._size:
            raise OSError(errno.EIO, f"the file is {size} bytes now, was {self._size}")

    def _finish_sync(self, waiters: asyncio.Future[None], error: BaseException | None) -> None:
        self._syncing = False
        if error is not None:
            self._latch(f"sync failed: {_text(error)}")
        waiters.set_result(None)
        if self._next_sync is not None:
            if self._fault:
                self._next_sync.set_result(None)
                self._next_sync = None
            else:
                self._start_sync()

    # -- faults and the end

    def _latch(self, what: str) -> None:
        self._media_errors += 1
        if not self._fault:
            self._fault = f"{self.name}: {what}; writes are refused until it is opened again"
            self._write_on_loop = False

    def _check_fault(self) -> None:
        if self._fault:
            raise WriteFault(self._fault)

    def _check_open(self, writing: bool) -> None:
        if writing:
            self._check_fault()
        if self._closing is not None:
            raise (WriteFault if writing else ReadFault)(f"{self.name}: is closed")

    def _failed(self, what: str, writing: bool, error: OSError) -> VolumeError:
        """The error to raise for ``error``. Of writes, only a lack of space does not latch: any other may have torn."""
        if not writing:
            self._read_failed()
            return ReadFault(f"{self.name}: {what} failed: {_text(error)}")
        if error.errno in _NO_SPACE:
            return CapacityError(f"{self.name}: {what} failed: {_text(error)}")
        self._latch(f"{what} failed: {_text(error)}")
        return WriteFault(self._fault)

    def _read_failed(self) -> None:
        """Count it; latch if the file has become shorter, for a write past its end would make zeros of what is lost."""
        try:
            size = self._disk.size()
        except OSError:
            size = self._size
        if size < self._size:
            self._latch(f"the file is {size} bytes now, was {self._size}: something made it shorter")
        else:
            self._media_errors += 1

    async def _close(self) -> None:
        if self._in_flight:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        if not self._fault:
            await self._commit()
        try:
            await asyncio.wrap_future(self._sync_thread.submit(self._disk.close))
        except OSError as error:
            self._latch(f"close failed: {_text(error)}")
        self._threads.shutdown()
        self._sync_thread.shutdown()


async def _outcome(job: Future[T]) -> BaseException | None:
    """Cancel ``job`` if no thread has begun it, else wait for its end, whatever comes; what it raised, if anything."""
    if job.cancel():
        return None
    ended = asyncio.wrap_future(job)
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            continue
    return ended.exception()


def _batches(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The ranges, cut and grouped so that a batch is at most CLEAR_BYTES_MAX and _BATCH_RANGES_MAX ranges."""
    batch: list[tuple[int, int]] = []
    room = CLEAR_BYTES_MAX
    for offset, length in ranges:
        end = offset + length
        while offset < end:
            piece = min(end - offset, room)
            batch.append((offset, piece))
            offset += piece
            room -= piece
            if not room or len(batch) == _BATCH_RANGES_MAX:
                yield batch
                batch, room = [], CLEAR_BYTES_MAX
    if batch:
        yield batch


def _text(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _abandon(job: Future[tuple[FileDisk, Identity]]) -> None:
    if not job.cancelled() and job.exception() is None:
        job.result()[0].close()


def _open_disk(path: Path, size: int | None, block_size: int | None, uuid: UUID | None) -> tuple[FileDisk, Identity]:
    """The open disk at ``path`` and what its sidecar says or, now, is made to say. Raises UsageError."""
    sidecar = sidecar_path(path)
    try:
        is_device = path.is_block_device()
        is_blank = not path.exists() or (path.stat().st_size == 0 and not is_device)
    except OSError as error:
        raise UsageError(f"{path}: cannot be looked at: {error.strerror}") from error
    known = None if is_device else load_identity(sidecar)
    if known is not None:
        if block_size not in (None, known.block_size):
            raise UsageError(f"{path}: has blocks of {known.block_size} bytes ({sidecar}); {block_size} were asked for")
        if uuid not in (None, known.uuid):
            raise UsageError(f"{path}: is {known.uuid} ({sidecar}); {uuid} was asked for")
        if is_blank:
            raise UsageError(
                f"{path}: is missing or empty, but {sidecar} says it has {known.size} bytes; "
                "bring it back, or delete the sidecar to begin with an empty volume"
            )
        block_size, uuid = known.block_size, known.uuid
    if block_size is None:
        block_size = VOLUME_BLOCK_SIZES[-1]
    if size is not None:
        _check_geometry(str(path), size, block_size)
    disk = FileDisk.open(path, size)
    try:
        actual = disk.size()
        _check_geometry(str(path), actual, block_size)
        if known is not None and size is None and actual != known.size:
            raise UsageError(
                f"{path}: is {actual} bytes, {sidecar} says {known.size}; if it was resized on purpose, give the size"
            )
        if is_device:
            return disk, Identity(uuid or uuid5(NAMESPACE_URL, path.absolute().as_uri()), block_size, actual)
        identity = Identity(uuid or uuid4(), block_size, actual)
        if identity != known:
            store_identity(sidecar, identity)
        return disk, identity
    except BaseException:
        disk.close()
        raise


def _check_geometry(name: str, size: int, block_size: int) -> None:
    """Raises UsageError."""
    if block_size not in VOLUME_BLOCK_SIZES:
        raise UsageError(f"{name}: block size {block_size}; want one of {VOLUME_BLOCK_SIZES}")
    if size <= 0 or size % block_size:
        below = size // block_size * block_size
        nearest = f" (nearest: {below} or {below + block_size})" if below > 0 else ""
        raise UsageError(f"{name}: size {size} bytes; want a multiple of the block size {block_size}{nearest}")
