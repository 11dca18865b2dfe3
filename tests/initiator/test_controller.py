"""Bring-up, limits, namespaces, and every way an association ends."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest

import nvmeof
from nvmeof.errors import ConnectionLost, StatusError, TransportError, UsageError
from nvmeof.initiator import controller as controller_module
from nvmeof.spec.identify_lists import NamespaceIdentifiers
from nvmeof.spec.identify_namespace import LbaFormat, encode_lba_formats
from tests.initiator.conftest import SUBNQN, Served
from tests.initiator.fake_target import (
    CAP_DEFAULT,
    CONNECT,
    DISCONNECT,
    EVENT_REQUEST,
    FLUSH,
    IDENTIFY,
    PROPERTY_GET,
    PROPERTY_SET,
    READ,
    SET_FEATURES,
    WRITE,
    Capsule,
    FakeQueue,
    FakeTarget,
    default_identity,
    default_namespace,
)
from tests.protocol.wire_controller import c2h_term_req


def never(*codes: int) -> Callable[[FakeQueue, Capsule], bool]:
    """A hook that leaves these commands unanswered."""
    return lambda queue, capsule: capsule.code in codes


def failing(code: int, status: int, dw0: int = 0, qid: int | None = None) -> Callable[[FakeQueue, Capsule], bool]:
    def hook(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code != code or (qid is not None and capsule.qid != qid):
            return False
        queue.complete(capsule.cid, status, dw0)
        return True

    return hook


# --- bring-up ---------------------------------------------------------------------------------------------------------


async def test_the_order_of_bring_up() -> None:
    async with FakeTarget() as target:
        async with nvmeof.connect(target.url, io_queues=2, host_nqn="nqn.2026-11.org:h", host_id=bytes(range(16))):
            pass
        admin = [capsule for capsule in target.seen if not capsule.qid]
        assert [capsule.code for capsule in admin] == [
            CONNECT, PROPERTY_GET, PROPERTY_SET, PROPERTY_SET, PROPERTY_GET, PROPERTY_GET, IDENTIFY, IDENTIFY,
            SET_FEATURES, EVENT_REQUEST, EVENT_REQUEST, SET_FEATURES, PROPERTY_SET, PROPERTY_GET,
        ]  # fmt: skip
        assert [capsule.cdw[1] for capsule in admin if capsule.code == PROPERTY_GET] == [0x00, 0x1C, 0x08, 0x1C]
        configurations = [capsule.cdw[2] for capsule in admin if capsule.code == PROPERTY_SET]
        assert configurations == [0x00460000, 0x00460001, 0x00464001]
        connect = admin[0]
        assert connect.cdw == (0, 31, 15000, 0, 0, 0)
        assert connect.data[:18] == bytes(range(16)) + b"\xff\xff"
        assert connect.data[256:512].rstrip(b"\0").decode() == target.url.rpartition("/")[2]
        assert connect.data[512:768].rstrip(b"\0") == b"nqn.2026-11.org:h"
        queues = [capsule for capsule in target.seen if capsule.qid]
        assert [(capsule.code, capsule.cdw) for capsule in queues] == [
            (CONNECT, (1 << 16, 127 | 4 << 16, 0, 0, 0, 0)),
            (CONNECT, (2 << 16, 127 | 4 << 16, 0, 0, 0, 0)),
        ]
        assert all(capsule.in_capsule and capsule.data[16:18] == b"\x05\x00" for capsule in queues)


@pytest.mark.parametrize(
    ("css", "configuration"), [(1, 0x00460000), (1 << 6, 0x00460060), (0x41, 0x00460060), (1 << 7, 0x00460070)]
)
async def test_command_sets(css: int, configuration: int) -> None:
    cap = CAP_DEFAULT & ~(0xFF << 37) | css << 37
    async with FakeTarget(cap=cap) as target, nvmeof.connect(target.url):
        assert target.cc == configuration | 1


async def test_readiness_is_waited_for() -> None:
    async with FakeTarget(ready_after=4) as target, nvmeof.connect(target.url, connect_timeout=0.5) as controller:
        assert controller.capabilities.to == 1


async def test_time_to_become_ready_does_not_count_as_connecting() -> None:
    """CAP.TO is 2 x 500 ms; the controller takes about 0.6 s."""
    cap = CAP_DEFAULT & ~(0xFF << 24) | 2 << 24
    async with FakeTarget(cap=cap, ready_after=6) as target, nvmeof.connect(target.url, connect_timeout=0.5):
        assert target.cc & 1


async def test_a_controller_that_does_not_become_ready() -> None:
    async with FakeTarget(cap=CAP_DEFAULT & ~(0xFF << 24), ready_after=1000) as target:
        with pytest.raises(TransportError, match=r"did not become ready within 0\.5 s"):
            async with nvmeof.connect(target.url):
                pass


async def test_longer_time_to_become_ready() -> None:
    """CRTO.CRWMT counts instead of CAP.TO when the controller has it (CAP.CRMS)."""

    def crto(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code != PROPERTY_GET or capsule.cdw[1] != 0x68:
            return False
        queue.complete(capsule.cid, dw0=3)
        return True

    cap = CAP_DEFAULT & ~(0xFF << 24) | 1 << 59
    async with FakeTarget(cap=cap, hook=crto, ready_after=6) as target, nvmeof.connect(target.url):
        assert target.cc & 1


async def test_a_fatal_controller() -> None:
    def fatal(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code != PROPERTY_GET or capsule.cdw[1] != 0x1C:
            return False
        queue.complete(capsule.cid, dw0=2)
        return True

    async with FakeTarget(hook=fatal) as target:
        with pytest.raises(TransportError, match=r"CSTS\.CFS"):
            async with nvmeof.connect(target.url):
                pass


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"cap": CAP_DEFAULT | 1 << 48}, "pages of 8192 bytes"),
        ({"cap": CAP_DEFAULT & ~0xFFFF}, "queues of 1 entries"),
        ({"identity": default_identity()._replace(cntlid=6)}, "Connect says controller 0x0005, Identify 0x0006"),
        ({"hook": failing(CONNECT, 0, 0x20005)}, "requires authentication"),
        ({"hook": failing(CONNECT, 0, 0xFFF0)}, "calls itself 0xfff0"),
        ({"hook": failing(CONNECT, 0, 6, qid=1)}, "calls itself 0x0006"),
        ({"digest_mask": 0}, "declines header_digest"),
    ],
)
async def test_controllers_that_are_refused(change: dict[str, Any], text: str) -> None:
    async with FakeTarget(**change) as target:
        with pytest.raises(TransportError, match=text):
            async with nvmeof.connect(target.url, header_digest="digest_mask" in change):
                pass


@pytest.mark.parametrize("code", [CONNECT, PROPERTY_GET, PROPERTY_SET, IDENTIFY, SET_FEATURES])
async def test_a_silent_controller(code: int) -> None:
    async with FakeTarget(hook=never(code)) as target:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        with pytest.raises(TransportError, match=r"not connected within|not answered in time") as caught:
            async with nvmeof.connect(target.url, connect_timeout=0.3):
                pass
        assert not isinstance(caught.value, ConnectionLost)
        assert loop.time() - begin < 5


async def test_cancelled_at_any_moment_of_bring_up() -> None:
    async with FakeTarget() as target:
        for steps in [*range(0, 60, 3), *range(60, 200, 20)]:

            async def connect() -> None:
                async with nvmeof.connect(target.url, io_queues=2):
                    await asyncio.sleep(10)

            task = asyncio.create_task(connect())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(5):
                while target.queues:
                    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        (CONNECT, 0x4184, "Connect to .*, queue 0: Connect Invalid Host"),
        (CONNECT, 0x4182, "queue 0: Connect Invalid Parameters"),
        (IDENTIFY, 6, "Identify CNS 01h: Internal Error"),
        (PROPERTY_SET, 6, "Property Set 0x14: Internal Error"),
    ],
)
async def test_a_refusal_keeps_its_status(code: int, status: int, text: str) -> None:
    async with FakeTarget(hook=failing(code, status)) as target:
        with pytest.raises(StatusError, match=text) as caught:
            async with nvmeof.connect(target.url):
                pass
        assert caught.value.dnr == bool(status & 0x4000)
        assert caught.value.status_code == status & 0xFF


async def test_unknown_subsystem(served: Served) -> None:
    with pytest.raises(StatusError, match="Connect Invalid Parameters") as caught:
        async with nvmeof.connect(f"{served.address}/nqn.2026-11.org:other"):
            pass
    assert caught.value.result == 1 << 16 | 256


# --- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "maxcmd", "asked", "depth"),
    [(CAP_DEFAULT, 128, 128, 127), (CAP_DEFAULT, 0, 200, 127), (CAP_DEFAULT, 64, 128, 64), (CAP_DEFAULT, 128, 1, 1)],
)
async def test_queue_depth(cap: int, maxcmd: int, asked: int, depth: int) -> None:
    async with FakeTarget(cap=cap, identity=default_identity()._replace(maxcmd=maxcmd)) as target:
        async with nvmeof.connect(target.url, queue_depth=asked) as controller:
            assert controller.queue_depth == depth
        assert [capsule.cdw[1] & 0xFFFF for capsule in target.io(CONNECT)] == [depth]


async def test_fewer_queues_are_granted() -> None:
    async with FakeTarget(queues_granted=2) as target, nvmeof.connect(target.url, io_queues=5) as controller:
        asked = [capsule.cdw for capsule in target.seen if capsule.code == SET_FEATURES and capsule.cdw[0] == 7]
        assert [cdw[1] for cdw in asked] == [4 << 16 | 4]
        assert (controller.io_queues, target.connections) == (2, 3)


async def test_no_io_queues() -> None:
    async with FakeTarget() as target, nvmeof.connect(target.url, io_queues=0) as controller:
        assert (controller.io_queues, target.connections) == (0, 1)
        namespace = await controller.namespace(1)
        with pytest.raises(TransportError, match="not sent: there are no I/O queues"):
            await namespace.read(0, 512)


@pytest.mark.parametrize(
    ("ioccsz", "icdoff", "largest"), [(4, 0, 0), (0, 0, 0), (4 + 256, 0, 4096), (4 + 256, 1, 0), (1 << 31, 0, 66048)]
)
async def test_in_capsule_data(ioccsz: int, icdoff: int, largest: int) -> None:
    async with FakeTarget(identity=default_identity()._replace(ioccsz=ioccsz, icdoff=icdoff)) as target:
        async with nvmeof.open_namespace(f"{target.url}/1") as namespace:
            for size in (512, 4096, 4608, 65536, 66048):
                await namespace.write(0, bytes(size))
        assert [capsule.length for capsule in target.io(WRITE) if capsule.in_capsule] == [
            size for size in (512, 4096, 4608, 65536, 66048) if size <= largest
        ]


async def test_flow_control_stays_on_where_it_cannot_be_off() -> None:
    def refuse(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code == CONNECT and capsule.cdw[1] >> 16 & 4:
            queue.complete(capsule.cid, 0x4182, dw0=46)
            return True
        return False

    async with FakeTarget(hook=refuse) as target:
        async with nvmeof.open_namespace(f"{target.url}/1") as namespace:
            assert await namespace.read(0, 512) == bytes(512)
        assert [capsule.cdw[1] >> 16 for capsule in target.io(CONNECT)] == [4, 0]


@pytest.mark.parametrize("kind", [2, 3])
async def test_controllers_without_io(kind: int) -> None:
    identity = default_identity()._replace(cntrltype=kind)
    async with FakeTarget(identity=identity) as target, nvmeof.connect(target.url, io_queues=3) as controller:
        assert controller.io_queues == 0


# --- namespaces -------------------------------------------------------------------------------------------------------


async def test_namespaces(served: Served) -> None:
    async with nvmeof.connect(served.url, io_queues=2) as controller:
        first, second = await controller.namespaces()
        assert (first.nsid, first.block_size, first.block_count, first.size) == (1, 512, 65536, 32 << 20)
        assert (second.nsid, second.block_size, second.controller) == (2, 4096, controller)
        assert second.uuid == served.volumes[1].uuid
        assert second.nguid == served.volumes[1].uuid.bytes
        assert any(second.eui64)
        assert (await controller.namespace(2)).uuid == second.uuid
        assert repr(second) == "<Namespace 2: 8192 blocks of 4096 bytes>"
        with pytest.raises(UsageError, match="namespace 3: got a namespace that is not active"):
            await controller.namespace(3)
        for nsid in (0, -1, 0xFFFF_FFFF):
            with pytest.raises(UsageError, match="wanted 1 to 4294967294"):
                await controller.namespace(nsid)


async def test_a_long_namespace_list() -> None:
    nsids = list(range(3, 3 * 2500, 3))
    async with FakeTarget(nsids=nsids) as target, nvmeof.connect(target.url) as controller:
        assert [namespace.nsid for namespace in await controller.namespaces()] == nsids


async def test_a_namespace_list_that_never_ends() -> None:
    def forever(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code != IDENTIFY or capsule.cdw[0] & 0xFF != 2:
            return False
        queue.send(capsule, struct.pack("<1024I", *range(1, 1025)))
        return True

    async with FakeTarget(hook=forever) as target, nvmeof.connect(target.url) as controller:
        with pytest.raises(TransportError, match="not ascending"):
            await controller.namespaces()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"namespace": {"lbaf": encode_lba_formats([LbaFormat(ms=8, lbads=9)])}}, UsageError, "8 bytes of metadata"),
        ({"namespace": {"flbas": 3}}, TransportError, "FLBAS 0x03 selects format 3 of 1"),
        ({"namespace": {"lbaf": encode_lba_formats([LbaFormat(lbads=8)])}}, TransportError, r"blocks of 2\*\*8 bytes"),
        ({"namespace": {"lbaf": encode_lba_formats([LbaFormat(lbads=255)])}}, TransportError, r"2\*\*255"),
        ({"names": NamespaceIdentifiers(csi=2)}, UsageError, "command set 0x02"),
    ],
)
async def test_namespaces_that_cannot_be_read(change: dict[str, Any], error: type[Exception], text: str) -> None:
    fields = {"namespace": default_namespace()._replace(**change["namespace"])} if "namespace" in change else change
    async with FakeTarget(**fields) as target, nvmeof.connect(target.url) as controller:
        with pytest.raises(error, match=text):
            await controller.namespace(1)
        if error is UsageError:
            assert await controller.namespaces() == []


async def test_a_malformed_descriptor_list() -> None:
    def malformed(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code != IDENTIFY or capsule.cdw[0] & 0xFF != 3:
            return False
        queue.send(capsule, b"\x03\x05".ljust(4096, b"\0"))
        return True

    async with FakeTarget(hook=malformed) as target, nvmeof.connect(target.url) as controller:
        with pytest.raises(TransportError, match="namespace 1: namespace descriptor type 3: got 5 bytes"):
            await controller.namespace(1)


async def test_an_old_controller() -> None:
    """Before 1.3 there is no descriptor list, before 2.0 no CNS 06h; the names stand in CNS 00h."""
    namespace = default_namespace()._replace(nguid=b"g" * 16, eui64=b"e" * 8)
    async with FakeTarget(version=0x00010201, namespace=namespace) as target, nvmeof.connect(target.url) as controller:
        found = await controller.namespace(1)
        assert (found.uuid, found.nguid, found.eui64) == (None, b"g" * 16, b"e" * 8)
        assert {capsule.cdw[0] & 0xFF for capsule in target.seen if capsule.code == IDENTIFY} == {0, 1}


async def test_a_controller_without_nvm_limits() -> None:
    refuse = failing(IDENTIFY, 0x4002)
    async with (
        FakeTarget(hook=lambda queue, capsule: capsule.cdw[0] & 0xFF == 6 and refuse(queue, capsule)) as target,
        nvmeof.connect(target.url) as controller,
    ):
        assert controller.nvm_limits.wzsl == 0


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_orderly_shutdown(served: Served) -> None:
    async with nvmeof.connect(served.url, io_queues=3) as controller:
        assert len(served.target.connections) == 4
    assert controller.closed == "closed by this host"
    with pytest.raises(TransportError, match="not sent: closed by this host"):
        await controller.identify(1)


async def test_queues_are_disconnected_where_that_is_possible() -> None:
    for ofcs, codes in ((1, [CONNECT, DISCONNECT]), (0, [CONNECT])):
        async with FakeTarget(identity=default_identity()._replace(ofcs=ofcs)) as target:
            async with nvmeof.connect(target.url):
                pass
            assert target.codes(1) == codes
            assert target.io(CONNECT)[0].cdw[1] >> 16 == (4 | 8 if ofcs else 4)
            assert target.cc >> 14 & 3 == 1


@pytest.mark.parametrize("code", [PROPERTY_SET, PROPERTY_GET, DISCONNECT])
async def test_a_shutdown_that_is_not_answered(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(controller_module, "SHUTDOWN_SECONDS", -0.7)
    async with FakeTarget(identity=default_identity()._replace(ofcs=1)) as target:
        async with nvmeof.connect(target.url) as controller:
            target.hook = never(code)
        assert controller.closed == "closed by this host"


async def test_a_shutdown_that_is_refused() -> None:
    async with FakeTarget() as target, nvmeof.connect(target.url):
        target.hook = failing(PROPERTY_SET, 6)


async def test_a_target_that_closes_at_shutdown() -> None:
    """nvmet closes the sockets on its own account."""

    def close(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code == PROPERTY_SET:
            for each in queue.target.queues:
                each.transport.close()
        return capsule.code == PROPERTY_SET

    async with FakeTarget() as target:
        async with nvmeof.connect(target.url, io_queues=2) as controller:
            target.hook = close
            events = controller.events()
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_io_in_flight_at_close() -> None:
    async with FakeTarget(hook=never(READ)) as target:
        async with nvmeof.connect(target.url, queue_depth=2) as controller:
            namespace = await controller.namespace(1)
            reads = [asyncio.create_task(namespace.read(0, 512)) for _ in range(5)]
            await asyncio.sleep(0.01)
        for read in reads:
            with pytest.raises(ConnectionLost, match="closed by this host"):
                await read


async def test_an_exception_in_the_body_is_kept() -> None:
    async with FakeTarget() as target:
        with pytest.raises(KeyError, match="body"):
            async with nvmeof.connect(target.url):
                raise KeyError("body")
        assert target.cc >> 14 & 3 == 1


async def test_cancelled_during_shutdown() -> None:
    async with FakeTarget() as target:
        target.hook = lambda queue, capsule: capsule.code == PROPERTY_SET and bool(target.cc & 1)

        async def run() -> None:
            async with nvmeof.connect(target.url, io_queues=2):
                pass

        task = asyncio.create_task(run())
        async with asyncio.timeout(5):
            while target.codes().count(PROPERTY_SET) < 3:
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            while target.queues:
                await asyncio.sleep(0)


@pytest.mark.parametrize("queue", [0, 1, 2])
async def test_one_lost_connection_ends_all(queue: int) -> None:
    async with FakeTarget(hook=never(READ, 0x77)) as target:
        async with nvmeof.connect(target.url, io_queues=2) as controller:
            namespace = await controller.namespace(1)
            tasks = [asyncio.create_task(namespace.read(0, 512)) for _ in range(4)]
            tasks += [asyncio.create_task(controller.admin(0x77))]  # type: ignore[arg-type]
            await asyncio.sleep(0.01)
            target.queues[queue].transport.abort()
            for task in tasks:
                with pytest.raises(ConnectionLost, match=r"closed the connection|reset"):
                    await task
            with pytest.raises(TransportError, match="not sent") as caught:
                await namespace.read(0, 512)
            assert not isinstance(caught.value, ConnectionLost)
            assert "closed the connection" in controller.closed or "reset" in controller.closed
        async with asyncio.timeout(5):
            while target.queues:
                await asyncio.sleep(0)


async def test_an_io_command_without_an_answer() -> None:
    async with (
        FakeTarget(hook=never(FLUSH)) as target,
        nvmeof.open_namespace(target.namespace_url, io_timeout=0.3) as ns,
    ):
        with pytest.raises(ConnectionLost, match="was not answered in time"):
            await ns.flush()


async def test_a_term_req_from_the_target() -> None:
    def terminate(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code == WRITE:
            queue.transport.write(c2h_term_req(4, 16))
        return capsule.code == WRITE

    async with FakeTarget(hook=terminate) as target, nvmeof.open_namespace(f"{target.url}/1") as namespace:
        with pytest.raises(ConnectionLost, match="terminated the connection: DATA_OUT_OF_RANGE"):
            await namespace.write(0, bytes(512))


async def test_the_target_is_told_what_it_did_wrong() -> None:
    """The H2CTermReq goes out although the association is over at once."""

    def wrong(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code == READ:
            queue.complete(capsule.cid)
        return capsule.code == READ

    seen = []

    class Listening(FakeQueue):
        def data_received(self, data: bytes) -> None:
            if data[:1] == b"\x02":
                seen.append(data)
                self.transport.close()
            else:
                super().data_received(data)

    async with FakeTarget(hook=wrong) as target:
        target.queue_class = Listening
        async with nvmeof.open_namespace(f"{target.url}/1") as namespace:
            with pytest.raises(ConnectionLost, match="broke the protocol"):
                await namespace.read(0, 512)
            async with asyncio.timeout(5):
                while not seen:
                    await asyncio.sleep(0.001)
    assert struct.unpack_from("<BBBBIH", seen[0])[5] == 2


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("nvme+tcp://h", "got no subsystem"),
        ("nvme+tcp://h/x/1", "got a namespace, wanted a subsystem"),
        ("http://h/x", "the scheme"),
    ],
)
async def test_urls_for_connect(url: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        async with nvmeof.connect(url):
            pass


async def test_urls_for_open_namespace() -> None:
    with pytest.raises(UsageError, match="got no namespace"):
        async with nvmeof.open_namespace("nvme+tcp://h/x"):
            pass


async def test_the_discovery_subsystem_is_at_its_own_port(served: Served) -> None:
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:8009"):
        async with nvmeof.connect("nvme+tcp://127.0.0.1/nqn.2014-08.org.nvmexpress.discovery"):
            pass
    async with nvmeof.connect(f"{served.address}/nqn.2014-08.org.nvmexpress.discovery") as controller:
        assert controller.io_queues == 0


async def test_both_loops_and_digests_with_our_target(served: Served) -> None:
    for header, data in ((False, True), (True, False), (True, True)):
        async with nvmeof.connect(served.url, header_digest=header, data_digest=data) as controller:
            assert await controller.namespaces()
            assert SUBNQN in controller.url
