"""A namespace as an ordinary binary file for synchronous code: ``nvmeof.open``."""

from __future__ import annotations

import asyncio
import atexit
import errno
import io
import logging
import operator
import os
import threading
import warnings
import weakref
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, Unpack

import uvloop

from nvmeof.errors import UsageError
from nvmeof.initiator.host import attach, namespace_url
from nvmeof.initiator.namespace import Namespace, flat_view
from nvmeof.initiator.options import ConnectOptions, Options
from nvmeof.limits import HOST_READALL_BYTES

T = TypeVar("T")
log = logging.getLogger("nvmeof.initiator")
MODES = {"rb": False, "r+b": True, "rb+": True}
_open_files: weakref.WeakSet[BlockFile] = weakref.WeakSet()


def open(url: str, mode: str = "rb", **options: Unpack[ConnectOptions]) -> BlockFile:  # noqa: A001 - as io.open
    """Open the namespace of ``nvme+tcp://HOST[:PORT]/SUBNQN/NSID`` for reading, or with ``r+b`` for writing too.

    Raises UsageError, TransportError and StatusError as ``open_namespace`` does. The file is unbuffered: wrap it in
    ``io.BufferedReader``, ``io.BufferedWriter`` or ``io.BufferedRandom`` for small reads and writes. Their ``flush``
    only empties their buffer, as with any file; call this file's own ``flush`` (or ``close``) behind it.
    """
    if mode not in MODES:
        raise UsageError(f"mode: got {mode!r}, wanted 'rb' or 'r+b' (a namespace cannot be created or truncated)")
    namespace_url(url)
    Options.check(**options)
    return BlockFile(_Worker(url, options), url, MODES[mode])


class BlockFile(io.RawIOBase):
    """Bytes at any offset; partial blocks are read, changed and written back.

    Concurrency contract. Any thread may call; calls take turns. Two files, or two processes, that write parts of the
    same block at the same time overwrite each other's part. ``flush`` returns when everything written before is on
    media. ``write`` takes every byte or raises; when it raises, some may have been written. ``close`` flushes what
    was written, raises if that fails, and closes anyway. After a fork only the parent can use the file.

    Besides the errors of Namespace, every call raises OSError (ENOSPC) beyond the end, ``io.UnsupportedOperation`` for
    what a namespace cannot do, TypeError for what is no buffer, and ValueError when the file is closed.
    """

    def __init__(self, worker: _Worker, url: str, writable: bool) -> None:
        self._worker = worker
        self._namespace = worker.namespace
        self._writable = writable
        self._position = 0
        self._dirty = False
        self._lock = threading.RLock()
        self.name = url
        self.mode = "rb+" if writable else "rb"
        self.size = self._namespace.size
        self.block_size = self._namespace.block_size
        _open_files.add(self)

    def __repr__(self) -> str:
        return f"<nvmeof.BlockFile name={self.name!r} mode={self.mode!r}{' closed' if self.closed else ''}>"

    # --- io.RawIOBase -------------------------------------------------------------------------------------------------

    def readable(self) -> bool:
        self._check_usable()
        return True

    def writable(self) -> bool:
        self._check_usable()
        return self._writable

    def seekable(self) -> bool:
        self._check_usable()
        return True

    def tell(self) -> int:
        self._check_usable()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """May go beyond the end, where there is nothing to read and no place to write."""
        offset, whence = operator.index(offset), operator.index(whence)
        with self._turn():
            base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}.get(whence)
            if base is None:
                raise ValueError(f"seek: got whence {whence!r}, wanted SEEK_SET, SEEK_CUR or SEEK_END")
            if base + offset < 0:
                raise OSError(errno.EINVAL, f"seek to {base + offset}, before the beginning")
            self._position = base + offset
            return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, less at the end of the namespace. Returns the number of bytes, 0 at the end."""
        view = flat_view(memoryview(buffer), "readinto")
        if view.readonly:
            raise TypeError("readinto: got a read-only buffer, wanted a writable one")
        with self._turn():
            length = max(0, min(len(view), self.size - self._position))
            if length:
                self._worker.run(_read(self._namespace, self._position, view[:length]))
                self._position += length
            return length

    def readall(self) -> bytes:
        """Everything up to the end of the namespace. Holds it once: BytesIO gives its own buffer away."""
        stream = io.BytesIO()
        with self._turn():
            buffer = bytearray(max(0, min(HOST_READALL_BYTES, self.size - self._position)))
            while count := self.readinto(buffer):
                stream.write(memoryview(buffer)[:count])
        return stream.getvalue()

    def write(self, data: Any) -> int:
        """Write every byte of a contiguous buffer. Raises OSError (ENOSPC) when it does not fit, writing nothing."""
        view = flat_view(memoryview(data), "write")
        with self._turn():
            self._check_writable()
            if self._position + len(view) > self.size:
                raise OSError(errno.ENOSPC, f"{len(view)} bytes at {self._position} do not fit into {self.size} bytes")
            if view:
                self._dirty = True
                self._worker.run(_write(self._namespace, self._position, view))
                self._position += len(view)
            return len(view)

    def flush(self) -> None:
        """Everything written before is on media when this returns (a Flush command). Nothing to do if read only."""
        if self.closed:
            raise ValueError("flush of a closed file")
        if self._dirty:
            with self._turn():
                self._worker.run(self._namespace.flush())
                self._dirty = False

    def truncate(self, size: int | None = None) -> int:
        self._check_usable()
        raise io.UnsupportedOperation("a namespace has a fixed size, it cannot be truncated")

    def close(self) -> None:
        if self.closed:
            return
        if self._worker.forked:
            self._dirty = False
            super().close()
            return
        with self._lock:
            try:
                super().close()
            finally:
                self._worker.stop()

    def __del__(self) -> None:
        if not self.closed and not self._worker.forked:
            try:
                warnings.warn(f"unclosed file {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                self.close()

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed file")
        if self._worker.forked:
            raise UsageError("nvmeof file: got a process forked from the one that opened it, wanted that one")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The lock. In a forked child whoever held it does not exist, so it is not even tried there."""
        self._check_usable()
        with self._lock:
            self._check_usable()
            yield

    def _check_writable(self) -> None:
        if not self._writable:
            raise io.UnsupportedOperation("not writable: it was opened with mode 'rb'")


class _Worker:
    """A thread with an event loop that holds the association. The constructor raises what connecting raises."""

    def __init__(self, url: str, options: ConnectOptions) -> None:
        self.namespace: Namespace
        self._pid = os.getpid()
        self._loop = uvloop.new_event_loop()
        self._thread: threading.Thread | None = threading.Thread(
            target=self._loop.run_forever, name=f"nvmeof {url}", daemon=True
        )
        self._thread.start()
        try:
            self.namespace = self.run(attach(namespace_url(url), options))
        except BaseException:
            self._end()
            raise

    @property
    def forked(self) -> bool:
        """In a child process the thread does not exist, and the socket is the parent's."""
        return os.getpid() != self._pid

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``. An exception in this thread (KeyboardInterrupt) cancels it and frees its buffer."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result()
            raise

    def stop(self) -> None:
        """Close the association in an orderly way, and end the thread. Once is enough."""
        if self._thread is not None:
            try:
                self.run(self.namespace.controller.close())
            finally:
                self._end()

    def _end(self) -> None:
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._thread = None
        self._loop.close()


@atexit.register
def _close_all() -> None:
    """While the threads still run: afterwards a file that is still open could not be closed any more."""
    for file in list(_open_files):
        try:
            file.close()
        except Exception as error:
            log.error("%s was not closed properly: %s", file.name, error)


async def _read(namespace: Namespace, offset: int, view: memoryview) -> None:
    """Whole blocks go to their place; partial ones at both ends through a block of their own."""
    size = namespace.block_size
    head, whole = _split(offset, len(view), size)
    if head:
        block = await namespace.read(offset - offset % size, size)
        view[:head] = block[offset % size : offset % size + head]
    if whole:
        await namespace.readinto(offset + head, view[head : head + whole])
    if head + whole < len(view):
        block = await namespace.read(offset + head + whole, size)
        view[head + whole :] = block[: len(view) - head - whole]


async def _write(namespace: Namespace, offset: int, view: memoryview) -> None:
    size = namespace.block_size
    head, whole = _split(offset, len(view), size)
    if head:
        await _write_part(namespace, offset, view[:head])
    if whole:
        await namespace.write(offset + head, view[head : head + whole])
    if head + whole < len(view):
        await _write_part(namespace, offset + head + whole, view[head + whole :])


async def _write_part(namespace: Namespace, offset: int, view: memoryview) -> None:
    """Read, change and write back the block that ``view`` is a part of."""
    size = namespace.block_size
    start = offset - offset % size
    block = await namespace.read(start, size)
    block[offset - start : offset - start + len(view)] = view
    await namespace.write(start, block)


def _split(offset: int, length: int, size: int) -> tuple[int, int]:
    """Bytes up to the first block boundary, if any precede it, and bytes of whole blocks behind it."""
    head = min(-offset % size, length)
    return head, (length - head) // size * size
