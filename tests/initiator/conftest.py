"""A target of ours in the same event loop, and the rule that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvmeof.engine.file_volume import FileVolume
from nvmeof.target.server import Target
from nvmeof.target.subsystem import Subsystem
from nvmeof.testing.fault_volume import FaultVolume

SUBNQN = "nqn.2026-11.org.example:disk"
SIZE = 32 << 20


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No socket outlives a test."""
    before = open_sockets()
    yield
    assert open_sockets() <= before


def open_sockets() -> set[str]:
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry.path))
    return {name for name in found if name.startswith("socket:")}


@dataclass
class Served:
    """Two namespaces of 32 MiB with blocks of 512 (NSID 1) and 4096 bytes (NSID 2); ``volumes`` inject faults."""

    target: Target
    subsystem: Subsystem
    port: int
    volumes: list[FaultVolume]

    @property
    def address(self) -> str:
        return f"nvme+tcp://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.address}/{SUBNQN}"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """Afterwards the target holds nothing of any host, and no task is left."""
    async with Target() as target:
        subsystem = target.add_subsystem(Subsystem(SUBNQN))
        volumes = []
        for block_size in (512, 4096):
            path = tmp_path / f"{block_size}.img"
            volumes.append(FaultVolume(await FileVolume.open(path, size=SIZE, block_size=block_size)))
            subsystem.add_namespace(volumes[-1])
        listener = await target.listen("127.0.0.1", 0)
        yield Served(target, subsystem, listener.port, volumes)
        async with asyncio.timeout(5):
            while target.connections:
                await asyncio.sleep(0.001)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not subsystem.controllers
    assert target.pool.leased == 0
