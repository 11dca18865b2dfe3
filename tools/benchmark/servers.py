"""The servers under test, each a process on a processor of its own, stopped when the block ends."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tools.benchmark.wire import BenchError
from tools.benchmark.workload import MIB

ROOT = Path(__file__).resolve().parents[2]
NQN = "nqn.2024-01.org.nvmeof-store:bench"
READY_SECONDS = 20.0
READY = re.compile(r"READY.*?127\.0\.0\.1:(\d+)")
HOST = "127.0.0.1"


@dataclass
class Server:
    """A process that listens."""

    name: str
    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    image: Path | None = None

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()


@dataclass(frozen=True)
class Place:
    """Where servers keep their files, and on which processor they run."""

    scratch: Path
    cpu: int | None
    size: int


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """This thread, and what it starts meanwhile, on one processor."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def python_server(place: Place, name: str, arguments: list[str], image: Path | None = None) -> Iterator[Server]:
    """A Python module that prints a READY line."""
    log = place.scratch / f"{name}.log"
    with log.open("wb") as output, _process(place, [sys.executable, "-m", *arguments], output) as process:
        yield Server(name, process, (HOST, _ready_port(process, log)), image)


@contextmanager
def target(place: Place, extra: tuple[str, ...] = ()) -> Iterator[Server]:
    """Our own target on a plain volume in the page cache."""
    image = write_file(place.scratch / "nvmeof.img", place.size, MIB)
    arguments = ["nvmeof", "serve", str(image), "--size", str(place.size), "--listen", f"{HOST}:0", "--nqn", NQN]
    with python_server(place, "nvmeof", [*arguments, "--block-size", "4096", *extra], image) as server:
        yield server


@contextmanager
def nbd_server(place: Place, name: str) -> Iterator[Server]:
    """One of ``NBD_SERVERS``. Raises BenchError when it is not installed."""
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    image = place.scratch / f"{name}.img"
    command = {
        "nbdkit": ["nbdkit", "-f", "-i", HOST, "-p", str(port), "memory", str(place.size)],
        "nbdkit-file": ["nbdkit", "-f", "-i", HOST, "-p", str(port), "file", str(image)],
        "qemu-nbd": ["qemu-nbd", "-t", "-f", "raw", "-b", HOST, "-p", str(port), "--shared=4", str(image)],
    }[name]
    if shutil.which(command[0]) is None:
        raise BenchError(f"{name}: not installed")
    if str(image) in command:
        write_file(image, place.size, MIB)
    log = place.scratch / f"{name}.log"
    with log.open("wb") as output, _process(place, command, output) as process:
        _await_listener(process, log, port)
        yield Server(name, process, (HOST, port), image if str(image) in command else None)


NBD_SERVERS = ("nbdkit", "nbdkit-file", "qemu-nbd")


def write_file(path: Path, size: int, block: int) -> Path:
    """A file without holes, on disk and in the page cache, written in pieces of ``block`` bytes.

    The pieces matter. ext4 (Linux 6.16 and newer) caches a large write as one large folio and looks at every block of
    it for each later write into it: 4 KiB written at random over 1 GiB take 1.1 us each when the file was written in
    pieces of 4 KiB, 3 us with 64 KiB and 11 us with 1 MiB; 1 MiB written in order takes 110, 75 and 60 us.
    """
    piece = os.urandom(block)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for offset in range(0, size, block):
            os.pwrite(descriptor, piece[: size - offset], offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path


@contextmanager
def _process(place: Place, command: list[str], output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with pinned(place.cpu):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        found = READY.search(log.read_text(errors="replace"))
        if found:
            return int(found[1])
        _check_alive(process, log)
        time.sleep(0.02)
    raise BenchError(f"{log.stem}: no READY line within {READY_SECONDS:.0f} s:\n{log.read_text(errors='replace')}")


def _await_listener(process: subprocess.Popen[bytes], log: Path, port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except ConnectionRefusedError:
            _check_alive(process, log)
            time.sleep(0.02)
    raise BenchError(f"{log.stem}: nothing listens on port {port} after {READY_SECONDS:.0f} s")


def _check_alive(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        raise BenchError(f"{log.stem}: exited with {process.returncode}:\n{log.read_text(errors='replace').strip()}")
