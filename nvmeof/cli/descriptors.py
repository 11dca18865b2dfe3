"""File descriptors of a serving process: as many as the target may need, and quiet when they run out all the same."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
from typing import Any

from nvmeof.limits import CONNECTIONS_MAX

log = logging.getLogger("nvmeof.target")

SPARE = 256
"""For volumes, listeners, pipes and what Python itself opens."""
REMINDER_SECONDS = 60.0


def raise_limit() -> int:
    """Raise the soft limit of open files to what CONNECTIONS_MAX needs, as far as the hard limit goes. Returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < wanted:
        log.warning("%d open files are allowed: room for about %d connections", soft, max(soft - SPARE, 0))
    return soft


class ExhaustionHandler:
    """An event loop's exception handler that says once a minute, not a thousand times, that accept found no room."""

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif loop.time() >= self._quiet_until:
            self._quiet_until = loop.time() + REMINDER_SECONDS
            log.error("hosts cannot connect: %s (raise the limit of open files)", error.strerror)
