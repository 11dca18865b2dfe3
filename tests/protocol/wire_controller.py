"""A controller written from the figures of the NVMe/TCP Transport Specification, with every habit it allows.

It splits C2HData and R2Ts where ``rng`` likes, answers commands out of order, uses SUCCESS or not, asks for padding,
and asserts everything a host has to keep to. It shares no code with nvmeof.
"""

from __future__ import annotations

import random
import struct
from collections import deque
from dataclasses import dataclass, field

from crc32c import crc32c

from tests.protocol.wire import DDGST, HDGST, LAST, SUCCESS, Wire

WRITE, READ = 1, 2


def icresp(*, digest: int = 0, cpda: int = 0, maxh2cdata: int = 131072, pfv: int = 0, hlen: int = 128,
           plen: int = 128) -> bytes:  # fmt: skip
    """Figure 28."""
    return struct.pack("<BBBBIHBBI112x", 1, 0, hlen, 0, plen, pfv, cpda, digest, maxh2cdata)


def capsule_resp(wire: Wire, cid: int, status: int = 0, dw0: int = 0, dw1: int = 0, sqhd: int = 0) -> bytes:
    """Figure 31."""
    plen = 28 if wire.header_digest else 24
    return wire.seal(struct.pack("<BBBBIIIHHHH", 5, wire.flags, 24, 0, plen, dw0, dw1, sqhd, 1, cid, status << 1))


def c2h_data(wire: Wire, cid: int, offset: int, data: bytes, *, last: bool = True, success: bool = False,
             alignment: int = 4) -> bytes:  # fmt: skip
    """Figure 33, padded to ``alignment`` bytes."""
    bare = 28 if wire.header_digest else 24
    pdo = -(-bare // alignment) * alignment
    flags = wire.flags | (DDGST if wire.data_digest else 0) | (LAST if last else 0) | (SUCCESS if success else 0)
    plen = pdo + len(data) + (4 if wire.data_digest else 0)
    return wire.seal(struct.pack("<BBBBIHHII4x", 7, flags, 24, pdo, plen, cid, 0, offset, len(data)), data, pdo)


def r2t(wire: Wire, cid: int, ttag: int, offset: int, length: int) -> bytes:
    """Figure 34."""
    plen = 28 if wire.header_digest else 24
    return wire.seal(struct.pack("<BBBBIHHII4x", 9, wire.flags, 24, 0, plen, cid, ttag, offset, length))


def c2h_term_req(fes: int, fei: int = 0, header: bytes = b"") -> bytes:
    """Figure 29."""
    return struct.pack("<BBBBIHI10x", 3, 0, 24, 0, 24 + len(header), fes, fei) + header


@dataclass
class WriteInProgress:
    cid: int
    offset: int
    length: int
    asked: int = 0
    received: int = 0
    r2ts: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By TTAG: where the next H2CData must begin, and where the last must end."""


class WireController:
    """``feed`` it what the host sends, ``step`` for the next PDU it wants to send. ``memory`` is its only namespace.

    Opcode 1 writes to and 2 reads from byte ``cdw10``; every other command succeeds, or fails with ``cdw15``.
    """

    def __init__(self, rng: random.Random, *, digest: int = 3, cpda: int = 0, maxh2cdata: int = 4096,
                 success: bool = False, size: int = 1 << 20) -> None:  # fmt: skip
        self.rng = rng
        self.memory = bytearray(size)
        self.maxr2t = self.hpda = 0
        self.wire = Wire()
        self._accepted = digest
        self._cpda = cpda
        self._maxh2cdata = maxh2cdata
        self._success = success
        self._stream = b""
        self._ready: dict[int, deque[bytes]] = {}
        """PDUs to send, in order for each command."""
        self._writes: dict[int, WriteInProgress] = {}
        self._ttag = 0

    @property
    def idle(self) -> bool:
        return not self._ready

    def step(self) -> bytes:
        """One PDU, of any command that has one."""
        cid = self.rng.choice(list(self._ready))
        queue = self._ready[cid]
        pdu = queue.popleft()
        if not queue:
            del self._ready[cid]
        return pdu

    def feed(self, data: bytes) -> None:
        self._stream += data
        while len(self._stream) >= 8:
            (plen,) = struct.unpack_from("<I", self._stream, 4)
            if len(self._stream) < plen:
                break
            pdu, self._stream = self._stream[:plen], self._stream[plen:]
            {0: self._icreq, 4: self._capsule, 6: self._h2c_data}[pdu[0]](pdu)

    def _send(self, cid: int, *pdus: bytes) -> None:
        self._ready.setdefault(cid, deque()).extend(pdus)

    def _icreq(self, pdu: bytes) -> None:
        flags, hlen, pdo, plen, pfv, self.hpda, digest, self.maxr2t = struct.unpack_from("<xBBBIHBBI", pdu)
        assert (flags, hlen, pdo, plen, pfv) == (0, 128, 0, 128, 0)
        assert not any(pdu[16:])
        digest &= self._accepted
        self._send(-1, icresp(digest=digest, cpda=self._cpda, maxh2cdata=self._maxh2cdata))
        self.wire = Wire(bool(digest & 1), bool(digest & 2))

    def _capsule(self, pdu: bytes) -> None:
        flags, hlen, pdo, plen = struct.unpack_from("<xBBBI", pdu)
        assert hlen == 72
        opcode, sqe_flags, cid, _nsid, address, length, sgl = struct.unpack_from("<BBHI16xQI3xB", pdu, 8)
        (offset,) = struct.unpack_from("<I", pdu, 48)
        (status,) = struct.unpack_from("<I", pdu, 68)
        assert sqe_flags == 0x40
        assert address == 0
        assert cid not in self._ready
        assert cid not in self._writes
        data = self._payload(pdu, length) if sgl == 0x01 else b""
        assert sgl == 0x01 or (pdo, plen, flags) == (0, 72 + 4 * self.wire.header_digest, self.wire.flags)
        if opcode == READ and not status:
            self._answer_read(cid, offset, length)
        elif opcode == WRITE and sgl == 0x5A and not status:
            self._writes[cid] = WriteInProgress(cid, offset, length)
            self._ask(self._writes[cid])
        else:
            if opcode == WRITE and not status:
                self.memory[offset : offset + length] = data
            self._send(cid, capsule_resp(self.wire, cid, status, dw0=offset))

    def _payload(self, pdu: bytes, length: int) -> bytes:
        """Data of a capsule or H2CData whose padding, digests and flags are right: figures 30 and 32."""
        flags, hlen, pdo, plen = struct.unpack_from("<xBBBI", pdu)
        alignment = 4 * (self._cpda + 1)
        assert pdo == -(-(hlen + 4 * self.wire.header_digest) // alignment) * alignment
        assert not any(pdu[hlen + 4 * self.wire.header_digest : pdo])
        assert plen == pdo + length + 4 * self.wire.data_digest
        assert bool(flags & HDGST) == self.wire.header_digest
        assert bool(flags & DDGST) == self.wire.data_digest
        self.wire.check_header(pdu)
        data = pdu[pdo : pdo + length]
        if self.wire.data_digest:
            assert struct.unpack_from("<I", pdu, pdo + length) == (crc32c(data),)
        return data

    def _answer_read(self, cid: int, offset: int, length: int) -> None:
        position = 0
        for part in self._parts(length):
            last = position + part == length
            data = bytes(self.memory[offset + position : offset + position + part])
            success = self._success and last
            self._send(cid, c2h_data(self.wire, cid, position, data, last=last, success=success,
                                     alignment=4 * (self.hpda + 1)))  # fmt: skip
            position += part
        if not self._success:
            self._send(cid, capsule_resp(self.wire, cid))

    def _ask(self, write: WriteInProgress) -> None:
        while write.asked < write.length and len(write.r2ts) <= self.maxr2t:
            part = self._parts(write.length - write.asked)[0]
            self._ttag = (self._ttag + 1) & 0xFFFF
            write.r2ts[self._ttag] = (write.asked, write.asked + part)
            self._send(write.cid, r2t(self.wire, write.cid, self._ttag, write.asked, part))
            write.asked += part

    def _h2c_data(self, pdu: bytes) -> None:
        flags, hlen, _pdo, _plen, cid, ttag, offset, length = struct.unpack_from("<xBBBIHHII", pdu)
        assert hlen == 24
        assert 0 < length <= self._maxh2cdata
        write = self._writes[cid]
        begin, end = write.r2ts[ttag]
        assert offset == begin
        assert offset + length <= end
        assert bool(flags & LAST) == (offset + length == end)
        start = write.offset + offset
        self.memory[start : start + length] = self._payload(pdu, length)
        write.received += length
        write.r2ts[ttag] = (offset + length, end)
        if offset + length == end:
            del write.r2ts[ttag]
        if write.received == write.length:
            del self._writes[cid]
            self._send(cid, capsule_resp(self.wire, cid))
        else:
            self._ask(write)

    def _parts(self, length: int) -> list[int]:
        """``length`` in up to four dword-aligned parts."""
        cuts = sorted(
            {4 * self.rng.randrange(1, length // 4) for _ in range(self.rng.randrange(4))} if length > 4 else ()
        )
        return [end - begin for begin, end in zip([0, *cuts], [*cuts, length], strict=True)]
