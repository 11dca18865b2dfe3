"""What a checkpoint is loaded into: memory, a directory of files, a .safetensors file, an .npz file.

Files appear under their final name only when every byte was verified and is on media.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvmeof.checkpoint.directory_files import fsync_directory
from nvmeof.checkpoint.dtypes import numpy_dtype, safetensors_name
from nvmeof.checkpoint.manifest import FILES, STATE, Item, RankManifest
from nvmeof.checkpoint.payload import Destination, FileDestination, MemoryDestination, write_all
from nvmeof.checkpoint.safetensors_layout import alignment_rank, encode_header, header_names
from nvmeof.checkpoint.sources import MANIFEST_KEY, flat_skeleton
from nvmeof.checkpoint.state import allocate, restore_item, unflatten
from nvmeof.errors import CorruptCheckpointError, UsageError


class Sink(ABC):
    """A destination of a whole checkpoint. All methods block; exactly one of ``finish`` and ``abort`` ends it."""

    @abstractmethod
    def prepare(self, manifest: RankManifest) -> Sequence[Destination]:
        """One destination an item. Raises UsageError if this checkpoint does not fit in here."""

    @abstractmethod
    def finish(self) -> object:
        """Everything landed and is verified: make it visible."""

    def abort(self) -> None:
        """Leave nothing behind."""
        return


class MemorySink(Sink):
    """The state as it was saved; a checkpoint of files as a dict of their contents (bytearray) by name."""

    def prepare(self, manifest: RankManifest) -> Sequence[Destination]:
        self._manifest = manifest
        for item in manifest.items:
            if item.kind == "array" and item.origin != "torch":
                numpy_dtype(item.dtype)
        self._memory: list[bytearray | NDArray[np.uint8]] = [
            bytearray(item.size) if manifest.kind == FILES else allocate(item) for item in manifest.items
        ]
        return [
            MemoryDestination(memoryview(memory) if isinstance(memory, bytearray) else memory.data)
            for memory in self._memory
        ]

    def finish(self) -> dict[Any, object]:
        items = self._manifest.items
        if self._manifest.kind == FILES:
            return {item.name: memory for item, memory in zip(items, self._memory, strict=True) if item.kind == "file"}
        values = [restore_item(item, memory) for item, memory in zip(items, self._memory, strict=True)]
        return unflatten(self._manifest.skeleton, values)


def open_sink(path: str | Path, kind: str) -> Sink:
    """The sink for a path that does not exist yet (an empty directory may). Raises UsageError."""
    path = Path(os.path.abspath(path))
    if kind == FILES:
        if path.suffix in (".safetensors", ".npz"):
            raise UsageError(f"the checkpoint holds files, not tensors: load it into a directory, not {path}")
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            return DirectorySink(path)
    elif path.suffix not in (".safetensors", ".npz"):
        raise UsageError(f"the checkpoint holds a state: load it into a .safetensors or .npz file, not {path}")
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory")
    if kind == FILES:
        return DirectorySink(path)
    return SafetensorsSink(path) if path.suffix == ".safetensors" else NpzSink(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.urandom(8).hex()}")


class DirectorySink(Sink):
    """The files of a checkpoint in a new directory, modes and symbolic links included (not setuid, setgid, sticky)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = _temporary(path)

    def prepare(self, manifest: RankManifest) -> Sequence[Destination]:
        self._items = manifest.items
        _check_names(self._items)
        self._temporary.mkdir(mode=0o700)
        destinations: list[Destination] = []
        for item in self._items:
            path = self._temporary / item.name
            if item.kind == "directory":
                path.mkdir(mode=0o700)
            elif item.kind == "file":
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            destinations.append(FileDestination(os.fspath(path)))
        return destinations

    def finish(self) -> None:
        for item in self._items:
            path = self._temporary / item.name
            if item.kind == "file":
                _finish_file(path, item.mode & 0o777)
            elif item.kind == "symlink":
                os.symlink(item.target, path)
        for item in reversed(self._items):
            if item.kind == "directory":
                fsync_directory(os.fspath(self._temporary / item.name))
                os.chmod(self._temporary / item.name, item.mode & 0o777)
        os.chmod(self._temporary, 0o777 & ~_umask())
        fsync_directory(os.fspath(self._temporary))
        os.rename(self._temporary, self._path)
        fsync_directory(os.fspath(self._path.parent))

    def abort(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)


def _check_names(items: Sequence[Item]) -> None:
    """Names are from the checkpoint, which may come from anywhere: none may lead out of the directory."""
    directories = {""}
    for item in items:
        parent, _, last = item.name.rpartition("/")
        if last in ("", ".", "..") or "\0" in item.name or parent not in directories:
            raise CorruptCheckpointError(
                f"the checkpoint has a {item.kind} with the unacceptable name {item.name!r:.100}"
            )
        target = item.target if item.kind == "symlink" else "none"
        if not target or "\0" in target or not _encodable(item.name + target):
            what = f"{item.kind} {item.name!r:.100} (target {item.target!r:.100})"
            raise CorruptCheckpointError(f"the checkpoint has the {what}, which no file system can hold")
        if item.kind == "directory":
            directories.add(item.name)


def _encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _finish_file(path: Path, mode: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fchmod(fd, mode)
        os.fsync(fd)
    finally:
        os.close(fd)


class _FileSink(Sink):
    """One file, written under a temporary name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = _temporary(path)

    def publish(self) -> None:
        _finish_file(self._temporary, 0o666 & ~_umask())
        os.rename(self._temporary, self._path)
        fsync_directory(os.fspath(self._path.parent))

    def abort(self) -> None:
        self._temporary.unlink(missing_ok=True)


class SafetensorsSink(_FileSink):
    """A state as one safetensors file. What the layout cannot say (nesting, other types) rides in its metadata."""

    def prepare(self, manifest: RankManifest) -> Sequence[Destination]:
        if manifest.kind != STATE:
            raise UsageError(f"the checkpoint holds files, not tensors: {self._path} cannot take it")
        items = manifest.items
        names = header_names(items)
        metadata = dict(manifest.metadata)
        if not _is_plain(manifest):
            metadata[MANIFEST_KEY] = manifest.encode().decode("ascii")
        order = sorted(range(len(items)), key=lambda index: (alignment_rank(items[index]), index))
        header = encode_header([items[index] for index in order], [names[index] for index in order], metadata)
        fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, [memoryview(header)], 0)
        finally:
            os.close(fd)
        starts = [0] * len(items)
        end = len(header)
        for index in order:
            starts[index] = end
            end += items[index].size
        return [FileDestination(os.fspath(self._temporary), start) for start in starts]

    def finish(self) -> None:
        self.publish()


def _is_plain(manifest: RankManifest) -> bool:
    """Whether a state is nothing but names and numpy arrays of types that safetensors has."""
    return manifest.skeleton == flat_skeleton(manifest.items) and all(
        item.kind == "array" and item.origin == "numpy" and safetensors_name(item.dtype) for item in manifest.items
    )


class NpzSink(_FileSink):
    """A state of plain arrays as an .npz file. It is loaded into memory first: .npz has no other way."""

    def prepare(self, manifest: RankManifest) -> Sequence[Destination]:
        items = manifest.items
        if manifest.kind != STATE or manifest.skeleton != flat_skeleton(items):
            raise UsageError(f"the state is nested or has values that are not arrays: {self._path} cannot take it")
        for item in items:
            if item.kind != "array" or numpy_dtype(item.dtype).metadata or not _is_member(item.name):
                raise UsageError(
                    f"{item.name!r} ({item.dtype or item.kind}) does not fit in {self._path}; .safetensors takes it"
                )
        self._items = items
        self._memory = [np.empty(item.size, dtype=np.uint8) for item in items]
        return [MemoryDestination(memory.data) for memory in self._memory]

    def finish(self) -> None:
        with zipfile.ZipFile(self._temporary, "x") as archive:
            for item, memory in zip(self._items, self._memory, strict=True):
                with archive.open(f"{item.name}.npy", "w", force_zip64=True) as member:
                    array = np.asanyarray(restore_item(item, memory))
                    np.lib.format.write_array(member, array, allow_pickle=False)
        self.publish()


def _is_member(name: str) -> bool:
    """Whether an array of that name can be in an archive."""
    return "/" not in name and "\0" not in name and name.isprintable()
