"""The safetensors layout: u64 header length, JSON header, data without holes.

https://github.com/huggingface/safetensors#format. Headers are read as untrusted; what a loader of this layout demands
(offsets in order, no holes, nothing behind the last tensor) is demanded here too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvmeof.checkpoint import dtypes
from nvmeof.checkpoint.manifest import Item
from nvmeof.errors import UsageError

HEADER_BYTES_MAX = 100_000_000
"""The limit of the reference implementation."""

METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header. ``start`` and ``end`` are bytes from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def alignment_rank(item: Item) -> int:
    """Sort key: wider elements first, so that every tensor starts at a multiple of its element."""
    width = dtypes.element_bytes(item.dtype) if item.kind == "array" else 1
    return -(width or 1) if dtypes.safetensors_name(item.dtype) else -1


def header_names(items: Sequence[Item]) -> list[str]:
    """The name of each item in a header: its own, but legal and unique there (the manifest has the true one)."""
    taken: set[str] = {METADATA}
    names = []
    for item in items:
        name = base = item.name.encode("utf-8", "backslashreplace").decode("utf-8")
        number = 1
        while name in taken:
            number += 1
            name = f"{base}~{number}"
        taken.add(name)
        names.append(name)
    return names


def header_type(item: Item) -> tuple[str, tuple[int, ...]]:
    """Type and shape of an item in a header: bytes, files and types that safetensors lacks are plain bytes there."""
    dtype = dtypes.safetensors_name(item.dtype) if item.kind == "array" else None
    return (dtype, item.shape) if dtype else ("U8", (item.size,))


def encode_header(items: Sequence[Item], names: Sequence[str], metadata: Mapping[str, str]) -> bytes:
    """Header (length word included) of a file that holds ``items`` one after the other in this order."""
    header: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for item, name in zip(items, names, strict=True):
        start, end = end, end + item.size
        dtype, shape = header_type(item)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_BYTES_MAX:
        raise UsageError(
            f"{len(items)} tensors need a header of {len(text)} bytes; safetensors allows {HEADER_BYTES_MAX}"
        )
    return len(text).to_bytes(8, "little") + text


def read_header(fd: int, what: str) -> tuple[list[Tensor], dict[str, str], int]:
    """Tensors in the order of their data, the metadata, and where the data starts. Blocking.

    Raises UsageError, which names ``what``, if the file is no safetensors file.
    """
    file_size = os.fstat(fd).st_size
    prefix = os.pread(fd, 8, 0)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(HEADER_BYTES_MAX, file_size - 8):
        raise UsageError(f"{what} is no safetensors file: a header of {length} bytes in {file_size}")
    try:
        header = json.loads(os.pread(fd, length, 8).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} is no safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise UsageError(f"{what} is no safetensors file: the header is no object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UsageError(f"{what}: {METADATA} is not a mapping of strings")
    tensors = sorted((_tensor(name, entry, what) for name, entry in header.items()), key=lambda t: (t.start, t.end))
    end = 0
    for tensor in tensors:
        if tensor.start != end:
            raise UsageError(f"{what}: tensor {tensor.name!r} starts at {tensor.start}, the one before ends at {end}")
        end = tensor.end
    if 8 + length + end != file_size:
        raise UsageError(f"{what}: header and tensors are {8 + length + end} bytes, the file {file_size}")
    return tensors, metadata, 8 + length


def _tensor(name: str, entry: object, what: str) -> Tensor:
    bad = UsageError(f"{what}: tensor {name!r} has the entry {entry!r:.80}")
    if not isinstance(entry, dict):
        raise bad
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise bad
    if (
        not all(type(number) is int and 0 <= number < 1 << 62 for number in [*shape, *offsets])
        or offsets[0] > offsets[1]
    ):
        raise bad
    start, end = offsets
    width = dtypes.element_bytes(dtype)
    if dtype.startswith("numpy:") or (width is not None and math.prod(shape) * width != end - start):
        raise UsageError(f"{what}: tensor {name!r}: {end - start} bytes for {dtype} of shape {shape}")
    return Tensor(name, dtype, tuple(shape), start, end)
