"""The small file beside a plain disk image that remembers who the image is.

A plain image is data from its first byte, so its identity cannot live inside it. ``disk.img.nvmeof`` is JSON::

    {"format": "nvmeof plain volume", "version": 1, "uuid": "...", "block_size": 4096, "size": 1073741824}

It is replaced atomically and synced, and it moves with the image: whoever renames one renames both. An image whose
sidecar is gone is served all the same, as a new volume.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from nvmeof.engine.disk import load_file, replace_file
from nvmeof.errors import UsageError
from nvmeof.limits import SIDECAR_BYTES_MAX, VOLUME_BLOCK_SIZES

FORMAT = "nvmeof plain volume"
VERSION = 1


class Identity(NamedTuple):
    """``block_size`` and ``size`` in bytes."""

    uuid: UUID
    block_size: int
    size: int


def sidecar_path(image: Path) -> Path:
    """Where the sidecar of ``image`` is: beside the file itself, whatever links led there. Raises UsageError."""
    try:
        resolved = image.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{str(image)!r}: is not a usable file name: {error}") from error
    return resolved.with_name(resolved.name + ".nvmeof")


def load_identity(path: Path) -> Identity | None:
    """What the sidecar at ``path`` says, None when there is none. Raises UsageError when it cannot be understood."""
    try:
        data = load_file(path, SIDECAR_BYTES_MAX)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    return None if data is None else _decode(path, data)


def store_identity(path: Path, identity: Identity) -> None:
    """Write the sidecar, atomically and on media. Raises UsageError."""
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "uuid": str(identity.uuid),
        "block_size": identity.block_size,
        "size": identity.size,
    }
    try:
        replace_file(path, json.dumps(fields, indent=1).encode() + b"\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def _decode(path: Path, data: bytes) -> Identity:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise _damaged(path, "is not JSON") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise _damaged(path, f'"format" is not "{FORMAT}"')
    version = fields.get("version")
    if type(version) is not int or version < 1:
        raise _damaged(path, f'"version" is {version!r}, want a whole number')
    if version > VERSION:
        raise UsageError(f"{path}: is version {version}; this release understands up to version {VERSION}")
    try:
        uuid = UUID(fields.get("uuid"))
    except (ValueError, TypeError, AttributeError):
        raise _damaged(path, f'"uuid" is {fields.get("uuid")!r}, want a UUID') from None
    block_size, size = fields.get("block_size"), fields.get("size")
    if type(block_size) is not int or block_size not in VOLUME_BLOCK_SIZES:
        raise _damaged(path, f'"block_size" is {block_size!r}, want one of {VOLUME_BLOCK_SIZES}')
    if type(size) is not int or size <= 0 or size % block_size:
        raise _damaged(path, f'"size" is {size!r}, want a multiple of {block_size}')
    return Identity(uuid, block_size, size)


def _damaged(path: Path, what: str) -> UsageError:
    return UsageError(f"{path}: damaged: {what}; restore it, or delete it to serve the image under a new identity")
