"""Checkpoints whose bytes are proven: hashed in memory, written, flushed, committed last, verified when read."""

from nvmeof.checkpoint.medium import CheckpointInfo, Damage, DamagedError
from nvmeof.checkpoint.payload import Contents
from nvmeof.checkpoint.sources import open_source
from nvmeof.checkpoint.store import Store, Verification, VerificationError

__all__ = [
    "CheckpointInfo",
    "Contents",
    "Damage",
    "DamagedError",
    "Store",
    "Verification",
    "VerificationError",
    "open_source",
]
