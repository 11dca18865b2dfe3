"""Namespaces that come, go and change their size while hosts use them, and health that changes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import nvmeof
from nvmeof.engine.file_volume import FileVolume
from nvmeof.engine.volume import VolumeHealth
from nvmeof.errors import UsageError
from tests.protocol import wire
from tests.target.conftest import SIZE, SUBNQN, PoolServed
from tests.target.rawhost import RawHost
from tests.target.test_io import DNR, DSM, FLUSH, FUA, READ, WRITE, ZEROES, queues, settle
from tests.target.volumes import PoolLikeVolume

VERIFY, MARK, EVENT = 0x0C, 0x04, 0x0C
INVALID_NAMESPACE, OUT_OF_RANGE = 0x0B | DNR, 0x80 | DNR
NAMESPACE_CHANGED, RELIABILITY, SPARE = 0x04_00_02, 0x02_00_01, 0x02_02_01
BIG = 65536


def tick(served: PoolServed) -> None:
    """What the target does once a second."""
    served.subsystem.tick(1.0)
    for controller in list(served.subsystem.controllers.values()):
        controller.tick(asyncio.get_running_loop().time())


def ask_for_event(admin: RawHost, cid: int) -> None:
    """Beyond the identifiers that the host gives out by itself."""
    admin.send(admin.wire.capsule(wire.sqe(EVENT, 0x8000 | cid)))


async def page(admin: RawHost, lid: int, length: int, *, rae: bool = False) -> bytes:
    dwords = length // 4 - 1
    assert await admin.status(2, nsid=0xFFFFFFFF, sgl=(0, length, 0x5A), cdw10=lid | rae << 15 | dwords << 16) == 0
    return admin.data


async def changed(admin: RawHost) -> list[int]:
    data = await page(admin, 4, 4096)
    return [nsid for nsid in struct.unpack("<1024I", data) if nsid]


async def identify(admin: RawHost, nsid: int = 1) -> tuple[int, int]:
    """NSZE and NVMCAP."""
    assert await admin.status(6, nsid=nsid, sgl=(0, 4096, 0x5A), cdw10=0) == 0
    return struct.unpack_from("<Q", admin.data)[0], int.from_bytes(admin.data[48:64], "little")


async def heard(admin: RawHost, event: int) -> None:
    answer = await admin.response()
    assert (answer[0], answer[5]) == (event, 0)


async def nothing_heard(admin: RawHost) -> None:
    """No completion comes before that of the next command."""
    assert await admin.status(0x18, nsid=0) == 0


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False])
async def test_a_volume_that_grows_or_shrinks(pooled: PoolServed, told: bool) -> None:
    """At once when the subsystem is told, at the next tick otherwise; one event each time."""
    size = pooled.block_size
    pooled.volume.size_now = SIZE // 2
    pooled.subsystem.resized(1)
    admin, io = await queues(pooled)
    for cid in (1, 2, 3):
        ask_for_event(admin, cid)
    for bytes_now in (SIZE, SIZE // 4):
        before, _ = await identify(admin)
        pooled.volume.size_now = bytes_now
        assert (await identify(admin))[0] == before
        if told:
            pooled.subsystem.resized(1)
        else:
            tick(pooled)
        await heard(admin, NAMESPACE_CHANGED)
        assert await changed(admin) == [1]
        assert await identify(admin) == (bytes_now // size, bytes_now)
        last = bytes_now // size - 1
        assert await io.write(last, b"\xaa" * size, size) == 0
        assert await io.status(READ, sgl=(0, size, 0x5A), cdw10=last + 1) == OUT_OF_RANGE
        tick(pooled)
        pooled.subsystem.resized(1)
        await nothing_heard(admin)


async def test_no_command_reaches_beyond_a_size_to_be(pooled: PoolServed) -> None:
    """Before a volume is made smaller; a tick meanwhile does not undo it, and a failure is undone."""
    admin, io = await queues(pooled)
    half = SIZE // 2 // pooled.block_size
    pooled.subsystem.resized(1, SIZE // 2)
    tick(pooled)
    assert await identify(admin) == (half, SIZE // 2)
    assert await io.write(half, bytes(pooled.block_size), pooled.block_size) == OUT_OF_RANGE
    pooled.volume.size_now = SIZE // 2
    tick(pooled)
    assert await identify(admin) == (half, SIZE // 2)
    assert await changed(admin) == [1]
    pooled.subsystem.resized(1, SIZE // 4)
    pooled.subsystem.resized(1)
    assert await identify(admin) == (half, SIZE // 2)


async def test_sizes_that_cannot_be(pooled: PoolServed) -> None:
    for nsid, size in ((1, SIZE + 4096), (1, -4096), (2, None)):
        with pytest.raises(UsageError):
            pooled.subsystem.resized(nsid, size)
    assert pooled.subsystem.namespaces[1].size == SIZE


async def test_data_that_comes_after_the_namespace_shrank(pooled: PoolServed) -> None:
    admin, io = await queues(pooled)
    blocks = BIG // pooled.block_size
    last = SIZE // pooled.block_size - blocks
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, BIG, 0x5A), cdw10=last, cdw12=blocks - 1)))
    await settle(lambda: any(each.queue.transfers for each in pooled.target.connections))
    pooled.volume.size_now = SIZE - BIG
    pooled.subsystem.resized(1)
    assert await io.answer_r2t(b"\xaa" * BIG) == OUT_OF_RANGE
    assert pooled.volume.calls["write"] == 0
    errors = await page(admin, 1, 64)
    assert struct.unpack_from("<12xH2xQI", errors) == (OUT_OF_RANGE << 1, last, 1)


def shrink(served: PoolServed) -> None:
    served.volume.size_now = SIZE // 2
    served.subsystem.resized(1)


def remove(served: PoolServed) -> None:
    served.subsystem.remove_namespace(1)


@pytest.mark.parametrize(("change", "status"), [(shrink, OUT_OF_RANGE), (remove, INVALID_NAMESPACE)])
@pytest.mark.parametrize("opcode", [READ, READ | FUA, WRITE, ZEROES, DSM, VERIFY, VERIFY | FUA, MARK])
async def test_a_command_that_has_not_reached_the_volume_when_its_blocks_go(
    pooled: PoolServed, monkeypatch: pytest.MonkeyPatch, opcode: int, change: Callable[[PoolServed], None], status: int
) -> None:
    """The change happens between the command's acceptance and the first step of its task."""
    _, io = await queues(pooled)
    (queue,) = [
        queue for controller in pooled.subsystem.controllers.values() for queue in controller.queues.values()
    ]  # fmt: skip
    start = queue._start

    def start_and_change(*args: object) -> None:
        start(*args)  # type: ignore[arg-type]
        change(pooled)

    monkeypatch.setattr(queue, "_start", start_and_change)
    pooled.volume.slow = True
    size, each = pooled.block_size, 4096 // pooled.block_size
    slba = SIZE // size - each
    opcode, flags = opcode & 0xFF, opcode & FUA
    if opcode == WRITE:
        answer = await io.write(slba, bytes(4096), size, flags)
    elif opcode == DSM:
        answer = await io.status(DSM, struct.pack("<IIQ", 0, each, slba), sgl=(0, 16, 1), cdw11=4)
    else:
        answer = await io.status(opcode, sgl=(0, 4096, 0x5A), cdw10=slba, cdw12=each - 1 | flags)
    assert answer == status
    assert not pooled.volume.calls.keys() & {"read", "write", "write_zeroes", "deallocate", "verify"}
    assert pooled.volume.calls["write_uncorrectable"] == 0
    if change is remove:
        await pooled.volume.close()


# --- coming and going -------------------------------------------------------------------------------------------------


async def test_a_namespace_that_is_added(pooled: PoolServed, tmp_path: Path) -> None:
    admin, io = await queues(pooled)
    ask_for_event(admin, 1)
    await nothing_heard(admin)
    volume = await FileVolume.open(tmp_path / "second.img", 1 << 20)
    assert pooled.subsystem.add_namespace(volume).nsid == 2
    await heard(admin, NAMESPACE_CHANGED)
    assert await changed(admin) == [2]
    assert await identify(admin, 2) == (256, 1 << 20)
    assert await io.status(READ, nsid=2, sgl=(0, 4096, 0x5A)) == 0


async def test_a_namespace_that_is_removed(pooled: PoolServed) -> None:
    admin, io = await queues(pooled)
    ask_for_event(admin, 1)
    await nothing_heard(admin)
    volume = pooled.subsystem.remove_namespace(1)
    await heard(admin, NAMESPACE_CHANGED)
    await volume.close()
    assert await changed(admin) == [1]
    assert await identify(admin) == (0, 0)
    size = pooled.block_size
    for opcode in (READ, FLUSH, ZEROES, VERIFY, MARK):
        assert await io.status(opcode, sgl=(0, size, 0x5A)) == INVALID_NAMESPACE
    assert await io.write(0, bytes(size), size) == INVALID_NAMESPACE
    assert await io.status(FLUSH, nsid=0xFFFFFFFF) == 0
    with pytest.raises(UsageError):
        pooled.subsystem.remove_namespace(1)


@pytest.mark.parametrize(("opcode", "attributes"), [(WRITE, 0), (DSM, 4), (DSM, 0)])
async def test_data_that_comes_after_the_namespace_went(pooled: PoolServed, opcode: int, attributes: int) -> None:
    _, io = await queues(pooled)
    blocks = BIG // pooled.block_size
    length, cdw12 = (BIG, blocks - 1) if opcode == WRITE else (4096, 0)
    io.send(io.wire.capsule(wire.sqe(opcode, 5, sgl=(0, length, 0x5A), cdw11=attributes, cdw12=cdw12)))
    await settle(lambda: any(each.queue.transfers for each in pooled.target.connections))
    volume = pooled.subsystem.remove_namespace(1)
    await volume.close()
    assert await io.answer_r2t(struct.pack("<IIQ", 0, 8, 0).ljust(length, b"\0")) == INVALID_NAMESPACE
    assert pooled.volume.calls == {"close": 1}
    assert await io.status(FLUSH, nsid=0xFFFFFFFF) == 0


@pytest.mark.parametrize("operation", ["read", "write", "flush", "verify"])
async def test_what_is_at_the_volume_ends_before_it_closes(pooled: PoolServed, operation: str) -> None:
    _, io = await queues(pooled)
    gate = asyncio.Event()
    pooled.volume.delay(operation, gate)  # type: ignore[arg-type]
    size = pooled.block_size
    opcode = {"read": READ, "write": WRITE, "flush": FLUSH, "verify": VERIFY}[operation]
    data = b"\xaa" * size if opcode == WRITE else b""
    io.send(io.wire.capsule(wire.sqe(opcode, 5, sgl=(0, size, 1 if data else 0x5A)), data))
    await settle(lambda: pooled.volume.in_flight[operation] == 1)  # type: ignore[index]
    pooled.subsystem.remove_namespace(1)
    assert await io.status(FLUSH) == INVALID_NAMESPACE
    gate.set()
    assert (await io.response())[4:] == (5, 0)
    await pooled.volume.close()
    if data:
        assert pooled.path.read_bytes()[:size] == data


@pytest.mark.parametrize(("nsid", "status"), [(1, INVALID_NAMESPACE), (0xFFFFFFFF, 0)])
@pytest.mark.parametrize("others", [0, 1])
async def test_a_namespace_that_goes_while_a_flush_begins(
    pooled: PoolServed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nsid: int, status: int, others: int
) -> None:
    _, io = await queues(pooled)
    other = PoolLikeVolume(await FileVolume.open(tmp_path / "other.img", 1 << 20))
    if others:
        pooled.subsystem.add_namespace(other)
    (queue,) = [
        queue for controller in pooled.subsystem.controllers.values() for queue in controller.queues.values()
    ]  # fmt: skip
    start = queue._start

    def start_and_remove(*args: object) -> None:
        start(*args)  # type: ignore[arg-type]
        remove(pooled)

    monkeypatch.setattr(queue, "_start", start_and_remove)
    assert await io.status(FLUSH, nsid=nsid) == status
    assert pooled.volume.calls["flush"] == 0
    assert other.calls["flush"] == others * (nsid != 1)
    await pooled.volume.close()
    if not others:
        await other.close()


async def test_a_namespace_that_goes_between_a_write_and_its_sync(pooled: PoolServed) -> None:
    """Gone, and not a Write Fault, though the closed volume refuses the flush."""
    _, io = await queues(pooled)
    gate = asyncio.Event()
    pooled.volume.delay("write", gate)
    size = pooled.block_size
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, size, 1), cdw12=FUA), bytes(size)))
    await settle(lambda: pooled.volume.in_flight["write"] == 1)
    pooled.subsystem.remove_namespace(1)
    gate.set()
    assert (await io.response())[4:] == (5, INVALID_NAMESPACE)
    assert pooled.volume.calls["flush"] == 0
    await pooled.volume.close()


async def test_another_volume_takes_the_number(pooled: PoolServed, tmp_path: Path) -> None:
    """What was asked of the old one never reaches the new one."""
    _, io = await queues(pooled)
    blocks = BIG // pooled.block_size
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, BIG, 0x5A), cdw12=blocks - 1)))
    await settle(lambda: any(each.queue.transfers for each in pooled.target.connections))
    old = pooled.subsystem.remove_namespace(1)
    volume = PoolLikeVolume(await FileVolume.open(tmp_path / "new.img", 1 << 20, pooled.block_size))
    pooled.subsystem.add_namespace(volume, 1)
    await old.close()
    assert await io.answer_r2t(b"\xaa" * BIG) == INVALID_NAMESPACE
    assert not any(await io.read(0, blocks, pooled.block_size))
    assert volume.calls["write"] == 0


async def test_our_initiator_sees_it_all(pooled: PoolServed, tmp_path: Path) -> None:
    url = f"nvme+tcp://{pooled.address[0]}:{pooled.address[1]}/{SUBNQN}"
    async with nvmeof.connect(url) as controller:
        events = controller.events()
        volume = await FileVolume.open(tmp_path / "second.img", 1 << 20)
        pooled.subsystem.add_namespace(volume)
        async with asyncio.timeout(10):
            assert (await anext(events)).info == 0
        assert [each.nsid for each in await controller.namespaces()] == [1, 2]
        assert await controller.incarnation(2) == volume.incarnation
        assert await controller.incarnation(1) == pooled.volume.incarnation != volume.incarnation
        await controller.get_log_page(4, 4096)
        shrink(pooled)
        async with asyncio.timeout(10):
            assert (await anext(events)).info == 0
        ns = await controller.namespace(1)
        assert ns.size == SIZE // 2
        await ns.write(0, bytes(8192))
        await ns.write_uncorrectable(4096, 4096)
        await ns.verify(8192, ns.size - 8192)
        with pytest.raises(nvmeof.StatusError, match="Unrecovered Read Error"):
            await ns.verify(0, ns.size)


# --- health -----------------------------------------------------------------------------------------------------------


async def test_a_degraded_pool_raises_one_event_until_the_page_is_read(
    pooled: PoolServed, caplog: pytest.LogCaptureFixture
) -> None:
    admin, _ = await queues(pooled)
    for cid in (1, 2):
        ask_for_event(admin, cid)
    tick(pooled)
    await nothing_heard(admin)
    pooled.volume.health_override = VolumeHealth(degraded=True, reason="member 3 is missing", media_errors=2)
    tick(pooled)
    await heard(admin, RELIABILITY)
    assert "namespace 1 of nqn.2026-11.org.example:disk is degraded: member 3 is missing" in caplog.text
    tick(pooled)
    await nothing_heard(admin)
    data = await page(admin, 2, 512, rae=True)
    assert (data[0], data[160]) == (0x04, 2)
    pooled.volume.health_override = VolumeHealth()
    tick(pooled)
    pooled.volume.health_override = VolumeHealth(degraded=True)
    tick(pooled)
    await nothing_heard(admin)
    assert (await page(admin, 2, 512))[0] == 0x04
    tick(pooled)
    await nothing_heard(admin)
    pooled.volume.health_override = VolumeHealth()
    tick(pooled)
    assert (await page(admin, 2, 512))[0] == 0
    pooled.volume.health_override = VolumeHealth(degraded=True)
    tick(pooled)
    await heard(admin, RELIABILITY)


async def test_health_events_are_masked_by_their_bits(pooled: PoolServed) -> None:
    admin, _ = await queues(pooled)
    ask_for_event(admin, 1)
    assert await admin.status(9, nsid=0, cdw10=0x0B, cdw11=0x01) == 0
    pooled.volume.health_override = VolumeHealth(degraded=True, spare_percent=10, used_percent=90)
    tick(pooled)
    await nothing_heard(admin)
    pooled.volume.health_override = VolumeHealth(degraded=True, spare_percent=9, used_percent=91)
    tick(pooled)
    await heard(admin, SPARE)
    data = await page(admin, 2, 512)
    assert (data[0], data[3], data[4], data[5]) == (0x05, 9, 10, 91)


async def test_a_host_that_comes_later_is_told_what_holds(pooled: PoolServed) -> None:
    pooled.volume.health_override = VolumeHealth(read_only=True)
    admin, _ = await queues(pooled)
    for cid in (1, 2, 3):
        ask_for_event(admin, cid)
    await nothing_heard(admin)
    tick(pooled)
    await heard(admin, NAMESPACE_CHANGED)
    await heard(admin, RELIABILITY)
    assert (await page(admin, 2, 512))[0] == 0x0C, "all media are read-only"
    await nothing_heard(admin)
