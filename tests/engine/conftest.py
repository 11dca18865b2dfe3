"""A volume over a virtual disk."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nvmeof.engine import file_volume as module
from nvmeof.engine.file_volume import FileVolume
from nvmeof.errors import WriteFault
from nvmeof.testing.virtual_disk import VirtualDisk

from .volumes import SIZE, virtual_volume


@pytest.fixture(autouse=True)
def no_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not drive writes off the loop where a test counts on it."""
    monkeypatch.setattr(module, "WRITE_STALL_SECONDS", 60.0)


@pytest.fixture
def disk() -> VirtualDisk:
    return VirtualDisk(SIZE)


@pytest.fixture
async def volume(disk: VirtualDisk) -> AsyncIterator[FileVolume]:
    volume = virtual_volume(disk)
    yield volume
    try:
        await volume.close()
    except WriteFault:
        assert volume.health.read_only
