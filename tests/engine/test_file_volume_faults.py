"""FileVolume when the disk fails: what is refused, what goes on, and what the health says."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nvmeof.engine.file_volume import FileVolume
from nvmeof.errors import CapacityError, ReadFault, WriteFault
from nvmeof.testing.virtual_disk import VirtualDisk
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .volumes import BLOCK, DATA, SIZE, assert_no_more_threads_than, refusal, virtual_volume


async def assert_refuses_writes(volume: FileVolume, reason: str) -> None:
    """Every kind of write and flush; reads go on; the health says why."""
    attempts: tuple[Callable[[], Awaitable[None]], ...] = (
        lambda: write_volume(volume, 0, DATA),
        lambda: volume.write(0, memoryview(DATA)),
        volume.flush,
        lambda: volume.write_zeroes(0, BLOCK, deallocate=False),
        lambda: volume.write_zeroes(0, BLOCK, deallocate=True),
        lambda: volume.deallocate([(0, BLOCK)]),
    )
    for attempt in attempts:
        with pytest.raises(WriteFault, match="writes are refused until it is opened again"):
            await attempt()
    health = volume.health
    assert health.read_only
    assert health.degraded
    assert reason in health.reason
    assert health.media_errors >= 1
    await read_volume(volume, 0, BLOCK)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
async def test_a_failed_sync_fails_everybody_and_for_good(disk: VirtualDisk, code: int) -> None:
    volume = virtual_volume(disk)
    await write_volume(volume, 0, DATA)
    disk.fail("sync", code=code)
    with disk.hold("sync") as hold:
        running = [asyncio.create_task(volume.flush()) for _ in range(2)]
        await asyncio.to_thread(hold.entered.wait, 10)
        waiting = [asyncio.create_task(volume.flush()) for _ in range(3)]
        await asyncio.sleep(0)
        hold.release()
        outcomes = await asyncio.gather(*running, *waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [WriteFault] * 5
    assert disk.operations == 2, "a failed sync was tried again"
    await assert_refuses_writes(volume, f"disk: sync failed: {os.strerror(code)}")
    assert await read_volume(volume, 0, BLOCK) == DATA
    with pytest.raises(WriteFault):
        await volume.close()
    with pytest.raises(WriteFault):
        await volume.close()
    volume = virtual_volume(disk.crash())
    assert not volume.health.read_only
    await write_volume(volume, 0, DATA)
    await volume.close()


async def test_close_reports_a_failing_last_sync(disk: VirtualDisk) -> None:
    volume = virtual_volume(disk)
    threads = threading.active_count()
    await write_volume(volume, 0, DATA)
    disk.fail("sync")
    with pytest.raises(WriteFault, match="sync failed"):
        await volume.close()
    await assert_no_more_threads_than(threads)


async def test_close_reports_a_failing_close(disk: VirtualDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError(errno.EIO, "broken")

    volume = virtual_volume(disk)
    monkeypatch.setattr(disk, "close", broken)
    with pytest.raises(WriteFault, match="close failed: broken"):
        await volume.close()


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_failed_write_latches(disk: VirtualDisk, volume: FileVolume, waiting: bool) -> None:
    disk.fail("write", nth=2)
    await write_volume(volume, 0, DATA)
    write = volume.write(BLOCK, memoryview(DATA)) if waiting else write_volume(volume, BLOCK, DATA)
    with pytest.raises(WriteFault, match=f"write of {BLOCK} bytes at {BLOCK} failed: Input/output error"):
        await write
    await assert_refuses_writes(volume, "failed: Input/output error")


@pytest.mark.parametrize("operation", ["deallocate", "zeroes"])
async def test_a_failed_discard_latches(disk: VirtualDisk, volume: FileVolume, operation: str) -> None:
    disk.fail("discard")
    discard = volume.deallocate([(0, BLOCK)])
    zero = volume.write_zeroes(0, BLOCK, deallocate=True)
    chosen, other = (discard, zero) if operation == "deallocate" else (zero, discard)
    other.close()
    with pytest.raises(WriteFault, match="failed: Input/output error"):
        await chosen
    await assert_refuses_writes(volume, "failed: Input/output error")


async def test_a_write_that_fails_after_its_caller_left_latches_too(disk: VirtualDisk, volume: FileVolume) -> None:
    disk.fail("write")
    with disk.hold("write") as hold:
        task = asyncio.create_task(volume.write(0, memoryview(DATA)))
        await asyncio.to_thread(hold.entered.wait, 10)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done(), "gave the buffer back while a thread reads it"
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_refuses_writes(volume, "failed: Input/output error")


async def test_those_who_waited_for_the_range_are_refused_after_a_fault(disk: VirtualDisk, volume: FileVolume) -> None:
    disk.fail("write")
    with disk.hold("write") as hold:
        tasks = [asyncio.create_task(volume.write(0, memoryview(DATA))) for _ in range(3)]
        await asyncio.to_thread(hold.entered.wait, 10)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [WriteFault] * 3
    assert disk.operations == 0, "a write went out after the fault"


async def test_a_full_disk_is_no_fault() -> None:
    disk = VirtualDisk(SIZE, capacity=4 * BLOCK)
    volume = virtual_volume(disk)
    for number in range(4):
        await write_volume(volume, number * BLOCK, DATA)
    with pytest.raises(CapacityError, match="No space left"):
        volume.write_now(4 * BLOCK, memoryview(DATA))
    with pytest.raises(CapacityError, match="No space left"):
        await volume.write(4 * BLOCK, memoryview(DATA))
    with pytest.raises(CapacityError, match="No space left"):
        await volume.write_zeroes(4 * BLOCK, BLOCK, deallocate=False)
    assert not volume.health.read_only
    assert volume.health.media_errors == 0
    await volume.flush()
    await write_volume(volume, 0, DATA[::-1])
    await volume.deallocate([(BLOCK, BLOCK)])
    await write_volume(volume, 4 * BLOCK, DATA)
    assert await read_volume(volume, 0, BLOCK) == DATA[::-1]
    assert await read_volume(volume, BLOCK, BLOCK) == bytes(BLOCK)
    await volume.close()


async def test_a_read_error_is_counted_and_latches_nothing(disk: VirtualDisk, volume: FileVolume) -> None:
    await write_volume(volume, 0, DATA)
    disk.fail("read", times=2)
    for count in (1, 2):
        with pytest.raises(ReadFault, match=f"disk: read of {BLOCK} bytes at 0 failed: Input/output error"):
            await read_volume(volume, 0, BLOCK)
        assert volume.health.media_errors == count
    assert volume.health.degraded
    assert not volume.health.read_only
    assert await read_volume(volume, 0, BLOCK) == DATA
    await write_volume(volume, 0, DATA)
    await volume.flush()


async def test_a_shortened_file_is_a_read_fault_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    volume = await FileVolume.open(path, SIZE)
    await write_volume(volume, 0, DATA)
    await write_volume(volume, SIZE - BLOCK, DATA)
    os.truncate(path, SIZE - 2 * BLOCK)
    with pytest.raises(ReadFault, match=f"the file ends at byte {SIZE - 2 * BLOCK}"):
        await read_volume(volume, SIZE - BLOCK, BLOCK)
    await assert_refuses_writes(volume, f"the file is {SIZE - 2 * BLOCK} bytes now, was {SIZE}")
    assert await read_volume(volume, 0, BLOCK) == DATA
    with pytest.raises(WriteFault):
        await volume.close()
    assert "something made it" not in await refusal(path), "the next opener hears of the size"


async def test_a_flush_does_not_vouch_for_a_shortened_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    volume = await FileVolume.open(path, SIZE)
    await write_volume(volume, SIZE - BLOCK, DATA)
    os.truncate(path, SIZE - BLOCK)
    with pytest.raises(WriteFault, match=f"sync failed: the file is {SIZE - BLOCK} bytes now, was {SIZE}"):
        await volume.flush()
    with pytest.raises(WriteFault):
        await volume.close()
