"""A pool's directory: the member files or links to them, and the lock of the one process that has the pool open."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from nvmeof.engine.disk import FileDisk, sync_directory, write_zeros
from nvmeof.engine.layout import AREA_BYTES, MEMBERS_MAX
from nvmeof.errors import UsageError

CONTROL_NAME = "control"
_MEMBER = re.compile(r"member-([0-9]{2,})\.nvmeof")
_RETIRED = re.compile(r"member-[0-9]{2,}\.nvmeof\.replaced(-[0-9]+)?")


class MemberFile(FileDisk):
    """A member. A file that was deleted is as good as a disk that was pulled, though the system lets us go on."""

    def sync(self) -> None:
        """As :meth:`FileDisk.sync`; ENODEV when the file has no name any more."""
        self._open_fd()
        if self.is_gone:
            raise OSError(errno.ENODEV, "the file was deleted")
        super().sync()

    @property
    def is_gone(self) -> bool:
        """Whether the file was deleted while it is open."""
        try:
            status = os.fstat(self._fd)
        except OSError:
            return False
        return status.st_nlink == 0 and stat.S_ISREG(status.st_mode)

    @property
    def is_blank(self) -> bool:
        """Whether nothing was ever written to it; there is no telling for a device. Raises OSError."""
        return not self.is_device and self.allocated() == 0

    def wipe(self) -> None:
        """Write zeros over everything that says what this is: labels, key tables, superblocks. Raises OSError.

        Written, not punched out: what a hole leaves behind could be read from the disk below.
        """
        size = self.size()
        for offset in (0, max(size - AREA_BYTES, 0)):
            write_zeros(self, offset, min(AREA_BYTES, size - offset))
        self.sync()


class PoolDirectory:
    """An open directory. Closing it gives the lock back."""

    def __init__(self, path: Path, fd: int) -> None:
        """Take over the descriptor; use :meth:`open`."""
        self.path = path
        self.fd = fd

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Raises OSError, UsageError."""
        path = Path(path)
        try:
            return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except NotADirectoryError:
            raise UsageError(f"{path}: is not a directory; want the directory of a pool's members") from None
        except ValueError as error:
            raise UsageError(f"{str(path)!r}: is not a usable file name: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def lock(self) -> None:
        """One process has a pool open. Raises UsageError when it is another one."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self.path}: is in use: another process has this pool open") from None
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be locked: {error.strerror}") from error

    # --- members ------------------------------------------------------------------------------------------------------

    def members(self) -> list[Path]:
        """What is named like a member, by number. Raises OSError."""
        found = ((_MEMBER.fullmatch(name), name) for name in os.listdir(self.fd))
        return [self.path / name for _, name in sorted((int(match[1]), name) for match, name in found if match)]

    def need_members(self) -> list[Path]:
        """As :meth:`members`, at least one. Raises FileNotFoundError."""
        if members := self.members():
            return members
        raise FileNotFoundError(errno.ENOENT, "holds no pool: there is no member-*.nvmeof in it", str(self.path))

    def retired(self) -> list[Path]:
        """Files that were members until they were replaced. Raises OSError."""
        return [self.path / name for name in sorted(os.listdir(self.fd)) if _RETIRED.fullmatch(name)]

    def open_members(self) -> tuple[list[MemberFile], list[str]]:
        """Every member that can be opened, and what is wrong with the others.

        Raises UsageError when one is in use, or none can be opened; FileNotFoundError when there is none.
        """
        disks: list[MemberFile] = []
        problems: list[str] = []
        with closing_on_error(disks):
            for path in self.need_members():
                try:
                    disks.append(MemberFile.open(path))
                except UsageError as error:
                    if is_in_use(error):
                        raise
                    problems.append(str(error))
            if not disks:
                raise UsageError(problems[0])
        return disks, problems

    def path_of(self, number: int) -> Path:
        """Name of a member."""
        return self.path / f"member-{number:02d}.nvmeof"

    def free_path(self, wanted: int | None = None) -> Path:
        """A name that no member has: that of number ``wanted`` if it is free, else the lowest. Raises UsageError."""
        numbers = range(10 * MEMBERS_MAX) if wanted is None else (wanted, *range(10 * MEMBERS_MAX))
        for path in map(self.path_of, numbers):
            if not os.path.lexists(path):
                return path
        raise UsageError(f"{self.path}: has no name left for a member")

    def check_target(self, target: Path) -> None:
        """Raises UsageError when ``target`` would be taken for a member itself: one member would have two names."""
        if _MEMBER.fullmatch(target.name) and os.path.realpath(target.parent) == os.path.realpath(self.path):
            raise UsageError(f"--member: {target} has the name of a link to a member; want another name or place")

    def make_member(self, path: Path, target: Path | None, size: int, *, sparse: bool, overwrite: bool) -> MemberFile:
        """A blank member called ``path``: a new file, or a link to ``target``, which is made if it is missing.

        Raises UsageError when there is something in ``target`` and not ``overwrite``; OSError.
        """
        if target is None:
            return make_blank(path, size, sparse=sparse, overwrite=False)
        disk = make_blank(target, size, sparse=sparse, overwrite=overwrite)
        with closing_on_error([disk]):
            os.symlink(os.path.abspath(target), path)
            sync_directory(self.path)
        return disk

    def retire(self, path: Path) -> str:
        """Take a member's name from it: the file keeps its bytes under another, a link goes. What was done."""
        if not os.path.lexists(path):
            return ""
        if path.is_symlink():
            where = os.readlink(path)
            path.unlink()
            said = f"{where} is not a member any more"
        else:
            number, other = 0, path.with_name(f"{path.name}.replaced")
            while os.path.lexists(other):
                number += 1
                other = path.with_name(f"{path.name}.replaced-{number}")
            path.rename(other)
            said = f"the old file is {other} now"
        sync_directory(self.path)
        return said

    def remove(self, path: Path) -> None:
        """Remove a member's file, or the link to it."""
        path.unlink(missing_ok=True)
        sync_directory(self.path)


def make_blank(path: Path, size: int, *, sparse: bool, overwrite: bool) -> MemberFile:
    """Open ``path``, made if it is missing or empty. Raises UsageError when it holds something; OSError when full."""
    exists = os.path.exists(path)
    disk = MemberFile.open(path, None if exists and os.path.getsize(path) else size)
    try:
        if not disk.created and not disk.is_blank:
            if not overwrite:
                raise UsageError(f"{path}: may hold data; --yes says that it may be overwritten")
            disk.wipe()
        if not sparse:
            _allocate(disk)
    except BaseException:
        if disk.created:
            path.unlink(missing_ok=True)
        disk.close()
        raise
    return disk


def _allocate(disk: MemberFile) -> None:
    try:
        disk.allocate()
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (--sparse makes files that grow)", str(disk.path)) from error


@contextmanager
def closing_on_error(disks: list[MemberFile]) -> Iterator[None]:
    """Close the disks unless what is done goes well."""
    try:
        yield
    except BaseException:
        for disk in disks:
            disk.close()
        raise


def is_in_use(error: UsageError) -> bool:
    """Whether a disk could not be opened because another process, or the system, uses it."""
    cause = error.__cause__ or error.__context__
    return isinstance(cause, BlockingIOError) or (isinstance(cause, OSError) and cause.errno == errno.EBUSY)
