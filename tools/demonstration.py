"""tools/demo: a pool of six members served over NVMe/TCP, a checkpoint on it, two members lost, and bytes flipped.

Everything happens in a directory that is removed afterwards. Nothing needs root; one port of 127.0.0.1 is used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from nvmeof.checkpoint import Store
from nvmeof.errors import NvmeofError

HIDDEN = 1024
VOCABULARY = 32_000
LAYERS = 12
STEP = 1000
SEED = 20_261_120
NQN = "nqn.2026-11.org.example:demo"
MEMBERS = 6
LOST = (1, 4)
BEYOND = (0, 2, 3)
"""Members that are damaged at one place: one more than parity makes good."""
POOL_SLACK = 2.2
"""Room for the checkpoint, a second one, and their metadata."""
READY_SECONDS = 20.0
STOP_SECONDS = 20.0
PAGE = 4096
PIECE = 1 << 20

State = dict[str, Any]


class DemonstrationError(Exception):
    """Something did not happen as it must. The text says what."""


@dataclass
class Report:
    """What was done and measured. Throughput in GB/s (10^9 bytes a second); times in seconds; codes of commands."""

    tensors: int = 0
    bytes: int = 0
    save_seconds: float = 0.0
    save_gbps: float = 0.0
    load_seconds: float = 0.0
    load_gbps: float = 0.0
    verify_seconds: float = 0.0
    verify_gbps: float = 0.0
    plaintext: bool = True
    """Whether bytes of a tensor were found on a member."""
    lost: list[str] = field(default_factory=list)
    degraded_seconds: float = 0.0
    degraded_gbps: float = 0.0
    """Of verifying without the members that were lost."""
    status_degraded: int = -1
    rebuild_seconds: float = 0.0
    status_rebuilt: int = -1
    flipped: str = ""
    """The byte that was flipped on one member, and what ``nvmeof pool scrub`` said about it."""
    healed: str = ""
    scrub: int = -1
    scrub_again: int = -1
    found: str = ""
    """What ``nvmeof ckpt verify`` said when more was damaged than parity makes good."""
    exit_code: int = -1
    exit_code_repaired: int = -1


def main() -> int:
    args = arguments()
    console = Console(stderr=args.json, quiet=args.json and not sys.stderr.isatty(), highlight=False)
    try:
        with (
            tempfile.TemporaryDirectory(
                prefix="nvmeof-demo-", dir=args.directory, ignore_cleanup_errors=True
            ) as directory,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            report = runner.run(demonstrate(Path(directory), args.layers, console))
    except (DemonstrationError, NvmeofError, OSError) as error:
        print(f"tools/demo: {error}", file=sys.stderr)
        return 3
    if args.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        console.print(summary(report))
    return 0


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(64, f"{self.prog}: {message}\n")


def arguments() -> argparse.Namespace:
    parser = Parser(prog="tools/demo", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"of the model, 25 MB each (default: {LAYERS})")
    parser.add_argument("--directory", type=Path, help="where the files go (default: the system's temporary directory)")
    args = parser.parse_args()
    if not 1 <= args.layers <= 1000:
        parser.error(f"--layers: got {args.layers}, wanted 1 to 1000")
    return args


async def demonstrate(directory: Path, layers: int, console: Console) -> Report:
    state = transformer(layers)
    report = Report(tensors=len(state), bytes=sum(tensor.nbytes for tensor in state.values()))
    pool, key = directory / "pool", directory / "pool.key"
    size = f"{(int(report.bytes * POOL_SLACK) >> 20) + 64}M"
    command = ["pool", "create", pool.name, "--members", MEMBERS, "--size", size, "--key-file", key.name]
    run(console, pool, command, wanted=0)
    with target(pool, key, directory / "target.log") as url:
        console.print(f"serving it as [bold]{url}[/]\n", soft_wrap=True)
        async with Store.open(url) as store:
            with timed(report, "save", console) as progress:
                await store.save(STEP, state, metadata={"made by": "tools/demo"}, progress=progress)
            with timed(report, "load", console) as progress:
                loaded = await store.load(STEP, progress=progress)
            compare(state, loaded)
            with timed(report, "verify", console) as progress:
                await store.verify(STEP, progress=progress)
            report.plaintext = any(contains(member, state) for member in sorted(pool.glob("member-*")))
            await lose_two(pool, state, store, report, console)
        rebuild(pool, report, console)
        flip_one(pool, report, console)
        damage_three(pool, url, report, console)
    check(report)
    return report


async def lose_two(pool: Path, state: State, store: Store, report: Report, console: Console) -> None:
    """Two members vanish under the serving process; it goes on, for readers and for writers."""
    for number in LOST:
        member(pool, number).unlink()
        report.lost.append(member(pool, number).name)
    console.print(f"$ rm {' '.join(report.lost)}")
    embedding = next(iter(state))
    await store.save(STEP + 1, {embedding: state[embedding]})
    with timed(report, "degraded", console) as progress:
        await store.verify(STEP, progress=progress)
    report.status_degraded, _ = run(console, pool, ["pool", "status", pool.name])


def rebuild(pool: Path, report: Report, console: Console) -> None:
    """New members take the place of those that were lost."""
    start = time.perf_counter()
    for number in LOST:
        run(console, pool, ["pool", "replace", pool.name, number, "--wait"], wanted=0)
    report.rebuild_seconds = round(time.perf_counter() - start, 3)
    report.status_rebuilt, _ = run(console, pool, ["pool", "status", pool.name])


def flip_one(pool: Path, report: Report, console: Console) -> None:
    """One byte, where data is."""
    broken = member(pool, 0)
    position = used(broken) // 2 // PAGE * PAGE + 1234
    flip(broken, position)
    report.flipped = f"byte {position} of {broken.name}"
    console.print(f"flipped a bit of {report.flipped}")
    report.scrub, report.healed = run(console, pool, ["pool", "scrub", pool.name])
    report.scrub_again, _ = run(console, pool, ["pool", "scrub", pool.name])


def damage_three(pool: Path, url: str, report: Report, console: Console) -> None:
    """The same place of three members: more than two strips of a stripe are bad, and no reader gets any of it."""
    start = used(member(pool, 0)) // 2 // PAGE * PAGE + 321
    places = [(member(pool, number), start + at) for number in BEYOND for at in range(0, PIECE, PAGE)]
    for place in places:
        flip(*place)
    console.print(f"flipped bits of {len(BEYOND)} members within 1 MiB, more than {len(LOST)} can make good")
    report.exit_code, report.found = run(console, pool, ["ckpt", "verify", url])
    for place in places:
        flip(*place)
    console.print("flipped them back")
    report.exit_code_repaired, _ = run(console, pool, ["ckpt", "verify", url])


def check(report: Report) -> None:
    """Everything that the summary claims."""
    expected = {
        "plaintext": False,
        "status_degraded": 1,
        "status_rebuilt": 0,
        "scrub": 1,
        "scrub_again": 0,
        "exit_code": 1,
        "exit_code_repaired": 0,
    }
    for name, value in expected.items():
        if getattr(report, name) != value:
            raise DemonstrationError(f"{name} is {getattr(report, name)}, and must be {value}")
    if "model." not in report.found:
        raise DemonstrationError(f"the damage was not reported as it must be: {report.found or 'nothing said'}")


def run(console: Console, pool: Path, arguments: list[object], wanted: int | None = None) -> tuple[int, str]:
    """Exit code of an ``nvmeof`` command beside the pool, and what it printed."""
    command = [sys.executable, "-m", "nvmeof", *map(str, arguments)]
    result = subprocess.run(
        command, cwd=pool.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    said = (result.stdout + result.stderr).strip()
    console.print(f"$ nvmeof {' '.join(map(str, arguments))}", soft_wrap=True, markup=False, style="bold")
    colour = "red" if result.returncode else "green"
    console.print(f"[{colour}]{escape(said)}[/]\n", soft_wrap=True)
    if wanted is not None and result.returncode != wanted:
        raise DemonstrationError(f"nvmeof {arguments[0]} {arguments[1]}: exit code {result.returncode}: {said}")
    return result.returncode, said


def transformer(layers: int) -> State:
    """Weights of a decoder-only transformer in float16, the same ones every time; none is infinite or NaN."""
    rng = np.random.default_rng(SEED)

    def weight(*shape: int) -> Any:
        bits = rng.integers(0, 1 << 16, size=shape, dtype=np.uint16)
        return (bits & 0xBFFF).view(np.float16)

    state: State = {"model.embed_tokens.weight": weight(VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            state[f"{prefix}.self_attn.{name}.weight"] = weight(HIDDEN, HIDDEN)
        state[f"{prefix}.mlp.up_proj.weight"] = weight(4 * HIDDEN, HIDDEN)
        state[f"{prefix}.mlp.down_proj.weight"] = weight(HIDDEN, 4 * HIDDEN)
        state[f"{prefix}.input_layernorm.weight"] = weight(HIDDEN)
        state[f"{prefix}.post_attention_layernorm.weight"] = weight(HIDDEN)
    state["model.norm.weight"] = weight(HIDDEN)
    return state


@contextlib.contextmanager
def target(pool: Path, key: Path, log: Path) -> Iterator[str]:
    """``nvmeof serve`` as a process of its own; the URL of its namespace."""
    command = [
        *(sys.executable, "-m", "nvmeof", "serve", "--pool", pool.name, "--key-file", key.name),
        *("--listen", "127.0.0.1:0", "--nqn", NQN),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=pool.parent, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield f"nvme+tcp://{ready_address(process, log)}/{NQN}/1"
        process.send_signal(signal.SIGTERM)
        if process.wait(STOP_SECONDS):
            raise DemonstrationError(f"the target ended with exit code {process.returncode}: {last_line(log)}")
    finally:
        process.kill()
        process.wait()


def ready_address(process: subprocess.Popen[bytes], log: Path) -> str:
    """HOST:PORT from the line that starts with READY."""
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("READY"):
                return line.split()[1]
        time.sleep(0.02)
    raise DemonstrationError(f"the target did not start: {last_line(log)}")


def last_line(log: Path) -> str:
    return (log.read_text().strip().splitlines() or ["it said nothing"])[-1]


@contextlib.contextmanager
def timed(report: Report, what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show progress on a terminal; keep the seconds and the throughput of what is done inside."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=report.bytes)
        start = time.perf_counter()
        yield lambda done, total: bar.update(task, completed=done, total=total)
        elapsed = time.perf_counter() - start
    setattr(report, f"{what}_seconds", round(elapsed, 3))
    setattr(report, f"{what}_gbps", round(report.bytes / elapsed / 1e9, 3))


def compare(saved: State, loaded: State) -> None:
    """Bit for bit, beside the hashes that load has checked already."""
    if list(saved) != list(loaded):
        raise DemonstrationError("what was loaded does not have the tensors that were saved")
    for name, tensor in saved.items():
        if not np.array_equal(tensor.view(np.uint16), np.asarray(loaded[name]).view(np.uint16)):
            raise DemonstrationError(f"{name} is not what was saved")


def member(pool: Path, number: int) -> Path:
    return pool / f"member-{number:02d}.nvmeof"


def contains(file: Path, state: State) -> bool:
    """Whether some bytes from the middle of a tensor lie in a file as they are."""
    tensor = next(iter(state.values()))
    sample = tensor.tobytes()[tensor.nbytes // 2 :][:64]
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(sample) >= 0


def used(file: Path) -> int:
    """Bytes up to the last piece that is not all zeros, but for the copies at a member's end."""
    position = file.stat().st_size - 2 * PIECE
    with file.open("rb") as opened:
        while position > 0:
            opened.seek(position)
            if any(opened.read(PIECE)):
                return position
            position -= PIECE
    raise DemonstrationError(f"there is nothing in {file}")


def flip(file: Path, position: int) -> None:
    """Flip the lowest bit of one byte, behind the target's back."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.pwrite(descriptor, bytes([os.pread(descriptor, 1, position)[0] ^ 1]), position)
    finally:
        os.close(descriptor)


def summary(report: Report) -> Table:
    table = Table(
        title=f"{report.tensors} tensors, {report.bytes / 1e6:.0f} MB, on an encrypted RAID-6 pool over NVMe/TCP",
        min_width=64,
    )
    table.add_column("")
    table.add_column("GB/s", justify="right", style="bold")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for what, how in (
        ("save", "hashed, written, flushed, committed"),
        ("load", "verified, bit for bit the same"),
        ("verify", "read back from the target"),
        ("degraded", f"without {' and '.join(name.split('.')[0] for name in report.lost)}"),
    ):
        speed, seconds = getattr(report, f"{what}_gbps"), getattr(report, f"{what}_seconds")
        table.add_row(what, f"{speed:.2f}", f"{seconds:.2f}", how)
    table.add_row("rebuild", "", f"{report.rebuild_seconds:.2f}", "[green]both replaced while serving[/]")
    table.add_section()
    table.add_row("on the members", "", "", "[green]no plaintext[/]")
    table.add_row("one bit flipped", "", "", f"[green]found, named and healed[/], exit code {report.scrub}")
    table.add_row("scrubbed again", "", "", f"[green]nothing bad[/], exit code {report.scrub_again}")
    table.add_row("three members hit", "", "", f"[red]refused and named[/], exit code {report.exit_code}")
    table.add_row("flipped back", "", "", f"[green]verified[/], exit code {report.exit_code_repaired}")
    return table


if __name__ == "__main__":
    sys.exit(main())
