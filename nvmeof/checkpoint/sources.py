"""What ``nvmeof ckpt save`` takes: a directory of files, a .safetensors file, an .npz file."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nvmeof.checkpoint import safetensors_layout
from nvmeof.checkpoint.manifest import FILES, STATE, Item, RankManifest
from nvmeof.checkpoint.payload import Contents, FilePayload, FileStamp, MemoryPayload, Payload
from nvmeof.checkpoint.state import flatten
from nvmeof.errors import CorruptCheckpointError, UsageError

MANIFEST_KEY = "nvmeof.manifest"
"""Key in a safetensors file's metadata with the rank manifest of a state that is more than named numpy arrays."""

_EMPTY = MemoryPayload(memoryview(b""))


def open_source(path: str | Path) -> Contents:
    """Contents of a directory (every file below it), of a .safetensors file or of an .npz file. Blocking.

    Files and safetensors are read piece by piece while they are saved; .npz is loaded into memory here.
    Raises UsageError if the path is none of these, OSError if it cannot be read.
    """
    path = Path(path)
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        return scan_directory(path)
    if path.suffix == ".safetensors":
        return scan_safetensors(path)
    if path.suffix == ".npz":
        return load_npz(path)
    raise UsageError(f"{path} is neither a directory nor a .safetensors or .npz file")


def scan_directory(root: Path) -> Contents:
    """Every file, directory and symbolic link below ``root``, in the order of their names."""
    items: list[Item] = []
    payloads: list[Payload] = []

    def scan(directory: str, prefix: str) -> None:
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                status = entry.stat(follow_symlinks=False)
                mode = stat.S_IMODE(status.st_mode)
                if stat.S_ISDIR(status.st_mode):
                    items.append(Item(name, "directory", mode=mode))
                    payloads.append(_EMPTY)
                    scan(entry.path, f"{name}/")
                elif stat.S_ISLNK(status.st_mode):
                    items.append(Item(name, "symlink", target=os.readlink(entry.path)))
                    payloads.append(_EMPTY)
                elif stat.S_ISREG(status.st_mode):
                    items.append(Item(name, "file", status.st_size, mode=mode))
                    payloads.append(FilePayload(entry.path, 0, status.st_size, FileStamp.of(status)))
                else:
                    raise UsageError(f"{entry.path} is neither a file, a directory nor a symbolic link")

    scan(os.fspath(root), "")
    return Contents(RankManifest(FILES, tuple(items)), tuple(payloads))


def scan_safetensors(path: Path) -> Contents:
    """The tensors of a safetensors file, in the order of their data; its metadata goes with the checkpoint."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        tensors, metadata, data_start = safetensors_layout.read_header(file.fileno(), str(path))
    stamp = FileStamp.of(status)
    real_path = os.path.realpath(path)
    if MANIFEST_KEY in metadata:
        manifest = _embedded_manifest(metadata[MANIFEST_KEY], path)
    else:
        items = [
            Item(
                tensor.name, "array", tensor.end - tensor.start, dtype=tensor.dtype, shape=tensor.shape, origin="numpy"
            )
            for tensor in tensors
        ]
        manifest = RankManifest(STATE, tuple(items), flat_skeleton(items), metadata)
    by_name = {tensor.name: tensor for tensor in tensors}
    payloads = []
    for item, name in zip(manifest.items, safetensors_layout.header_names(manifest.items), strict=True):
        found = by_name.pop(name, None)
        if found is None or found.end - found.start != item.size:
            raise UsageError(f"{path}: metadata {MANIFEST_KEY!r} does not fit the tensors: {item.name!r}")
        payloads.append(FilePayload(real_path, data_start + found.start, item.size, stamp))
    if by_name:
        raise UsageError(f"{path}: metadata {MANIFEST_KEY!r} does not fit the tensors: {min(by_name)!r}")
    return Contents(manifest, tuple(payloads))


def _embedded_manifest(text: str, path: Path) -> RankManifest:
    try:
        manifest = RankManifest.decode(text.encode("ascii"))
    except (CorruptCheckpointError, UnicodeError) as error:
        raise UsageError(f"{path}: metadata {MANIFEST_KEY!r}: {error}") from None
    if manifest.kind != STATE:
        raise UsageError(f"{path}: metadata {MANIFEST_KEY!r} describes {manifest.kind}, not a state")
    return manifest


def flat_skeleton(items: Sequence[Item]) -> object:
    """The skeleton of a state that is nothing but names and arrays."""
    return {"d": [[item.name, {"i": i}] for i, item in enumerate(items)]}


def load_npz(path: Path) -> Contents:
    """The arrays of an .npz file, loaded. Pickled objects are refused."""
    arrays = {}
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise UsageError(f"{path} is no .npz file: it holds a single array")
        with opened as archive:
            for name in archive.files:
                arrays[name] = archive[name]
                if not isinstance(arrays[name], np.ndarray):
                    raise UsageError(f"{path} is no .npz file of plain arrays: {name!r} is none")
    except UsageError:
        raise
    except (ValueError, EOFError, OverflowError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path} is no .npz file of plain arrays: {error}") from None
    except MemoryError as error:
        raise UsageError(f"{path} does not fit into memory: {error}") from None
    return flatten(arrays)
