"""Anything a program may do at once, against our target over real sockets, and a model in memory."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

import nvmeof
from tests.initiator.conftest import Served

REGION = 1 << 20
REGIONS = 12


class Region:
    """A part of the namespace that one task owns, beside what it must hold."""

    def __init__(self, ns: nvmeof.Namespace, index: int, rng: random.Random) -> None:
        self._ns = ns
        self._base = index * REGION
        self._rng = rng
        self._model = bytearray(REGION)

    async def work(self, steps: int) -> None:
        for _ in range(steps):
            await self._step()
        assert await self._ns.read(self._base, REGION) == self._model

    async def _step(self) -> None:
        rng, size, ns = self._rng, self._ns.block_size, self._ns
        first = rng.randrange(REGION // size)
        count = min(rng.choice((1, 1, 2, 8, 33, 200)), REGION // size - first)
        offset, length = first * size, count * size
        at = self._base + offset
        match rng.randrange(8):
            case 0 | 1 | 2:
                data = rng.randbytes(length)
                await ns.write(at, data, fua=rng.random() < 0.1)
                self._model[offset : offset + length] = data
            case 3:
                await ns.write_zeroes(at, length, deallocate=rng.random() < 0.5)
                self._model[offset : offset + length] = bytes(length)
            case 4:
                await ns.deallocate(at, length)
                self._model[offset : offset + length] = bytes(length)
            case 5:
                await ns.flush()
            case _:
                assert await ns.read(at, length) == self._model[offset : offset + length]


@pytest.mark.parametrize("nsid", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"header_digest": True},
        {"data_digest": True, "io_queues": 2},
        {"header_digest": True, "data_digest": True, "queue_depth": 3},
        {"io_queues": 4, "queue_depth": 1},
    ],
)
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_against_a_model(
    served: Served, rng: random.Random, options: nvmeof.ConnectOptions, nsid: int, slow: bool
) -> None:
    served.volumes[nsid - 1].slow = slow
    async with nvmeof.open_namespace(f"{served.url}/{nsid}", **options) as ns:
        regions = [Region(ns, index, rng) for index in range(REGIONS)]
        await asyncio.gather(*(region.work(12) for region in regions))


async def test_two_hosts(served: Served) -> None:
    async with (
        nvmeof.open_namespace(f"{served.url}/1", host_id="11111111-2222-3333-4444-555555555555") as first,
        nvmeof.open_namespace(f"{served.url}/1", host_id="21111111-2222-3333-4444-555555555555") as second,
    ):
        await first.write(0, b"first" + bytes(507))
        assert (await second.read(0, 512))[:5] == b"first"
        assert first.controller.cntlid != second.controller.cntlid


async def test_a_new_association_after_a_lost_one(served: Served) -> None:
    for _ in range(3):
        async with nvmeof.open_namespace(f"{served.url}/1") as ns:
            await ns.write(0, bytes(512))
            for connection in list(served.target.connections):
                connection.abort()
            with pytest.raises(nvmeof.TransportError):
                await ns.flush()


@pytest.mark.slow
async def test_a_busy_event_loop_is_not_the_controllers_fault(served: Served) -> None:
    async with nvmeof.open_namespace(f"{served.url}/1", io_timeout=0.2, keep_alive=0) as ns:
        for _ in range(3):
            time.sleep(0.5)  # noqa: ASYNC251 - what a training step does to this loop
            await ns.write(0, bytes(4096))
            reading = asyncio.ensure_future(ns.read(0, 4096))
            await asyncio.sleep(0)
            time.sleep(0.5)  # noqa: ASYNC251
            assert await reading == bytes(4096)
