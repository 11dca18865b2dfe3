"""Our initiator against the Linux kernel's own target."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import pytest

import nvmeof

from .nvmet import BLOCK_SIZES, NAMESPACE_MIB, Nvmet

pytestmark = pytest.mark.kernel

TIMEOUT_S = 60
CONTROLLER_CONFIGURATION = 0x14
DIGESTS = {"none": (False, False), "header": (True, False), "data": (False, True), "both": (True, True)}


async def test_discovery_names_the_subsystem(nvmet: Nvmet) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        entries = await nvmeof.discover(f"nvme+tcp://127.0.0.1:{nvmet.port}")
    assert nvmet.nqn in [entry.subnqn for entry in entries]


async def test_identify_and_namespaces(nvmet: Nvmet) -> None:
    async with asyncio.timeout(TIMEOUT_S), nvmeof.connect(nvmet.url(), io_queues=2) as controller:
        assert bytes(controller.identity.subnqn).rstrip(b"\0").decode() == nvmet.nqn
        assert controller.io_queues == 2
        found = {ns.nsid: (ns.block_size, ns.size) for ns in await controller.namespaces()}
    assert found == {nsid: (block_size, NAMESPACE_MIB << 20) for nsid, block_size in BLOCK_SIZES.items()}


@pytest.mark.parametrize("nsid", BLOCK_SIZES)
@pytest.mark.parametrize("digests", DIGESTS)
async def test_data_survives(nvmet: Nvmet, digests: str, nsid: int) -> None:
    header, data = DIGESTS[digests]
    block_size = BLOCK_SIZES[nsid]
    rng = random.Random(f"{digests}{nsid}")
    url = nvmet.url(nsid)
    spans = []
    offset = 0
    async with asyncio.timeout(TIMEOUT_S):
        async with nvmeof.open_namespace(url, header_digest=header, data_digest=data, io_queues=2) as ns:
            for blocks in (1, 2, 7, 8, 9, 32, 255, 256, 1024, 2049):
                spans.append((offset, os.urandom(blocks * block_size)))
                offset += blocks * block_size + rng.choice((0, block_size))
            await asyncio.gather(*(ns.write(at, content) for at, content in spans))
            await ns.flush()
        async with nvmeof.open_namespace(url, header_digest=header, data_digest=data) as ns:
            found = await asyncio.gather(*(ns.read(at, len(content)) for at, content in spans))
    assert [bytes(content) for content in found] == [content for _, content in spans]


@pytest.mark.parametrize("nsid", BLOCK_SIZES)
@pytest.mark.parametrize("clear", ["write_zeroes", "deallocate"])
async def test_a_cleared_range_reads_as_zeroes(nvmet: Nvmet, clear: str, nsid: int) -> None:
    async with asyncio.timeout(TIMEOUT_S), nvmeof.open_namespace(nvmet.url(nsid)) as ns:
        await ns.write(0, b"\xff" * (1 << 20))
        await getattr(ns, clear)(65536, 131072)
        content = bytes(await ns.read(0, 1 << 20))
    assert content == b"\xff" * 65536 + bytes(131072) + b"\xff" * ((1 << 20) - 196608)


async def test_the_end_of_the_namespace(nvmet: Nvmet) -> None:
    end = NAMESPACE_MIB << 20
    async with asyncio.timeout(TIMEOUT_S), nvmeof.open_namespace(nvmet.url(1)) as ns:
        last = os.urandom(4096)
        await ns.write(end - 4096, last)
        assert bytes(await ns.read(end - 4096, 4096)) == last
        with pytest.raises(nvmeof.UsageError):
            await ns.read(end - 4096, 8192)
        assert bytes(await ns.read(end - 4096, 4096)) == last


async def test_a_controller_reset_ends_the_association_and_a_new_one_works(nvmet: Nvmet) -> None:
    content = os.urandom(1 << 20)
    async with asyncio.timeout(TIMEOUT_S):
        async with nvmeof.connect(nvmet.url(), io_queues=2) as controller:
            ns = await controller.namespace(1)
            await ns.write(0, content)
            await ns.flush()
            await controller.property_set(CONTROLLER_CONFIGURATION, 0)
            with pytest.raises(nvmeof.NvmeofError):
                await ns.write(0, bytes(4096))
        async with nvmeof.open_namespace(nvmet.url(1)) as again:
            assert bytes(await again.read(0, len(content))) == content


async def test_a_lost_connection_fails_what_was_in_flight(nvmet: Nvmet) -> None:
    content = os.urandom(1 << 20)
    async with asyncio.timeout(TIMEOUT_S):
        with contextlib.suppress(nvmeof.ConnectionLost):
            async with nvmeof.open_namespace(nvmet.url(1)) as ns:
                await ns.write(0, content)
                await ns.flush()
                writers = [asyncio.create_task(write_forever(ns, at << 20)) for at in range(1, 5)]
                await asyncio.sleep(0.5)
                try:
                    await asyncio.to_thread(nvmet.unlink)
                    outcomes = await asyncio.gather(*writers, return_exceptions=True)
                finally:
                    await asyncio.to_thread(nvmet.link)
                assert [type(outcome) for outcome in outcomes] == [nvmeof.ConnectionLost] * 4
        async with nvmeof.open_namespace(nvmet.url(1)) as ns:
            assert bytes(await ns.read(0, len(content))) == content


async def write_forever(ns: nvmeof.Namespace, offset: int) -> None:
    while True:
        await ns.write(offset, bytes(131072))
