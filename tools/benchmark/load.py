"""The loops that generate load: commands built beforehand, one receive and one send per wake-up.

``CountingLoad`` knows how many bytes a completion has and only counts them, looking at one or a few bytes of each; it
costs 0.4 us a command with 128 in flight and so reaches over a million a second. ``ParsingLoad`` walks the PDU headers,
for large transfers, where headers are few.
"""

from __future__ import annotations

import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from nvmeof.spec.pdu import DATA_HLEN, HEADER_SIZE, UNPACK_DATA, UNPACK_HEADER, PduFlag, PduType
from tools.benchmark.wire import STALL_SECONDS, BenchError, Buffer, Digests, digest, h2c_header

RECEIVE_BYTES = 1 << 20
PIECES_MAX = 1024
"""IOV_MAX."""
SUCCESS = int(PduFlag.SUCCESS)
C2H_DATA = int(PduType.C2H_DATA)
CAPSULE_RESP = int(PduType.CAPSULE_RESP)
R2T = int(PduType.R2T)


@dataclass(frozen=True, slots=True)
class Tally:
    """What one run counted. ``latencies`` in seconds, only at depth 1; ``cpu_seconds`` is the generator's own."""

    completed: int
    seconds: float
    wakeups: int
    cpu_seconds: float
    latencies: Sequence[float] = ()


class Feed(Protocol):
    """Commands without end."""

    issued: int

    def send(self, count: int, ahead: list[Buffer]) -> None:
        """Send ``count`` commands behind the pieces ``ahead``, in one call to the kernel where it can."""


class ByteFeed:
    """Commands of one size in one run of bytes, sent over and over."""

    def __init__(self, sock: socket.socket, commands: bytes, size: int, depth: int) -> None:
        self.issued = 0
        self._sock = sock
        self._size = size
        self._total = len(commands)
        self._view = memoryview(commands + commands[: size * depth])
        self._position = 0

    def send(self, count: int, ahead: list[Buffer]) -> None:
        length = count * self._size
        piece = self._view[self._position : self._position + length]
        if ahead:
            send_pieces(self._sock, [*ahead, piece])
        else:
            self._sock.sendall(piece)
        self._position = (self._position + length) % self._total
        self.issued += count


class PieceFeed:
    """Commands that share one payload: a header each and the payload again and again."""

    def __init__(self, sock: socket.socket, headers: Sequence[bytes], payload: bytes, depth: int) -> None:
        self.issued = 0
        self._sock = sock
        self._total = 2 * len(headers)
        self._pieces: list[Buffer] = [piece for header in headers for piece in (header, payload)]
        self._pieces += self._pieces[: 2 * depth]
        self._position = 0

    def send(self, count: int, ahead: list[Buffer]) -> None:
        send_pieces(self._sock, ahead + self._pieces[self._position : self._position + 2 * count])
        self._position = (self._position + 2 * count) % self._total
        self.issued += count


def send_pieces(sock: socket.socket, pieces: list[Buffer]) -> None:
    for first in range(0, len(pieces), PIECES_MAX):
        batch = pieces[first : first + PIECES_MAX]
        sent = sock.sendmsg(batch)
        if sent != sum(map(len, batch)):
            sock.sendall(b"".join(batch)[sent:])


class Load(ABC):
    """Keeps ``depth`` commands in flight from the first ``run`` until ``drain``."""

    def __init__(self, sock: socket.socket, feed: Feed, depth: int) -> None:
        self.feed = feed
        self._depth = depth
        self._receive = sock.recv_into
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._ahead: list[Buffer] = []
        self._started = False

    def run(self, seconds: float, commands: int = 1 << 62) -> Tally:
        """Until the time is over or so many commands are completed; those in flight then stay in flight."""
        if not self._started:
            self._started = True
            self.feed.send(self._depth, [])
        clock, send, turn, ahead = time.perf_counter, self.feed.send, self._turn, self._ahead
        stamps: list[float] = []
        stamp = stamps.append if self._depth == 1 else None
        completed = wakeups = 0
        cpu = time.thread_time()
        started = now = clock()
        deadline = started + seconds
        while now < deadline and completed < commands:
            done = turn()
            if done or ahead:
                send(done, ahead)
                ahead.clear()
                completed += done
            wakeups += 1
            now = clock()
            if stamp and done:
                stamp(now)
        cpu = time.thread_time() - cpu
        latencies = [after - before for before, after in pairwise(stamps)]
        return Tally(completed, now - started, wakeups, cpu, latencies)

    def drain(self) -> None:
        """Wait for what is in flight. The load is over."""
        remaining = self._depth if self._started else 0
        while remaining > 0:
            remaining -= self._turn()
            if self._ahead:
                self.feed.send(0, self._ahead)
                self._ahead.clear()

    @abstractmethod
    def _turn(self) -> int:
        """Receive once. Returns the number of commands completed; leaves in ``_ahead`` what must be sent."""

    def _received(self, view: memoryview) -> int:
        try:
            count = self._receive(view)
        except BlockingIOError:
            raise BenchError(f"no completion for {STALL_SECONDS} s") from None
        if not count:
            raise BenchError("the peer closed the connection")
        return count


class Shape(NamedTuple):
    """A completion on the wire: its size, and bytes that must have a certain value: (offset, byte)."""

    size: int
    marks: tuple[tuple[int, bytes], ...]


class CountingLoad(Load):
    """Every completion has the same shape; only the marks are looked at, of every completion."""

    def __init__(self, sock: socket.socket, feed: Feed, depth: int, shape: Shape) -> None:
        super().__init__(sock, feed, depth)
        self._size, self._marks = shape
        self._carry = 0

    def _turn(self) -> int:
        count = self._received(self._view)
        carry, size, buffer = self._carry, self._size, self._buffer
        for offset, mark in self._marks:
            if buffer[(offset - carry) % size : count : size].strip(mark):
                raise self._unexpected(count, offset, mark)
        done, self._carry = divmod(carry + count, size)
        return done

    def _unexpected(self, count: int, offset: int, mark: bytes) -> BenchError:
        """Shows the first completion that is not as expected: all before it were."""
        first = (offset - self._carry) % self._size
        found = self._buffer[first : count : self._size]
        start = max(0, first + (len(found) - len(found.lstrip(mark))) * self._size - offset)
        text = f"byte {offset} of a completion of {self._size} bytes is not {mark.hex()} (an error status?)"
        return BenchError(f"{text}: {self._buffer[start : min(start + DATA_HLEN, count)].hex()}")


class ParsingLoad(Load):
    """Walks the headers of an NVMe/TCP connection; answers every R2T with ``payload``."""

    def __init__(
        self,
        sock: socket.socket,
        feed: Feed,
        depth: int,
        digests: Digests,
        payload: bytes = b"",
        data_max: int = 0,
    ) -> None:
        super().__init__(sock, feed, depth)
        self._digests = digests
        self._payload = memoryview(payload)
        self._data_max = data_max
        self._tails: dict[tuple[int, int], tuple[Buffer, ...]] = {}
        self._kept = 0
        self._skip = 0
        self._late = 0

    def _turn(self) -> int:
        end = self._kept + self._received(self._view[self._kept :])
        offset = self._skip
        self._kept = 0
        if offset > end:
            self._skip = offset - end
            return 0
        done, self._late = self._late, 0
        while end - offset >= DATA_HLEN:
            kind, flags, _hlen, _pdo, plen = UNPACK_HEADER(self._buffer, offset)
            completes = self._handle(kind, flags, offset)
            offset += plen
            if offset > end:
                self._late = completes
            else:
                done += completes
        if offset >= end:
            self._skip = offset - end
        else:
            self._skip = 0
            self._kept = end - offset
            self._buffer[: self._kept] = self._buffer[offset:end]
        return done

    def _handle(self, kind: int, flags: int, offset: int) -> int:
        if kind == C2H_DATA:
            return 1 if flags & SUCCESS else 0
        if kind == CAPSULE_RESP:
            if self._buffer[offset + 22] or self._buffer[offset + 23]:
                raise BenchError(f"error status: {self._buffer[offset : offset + DATA_HLEN].hex()}")
            return 1
        if kind != R2T or not self._payload:
            raise BenchError(f"unexpected PDU: {self._buffer[offset : offset + DATA_HLEN].hex()}")
        cid, ttag, start, length = UNPACK_DATA(self._buffer, offset + HEADER_SIZE)
        self._answer(cid, ttag, start, start + length)
        return 0

    def _answer(self, cid: int, ttag: int, start: int, end: int) -> None:
        while start < end:
            length = min(self._data_max, end - start)
            self._ahead.append(h2c_header(cid, ttag, start, length, start + length == end, self._digests))
            self._ahead += self._tails.get((start, length)) or self._tail(start, length)
            start += length

    def _tail(self, start: int, length: int) -> tuple[Buffer, ...]:
        piece = self._payload[start : start + length]
        tail: tuple[Buffer, ...] = (piece, digest(piece)) if self._digests.data else (piece,)
        self._tails[start, length] = tail
        return tail
