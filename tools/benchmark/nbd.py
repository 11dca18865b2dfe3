"""The same load over NBD, with the same loop, so that servers and not clients are compared.

NBD protocol: fixed newstyle negotiation, NBD_OPT_GO, simple replies.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from tools.benchmark.load import ByteFeed, CountingLoad, Feed, PieceFeed, Shape, Tally
from tools.benchmark.nvme import WARM_SECONDS
from tools.benchmark.wire import BenchError, open_socket
from tools.benchmark.workload import Workload

MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
OPTION_GO = 7
REPLY_ACK = 1
REPLY_INFO = 3
FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2
REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = bytes.fromhex("67446698")
REPLY_SIZE = 16
COMMAND_READ = 0
COMMAND_WRITE = 1


def open_nbd(address: tuple[str, int]) -> socket.socket:
    """A connection in the transmission phase, default export."""
    sock = open_socket(address)
    try:
        if _exactly(sock, 16) != MAGIC + OPTION_MAGIC:
            raise BenchError("not a newstyle NBD server")
        flags = int.from_bytes(_exactly(sock, 2), "big")
        sock.sendall((flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)).to_bytes(4, "big"))
        sock.sendall(OPTION_MAGIC + struct.pack(">II", OPTION_GO, 6) + bytes(6))
        while True:
            magic, _option, kind, length = struct.unpack(">QIII", _exactly(sock, 20))
            _exactly(sock, length)
            if magic != OPTION_REPLY_MAGIC or kind not in (REPLY_INFO, REPLY_ACK):
                raise BenchError(f"NBD_OPT_GO was refused: reply type {kind:#x}")
            if kind == REPLY_ACK:
                return sock
    except BaseException:
        sock.close()
        raise


def run_nbd(
    address: tuple[str, int],
    workload: Workload,
    span: int,
    seconds: float,
    commands: int = 1 << 62,
    server_seconds: Callable[[], float] = lambda: 0.0,
) -> tuple[Tally, float]:
    """Warm up, count, drain. Also returns what ``server_seconds`` grew by meanwhile."""
    with open_nbd(address) as sock:
        load = _build(sock, workload, span)
        load.run(min(WARM_SECONDS, seconds), commands)
        before = server_seconds()
        tally = load.run(seconds, commands)
        spent = server_seconds() - before
        load.drain()
    return tally, spent


def fill(address: tuple[str, int], size: int, block: int = 1 << 20) -> None:
    """Write every byte once, so that no read finds a hole."""
    workload = Workload(write=True, random=False, block=block, depth=4)
    run_nbd(address, workload, size, 60.0, 2 * size // block)


def _build(sock: socket.socket, workload: Workload, span: int) -> CountingLoad:
    kind = COMMAND_WRITE if workload.write else COMMAND_READ
    requests = [
        REQUEST.pack(REQUEST_MAGIC, 0, kind, cookie, offset, workload.block)
        for cookie, offset in enumerate(workload.offsets(span))
    ]
    marks = ((0, REPLY_MAGIC[:1]), (7, b"\x00"))
    if workload.write:
        feed: Feed = PieceFeed(sock, requests, workload.payload(), workload.depth)
        return CountingLoad(sock, feed, workload.depth, Shape(REPLY_SIZE, marks))
    feed = ByteFeed(sock, b"".join(requests), REQUEST.size, workload.depth)
    return CountingLoad(sock, feed, workload.depth, Shape(REPLY_SIZE + workload.block, marks))


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise BenchError("the NBD server closed the connection")
        data += piece
    return bytes(data)
