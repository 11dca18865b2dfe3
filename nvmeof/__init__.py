"""NVMe/TCP in user space: an initiator for any target. See README.md and ARCHITECTURE.md beside this file."""

from nvmeof.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    ConnectionLost,
    CorruptCheckpointError,
    NvmeofError,
    StatusError,
    TransportError,
    UncommittedError,
    UsageError,
)
from nvmeof.initiator import (
    BlockFile,
    Completion,
    ConnectOptions,
    Controller,
    DiscoveryEntry,
    Event,
    Namespace,
    connect,
    discover,
    open,  # noqa: A004 - as io.open
    open_namespace,
)

__all__ = [
    "BlockFile",
    "CheckpointError",
    "CheckpointNotFoundError",
    "Completion",
    "ConfigError",
    "ConnectOptions",
    "ConnectionLost",
    "Controller",
    "CorruptCheckpointError",
    "DiscoveryEntry",
    "Event",
    "Namespace",
    "NvmeofError",
    "StatusError",
    "TransportError",
    "UncommittedError",
    "UsageError",
    "connect",
    "discover",
    "open",
    "open_namespace",
]
