"""States to save, and their comparison."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def small_state(seed: int) -> dict[str, Any]:
    """About 150 KiB: several items, tails, a scalar, an empty array, nesting; different for every seed."""
    rng = np.random.default_rng(seed)
    return {
        "model": {
            "weight": rng.integers(0, 1 << 30, size=(128, 257), dtype=np.int32),
            "bias": rng.random(33, dtype=np.float32),
            "empty": np.zeros((0, 4), dtype=np.float16),
        },
        "optimizer": {"state": {0: {"step": np.float32(seed), "exp_avg": rng.random(1000)}}, "lr": 1e-3 * seed},
        "rng": rng.bytes(5000 + seed),
        "epoch": seed,
    }


def big_state(seed: int) -> dict[str, Any]:
    """About 20 MiB: items of several chunks with tails, and many small ones."""
    rng = np.random.default_rng(seed)
    state: dict[str, Any] = {f"small.{i}": rng.random(10 + i) for i in range(600)}
    state["embedding"] = rng.integers(0, 256, size=9 * (1 << 20) + 12345, dtype=np.uint8)
    state["head"] = rng.random((700, 1001))
    state["exact"] = rng.integers(0, 256, size=4 << 20, dtype=np.uint8)
    return state


def assert_same(left: Any, right: Any, path: str = "state") -> None:
    """Equal in structure, types and every bit."""
    assert type(left) is type(right), (path, type(left), type(right))
    torch = sys.modules.get("torch")
    if isinstance(left, dict):
        assert list(left) == list(right), path
        for key in left:
            assert_same(left[key], right[key], f"{path}[{key!r}]")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    elif isinstance(left, np.ndarray | np.generic):
        assert (left.dtype, left.dtype.metadata, left.shape) == (right.dtype, right.dtype.metadata, right.shape), path
        assert left.tobytes() == right.tobytes(), path
    elif torch is not None and isinstance(left, torch.Tensor):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        assert left.reshape(-1).view(torch.uint8).equal(right.reshape(-1).view(torch.uint8)), path
    else:
        assert repr(left) == repr(right), (path, left, right)
