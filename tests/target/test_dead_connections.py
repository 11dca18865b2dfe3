"""What is over stays over: nothing of a reset, terminated or fenced connection is executed or believed later."""

from __future__ import annotations

import asyncio
import struct

import pytest

from nvmeof import limits
from nvmeof.engine.file_volume import FileVolume
from nvmeof.protocol.states import State
from nvmeof.target.server import Target
from nvmeof.target.subsystem import Subsystem
from tests.protocol import wire
from tests.target.conftest import SUBNQN, Served
from tests.target.rawhost import RawHost, connect_data, connect_sqe
from tests.target.test_io import DSM, FLUSH, FUA, READ, WRITE, abort, queues, settle

UNKNOWN_PDU = struct.pack("<BBBBI", 9, 0, 24, 0, 24) + bytes(16)


async def held_write(served: Served, io: RawHost, cid: int = 5) -> asyncio.Event:
    """A write of AAh to block 0 that waits at the volume for the returned event."""
    gate = asyncio.Event()
    served.volume.delay("write", gate)
    size = served.block_size
    io.send(io.wire.capsule(wire.sqe(WRITE, cid, sgl=(0, size, 1)), b"\xaa" * size))
    await settle(lambda: served.volume.in_flight["write"] == 1)
    return gate


async def test_a_connection_we_terminated_is_fenced_though_the_host_keeps_it_open(served: Served) -> None:
    _, io = await queues(served)
    gate = await held_write(served, io)
    io.send(UNKNOWN_PDU)
    assert wire.term_req(await io.pdu())[0] == 1
    again = asyncio.create_task(served.admin())
    await asyncio.sleep(0.05)
    assert not again.done(), "the write of the terminated connection is still at the volume"
    gate.set()
    assert (await again).cntlid


async def test_nothing_is_sent_after_a_term_req(served: Served) -> None:
    _, io = await queues(served)
    gate = await held_write(served, io)
    io.send(UNKNOWN_PDU)
    assert wire.term_req(await io.pdu())[0] == 1
    gate.set()
    await settle(lambda: not served.volume.in_flight["write"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await io.reader.readexactly(1)


async def test_ready_stays_set_until_the_commands_of_the_deleted_queues_have_ended(served: Served) -> None:
    admin, io = await queues(served)
    gate = await held_write(served, io)
    await admin.property_set(0x14, 0x460000)
    assert await io.closed()
    assert await admin.property_get(0x1C) == (1, 0)
    assert (await admin.property_set(0x14, 0x460001))[5] == 0x0C
    gate.set()
    async with asyncio.timeout(10):
        while (await admin.property_get(0x1C))[0]:
            await asyncio.sleep(0.001)
    assert (await admin.property_set(0x14, 0x460001))[5] == 0
    assert await admin.property_get(0x1C) == (1, 0)


async def test_a_shutdown_that_a_reset_overtook_does_not_mark_what_comes_after(served: Served) -> None:
    admin = await served.admin()
    gate = asyncio.Event()
    served.volume.delay("flush", gate)
    await admin.property_set(0x14, 0x464001)
    await settle(lambda: served.volume.in_flight["flush"] == 1)
    await admin.property_set(0x14, 0x460000)
    await admin.property_set(0x14, 0x460001)
    gate.set()
    await settle(lambda: not served.volume.in_flight["flush"])
    assert await admin.property_get(0x1C) == (1, 0)


async def test_commands_that_waited_for_output_are_not_executed_after_a_reset(served: Served) -> None:
    admin, io = await queues(served)
    (connection,) = [each for each in served.target.connections if each.queue.qid == 1]
    size = served.block_size
    connection.queue.hold(limits.OUTPUT_BYTES_MAX)
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, size, 1)), b"\xaa" * size))
    await settle(lambda: connection.queue.blocked)
    served.subsystem.controllers[admin.cntlid].property_set(0x14, 4, 0x460000)
    connection.queue.hold(-limits.OUTPUT_BYTES_MAX)
    connection.stream.pump()
    assert await io.closed()
    assert served.volume.calls["write"] == 0


async def test_a_blocked_queue_goes_on_when_aborted_reads_have_ended(served: Served) -> None:
    admin, io = await queues(served)
    gate = asyncio.Event()
    served.volume.delay("read", gate)
    count = limits.OUTPUT_BYTES_MAX // limits.MDTS_BYTES
    blocks = limits.MDTS_BYTES // served.block_size
    read = [io.wire.capsule(wire.sqe(READ, cid, sgl=(0, limits.MDTS_BYTES, 0x5A), cdw12=blocks - 1))
            for cid in range(count + 1)]  # fmt: skip
    io.send(b"".join(read))
    await settle(lambda: served.volume.in_flight["read"] == count)
    await asyncio.sleep(0.02)
    assert served.volume.in_flight["read"] == count, "the memory of waiting reads is bounded when they are parsed"
    for cid in range(count):
        assert await abort(admin, 1, cid)
        assert (await io.response())[4:] == (cid, 0x07)
    gate.set()
    assert (await io.response())[4:] == (count, 0)


async def test_a_read_with_fua_returns_what_is_on_media(served: Served) -> None:
    _, io = await queues(served)
    size = served.block_size
    assert await io.write(0, b"\xaa" * size, size) == 0
    assert await io.status(READ, sgl=(0, size, 0x5A), cdw12=FUA) == 0
    assert io.data == b"\xaa" * size
    assert served.volume.calls["flush"] == 1


async def test_deallocate_is_synced_when_the_cache_is_off(served: Served) -> None:
    admin, io = await queues(served)
    assert await admin.status(9, nsid=0, cdw10=6, cdw11=0) == 0
    before = served.volume.calls["flush"]
    assert await io.status(DSM, struct.pack("<IIQ", 0, 8, 0), sgl=(0, 16, 1), cdw11=4) == 0
    assert served.volume.calls["flush"] == before + 1


async def test_a_namespace_removed_under_a_write_that_waits_for_data(served: Served) -> None:
    admin, io = await queues(served)
    size = 1 << 20
    io.send(io.wire.capsule(wire.sqe(WRITE, 5, sgl=(0, size, 0x5A), cdw12=size // served.block_size - 1)))
    r2t = await io.pdu()
    volume = served.subsystem.remove_namespace(1)
    await volume.close()
    for at in range(0, size, 262144):
        io.send(io.wire.h2c_data(5, r2t[10] | r2t[11] << 8, at, bytes(262144), last=at + 262144 == size))
    assert (await io.response())[4:] == (5, 0x400B)
    assert await io.status(READ, sgl=(0, served.block_size, 0x5A)) == 0x400B
    assert (await admin.property_get(0x1C))[0] == 1


async def test_close_while_hosts_connect(served: Served) -> None:
    _, io = await queues(served)
    gate = await held_write(served, io)
    closing = asyncio.create_task(served.target.close())
    readers = [asyncio.create_task(asyncio.open_connection(*served.address)) for _ in range(5)]
    await asyncio.gather(*readers, return_exceptions=True)
    gate.set()
    async with asyncio.timeout(10):
        await closing
    for reader in readers:
        if reader.exception() is None:
            reader.result()[1].close()


async def test_a_connect_that_waits_for_the_fence_is_not_dropped_for_being_slow(served: Served) -> None:
    admin, io = await queues(served)
    gate = await held_write(served, io)
    await io.close()
    await admin.close()
    await settle(lambda: not served.subsystem.controllers)
    host = await served.open()
    host.send(host.wire.capsule(connect_sqe(), connect_data(SUBNQN)))
    await settle(lambda: any(each._connect is not None for each in served.target.connections))
    await asyncio.sleep(0.02)
    now = asyncio.get_running_loop().time()
    for connection in list(served.target.connections):
        connection.stream.tick(now + limits.HANDSHAKE_SECONDS + 1)
    gate.set()
    assert (await host.response())[5] == 0


async def test_before_connect_only_a_small_part_of_the_scratch_is_used(served: Served) -> None:
    host = await served.open()
    (connection,) = served.target.connections
    assert len(connection.queue.get_buffer()) <= limits.HANDSHAKE_SCRATCH_BYTES
    assert (await host.command(connect_sqe(), connect_data(SUBNQN)))[5] == 0
    assert len(connection.queue.get_buffer()) == limits.SCRATCH_BYTES
    assert connection.queue.state is State.READY


async def test_ipv6(tmp_path: object) -> None:
    async with Target() as target:
        subsystem = target.add_subsystem(Subsystem(SUBNQN))
        subsystem.add_namespace(await FileVolume.open(f"{tmp_path}/disk.img", size=1 << 20))
        listener = await target.listen("::1", 0)
        assert str(listener) == f"[::1]:{listener.port}"
        admin = await RawHost.admin(("::1", listener.port), SUBNQN)
        io = await RawHost.io(("::1", listener.port), SUBNQN, admin.cntlid)
        assert await io.status(FLUSH) == 0
        await io.close()
        await admin.close()
