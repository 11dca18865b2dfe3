"""Reading and writing blocks: splitting, buffers, limits, errors, and data that comes back as it was written."""

from __future__ import annotations

import array
import asyncio
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nvmeof
from nvmeof.errors import ConnectionLost, ReadFault, StatusError, UsageError, WriteFault
from nvmeof.initiator.namespace import flat_view, steps
from nvmeof.spec.identify import NvmIdentifyController
from tests.conftest import LiveTarget
from tests.initiator.conftest import Served
from tests.initiator.fake_target import (
    DATASET_MANAGEMENT,
    FLUSH,
    READ,
    WRITE,
    WRITE_ZEROES,
    Capsule,
    FakeQueue,
    FakeTarget,
    default_identity,
    default_namespace,
    ranges_of,
)

FUA, DEAC = 1 << 30, 1 << 25
VERIFY, WRITE_UNCORRECTABLE = 0x0C, 0x04


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nsid", [1, 2])
@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("io_queues", [1, 3])
async def test_data_comes_back(served: Served, rng: random.Random, nsid: int, digests: bool, io_queues: int) -> None:
    """Sizes around every limit (in-capsule, MDTS, MAXH2CDATA), many at once."""
    async with nvmeof.open_namespace(
        f"{served.url}/{nsid}", header_digest=digests, data_digest=digests, io_queues=io_queues, queue_depth=16
    ) as ns:
        size, offset, spans = ns.block_size, 0, []
        for length in (size, 8192, 16384, 16384 + size, 65536, 1 << 20, (1 << 20) + size, 3 << 20):
            spans.append((offset, rng.randbytes(length)))
            offset += length + size
        await asyncio.gather(*(ns.write(at, data) for at, data in spans))
        await ns.flush()
        found = await asyncio.gather(*(ns.read(at, len(data)) for at, data in spans))
        assert [bytes(data) for data in found] == [data for _, data in spans]
        whole = await ns.read(0, offset)
        expected = bytearray(offset)
        for at, data in spans:
            expected[at : at + len(data)] = data
        assert whole == expected


async def test_many_small_commands(served: Served, rng: random.Random) -> None:
    async with nvmeof.open_namespace(f"{served.url}/1", io_queues=2, queue_depth=7) as ns:
        blocks = [rng.randbytes(512) for _ in range(300)]
        await asyncio.gather(*(ns.write(512 * index, block) for index, block in enumerate(blocks)))
        order = list(range(300))
        rng.shuffle(order)
        found = await asyncio.gather(*(ns.read(512 * index, 512) for index in order))
        assert found == [blocks[index] for index in order]


async def test_clearing(served: Served) -> None:
    for nsid in (1, 2):
        async with nvmeof.open_namespace(f"{served.url}/{nsid}") as ns:
            await ns.write(0, b"\xff" * (4 << 20))
            await ns.write_zeroes(8192, 4096, deallocate=True, fua=True)
            await ns.deallocate(1 << 20, 1 << 20)
            await ns.write_zeroes(3 << 20, 29 << 20)
            expected = bytearray(b"\xff" * (3 << 20)) + bytes(29 << 20)
            expected[8192 : 8192 + 4096] = bytes(4096)
            expected[1 << 20 : 2 << 20] = bytes(1 << 20)
            assert await ns.read(0, 32 << 20) == expected


async def test_the_end_of_the_namespace(served: Served) -> None:
    async with nvmeof.open_namespace(f"{served.url}/2") as ns:
        await ns.write(ns.size - 4096, b"z" * 4096)
        assert await ns.read(ns.size - 8192, 8192) == bytes(4096) + b"z" * 4096
        assert await ns.read(ns.size, 0) == b""
        for work in (ns.read(ns.size, 4096), ns.write(ns.size - 4096, bytes(8192)), ns.deallocate(ns.size, 4096)):
            with pytest.raises(UsageError, match=f"wanted a range within {ns.size} bytes"):
                await work


# --- buffers ----------------------------------------------------------------------------------------------------------


async def test_every_kind_of_buffer(served: Served) -> None:
    async with nvmeof.open_namespace(f"{served.url}/1") as ns:
        matrix: Any = np.arange(256, dtype=np.float64).reshape(16, 16)
        for data in (matrix, matrix.tobytes(), bytearray(matrix), memoryview(matrix), array.array("d", matrix.flat)):
            await ns.write(0, data)
            assert await ns.read(0, 2048) == matrix.tobytes()
            await ns.write_zeroes(0, 2048)
        await ns.write(0, matrix)
        target = np.empty((16, 16))
        assert await ns.readinto(0, target) == 2048
        assert (target == matrix).all()
        doubles = array.array("d", bytes(2048))
        assert await ns.readinto(0, doubles) == 2048
        assert doubles.tolist() == list(range(256))
        page = bytearray(4096)
        assert await ns.readinto(0, memoryview(page)[1024:3072]) == 2048
        assert page == bytes(1024) + matrix.tobytes() + bytes(1024)


@pytest.mark.parametrize(
    ("buffer", "text"),
    [
        (b"x" * 512, "read-only buffer"),
        (memoryview(bytearray(1024))[::2], "not contiguous"),
        (np.zeros((8, 128))[:, :64], "not contiguous"),
        (np.zeros((16, 16), order="F"), "not contiguous"),
        ("text", "got str, wanted a bytes-like object"),
        (None, "got NoneType"),
        (512, "got int"),
    ],
)
async def test_buffers_that_cannot_be_filled(buffer: Any, text: str) -> None:
    async with FakeTarget() as target, nvmeof.open_namespace(target.namespace_url) as ns:
        with pytest.raises(UsageError, match=text):
            await ns.readinto(0, buffer)
        assert READ not in target.codes(1)


async def test_nothing_to_do() -> None:
    async with FakeTarget() as target, nvmeof.open_namespace(target.namespace_url) as ns:
        before = len(target.seen)
        assert await ns.read(512, 0) == b""
        assert await ns.readinto(512, np.zeros((0, 4))) == 0
        await ns.write(512, b"")
        await ns.write_zeroes(0, 0)
        await ns.deallocate(0, 0)
        assert len(target.seen) == before


@pytest.mark.parametrize(("offset", "length"), [(1, 512), (0, 511), (0, 1), (256, 256), (-512, 512), (0, -512)])
async def test_alignment(offset: int, length: int) -> None:
    async with FakeTarget() as target, nvmeof.open_namespace(target.namespace_url) as ns:
        work = [ns.read(offset, length), ns.write_zeroes(offset, length), ns.deallocate(offset, length)]
        if length > 0:
            work += [ns.readinto(offset, bytearray(length)), ns.write(offset, bytes(length))]  # type: ignore[list-item]
        for each in work:
            with pytest.raises(UsageError, match=r"wanted multiples of the block size, 512"):
                await each


def test_flat_views() -> None:
    assert flat_view(np.zeros((2, 3), dtype=np.uint16), "x").nbytes == 12
    assert flat_view(np.zeros((0, 3)), "x").nbytes == 0
    assert not flat_view(bytearray(), "x").readonly
    assert flat_view(b"", "x").readonly
    assert bytes(flat_view(memoryview(b"abcd").cast("B", (2, 2)), "x")) == b"abcd"
    assert flat_view(memoryview(b"abcd").cast("b"), "x").format == "B"


# --- splitting --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 100), st.integers(0, 64))
def test_steps_cover_the_range(first: int, count: int, limit: int, boundary: int) -> None:
    position = first
    for block, blocks in steps(first, count, limit, boundary):
        assert block == position
        assert 1 <= blocks <= limit
        if boundary:
            assert block // boundary == (block + blocks - 1) // boundary
        position += blocks
    assert position == first + count


def spans(target: FakeTarget, code: int) -> list[tuple[int, int]]:
    """(first block, blocks) of each command; writes with in-capsule data overtake those that wait for an R2T."""
    return sorted((capsule.block, capsule.blocks) for capsule in target.io(code))


async def test_split_at_mdts() -> None:
    async with FakeTarget(identity=default_identity()._replace(mdts=1)) as target:
        async with nvmeof.open_namespace(target.namespace_url) as ns:
            data = random.Random(1).randbytes(20_480)
            await ns.write(512, data)
            assert await ns.read(512, len(data)) == data
        assert spans(target, WRITE) == spans(target, READ) == [(1, 16), (17, 16), (33, 8)]
        assert [capsule.length for capsule in target.io(READ)] == [8192, 8192, 4096]


async def test_no_mdts_means_one_mebibyte() -> None:
    async with FakeTarget() as target:
        async with nvmeof.open_namespace(target.namespace_url) as ns:
            await ns.read(0, 3 << 20)
        assert spans(target, READ) == [(0, 2048), (2048, 2048), (4096, 2048)]


async def test_no_command_crosses_noiob() -> None:
    namespace = default_namespace()._replace(noiob=24)
    async with FakeTarget(namespace=namespace) as target, nvmeof.open_namespace(target.namespace_url) as ns:
        data = random.Random(2).randbytes(60 * 512)
        await ns.write(20 * 512, data)
        await ns.write(24 * 512, bytes(24 * 512))
        await ns.read(23 * 512, 512)
        assert spans(target, WRITE) == [(20, 4), (24, 24), (24, 24), (48, 24), (72, 8)]
        assert spans(target, READ) == [(23, 1)]


async def test_write_zeroes_is_split_at_wzsl() -> None:
    async with FakeTarget() as target, nvmeof.open_namespace(target.namespace_url) as ns:
        await ns.write_zeroes(0, ns.size, deallocate=True, fua=True)
        (capsule,) = target.io(WRITE_ZEROES)
        assert (capsule.blocks, capsule.length, capsule.cdw[2] & ~0xFFFF) == (16384, 0, FUA | DEAC)
    async with FakeTarget(limits=NvmIdentifyController(wzsl=1)) as target:
        async with nvmeof.open_namespace(target.namespace_url) as ns:
            await ns.write_zeroes(512, 20_480)
        assert spans(target, WRITE_ZEROES) == [(1, 16), (17, 16), (33, 8)]


async def test_verify_and_write_uncorrectable_are_split_at_vsl_and_wusl() -> None:
    async with FakeTarget(limits=NvmIdentifyController(vsl=1, wusl=2)) as target:
        async with nvmeof.open_namespace(target.namespace_url) as ns:
            await ns.verify(512, 20_480, fua=True)
            await ns.write_uncorrectable(512, 20_480)
            await ns.verify(0, 0)
            for offset, length in ((1, 512), (0, 100), (0, ns.size + 512)):
                with pytest.raises(UsageError):
                    await ns.verify(offset, length)
                with pytest.raises(UsageError):
                    await ns.write_uncorrectable(offset, length)
        assert spans(target, VERIFY) == [(1, 16), (17, 16), (33, 8)]
        assert {(each.length, each.cdw[2] & ~0xFFFF) for each in target.io(VERIFY)} == {(0, FUA)}
        assert spans(target, WRITE_UNCORRECTABLE) == [(1, 32), (33, 8)]
        assert {(each.length, each.cdw[2] & ~0xFFFF) for each in target.io(WRITE_UNCORRECTABLE)} == {(0, 0)}


async def test_write_zeroes_of_more_than_65536_blocks() -> None:
    namespace = default_namespace()._replace(nsze=200_000)
    async with FakeTarget(namespace=namespace) as target, nvmeof.open_namespace(target.namespace_url) as ns:
        await ns.write_zeroes(512, 150_000 * 512)
        assert spans(target, WRITE_ZEROES) == [(1, 65536), (65537, 65536), (131073, 18928)]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, [[100]]),
        ({"dmrsl": 30}, [[30, 30, 30, 10]]),
        ({"dmrl": 2, "dmrsl": 30}, [[30, 30], [30, 10]]),
        ({"dmsl": 40}, [[40], [40], [20]]),
        ({"dmsl": 40, "dmrsl": 15}, [[15, 15], [15, 15], [15, 15], [10]]),
        ({"dmrl": 1}, [[100]]),
    ],
)
async def test_deallocate_keeps_the_limits(limits: dict[str, Any], expected: list[list[int]]) -> None:
    async with FakeTarget(limits=NvmIdentifyController(**limits)) as target:
        async with nvmeof.open_namespace(target.namespace_url) as ns:
            await ns.deallocate(10 * 512, 100 * 512)
        commands = target.io(DATASET_MANAGEMENT)
        assert [[each.blocks for each in ranges_of(capsule)] for capsule in commands] == expected
        position = 10
        for capsule in commands:
            assert capsule.cdw[1] == 4
            for each in ranges_of(capsule):
                assert (each.slba, each.attributes) == (position, 0)
                position += each.blocks


async def test_fua_and_flush() -> None:
    async with FakeTarget() as target, nvmeof.open_namespace(target.namespace_url) as ns:
        await ns.write(0, bytes(512), fua=True)
        await ns.write(0, bytes(2 << 20), fua=True)
        await ns.write(0, bytes(512))
        await ns.flush()
        assert [capsule.cdw[2] & FUA for capsule in target.io(WRITE)] == [FUA, FUA, FUA, 0]
        (flush,) = target.io(FLUSH)
        assert (flush.nsid, flush.length, flush.cdw) == (1, 0, (0,) * 6)


async def test_large_block_addresses() -> None:
    namespace = default_namespace()._replace(nsze=1 << 40)
    refuse = 0x4080

    def out_of_range(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.qid and capsule.code == READ:
            queue.complete(capsule.cid, refuse)
        return bool(capsule.qid) and capsule.code == READ

    class Large(FakeTarget):
        def __post_init__(self) -> None:
            self.namespace = default_namespace()
            super().__post_init__()
            self.namespace = namespace

    async with Large(hook=out_of_range) as target, nvmeof.open_namespace(target.namespace_url) as ns:
        with pytest.raises(StatusError, match="LBA Out of Range"):
            await ns.read(0x1_2345_6789 * 512, 512)
        assert target.io(READ)[0].cdw[:3] == (0x2345_6789, 1, 0)


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_status_errors_of_our_target(served: Served) -> None:
    async with nvmeof.open_namespace(f"{served.url}/1") as ns:
        served.volumes[0].fail("read", ReadFault)
        with pytest.raises(StatusError) as caught:
            await ns.read(512, 512)
        assert str(caught.value).startswith("read of 512 bytes at 512 of namespace 1: Unrecovered Read Error (SCT 0x2")
        assert (caught.value.status_code_type, caught.value.status_code) == (2, 0x81)
        served.volumes[0].fail("flush", WriteFault)
        with pytest.raises(StatusError, match="flush of namespace 1: Write Fault"):
            await ns.flush()
        assert await ns.read(512, 512) == bytes(512)


async def test_the_first_failure_of_a_split_call() -> None:
    def fail(queue: FakeQueue, capsule: Capsule) -> bool:
        bad = capsule.qid and capsule.code == WRITE and capsule.block >= 2048
        if bad:
            queue.complete(capsule.cid, 0x4281 if capsule.block == 2048 else 0x280)
        return bool(bad)

    async with FakeTarget(hook=fail) as target, nvmeof.open_namespace(target.namespace_url, queue_depth=2) as ns:
        with pytest.raises(
            StatusError, match="write of 5242880 bytes at 0 of namespace 1: Unrecovered Read Error"
        ) as caught:
            await ns.write(0, bytes(5 << 20))
        assert caught.value.dnr
        assert len(target.io(WRITE)) <= 3
        await ns.write(0, bytes(512))


async def test_nothing_is_sent_twice() -> None:
    """A write that was lost stays lost: not repeated on another queue nor after anything else."""
    async with FakeTarget(hook=lambda queue, capsule: capsule.qid > 0 and capsule.code == WRITE) as target:
        async with nvmeof.open_namespace(target.namespace_url, io_queues=2) as ns:
            writes = [asyncio.create_task(ns.write(0, bytes(512))) for _ in range(2)]
            await asyncio.sleep(0.01)
            target.queues[1].transport.abort()
            for write in writes:
                with pytest.raises(ConnectionLost):
                    await write
        assert len(target.io(WRITE)) == 2


@pytest.mark.parametrize("size", [512, 65536, 1 << 20, 3 << 20])
async def test_a_cancelled_read_lets_go_of_its_buffer(served: Served, size: int) -> None:
    """Cancelled at any step: the buffer does not change any more, and the connection goes on."""
    async with nvmeof.open_namespace(f"{served.url}/1", queue_depth=4) as ns:
        await ns.write(0, b"\xaa" * size)
        for steps_before in range(0, 24, 3):
            buffer = bytearray(size)
            task = asyncio.create_task(ns.readinto(0, buffer))
            for _ in range(steps_before):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            before = bytes(buffer)
            assert await ns.read(0, size) == b"\xaa" * size
            assert bytes(buffer) == before


async def test_a_cancelled_write(served: Served) -> None:
    async with nvmeof.open_namespace(f"{served.url}/1", queue_depth=4) as ns:
        for steps_before in range(0, 24, 3):
            task = asyncio.create_task(ns.write(0, bytes(3 << 20)))
            for _ in range(steps_before):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await ns.write(4 << 20, b"\xbb" * 65536)
            assert await ns.read(4 << 20, 65536) == b"\xbb" * 65536


async def test_a_slow_volume_and_a_timeout(served: Served) -> None:
    async with nvmeof.open_namespace(f"{served.url}/1", io_timeout=0.3) as ns:
        served.volumes[0].delay("flush", 1.0)
        with pytest.raises(ConnectionLost, match="was not answered in time"):
            await ns.flush()
        with pytest.raises(nvmeof.TransportError, match="not sent"):
            await ns.flush()
    served.volumes[0].clear()


async def test_the_target_goes_away(served: Served) -> None:
    async with nvmeof.open_namespace(f"{served.url}/1") as ns:
        served.volumes[0].delay("flush", 0.2)
        task = asyncio.create_task(ns.flush())
        await asyncio.sleep(0.05)
        for connection in list(served.target.connections):
            connection.abort()
        with pytest.raises(ConnectionLost):
            await task


def test_one_that_is_abandoned_ends_with_its_loop(live_target: LiveTarget) -> None:
    script = (
        "import asyncio, nvmeof\n"
        "async def main():\n"
        f"    opened = nvmeof.open_namespace({live_target.url!r})\n"
        "    return opened, await opened.__aenter__()\n"
        "kept = asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=30, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
