"""Where bytes are kept: the five operations an engine needs, and a file or block device that does them.

This is the only module of the engine that touches ``os``, so a test that puts a
:class:`~nvmeof.testing.virtual_disk.VirtualDisk` underneath sees every write and every sync.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from abc import ABC, abstractmethod
from os import pread, preadv, pwrite, pwritev
from pathlib import Path
from threading import Lock
from typing import Self

from nvmeof.errors import UsageError

ByteBuffer = bytes | bytearray | memoryview

_ZEROS = bytes(1 << 20)

# <linux/falloc.h>
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

# <linux/magic.h>: file systems whose pages are the storage, so that a read never waits for a device.
_MEMORY_FILE_SYSTEMS = (0x01021994, 0x858458F6)

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


class Disk(ABC):
    """A fixed range of bytes. Offsets and lengths are in bytes; buffers are flat byte buffers.

    Contract. Every method is synchronous and may be called from any thread, several at once. All of them may wait for
    the device, except ``read_now``; ``write`` to a page cache seldom does, so a caller may try it where waiting is
    unwelcome and watch the clock. The caller keeps overlapping operations apart.

    A write that returned may be lost, torn or reordered until ``sync`` has returned. Errors are ``OSError``, from the
    operation itself. After ``sync`` has raised, nothing that was written since the last good one may be relied upon,
    and a later ``sync`` that returns proves nothing.
    """

    @abstractmethod
    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``. Raises OSError; EIO when the disk has become shorter than that."""

    @abstractmethod
    def write(self, offset: int, data: ByteBuffer) -> None:
        """Write all of ``data`` at ``offset``. Raises OSError, and then any part of it may have been written."""

    @abstractmethod
    def sync(self) -> None:
        """Put every write and discard that has returned on media. Raises OSError."""

    @abstractmethod
    def discard(self, offset: int, length: int) -> None:
        """Make the range read as zeros and give its space back if that is possible. Raises OSError."""

    @abstractmethod
    def size(self) -> int:
        """Bytes there are now. Raises OSError."""

    def read_now(self, offset: int, view: memoryview) -> bool:
        """Fill ``view`` from ``offset`` without waiting for a device, or return False, for whatever reason.

        After False the content of ``view`` is undefined; ``read_into`` says what is wrong, if anything is.
        """
        return False

    def write_two(self, offset: int, first: ByteBuffer, second: ByteBuffer) -> None:
        """Write ``first`` at ``offset`` and ``second`` behind it, at once where that is possible. Raises OSError."""
        self.write(offset, bytes(first) + bytes(second))

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros and keep its space if that is possible. Raises OSError."""
        write_zeros(self, offset, length)

    def allocated(self) -> int:
        """Bytes that take space. Raises OSError."""
        return self.size()

    def close(self) -> None:  # noqa: B027 - nothing to let go of, by default
        """Let go of what is held, without a sync. Idempotent; every later operation raises OSError."""


def write_zeros(disk: Disk, offset: int, length: int) -> None:
    """Write ``length`` zero bytes at ``offset``, in pieces. Raises OSError."""
    end = offset + length
    while offset < end:
        piece = min(len(_ZEROS), end - offset)
        disk.write(offset, _ZEROS if piece == len(_ZEROS) else _ZEROS[:piece])
        offset += piece


class FileDisk(Disk):
    """A regular file or a block device, through the page cache, locked against a second opener.

    ``created`` is true when :meth:`open` made it.
    """

    path: Path
    created: bool
    is_device: bool

    def __init__(self, fd: int, path: Path, *, created: bool) -> None:
        """Take over the open, locked descriptor ``fd``; use :meth:`open`."""
        self.path = path
        self.created = created
        self.is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self._fd = fd
        self._close_lock = Lock()
        self._can_punch = True
        self._can_zero_range = True
        self._now_flags = self._probe_read_now()

    @classmethod
    def open(cls, path: str | Path, size: int | None = None) -> Self:
        """Open ``path``; with ``size`` (bytes) make a sparse file there if it is missing or empty.

        Raises UsageError, naming the file, when it is missing and no ``size`` was given, is neither a regular file
        nor a block device, has another size than asked for, may not be written, or is in use.
        """
        path = Path(path)
        if size is not None and not 0 < size < 1 << 63:
            raise UsageError(f"{path}: size {size} bytes; want more than 0 and less than 2**63")
        fd, created = _open_or_create(path, create=size is not None)
        locked = made = False
        try:
            _lock(fd, path)
            locked = True
            actual = _length(fd)
            if size is not None and actual == 0 and stat.S_ISREG(os.fstat(fd).st_mode):
                _grow(fd, path, size)
                made = True
            elif actual == 0:
                raise UsageError(f"{path}: is empty, and no size was given")
            elif size is not None and actual != size:
                raise UsageError(f"{path}: is {actual} bytes, but {size} bytes were asked for")
            return cls(fd, path, created=made)
        except BaseException:
            if created and locked:
                path.unlink(missing_ok=True)
            os.close(fd)
            raise

    def read_now(self, offset: int, view: memoryview) -> bool:
        """As :meth:`Disk.read_now`: ``preadv`` with RWF_NOWAIT, or plain on a file system that lives in memory."""
        flags = self._now_flags
        if flags < 0:
            return False
        try:
            return preadv(self._fd, (view,), offset, flags) == len(view)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._now_flags = -1
            return False

    def read_into(self, offset: int, view: memoryview) -> None:
        """As :meth:`Disk.read_into`."""
        done = preadv(self._fd, (view,), offset)
        while done != len(view):
            count = preadv(self._fd, (view[done:],), offset + done)
            if count == 0:
                raise OSError(errno.EIO, f"the file ends at byte {self.size()}")
            done += count

    def write(self, offset: int, data: ByteBuffer) -> None:
        """As :meth:`Disk.write`."""
        done = pwrite(self._fd, data, offset)
        if done != len(data):
            self._write_rest(offset, memoryview(data), done)

    def write_two(self, offset: int, first: ByteBuffer, second: ByteBuffer) -> None:
        """As :meth:`Disk.write_two`, by pwritev."""
        done = pwritev(self._fd, (first, second), offset)
        if done != len(first) + len(second):
            self._write_rest(offset, memoryview(bytes(first) + bytes(second)), done)

    def sync(self) -> None:
        """As :meth:`Disk.sync`, by fdatasync."""
        os.fdatasync(self._open_fd())

    def discard(self, offset: int, length: int) -> None:
        """As :meth:`Disk.discard`: punches a hole, or writes zeros where the file system cannot."""
        if length and not (self._can_punch and self._allocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)):
            self._can_punch = False
            write_zeros(self, offset, length)

    def zero(self, offset: int, length: int) -> None:
        """As :meth:`Disk.zero`, by FALLOC_FL_ZERO_RANGE; where that is missing, as :meth:`discard`."""
        if length and not (self._can_zero_range and self._allocate(_ZERO_RANGE | _KEEP_SIZE, offset, length)):
            self._can_zero_range = False
            self.discard(offset, length)

    def size(self) -> int:
        """As :meth:`Disk.size`."""
        return _length(self._open_fd())

    def allocate(self) -> None:
        """Take the space of the whole file now, where the file system can, so that no write lacks it later.

        Raises OSError; ENOSPC when there is not enough, and then some of it may be taken. A device has its space.
        """
        if not self.is_device:
            self._allocate(0, 0, self.size())

    def allocated(self) -> int:
        """As :meth:`Disk.allocated`; all of a block device."""
        fd = self._open_fd()
        status = os.fstat(fd)
        return _length(fd) if self.is_device else min(status.st_blocks * 512, status.st_size)

    def close(self) -> None:
        """As :meth:`Disk.close`. The lock goes with the descriptor."""
        with self._close_lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open_fd(self) -> int:
        """The descriptor, for the functions that answer -1 with a ValueError."""
        if self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fd

    def _write_rest(self, offset: int, view: memoryview, done: int) -> None:
        while done < len(view):
            count = pwrite(self._fd, view[done:], offset + done)
            if count == 0:
                raise OSError(errno.EIO, f"pwrite of {len(view) - done} bytes at {offset + done} wrote nothing")
            done += count

    def _allocate(self, mode: int, offset: int, length: int) -> bool:
        """fallocate(2), restarted after EINTR; False when the file system lacks ``mode``."""
        while _fallocate(self._fd, mode, offset, length):
            code = ctypes.get_errno()
            if code in _UNSUPPORTED:
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        return True

    def _probe_read_now(self) -> int:
        """The flags for ``preadv`` in :meth:`read_now`, or -1 where only a thread may read."""
        try:
            preadv(self._fd, (bytearray(1),), 0, os.RWF_NOWAIT)
        except BlockingIOError:
            pass
        except OSError:
            return 0 if _file_system_type(self._fd) in _MEMORY_FILE_SYSTEMS else -1
        return os.RWF_NOWAIT


def _open_or_create(path: Path, *, create: bool) -> tuple[int, bool]:
    """A read-write descriptor, and whether this call made the file. Raises UsageError."""
    try:
        is_name = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise UsageError(f"{str(path)!r}: is not a usable file name")
    flags = os.O_RDWR | os.O_CLOEXEC
    while True:
        try:
            mode = os.stat(path).st_mode
            if stat.S_ISDIR(mode):
                raise UsageError(f"{path}: is a directory; want a regular file or a block device")
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise UsageError(f"{path}: is a {_kind(mode)}; want a regular file or a block device")
            # O_EXCL without O_CREAT on a block device: EBUSY while it is mounted, a swap area or part of an array.
            return os.open(path, flags | (os.O_EXCL if stat.S_ISBLK(mode) else 0)), False
        except FileNotFoundError:
            if not create:
                raise UsageError(f"{path}: does not exist, and no size to make it with was given") from None
        except OSError as error:
            in_use = " (mounted, or in use by the system)" if error.errno == errno.EBUSY else ""
            raise UsageError(f"{path}: cannot be opened for writing: {error.strerror}{in_use}") from error
        try:
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
        except FileExistsError:
            if os.path.islink(path) and not os.path.exists(path):
                raise UsageError(f"{path}: is a symbolic link to a file that does not exist") from None
        except OSError as error:
            raise UsageError(f"{path}: cannot be created: {error.strerror}") from error


def _kind(mode: int) -> str:
    names = ((stat.S_ISCHR, "character device"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
    return next((name for test, name in names if test(mode)), "special file")


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path}: is in use: another process, or this one, has it open and locked") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be locked: {error.strerror}") from error


def _grow(fd: int, path: Path, size: int) -> None:
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
        sync_directory(path.parent)
    except OSError as error:
        os.ftruncate(fd, 0)
        raise UsageError(f"{path}: cannot be made {size} bytes long: {error.strerror}") from error


def _length(fd: int) -> int:
    """Bytes in the file or device; ``st_size`` of a block device is 0."""
    status = os.fstat(fd)
    return os.lseek(fd, 0, os.SEEK_END) if stat.S_ISBLK(status.st_mode) else status.st_size


def _file_system_type(fd: int) -> int:
    """``f_type`` of fstatfs(2), the first word of the structure on every 64-bit Linux; 0 when unknown."""
    buffer = (ctypes.c_long * 32)()
    return int(buffer[0]) if _libc.fstatfs(fd, buffer) == 0 else 0


def sync_directory(path: Path) -> None:
    """Put the names in directory ``path`` on media. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def load_file(path: Path, size_max: int) -> bytes | None:
    """The content of a small file, None when there is none. Raises OSError; EFBIG above ``size_max`` bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        data = pread(fd, size_max + 1, 0)
    finally:
        os.close(fd)
    if len(data) > size_max:
        raise OSError(errno.EFBIG, f"is larger than {size_max} bytes")
    return data


def replace_file(path: Path, data: bytes) -> None:
    """Make ``data`` the whole content of ``path``, atomically and on media. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            done = 0
            while done < len(data):
                done += os.write(fd, data[done:])
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
