"""Values of features: NVMe Base 2.0 section 5.27.1, NVM Command Set 1.0 section 4.1.3.

A :class:`BitLayout` here is command dword 11 of Set Features and completion dword 0 of Get Features. Asynchronous
Event Configuration is ``logpage.SmartWarning | identify.AsyncEventBit``; the Keep Alive Timer is a plain number of
milliseconds.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, NamedTuple

from nvmeof.spec.fields import BitLayout
from nvmeof.spec.layout import U8, U16, Bytes, Layout


class Arbitration(NamedTuple):
    """01h. ``burst`` is a power of two, 7 for no limit; the weights are 0's based."""

    burst: int = 0
    low: int = 0
    medium: int = 0
    high: int = 0


class PowerManagement(NamedTuple):
    """02h."""

    state: int = 0
    workload_hint: int = 0


class TemperatureThreshold(NamedTuple):
    """04h. ``threshold`` in kelvin; ``sensor`` 0 composite, 1 to 8, Fh all; ``kind`` 0 over, 1 under."""

    threshold: int = 0
    sensor: int = 0
    kind: int = 0


class ErrorRecovery(NamedTuple):
    """05h, namespace specific. ``time_limit`` in units of 100 ms, 0 for none."""

    time_limit: int = 0
    deallocated_error: int = 0


class VolatileWriteCache(NamedTuple):
    """06h."""

    enabled: int = 0


class NumberOfQueues(NamedTuple):
    """07h. I/O queues wanted (Set Features) or allocated (completion), both 0's based."""

    submission: int = 0
    completion: int = 0


class InterruptCoalescing(NamedTuple):
    """08h, not for fabrics. ``threshold`` is 0's based, ``time`` in units of 100 microseconds."""

    threshold: int = 0
    time: int = 0


class InterruptVector(NamedTuple):
    """09h, not for fabrics."""

    vector: int = 0
    coalescing_disabled: int = 0


class WriteAtomicity(NamedTuple):
    """0Ah. ``disable_normal`` lifts AWUN and NAWUN."""

    disable_normal: int = 0


class Timestamp(NamedTuple):
    """0Eh, 8 bytes of data: milliseconds since 1970-01-01 UTC, or since the reset when ``origin`` is 0."""

    milliseconds: int = 0
    stopped: int = 0
    origin: int = 0

    def encode(self) -> bytes:
        return TIMESTAMP_BITS.encode(self).to_bytes(8, "little")

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Timestamp:
        """Raises ValueError when ``data`` is shorter than 8 bytes."""
        if len(data) < TIMESTAMP_SIZE:
            raise ValueError(f"Timestamp needs {TIMESTAMP_SIZE} bytes, got {len(data)}")
        return TIMESTAMP_BITS.decode(int.from_bytes(data[:8], "little"))


class TimestampOrigin(IntEnum):
    """Where the timestamp came from."""

    RESET = 0
    SET_FEATURES = 1


class HostIdentifier(NamedTuple):
    """81h, command dword 11. The data is 16 bytes when ``extended``, else 8; fabrics always uses 16."""

    extended: int = 0


class WriteProtection(NamedTuple):
    """84h, namespace specific: 0 none, 1 write protect, 2 until power cycle, 3 permanent."""

    state: int = 0


class HostBehavior(NamedTuple):
    """16h, 512 bytes of data. ``hdisns`` and ``cdfe`` are of Base 2.1."""

    acre: U8 = 0
    etdas: U8 = 0
    lbafee: U8 = 0
    hdisns: U8 = 0
    cdfe: U16 = 0
    reserved6: Annotated[bytes, Bytes(506)] = bytes(506)


ARBITRATION = BitLayout(Arbitration, {"burst": (2, 0), "low": (15, 8), "medium": (23, 16), "high": (31, 24)})
POWER_MANAGEMENT = BitLayout(PowerManagement, {"state": (4, 0), "workload_hint": (7, 5)})
TEMPERATURE_THRESHOLD = BitLayout(TemperatureThreshold, {"threshold": (15, 0), "sensor": (19, 16), "kind": (21, 20)})
ERROR_RECOVERY = BitLayout(ErrorRecovery, {"time_limit": (15, 0), "deallocated_error": (16, 16)})
VOLATILE_WRITE_CACHE = BitLayout(VolatileWriteCache, {"enabled": (0, 0)})
NUMBER_OF_QUEUES = BitLayout(NumberOfQueues, {"submission": (15, 0), "completion": (31, 16)})
INTERRUPT_COALESCING = BitLayout(InterruptCoalescing, {"threshold": (7, 0), "time": (15, 8)})
INTERRUPT_VECTOR = BitLayout(InterruptVector, {"vector": (15, 0), "coalescing_disabled": (16, 16)})
WRITE_ATOMICITY = BitLayout(WriteAtomicity, {"disable_normal": (0, 0)})
TIMESTAMP_BITS = BitLayout(Timestamp, {"milliseconds": (47, 0), "stopped": (48, 48), "origin": (51, 49)})
HOST_IDENTIFIER = BitLayout(HostIdentifier, {"extended": (0, 0)})
WRITE_PROTECTION = BitLayout(WriteProtection, {"state": (2, 0)})
HOST_BEHAVIOR = Layout(
    HostBehavior, size=512, offsets={"acre": 0, "etdas": 1, "lbafee": 2, "hdisns": 3, "cdfe": 4, "reserved6": 6}
)
TIMESTAMP_SIZE = 8
HOST_IDENTIFIER_SIZE = 16
QUEUES_RESERVED = 0xFFFF
"""NSQR and NCQR may not hold this value: Invalid Field in Command."""
