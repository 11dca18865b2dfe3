"""A target with one namespace of 64 MiB in a real file, on a real socket."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nvmeof.engine.file_volume import FileVolume
from nvmeof.target.server import Listener, Target
from nvmeof.target.subsystem import Subsystem
from nvmeof.testing.fault_volume import FaultVolume
from tests.target.rawhost import HOST_ID, HOST_NQN, RawHost
from tests.target.volumes import PoolLikeVolume

SUBNQN = "nqn.2026-11.org.example:disk"
SIZE = 64 << 20


@dataclass
class Served:
    """A running target; ``volume`` injects faults and delays into namespace 1."""

    target: Target
    listener: Listener
    subsystem: Subsystem
    volume: FaultVolume
    path: Path
    hosts: list[RawHost] = field(default_factory=list)
    qids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def address(self) -> tuple[str, int]:
        return self.listener.host, self.listener.port

    @property
    def block_size(self) -> int:
        return self.volume.block_size

    async def open(self, digest: int = 0, *, handshake: bool = True) -> RawHost:
        return self.keep(await RawHost.open(self.address, digest, handshake=handshake))

    async def admin(self, digest: int = 0, *, enable: bool = True, hostid: bytes = HOST_ID, kato: int = 0,
                    hostnqn: str = HOST_NQN, subnqn: str = SUBNQN) -> RawHost:  # fmt: skip
        return self.keep(await RawHost.admin(self.address, subnqn, digest, enable=enable, hostid=hostid, kato=kato,
                                             hostnqn=hostnqn))  # fmt: skip

    async def io(self, admin: RawHost, digest: int = 0, *, sqsize: int = 127, cattr: int = 0,
                 hostid: bytes = HOST_ID) -> RawHost:  # fmt: skip
        return self.keep(await RawHost.io(self.address, SUBNQN, admin.cntlid, next(self.qids), digest, sqsize=sqsize,
                                          cattr=cattr, hostid=hostid))  # fmt: skip

    def keep(self, host: RawHost) -> RawHost:
        self.hosts.append(host)
        return host


@dataclass
class PoolServed(Served):
    """The same with a volume that can do what a pool's can. Nothing ticks but the tests."""

    volume: PoolLikeVolume


@pytest.fixture(params=[512, 4096])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    path = tmp_path / "disk.img"
    volume = FaultVolume(await FileVolume.open(path, size=SIZE, block_size=request.param))
    async with serving(volume) as (target, listener, subsystem, hosts):
        yield Served(target, listener, subsystem, volume, path, hosts)


@pytest.fixture(params=[512, 4096])
async def pooled(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PoolServed]:
    path = tmp_path / "disk.img"
    volume = PoolLikeVolume(await FileVolume.open(path, size=SIZE, block_size=request.param))
    async with serving(volume) as (target, listener, subsystem, hosts):
        target._ticker.cancel()
        yield PoolServed(target, listener, subsystem, volume, path, hosts)


@asynccontextmanager
async def serving(volume: FaultVolume) -> AsyncIterator[tuple[Target, Listener, Subsystem, list[RawHost]]]:
    """Afterwards no connection, controller or lease may be left."""
    hosts: list[RawHost] = []
    async with Target() as target:
        subsystem = target.add_subsystem(Subsystem(SUBNQN))
        subsystem.add_namespace(volume)
        listener = await target.listen("127.0.0.1", 0)
        yield target, listener, subsystem, hosts
        for gate in volume._delays.values():
            if isinstance(gate, asyncio.Event):
                gate.set()
        for host in hosts:
            await host.close()
    assert not target.connections
    assert not subsystem.controllers
    assert target.pool.leased == 0
