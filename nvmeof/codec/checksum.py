"""The checksum of the engine: XXH3-64, 80 GB/s in cache on one core here; it lets other threads run."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest as xxh3_64

__all__ = ["xxh3_64"]
