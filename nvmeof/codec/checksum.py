"""The engine's checksum: XXH3-64, 80 GB/s in cache on one core here, and it lets other threads run above 2 KiB or so."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest as xxh3_64

__all__ = ["xxh3_64"]
