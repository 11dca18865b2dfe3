"""How sizes, rates, tables and progress look on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with what is done and what there is to do, in bytes."""


def size_text(count: int) -> str:
    """Bytes in the unit that people would choose."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"


def rate_text(count: int, seconds: float) -> str:
    """Bytes a second."""
    return f"{count / max(seconds, 1e-9) / 1e6:,.0f} MB/s"


def table(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Lines with aligned columns; those in ``right`` to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(text.rjust(widths[i]) if i in right else text.ljust(widths[i]) for i, text in enumerate(row)).rstrip()
        for row in rows
    ]


@contextmanager
def progress_bar(doing: str) -> Iterator[Progress | None]:
    """A bar with rate and remaining time on standard error, if that is a terminal and there is something to say."""
    if not doing or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Bars(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bars:
        task = bars.add_task(doing, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
