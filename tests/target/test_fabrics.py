"""Connect and its refusals, properties, reset, shutdown, keep-alive and hostile peers, over real sockets."""

from __future__ import annotations

import asyncio
import random
import struct

import pytest

from nvmeof import limits
from nvmeof.target.subsystem import Subsystem
from tests.protocol import wire
from tests.protocol.wire import Wire
from tests.target.conftest import SUBNQN, Served
from tests.target.rawhost import RawHost, connect_data, connect_sqe
from tests.target.test_io import settle

DNR = 0x4000
INVALID_PARAMETERS = 0x182 | DNR
DATA = 1 << 16
DISCOVERY = "nqn.2014-08.org.nvmexpress.discovery"


async def connect(host: RawHost, sqe: bytes, data: bytes) -> tuple[int, int]:
    """(status, dw0) of a Connect."""
    answer = await host.command(sqe, data)
    return answer[5], answer[0]


@pytest.mark.parametrize(
    ("sqe", "data", "status", "dw0"),
    [
        (connect_sqe(recfmt=1), connect_data(SUBNQN), 0x180 | DNR, 0),
        (connect_sqe(sqsize=0), connect_data(SUBNQN), INVALID_PARAMETERS, 44),
        (connect_sqe(sqsize=limits.ADMIN_QUEUE_ENTRIES_MAX), connect_data(SUBNQN), INVALID_PARAMETERS, 44),
        (connect_sqe(kato=limits.KEEP_ALIVE_MS_MAX + 1), connect_data(SUBNQN), INVALID_PARAMETERS, 48),
        (connect_sqe(), connect_data("nqn.2026-11.org.example:other"), INVALID_PARAMETERS, DATA | 256),
        (connect_sqe(), connect_data(""), INVALID_PARAMETERS, DATA | 256),
        (connect_sqe(), connect_data("n" * 256), INVALID_PARAMETERS, DATA | 256),
        (connect_sqe(), connect_data(SUBNQN, hostnqn=""), INVALID_PARAMETERS, DATA | 512),
        (connect_sqe(), connect_data(SUBNQN, hostnqn="h" * 256), INVALID_PARAMETERS, DATA | 512),
        (connect_sqe(), connect_data(SUBNQN, cntlid=1), INVALID_PARAMETERS, DATA | 16),
        (connect_sqe(), connect_data(SUBNQN, cntlid=0xFFFE), INVALID_PARAMETERS, DATA | 16),
        (connect_sqe(qid=1), connect_data(SUBNQN, cntlid=0x1234), INVALID_PARAMETERS, DATA | 16),
        (connect_sqe(qid=1, sqsize=limits.QUEUE_ENTRIES_MAX), connect_data(SUBNQN), INVALID_PARAMETERS, 44),
        (connect_sqe(length=1000), connect_data(SUBNQN)[:1000], 0x0F | DNR, 0),
        (connect_sqe(sgl=0x00), connect_data(SUBNQN), 0x11 | DNR, 0),
    ],
)
async def test_connect_refused(served: Served, sqe: bytes, data: bytes, status: int, dw0: int) -> None:
    host = await served.open()
    assert await connect(host, sqe, data) == (status, dw0)
    assert not served.subsystem.controllers
    assert (await connect(host, connect_sqe(), connect_data(SUBNQN)))[0] == 0


@pytest.mark.parametrize("entries", [2, limits.ADMIN_QUEUE_ENTRIES_MAX])
async def test_admin_queue_sizes_at_the_limits(served: Served, entries: int) -> None:
    host = await served.open()
    assert (await connect(host, connect_sqe(sqsize=entries - 1), connect_data(SUBNQN)))[0] == 0


async def test_connect_data_may_be_asked_for(served: Served) -> None:
    host = await served.open()
    host.send(host.wire.capsule(connect_sqe(sgl=0x5A)))
    assert await host.answer_r2t(connect_data(SUBNQN)) == 0


async def test_host_not_allowed(served: Served) -> None:
    served.subsystem.allowed_hosts = {"nqn.2026-11.org.example:somebody"}
    host = await served.open()
    assert await connect(host, connect_sqe(), connect_data(SUBNQN)) == (0x184 | DNR, 0)
    allowed = connect_data(SUBNQN, hostnqn="nqn.2026-11.org.example:somebody")
    assert (await connect(host, connect_sqe(), allowed))[0] == 0


async def test_io_connect_refusals(served: Served) -> None:
    admin = await served.admin(enable=False)
    host = await served.open()
    good = connect_data(SUBNQN, admin.cntlid)
    assert (await connect(host, connect_sqe(qid=1), good))[0] == 0x0C
    await admin.property_set(0x14, 0x460001)
    wrong_host = connect_data(SUBNQN, admin.cntlid, hostnqn="nqn.2026-11.org.example:thief")
    assert await connect(host, connect_sqe(qid=1), wrong_host) == (INVALID_PARAMETERS, DATA | 512)
    wrong_id = connect_data(SUBNQN, admin.cntlid, hostid=b"x" * 16)
    assert await connect(host, connect_sqe(qid=1), wrong_id) == (INVALID_PARAMETERS, DATA | 0)
    above = connect_sqe(qid=limits.IO_QUEUES_MAX + 1)
    assert await connect(host, above, good) == (INVALID_PARAMETERS, 42)
    assert (await connect(host, connect_sqe(qid=1), good)) == (0, admin.cntlid)
    again = await served.open()
    assert await connect(again, connect_sqe(qid=1), good) == (INVALID_PARAMETERS, 42)
    assert (await connect(again, connect_sqe(qid=2), good))[0] == 0


async def test_a_second_connect_on_a_queue_is_a_sequence_error(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin)
    assert (await connect(admin, connect_sqe(), connect_data(SUBNQN)))[0] & 0xFF == 0x0C
    assert (await connect(io, connect_sqe(qid=2), connect_data(SUBNQN, admin.cntlid)))[0] & 0xFF == 0x0C


async def test_128_io_queues(served: Served) -> None:
    admin = await served.admin()
    queues = [await served.io(admin) for _ in range(limits.IO_QUEUES_MAX)]
    for index, io in enumerate(queues):
        assert await io.write(index, bytes([index + 1]) * served.block_size, served.block_size) == 0
    for index, io in enumerate(reversed(queues)):
        expected = bytes([128 - index]) * served.block_size
        assert await io.read(127 - index, 1, served.block_size) == expected


async def test_discovery_service_has_no_io_queues(served: Served) -> None:
    admin = await served.admin(subnqn=DISCOVERY)
    host = await served.open()
    data = connect_data(DISCOVERY, admin.cntlid)
    assert await connect(host, connect_sqe(qid=1), data) == (INVALID_PARAMETERS, 42)


async def test_too_many_controllers(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmeof.target.subsystem.CONTROLLERS_PER_SUBSYSTEM_MAX", 2)
    await served.admin()
    await served.admin()
    host = await served.open()
    assert (await connect(host, connect_sqe(), connect_data(SUBNQN)))[0] == 0x181


async def test_too_many_connections(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmeof.target.connection.CONNECTIONS_MAX", 1)
    first = await served.open()
    second = await served.open(handshake=False)
    assert await second.closed()
    assert (await connect(first, connect_sqe(), connect_data(SUBNQN)))[0] == 0


# --- properties ------------------------------------------------------------------------------------------------------


async def test_properties(served: Served) -> None:
    admin = await served.admin(enable=False)
    cap, status = await admin.property_get(0, eight=True)
    assert status == 0
    assert cap & 0xFFFF == limits.QUEUE_ENTRIES_MAX - 1
    assert cap >> 16 & 1
    assert cap >> 24 & 0xFF
    assert cap >> 37 & 0xFF == 0x41
    assert cap >> 48 & 0xF == 0
    assert cap >> 59 & 1
    assert await admin.property_get(8) == (0x020000, 0)
    assert await admin.property_get(0x14) == (0, 0)
    assert await admin.property_get(0x1C) == (0, 0)
    assert (await admin.property_get(0x68))[1] == 0


@pytest.mark.parametrize(
    ("offset", "eight"), [(0, False), (8, True), (0x20, False), (0x24, False), (0xFFFFFFFF, False)]
)
async def test_properties_that_do_not_exist(served: Served, offset: int, eight: bool) -> None:
    admin = await served.admin(enable=False)
    assert (await admin.property_get(offset, eight=eight))[1] == 0x02 | DNR


@pytest.mark.parametrize("offset", [0, 8, 0x1C, 0x68])
async def test_read_only_properties(served: Served, offset: int) -> None:
    admin = await served.admin(enable=False)
    assert (await admin.property_set(offset, 1))[5] == 0x02 | DNR


@pytest.mark.parametrize("cc", [0x460001, 0x460061])
async def test_enable(served: Served, cc: int) -> None:
    admin = await served.admin(enable=False)
    assert (await admin.property_set(0x14, cc))[5] == 0
    assert await admin.property_get(0x14) == (cc, 0)
    assert await admin.property_get(0x1C) == (1, 0)


@pytest.mark.parametrize("cc", [0x450001, 0x360001, 0x460081, 0x460801, 0x460011])
async def test_enable_with_an_unsupported_configuration_is_a_fatal_status(served: Served, cc: int) -> None:
    admin = await served.admin(enable=False)
    await admin.property_set(0x14, cc)
    assert await admin.property_get(0x1C) == (2, 0)
    await admin.property_set(0x14, 0)
    await admin.property_set(0x14, 0x460001)
    assert await admin.property_get(0x1C) == (1, 0)


async def test_reset_ends_the_io_queues_and_keeps_the_admin_queue(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin)
    assert await admin.status(9, nsid=0, cdw10=6, cdw11=0) == 0
    await admin.property_set(0x14, 0x460000)
    assert await io.closed()
    assert await admin.property_get(0x1C) == (0, 0)
    assert await admin.status(6, sgl=(0, 4096, 0x5A), cdw10=1) & 0xFF == 0x0C
    await admin.property_set(0x14, 0x460001)
    answer = await admin.command(wire.sqe(0x0A, admin.cid(), nsid=0, cdw10=6))
    assert (answer[0], answer[5]) == (1, 0)
    again = await served.io(admin)
    assert await again.status(0) == 0


async def test_shutdown_flushes_and_then_says_complete(served: Served) -> None:
    admin = await served.admin()
    gate = asyncio.Event()
    served.volume.delay("flush", gate)
    await admin.property_set(0x14, 0x464001)
    assert (await admin.property_get(0x1C))[0] >> 2 & 3 == 1
    gate.set()
    async with asyncio.timeout(10):
        while (await admin.property_get(0x1C))[0] >> 2 & 3 == 1:
            await asyncio.sleep(0.001)
    assert (await admin.property_get(0x1C))[0] >> 2 & 3 == 2
    assert served.volume.calls["flush"] == 1
    await admin.close()
    await settle(lambda: not served.subsystem.controllers)
    assert served.subsystem.unsafe_shutdowns == 0


async def test_leaving_without_shutdown_is_counted(served: Served) -> None:
    await (await served.admin()).close()
    await settle(lambda: not served.subsystem.controllers)
    assert served.subsystem.unsafe_shutdowns == 1


async def test_disconnect_closes_that_queue_alone(served: Served) -> None:
    admin = await served.admin()
    io, other = await served.io(admin), await served.io(admin)
    assert (await io.command(wire.sqe(0x7F, 9, nsid=8, cdw10=1)))[5] == 0x180 | DNR
    assert (await io.command(wire.sqe(0x7F, 9, nsid=8)))[5] == 0
    assert await io.closed()
    assert await other.status(0) == 0
    assert (await admin.command(wire.sqe(0x7F, 9, nsid=8)))[5] == 0x185 | DNR
    assert (await other.command(wire.sqe(0x7F, 9, nsid=4)))[5] == 0x0C | DNR
    assert (await other.command(wire.sqe(0x7F, 9, nsid=0x33)))[5] == 0x01 | DNR


async def test_losing_the_admin_queue_ends_the_association(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin)
    await admin.close()
    assert await io.closed()


# --- time ------------------------------------------------------------------------------------------------------------


def pass_time(served: Served, seconds: float) -> None:
    """Let every timer of the target see ``seconds`` more than have passed."""
    now = asyncio.get_running_loop().time() + seconds
    for connection in list(served.target.connections):
        connection.stream.tick(now)
    for subsystem in (served.target.discovery, served.subsystem):
        for controller in list(subsystem.controllers.values()):
            controller.tick(now)


async def test_keep_alive_timeout_ends_the_association(served: Served) -> None:
    admin = await served.admin(kato=5000)
    io = await served.io(admin)
    pass_time(served, 5.0)
    assert await io.status(0) == 0
    pass_time(served, 7.5)
    assert await admin.closed()
    assert await io.closed()


async def test_traffic_on_any_queue_keeps_the_association_alive(served: Served) -> None:
    admin = await served.admin(kato=5000)
    io = await served.io(admin)
    controller = served.subsystem.controllers[admin.cntlid]
    assert controller.admin is not None
    controller.admin.connection.queue.heard -= 100
    assert await io.status(0) == 0
    pass_time(served, 0)
    assert await admin.status(0x18) == 0


async def test_without_keep_alive_silence_is_allowed(served: Served) -> None:
    admin = await served.admin(kato=0)
    pass_time(served, 1e6)
    assert await admin.status(0x18) in (0, 0x01 | DNR)


async def test_a_silent_discovery_controller_is_dropped(served: Served) -> None:
    host = await served.admin(subnqn=DISCOVERY)
    pass_time(served, limits.DISCOVERY_IDLE_SECONDS - 5)
    assert (await host.property_get(8))[1] == 0
    pass_time(served, limits.DISCOVERY_IDLE_SECONDS + 5)
    assert await host.closed()


@pytest.mark.parametrize("said", [b"", wire.icreq(), wire.icreq()[:50]])
async def test_a_peer_that_does_not_connect_is_dropped(served: Served, said: bytes) -> None:
    host = await served.open(handshake=False)
    host.send(said)
    await settle(lambda: served.target.connections)
    await asyncio.sleep(0.02)
    pass_time(served, limits.HANDSHAKE_SECONDS + 1)
    assert await host.closed()
    await settle(lambda: not served.target.connections)


# --- hostile peers ---------------------------------------------------------------------------------------------------


async def test_a_fatal_error_is_reported_and_the_connection_closed_in_time(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin)
    io.send(struct.pack("<BBBBI", 9, 0, 24, 0, 24) + bytes(16))
    fes, fei, header = wire.term_req(await io.pdu())
    assert (fes, fei, header[:1]) == (1, 0, b"\x09")
    pass_time(served, limits.TERMINATE_SECONDS + 1)
    assert await io.closed()
    assert (await admin.property_get(0x1C))[1] == 0


async def test_h2c_term_req_closes_the_connection(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin)
    io.send(struct.pack("<BBBBIHI10x", 2, 0, 24, 0, 24, 1, 0))
    assert await io.closed()


async def test_garbage_on_many_connections_does_not_disturb_the_others(served: Served) -> None:
    seed = 7
    print("seed", seed)
    rng = random.Random(seed)
    admin = await served.admin()
    io = await served.io(admin)
    capsule = Wire().capsule(connect_sqe(), connect_data(SUBNQN))
    for _ in range(60):
        host = await served.open(handshake=rng.random() < 0.7)
        noise = bytearray(capsule if rng.random() < 0.5 else rng.randbytes(rng.randrange(1, 2000)))
        for _ in range(rng.randrange(1, 6)):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        host.send(bytes(noise))
        if rng.random() < 0.5:
            host.writer.write_eof()
        if rng.random() < 0.5:
            host.writer.transport.abort()
    assert await io.write(3, b"\x5a" * served.block_size, served.block_size) == 0
    assert await io.read(3, 1, served.block_size) == b"\x5a" * served.block_size


async def test_two_subsystems_do_not_share_namespaces(served: Served) -> None:
    served.target.add_subsystem(Subsystem("nqn.2026-11.org.example:empty"))
    admin = await served.admin(subnqn="nqn.2026-11.org.example:empty")
    host = await served.open()
    data = connect_data("nqn.2026-11.org.example:empty", admin.cntlid)
    assert (await connect(host, connect_sqe(qid=1), data))[0] == 0
    assert await host.status(2, sgl=(0, served.block_size, 0x5A)) == 0x0B | DNR


async def test_drain_lets_commands_end_and_refuses_new_hosts(served: Served) -> None:
    admin = await served.admin()
    io = await served.io(admin)
    gate = asyncio.Event()
    served.volume.delay("write", gate)
    io.send(io.wire.capsule(wire.sqe(1, 5, sgl=(0, served.block_size, 1)), b"\xcc" * served.block_size))
    await settle(lambda: served.volume.in_flight["write"] == 1)
    late = await served.open()
    drain = asyncio.create_task(served.target.drain())
    await asyncio.sleep(0.05)
    assert not drain.done()
    assert (await connect(late, connect_sqe(), connect_data(SUBNQN)))[0] == 0x181
    gate.set()
    assert await drain
    assert (await io.response())[4:] == (5, 0)
    assert served.volume.calls["flush"] == 1
    with pytest.raises(ConnectionRefusedError):
        await RawHost.open(served.address)


async def test_drain_gives_up_in_time(served: Served) -> None:
    io = await served.io(await served.admin())
    gate = asyncio.Event()
    served.volume.delay("write", gate)
    io.send(io.wire.capsule(wire.sqe(1, 5, sgl=(0, served.block_size, 1)), bytes(served.block_size)))
    await settle(lambda: served.volume.in_flight["write"] == 1)
    assert not await served.target.drain(0.05)
    gate.set()
