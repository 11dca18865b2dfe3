"""The table a person reads."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from tools.benchmark.compare import NULL, OURS, Comparison
from tools.benchmark.workload import KIB, Workload

WIDTH = 118
NOTE = (
    "k/s: thousands of commands a second. In brackets: nvmeof divided by the peer. CPU: the target's, per command.\n"
    "gen: our generator, speaking NBD to the peers. fio: fio's nbd engine.\n"
    "null: a peer that only answers, so the generator's own limit."
)


def print_table(console: Console, found: Comparison, workloads: list[Workload]) -> None:
    peers = _peers(found)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("workload", "", "client"):
        table.add_column(heading, no_wrap=True)
    for heading in (OURS, "CPU us", "p99 us", *peers, NULL):
        table.add_column(heading, justify="right", no_wrap=True, style="bold" if heading == OURS else "")
    for workload in workloads:
        _add_rows(table, found, workload, peers)
    console.print(table)
    console.print(NOTE, style="dim", highlight=False)
    if found.stream_mb_s is not None:
        console.print(f"Loopback, one sender and one receiver of 1 MiB buffers: {found.stream_mb_s:,.0f} MB/s")
    if found.idle:
        console.print(
            f"Idle with one controller connected: {found.idle['cpu_percent']:.2f} % of a core over "
            f"{found.idle['seconds']:g} s, {found.idle['resident_mib']:.0f} MiB resident"
        )
    _print_aims(console, found)
    for line in found.absent:
        console.print(line, style="yellow", highlight=False)
    for line in found.errors:
        console.print(f"error: {line}", style="red", highlight=False, markup=False)


def _print_aims(console: Console, found: Comparison) -> None:
    for aim in found.aims():
        sign = "[green]reached[/green]" if aim["met"] else "[red]missed[/red] "
        bound = "at least" if aim["at_least"] else "under"
        console.print(f"{sign}  {aim['aim']} {aim['measured']:.2f} ({bound} {aim['wanted']:g})", highlight=False)


def _peers(found: Comparison) -> list[str]:
    """The NBD servers that ran, without the name of the client."""
    subjects = [subject for runs in found.runs.values() for subject in runs if subject not in (OURS, NULL)]
    return list(dict.fromkeys(subject.rsplit(" ", 1)[0] for subject in subjects))


def _add_rows(table: Table, found: Comparison, workload: Workload, peers: list[str]) -> None:
    """One row for our generator and, where fio ran, one for fio."""
    ours = found.median(workload.name, OURS)
    unit = "k/s" if workload.block < 64 * KIB else "MB/s"
    first = [workload.name, unit, "gen", _figure(found, workload, OURS)]
    first.append(f"{ours.server_us:.2f}" if ours and ours.server_us is not None else "")
    first.append(f"{ours.p99_us:.0f}" if ours and ours.p99_us is not None else "")
    first += [_figure(found, workload, f"{peer} gen", ratio=True) for peer in peers]
    table.add_row(*first, _figure(found, workload, NULL))
    second = [_figure(found, workload, f"{peer} fio", ratio=True) for peer in peers]
    if any(second):
        table.add_row("", "", "fio", "", "", "", *second, "")


def _figure(found: Comparison, workload: Workload, subject: str, *, ratio: bool = False) -> str:
    result = found.median(workload.name, subject)
    if result is None:
        return ""
    figure = f"{result.iops / 1e3:.1f}" if workload.block < 64 * KIB else f"{result.mb_s:,.0f}"
    times = found.ratio(workload.name, OURS, subject) if ratio else None
    return f"{figure} ({times:.2f})" if times else figure
