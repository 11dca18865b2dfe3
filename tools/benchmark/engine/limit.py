"""What the libraries take for a workload by themselves, one call after the other on one core: its limit.

For a write: the packer (for random data only its probe), XTS and checksum of every record; and for every stripe that
this fills P and Q, the checksums of the strips, and six writes to the page cache. For a read: reading, checksum, XTS,
decompression. No headers, no map, no event loop. A step's time is the sum of its calls; the limit is the sum of the
steps.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path

from nvmeof.codec.checksum import xxh3_64
from nvmeof.codec.packer import Packer, unpack
from nvmeof.engine.disk import FileDisk
from nvmeof.engine.layout import UNIT, stream_units
from nvmeof.engine.parity import Parity
from nvmeof.keys.cipher import DataKey, new_data_key
from nvmeof.limits import POOL_STRIP_BYTES_MAX
from tools.benchmark.workload import KIB

DATA, PARITY = 4, 2
RECORD_BYTES = 128 * KIB
PAGE = 4096
PAYLOAD = POOL_STRIP_BYTES_MAX - UNIT
ROOM = stream_units(DATA, POOL_STRIP_BYTES_MAX // PAGE) * UNIT
BUFFERS = 4
"""Stripe buffers taken in turn, as the engine does while stripes are on their way."""

Steps = dict[str, float]


class Files:
    """Six allocated files beside the pool's, written strip after strip, from the beginning again at the end."""

    def __init__(self, directory: Path, member_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.disks = [FileDisk.open(directory / f"limit-{index}", member_bytes) for index in range(DATA + PARITY)]
        for disk in self.disks:
            disk.allocate()
        self.member_bytes = member_bytes
        self.at = 0

    def advance(self, length: int) -> int:
        """The offset of the next strip."""
        if self.at + length > self.member_bytes:
            self.at = 0
        offset, self.at = self.at, self.at + length
        return offset

    def use_all(self) -> None:
        """Write all of them once: from then on they are as segments that were used before."""
        strip = bytes(POOL_STRIP_BYTES_MAX)
        for disk in self.disks:
            for offset in range(0, self.member_bytes, len(strip)):
                disk.write(offset, strip[: self.member_bytes - offset])
        self.sync()

    def sync(self) -> None:
        for disk in self.disks:
            disk.sync()

    def remove(self) -> None:
        for disk in self.disks:
            disk.close()
            disk.path.unlink(missing_ok=True)


class WriteLimit:
    """The library calls of writes of ``block`` bytes of ``data``."""

    def __init__(self, files: Files, data: Sequence[memoryview], block: int, packer: Packer) -> None:
        self.files = files
        self.packer = packer
        self.key = DataKey(new_data_key())
        self.parity = Parity(DATA, PARITY)
        self.records = [
            [view[at : at + min(block, RECORD_BYTES)] for at in range(first, first + block, RECORD_BYTES)]
            for view in data
            for first in range(0, len(view) - block + 1, block)
        ]
        self.buffers = [memoryview(mmap.mmap(-1, ROOM)) for _ in range(BUFFERS)]
        self.out = [memoryview(mmap.mmap(-1, POOL_STRIP_BYTES_MAX))[:PAYLOAD] for _ in range(PARITY)]
        self.used = 0
        self.number = 0
        self.stripes = 0

    def run(self, seconds: float, commands: int = 1 << 60) -> Steps:
        """Microseconds a command by step; ``seconds`` in all, or so many commands."""
        steps = dict.fromkeys(("packer", "xts", "record xxh3", "P+Q", "strip xxh3", "write"), 0.0)
        end = time.perf_counter() + seconds
        done = 0
        while not done or (time.perf_counter() < end and done < commands):
            for record in self.records[done % len(self.records)]:
                self._record(record, steps)
            done += 1
        return {name: 1e6 * value / done for name, value in steps.items()}

    def _record(self, record: memoryview, steps: Steps) -> None:
        clock = time.perf_counter
        begin = clock()
        packed = self.packer.pack(record)
        packed_at = clock()
        payload = record if packed is None else packed[2]
        length = len(payload)
        if self.used + UNIT + length + UNIT > ROOM:
            self._stripe(steps)
        place = self.buffers[self.stripes % BUFFERS][self.used + UNIT : self.used + UNIT + length]
        self.used += UNIT + length + -length % UNIT
        self.number += 1
        tweak = self.number.to_bytes(16, "little")
        xts_at = clock()
        self.key.encrypt_into(tweak, payload, place)
        hash_at = clock()
        xxh3_64(place)
        steps["packer"] += packed_at - begin
        steps["xts"] += hash_at - xts_at
        steps["record xxh3"] += clock() - hash_at

    def _stripe(self, steps: Steps) -> None:
        clock = time.perf_counter
        buffer = self.buffers[self.stripes % BUFFERS]
        payloads = [buffer[index * PAYLOAD : (index + 1) * PAYLOAD] for index in range(DATA)]
        offset = self.files.advance(POOL_STRIP_BYTES_MAX)
        header = bytes(UNIT)
        self.stripes, self.used = self.stripes + 1, 0
        begin = clock()
        self.parity.generate(payloads, self.out)
        hash_at = clock()
        for payload in (*payloads, *self.out):
            xxh3_64(payload)
        write_at = clock()
        for disk, payload in zip(self.files.disks, (*payloads, *self.out), strict=True):
            disk.write_two(offset, header, payload)
        steps["P+Q"] += hash_at - begin
        steps["strip xxh3"] += write_at - hash_at
        steps["write"] += clock() - write_at


class ReadLimit:
    """The library calls of reads of ``block`` bytes, from the page cache."""

    def __init__(self, files: Files, data: Sequence[memoryview], block: int, packer: Packer, size: int) -> None:
        self.files = files
        self.key = DataKey(new_data_key())
        self.block = block
        self.raw = min(block, RECORD_BYTES)
        self.packed = [packer.pack(view[: self.raw]) for view in data]
        self.each = [self.raw if packed is None else len(packed[2]) for packed in self.packed]
        self.span = max(1, min(size // DATA, files.member_bytes) // (UNIT + self.raw) - 1)
        self.scratch = memoryview(bytearray(RECORD_BYTES + UNIT))
        self.plain = memoryview(bytearray(RECORD_BYTES))
        self.out = [memoryview(bytearray(block)) for _ in range(16)]

    def run(self, seconds: float, commands: int = 1 << 60) -> Steps:
        """Microseconds a command by step."""
        steps = dict.fromkeys(("read", "record xxh3", "xts", "unpack"), 0.0)
        end = time.perf_counter() + seconds
        done = 0
        while not done or (time.perf_counter() < end and done < commands):
            out = self.out[done % len(self.out)]
            for at in range(0, self.block, self.raw):
                self._record(done * (self.block // self.raw) + at // self.raw, out[at : at + self.raw], steps)
            done += 1
        return {name: 1e6 * value / done for name, value in steps.items()}

    def _record(self, number: int, out: memoryview, steps: Steps) -> None:
        clock = time.perf_counter
        disk = self.files.disks[number % DATA]
        packed, length = self.packed[number % len(self.packed)], self.each[number % len(self.each)]
        offset = number * 2654435761 % self.span * (UNIT + self.raw)
        tweak = number.to_bytes(16, "little")
        view = self.scratch[: UNIT + length]
        body = self.scratch[UNIT : UNIT + length]
        begin = clock()
        if not disk.read_now(offset, view):
            disk.read_into(offset, view)
        hash_at = clock()
        xxh3_64(view)
        xts_at = clock()
        self.key.decrypt_into(tweak, body, out if packed is None else self.plain[:length])
        unpack_at = clock()
        if packed is not None:
            out[:] = unpack(packed[0], packed[1], packed[2], self.raw)
        steps["read"] += hash_at - begin
        steps["record xxh3"] += xts_at - hash_at
        steps["xts"] += unpack_at - xts_at
        steps["unpack"] += clock() - unpack_at


def sync_latency(files: Files, count: int) -> list[float]:
    """Seconds from the begin of six writes of one page to the end of six fdatasyncs at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    page = os.urandom(PAGE)
    found = []
    with ThreadPoolExecutor(len(files.disks)) as threads:
        for _ in range(count):
            offset = files.advance(PAGE)
            begin = time.perf_counter()
            for disk in files.disks:
                disk.write(offset, page)
            list(threads.map(lambda disk: disk.sync(), files.disks))
            found.append(time.perf_counter() - begin)
    return found
