"""The I/O queue: Flush, Read, Write, Write Zeroes, Write Uncorrectable, Verify, Dataset Management.

NVMe Base 2.0, section 7.1, and NVM Command Set 1.0, section 3.2. ``command`` is the hot path: a read or write that need
not wait is answered before it returns. Everything else becomes one task per command, kept in ``tasks`` until it ended;
a lost connection does not cancel it.

A completed write may be in a volatile cache unless FUA is set, the host has switched the controller's cache off
(feature 06h) or the volume's is off (``Volume.write_cache``). For the first two a flush follows each write here. The
third is the volume's own promise: its ``write_now`` is False then, or what it wrote is on media already, and so is what
its coroutines did when they return.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from nvmeof.errors import ReadFault
from nvmeof.limits import VERIFY_PIECE_BYTES
from nvmeof.protocol.target_queue import Sqe, Transfer
from nvmeof.spec.command import (
    DATASET_RANGES_MAX,
    FUSE_MASK,
    NLB_MASK,
    NSID_ALL,
    PSDT_SGL,
    SGL_DATA_BLOCK_OFFSET,
    SGL_TRANSPORT_DATA_BLOCK,
    DatasetAttribute,
    IoOpcode,
    ReadWriteControl,
)
from nvmeof.spec.status import DNR, Status
from nvmeof.target import fabrics
from nvmeof.target.command import CommandError, check_sgl, log, status_of
from nvmeof.target.ranges import decode_ranges, merged
from nvmeof.target.subsystem import Namespace

if TYPE_CHECKING:
    from nvmeof.target.connection import Connection
    from nvmeof.target.controller import Controller

READ = int(IoOpcode.READ)
WRITE = int(IoOpcode.WRITE)
FUA = int(ReadWriteControl.FORCE_UNIT_ACCESS)
DEALLOCATE = int(ReadWriteControl.DEALLOCATE)
PROTECTION = int(
    ReadWriteControl.PRINFO_ACTION
    | ReadWriteControl.PRINFO_GUARD
    | ReadWriteControl.PRINFO_APPLICATION_TAG
    | ReadWriteControl.PRINFO_REFERENCE_TAG
)
INVALID_NAMESPACE = Status.INVALID_NAMESPACE_OR_FORMAT | DNR


class IoQueue:
    """Executes the commands of one I/O queue (a CommandSink)."""

    def __init__(self, connection: Connection, controller: Controller, qid: int, entries: int) -> None:
        self.connection = connection
        self.controller = controller
        self.queue = connection.queue
        self.qid = qid
        self.entries = entries
        self.closed = False
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """By CID; the commands that wait for the volume."""
        self._aborted: set[asyncio.Task[None]] = set()
        self._namespaces = controller.subsystem.namespaces
        self._transfers = self.queue.transfers
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[int, Callable[[Namespace, Sqe, memoryview | None], int]] = {
            IoOpcode.READ: self._read,
            IoOpcode.WRITE: self._write,
            IoOpcode.WRITE_UNCORRECTABLE: self._write_uncorrectable,
            IoOpcode.WRITE_ZEROES: self._write_zeroes,
            IoOpcode.DATASET_MANAGEMENT: self._dataset_management,
            IoOpcode.VERIFY: self._verify,
        }

    def command(self, sqe: Sqe, data: memoryview | None) -> None:
        """Execute one command. Raises RemoteProtocolError when the host overruns its queue."""
        opcode, flags, cid, nsid, sgl_address, length, sgl_id, cdw10, cdw11, cdw12, _, _, _ = sqe
        namespace = self._namespaces.get(nsid)
        if cdw12 <= NLB_MASK and namespace is not None and cid not in self.tasks and cid not in self._transfers:
            slba = cdw11 << 32 | cdw10
            blocks = cdw12 + 1
            nbytes = blocks << namespace.block_shift
            if (
                flags == PSDT_SGL
                and length == nbytes
                and slba + blocks <= namespace.block_count
                and blocks <= namespace.blocks_per_command_max
            ):
                queue, offset = self.queue, slba << namespace.block_shift
                try:
                    if opcode == READ:
                        if sgl_id == SGL_TRANSPORT_DATA_BLOCK and queue.send_filled(
                            cid, nbytes, namespace.read_now, offset
                        ):
                            namespace.reads += 1
                            namespace.read_bytes += nbytes
                            return
                    elif (
                        opcode == WRITE
                        and data is not None
                        and len(data) == nbytes
                        and sgl_id == SGL_DATA_BLOCK_OFFSET
                        and not sgl_address
                        and self.controller.write_cache
                        and namespace.write_now(offset, data)
                    ):
                        namespace.writes += 1
                        namespace.written_bytes += nbytes
                        queue.complete(cid)
                        return
                except Exception as error:
                    self._fail(cid, status_of(error), nsid, self._block_of(error, nsid, slba))
                    return
        self._command(sqe, data)

    def _command(self, sqe: Sqe, data: memoryview | None) -> None:
        opcode, _, cid, nsid = sqe[:4]
        if self.tasks or self.queue.transfers:
            if len(self.tasks) + len(self.queue.transfers) >= self.entries:
                raise self.queue.overflow()
            if cid in self.tasks or cid in self.queue.transfers:
                self._fail(cid, Status.COMMAND_ID_CONFLICT | DNR, nsid)
                return
        if opcode == IoOpcode.FABRICS:
            fabrics.on_io_queue(self, sqe)
            return
        try:
            status = self._dispatch(sqe, data)
        except Exception as error:
            status = status_of(error)
        if status:
            self._fail(cid, status, nsid, sqe[8] << 32 | sqe[7])

    def _dispatch(self, sqe: Sqe, data: memoryview | None) -> int:
        """Status with which the command fails now, 0 when it was or will be answered."""
        opcode, flags, _, nsid = sqe[:4]
        handler = self._handlers.get(opcode)
        if handler is None and opcode != IoOpcode.FLUSH:
            return Status.INVALID_OPCODE | DNR
        if flags & FUSE_MASK:
            return Status.INVALID_FIELD | DNR
        if not self.controller.ready:
            return Status.COMMAND_SEQUENCE_ERROR
        if handler is None:
            return self._flush(sqe)
        namespace = self._namespaces.get(nsid)
        return INVALID_NAMESPACE if namespace is None else handler(namespace, sqe, data)

    def payload(self, transfer: Transfer, view: memoryview) -> None:
        """Data that was asked for has come."""
        try:
            transfer.context(view, transfer)
        except Exception as error:
            self.queue.finish(transfer)
            self._fail(transfer.cid, status_of(error), 0)

    def lost(self) -> None:
        """The connection is gone. What is at the volume goes on and is waited for before the host connects again."""
        self.closed = True
        if self.busy:
            self.controller.subsystem.linger(self.controller.hostid, self)

    @property
    def busy(self) -> bool:
        """Whether a command is at a volume."""
        return bool(self.tasks or self._aborted)

    async def ended(self) -> None:
        """Wait until no command is at a volume any more."""
        while self.busy:
            await asyncio.wait([*self.tasks.values(), *self._aborted])

    def abort(self, cid: int) -> bool:
        """Abort a command if that is still possible: one that waits for data, a read, or a Verify.

        A write at the volume is not aborted: its blocks may already be changing.
        """
        if self.queue.abort_transfer(cid):
            return True
        task = self.tasks.get(cid)
        if task is None or task.get_name() not in ("read", "verify"):
            return False
        del self.tasks[cid]
        self._aborted.add(task)
        self._fail(cid, Status.ABORT_REQUESTED, 0)
        return True

    # --- commands -----------------------------------------------------------------------------------------------------

    def _read(self, namespace: Namespace, sqe: Sqe, data: memoryview | None) -> int:
        slba, blocks = sqe[8] << 32 | sqe[7], (sqe[9] & 0xFFFF) + 1
        status = self._check(namespace, sqe, slba, blocks)
        if status:
            return status
        if sqe[6] != SGL_TRANSPORT_DATA_BLOCK:
            return Status.SGL_DESCRIPTOR_TYPE_INVALID | DNR
        nbytes = blocks << namespace.block_shift
        offset = slba << namespace.block_shift
        if sqe[9] & FUA:
            self._read_off_loop(sqe[2], namespace, offset, nbytes, fua=True)
        elif self.queue.send_filled(sqe[2], nbytes, namespace.read_now, offset):
            namespace.reads += 1
            namespace.read_bytes += nbytes
        else:
            self._read_off_loop(sqe[2], namespace, offset, nbytes, fua=False)
        return 0

    def _read_off_loop(self, cid: int, namespace: Namespace, offset: int, nbytes: int, *, fua: bool) -> None:
        """Read in a task. The bytes are held from now on, so that no more are accepted than may be held."""
        self.queue.hold(nbytes)
        work = self._read_later(cid, namespace, offset, nbytes, fua)
        self._start(cid, work, "read", namespace.nsid, offset >> namespace.block_shift)

    async def _read_later(self, cid: int, namespace: Namespace, offset: int, nbytes: int, fua: bool) -> bool:
        """FUA: what is returned is on media, NVM Command Set 1.0 section 3.2.4."""
        queue = self.queue
        slab, view = queue.lease(nbytes)
        try:
            if fua:
                await _sync(namespace)
            namespace.check(offset, nbytes)
            await namespace.volume.read(offset, view)
        except BaseException:
            queue.release(slab)
            raise
        finally:
            queue.hold(-nbytes)
        if self.closed or asyncio.current_task() in self._aborted:
            queue.release(slab)
            return False
        namespace.reads += 1
        namespace.read_bytes += nbytes
        queue.send_leased(cid, slab, nbytes)
        return False

    def _write(self, namespace: Namespace, sqe: Sqe, data: memoryview | None) -> int:
        slba, blocks = sqe[8] << 32 | sqe[7], (sqe[9] & 0xFFFF) + 1
        status = self._check(namespace, sqe, slba, blocks)
        if status:
            return status
        cid, offset, nbytes = sqe[2], slba << namespace.block_shift, blocks << namespace.block_shift
        fua = bool(sqe[9] & FUA)
        if sqe[6] == SGL_TRANSPORT_DATA_BLOCK:
            self.queue.request(
                cid, nbytes, lambda view, transfer: self._store(cid, namespace, offset, view, transfer, fua)
            )
            return 0
        if data is None or len(data) < nbytes:
            return Status.DATA_SGL_LENGTH_INVALID | DNR
        self._store(cid, namespace, offset, data[:nbytes], None, fua)
        return 0

    def _store(
        self, cid: int, namespace: Namespace, offset: int, view: memoryview, transfer: Transfer | None, fua: bool
    ) -> None:
        """All data is here. Write it now if that need not wait.

        While it was waited for, the cache may have been switched off, and the namespace may have gone or shrunk.
        """
        if transfer is not None:
            try:
                namespace.check(offset, len(view))
            except CommandError as error:
                self.queue.finish(transfer)
                self._fail(cid, error.status, namespace.nsid, offset >> namespace.block_shift)
                return
        sync = fua or not self.controller.write_cache
        done = namespace.write_now(offset, view)
        if done and not sync:
            namespace.writes += 1
            namespace.written_bytes += len(view)
            self.queue.complete(cid)
            if transfer is not None:
                self.queue.finish(transfer)
            return
        self.queue.hold(len(view))
        kept = None if done else self.queue.keep(transfer, view) if transfer is not None else memoryview(bytes(view))
        work = self._store_later(namespace, offset, kept, len(view), transfer, sync)
        self._start(cid, work, "write", namespace.nsid, offset >> namespace.block_shift)

    async def _store_later(
        self, namespace: Namespace, offset: int, kept: memoryview | None, nbytes: int, transfer: Transfer | None,
        sync: bool,
    ) -> bool:  # fmt: skip
        try:
            if kept is not None:
                namespace.check(offset, nbytes)
                await namespace.volume.write(offset, kept)
            if sync:
                await _sync(namespace)
        finally:
            self.queue.hold(-nbytes)
            if transfer is not None:
                self.queue.finish(transfer)
        namespace.writes += 1
        namespace.written_bytes += nbytes
        return True

    def _flush(self, sqe: Sqe) -> int:
        nsid = sqe[3]
        if nsid == NSID_ALL:
            namespaces = list(self._namespaces.values())
        elif nsid in self._namespaces:
            namespaces = [self._namespaces[nsid]]
        else:
            return INVALID_NAMESPACE
        self._start(sqe[2], self._flush_all(namespaces, nsid == NSID_ALL), "flush", nsid, 0)
        return 0

    async def _flush_all(self, namespaces: list[Namespace], every: bool) -> bool:
        """One that has just been removed fails the command only if the host meant that one."""
        if every:
            namespaces = [each for each in namespaces if not each.detached]
        results = await asyncio.gather(*map(_sync, namespaces), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return True

    def _write_zeroes(self, namespace: Namespace, sqe: Sqe, data: memoryview | None) -> int:
        slba, blocks = sqe[8] << 32 | sqe[7], (sqe[9] & 0xFFFF) + 1
        if sqe[9] & PROTECTION:
            return Status.INVALID_FIELD | DNR
        if slba + blocks > namespace.block_count:
            return Status.LBA_OUT_OF_RANGE | DNR
        sync = bool(sqe[9] & FUA) or not self.controller.write_cache
        offset, length = slba << namespace.block_shift, blocks << namespace.block_shift
        write_zeroes = partial(namespace.volume.write_zeroes, deallocate=bool(sqe[9] & DEALLOCATE))
        self._start(sqe[2], self._change(namespace, offset, length, sync, write_zeroes), "write zeroes", sqe[3], slba)
        return 0

    async def _change(
        self, namespace: Namespace, offset: int, length: int, sync: bool, change: Callable[[int, int], Awaitable[None]]
    ) -> bool:
        """Do what writes without data from the host."""
        namespace.check(offset, length)
        await change(offset, length)
        if sync:
            await _sync(namespace)
        namespace.writes += 1
        return True

    def _verify(self, namespace: Namespace, sqe: Sqe, data: memoryview | None) -> int:
        """Section 3.2.5. It holds what it reads at a time, so that a host cannot have any number of them at work."""
        slba, blocks = sqe[8] << 32 | sqe[7], (sqe[9] & 0xFFFF) + 1
        if sqe[9] & PROTECTION or blocks > namespace.verify_blocks_max:
            return Status.INVALID_FIELD | DNR
        if slba + blocks > namespace.block_count:
            return Status.LBA_OUT_OF_RANGE | DNR
        offset, length = slba << namespace.block_shift, blocks << namespace.block_shift
        held = min(length, VERIFY_PIECE_BYTES)
        self.queue.hold(held)
        work = self._verify_later(namespace, offset, length, held, bool(sqe[9] & FUA))
        self._start(sqe[2], work, "verify", sqe[3], slba)
        return 0

    async def _verify_later(self, namespace: Namespace, offset: int, length: int, held: int, fua: bool) -> bool:
        """FUA: what is verified is on media. SMART counts it as a read, since user data is read for it."""
        try:
            if fua:
                await _sync(namespace)
            namespace.check(offset, length)
            await namespace.volume.verify(offset, length)
        finally:
            self.queue.hold(-held)
        namespace.reads += 1
        namespace.read_bytes += length
        return True

    def _write_uncorrectable(self, namespace: Namespace, sqe: Sqe, data: memoryview | None) -> int:
        """Section 3.2.7.

        ONCS promises the command for all namespaces and for as long as the host is connected, while one that can do
        it may come and go. So one that cannot refuses the field that names the blocks, not the opcode; Linux makes
        the same of both (not supported), and the host keeps using the command elsewhere.
        """
        slba, blocks = sqe[8] << 32 | sqe[7], (sqe[9] & 0xFFFF) + 1
        volume = namespace.volume
        if slba + blocks > namespace.block_count:
            return Status.LBA_OUT_OF_RANGE | DNR
        offset, length = slba << namespace.block_shift, blocks << namespace.block_shift
        granule = volume.uncorrectable_granule or volume.block_size
        if not volume.can_mark_uncorrectable or offset % granule or length % granule:
            return Status.INVALID_FIELD | DNR
        work = self._change(namespace, offset, length, not self.controller.write_cache, volume.write_uncorrectable)
        self._start(sqe[2], work, "write uncorrectable", sqe[3], slba)
        return 0

    def _dataset_management(self, namespace: Namespace, sqe: Sqe, data: memoryview | None) -> int:
        cid, length = sqe[2], sqe[5]
        nbytes = 16 * ((sqe[7] & 0xFF) + 1)
        status = check_sgl(sqe[1], sqe[6], sqe[4])
        if status:
            return status
        if not nbytes <= length <= 16 * DATASET_RANGES_MAX:
            return Status.DATA_SGL_LENGTH_INVALID | DNR
        deallocate = bool(sqe[8] & DatasetAttribute.DEALLOCATE)
        if sqe[6] == SGL_TRANSPORT_DATA_BLOCK:
            self.queue.request(
                cid, length, lambda view, transfer: self._ranges(cid, namespace, view[:nbytes], deallocate, transfer)
            )
            return 0
        if data is None or len(data) < nbytes:
            return Status.DATA_SGL_LENGTH_INVALID | DNR
        self._ranges(cid, namespace, data[:nbytes], deallocate, None)
        return 0

    def _ranges(
        self, cid: int, namespace: Namespace, view: memoryview, deallocate: bool, transfer: Transfer | None
    ) -> None:
        shift = namespace.block_shift
        ranges = decode_ranges(view)
        if transfer is not None:
            self.queue.finish(transfer)
        if namespace.detached:
            self._fail(cid, INVALID_NAMESPACE, namespace.nsid)
        elif any(slba + blocks > namespace.block_count for slba, blocks in ranges):
            self._fail(cid, Status.LBA_OUT_OF_RANGE | DNR, namespace.nsid)
        elif not deallocate or not ranges:
            self.queue.complete(cid)
        else:
            pieces = [(slba << shift, blocks << shift) for slba, blocks in merged(ranges)]
            work = self._deallocate(namespace, pieces, sync=not self.controller.write_cache)
            self._start(cid, work, "deallocate", namespace.nsid, ranges[0][0])

    async def _deallocate(self, namespace: Namespace, pieces: list[tuple[int, int]], sync: bool) -> bool:
        namespace.check(*pieces[-1])
        await namespace.volume.deallocate(pieces)
        if sync:
            await _sync(namespace)
        return True

    # --- checks and completions ---------------------------------------------------------------------------------------

    def _check(self, namespace: Namespace, sqe: Sqe, slba: int, blocks: int) -> int:
        """Status for a Read or Write that may not be done, 0 if it may."""
        status = check_sgl(sqe[1], sqe[6], sqe[4])
        if status:
            return status
        if sqe[9] & PROTECTION:
            return Status.INVALID_FIELD | DNR
        if blocks > namespace.blocks_per_command_max:
            return Status.INVALID_FIELD | DNR
        if slba + blocks > namespace.block_count:
            return Status.LBA_OUT_OF_RANGE | DNR
        if sqe[5] != blocks << namespace.block_shift:
            return Status.DATA_SGL_LENGTH_INVALID | DNR
        return Status.SUCCESS

    def _start(self, cid: int, work: Coroutine[Any, Any, bool], name: str, nsid: int, slba: int) -> None:
        """Run ``work``; complete the command when it returns True or raises."""
        self.tasks[cid] = self._loop.create_task(self._run(cid, work, nsid, slba), name=name)

    async def _run(self, cid: int, work: Coroutine[Any, Any, bool], nsid: int, slba: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        status: int | None = None
        try:
            if await work:
                status = Status.SUCCESS
        except Exception as error:
            status, slba = status_of(error), self._block_of(error, nsid, slba)
        if task in self._aborted:
            self._aborted.discard(task)
        else:
            del self.tasks[cid]
            if status == Status.SUCCESS and not self.closed:
                self.queue.complete(cid)
            elif status is not None and not self.closed:
                self._fail(cid, status, nsid, slba)
        if self.closed and not self.busy:
            await self.controller.subsystem.lingered(self.controller.hostid, self)

    def _block_of(self, error: Exception, nsid: int, slba: int) -> int:
        """The block for the error log: the first that is bad if the volume says so, else the command's first."""
        namespace = self._namespaces.get(nsid)
        if isinstance(error, ReadFault) and error.offset is not None and namespace is not None:
            return error.offset >> namespace.block_shift
        return slba

    def _fail(self, cid: int, status: int, nsid: int, slba: int = 0) -> None:
        self.controller.record_error(self.qid, cid, status, nsid, slba)
        log.debug("queue %d cid %#06x nsid %d lba %d: status %#06x", self.qid, cid, nsid, slba, status)
        self.queue.complete(cid, status)


async def _sync(namespace: Namespace) -> None:
    """Flush. One that has been removed is gone, not broken, though its volume refuses once it is closed."""
    namespace.check()
    await namespace.volume.flush()
