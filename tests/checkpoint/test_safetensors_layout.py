"""The safetensors layout: what the reference library wrote we read, what we write it reads, nonsense is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvmeof.checkpoint.manifest import Item
from nvmeof.checkpoint.safetensors_layout import alignment_rank, encode_header, header_names, header_type, read_header
from nvmeof.errors import UsageError


def read(path: Path) -> Any:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_header(fd, str(path))
    finally:
        os.close(fd)


def test_reads_what_the_reference_library_writes(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.zeros(3, dtype=np.int8),
        "e": np.zeros((0, 2)),
    }
    save_file(arrays, tmp_path / "x.safetensors", {"format": "np"})
    tensors, metadata, start = read(tmp_path / "x.safetensors")
    assert metadata == {"format": "np"}
    data = (tmp_path / "x.safetensors").read_bytes()
    for tensor in tensors:
        array = arrays[tensor.name]
        assert tensor.shape == array.shape
        assert data[start + tensor.start : start + tensor.end] == array.tobytes()
    assert {tensor.name: tensor.dtype for tensor in tensors} == {"a": "F32", "b": "I8", "e": "F64"}


def test_the_reference_library_reads_what_we_write(tmp_path: Path) -> None:
    items = [
        Item("w", "array", 24, dtype="F32", shape=(2, 3), origin="numpy"),
        Item("c", "array", 16, dtype="numpy:<c8", shape=(2,), origin="numpy"),
        Item("blob", "bytes", 5, origin="bytes"),
        Item("path/\udc80", "file", 3, mode=0o600),
        Item("empty", "array", 0, dtype="I64", shape=(0, 7), origin="numpy"),
    ]
    header = encode_header(items, header_names(items), {"k": "v"})
    assert len(header) % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + np.arange(6, dtype=np.float32).tobytes() + bytes(16) + b"hello" + b"abc")
    loaded = load_file(path)
    assert loaded["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert loaded["blob"].tobytes() == b"hello"
    assert loaded["c"].shape == (16,)
    assert loaded["empty"].shape == (0, 7)
    assert loaded["path/\\udc80"].tobytes() == b"abc"


def test_header_names_are_unique_and_never_the_reserved_one() -> None:
    items = [Item(name, "bytes", origin="bytes") for name in ("__metadata__", "a", "a", "__metadata__~2", "a~2")]
    names = header_names(items)
    assert len(set(names)) == 5
    assert "__metadata__" not in names
    assert names[1] == "a"


def test_order_keeps_every_element_aligned() -> None:
    kinds = ["U8", "F64", "BF16", "F32", "numpy:<c16", "unknown", "I64"]
    items = [Item(name, "array", 8, dtype=name, shape=(1,), origin="numpy") for name in kinds]
    items.append(Item("file", "file", 3))
    ordered = [item.dtype or item.kind for item in sorted(items, key=alignment_rank)]
    assert ordered[:4] == ["F64", "I64", "F32", "BF16"]
    assert header_type(items[4]) == ("U8", (8,))


def made(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        made({}, length=1 << 40),
        made({}, length=200_000_000),
        made(b"[]"),
        made(b"\xff\xff"),
        made(b"[" * 5000),
        made({"__metadata__": {"a": 1}}),
        made({"__metadata__": []}),
        made({}, b"trailing"),
        made({"a": ENTRY}, b"123"),
        made({"a": ENTRY}, b"12345"),
        made({"a": {**ENTRY, "data_offsets": [1, 5]}}, b"12345"),
        made({"a": {**ENTRY, "data_offsets": [4, 0]}}, b"1234"),
        made({"a": {**ENTRY, "data_offsets": [0]}}, b"1234"),
        made({"a": {**ENTRY, "shape": [5]}}, b"1234"),
        made({"a": {**ENTRY, "shape": [-4]}}, b"1234"),
        made({"a": {**ENTRY, "shape": 4}}, b"1234"),
        made({"a": {**ENTRY, "dtype": 3}}, b"1234"),
        made({"a": {**ENTRY, "dtype": "numpy:<c8"}}, b"1234"),
        made({"a": 5}),
        made({"a": ENTRY, "b": ENTRY}, b"1234"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.safetensors"):
        read(path)
