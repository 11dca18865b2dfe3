"""Everything tools/bench engine measures, what was wanted of it, and the tables a person reads."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tools.benchmark.engine import libraries, memory, opening, space, speed
from tools.benchmark.engine.speed import Settings
from tools.benchmark.workload import KIB, MIB

PARTS = ("speed", "threads", "libraries", "fua", "memory", "opening", "space")
MEMORY_MIB = 16384
NO_HARM = 0.93
"""Two threads over one, which must not be worse: runs of the same on other files differ by up to so much."""


@dataclass
class Found:
    """What was measured, by part."""

    parts: dict[str, Any] = field(default_factory=dict)

    def aims(self) -> list[dict[str, Any]]:
        """What the project wants to reach, and what was measured."""
        rows: list[tuple[str, float, float, bool]] = []
        for row in self.parts.get("speed", []):
            if row["wanted_of_limit"]:
                rows.append((f"{row['workload']}: of the limit", row["of_limit"], row["wanted_of_limit"], True))
            if row["wanted_per_second"]:
                rows.append((f"{row['workload']}: a second", row["per_second"], row["wanted_per_second"], True))
        for name, by_count in self.parts.get("threads", {}).items():
            rows.append((f"{name}: two threads over one", by_count["2"] / by_count["1"], NO_HARM, True))
        rows += self._other_rows()
        return [
            {"aim": name, "wanted": wanted, "at_least": least, "measured": value,
             "met": value >= wanted if least else value <= wanted}
            for name, value, wanted, least in rows
        ]  # fmt: skip

    def _other_rows(self) -> list[tuple[str, float, float, bool]]:
        rows: list[tuple[str, float, float, bool]] = []
        if fua := self.parts.get("fua"):
            rows.append(("4k FUA: syncs each", fua["depth_1"]["syncs_per_fua"], 1.0, False))
            rows.append(("4k FUA, 32 at a time: syncs each", fua["depth_32"]["syncs_per_fua"], 0.25, False))
        if used := self.parts.get("memory"):
            rows.append(("bytes of memory per 4 KiB block written", used["bytes_per_block"], 9.0, False))
            rows.append(("fixed MiB of memory", used["fixed_mib"], 64.0, False))
        for name, row in self.parts.get("opening", {}).items():
            wanted = 1.0 + row["tail_mib"] / 1024
            rows.append((f"opening, {name}: seconds", row["seconds"], wanted, False))
        return rows

    def to_json(self) -> dict[str, Any]:
        return {**self.parts, "aims": self.aims()}


def measure(directory: Path | None, settings: Settings, parts: Sequence[str]) -> Found:
    """Run ``parts`` in a directory of its own below ``directory``, which is removed."""
    import uvloop

    with (
        tempfile.TemporaryDirectory(prefix="nvmeof-bench-", dir=directory) as scratch,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_measure(replace(settings, directory=Path(scratch)), parts))


async def _measure(settings: Settings, parts: Sequence[str]) -> Found:
    found = Found()
    if "speed" in parts:
        found.parts["speed"] = [each.to_json() for each in await speed.measure(settings)]
    if "threads" in parts:
        rates = await speed.measure_threads(settings)
        found.parts["threads"] = {name: {str(key): rate for key, rate in by.items()} for name, by in rates.items()}
    if "libraries" in parts:
        settings.progress("libraries, one thread and two")
        found.parts["libraries"] = libraries.measure(settings.directory, settings.seconds / 4, settings.repeats)
    if "fua" in parts:
        found.parts["fua"] = await speed.measure_fua(settings)
    if "memory" in parts:
        settings.progress("memory")
        mib = min(MEMORY_MIB, 64 * settings.member_bytes // MIB)
        found.parts["memory"] = await asyncio.to_thread(memory.measure_apart, settings.directory / "memory", mib)
    if "opening" in parts:
        found.parts["opening"] = await opening.measure(settings)
    if "space" in parts:
        found.parts["space"] = await space.measure(settings)
    return found


# --- tables -----------------------------------------------------------------------------------------------------------


def print_tables(console: Console, found: Found) -> None:
    parts = found.parts
    if "speed" in parts:
        _print_speed(console, parts["speed"])
    if "threads" in parts:
        rows = [(name, *(f"{by[count]:,.0f}" for count in by), f"{by['2'] / by['1']:.2f}")
                for name, by in parts["threads"].items()]  # fmt: skip
        _table(console, ("commands a second", "1 thread", "2 threads", "4 threads", "2 over 1"), rows)
    if "libraries" in parts:
        rows = [(name, f"{row['us']:.2f}", f"{row['two_threads_over_one']:.2f}")
                for name, row in parts["libraries"].items()]  # fmt: skip
        _table(console, ("library call", "us", "two threads over one"), rows)
    for name in ("fua", "memory", "opening", "space"):
        if name in parts:
            _print_part(console, name, parts[name])
    for aim in found.aims():
        sign = "[green]reached[/green]" if aim["met"] else "[red]missed[/red] "
        bound = "at least" if aim["at_least"] else "at most"
        console.print(f"{sign}  {aim['aim']} {aim['measured']:,.2f} ({bound} {aim['wanted']:g})", highlight=False)


def _print_speed(console: Console, rows: list[dict[str, Any]]) -> None:
    found = []
    for row in rows:
        small = row["mb_s"] * 1e6 / row["per_second"] < 64 * KIB
        figure = f"{row['per_second'] / 1e3:.1f} k/s" if small else f"{row['mb_s']:,.0f} MB/s"
        found.append((row["workload"], figure, f"{row['us']:,.1f}", f"{row['cpu_us']:,.1f}", f"{row['limit_us']:,.1f}",
                      f"{row['of_limit']:.2f}", f"{row['of_limit_cpu']:.2f}"))  # fmt: skip
    _table(console, ("workload", "rate", "us", "CPU us", "limit us", "of limit", "by CPU"), found)
    for row in rows:
        steps = ", ".join(f"{name} {value:,.1f}" for name, value in row["limit_steps_us"].items())
        console.print(f"  limit of {row['workload']}, us: {steps}", style="dim", highlight=False)


def _print_part(console: Console, name: str, part: dict[str, Any]) -> None:
    console.print(name, style="bold")
    for key, value in part.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        text = ", ".join(f"{label} {_figure(each)}".strip() for label, each in inner)
        console.print(f"  {key}: {text}", highlight=False)


def _figure(value: object) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def _table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
