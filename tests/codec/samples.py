"""Data of the kinds that the codecs must tell apart; the same at every run."""

from __future__ import annotations

import base64
from collections.abc import Callable
from random import Random

import numpy as np
from numpy.typing import NDArray

RECORD_BYTES = 128 << 10


def noise(length: int = RECORD_BYTES, seed: int = 1) -> bytes:
    return Random(seed).randbytes(length)


def normal(count: int, seed: int = 1) -> NDArray[np.float32]:
    """Weights of a layer: normal, with a deviation of 0.02."""
    return (np.random.default_rng(seed).standard_normal(count) * 0.02).astype(np.float32)


def zeros(length: int = RECORD_BYTES) -> bytes:
    return bytes(length)


def text(length: int = RECORD_BYTES) -> bytes:
    random = Random(2)
    words = [bytes(random.choices(b"abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(500)]
    out = bytearray()
    while len(out) < length:
        out += random.choice(words) + b" "
    return bytes(out[:length])


def bf16(length: int = RECORD_BYTES) -> bytes:
    return (normal(length // 2).view(np.uint32) >> 16).astype(np.uint16).tobytes()


def fp16(length: int = RECORD_BYTES) -> bytes:
    return normal(length // 2).astype(np.float16).tobytes()


def fp32(length: int = RECORD_BYTES) -> bytes:
    return normal(length // 4).tobytes()


def fp64(length: int = RECORD_BYTES) -> bytes:
    return (np.random.default_rng(4).standard_normal(length // 8) * 0.02).tobytes()


def tokens(length: int = RECORD_BYTES) -> bytes:
    """Token ids of a vocabulary of 50,000, 32 bits each."""
    return np.random.default_rng(3).integers(0, 50000, length // 4, dtype=np.int32).tobytes()


def base64_text(length: int = RECORD_BYTES) -> bytes:
    return base64.b64encode(noise(length))[:length]


SAMPLES: dict[str, Callable[[int], bytes]] = {
    "noise": noise,
    "zeros": zeros,
    "text": text,
    "bf16": bf16,
    "fp16": fp16,
    "fp32": fp32,
    "fp64": fp64,
    "tokens": tokens,
    "base64": base64_text,
}
