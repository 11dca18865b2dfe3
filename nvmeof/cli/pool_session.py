"""An open pool, as the commands and the serving process have it: its directory, and who is told of its namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nvmeof.cli.pool_directory import PoolDirectory
from nvmeof.cli.pool_keys import Key, source_of
from nvmeof.cli.text import size_text
from nvmeof.errors import UsageError

if TYPE_CHECKING:
    from nvmeof.engine.opening import OpenReport
    from nvmeof.engine.pool import Pool
    from nvmeof.engine.volume import Volume


class Audience:
    """Who sees the namespaces of a pool: nobody, until a subsystem serves them."""

    served = False

    def appeared(self, nsid: int, volume: Volume) -> None:
        """A namespace was made."""

    def shrinking(self, nsid: int, size: int) -> None:
        """A namespace is about to lose what lies beyond ``size``; nobody may reach that any more."""

    def resized(self, nsid: int) -> None:
        """A namespace may have another size."""

    def disappearing(self, nsid: int) -> None:
        """A namespace is about to be deleted; nobody may reach it any more."""


@dataclass
class Session:
    """``problems``: members that could not be opened, a sentence each. ``lock``: who changes the directory's names."""

    directory: PoolDirectory
    pool: Pool
    problems: list[str] = field(default_factory=list)
    audience: Audience = field(default_factory=Audience)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@contextlib.asynccontextmanager
async def opened(directory: PoolDirectory, key: Callable[[], Key | None]) -> AsyncIterator[Session]:
    """Lock the directory, open the pool in it, close it in the end. Raises UsageError, OSError, VolumeError."""
    from nvmeof.engine.pool import Pool

    directory.lock()
    keys = source_of(key())
    disks, problems = directory.open_members()
    try:
        try:
            pool = await Pool.open(disks, keys=keys)
        except UsageError as error:
            raise UsageError("; ".join([str(error), *problems])) from error
        try:
            yield Session(directory, pool, problems)
        except BaseException:
            # What went wrong is what people must hear of, not what closing says after it.
            with contextlib.suppress(Exception):
                await pool.close()
            raise
        await pool.close()
    finally:
        for disk in disks:
            disk.close()  # those that are no members any more


def print_notices(session: Session, *, everything: bool = False) -> None:
    """On standard error: what is missing, and what opening had to do; with ``everything`` also that it was little."""
    pool, place = session.pool, session.directory.path
    lines = [f"warning: {problem}" for problem in session.problems]
    if pool.health.degraded:
        lines.append(f"warning: {place}: degraded: {pool.health.reason}")
    report = pool.opened
    if everything or not report.clean or report.lost_map_pages:
        lines.append(f"{place}: opened in {report.seconds:.2f} s, {_how(report)}")
    for line in lines:
        print(f"nvmeof: {line}", file=sys.stderr)


def _how(report: OpenReport) -> str:
    if report.clean:
        said = "after a clean end"
    else:
        size = size_text(report.rolled_forward_bytes)
        said = (
            f"not after a clean end: rolled {report.rolled_forward_stripes} stripes ({size}) forward, "
            f"dropped {report.dropped_stripes} that were not flushed"
        )
    if report.repaired_strips:
        said += f", repaired {report.repaired_strips} strips"
    return f"{said}, LOST {report.lost_map_pages} pages of the map" if report.lost_map_pages else said
