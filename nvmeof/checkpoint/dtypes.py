"""Element types: safetensors' names, numpy's dtypes and torch's attributes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from nvmeof.errors import UsageError

NUMPY_NAMES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
"""safetensors name -> numpy dtype.str, for the types that both have."""

BIT_PATTERNS = {
    "BF16": "<u2", "F8_E4M3": "|u1", "F8_E5M2": "|u1", "F8_E8M0": "|u1", "F8_E4M3FNUZ": "|u1", "F8_E5M2FNUZ": "|u1",
}  # fmt: skip
"""safetensors name -> the numpy dtype that carries the bits, for the types that numpy lacks."""

ML_DTYPES = {
    "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
"""dtype.name of the ml_dtypes package, and torch's attribute, -> safetensors name."""

TORCH_NAMES = {
    **{safe: attribute for attribute, safe in ML_DTYPES.items()},
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64",
    "numpy:<c8": "complex64", "numpy:<c16": "complex128",
}  # fmt: skip
"""Our name -> attribute of the torch module."""

_TORCH_REVERSE = {f"torch.{attribute}": name for name, attribute in TORCH_NAMES.items()}
_NUMPY_REVERSE = {text: name for name, text in NUMPY_NAMES.items()}
_PLAIN_DTYPE = re.compile(r"[<>|]([biufcSU]\d+|[mM]8(\[\d*[a-zA-Z]+\])?)")
_METADATA_KEY = "nvmeof.dtype"


def name_of_numpy(dtype: np.dtype[Any]) -> str:
    """Our name of a numpy dtype. Raises UsageError for objects, structures and long doubles."""
    logical = dict(dtype.metadata or {}).get(_METADATA_KEY)
    if isinstance(logical, str):
        return logical
    if dtype.name in ML_DTYPES:
        return ML_DTYPES[dtype.name]
    if dtype.str in _NUMPY_REVERSE:
        return _NUMPY_REVERSE[dtype.str]
    extended = dtype.kind in "fc" and dtype.itemsize > {"f": 8, "c": 16}[dtype.kind]
    if extended or not _PLAIN_DTYPE.fullmatch(dtype.str):
        raise UsageError(f"arrays of dtype {dtype} cannot be stored: wanted numbers, booleans, times, fixed strings")
    return f"numpy:{dtype.str}"


def name_of_torch(dtype: object) -> str:
    """Our name of a torch dtype. Raises UsageError for quantised and other special ones."""
    name = _TORCH_REVERSE.get(str(dtype))
    if name is None:
        raise UsageError(f"tensors of {dtype} cannot be stored")
    return name


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype that carries our type ``name``.

    Types that numpy lacks (BF16, F8_*) come as unsigned integers of the same width whose dtype remembers the name in
    its metadata, so that saving the loaded array again keeps the type. Raises UsageError for a type without one.
    """
    if name in NUMPY_NAMES:
        return np.dtype(NUMPY_NAMES[name])
    if name in BIT_PATTERNS:
        plain = np.dtype(BIT_PATTERNS[name])
        return np.dtype(plain.str, metadata={_METADATA_KEY: name})
    text = name.removeprefix("numpy:")
    if text != name and _PLAIN_DTYPE.fullmatch(text):
        try:
            return np.dtype(text)
        except TypeError:
            pass
    raise UsageError(f"element type {name!r} has no numpy form; load into a .safetensors file")


def element_bytes(name: str) -> int | None:
    """Width of one element, or None where the type is not known here (it is then carried as it came)."""
    try:
        return numpy_dtype(name).itemsize
    except UsageError:
        return None


def safetensors_name(name: str) -> str | None:
    """The name to use in a safetensors header, or None for a type that safetensors does not have."""
    return None if name.startswith("numpy:") else name
