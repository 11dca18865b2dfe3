"""What is written: noise, and weights."""

from __future__ import annotations

from functools import cache

import numpy as np

from tools.benchmark.workload import MIB

PIECES = 8
"""Different MiB of each kind, so that they are not all in the nearest cache."""


@cache
def pieces(kind: str) -> tuple[memoryview, ...]:
    """PIECES buffers of 1 MiB: ``random``, or ``bf16``: normally distributed weights."""
    rng = np.random.default_rng(1)
    if kind == "bf16":
        return tuple(memoryview(_weights(rng)) for _ in range(PIECES))
    return tuple(memoryview(bytearray(rng.bytes(MIB))) for _ in range(PIECES))


def _weights(rng: np.random.Generator) -> bytearray:
    numbers = rng.normal(0.0, 0.02, MIB // 2).astype(np.float32).view(np.uint32)
    return bytearray((numbers >> 16).astype("<u2").tobytes())
