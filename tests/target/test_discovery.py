"""The discovery service: what it lists to whom and where, the generation counter, events; by hand and over sockets."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from nvmeof.spec.fabrics import AddressFamily
from nvmeof.target.controller import Controller
from nvmeof.target.discovery import DiscoverySubsystem, reachable
from nvmeof.target.server import Target
from nvmeof.target.subsystem import Subsystem
from tests.protocol import wire
from tests.target.rawhost import HOST_ID, HOST_NQN, RawHost, connect_data, connect_sqe

DISCOVERY = "nqn.2014-08.org.nvmexpress.discovery"
DISK, SECRET = "nqn.2026-11.org.example:disk", "nqn.2026-11.org.example:secret"
DNR = 0x4000
GET_LOG, AER = 0x02, 0x0C
NVM, CURRENT = 2, 3


class Record(NamedTuple):
    """An entry as figure 264 lays it out."""

    trtype: int
    adrfam: int
    subtype: int
    treq: int
    portid: int
    cntlid: int
    asqsz: int
    eflags: int
    trsvcid: str
    subnqn: str
    traddr: str
    tsas: bytes


class Page(NamedTuple):
    genctr: int
    records: list[Record]


def decode(data: bytes) -> Page:
    genctr, numrec, recfmt = struct.unpack_from("<QQH", data)
    assert recfmt == 0
    assert not any(data[18:1024])
    assert len(data) == 1024 * (1 + numrec)
    records = []
    for at in range(1024, len(data), 1024):
        entry = data[at : at + 1024]
        assert not any(entry[12:32])
        assert not any(entry[64:256])
        texts = (entry[32:64].rstrip(b" "), entry[256:512].rstrip(b"\0"), entry[512:768].rstrip(b" "))
        numbers = struct.unpack_from("<BBBBHHHH", entry)
        records.append(Record._make([*numbers, *(text.decode() for text in texts), entry[768:].rstrip(b"\0")]))
    return Page(genctr, records)


@dataclass
class Port:
    host: str = "127.0.0.1"
    port: int = 4420
    advertised: tuple[str, int] | None = None
    discovery_only: bool = False

    @property
    def family(self) -> AddressFamily:
        return AddressFamily.IPV6 if ":" in self.host else AddressFamily.IPV4


@dataclass
class Served:
    """A target that is only looked at."""

    listeners: list[Port] = field(default_factory=lambda: [Port()])
    subsystems: dict[str, Subsystem] = field(default_factory=dict)

    def add(self, nqn: str, hosts: list[str] | None = None) -> Subsystem:
        subsystem = self.subsystems[nqn] = Subsystem(nqn, allowed_hosts=hosts)
        return subsystem


def controller_of(discovery: DiscoverySubsystem, local: str = "127.0.0.1", hostnqn: str = HOST_NQN) -> Controller:
    controller = Controller(discovery, len(discovery.controllers) + 1, HOST_ID, hostnqn, 0)
    admin: Any = SimpleNamespace(connection=SimpleNamespace(local_address=(local, 4420)))
    controller.admin = admin
    discovery.controllers[controller.cntlid] = controller
    return controller


def page_of(served: Served, local: str = "127.0.0.1", hostnqn: str = HOST_NQN) -> Page:
    discovery = DiscoverySubsystem(served)
    return decode(discovery.log_page(controller_of(discovery, local, hostnqn)))


def places(page: Page) -> list[tuple[int, int, str, str, str]]:
    return [(each.portid, each.subtype, each.subnqn, each.traddr, each.trsvcid) for each in page.records]


def test_every_subsystem_at_every_listener_and_the_service_itself() -> None:
    served = Served([Port(port=1), Port("::1", 2)])
    served.add(DISK)
    served.add(SECRET)
    page = page_of(served)
    assert places(page) == [
        (1, CURRENT, DISCOVERY, "127.0.0.1", "1"),
        (1, NVM, DISK, "127.0.0.1", "1"),
        (1, NVM, SECRET, "127.0.0.1", "1"),
        (2, CURRENT, DISCOVERY, "::1", "2"),
        (2, NVM, DISK, "::1", "2"),
        (2, NVM, SECRET, "::1", "2"),
    ]
    assert {each.adrfam for each in page.records if each.portid == 1} == {1}
    assert {each.adrfam for each in page.records if each.portid == 2} == {2}
    assert {(each.trtype, each.treq, each.cntlid, each.asqsz, each.tsas) for each in page.records} == {
        (3, 4, 0xFFFF, 128, b"")
    }
    assert {each.eflags for each in page.records if each.subtype == CURRENT} == {0b11}
    assert {each.eflags for each in page.records if each.subtype == NVM} == {0}


def test_a_host_sees_what_it_may_connect_to() -> None:
    served = Served()
    served.add(DISK)
    served.add(SECRET, ["nqn.2026-11.org.example:friend"])
    assert [each.subnqn for each in page_of(served).records] == [DISCOVERY, DISK]
    friend = page_of(served, hostnqn="nqn.2026-11.org.example:friend")
    assert [each.subnqn for each in friend.records] == [DISCOVERY, DISK, SECRET]


def test_a_listener_for_discovery_only() -> None:
    served = Served([Port(port=4420), Port(port=8009, discovery_only=True)])
    served.add(DISK)
    assert places(page_of(served)) == [
        (1, CURRENT, DISCOVERY, "127.0.0.1", "4420"),
        (1, NVM, DISK, "127.0.0.1", "4420"),
        (2, CURRENT, DISCOVERY, "127.0.0.1", "8009"),
    ]


@pytest.mark.parametrize(
    ("port", "local", "expected"),
    [
        (Port("192.0.2.1", 5), "192.0.2.9", ("192.0.2.1", 5)),
        (Port("0.0.0.0", 5), "192.0.2.9", ("192.0.2.9", 5)),
        (Port("::", 5), "2001:db8::9", ("2001:db8::9", 5)),
        (Port("::", 5), "fe80::9%eth0", ("fe80::9", 5)),
        (Port("fe80::1%eth0", 5), "fe80::9%eth0", ("fe80::1", 5)),
        (Port("::", 5), "192.0.2.9", None),
        (Port("0.0.0.0", 5), "2001:db8::9", None),
        (Port("0.0.0.0", 5, ("198.51.100.7", 6)), "192.0.2.9", ("198.51.100.7", 6)),
        (Port("127.0.0.1", 5, ("2001:db8::7", 6)), "127.0.0.1", ("2001:db8::7", 6)),
    ],
)
def test_the_address_a_host_is_sent_to(port: Port, local: str, expected: tuple[str, int] | None) -> None:
    assert reachable(port, local) == expected
    served = Served([port])
    listed = [(each.traddr, int(each.trsvcid), each.adrfam) for each in page_of(served, local).records]
    assert listed == ([] if expected is None else [(*expected, 2 if ":" in expected[0] else 1)])


def test_the_generation_counts_changes_and_tells_of_them() -> None:
    served = Served()
    discovery = DiscoverySubsystem(served)
    controller = controller_of(discovery)
    told: list[int] = []
    controller.events.complete = lambda cid, status, dw0: told.append(dw0)
    for cid in range(4):
        controller.events.request(cid)

    def generation() -> int:
        controller.events.cleared(0x70)
        return decode(discovery.log_page(controller)).genctr

    first = generation()
    assert generation() == first
    told.clear()
    disk = served.add(DISK)
    discovery.tick(1.0)
    assert told == [0x70F002]
    assert generation() == first + 1
    disk.allowed_hosts = {"nqn.2026-11.org.example:friend"}
    assert generation() == first + 2
    served.listeners.append(Port(port=1))
    assert generation() == first + 3
    assert told == [0x70F002] * 3
    assert generation() == first + 3
    assert len(told) == 3


def test_nothing_served() -> None:
    assert page_of(Served([])).records == []


# --- over sockets -----------------------------------------------------------------------------------------------------


@dataclass
class Live:
    target: Target
    host: RawHost
    port: int

    async def log(self, length: int, offset: int = 0, *, rae: bool = False, lid: int = 0x70) -> int:
        """Status of Get Log Page; the data are in ``host.data``."""
        return await self.host.status(
            GET_LOG, nsid=0, sgl=(0, length, 0x5A), cdw10=lid | rae << 15 | (length // 4 - 1) << 16, cdw12=offset
        )

    async def page(self) -> Page:
        assert await self.log(20) == 0
        (numrec,) = struct.unpack_from("<Q", self.host.data, 8)
        assert await self.log(1024 * (1 + numrec)) == 0
        return decode(self.host.data)


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    async with Target() as target:
        target.add_subsystem(Subsystem(DISK))
        listener = await target.listen("0.0.0.0", 0)
        host = await RawHost.admin(("127.0.0.1", listener.port), DISCOVERY, kato=60_000)
        yield Live(target, host, listener.port)
        await host.close()


async def test_read_as_nvme_cli_reads_it(live: Live) -> None:
    for number in range(5):
        live.target.add_subsystem(Subsystem(f"{DISK}-{number}"))
    assert await live.log(20) == 0
    genctr, numrec = struct.unpack_from("<QQ", live.host.data)
    assert numrec == 7
    data = b""
    for offset in range(0, 1024 * (1 + numrec), 4096):
        assert await live.log(min(4096, 1024 * (1 + numrec) - offset), offset) == 0
        data += live.host.data
    assert await live.log(20) == 0
    assert struct.unpack_from("<QQ", live.host.data) == (genctr, numrec)
    page = decode(data)
    assert page == await live.page()
    assert {(each.traddr, each.trsvcid) for each in page.records} == {("127.0.0.1", str(live.port))}
    assert await live.log(4, 1024 * (1 + numrec) + 4) == 0x02 | DNR


async def test_a_change_is_told_once_until_the_page_is_read(live: Live) -> None:
    before = (await live.page()).genctr
    live.host.send(live.host.wire.capsule(wire.sqe(AER, 0x71, nsid=0)))
    live.host.send(live.host.wire.capsule(wire.sqe(AER, 0x72, nsid=0)))
    assert await live.log(20) == 0
    live.target.add_subsystem(Subsystem(SECRET))
    answer = await live.host.response()
    assert (answer[0], answer[4], answer[5]) == (0x70F002, 0x71, 0)
    live.target.add_subsystem(Subsystem(f"{SECRET}-2"))
    page = await live.page()
    assert page.genctr == before + 2
    assert [each.subnqn for each in page.records] == [DISCOVERY, DISK, SECRET, f"{SECRET}-2"]
    live.target.add_subsystem(Subsystem(f"{SECRET}-3"))
    answer = await live.host.response()
    assert (answer[0], answer[4]) == (0x70F002, 0x72)


async def test_logs_that_belong_to_namespaces_are_refused(live: Live) -> None:
    assert await live.log(1024, lid=0x00) == 0
    supported = {lid for lid, dword in enumerate(struct.unpack("<256I", live.host.data)) if dword}
    assert supported == {0x00, 0x01, 0x05, 0x12, 0x13, 0x70}
    for lid in (0x02, 0x03, 0x04):
        assert await live.log(512, lid=lid) == 0x109 | DNR
    assert await live.log(4096, lid=0x05) == 0
    dwords = struct.unpack("<1024I", live.host.data)
    assert {opcode for opcode, dword in enumerate(dwords) if dword} == {0x02, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18}


async def test_a_host_that_is_refused_later_no_longer_sees_the_subsystem(live: Live) -> None:
    assert [each.subnqn for each in (await live.page()).records] == [DISCOVERY, DISK]
    live.target.subsystems[DISK].allowed_hosts = set()
    assert [each.subnqn for each in (await live.page()).records] == [DISCOVERY]


async def test_the_discovery_port_serves_nothing_else(live: Live) -> None:
    listener = await live.target.listen("127.0.0.1", 0, discovery_only=True)
    host = await RawHost.admin(("127.0.0.1", listener.port), DISCOVERY)
    assert await host.status(GET_LOG, nsid=0, sgl=(0, 20, 0x5A), cdw10=0x70 | 4 << 16) == 0
    await host.close()
    host = await RawHost.open(("127.0.0.1", listener.port))
    assert (await host.command(connect_sqe(), connect_data(DISK)))[5] == 0x182 | DNR
    await host.close()
