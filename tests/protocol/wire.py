"""PDUs written by hand from the figures of the NVMe/TCP Transport Specification 1.0, independent of nvmeof.spec.

``Bench`` hands them to a queue of either role.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from crc32c import crc32c

from nvmeof.protocol.queue_pair import QueuePair

HDGST, DDGST, LAST, SUCCESS = 1, 2, 4, 8


@dataclass(frozen=True)
class Wire:
    """Builds the host's PDUs and takes the controller's apart, with the digests that were negotiated."""

    header_digest: bool = False
    data_digest: bool = False

    @property
    def flags(self) -> int:
        return HDGST if self.header_digest else 0

    def seal(self, header: bytes, data: bytes = b"", pdo: int = 0) -> bytes:
        """Header digest, padding up to ``pdo``, data and its digest."""
        pdu = header + (struct.pack("<I", crc32c(header)) if self.header_digest else b"")
        if data:
            pdu += bytes(pdo - len(pdu)) + data + (struct.pack("<I", crc32c(data)) if self.data_digest else b"")
        return pdu

    def capsule(self, sqe: bytes, data: bytes = b"", pad: int = 0) -> bytes:
        """Figure 30."""
        bare = 72 + (4 if self.header_digest else 0)
        pdo = bare + pad if data else 0
        flags = self.flags | (DDGST if data and self.data_digest else 0)
        plen = bare if not data else pdo + len(data) + (4 if self.data_digest else 0)
        return self.seal(struct.pack("<BBBBI", 4, flags, 72, pdo, plen) + sqe, data, pdo)

    def h2c_data(self, cid: int, ttag: int, offset: int, data: bytes, *, last: bool, pad: int = 0) -> bytes:
        """Figure 32."""
        pdo = 24 + (4 if self.header_digest else 0) + pad
        plen = pdo + len(data) + (4 if self.data_digest else 0)
        flags = self.flags | (DDGST if self.data_digest else 0) | (LAST if last else 0)
        header = struct.pack("<BBBBIHHII4x", 6, flags, 24, pdo, plen, cid, ttag, offset, len(data))
        return self.seal(header, data, pdo)

    def split(self, stream: bytes) -> list[bytes]:
        """Cut a byte stream from the controller into whole PDUs."""
        pdus = []
        while stream:
            (plen,) = struct.unpack_from("<I", stream, 4)
            assert len(stream) >= plen, "the stream ends inside a PDU"
            pdus.append(stream[:plen])
            stream = stream[plen:]
        return pdus

    def data_of(self, pdu: bytes) -> bytes:
        """The payload of a C2HData PDU whose digests and lengths are right."""
        kind, flags, hlen, pdo, plen = struct.unpack_from("<BBBBI", pdu)
        assert (kind, hlen) == (7, 24)
        assert plen == len(pdu)
        self.check_header(pdu)
        (length,) = struct.unpack_from("<I", pdu, 16)
        data = pdu[pdo : pdo + length]
        assert bool(flags & DDGST) == self.data_digest
        if self.data_digest:
            assert struct.unpack_from("<I", pdu, pdo + length)[0] == crc32c(data)
        assert plen == pdo + length + (4 if self.data_digest else 0)
        return data

    def check_header(self, pdu: bytes) -> None:
        hlen = pdu[2]
        assert bool(pdu[1] & HDGST) == self.header_digest
        if self.header_digest:
            assert struct.unpack_from("<I", pdu, hlen)[0] == crc32c(pdu[:hlen])


def icreq(*, digest: int = 0, hpda: int = 0, maxr2t: int = 0, pfv: int = 0, hlen: int = 128, plen: int = 128) -> bytes:
    """Figure 26."""
    return struct.pack("<BBBBIHBBI112x", 0, 0, hlen, 0, plen, pfv, hpda, digest, maxr2t)


def sqe(
    opcode: int,
    cid: int,
    *,
    nsid: int = 1,
    flags: int = 0x40,
    sgl: tuple[int, int, int] = (0, 0, 0x5A),
    cdw10: int = 0,
    cdw11: int = 0,
    cdw12: int = 0,
    cdw13: int = 0,
    cdw14: int = 0,
    cdw15: int = 0,
) -> bytes:
    """Base 2.0 figure 87; ``sgl`` is (address, length, identifier)."""
    address, length, identifier = sgl
    head = struct.pack("<BBHI16xQI3xB", opcode, flags, cid, nsid, address, length, identifier)
    return head + struct.pack("<6I", cdw10, cdw11, cdw12, cdw13, cdw14, cdw15)


def response(pdu: bytes) -> tuple[int, int, int, int, int, int]:
    """(dw0, dw1, sqhd, sqid, cid, status without the phase bit) of a CapsuleResp."""
    assert pdu[0] == 5
    dw0, dw1, sqhd, sqid, cid, status = struct.unpack_from("<IIHHHH", pdu, 8)
    return dw0, dw1, sqhd, sqid, cid, status >> 1


def term_req(pdu: bytes) -> tuple[int, int, bytes]:
    """(FES, FEI, returned header) of a C2HTermReq, whose constant fields are right."""
    kind, flags, hlen, pdo, plen, fes, fei = struct.unpack_from("<BBBBIHI", pdu)
    assert (kind, flags, hlen, pdo) == (3, 0, 24, 0)
    assert plen == len(pdu)
    assert 24 <= plen <= 152
    return fes, fei, pdu[24:]


class Bench:
    """A queue pair of either role without a socket."""

    queue: QueuePair

    def feed(self, data: bytes, step: int = 0, now: float = 0.0) -> bytes:
        """Hand ``data`` over, ``step`` bytes at a time or as much as is taken; returns what the queue sends."""
        output, start = [], 0
        while start < len(data):
            buffer = self.queue.get_buffer()
            size = min(len(buffer), len(data) - start, step or len(data))
            buffer[:size] = data[start : start + size]
            start += size
            self.queue.received(size, now)
            output.append(self.take())
            while self.queue.blocked:
                self.queue.resume()
                output.append(self.take())
        return b"".join(output)

    def take(self) -> bytes:
        output = b"".join(self.queue.take_output())
        self.queue.drained()
        return output
