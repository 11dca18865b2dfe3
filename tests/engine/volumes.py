"""What the tests of FileVolume share."""

from __future__ import annotations

import asyncio
import os
import threading
from uuid import UUID

import pytest

from nvmeof.engine.file_volume import FileVolume
from nvmeof.errors import UsageError
from nvmeof.testing.virtual_disk import VirtualDisk

SIZE = 1 << 20
BLOCK = 4096
DATA = bytes(range(256)) * 16
UUID_ONE = UUID("0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77")


def virtual_volume(disk: VirtualDisk, block_size: int = BLOCK) -> FileVolume:
    return FileVolume(disk.reopen(), uuid=UUID_ONE, block_size=block_size)


async def assert_no_more_threads_than(count: int) -> None:
    for _ in range(500):
        if threading.active_count() <= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"leaked a thread: {threading.enumerate()}")


async def refusal(*arguments: object, **named: object) -> str:
    threads = threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError) as caught:
        await FileVolume.open(*arguments, **named)  # type: ignore[arg-type]
    await assert_no_more_threads_than(threads)
    assert len(os.listdir("/proc/self/fd")) == descriptors, "leaked a descriptor"
    assert "\n" not in str(caught.value)
    return str(caught.value)
