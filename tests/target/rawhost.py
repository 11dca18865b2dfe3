"""A host that says exactly what a test wants it to, byte by byte, over a real socket."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from tests.protocol import wire
from tests.protocol.wire import Wire

HOST_NQN = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
HOST_ID = bytes(range(16))
SECONDS = 10.0


def connect_data(subnqn: str, cntlid: int = 0xFFFF, hostnqn: str = HOST_NQN, hostid: bytes = HOST_ID) -> bytes:
    """Connect data, 1024 bytes."""
    names = subnqn.encode().ljust(256, b"\0") + hostnqn.encode().ljust(256, b"\0")
    return hostid + struct.pack("<H", cntlid) + bytes(238) + names + bytes(256)


def connect_sqe(cid: int = 0, *, qid: int = 0, sqsize: int = 31, cattr: int = 0, kato: int = 0, recfmt: int = 0,
                length: int = 1024, sgl: int = 1) -> bytes:  # fmt: skip
    """Connect with in-capsule data."""
    return wire.sqe(
        0x7F, cid, nsid=1, sgl=(0, length, sgl), cdw10=recfmt | qid << 16, cdw11=sqsize | cattr << 16, cdw12=kato
    )


class RawHost:
    """One connection. ``data`` holds the payload of the last command's C2HData PDUs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, digest: int) -> None:
        self.reader = reader
        self.writer = writer
        self.wire = Wire(bool(digest & 1), bool(digest & 2))
        self.data = b""
        self.cntlid = 0
        self._cid = 0

    @classmethod
    async def open(cls, address: tuple[str, int], digest: int = 0, *, handshake: bool = True) -> RawHost:
        reader, writer = await asyncio.open_connection(*address)
        host = cls(reader, writer, digest)
        if handshake:
            host.send(wire.icreq(digest=digest))
            assert (await host.pdu())[0] == 1
        return host

    @classmethod
    async def admin(cls, address: tuple[str, int], subnqn: str, digest: int = 0, *, enable: bool = True,
                    hostnqn: str = HOST_NQN, hostid: bytes = HOST_ID, kato: int = 0) -> RawHost:  # fmt: skip
        """An admin queue on an enabled controller."""
        host = await cls.open(address, digest)
        answer = await host.command(connect_sqe(kato=kato), connect_data(subnqn, hostnqn=hostnqn, hostid=hostid))
        assert answer[5] == 0, hex(answer[5])
        host.cntlid = answer[0] & 0xFFFF
        if enable:
            assert (await host.property_set(0x14, 0x460001))[5] == 0
        return host

    @classmethod
    async def io(
        cls,
        address: tuple[str, int],
        subnqn: str,
        cntlid: int,
        qid: int = 1,
        digest: int = 0,
        *,
        sqsize: int = 127,
        cattr: int = 0,
        hostnqn: str = HOST_NQN,
        hostid: bytes = HOST_ID,
    ) -> RawHost:
        host = await cls.open(address, digest)
        data = connect_data(subnqn, cntlid, hostnqn, hostid)
        answer = await host.command(connect_sqe(qid=qid, sqsize=sqsize, cattr=cattr), data)
        assert answer[5] == 0, hex(answer[5])
        return host

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def pdu(self) -> bytes:
        """The next whole PDU; IncompleteReadError when the connection ends first."""
        async with asyncio.timeout(SECONDS):
            header = await self.reader.readexactly(8)
            (plen,) = struct.unpack_from("<I", header, 4)
            return header + await self.reader.readexactly(plen - 8)

    async def closed(self) -> bool:
        """Wait until the target has closed the connection."""
        async with asyncio.timeout(SECONDS):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass
            return True

    async def response(self) -> tuple[int, int, int, int, int, int]:
        """The next completion; data PDUs before it are collected in ``data``."""
        self.data = b""
        while True:
            pdu = await self.pdu()
            if pdu[0] == 7:
                self.data += self.wire.data_of(pdu)
                if pdu[1] & wire.SUCCESS:
                    return 0, 0, 0, 0, struct.unpack_from("<H", pdu, 8)[0], 0
                continue
            assert pdu[0] == 5, f"PDU type {pdu[0]}"
            self.wire.check_header(pdu)
            return wire.response(pdu)

    async def command(self, sqe: bytes, data: bytes = b"") -> tuple[int, int, int, int, int, int]:
        """Send a capsule and wait for its completion: (dw0, dw1, sqhd, sqid, cid, status)."""
        self.send(self.wire.capsule(sqe, data))
        answer = await self.response()
        assert answer[4] == struct.unpack_from("<H", sqe, 2)[0]
        return answer

    async def status(self, opcode: int, data: bytes = b"", **fields: Any) -> int:
        """Status of one command with a fresh CID."""
        return (await self.command(wire.sqe(opcode, self.cid(), **fields), data))[5]

    def cid(self) -> int:
        self._cid = (self._cid + 1) % 0x8000
        return self._cid

    async def property_get(self, offset: int, *, eight: bool = False) -> tuple[int, int]:
        """(value, status)."""
        answer = await self.command(wire.sqe(0x7F, self.cid(), nsid=4, cdw10=int(eight), cdw11=offset))
        return answer[0] | answer[1] << 32, answer[5]

    async def property_set(self, offset: int, value: int) -> tuple[int, int, int, int, int, int]:
        return await self.command(wire.sqe(0x7F, self.cid(), nsid=0, cdw11=offset, cdw12=value))

    async def read(self, slba: int, blocks: int, block_size: int, **fields: Any) -> bytes:
        """Read blocks of namespace 1."""
        sgl = (0, blocks * block_size, 0x5A)
        status = await self.status(2, sgl=sgl, cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32, cdw12=blocks - 1, **fields)
        assert status == 0, hex(status)
        return self.data

    async def write(self, slba: int, data: bytes, block_size: int, flags: int = 0) -> int:
        """Write in-capsule up to 16 KiB, by R2T above. Returns the status."""
        blocks = len(data) // block_size
        inline = len(data) <= 16384
        sqe = wire.sqe(
            1, self.cid(), sgl=(0, len(data), 1 if inline else 0x5A), cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32,
            cdw12=blocks - 1 | flags,
        )  # fmt: skip
        if inline:
            return (await self.command(sqe, data))[5]
        self.send(self.wire.capsule(sqe))
        return await self.answer_r2t(data)

    async def answer_r2t(self, data: bytes, piece: int = 256 << 10) -> int:
        """Send what the next R2T asks for; the status of its command."""
        r2t = await self.pdu()
        assert r2t[0] == 9, f"PDU type {r2t[0]}"
        cid, ttag, offset, length = struct.unpack_from("<HHII", r2t, 8)
        for at in range(offset, offset + length, piece):
            end = min(at + piece, offset + length)
            self.send(self.wire.h2c_data(cid, ttag, at, data[at:end], last=end == offset + length))
        return (await self.response())[5]

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass
