"""tools/demo: a target on a file, a checkpoint saved through NVMe/TCP and proven, and a flipped byte that is found.

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
from dataclasses import asdict, dataclass
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
NAMESPACE_SLACK = 2.2
"""Room for the checkpoint, a second one, and their metadata."""
READY_SECONDS = 20.0
STOP_SECONDS = 20.0

State = dict[str, Any]


class DemonstrationError(Exception):
    """Something did not happen as it must. The text says what."""


@dataclass
class Report:
    """What was done and measured. Throughput in GB/s (10^9 bytes a second); times in seconds."""

    tensors: int = 0
    bytes: int = 0
    save_seconds: float = 0.0
    save_gbps: float = 0.0
    load_seconds: float = 0.0
    load_gbps: float = 0.0
    verify_seconds: float = 0.0
    verify_gbps: float = 0.0
    flipped: str = ""
    """The tensor in which a byte was flipped on disk."""
    found: str = ""
    """What ``nvmeof ckpt verify`` said about it."""
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
    backing = directory / "disk.img"
    with target(backing, int(report.bytes * NAMESPACE_SLACK) + (64 << 20), directory / "target.log") as url:
        console.print(f"serving {backing.name} as [bold]{url}[/]", soft_wrap=True)
        async with Store.open(url) as store:
            with timed(report, "save", console) as progress:
                await store.save(STEP, state, metadata={"made by": "tools/demo"}, progress=progress)
            with timed(report, "load", console) as progress:
                loaded = await store.load(STEP, progress=progress)
            compare(state, loaded)
            with timed(report, "verify", console) as progress:
                await store.verify(STEP, progress=progress)
        report.flipped = f"model.layers.{layers // 2}.mlp.up_proj.weight"
        position = find(backing, state[report.flipped])
        flip(backing, position)
        console.print(
            f"flipped a bit of byte {position} of {backing.name}, inside [bold]{report.flipped}[/]", soft_wrap=True
        )
        report.exit_code, report.found = verify(url)
        console.print(f"$ nvmeof ckpt verify {url}\n[red]{escape(report.found)}[/]\n", soft_wrap=True)
        flip(backing, position)
        report.exit_code_repaired, _ = verify(url)
    if report.exit_code != 1 or report.flipped not in report.found or report.exit_code_repaired != 0:
        raise DemonstrationError(f"the flipped byte was not reported as it must be: {report.found or 'nothing said'}")
    return report


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
def target(backing: Path, size: int, log: Path) -> Iterator[str]:
    """``nvmeof serve`` as a process of its own; the URL of its namespace."""
    command = [
        *(sys.executable, "-m", "nvmeof", "serve", str(backing), "--size", str(size - size % 4096)),
        *("--listen", "127.0.0.1:0", "--nqn", NQN),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
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


def find(backing: Path, tensor: Any) -> int:
    """Where some byte near the middle of the tensor lies in the file."""
    middle = tensor.tobytes()[tensor.nbytes // 2 + 12_345 :][:4096]
    with backing.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = content.find(middle)
    if position < 0:
        raise DemonstrationError(f"the bytes of the tensor are not in {backing}")
    return position


def flip(backing: Path, position: int) -> None:
    """Flip the lowest bit of one byte, behind the target's back."""
    descriptor = os.open(backing, os.O_RDWR)
    try:
        os.pwrite(descriptor, bytes([os.pread(descriptor, 1, position)[0] ^ 1]), position)
    finally:
        os.close(descriptor)


def verify(url: str) -> tuple[int, str]:
    """Exit code of ``nvmeof ckpt verify`` and what it printed."""
    command = [sys.executable, "-m", "nvmeof", "ckpt", "verify", url]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout.strip()


def summary(report: Report) -> Table:
    table = Table(
        title=f"{report.tensors} tensors, {report.bytes / 1e6:.0f} MB, over NVMe/TCP on loopback", min_width=64
    )
    table.add_column("")
    table.add_column("GB/s", justify="right", style="bold")
    table.add_column("seconds", justify="right")
    table.add_column("")
    table.add_row(
        "save", f"{report.save_gbps:.2f}", f"{report.save_seconds:.2f}", "hashed, written, flushed, committed"
    )
    table.add_row(
        "load", f"{report.load_gbps:.2f}", f"{report.load_seconds:.2f}", "every byte verified, bit for bit the same"
    )
    table.add_row("verify", f"{report.verify_gbps:.2f}", f"{report.verify_seconds:.2f}", "read back from the target")
    table.add_section()
    table.add_row("one bit flipped", "", "", f"[red]found and named[/], exit code {report.exit_code}")
    table.add_row("flipped back", "", "", f"[green]verified[/], exit code {report.exit_code_repaired}")
    return table


if __name__ == "__main__":
    sys.exit(main())
