"""FaultVolume: the volume behind, unless told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import pytest

from nvmeof.engine.file_volume import FileVolume
from nvmeof.engine.volume import VolumeHealth
from nvmeof.errors import CapacityError, ReadFault, WriteFault
from nvmeof.testing.fault_volume import FaultVolume, Operation
from nvmeof.testing.virtual_disk import VirtualDisk
from nvmeof.testing.volume_conformance import SIZE_MIN, VOLUME_CHECKS, OpenVolume, read_volume, write_volume

UUID_ONE = UUID("0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77")
DATA = bytes(range(256)) * 16


def wrap(disk: VirtualDisk, *, slow: bool = False) -> FaultVolume:
    return FaultVolume(FileVolume(disk.reopen(), uuid=UUID_ONE, block_size=4096), slow=slow)


@pytest.fixture(autouse=True)
def no_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not drive writes off the loop where a test counts on it."""
    monkeypatch.setattr("nvmeof.engine.file_volume.WRITE_STALL_SECONDS", 60.0)


@pytest.fixture
async def volume() -> AsyncIterator[FaultVolume]:
    volume = wrap(VirtualDisk(1 << 20))
    yield volume
    volume.clear()
    await volume.close()


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("check", VOLUME_CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Callable[[OpenVolume], Awaitable[None]], slow: bool) -> None:
    disk = VirtualDisk(SIZE_MIN)

    async def open_volume() -> FaultVolume:
        return wrap(disk, slow=slow)

    await check(open_volume)


async def test_counts_what_was_tried(volume: FaultVolume) -> None:
    await write_volume(volume, 0, DATA)
    await read_volume(volume, 0, 4096)
    volume.slow = True
    await read_volume(volume, 0, 4096)
    await volume.flush()
    await volume.deallocate([(0, 4096)])
    await volume.write_zeroes(0, 4096, deallocate=True)
    assert volume.calls == {"write": 1, "read": 2, "flush": 1, "deallocate": 1, "write_zeroes": 1}
    assert volume.in_flight.total() == 0


async def test_slow_means_never_at_once(volume: FaultVolume) -> None:
    view = memoryview(bytearray(DATA))
    assert volume.write_now(0, view)
    assert volume.read_now(0, view)
    volume.slow = True
    assert not volume.write_now(0, view)
    assert not volume.read_now(0, view)
    volume.clear()
    assert volume.read_now(0, view)


async def test_delays_until_an_event(volume: FaultVolume) -> None:
    event = asyncio.Event()
    volume.delay("write", event)
    assert not volume.write_now(0, memoryview(DATA))
    task = asyncio.create_task(volume.write(0, memoryview(DATA)))
    await asyncio.sleep(0.01)
    assert not task.done()
    assert volume.in_flight["write"] == 1
    assert await read_volume(volume, 0, 4096) == bytes(4096)
    event.set()
    await task
    assert await read_volume(volume, 0, 4096) == DATA


async def test_delays_for_a_time(volume: FaultVolume) -> None:
    volume.delay("flush", 0.02)
    start = asyncio.get_running_loop().time()
    await volume.flush()
    assert asyncio.get_running_loop().time() - start >= 0.019


async def test_a_cancelled_delay_does_nothing(volume: FaultVolume) -> None:
    volume.delay("write", asyncio.Event())
    task = asyncio.create_task(volume.write(0, memoryview(DATA)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert volume.in_flight["write"] == 0
    assert await read_volume(volume, 0, 4096) == bytes(4096)


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ("read", ReadFault),
        ("write", CapacityError),
        ("flush", WriteFault),
        ("write_zeroes", WriteFault),
        ("deallocate", WriteFault),
        ("verify", ReadFault),
        ("write_uncorrectable", WriteFault),
    ],
)
async def test_the_nth_fails(
    monkeypatch: pytest.MonkeyPatch,
    volume: FaultVolume,
    operation: Operation,
    error: type[ReadFault | WriteFault | CapacityError],
) -> None:
    run: dict[Operation, Callable[[], Awaitable[object]]] = {
        "read": lambda: read_volume(volume, 0, 4096),
        "write": lambda: write_volume(volume, 0, DATA),
        "flush": volume.flush,
        "write_zeroes": lambda: volume.write_zeroes(0, 4096, deallocate=False),
        "deallocate": lambda: volume.deallocate([(0, 4096)]),
        "verify": lambda: volume.verify(0, 4096),
        "write_uncorrectable": lambda: volume.write_uncorrectable(0, 4096),
    }
    marks = []

    async def mark(offset: int, length: int) -> None:
        marks.append((offset, length))

    monkeypatch.setattr(volume.volume, "write_uncorrectable", mark)
    volume.fail(operation, error, nth=2, times=2)
    outcomes = []
    for _ in range(5):
        try:
            await run[operation]()
            outcomes.append("done")
        except error as caught:
            outcomes.append(str(caught))
    assert outcomes == ["done", f"{operation}: injected", f"{operation}: injected", "done", "done"]
    assert marks == [(0, 4096)] * (3 if operation == "write_uncorrectable" else 0)


async def test_a_failing_close_closes() -> None:
    disk = VirtualDisk(1 << 20)
    volume = wrap(disk)
    volume.fail("close", WriteFault)
    with pytest.raises(WriteFault, match="injected"):
        await volume.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.size()


async def test_health_can_be_overridden(volume: FaultVolume) -> None:
    assert not volume.health.read_only
    volume.health_override = VolumeHealth(read_only=True, reason="a test")
    assert volume.health.reason == "a test"
    volume.clear()
    assert not volume.health.read_only
