"""Feature values: NVMe Base 2.0 section 5.27.1."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec import features as ft
from nvmeof.spec.fields import BitLayout
from nvmeof.spec.identify import AsyncEventBit
from nvmeof.spec.logpage import SmartWarning

from .images import assert_same_offsets, image


@pytest.mark.parametrize(
    ("layout", "value", "dword"),
    [
        (ft.ARBITRATION, ft.Arbitration(burst=7, low=1, medium=2, high=3), 0x03020107),
        (ft.POWER_MANAGEMENT, ft.PowerManagement(state=1, workload_hint=2), 0x41),
        (ft.TEMPERATURE_THRESHOLD, ft.TemperatureThreshold(343, sensor=15, kind=1), 0x1F0157),
        (ft.ERROR_RECOVERY, ft.ErrorRecovery(time_limit=10, deallocated_error=1), 0x1000A),
        (ft.VOLATILE_WRITE_CACHE, ft.VolatileWriteCache(1), 1),
        (ft.NUMBER_OF_QUEUES, ft.NumberOfQueues(submission=7, completion=127), 0x007F0007),
        (ft.INTERRUPT_COALESCING, ft.InterruptCoalescing(threshold=3, time=4), 0x0403),
        (ft.INTERRUPT_VECTOR, ft.InterruptVector(vector=5, coalescing_disabled=1), 0x10005),
        (ft.WRITE_ATOMICITY, ft.WriteAtomicity(1), 1),
        (ft.HOST_IDENTIFIER, ft.HostIdentifier(extended=1), 1),
        (ft.WRITE_PROTECTION, ft.WriteProtection(state=3), 3),
    ],
)
def test_values(layout: BitLayout[Any], value: Any, dword: int) -> None:
    assert layout.encode(value) == dword
    assert layout.decode(dword) == value


def test_temperature_threshold_as_linux_writes_it() -> None:
    """Linux: threshold 15:0, sensor from bit 16, bit 20 for the lower threshold."""
    assert ft.TEMPERATURE_THRESHOLD.encode(ft.TemperatureThreshold(1, 2, 1)) == 1 | 2 << 16 | 0x100000


def test_async_event_configuration_fits_one_dword() -> None:
    everything = sum(SmartWarning) | sum(AsyncEventBit)
    assert everything.bit_length() == 32
    assert not sum(SmartWarning) & sum(AsyncEventBit)


def test_timestamp() -> None:
    wire = bytes.fromhex("80 b8 5f 0d 8f 01 02 00")
    value = ft.Timestamp(milliseconds=0x018F0D5FB880, stopped=0, origin=ft.TimestampOrigin.SET_FEATURES)
    assert value.encode() == wire
    assert ft.Timestamp.decode(wire) == value
    assert ft.Timestamp(stopped=1).encode() == bytes.fromhex("00 00 00 00 00 00 01 00")
    with pytest.raises(ValueError, match="needs 8 bytes, got 7"):
        ft.Timestamp.decode(bytes(7))


@given(st.integers(0, (1 << 48) - 1), st.integers(0, 1), st.integers(0, 7))
def test_timestamp_round_trip(milliseconds: int, stopped: int, origin: int) -> None:
    value = ft.Timestamp(milliseconds, stopped, origin)
    assert ft.Timestamp.decode(value.encode()) == value


def test_host_behavior() -> None:
    wire = image(512, {0: "01 00 01"})
    assert ft.HOST_BEHAVIOR.encode(ft.HostBehavior(acre=1, lbafee=1)) == wire
    assert ft.HOST_BEHAVIOR.decode(wire) == ft.HostBehavior(acre=1, lbafee=1)
    assert_same_offsets(ft.HOST_BEHAVIOR.offsets, 512, "acre:1 etdas:1 lbafee:1 -:509")
