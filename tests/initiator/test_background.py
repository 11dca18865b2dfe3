"""Keep Alive and asynchronous events."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import nvmeof
from nvmeof.engine.file_volume import FileVolume
from nvmeof.limits import HOST_ASYNC_EVENTS_MAX, HOST_EVENTS_KEPT_MAX
from nvmeof.spec.command import LogPage
from nvmeof.spec.identify_lists import decode_namespace_list
from tests.initiator.conftest import Served
from tests.initiator.fake_target import (
    EVENT_REQUEST,
    KEEP_ALIVE,
    SET_FEATURES,
    Capsule,
    FakeQueue,
    FakeTarget,
    default_identity,
)

NOTICE, NAMESPACE_CHANGED = 2, 0


@pytest.mark.parametrize(("aerl", "count"), [(0, 1), (1, 2), (255, HOST_ASYNC_EVENTS_MAX)])
async def test_requests_are_kept_outstanding(aerl: int, count: int) -> None:
    async with FakeTarget(identity=default_identity()._replace(aerl=aerl)) as target:
        async with nvmeof.connect(target.url) as controller:
            await controller.identify(1)
            assert len(target.admin.events) == count
            events = controller.events()
            for number in range(3):
                target.admin.event(NOTICE, number, 4)
                assert await anext(events) == nvmeof.Event(NOTICE, number, 4)
                await controller.identify(1)
                assert len(target.admin.events) == count
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_what_is_asked_for() -> None:
    for oaes, value in ((0, 0x1F), (0xFFFF_FFFF, 0x8000_0B1F)):
        async with FakeTarget(identity=default_identity()._replace(oaes=oaes)) as target, nvmeof.connect(target.url):
            asked = [capsule.cdw for capsule in target.seen if capsule.code == SET_FEATURES and capsule.cdw[0] == 0x0B]
            assert [cdw[1] for cdw in asked] == [value]


async def test_a_controller_without_events(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code == EVENT_REQUEST or (capsule.code == SET_FEATURES and capsule.cdw[0] == 0x0B):
            queue.complete(capsule.cid, 0x4002)
            return True
        return False

    async with FakeTarget(hook=refuse) as target:
        async with nvmeof.connect(target.url) as controller:
            await controller.identify(1)
            assert target.codes().count(EVENT_REQUEST) == 2
            waiting = asyncio.ensure_future(anext(controller.events()))
            await asyncio.sleep(0)
        with pytest.raises(StopAsyncIteration):
            await waiting
    assert "Set Features 0Bh: Invalid Field" in caplog.text


async def test_events_are_kept_but_not_without_bound() -> None:
    async with FakeTarget() as target, nvmeof.connect(target.url) as controller:
        await controller.identify(1)
        for number in range(HOST_EVENTS_KEPT_MAX + 10):
            target.admin.event(7, number & 0xFF, number >> 8)
            while not target.admin.events:
                await asyncio.sleep(0)
        await controller.identify(1)
        events = controller.events()
        found = [await anext(events) for _ in range(HOST_EVENTS_KEPT_MAX)]
        assert [event.info | event.log_page << 8 for event in found] == list(range(10, HOST_EVENTS_KEPT_MAX + 10))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 0.01)


async def test_a_lost_association_ends_the_events() -> None:
    async with FakeTarget() as target, nvmeof.connect(target.url) as controller:
        waiting = asyncio.ensure_future(anext(controller.events()))
        await asyncio.sleep(0)
        target.admin.transport.abort()
        with pytest.raises(nvmeof.ConnectionLost, match=r"the controller closed the connection|reset"):
            await waiting


async def test_our_target_announces_a_new_namespace(served: Served, tmp_path: Path) -> None:
    async with nvmeof.connect(served.url) as controller, asyncio.timeout(5):
        served.subsystem.add_namespace(await FileVolume.open(tmp_path / "new.img", size=1 << 20, block_size=512))
        event = await anext(controller.events())
        assert event == nvmeof.Event(NOTICE, NAMESPACE_CHANGED, LogPage.CHANGED_NAMESPACES)
        assert decode_namespace_list(await controller.get_log_page(event.log_page, 4096)) == [3]
        assert (await controller.namespace(3)).size == 1 << 20


async def count_keep_alives(target: FakeTarget, seconds: float, busy: bool, controller: nvmeof.Controller) -> int:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        if busy:
            await controller.identify(1)
        await asyncio.sleep(0.02)
    return target.codes().count(KEEP_ALIVE)


@pytest.mark.slow
@pytest.mark.parametrize("traffic_based", [False, True])
@pytest.mark.parametrize("busy", [False, True])
async def test_keep_alive(traffic_based: bool, busy: bool) -> None:
    identity = default_identity()._replace(ctratt=0x40 if traffic_based else 0)
    async with FakeTarget(identity=identity) as target:
        async with nvmeof.connect(target.url, keep_alive=0.8) as controller:
            assert target.seen[0].cdw[2] == 800
            sent = await count_keep_alives(target, 1.4, busy, controller)
        if traffic_based and busy:
            assert sent == 0
        elif traffic_based:
            assert 2 <= sent <= 7
        else:
            assert 2 <= sent <= 4


async def test_no_keep_alive() -> None:
    async with FakeTarget() as target, nvmeof.connect(target.url, keep_alive=0):
        assert target.seen[0].cdw[2] == 0
        await asyncio.sleep(0.1)
        assert KEEP_ALIVE not in target.codes()


async def test_a_refused_keep_alive_ends_the_association() -> None:
    def refuse(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code == KEEP_ALIVE:
            queue.complete(capsule.cid, 0x4001)
        return capsule.code == KEEP_ALIVE

    async with FakeTarget(hook=refuse) as target, nvmeof.connect(target.url, keep_alive=0.5) as controller:
        with pytest.raises(nvmeof.ConnectionLost, match="Keep Alive was refused: Invalid Command Opcode"):
            await anext(controller.events())
        assert controller.closed


async def test_an_unanswered_keep_alive_ends_the_association() -> None:
    async with (
        FakeTarget(hook=lambda queue, capsule: capsule.code == KEEP_ALIVE) as target,
        nvmeof.connect(target.url, keep_alive=0.5, io_timeout=1.0) as controller,
    ):
        async with asyncio.timeout(5):
            with pytest.raises(nvmeof.ConnectionLost, match="was not answered in time"):
                await anext(controller.events())
        with pytest.raises(nvmeof.TransportError, match="not sent"):
            await controller.identify(1)


@pytest.mark.slow
async def test_our_target_is_kept_alive(served: Served) -> None:
    async with nvmeof.connect(served.url, keep_alive=1.0) as controller:
        await asyncio.sleep(4.0)
        await controller.identify(1)
