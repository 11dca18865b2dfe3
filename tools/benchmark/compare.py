"""Every subject under every workload, interleaved, and the medians beside each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from tools.benchmark.ceiling import null_reply, run_null, run_stream
from tools.benchmark.fio import run_fio, why_not
from tools.benchmark.nbd import fill, run_nbd
from tools.benchmark.nvme import NvmeRun
from tools.benchmark.servers import NBD_SERVERS, NQN, Place, Server, nbd_server, python_server, target, write_file
from tools.benchmark.wire import NO_DIGESTS, BenchError, open_session
from tools.benchmark.workload import KIB, MIB, Result, Workload, result

OURS = "nvmeof"
NULL = "null"


class Subject(NamedTuple):
    """Something a workload can run against; ``run`` raises BenchError."""

    name: str
    run: Callable[[Workload, float], Result]
    fits: Callable[[Workload], bool]


@dataclass
class Comparison:
    """What a benchmark found: runs by workload and subject, and everything beside them."""

    runs: dict[str, dict[str, list[Result]]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    stream_mb_s: float | None = None
    idle: dict[str, float] | None = None

    def median(self, workload: str, subject: str) -> Result | None:
        """The run in the middle, by IOPS."""
        runs = self.runs.get(workload, {}).get(subject)
        return sorted(runs, key=lambda run: run.iops)[len(runs) // 2] if runs else None

    def ratio(self, workload: str, subject: str, to: str, to_workload: str = "") -> float | None:
        """Median of ``subject`` over median of ``to``."""
        mine, other = self.median(workload, subject), self.median(to_workload or workload, to)
        return mine.iops / other.iops if mine and other else None

    def aims(self) -> list[dict[str, Any]]:
        """What the project wants to reach, and what was measured."""
        small, large = "4k-randread-qd32", "128k-write-qd16"
        rows: list[tuple[str, float | None, float, bool]] = [
            (f"{name}: times nbdkit under {client}", self.ratio(name, OURS, f"nbdkit {client}"), wanted, True)
            for name, wanted in ((small, 2.0), (large, 0.9))
            for client in ("fio", "gen")
        ]
        rows += [
            (f"{name} with both digests: of without", self.ratio(name + "-digests", OURS, OURS, name), 0.75, True)
            for name in (small, "4k-randwrite-qd32", "128k-read-qd16", large)
        ]
        if self.idle:
            rows.append(("idle: % of a core", self.idle["cpu_percent"], 0.5, False))
            rows.append(("idle: MiB resident", self.idle["resident_mib"], 100.0, False))
        return [
            {"aim": name, "wanted": wanted, "at_least": least, "measured": value,
             "met": value >= wanted if least else value <= wanted}
            for name, value, wanted, least in rows
            if value is not None
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        results = []
        for workload, subjects in self.runs.items():
            ours = self.median(workload, OURS)
            for subject in subjects:
                middle = self.median(workload, subject)
                assert middle is not None
                runs = [run.iops for run in subjects[subject]]
                ratio = ours.iops / middle.iops if ours else None
                results.append({"workload": workload, "subject": subject, **asdict(middle), "runs_iops": runs,
                                "nvmeof_over_this": ratio})  # fmt: skip
        return {"results": results, "aims": self.aims(), "idle": self.idle, "loopback_mb_s": self.stream_mb_s,
                "absent": self.absent, "errors": self.errors}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How long and how often. ``peers`` are NBD servers; ``idle_seconds`` 0 leaves the idle measurement out."""

    seconds: float
    repeats: int
    workloads: list[Workload]
    peers: tuple[str, ...] = NBD_SERVERS
    idle_seconds: float = 10.0
    serve_options: tuple[str, ...] = ()


def compare(place: Place, settings: Settings, progress: Callable[[str], None]) -> Comparison:
    """Start everything, run everything, stop everything."""
    found = Comparison()
    with ExitStack() as stack:
        progress("starting")
        ours = stack.enter_context(target(place, settings.serve_options))
        if settings.idle_seconds:
            progress(f"idle for {settings.idle_seconds:g} s")
            found.idle = measure_idle(ours, settings.idle_seconds)
        progress("starting the others")
        subjects = [_ours(ours, place.size)]
        for name in settings.peers:
            subjects += _peer(stack, place, name, found)
        found.stream_mb_s = _stream(place, settings)
        block = 0
        for workload in settings.workloads:
            if block != workload.block:
                block = workload.block
                progress(f"writing the volumes in pieces of {block} bytes")
                for path in place.scratch.glob("*.img"):
                    write_file(path, place.size, block)
            for _ in range(settings.repeats):
                _once(place, workload, subjects, settings.seconds, found, progress)
    return found


def measure_idle(server: Server, seconds: float) -> dict[str, float]:
    """Processor and memory of a target with one controller that nobody uses."""
    session = open_session(server.address, NQN, NO_DIGESTS, 128)
    try:
        time.sleep(0.2)
        before, started = server.cpu_seconds(), time.perf_counter()
        time.sleep(seconds)
        spent = (server.cpu_seconds() - before) / (time.perf_counter() - started)
    finally:
        session.close()
    return {"cpu_percent": 100 * spent, "resident_mib": server.resident_bytes() / MIB, "seconds": seconds}


def _once(
    place: Place,
    workload: Workload,
    subjects: list[Subject],
    seconds: float,
    found: Comparison,
    progress: Callable[[str], None],
) -> None:
    runs = found.runs.setdefault(workload.name, {})
    for subject in subjects:
        if not subject.fits(workload):
            continue
        progress(f"{workload.name}  {subject.name}")
        _try(subject, workload, seconds, runs, found)
    if workload.block <= 4 * KIB and workload.digests == NO_DIGESTS:
        progress(f"{workload.name}  {NULL}")
        with _null(place, workload) as subject:
            _try(subject, workload, seconds, runs, found)


def _try(
    subject: Subject, workload: Workload, seconds: float, runs: dict[str, list[Result]], found: Comparison
) -> None:
    try:
        runs.setdefault(subject.name, []).append(subject.run(workload, seconds))
    except (BenchError, OSError) as error:
        message = f"{workload.name}, {subject.name}: {error}"
        if message not in found.errors:
            found.errors.append(message)
        if not runs[subject.name]:
            del runs[subject.name]


def _ours(server: Server, size: int) -> Subject:
    def run(workload: Workload, seconds: float) -> Result:
        image = server.image if not workload.write else None
        load = NvmeRun(server.address, NQN, workload, size, image)
        return result(workload, *load.measure(seconds, server_seconds=server.cpu_seconds))

    return Subject(OURS, run, lambda workload: True)


def _peer(stack: ExitStack, place: Place, name: str, found: Comparison) -> list[Subject]:
    """An NBD server, driven by our loop and by fio."""
    try:
        server = stack.enter_context(nbd_server(place, name))
    except BenchError as error:
        found.absent.append(str(error))
        return []
    if server.image is None:
        fill(server.address, place.size)

    def ours(workload: Workload, seconds: float) -> Result:
        return result(workload, *run_nbd(server.address, workload, place.size, seconds,
                                         server_seconds=server.cpu_seconds))  # fmt: skip

    def fio(workload: Workload, seconds: float) -> Result:
        return run_fio(server.address, workload, place.size, seconds)

    subjects = [Subject(f"{name} gen", ours, _plain)]
    if why_not():
        if why_not() not in found.absent:
            found.absent.append(why_not())
    else:
        subjects.append(Subject(f"{name} fio", fio, _plain))
    return subjects


def _plain(workload: Workload) -> bool:
    return workload.digests == NO_DIGESTS


@contextmanager
def _null(place: Place, workload: Workload) -> Iterator[Subject]:
    size, head = null_reply(workload)
    request = 72 + (workload.block if workload.write else 0)
    arguments = ["tools.benchmark.ceiling", "null", str(request), str(size), head.hex()]
    with python_server(place, NULL, arguments) as server:
        yield Subject(NULL, lambda work, seconds: result(work, run_null(server.address, work, seconds)), _plain)


def _stream(place: Place, settings: Settings) -> float:
    with python_server(place, "sink", ["tools.benchmark.ceiling", "sink"]) as server:
        rates = [run_stream(server.address, settings.seconds) / 1e6 for _ in range(settings.repeats)]
    return sorted(rates)[len(rates) // 2]
