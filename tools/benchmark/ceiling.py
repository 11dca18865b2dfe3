"""What the machine and the generator can do at best: a null responder and a loopback stream.

Run as a module it is the other end: ``sink`` swallows a stream and reports its length, ``null REQUEST REPLY HEX``
answers every REQUEST bytes with REPLY bytes that begin with HEX.
"""

from __future__ import annotations

import socket
import sys
import time

from tools.benchmark.load import ByteFeed, CountingLoad, Feed, PieceFeed, Shape, Tally
from tools.benchmark.nvme import STATUS_MARKS, WARM_SECONDS
from tools.benchmark.wire import BenchError, open_socket
from tools.benchmark.workload import Workload

STREAM_BYTES = 1 << 20
REQUEST_BYTES = 72
DEPTH_MAX = 256
AWAKE_SECONDS = 50e-6


def null_reply(workload: Workload) -> tuple[int, bytes]:
    """Size and first bytes of the canned completion: C2HData with SUCCESS, or a CapsuleResp."""
    if workload.write:
        return 24, bytes([5])
    return 24 + workload.block, bytes([7])


def run_null(address: tuple[str, int], workload: Workload, seconds: float) -> Tally:
    """The load of a workload of small blocks against a peer that does nothing but answer."""
    depth = workload.depth
    header = bytes(REQUEST_BYTES)
    with open_socket(address) as sock:
        if workload.write:
            feed: Feed = PieceFeed(sock, [header] * 4096, workload.payload(), depth)
        else:
            feed = ByteFeed(sock, header * 4096, REQUEST_BYTES, depth)
        marks = STATUS_MARKS if workload.write else ((0, b"\x07"),)
        load = CountingLoad(sock, feed, depth, Shape(null_reply(workload)[0], marks))
        load.run(min(WARM_SECONDS, seconds))
        tally = load.run(seconds)
        load.drain()
    return tally


def run_stream(address: tuple[str, int], seconds: float) -> float:
    """Bytes a second that one sender gets through loopback to one receiver."""
    data = memoryview(bytearray(STREAM_BYTES))
    with open_socket(address) as sock:
        deadline = time.perf_counter() + min(WARM_SECONDS, seconds)
        while time.perf_counter() < deadline:
            sock.sendall(data)
        sent = 0
        started = now = time.perf_counter()
        while now < started + seconds:
            sock.sendall(data)
            sent += STREAM_BYTES
            now = time.perf_counter()
        sock.shutdown(socket.SHUT_WR)
        if not sock.recv(64):
            raise BenchError("the sink went away")
    return sent / (now - started)


def _sink(sock: socket.socket) -> None:
    buffer = bytearray(STREAM_BYTES)
    total = 0
    while count := sock.recv_into(buffer):
        total += count
    sock.sendall(str(total).encode())


def _null(sock: socket.socket, request: int, reply: bytes) -> None:
    buffer = bytearray(STREAM_BYTES)
    replies = memoryview(reply * DEPTH_MAX)
    carry = 0
    while count := _receive_awake(sock, buffer):
        done, carry = divmod(carry + count, request)
        sock.sendall(replies[: done * len(reply)])


def _receive_awake(sock: socket.socket, buffer: bytearray) -> int:
    """Poll a while before sleeping: waking a sleeping processor would be what is measured."""
    deadline = time.perf_counter() + AWAKE_SECONDS
    while True:
        try:
            return sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if time.perf_counter() > deadline:
                return sock.recv_into(buffer)


def main(arguments: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"READY 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            sock, _peer = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with sock:
                try:
                    if arguments[0] == "sink":
                        _sink(sock)
                    else:
                        _null(sock, int(arguments[1]), bytes.fromhex(arguments[3]).ljust(int(arguments[2]), b"\0"))
                except ConnectionError:
                    continue


if __name__ == "__main__":
    main(sys.argv[1:])
