"""The discovery log: our target's, and what a bad one may hold."""

from __future__ import annotations

from typing import Any

import pytest

import nvmeof
from nvmeof.errors import TransportError, UsageError
from nvmeof.limits import DISCOVERY_ATTEMPTS_MAX, DISCOVERY_ENTRIES_MAX
from nvmeof.spec.fabrics import (
    DISCOVERY_HEADER,
    DISCOVERY_NQN,
    AddressFamily,
    DiscoveryHeader,
    DiscoveryLogEntry,
    SubsystemType,
    tcp_entry,
)
from tests.initiator.conftest import SUBNQN, Served
from tests.initiator.fake_target import GET_LOG_PAGE, Capsule, FakeQueue, FakeTarget, default_identity


def entry(number: int, **fields: Any) -> DiscoveryLogEntry:
    made = tcp_entry(subnqn=f"nqn.2026-11.org:{number}", address="192.0.2.1", port=4420, family=AddressFamily.IPV4)
    return made._replace(**fields)


def discovery_target(**fields: object) -> FakeTarget:
    target = FakeTarget(identity=default_identity()._replace(cntrltype=2, kas=0, mdts=1))
    for name, value in fields.items():
        setattr(target, name, value)
    return target


def url_of(target: FakeTarget) -> str:
    return f"nvme+tcp://127.0.0.1:{target.port}"


async def test_our_target(served: Served) -> None:
    entries = await nvmeof.discover(served.address)
    (disk,) = [each for each in entries if each.subtype == SubsystemType.NVM]
    assert disk.subnqn == SUBNQN
    assert disk.url == served.url
    assert (disk.traddr, disk.trsvcid, disk.adrfam, disk.sectype) == ("127.0.0.1", str(served.port), 1, 0)
    async with nvmeof.connect(disk.url):
        pass
    assert await nvmeof.discover(f"{served.address}/{DISCOVERY_NQN}", data_digest=True) == entries


async def test_every_entry_in_pieces() -> None:
    log = [entry(number, portid=number) for number in range(50)]
    async with discovery_target(discovery=log) as target:
        entries = await nvmeof.discover(url_of(target), io_queues=9, keep_alive=5.0)
        assert [each.portid for each in entries] == list(range(50))
        assert target.connections == 1
        assert target.seen[0].cdw[2] == 0
        pages = [capsule for capsule in target.seen if capsule.code == GET_LOG_PAGE]
        assert [(page.cdw[2], page.length) for page in (pages[0], pages[1], pages[-1])] == [
            (0, 1024), (1024, 8192), (0, 1024)
        ]  # fmt: skip


async def test_an_empty_log() -> None:
    async with discovery_target() as target:
        assert await nvmeof.discover(url_of(target)) == []


async def test_foreign_entries_and_referrals() -> None:
    log = [
        entry(1, trtype=1),
        entry(2, trsvcid=b"none".ljust(32)),
        entry(3, subtype=SubsystemType.REFERRAL),
        entry(4, traddr=b"fe80::1".ljust(256, b"\0")),
    ]
    async with discovery_target(discovery=log) as target:
        entries = await nvmeof.discover(url_of(target))
    assert [each.url for each in entries] == [
        "", "", "nvme+tcp://192.0.2.1:4420", "nvme+tcp://[fe80::1]:4420/nqn.2026-11.org:4"
    ]  # fmt: skip


async def test_a_log_that_changes_is_read_again() -> None:
    reads = 0

    def growing(queue: FakeQueue, capsule: Capsule) -> bool:
        nonlocal reads
        if capsule.code == GET_LOG_PAGE and not capsule.cdw[2]:
            reads += 1
            if reads in (2, 3):
                target.genctr += 1
                target.discovery.append(entry(reads))
        return False

    async with discovery_target(discovery=[entry(1)], hook=growing) as target:
        entries = await nvmeof.discover(url_of(target))
    assert [each.subnqn for each in entries] == ["nqn.2026-11.org:1", "nqn.2026-11.org:2", "nqn.2026-11.org:3"]
    assert reads == 4


async def test_a_log_that_never_rests() -> None:
    def restless(queue: FakeQueue, capsule: Capsule) -> bool:
        queue.target.genctr += capsule.code == GET_LOG_PAGE
        return False

    async with discovery_target(discovery=[entry(1)], hook=restless) as target:
        with pytest.raises(TransportError, match=f"changed {DISCOVERY_ATTEMPTS_MAX} times"):
            await nvmeof.discover(url_of(target))


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (DiscoveryHeader(1, DISCOVERY_ENTRIES_MAX + 1), f"with {DISCOVERY_ENTRIES_MAX + 1} entries"),
        (DiscoveryHeader(1, (1 << 64) - 1), "entries"),
        (DiscoveryHeader(1, 0, 1), "of format 1"),
    ],
)
async def test_a_header_that_is_refused(header: DiscoveryHeader, text: str) -> None:
    def answer(queue: FakeQueue, capsule: Capsule) -> bool:
        if capsule.code == GET_LOG_PAGE:
            queue.send(capsule, DISCOVERY_HEADER.encode(header))
        return capsule.code == GET_LOG_PAGE

    async with discovery_target(hook=answer) as target:
        with pytest.raises(TransportError, match=text):
            await nvmeof.discover(url_of(target))


async def test_an_entry_without_a_name() -> None:
    async with discovery_target(discovery=[entry(1, subnqn=bytes(256))]) as target:
        with pytest.raises(TransportError, match="discovery log: NQN field: empty"):
            await nvmeof.discover(url_of(target))


async def test_urls() -> None:
    with pytest.raises(UsageError, match="got a namespace"):
        await nvmeof.discover("nvme+tcp://h/x/1")
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:8009: "):
        await nvmeof.discover("nvme+tcp://127.0.0.1")
