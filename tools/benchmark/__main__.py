"""Command line of tools/bench."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from tools.benchmark import network, volume
from tools.benchmark.compare import Settings, compare
from tools.benchmark.engine import report as engine_report
from tools.benchmark.engine.speed import Settings as EngineSettings
from tools.benchmark.nvme import NvmeRun
from tools.benchmark.report import WIDTH, print_table
from tools.benchmark.servers import NBD_SERVERS, NQN, Place, pinned
from tools.benchmark.wire import BenchError, Digests
from tools.benchmark.workload import KIB, MIB, Workload, plan, result

COMMANDS = ("target", "load", "engine", "volume")
EPILOG = """\
Each run in a table is a median of an odd number of repeats, interleaved with the other subjects'. The target has
the first of --cpus to itself, the generator the second; every peer is treated alike. Figures of different runs
do not compare, ratios within one do. Volumes are files in the page cache, written beforehand in pieces of the
workload's block size (tools/benchmark/servers.py says why). On a busy machine, as root, ahead of everybody else:
  setsid --wait sh -c 'echo -20 >/proc/self/autogroup; exec tools/bench'

Where does the target spend its time? Start one, drive it, and look:
  python -m nvmeof serve /tmp/disk.img --size 1G --listen 127.0.0.1:4420 --nqn NQN &
  tools/bench load 127.0.0.1:4420 --nqn NQN --bs 4k --qd 32 --seconds 20 &
  py-spy record --native --rate 500 --duration 10 --output target.svg --pid PID    (a flame graph)
  py-spy top --pid PID
"""
SUFFIXES = {"k": KIB, "m": MIB, "g": 1 << 30}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments = ["target", *arguments]
    options = _parser().parse_args(arguments)
    try:
        return {"target": _target, "load": _load, "engine": _engine, "volume": _volume}[options.command](options)
    except BenchError as error:
        print(f"tools/bench: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Benchmarks of nvmeof beside other servers. Without a command: target.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    target = commands.add_parser("target", help="our target, nbdkit, qemu-nbd and the machine's limits, in one table")
    target.add_argument("--seconds", type=float, default=1.0, help="of each run (default 1)")
    target.add_argument("--repeats", type=_odd, default=3, help="of each run, an odd number (default 3)")
    target.add_argument("--only", default="", metavar="TEXT", help="workloads whose name contains TEXT, as 4k-randread")
    target.add_argument("--peers", default=",".join(NBD_SERVERS), help="comma-separated (default %(default)s)")
    target.add_argument("--size", type=_size, default=1 << 30, help="of the volume (default 1g)")
    target.add_argument("--idle-seconds", type=float, default=10.0, help="0 leaves the idle measurement out")
    target.add_argument("--serve-options", default="", metavar="TEXT", help="more options for nvmeof serve")
    target.add_argument("--scratch", type=Path, help="a directory on a disk file system for the volumes")
    target.add_argument("--congestion", default="cubic", help="TCP congestion control for everyone (default cubic)")
    load = commands.add_parser("load", help="drive one running NVMe/TCP target, whosever")
    load.add_argument("address", type=_address, metavar="HOST:PORT")
    load.add_argument("--nqn", default=NQN)
    load.add_argument("--rw", choices=("read", "write", "randread", "randwrite"), default="randread")
    load.add_argument("--bs", type=_size, default=4 * KIB)
    load.add_argument("--qd", type=int, default=32)
    load.add_argument("--span", type=_size, default=1 << 30, help="bytes of namespace 1 to use (writes destroy them)")
    load.add_argument("--seconds", type=float, default=2.0)
    load.add_argument("--header-digest", action="store_true")
    load.add_argument("--data-digest", action="store_true")
    engine = commands.add_parser("engine", help="a pool on real files beside what its libraries take by themselves")
    engine.add_argument("--seconds", type=float, default=0.5, help="of each run (default 0.5)")
    engine.add_argument("--repeats", type=_odd, default=5, help="of each run, an odd number (default 5)")
    engine.add_argument("--dir", type=Path, help="a directory on a disk file system for the members (2 GiB and more)")
    engine.add_argument("--member-size", type=_size, default=256 * MIB, help="of each of the six (default 256m)")
    engine.add_argument("--only", default="", metavar="TEXT", help="workloads whose name contains TEXT")
    engine.add_argument("--parts", default=",".join(engine_report.PARTS), help="comma-separated (default %(default)s)")
    engine.add_argument("--json", action="store_true", help="machine-readable, on standard output")
    files = commands.add_parser("volume", help="a file volume beside its system calls; how long the page cache stalls")
    files.add_argument("--seconds", type=float, default=0.5, help="of each run (default 0.5)")
    files.add_argument("--repeats", type=_odd, default=5, help="of each run, an odd number (default 5)")
    files.add_argument("--dir", type=Path, help="a directory on the file system to measure")
    files.add_argument("--size", type=_size, default=256 * MIB, help="of the volume (default 256m)")
    files.add_argument("--json", action="store_true", help="machine-readable, on standard output")
    for command in (target, load):
        command.add_argument("--json", action="store_true", help="machine-readable, on standard output")
        command.add_argument("--cpus", type=_cpus, default="0,1", help="of target and generator (default 0,1; or none)")
    return parser


def _target(options: argparse.Namespace) -> int:
    network.enter()
    congestion = network.prepare(options.congestion)
    workloads = plan(options.only)
    if not workloads:
        raise BenchError(f"no workload's name contains {options.only!r}")
    settings = Settings(
        options.seconds,
        options.repeats,
        workloads,
        tuple(name for name in options.peers.split(",") if name),
        options.idle_seconds,
        tuple(options.serve_options.split()),
    )
    unknown = set(settings.peers) - set(NBD_SERVERS)
    if unknown:
        raise BenchError(f"unknown peer {', '.join(sorted(unknown))}; there are {', '.join(NBD_SERVERS)}")
    server_cpu, generator_cpu = options.cpus
    busy = busy_percent()
    errors = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="nvmeof-bench-", dir=options.scratch) as scratch,
        pinned(generator_cpu),
        errors.status("starting") as status,
    ):
        found = compare(Place(Path(scratch), server_cpu, options.size), settings, status.update)
    machine = _machine(busy)
    if options.json:
        about = {"machine": machine, "congestion_control": congestion, "seconds": options.seconds}
        print(json.dumps({**about, "repeats": options.repeats, **found.to_json()}, indent=2))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        console.print(f"{machine}\n{congestion}", highlight=False)
        print_table(console, found, workloads)
    return 1 if found.errors else 0


def _engine(options: argparse.Namespace) -> int:
    parts = tuple(name for name in options.parts.split(",") if name)
    unknown = set(parts) - set(engine_report.PARTS)
    if unknown:
        raise BenchError(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(engine_report.PARTS)}")
    busy = busy_percent()
    with Console(stderr=True).status("starting") as status:
        settings = EngineSettings(
            Path(), options.seconds, options.repeats, options.member_size, options.only, status.update
        )
        found = engine_report.measure(options.dir, settings, parts)
    machine = _machine(busy)
    if options.json:
        print(json.dumps({"machine": machine, "seconds": options.seconds, "repeats": options.repeats,
                          **found.to_json()}, indent=2))  # fmt: skip
    else:
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        console.print(machine, highlight=False)
        engine_report.print_tables(console, found)
    return 0


def _volume(options: argparse.Namespace) -> int:
    busy = busy_percent()
    with Console(stderr=True).status("starting") as status:
        settings = volume.Settings(options.seconds, options.repeats, options.size, status.update)
        found = volume.measure(options.dir, settings)
    if options.json:
        print(json.dumps({"machine": _machine(busy), **found}, indent=2))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        console.print(_machine(busy), highlight=False)
        volume.print_found(console, found)
    return 0


def _machine(busy: float) -> str:
    return (
        f"{os.cpu_count()} processors ({busy:.0f} % busy before the start), Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def busy_percent(seconds: float = 0.5) -> float:
    """How busy the machine's processors are with other work, time stolen by the hypervisor included."""
    before = _ticks()
    time.sleep(seconds)
    spent = [after - start for after, start in zip(_ticks(), before, strict=True)]
    return 100 * (1 - (spent[3] + spent[4]) / max(1, sum(spent)))


def _ticks() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal."""
    return [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def _load(options: argparse.Namespace) -> int:
    digests = Digests(options.header_digest, options.data_digest)
    workload = Workload("write" in options.rw, options.rw.startswith("rand"), options.bs, options.qd, digests)
    with pinned(options.cpus[1]):
        tally, _spent = NvmeRun(options.address, options.nqn, workload, options.span).measure(options.seconds)
    found = result(workload, tally)
    if options.json:
        print(json.dumps({"workload": workload.name, **asdict(found)}, indent=2))
    else:
        tail = f", p50 {found.p50_us:.1f} us, p99 {found.p99_us:.1f} us" if found.p50_us and found.p99_us else ""
        print(f"{workload.name}: {found.iops:,.0f} IOPS, {found.mb_s:,.1f} MB/s, mean {found.mean_us:.1f} us{tail}")
    return 0


def _size(text: str) -> int:
    """4096, 4k, 1m, 1G."""
    number, factor = (text[:-1], SUFFIXES[text[-1].lower()]) if text[-1:].lower() in SUFFIXES else (text, 1)
    if not number.isascii() or not number.isdigit() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a size such as 4096, 4k or 1g")
    return int(number) * factor


def _odd(text: str) -> int:
    if not text.isdigit() or int(text) % 2 == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted an odd number")
    return int(text)


def _address(text: str) -> tuple[str, int]:
    host, _colon, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted HOST:PORT")
    return host.strip("[]"), int(port)


def _cpus(text: str) -> tuple[int | None, int | None]:
    """Two processors, or none where there are fewer than two."""
    if text == "none":
        return None, None
    there = os.sched_getaffinity(0)
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted two processors as 0,1, or none") from None
    if len(there) < 2:
        return None, None
    if not {first, second} <= there:
        raise argparse.ArgumentTypeError(f"got {text!r}, this process may use {sorted(there)}")
    return first, second


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
