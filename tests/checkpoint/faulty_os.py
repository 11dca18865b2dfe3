"""The system calls of a directory store, with a power failure or an error at a chosen one.

The calls act on real files. What was not synced is remembered, and undone in part when the power fails: contents of
files that were not fsynced, and names (created, renamed) in directories that were not.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from nvmeof.checkpoint import directory_files, directory_medium, payload


class PowerFailure(BaseException):
    """The machine is off: nothing, not even an exception handler, gets to do anything."""


@dataclass
class FaultyOs:
    """Stands in for the modules ``os`` and ``shutil`` of the directory medium."""

    crash_at: int = 1 << 60
    errors: dict[int, int] = field(default_factory=dict)
    """Call number -> errno that it fails with."""
    short_writes: bool = False
    calls: list[str] = field(default_factory=list)
    off: bool = False
    dirty: dict[str, bool] = field(default_factory=dict)
    """Files with contents that were not synced."""
    names: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    """Directory and undo action of each change of names that was not synced, oldest first."""
    paths: dict[int, str] = field(default_factory=dict)
    writers: set[int] = field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _call(self, name: str) -> None:
        if self.off or len(self.calls) >= self.crash_at:
            self.off = True
            raise PowerFailure
        number = len(self.calls)
        self.calls.append(name)
        if number in self.errors:
            raise OSError(self.errors[number], os.strerror(self.errors[number]), name)

    def open(self, path: str, flags: int, mode: int = 0o777, dir_fd: int | None = None) -> int:
        path = self._absolute(path, dir_fd)
        new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        if flags & os.O_CREAT:
            self._call("open")
        fd = os.open(path, flags, mode)
        self.paths[fd] = path
        if new:
            self.dirty[path] = True
            self.names.append((os.path.dirname(path), lambda: _remove(path)))
        if flags & os.O_CREAT:
            self.writers.add(fd)
        return fd

    def close(self, fd: int) -> None:
        del self.paths[fd]
        try:
            if fd in self.writers:
                self.writers.discard(fd)
                self._call("close")
        finally:
            os.close(fd)

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        self._call("pwritev")
        self.dirty[self.paths[fd]] = True
        if self.short_writes:
            return os.pwrite(fd, views[0][: max(1, len(views[0]) // 2)], offset)
        return os.pwritev(fd, views, offset)

    def fsync(self, fd: int) -> None:
        self._call("fsync")
        os.fsync(fd)
        path = self.paths[fd]
        self.dirty.pop(path, None)
        self.names = [entry for entry in self.names if entry[0] != path]

    def mkdir(self, path: str) -> None:
        self._call("mkdir")
        os.mkdir(path)
        self.names.append((os.path.dirname(path), lambda: _remove(path)))

    def _absolute(self, path: str, directory: int | None) -> str:
        return path if directory is None else os.path.join(self.paths[directory], path)

    def rename(self, source: str, target: str, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        source, target = self._absolute(source, src_dir_fd), self._absolute(target, dst_dir_fd)
        self._call("rename")
        kept = os.path.lexists(target)
        os.rename(source, target)
        self._moved(source, target)
        assert not kept or not os.path.isdir(target)
        self.names.append((os.path.dirname(target), lambda: self._unrename(source, target)))

    def _moved(self, source: str, target: str) -> None:
        def moved(path: str) -> str:
            return target + path[len(source) :] if path == source or path.startswith(source + "/") else path

        self.dirty = {moved(path): True for path in self.dirty}
        self.names = [(moved(directory), undo) for directory, undo in self.names]
        self.paths = {fd: moved(path) for fd, path in self.paths.items()}

    def _unrename(self, source: str, target: str) -> None:
        if os.path.lexists(target):
            os.rename(target, source)
            self._moved(target, source)

    def rmtree(self, path: str, ignore_errors: bool = False) -> None:
        if self.off:
            raise PowerFailure
        shutil.rmtree(path, ignore_errors=ignore_errors)

    def power_failure(self, mode: str, seed: int) -> None:
        """Lose what was not synced: ``none`` of it survives, ``all``, or ``some``."""
        for fd in self.paths:
            os.close(fd)
        self.paths.clear()
        chooser = random.Random(seed)
        for path in list(self.dirty):
            if mode == "none" or (mode == "some" and chooser.random() < 0.6):
                _lose_contents(path, chooser)
        survivors = {"none": 0, "all": len(self.names), "some": chooser.randint(0, len(self.names))}[mode]
        for _, undo in reversed(self.names[survivors:]):
            undo()


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _lose_contents(path: str, chooser: random.Random) -> None:
    if not os.path.isfile(path):
        return
    size = os.path.getsize(path)
    if chooser.random() < 0.5:
        os.truncate(path, 0 if chooser.random() < 0.5 else size // 2)
    elif size:
        with open(path, "r+b") as file:
            file.seek(chooser.randrange(size))
            file.write(bytes(min(4096, size)))
            file.truncate(size)


def install(monkeypatch: pytest.MonkeyPatch, faulty: FaultyOs) -> None:
    """Put ``faulty`` between the directory medium and the system."""
    monkeypatch.setattr(directory_files, "os", faulty)
    monkeypatch.setattr(directory_medium, "os", faulty)
    monkeypatch.setattr(payload, "os", faulty)
    monkeypatch.setattr(directory_medium, "shutil", faulty)
