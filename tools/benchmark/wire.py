"""One NVMe/TCP queue over a blocking socket: connects it and executes one command at a time, everything checked.

The load generators use it to bring a controller up and for the commands they verify; it is not fast.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from typing import NamedTuple

from crc32c import crc32c

from nvmeof.spec.command import (
    PACK_SQE,
    PSDT_SGL,
    SGL_DATA_BLOCK_OFFSET,
    SGL_TRANSPORT_DATA_BLOCK,
    UNPACK_CQE,
    AdminOpcode,
    Cns,
    FabricsType,
    FeatureId,
    IoOpcode,
)
from nvmeof.spec.fabrics import (
    CC,
    CNTLID_DYNAMIC,
    CONNECT_DATA,
    CSTS,
    Configuration,
    ConnectAttribute,
    ConnectData,
    ConnectDwords,
    Property,
    PropertyDwords,
    encode_nqn,
)
from nvmeof.spec.pdu import (
    CAPSULE_CMD_HLEN,
    COMMON_HEADER,
    DATA_HLEN,
    DATA_PDU,
    DIGEST_DATA_BIT,
    DIGEST_HEADER_BIT,
    DIGEST_SIZE,
    HEADER_SIZE,
    IC_SIZE,
    INITIALIZE_CONNECTION,
    CommonHeader,
    DataPdu,
    InitializeConnection,
    PduFlag,
    PduType,
)
from nvmeof.spec.status import describe

STALL_SECONDS = 20
HOST_NQN = "nqn.2014-08.org.nvmexpress:uuid:6d0c6f1e-5f0b-4c44-9d0e-62656e636831"
HOST_ID = bytes.fromhex("6d0c6f1e5f0b4c449d0e62656e636831")
ADMIN_ENTRIES = 32
Buffer = bytes | bytearray | memoryview
PACK_DATA = DATA_PDU.struct.pack
HDGST, DDGST, LAST = int(PduFlag.HDGST), int(PduFlag.DDGST), int(PduFlag.LAST)
H2C_DATA = int(PduType.H2C_DATA)


class BenchError(Exception):
    """The peer did something the benchmark did not expect."""


@dataclass(frozen=True, slots=True)
class Digests:
    header: bool = False
    data: bool = False


NO_DIGESTS = Digests()


class Reply(NamedTuple):
    """A completion. ``wire_bytes`` counts every byte the controller sent for the command."""

    dw0: int
    dw1: int
    data: bytes
    wire_bytes: int
    has_response: bool


def digest(data: Buffer) -> bytes:
    return crc32c(data).to_bytes(DIGEST_SIZE, "little")


def open_socket(address: tuple[str, int]) -> socket.socket:
    """A connected blocking socket that fails with EAGAIN after STALL_SECONDS without progress."""
    sock = socket.create_connection(address, timeout=STALL_SECONDS)
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limit = struct.pack("ll", STALL_SECONDS, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    return sock


def sqe(
    opcode: int,
    cid: int,
    nsid: int,
    length: int = 0,
    *,
    in_capsule: bool = False,
    dwords: tuple[int, ...] = (),
) -> bytes:
    """A submission queue entry; ``dwords`` are 10 and following."""
    sgl = SGL_DATA_BLOCK_OFFSET if in_capsule else SGL_TRANSPORT_DATA_BLOCK
    return PACK_SQE(opcode, PSDT_SGL, cid, nsid, 0, 0, 0, length, sgl, *dwords, *(0,) * (6 - len(dwords)))


def capsule_header(entry: bytes, data_length: int, digests: Digests) -> bytes:
    """A command capsule up to its in-capsule data, header digest included."""
    flags, pdo, plen = 0, 0, CAPSULE_CMD_HLEN
    if digests.header:
        flags |= PduFlag.HDGST
        plen += DIGEST_SIZE
    if data_length:
        pdo = plen
        plen += data_length
        if digests.data:
            flags |= PduFlag.DDGST
            plen += DIGEST_SIZE
    header = COMMON_HEADER.encode(CommonHeader(PduType.CAPSULE_CMD, flags, CAPSULE_CMD_HLEN, pdo, plen)) + entry
    return header + digest(header) if digests.header else header


def h2c_header(cid: int, ttag: int, offset: int, length: int, last: bool, digests: Digests) -> bytes:
    """The header of an H2CData PDU, header digest included. On the path of every large write, hence no enumerations."""
    flags = LAST if last else 0
    pdo = DATA_HLEN
    if digests.header:
        flags |= HDGST
        pdo += DIGEST_SIZE
    plen = pdo + length
    if digests.data:
        flags |= DDGST
        plen += DIGEST_SIZE
    header = PACK_DATA(H2C_DATA, flags, DATA_HLEN, pdo, plen, cid, ttag, offset, length, b"")
    return header + digest(header) if digests.header else header


class Queue:
    """A connection after ICReq/ICResp. ``connect`` makes it a queue of a controller, ``execute`` runs one command."""

    def __init__(self, address: tuple[str, int], digests: Digests) -> None:
        self.sock = open_socket(address)
        self.digests = NO_DIGESTS
        self._cid = 0
        wanted = DIGEST_HEADER_BIT * digests.header | DIGEST_DATA_BIT * digests.data
        request = InitializeConnection(PduType.ICREQ, 0, IC_SIZE, 0, IC_SIZE, 0, 0, wanted, 0)
        self.sock.sendall(INITIALIZE_CONNECTION.encode(request))
        response = INITIALIZE_CONNECTION.decode(self._exactly(IC_SIZE))
        if response.pdu_type != PduType.ICRESP or response.alignment or response.digest != wanted:
            raise BenchError(f"unexpected answer to ICReq: {response}")
        self.digests = digests
        self.data_max = response.limit

    def close(self) -> None:
        self.sock.close()

    def connect(self, nqn: str, qid: int, entries: int, cntlid: int) -> int:
        """Fabrics Connect without SQ flow control and without keep-alive. Returns the controller identifier."""
        dwords = ConnectDwords(0, qid, entries - 1, ConnectAttribute.DISABLE_SQ_FLOW_CONTROL, 0).encode()
        data = CONNECT_DATA.encode(ConnectData(HOST_ID, cntlid, subnqn=encode_nqn(nqn), hostnqn=encode_nqn(HOST_NQN)))
        return self.fabrics(FabricsType.CONNECT, dwords, data).dw0 & 0xFFFF

    def fabrics(self, kind: FabricsType, dwords: tuple[int, ...], data: bytes = b"") -> Reply:
        return self.execute(AdminOpcode.FABRICS, kind, dwords, data_out=data, in_capsule=bool(data))

    def execute(
        self,
        opcode: int,
        nsid: int,
        dwords: tuple[int, ...] = (),
        *,
        data_out: bytes = b"",
        data_in: int = 0,
        in_capsule: bool = False,
    ) -> Reply:
        """One command from capsule to completion. Raises BenchError when its status is not success."""
        self._cid = self._cid % 1024 + 1
        length = len(data_out) or data_in
        entry = sqe(opcode, self._cid, nsid, length, in_capsule=in_capsule, dwords=dwords)
        inline = data_out if in_capsule else b""
        tail = digest(inline) if inline and self.digests.data else b""
        self.sock.sendall(capsule_header(entry, len(inline), self.digests) + inline + tail)
        return self._reply(data_out)

    def _reply(self, data_out: bytes) -> Reply:
        data = bytearray()
        wire_bytes = 0
        while True:
            header, fields, payload, size = self._pdu()
            wire_bytes += size
            if header.pdu_type == PduType.CAPSULE_RESP:
                dw0, dw1, _sqhd, _sqid, cid, status = UNPACK_CQE(fields, HEADER_SIZE)
                if status >> 1:
                    raise BenchError(f"command {cid}: {describe(status >> 1)}, dword 0 {dw0:#x}")
                return Reply(dw0, dw1, bytes(data), wire_bytes, True)
            part = DATA_PDU.decode(fields)
            if part.cccid != self._cid:
                raise BenchError(f"PDU {header.pdu_type:#x} for CID {part.cccid}, which is not in flight")
            if header.pdu_type == PduType.R2T:
                self._send_data(part, data_out)
            elif header.pdu_type == PduType.C2H_DATA:
                if part.datao != len(data) or part.datal != len(payload):
                    raise BenchError(f"C2HData out of order: {part}")
                data += payload
                if header.flags & PduFlag.SUCCESS:
                    return Reply(0, 0, bytes(data), wire_bytes, False)
            else:
                raise BenchError(f"unexpected PDU type {header.pdu_type:#x}: {fields.hex()}")

    def _send_data(self, ask: DataPdu, data: bytes) -> None:
        end = ask.datao + ask.datal
        for start in range(ask.datao, end, self.data_max):
            piece = data[start : min(start + self.data_max, end)]
            last = start + len(piece) == end
            header = h2c_header(ask.cccid, ask.ttag, start, len(piece), last, self.digests)
            self.sock.sendall(header + piece + (digest(piece) if self.digests.data else b""))

    def _pdu(self) -> tuple[CommonHeader, bytes, bytes, int]:
        """The next PDU: common header, whole header, payload, size on the wire. Digests are verified."""
        start = self._exactly(HEADER_SIZE)
        header = COMMON_HEADER.decode(start)
        rest = self._exactly(header.plen - HEADER_SIZE)
        fields = start + rest[: header.hlen - HEADER_SIZE]
        if bool(header.flags & PduFlag.HDGST) != self.digests.header:
            raise BenchError(f"HDGSTF of {header} is not what was negotiated")
        position = header.hlen - HEADER_SIZE
        if self.digests.header and rest[position : position + DIGEST_SIZE] != digest(fields):
            raise BenchError(f"wrong header digest on {header}")
        if not header.pdo:
            return header, fields, b"", header.plen
        payload = rest[header.pdo - HEADER_SIZE :]
        if header.flags & PduFlag.DDGST:
            payload, found = payload[:-DIGEST_SIZE], payload[-DIGEST_SIZE:]
            if found != digest(payload):
                raise BenchError(f"wrong data digest on {header}")
        return header, fields, payload, header.plen

    def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            try:
                received = self.sock.recv_into(view)
            except BlockingIOError:
                raise BenchError(f"the peer sent nothing for {STALL_SECONDS} s") from None
            if not received:
                raise BenchError("the peer closed the connection")
            view = view[received:]
        return bytes(data)


@dataclass
class Session:
    """A controller that is up, with its admin queue and one I/O queue, and namespace 1."""

    admin: Queue
    io: Queue
    block_size: int
    size: int
    in_capsule_max: int
    transfer_max: int

    def close(self) -> None:
        self.io.close()
        self.admin.close()

    def read(self, offset: int, length: int) -> Reply:
        return self.io.execute(IoOpcode.READ, 1, lba_dwords(offset, length, self.block_size), data_in=length)


def lba_dwords(offset: int, length: int, block_size: int) -> tuple[int, int, int]:
    """Command dwords 10 to 12 of Read and Write; ``offset`` and ``length`` in bytes."""
    slba = offset // block_size
    return slba & 0xFFFF_FFFF, slba >> 32, length // block_size - 1


def open_session(address: tuple[str, int], nqn: str, digests: Digests, depth: int) -> Session:
    """Bring a controller up as a host does: admin queue, enable, identify, then an I/O queue for ``depth`` commands."""
    admin = Queue(address, digests)
    try:
        cntlid = admin.connect(nqn, 0, ADMIN_ENTRIES, CNTLID_DYNAMIC)
        _enable(admin)
        identity = _identify(admin, Cns.CONTROLLER, 0)
        namespace = _identify(admin, Cns.NAMESPACE, 1)
        admin.execute(AdminOpcode.SET_FEATURES, 0, (FeatureId.NUMBER_OF_QUEUES, 0))
        io = Queue(address, digests)
    except BaseException:
        admin.close()
        raise
    io.connect(nqn, 1, max(depth + 1, 17), cntlid)
    block_size = 1 << namespace[128 + 4 * (namespace[26] & 0xF) + 2]
    capsule_bytes = int.from_bytes(identity[1792:1796], "little") * 16
    return Session(
        admin,
        io,
        block_size,
        int.from_bytes(namespace[:8], "little") * block_size,
        capsule_bytes - 64,
        4096 << identity[77] if identity[77] else 1 << 30,
    )


def _identify(admin: Queue, cns: Cns, nsid: int) -> bytes:
    return admin.execute(AdminOpcode.IDENTIFY, nsid, (cns,), data_in=4096).data


def _enable(admin: Queue) -> None:
    value = CC.encode(Configuration(en=1, iosqes=6, iocqes=4))
    admin.fabrics(FabricsType.PROPERTY_SET, PropertyDwords(Property.CC, 4, value).encode())
    deadline = time.monotonic() + STALL_SECONDS
    while True:
        reply = admin.fabrics(FabricsType.PROPERTY_GET, PropertyDwords(Property.CSTS, 4).encode())
        if CSTS.decode(reply.dw0).rdy:
            return
        if time.monotonic() > deadline:
            raise BenchError(f"the controller is not ready after {STALL_SECONDS} s")
        time.sleep(0.01)
