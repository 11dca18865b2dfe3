"""Admin commands: what goes over the wire, and what is refused before."""

from __future__ import annotations

from typing import Any

import pytest

import nvmeof
from nvmeof.errors import StatusError, TransportError, UsageError
from nvmeof.spec.command import NSID_ALL, Cns, FeatureId, LogPage
from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.logpage import encode_incarnations
from tests.initiator.conftest import SUBNQN, Served
from tests.initiator.fake_target import GET_LOG_PAGE, Capsule, FakeQueue, FakeTarget, default_identity
from tests.initiator.test_controller import failing


async def test_identify(served: Served) -> None:
    async with nvmeof.connect(served.url) as controller:
        data = await controller.identify(Cns.CONTROLLER)
        assert IDENTIFY_CONTROLLER.decode(data) == controller.identity
        assert controller.identity.subnqn.rstrip(b"\0").decode() == SUBNQN
        assert len(await controller.identify(Cns.NAMESPACE, 2)) == 4096
        with pytest.raises(StatusError, match="Identify CNS 00h: Invalid Namespace or Format") as caught:
            await controller.identify(Cns.NAMESPACE, 0)
        assert caught.value.dnr


async def test_features(served: Served) -> None:
    async with nvmeof.connect(served.url) as controller:
        dw0, data = await controller.get_features(FeatureId.VOLATILE_WRITE_CACHE)
        assert (dw0 & 1, data) == (1, b"")
        await controller.set_features(FeatureId.TIMESTAMP, 0, data=(123_456_789).to_bytes(8, "little"))
        _, data = await controller.get_features(FeatureId.TIMESTAMP, length=8)
        assert len(data) == 8
        assert int.from_bytes(data[:6], "little") - 123_456_789 < 60_000
        capabilities, _ = await controller.get_features(FeatureId.TIMESTAMP, select=3)
        assert capabilities & 4
        _, data = await controller.get_features(FeatureId.TIMESTAMP, length=4096)
        assert len(data) == 8
        with pytest.raises(StatusError, match="Set Features 07h"):
            await controller.set_features(FeatureId.NUMBER_OF_QUEUES, 0xFFFF)


async def test_log_pages(served: Served) -> None:
    async with nvmeof.connect(served.url) as controller:
        smart = await controller.get_log_page(LogPage.SMART, 512)
        assert len(smart) == 512
        assert (await controller.get_log_page(LogPage.SMART, 64, offset=448))[:4] == smart[448:452]
        with pytest.raises(StatusError, match="Get Log Page F0h: Invalid Log Page"):
            await controller.get_log_page(0xF0, 4)


async def test_a_large_log_page_is_split_at_mdts() -> None:
    async with FakeTarget(identity=default_identity()._replace(mdts=1)) as target:
        async with nvmeof.connect(target.url) as controller:
            assert controller.transfer_bytes_max == 8192
            data = await controller.get_log_page(0xC0, 20_000, offset=4, lsp=3, lsi=5)
        assert data == bytes((4 + index) & 0xFF for index in range(20_000))
        parts = [capsule for capsule in target.seen if capsule.code == GET_LOG_PAGE]
        assert [(part.cdw[2], part.length) for part in parts] == [(4, 8192), (8196, 8192), (16388, 3616)]
        assert [part.cdw[0] >> 15 & 1 for part in parts] == [1, 1, 0]
        assert {(part.nsid, part.cdw[0] & 0x7FFF, part.cdw[1] >> 16) for part in parts} == {(NSID_ALL, 0x3C0, 5)}
        assert [(part.cdw[0] >> 16 | part.cdw[1] << 16) & 0xFFFF for part in parts] == [2047, 2047, 903]


@pytest.mark.parametrize("arguments", [(1, 0), (1, -4), (1, 6), (1, 4, 2), (1, 4, -4)])
async def test_bad_log_page_arguments(arguments: tuple[Any, ...]) -> None:
    async with FakeTarget() as target, nvmeof.connect(target.url) as controller:
        with pytest.raises(UsageError, match="log page: got"):
            await controller.get_log_page(*arguments)


async def test_property_get(served: Served) -> None:
    async with nvmeof.connect(served.url) as controller:
        assert await controller.property_get(0) & 0xFFFF == controller.capabilities.mqes
        assert (await controller.property_get(0x14)) & 1
        assert (await controller.property_get(0x1C)) & 1
        with pytest.raises(StatusError, match="Property Get 0x4"):
            await controller.property_get(4)


async def test_any_command(served: Served) -> None:
    async with nvmeof.connect(served.url) as controller:
        completion = await controller.admin(0x06, cdw10=1, data_in=4096)
        assert completion.data == await controller.identify(1)
        assert await controller.admin(0x18) == nvmeof.Completion()
        completion = await controller.admin(0x08, cdw10=0x7777 << 16)
        assert completion.dw0 & 1
        with pytest.raises(StatusError, match="opcode C0h: Invalid Command Opcode"):
            await controller.admin(0xC0, 1, cdw2=2, cdw3=3)
        with pytest.raises(StatusError, match="Format Nvm: "):
            await controller.admin(0x80, 1)
        with pytest.raises(StatusError, match="Fabrics command 77h: "):
            await controller.admin(0x7F, 0x77)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"opcode": 256}, "opcode 256"),
        ({"opcode": 6, "cdw10": -1}, "32 bits each"),
        ({"opcode": 6, "cdw15": 1 << 32}, "32 bits each"),
        ({"opcode": 6, "data_in": 4, "data_out": b"x"}, "at most one of them"),
        ({"opcode": 6, "data_in": -1}, "got -1 bytes"),
        ({"opcode": 6, "data_in": (1 << 20) + 1}, "got 1048577 bytes"),
        ({"opcode": 6, "data_out": bytes((1 << 20) + 1)}, "got 1048577 bytes"),
    ],
)
async def test_bad_arguments(arguments: dict[str, Any], text: str) -> None:
    async with FakeTarget() as target, nvmeof.connect(target.url) as controller:
        with pytest.raises(UsageError) as caught:
            await controller.admin(**arguments)
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("method", "arguments", "text"),
    [
        ("identify", {"cns": -1}, "identify: cns: got -1, wanted 0 to 0xff"),
        ("identify", {"cns": 0, "nsid": 1 << 32}, "identify: nsid: got 4294967296, wanted 0 to 0xffffffff"),
        ("identify", {"cns": 0, "cntid": 1 << 16}, "cntid: got 65536"),
        ("identify", {"cns": 0, "csi": "0"}, "csi: got '0'"),
        ("get_log_page", {"lid": 2, "length": 512, "nsid": -1}, "log page: nsid: got -1"),
        ("get_log_page", {"lid": 256, "length": 512}, "lid: got 256"),
        ("get_log_page", {"lid": 2, "length": 512, "lsp": 128}, "lsp: got 128"),
        ("get_log_page", {"lid": 2, "length": 512, "lsi": 1 << 16}, "lsi: got 65536"),
        ("get_log_page", {"lid": 2, "length": 1 << 35}, "length: got"),
        ("get_log_page", {"lid": 2, "length": 4, "offset": (1 << 64) - 4}, "end: got"),
        ("get_features", {"fid": 7, "select": 9}, "get features: select: got 9, wanted 0 to 0x7"),
        ("get_features", {"fid": 1 << 20}, "fid: got"),
        ("get_features", {"fid": 7, "length": -1}, "length: got -1, wanted 0 to"),
        ("set_features", {"fid": 7, "value": 1 << 33}, "set features: value: got"),
        ("set_features", {"fid": 7, "value": 0, "data": bytes((1 << 20) + 1)}, "got 1048577 bytes"),
        ("property_get", {"offset": 1 << 40}, "property get: offset: got"),
        ("property_set", {"offset": 0x1000, "value": 1}, "property set: offset: got 4096, wanted one of 0x0, 0x8"),
        ("property_set", {"offset": 0x14, "value": 1 << 32}, "property set: value: got"),
        ("admin", {"opcode": 6, "cdw10": "1"}, "admin command: got"),
        ("namespace", {"nsid": "1"}, "namespace: got '1', wanted 1 to"),
    ],
)
async def test_numbers_that_fit_no_field(method: str, arguments: dict[str, Any], text: str) -> None:
    async with FakeTarget() as target, nvmeof.connect(target.url) as controller:
        with pytest.raises(UsageError) as caught:
            await getattr(controller, method)(**arguments)
        assert text in str(caught.value)


async def test_data_out_is_a_copy_and_arrives() -> None:
    async with FakeTarget() as target, nvmeof.connect(target.url) as controller:
        data = bytearray(b"abcd")
        await controller.admin(0xC1, 1, cdw12=5, data_out=data)
        capsule = target.seen[-1]
        assert (capsule.code, capsule.nsid, capsule.cdw[2], capsule.data) == (0xC1, 1, 5, b"abcd")


async def test_less_data_than_identify_needs_is_a_protocol_error() -> None:
    """Otherwise the rest of the structure would be zeroes that the controller never sent."""

    def short(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code == 6 and capsule.cdw[0] == 0x77:
            queue.send(capsule, bytes(100))
            return True
        return False

    async with FakeTarget(hook=short) as target, nvmeof.connect(target.url) as controller:
        with pytest.raises(nvmeof.ConnectionLost, match=r"broke the protocol: .* 100 of 4096 bytes"):
            await controller.identify(0x77)


async def test_incarnation(served: Served) -> None:
    async with nvmeof.connect(served.url) as controller:
        assert [await controller.incarnation(nsid) for nsid in (1, 2)] == [each.incarnation for each in served.volumes]
        served.volumes[1].incarnation = b"another one ...."
        assert await controller.incarnation(2) == b"another one ...."
        with pytest.raises(StatusError, match="Get Log Page C0h: Invalid Namespace or Format"):
            await controller.incarnation(3)


async def test_no_incarnation_in_the_page_of_another_vendor() -> None:
    async with FakeTarget() as target, nvmeof.connect(target.url) as controller:
        assert await controller.incarnation(1) is None


@pytest.mark.parametrize(("status", "none"), [(0x4109, True), (0x4002, True), (0x4001, True), (0x400B, False)])
async def test_no_incarnation_where_there_is_no_such_page(status: int, none: bool) -> None:
    async with (
        FakeTarget(hook=failing(GET_LOG_PAGE, status)) as target,
        nvmeof.connect(target.url) as controller,
    ):
        if none:
            assert await controller.incarnation(1) is None
        else:
            with pytest.raises(StatusError):
                await controller.incarnation(1)


@pytest.mark.parametrize("page", [encode_incarnations({2: bytes(16)}), b"nvmeof incarnate" + bytes(496)])
async def test_an_incarnation_page_that_makes_no_sense(page: bytes) -> None:
    def hook(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code != GET_LOG_PAGE:
            return False
        queue.send(capsule, page)
        queue.complete(capsule.cid)
        return True

    async with FakeTarget(hook=hook) as target, nvmeof.connect(target.url) as controller:
        with pytest.raises(TransportError, match="log page C0h"):
            await controller.incarnation(1)
