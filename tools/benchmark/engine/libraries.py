"""Which libraries let another thread run: the same calls by one thread and by two."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.block
import zstandard

from nvmeof.codec.checksum import xxh3_64
from nvmeof.codec.packer import Packer
from nvmeof.codec.planes import split_planes
from nvmeof.engine.parity import Parity
from nvmeof.keys.cipher import DataKey, new_data_key
from tools.benchmark.engine.data import pieces
from tools.benchmark.engine.limit import DATA, PARITY, PAYLOAD
from tools.benchmark.workload import KIB

Call = Callable[[], object]


def calls(path: Path) -> dict[str, Callable[[], Call]]:
    """By name, what makes a thread's own call."""
    weights, noise = pieces("bf16")[0][: 128 * KIB], pieces("random")[0][: 128 * KIB]
    planes = split_planes(weights, 2)
    key = DataKey(new_data_key())
    parity = Parity(DATA, PARITY)

    def zstd() -> Call:
        compressor = zstandard.ZstdCompressor(level=1)
        return lambda: compressor.compress(planes)

    def unzstd() -> Call:
        packed, decompressor = zstandard.ZstdCompressor(level=1).compress(planes), zstandard.ZstdDecompressor()
        return lambda: decompressor.decompress(packed)

    def xts(length: int) -> Callable[[], Call]:
        def make() -> Call:
            out = memoryview(bytearray(length))
            return lambda: key.encrypt_into(bytes(16), noise[:length], out)

        return make

    def pq() -> Call:
        views = [_aligned(PAYLOAD) for _ in range(DATA + PARITY)]
        return lambda: parity.generate(views[:DATA], views[DATA:])

    def pwrite() -> Call:
        descriptor = os.open(f"{path}-{threading.get_ident()}", os.O_RDWR | os.O_CREAT, 0o600)
        return lambda: os.pwrite(descriptor, noise, 0)

    def pread() -> Call:
        descriptor = os.open(f"{path}-{threading.get_ident()}", os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(descriptor, noise, 0)
        out = bytearray(len(noise))
        return lambda: os.preadv(descriptor, (out,), 0)

    packer = Packer("zstd")
    return {
        "packer, bf16 128k": lambda: lambda: packer.pack(weights),
        "packer, random 128k": lambda: lambda: packer.pack(noise),
        "zstd-1 compress 128k": zstd,
        "zstd decompress 128k": unzstd,
        "lz4 compress 128k": lambda: lambda: lz4.block.compress(weights, store_size=False),
        "byte planes (numpy) 128k": lambda: lambda: split_planes(weights, 2),
        "xts 4k": xts(4 * KIB),
        "xts 128k": xts(128 * KIB),
        "xxh3 4k": lambda: lambda: xxh3_64(noise[: 4 * KIB]),
        "xxh3 128k": lambda: lambda: xxh3_64(noise),
        "P+Q 4 x 260k": pq,
        "pwrite 128k": pwrite,
        "pread 128k": pread,
    }


def _aligned(length: int) -> memoryview:
    import mmap

    return memoryview(mmap.mmap(-1, length))


def measure(directory: Path, seconds: float, repeats: int) -> dict[str, dict[str, Any]]:
    """Microseconds of a call by one thread, and calls by two threads over those by one."""
    found = {}
    for name, make in calls(directory / "library").items():
        one: list[float] = []
        both: list[float] = []
        for _ in range(repeats):
            alone = rate(make, 1, seconds)
            one.append(1e6 / alone)
            both.append(rate(make, 2, seconds) / alone)
        found[name] = {"us": statistics.median(one), "two_threads_over_one": statistics.median(both)}
    for path in directory.glob("library-*"):
        path.unlink()
    return found


def rate(make: Callable[[], Call], threads: int, seconds: float) -> float:
    """Calls a second by so many threads together."""
    counts = [0.0] * threads
    start = threading.Barrier(threads)

    def work(number: int) -> None:
        call = make()
        call()
        start.wait()
        begin = now = time.perf_counter()
        done = 0
        while now < begin + seconds:
            for _ in range(4):
                call()
            done += 4
            now = time.perf_counter()
        counts[number] = done / (now - begin)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts)
