"""The exception tree. Everything this package raises on purpose derives from :class:`NvmeofError`."""

from __future__ import annotations


class NvmeofError(Exception):
    """Root of every error that is raised on purpose."""


class UsageError(NvmeofError, ValueError):
    """An argument (URL, NQN, size, alignment, range) is not acceptable. The text says what, got, wanted."""


class ConfigError(NvmeofError):
    """A configuration file is not acceptable. The text names file, key, what it got and what it wants."""


class RemoteProtocolError(NvmeofError):
    """The peer broke the NVMe/TCP protocol; the association is over.

    ``fatal_error_status`` and ``fatal_error_information`` are what the TermReq PDU carries (NVMe/TCP Transport
    Specification 1.0, section 3.5); ``header`` is the offending PDU's header as received (at most 128 bytes).
    """

    def __init__(
        self, message: str, *, fatal_error_status: int, fatal_error_information: int = 0, header: bytes = b""
    ) -> None:
        super().__init__(message)
        self.fatal_error_status = fatal_error_status
        self.fatal_error_information = fatal_error_information
        self.header = header


class LocalProtocolError(NvmeofError):
    """Our own code drove the protocol core in a way the specification forbids. Always a bug on this side."""


class StatusError(NvmeofError):
    """A command completed with a status other than Successful Completion (NVMe Base 2.0, figure 92).

    ``status_code_type`` and ``status_code`` are the SCT (0-7) and SC (0-255) fields, ``dnr`` is Do Not Retry,
    ``name`` the readable name of the status, ``result`` completion dword 0.
    """

    def __init__(
        self, status_code_type: int, status_code: int, *, dnr: bool, name: str, context: str = "", result: int = 0
    ) -> None:
        text = f"{name} (SCT {status_code_type:#x}, SC {status_code:#04x}{', DNR' if dnr else ''})"
        super().__init__(f"{context}: {text}" if context else text)
        self.status_code_type = status_code_type
        self.status_code = status_code
        self.dnr = dnr
        self.name = name
        self.result = result


class TransportError(NvmeofError, ConnectionError):
    """No association could be made: refused, unreachable, timed out, or the peer does not speak NVMe/TCP."""


class ConnectionLost(TransportError):
    """An established association went away. The outcome of commands in flight is unknown."""


class VolumeError(NvmeofError):
    """Root of what a volume raises on I/O. target/io.py turns these into status codes, in one function."""


class ReadFault(VolumeError):
    """The blocks cannot be returned correctly (media error). Nothing was returned.

    ``offset`` is that of the first byte that cannot, where it is known; the error log then names its block.
    """

    def __init__(self, message: str = "", *, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset


class WriteFault(VolumeError):
    """The blocks could not be written, or a sync failed. What is on media is unknown; the volume refuses writes."""


class CapacityError(VolumeError):
    """No space is left on the backing store. Nothing was lost; the write was not done."""


class CheckpointError(NvmeofError):
    """Root of checkpoint errors."""


class CorruptCheckpointError(CheckpointError):
    """Stored bytes do not match the hashes that were taken from memory."""


class UncommittedError(CheckpointError):
    """The checkpoint exists but was never committed."""


class CheckpointNotFoundError(CheckpointError):
    """No such checkpoint, or no store at that place."""
