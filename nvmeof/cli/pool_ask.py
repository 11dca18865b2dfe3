"""Have an operation done: by the process that serves the pool, or here when nobody does."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from nvmeof.cli import pool_control
from nvmeof.cli.pool_directory import PoolDirectory
from nvmeof.cli.pool_keys import key_of
from nvmeof.cli.pool_operations import Answer, Arguments, perform
from nvmeof.cli.pool_session import opened, print_notices
from nvmeof.cli.text import Progress


async def ask(
    args: argparse.Namespace, name: str, arguments: Callable[[bool], Arguments], progress: Progress | None = None
) -> Answer:
    """``arguments`` is told whether the pool is being served. Raises UsageError, OSError, NvmeofError."""
    with PoolDirectory.open(args.directory) as directory:
        directory.need_members()
        sock = pool_control.connect(directory)
        if sock is not None:
            return await pool_control.ask(sock, name, arguments(True), progress)
        wanted = arguments(False)
        async with opened(directory, lambda: key_of(args)) as session:
            print_notices(session)
            return await perform(session, name, wanted, progress)
