"""A scripted NVMe/TCP target on a real socket: limits, habits and faults that our own target does not have."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from nvmeof.spec.command import DATASET_RANGE, DatasetRange
from nvmeof.spec.fabrics import DISCOVERY_ENTRY, DISCOVERY_HEADER, DiscoveryHeader, DiscoveryLogEntry, encode_nqn
from nvmeof.spec.identify import (
    IDENTIFY_CONTROLLER,
    NVM_IDENTIFY_CONTROLLER,
    IdentifyController,
    NvmIdentifyController,
)
from nvmeof.spec.identify_lists import NamespaceIdentifiers, encode_namespace_list
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE, IdentifyNamespace, LbaFormat, encode_lba_formats
from tests.protocol.wire import Wire
from tests.protocol.wire_controller import c2h_data, capsule_resp, icresp, r2t

SUBNQN = "nqn.2026-11.org.example:fake"
CNTLID = 5
FLUSH, WRITE, READ, WRITE_ZEROES, DATASET_MANAGEMENT = 0, 1, 2, 8, 9
GET_LOG_PAGE, IDENTIFY, SET_FEATURES, GET_FEATURES, EVENT_REQUEST, KEEP_ALIVE = 2, 6, 9, 10, 12, 24
CONNECT, PROPERTY_GET, PROPERTY_SET, DISCONNECT = 0x7F01, 0x7F04, 0x7F00, 0x7F08
"""Opcodes of admin commands; Fabrics commands as 7Fh and FCTYPE."""
CAP_DEFAULT = 1 << 37 | 1 << 24 | 1 << 16 | 127


@dataclass(frozen=True)
class Capsule:
    """One command. ``data`` is its payload, in the capsule or after an R2T."""

    qid: int
    code: int
    cid: int
    nsid: int
    length: int
    in_capsule: bool
    cdw: tuple[int, ...]
    """Command dwords 10 to 15."""
    data: bytes = b""

    @property
    def block(self) -> int:
        return self.cdw[0] | self.cdw[1] << 32

    @property
    def blocks(self) -> int:
        return (self.cdw[2] & 0xFFFF) + 1


Hook = Callable[["FakeQueue", Capsule], bool]
"""Sees every command before it is executed; True: it is dealt with."""


@dataclass
class FakeTarget:
    """``async with FakeTarget(...) as target``; ``seen`` is every command, ``queues`` every connection alive."""

    cap: int = CAP_DEFAULT
    version: int = 0x00020000
    identity: IdentifyController = field(default_factory=lambda: default_identity())
    limits: NvmIdentifyController = field(default_factory=NvmIdentifyController)
    namespace: IdentifyNamespace = field(default_factory=lambda: default_namespace())
    names: NamespaceIdentifiers = field(default_factory=lambda: NamespaceIdentifiers(nguid=bytes(range(16)), csi=0))
    nsids: list[int] = field(default_factory=lambda: [1])
    digest_mask: int = 3
    cpda: int = 0
    queues_granted: int = 4
    discovery: list[DiscoveryLogEntry] = field(default_factory=list)
    genctr: int = 1
    hook: Hook = lambda queue, capsule: False
    ready_after: int = 0
    """Looks at CSTS before it says ready."""
    block_size: int = 512

    def __post_init__(self) -> None:
        self.memory = bytearray(self.namespace.nsze * self.block_size)
        self.seen: list[Capsule] = []
        self.queues: list[FakeQueue] = []
        self.connections = 0
        self.cc = 0
        self.queue_class: type[FakeQueue] = FakeQueue

    async def __aenter__(self) -> FakeTarget:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: self.queue_class(self), "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for queue in list(self.queues):
            queue.transport.abort()
        while self.queues:
            await asyncio.sleep(0)

    @property
    def url(self) -> str:
        return f"nvme+tcp://127.0.0.1:{self.port}/{SUBNQN}"

    @property
    def namespace_url(self) -> str:
        return f"{self.url}/1"

    @property
    def admin(self) -> FakeQueue:
        return self.queues[0]

    def codes(self, qid: int | None = None) -> list[int]:
        return [capsule.code for capsule in self.seen if qid is None or capsule.qid == qid]

    def io(self, code: int) -> list[Capsule]:
        return [capsule for capsule in self.seen if capsule.qid and capsule.code == code]


def default_identity() -> IdentifyController:
    return IdentifyController(cntlid=CNTLID, kas=10, maxcmd=128, nn=4, ioccsz=4 + 4096 // 16, iorcsz=1, sgls=1,
                              aerl=1, cntrltype=1, subnqn=encode_nqn(SUBNQN))  # fmt: skip


def default_namespace() -> IdentifyNamespace:
    return IdentifyNamespace(nsze=16384, ncap=16384, nuse=16384, lbaf=encode_lba_formats([LbaFormat(lbads=9)]))


class FakeQueue(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, target: FakeTarget) -> None:
        self.target = target
        self.wire = Wire()
        self.qid = -1
        self.events: list[int] = []
        """CIDs of the Asynchronous Event Requests that wait."""
        self._stream = b""
        self._looks = 0
        self._writes: dict[int, tuple[Capsule, bytearray]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.target.queues.append(self)
        self.target.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.target.queues.remove(self)

    def data_received(self, data: bytes) -> None:
        self._stream += data
        while len(self._stream) >= 8:
            (plen,) = struct.unpack_from("<I", self._stream, 4)
            if len(self._stream) < plen:
                return
            pdu, self._stream = self._stream[:plen], self._stream[plen:]
            if pdu[0] == 0:
                self._icreq(pdu)
            elif pdu[0] == 4:
                self._capsule(pdu)
            elif pdu[0] == 6:
                self._h2c_data(pdu)

    def complete(self, cid: int, status: int = 0, dw0: int = 0, dw1: int = 0, sqhd: int = 0) -> None:
        self.transport.write(capsule_resp(self.wire, cid, status, dw0, dw1, sqhd))

    def send(self, capsule: Capsule, data: bytes) -> None:
        """Data as asked for, then success. Never SUCCESS: nvmet does not use it while flow control is on."""
        data = data[: capsule.length]
        if data:
            self.transport.write(c2h_data(self.wire, capsule.cid, 0, data))
        self.complete(capsule.cid)

    def event(self, kind: int, info: int, page: int) -> None:
        """Complete one Asynchronous Event Request."""
        self.complete(self.events.pop(0), dw0=kind | info << 8 | page << 16)

    def _icreq(self, pdu: bytes) -> None:
        digest = pdu[11] & self.target.digest_mask
        self.transport.write(icresp(digest=digest, cpda=self.target.cpda))
        self.wire = Wire(bool(digest & 1), bool(digest & 2))

    def _capsule(self, pdu: bytes) -> None:
        opcode, _flags, cid, nsid, length, sgl = struct.unpack_from("<BBHI24xI3xB", pdu, 8)
        cdw = struct.unpack_from("<6I", pdu, 48)
        code = opcode << 8 | nsid & 0xFF if opcode == 0x7F else opcode
        if code == CONNECT:
            self.qid = cdw[0] >> 16
        in_capsule = sgl == 0x01
        data = pdu[pdu[3] : pdu[3] + length] if in_capsule else b""
        capsule = Capsule(self.qid, code, cid, nsid, length, in_capsule, cdw, data)
        if self.qid and code == WRITE and not in_capsule:
            self._writes[cid] = capsule, bytearray(length)
            self.transport.write(r2t(self.wire, cid, cid, 0, length))
        else:
            self._execute(capsule)

    def _h2c_data(self, pdu: bytes) -> None:
        cid, offset, length = struct.unpack_from("<H2xII", pdu, 8)
        capsule, data = self._writes[cid]
        data[offset : offset + length] = pdu[pdu[3] : pdu[3] + length]
        if offset + length == capsule.length:
            del self._writes[cid]
            self._execute(Capsule(**{**capsule.__dict__, "data": bytes(data)}))

    def _execute(self, capsule: Capsule) -> None:
        self.target.seen.append(capsule)
        if self.target.hook(self, capsule):
            return
        if capsule.qid:
            self._execute_io(capsule)
        else:
            self._execute_admin(capsule)

    def _execute_io(self, capsule: Capsule) -> None:
        target, size = self.target, self.target.block_size
        begin, end = capsule.block * size, (capsule.block + capsule.blocks) * size
        if capsule.code == CONNECT:
            self.complete(capsule.cid, dw0=CNTLID, sqhd=0xFFFF if capsule.cdw[1] >> 16 & 4 else 0)
        elif capsule.code == READ:
            self.send(capsule, bytes(target.memory[begin:end]))
        else:
            if capsule.code == WRITE:
                assert len(capsule.data) == end - begin
                target.memory[begin:end] = capsule.data
            elif capsule.code == WRITE_ZEROES:
                target.memory[begin:end] = bytes(end - begin)
            self.complete(capsule.cid)

    def _execute_admin(self, capsule: Capsule) -> None:
        target, cid, cdw = self.target, capsule.cid, capsule.cdw
        match capsule.code:
            case 0x7F01:
                self.complete(cid, dw0=CNTLID)
            case 0x7F00:
                assert cdw[1] == 0x14
                target.cc = cdw[2]
                self.complete(cid)
            case 0x7F04:
                value = self._property(cdw[1])
                self.complete(cid, dw0=value & 0xFFFF_FFFF, dw1=value >> 32)
            case 6:
                self.send(capsule, self._identify(cdw[0] & 0xFF, capsule.nsid))
            case 9:
                granted = target.queues_granted - 1
                self.complete(cid, dw0=granted | granted << 16 if cdw[0] & 0xFF == 7 else 0)
            case 2:
                self.send(capsule, self._log_page(cdw, capsule.length))
            case 12:
                self.events.append(cid)
            case _:
                self.complete(cid)

    def _property(self, offset: int) -> int:
        target = self.target
        if offset == 0x1C:
            self._looks += 1
            ready = target.cc & 1 and self._looks > target.ready_after
            return int(bool(ready)) | (2 << 2 if target.cc >> 14 & 3 else 0)
        return {0x00: target.cap, 0x08: target.version, 0x14: target.cc}.get(offset, 0)

    def _identify(self, cns: int, nsid: int) -> bytes:
        target = self.target
        if cns == 0x00:
            return IDENTIFY_NAMESPACE.encode(target.namespace) if nsid in target.nsids else bytes(4096)
        if cns == 0x02:
            return encode_namespace_list([each for each in target.nsids if each > nsid][:1024])
        return {
            0x01: lambda: IDENTIFY_CONTROLLER.encode(target.identity),
            0x03: lambda: target.names.encode(),
            0x06: lambda: NVM_IDENTIFY_CONTROLLER.encode(target.limits),
        }[cns]()

    def _log_page(self, cdw: tuple[int, ...], length: int) -> bytes:
        if cdw[0] & 0xFF != 0x70:
            offset = cdw[2]
            return bytes((offset + index) & 0xFF for index in range(length))
        header = DISCOVERY_HEADER.encode(DiscoveryHeader(self.target.genctr, len(self.target.discovery)))
        page = header + b"".join(map(DISCOVERY_ENTRY.encode, self.target.discovery))
        return page[cdw[2] : cdw[2] + length].ljust(length, b"\0")


def ranges_of(capsule: Capsule) -> list[DatasetRange]:
    """What a Dataset Management command names."""
    assert capsule.length == len(capsule.data) == 16 * (capsule.cdw[0] + 1)
    return [DATASET_RANGE.decode(capsule.data, at) for at in range(0, len(capsule.data), 16)]
