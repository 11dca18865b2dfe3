"""A nested Python state to named items and a skeleton, and back (FORMAT.md, 1.1).

Nothing here can execute code from a checkpoint: the skeleton knows JSON values, lists, tuples and dictionaries only.
torch is never imported: it is used if the program that saves or loads has imported it already.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvmeof.checkpoint import dtypes
from nvmeof.checkpoint.manifest import STATE, Item, RankManifest
from nvmeof.checkpoint.payload import Contents, LazyPayload, MemoryPayload, Payload
from nvmeof.errors import CorruptCheckpointError, UsageError

DEPTH_MAX = 100
"""Levels of nesting. Real optimizer states have five; each level costs three in JSON, whose limit is about 1000."""


INTEGER_BITS_MAX = 14_000
"""Of one integer. Python neither reads nor prints those of more than 4300 digits, which is 14284 bits."""


def flatten(state: Mapping[Any, object], metadata: Mapping[str, str] | None = None) -> Contents:
    """Take a state dict apart. Nothing is copied but arrays that are not contiguous, and those when they are saved.

    Leaves: numpy arrays and scalars, torch tensors (if torch is loaded), bytes, bytearray, memoryview, str, int, float,
    complex, bool, None; nesting by mappings, lists and tuples; keys str, int, float, bool, None or tuples of these.
    Raises UsageError, which names the path, for anything else.
    """
    if not isinstance(state, Mapping):
        raise UsageError(f"a state is a mapping of names to values, got {type(state).__name__}")
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise UsageError(f"metadata is text by text, got {key!r:.60}: {text!r:.60}")
    flattener = _Flattener()
    skeleton = flattener.visit(state, (), 0)
    manifest = RankManifest(STATE, tuple(flattener.items), skeleton, dict(metadata or {}))
    return Contents(manifest, tuple(flattener.payloads))


class _Flattener:
    def __init__(self) -> None:
        self.items: list[Item] = []
        self.payloads: list[Payload] = []
        self._names: set[str] = set()

    def visit(self, value: object, path: tuple[str, ...], depth: int) -> object:
        if depth > DEPTH_MAX:
            raise UsageError(f"state{_dotted(path[:8])}... has more than {DEPTH_MAX} levels, or contains itself")
        if type(value) is int and value.bit_length() > INTEGER_BITS_MAX:
            raise UsageError(
                f"state{_dotted(path)} is an integer of {value.bit_length()} bits; wanted at most {INTEGER_BITS_MAX}"
            )
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return {"f": value.hex() if math.isfinite(value) else repr(value)}
        if type(value) is complex:
            return {"c": [self.visit(value.real, path, depth), self.visit(value.imag, path, depth)]}
        if isinstance(value, Mapping):
            return {"d": [self._pair(key, item, path, depth) for key, item in value.items()]}
        if type(value) is list or (isinstance(value, tuple) and not hasattr(value, "_fields")):
            tag = "l" if isinstance(value, list) else "t"
            return {tag: [self.visit(item, (*path, str(i)), depth + 1) for i, item in enumerate(value)]}
        leaf = _leaf(value, path)
        if leaf is None:
            raise UsageError(f"state{_dotted(path)} is a {_type_name(value)}, which cannot be stored")
        return self._add(leaf, path)

    def _pair(self, key: object, value: object, path: tuple[str, ...], depth: int) -> list[object]:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(part is None or type(part) in (str, int, float, bool) for part in parts):
            wanted = "str, int, float, bool, None or a tuple of these"
            raise UsageError(f"state{_dotted(path)} has a key of type {_type_name(key)}; wanted {wanted}")
        return [self.visit(key, path, depth + 1), self.visit(value, (*path, str(key)), depth + 1)]

    def _add(self, leaf: _Leaf, path: tuple[str, ...]) -> object:
        kind, dtype, shape, origin, payload = leaf
        name = base = ".".join(path)
        number = 1
        while name in self._names:
            number += 1
            name = f"{base}~{number}"
        self._names.add(name)
        self.items.append(Item(name, kind, payload.size, dtype=dtype, shape=shape, origin=origin))
        self.payloads.append(payload)
        return {"i": len(self.items) - 1}


_Leaf = tuple[str, str, tuple[int, ...], str, Payload]


def _leaf(value: object, path: tuple[str, ...]) -> _Leaf | None:
    """Kind, dtype, shape, origin and payload of a leaf with bytes; None if it is none."""
    if isinstance(value, np.ma.MaskedArray):
        return None
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        try:
            dtype = dtypes.name_of_numpy(_stored_dtype(value, array))
            width = dtypes.numpy_dtype(dtype).itemsize
        except UsageError as error:
            raise UsageError(f"state{_dotted(path)}: {error}") from None
        if math.prod(array.shape) * width != array.nbytes:
            raise UsageError(f"state{_dotted(path)}: {array.nbytes} bytes for {dtype} of shape {array.shape}")
        origin = "scalar" if isinstance(value, np.generic) else "numpy"
        return "array", dtype, array.shape, origin, _numpy_payload(array)
    if isinstance(value, bytes | bytearray | memoryview):
        memory = memoryview(value)
        if not memory.c_contiguous:
            raise UsageError(f"state{_dotted(path)} is a memoryview that is not contiguous")
        origin = "bytes" if isinstance(value, bytes) else "bytearray"
        return "bytes", "", (), origin, MemoryPayload(memory.cast("B") if memory.nbytes else memoryview(b""))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        try:
            return _tensor_leaf(torch, value)
        except UsageError as error:
            raise UsageError(f"state{_dotted(path)}: {error}") from None
    return None


def _stored_dtype(value: NDArray[Any] | np.generic, array: NDArray[Any]) -> np.dtype[Any]:
    """That of the bytes. An empty ``np.str_`` has no width, but numpy gives the array of it one character."""
    return value.dtype if value.dtype.itemsize == array.dtype.itemsize else array.dtype


def _numpy_payload(array: NDArray[Any]) -> Payload:
    if array.flags.c_contiguous:
        return MemoryPayload(array_bytes(array))
    return LazyPayload(array.nbytes, lambda: array_bytes(np.ascontiguousarray(array)))


def array_bytes(array: NDArray[Any]) -> memoryview:
    """The memory of a C-contiguous array as bytes, without a copy."""
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


def _tensor_leaf(torch: Any, tensor: Any) -> _Leaf:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise UsageError(f"a {_type_name(tensor)} cannot be stored; wanted a plain tensor")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise UsageError(
            f"a tensor of {tensor.layout} on {tensor.device} cannot be stored; wanted a dense one with data"
        )
    dtype = dtypes.name_of_torch(tensor.dtype)
    plain = tensor.detach()
    size = tensor.numel() * tensor.element_size()

    def make() -> memoryview:
        dense = plain.resolve_conj().resolve_neg().to("cpu").contiguous()
        return array_bytes(dense.reshape(-1).view(torch.uint8).numpy()) if size else memoryview(b"")

    direct = tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    payload = MemoryPayload(make()) if direct else LazyPayload(size, make)
    return "array", dtype, tuple(tensor.shape), "torch", payload


def allocate(item: Item) -> bytearray | NDArray[np.uint8]:
    """Memory for the bytes of one item, uninitialised where that saves time."""
    return bytearray(item.size) if item.kind == "bytes" else np.empty(item.size, dtype=np.uint8)


def restore_item(item: Item, memory: bytearray | NDArray[np.uint8]) -> object:
    """The value of one item from its loaded bytes. Shares the memory but for ``bytes`` and scalars."""
    if isinstance(memory, bytearray):
        return bytes(memory) if item.origin == "bytes" else memory
    try:
        return _restore_array(item, memory)
    except CorruptCheckpointError:
        raise
    except (ValueError, OverflowError, TypeError, RuntimeError) as error:
        what = f"item {item.name!r:.80} of type {item.dtype:.40} and {len(item.shape)} dimensions"
        raise CorruptCheckpointError(f"{what}: {error}") from None


def _restore_array(item: Item, memory: NDArray[np.uint8]) -> object:
    torch = sys.modules.get("torch")
    if item.origin == "torch" and torch is not None and item.dtype in dtypes.TORCH_NAMES:
        _check_shape(item, dtypes.element_bytes(item.dtype) or 1)
        dtype = getattr(torch, dtypes.TORCH_NAMES[item.dtype])
        if not item.size:
            return torch.empty(item.shape, dtype=dtype)
        return torch.from_numpy(memory).view(dtype).reshape(item.shape)
    numpy_dtype = dtypes.numpy_dtype(item.dtype)
    _check_shape(item, numpy_dtype.itemsize)
    array = memory.view(numpy_dtype).reshape(item.shape) if item.size else np.empty(item.shape, dtype=numpy_dtype)
    return array[()] if item.origin == "scalar" else array


def _check_shape(item: Item, element_bytes: int) -> None:
    if math.prod(item.shape) * element_bytes != item.size:
        raise CorruptCheckpointError(f"item {item.name!r}: {item.size} bytes for {item.dtype} of shape {item.shape}")


def unflatten(skeleton: object, values: Sequence[object]) -> dict[Any, object]:
    """Put a state together again. Raises CorruptCheckpointError where the skeleton is not one."""
    state = _build(skeleton, values, 0)
    if not isinstance(state, dict):
        raise CorruptCheckpointError("skeleton: the state is not a dictionary")
    return state


def _build(node: object, values: Sequence[object], depth: int) -> Any:
    if node is None or type(node) in (bool, int, str):
        return node
    if not isinstance(node, dict) or len(node) != 1 or depth > DEPTH_MAX + 1:
        raise CorruptCheckpointError(f"skeleton: {reprlib.repr(node)} is not a node")
    ((tag, body),) = node.items()
    try:
        if tag == "i" and type(body) is int and 0 <= body < len(values):
            return values[body]
        if tag == "f":
            return float.fromhex(body)
        if tag == "c":
            real, imaginary = body
            return complex(_build(real, values, depth + 1), _build(imaginary, values, depth + 1))
        if tag == "l" and isinstance(body, list):
            return [_build(item, values, depth + 1) for item in body]
        if tag == "t" and isinstance(body, list):
            return tuple(_build(item, values, depth + 1) for item in body)
        if tag == "d" and isinstance(body, list):
            return {_build(key, values, depth + 1): _build(item, values, depth + 1) for key, item in body}
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptCheckpointError(f"skeleton: {reprlib.repr(node)}: {error}") from None
    raise CorruptCheckpointError(f"skeleton: {reprlib.repr(node)} is not a node")


def _dotted(path: Sequence[str]) -> str:
    return "".join(f"[{part!r}]" for part in path)


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
