"""A workload over NVMe/TCP: the commands built beforehand, and what is checked of them.

Before and after each run some commands are executed one by one with every PDU, digest and byte checked. During the run
only sizes, PDU types and status are looked at: verifying each data digest would measure the generator.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nvmeof.spec.command import IoOpcode
from nvmeof.spec.pdu import CAPSULE_RESP_HLEN, DIGEST_SIZE
from tools.benchmark.load import ByteFeed, CountingLoad, Feed, Load, ParsingLoad, PieceFeed, Shape, Tally
from tools.benchmark.wire import (
    BenchError,
    Digests,
    Reply,
    capsule_header,
    digest,
    lba_dwords,
    open_session,
    sqe,
)
from tools.benchmark.workload import SMALL_BYTES_MAX, Workload

SAMPLES = 8
WARM_SECONDS = 0.15
STATUS_MARKS = ((0, b"\x05"), (22, b"\x00"), (23, b"\x00"))
"""Type and status of a CapsuleResp."""


class NvmeRun:
    """One association and one workload. ``image`` is the namespace's own file, to compare what is read with."""

    def __init__(
        self, address: tuple[str, int], nqn: str, workload: Workload, span: int = 1 << 30, image: Path | None = None
    ) -> None:
        self.workload = workload
        self.session = open_session(address, nqn, workload.digests, workload.depth)
        self.span = min(span, self.session.size)
        self.offsets = workload.offsets(self.span)
        self.payload = workload.payload() if workload.write else b""
        self.image = image
        try:
            self._check_limits()
            self.load = self._build()
        except BaseException:
            self.session.close()
            raise

    def measure(
        self, seconds: float, commands: int = 1 << 62, server_seconds: Callable[[], float] = lambda: 0.0
    ) -> tuple[Tally, float]:
        """Warm up, count, drain, verify, close. Also returns what ``server_seconds`` grew by meanwhile."""
        try:
            self.load.run(min(WARM_SECONDS, seconds), commands)
            before = server_seconds()
            tally = self.load.run(seconds, commands)
            spent = server_seconds() - before
            self.load.drain()
            self.verify()
        finally:
            self.session.close()
        return tally, spent

    def verify(self) -> None:
        """Read the last commands' blocks and compare them with what was written, or with the image."""
        issued = self.load.feed.issued
        for number in range(max(0, issued - SAMPLES), issued):
            offset = self.offsets[number % len(self.offsets)]
            data = self._sample(offset).data
            if self.workload.write and data != self.payload:
                raise BenchError(f"{self.workload.name}: the block at {offset} is not what was written")

    def _check_limits(self) -> None:
        workload, session = self.workload, self.session
        if workload.block % session.block_size or workload.block > min(session.transfer_max, self.span):
            raise BenchError(
                f"{workload.name}: blocks of {session.block_size}, at most {session.transfer_max} a command, "
                f"{self.span} in all"
            )

    def _sample(self, offset: int) -> Reply:
        reply = self.session.read(offset, self.workload.block)
        if len(reply.data) != self.workload.block:
            raise BenchError(f"{self.workload.name}: read {len(reply.data)} bytes at {offset}")
        if self.image is not None and reply.data != _file_bytes(self.image, offset, self.workload.block):
            raise BenchError(f"{self.workload.name}: what was read at {offset} is not what {self.image} holds")
        return reply

    def _build(self) -> Load:
        workload, session = self.workload, self.session
        sock, depth, digests = session.io.sock, workload.depth, workload.digests
        inline = workload.write and workload.block <= session.in_capsule_max
        entries = self._headers(inline)
        if inline:
            tail = digest(self.payload) if digests.data else b""
            feed: Feed = PieceFeed(sock, entries, self.payload + tail, depth)
            return CountingLoad(sock, feed, depth, response_shape(digests))
        feed = ByteFeed(sock, b"".join(entries), len(entries[0]), depth)
        if workload.write or workload.block > SMALL_BYTES_MAX:
            return ParsingLoad(sock, feed, depth, digests, self.payload, session.io.data_max)
        return CountingLoad(sock, feed, depth, self._read_shape())

    def _headers(self, inline: bool) -> list[bytes]:
        workload, block_size = self.workload, self.session.block_size
        opcode = IoOpcode.WRITE if workload.write else IoOpcode.READ
        length = workload.block if inline else 0
        headers = []
        for cid, offset in enumerate(self.offsets):
            dwords = lba_dwords(offset, workload.block, block_size)
            entry = sqe(opcode, cid, 1, workload.block, in_capsule=inline, dwords=dwords)
            headers.append(capsule_header(entry, length, workload.digests))
        return headers

    def _read_shape(self) -> Shape:
        """Learn it from some reads."""
        replies = [self._sample(offset) for offset in self.offsets[:SAMPLES]]
        kinds = {(reply.wire_bytes, reply.has_response) for reply in replies}
        if len(kinds) != 1:
            raise BenchError(f"reads complete in different ways, so bytes cannot be counted: {kinds}")
        size, has_response = kinds.pop()
        marks: tuple[tuple[int, bytes], ...] = ((0, b"\x07"),)
        if has_response:
            start = size - response_shape(self.workload.digests).size
            marks += tuple((start + offset, mark) for offset, mark in STATUS_MARKS)
        return Shape(size, marks)


def response_shape(digests: Digests) -> Shape:
    """A CapsuleResp with status success."""
    return Shape(CAPSULE_RESP_HLEN + DIGEST_SIZE * digests.header, STATUS_MARKS)


def _file_bytes(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), length, offset)
