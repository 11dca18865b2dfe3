"""The hashes of the checkpoint store. They take contiguous buffers, copy nothing and let other threads run.

``blake3`` and ``hashlib`` release the interpreter lock for anything longer than 2 KiB, so hashing several chunks from a
thread pool scales with cores. Measured by tools/bench_checkpoint.py on 2 cores over 4 MiB chunks, GB/s: one thread 7.8,
two threads 10.0, one thread with ``max_threads=AUTO`` 7.6: the parallelism belongs between chunks, not inside one.
"""

from __future__ import annotations

import hashlib

from blake3 import blake3

DIGEST_BYTES = 32

Bytes = bytes | bytearray | memoryview


def blake3_256(data: Bytes) -> bytes:
    """BLAKE3, unkeyed, 32 bytes."""
    return blake3(data).digest()


def sha256(data: Bytes) -> bytes:
    """SHA-256 (FIPS 180-4), 32 bytes. For manifests only: a quarter of BLAKE3's speed."""
    return hashlib.sha256(data).digest()
