"""One controller: properties, queues, keep-alive, reset, shutdown and end (NVMe Base 2.0, sections 3.1.3 and 3.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from nvmeof.limits import (
    CC_ENABLE_TIMEOUT_UNITS,
    DISCOVERY_IDLE_SECONDS,
    KEEP_ALIVE_GRANULARITY_MS,
    QUEUE_ENTRIES_MAX,
)
from nvmeof.spec.fabrics import (
    CAP,
    CAP_CSS_IOCS,
    CAP_CSS_NVM,
    CC,
    CRTO,
    CSS_ALL_SUPPORTED,
    CSS_NVM,
    CSTS,
    VS,
    Capabilities,
    ControllerStatus,
    Property,
    ReadyTimeouts,
    ShutdownNotification,
    ShutdownStatus,
    Version,
)
from nvmeof.spec.status import DNR, Status
from nvmeof.target.command import CommandError, log
from nvmeof.target.errorlog import ErrorLog
from nvmeof.target.events import AsyncEvents
from nvmeof.target.features import Features

if TYPE_CHECKING:
    from nvmeof.target.admin import AdminQueue
    from nvmeof.target.io import IoQueue
    from nvmeof.target.subsystem import Subsystem

VERSION = Version(major=2, minor=0)
IOSQES, IOCQES = 6, 4


class Controller:
    """Made by the admin queue's Connect, ends with the admin queue's connection.

    ``hostid`` (16 bytes) and ``hostnqn`` are the connecting host's. ``queues`` holds the connected I/O queues by QID.
    """

    def __init__(self, subsystem: Subsystem, cntlid: int, hostid: bytes, hostnqn: str, kato_ms: int) -> None:
        self.subsystem = subsystem
        self.cntlid = cntlid
        self.hostid = hostid
        self.hostnqn = hostnqn
        self.admin: AdminQueue | None = None
        self.queues: dict[int, IoQueue] = {}
        self.features = Features(kato_ms)
        self.events = AsyncEvents(self.features)
        self.errors = ErrorLog()
        self.changed_namespaces: set[int] = set()
        self.write_cache = True
        """Whether a completed write may still be in a volatile cache (feature 06h). Off: every write is synced."""
        self.ready = False
        self.dead = False
        self._cc = 0
        self._failed = False
        self._shutdown = ShutdownStatus.NORMAL_OPERATION
        self._shutdown_task: asyncio.Task[None] | None = None
        self._reset_task: asyncio.Task[None] | None = None

    @property
    def is_discovery(self) -> bool:
        return self.subsystem.is_discovery

    # --- properties ---------------------------------------------------------------------------------------------------

    def property_get(self, offset: int, size: int) -> int:
        """Value of a property. Raises CommandError (Invalid Field) for one that does not exist in that size."""
        properties: dict[tuple[int, int], Callable[[], int]] = {
            (Property.CAP, 8): self._capabilities,
            (Property.VS, 4): lambda: VS.encode(VERSION),
            (Property.CC, 4): lambda: self._cc,
            (Property.CSTS, 4): self._status,
            (Property.CRTO, 4): lambda: CRTO.encode(
                ReadyTimeouts(crwmt=CC_ENABLE_TIMEOUT_UNITS, crimt=CC_ENABLE_TIMEOUT_UNITS)
            ),
        }
        read = properties.get((offset, size))
        if read is None:
            raise CommandError(Status.INVALID_FIELD | DNR, location=44)
        return read()

    def property_set(self, offset: int, size: int, value: int) -> None:
        """Set CC; nothing else can be set. Raises CommandError (Invalid Field)."""
        if (offset, size) != (Property.CC, 4):
            raise CommandError(Status.INVALID_FIELD | DNR, location=44)
        old, new = CC.decode(self._cc), CC.decode(value)
        if new.en and self._reset_task is not None:
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR)
        self._cc = value & CC.mask
        if new.en and not old.en:
            self._enable()
        elif old.en and not new.en:
            self._reset()
        if new.shn and new.shn != old.shn:
            self._begin_shutdown(abrupt=new.shn == ShutdownNotification.ABRUPT)

    def _capabilities(self) -> int:
        css = CAP_CSS_NVM | CAP_CSS_IOCS
        return CAP.encode(Capabilities(mqes=QUEUE_ENTRIES_MAX - 1, cqr=1, to=CC_ENABLE_TIMEOUT_UNITS, css=css, crwms=1))

    def _status(self) -> int:
        return CSTS.encode(
            ControllerStatus(
                rdy=int(self.ready or self._reset_task is not None), cfs=int(self._failed), shst=self._shutdown
            )
        )

    def _enable(self) -> None:
        cc = CC.decode(self._cc)
        sizes_fit = self.is_discovery or (cc.iosqes, cc.iocqes) == (IOSQES, IOCQES)
        if cc.mps or cc.ams or cc.css not in (CSS_NVM, CSS_ALL_SUPPORTED) or not sizes_fit:
            log.warning("controller %d of %s: CC %#x is not supported", self.cntlid, self.subsystem.nqn, self._cc)
            self._failed = True
            return
        self.ready = True
        self._shutdown = ShutdownStatus.NORMAL_OPERATION

    def _reset(self) -> None:
        """CC.EN from 1 to 0, Base 2.0 section 3.7.2: I/O queues are deleted, requests aborted, features reset.

        CSTS.RDY stays 1 while commands of those queues are at a volume: once it is 0 the host may write elsewhere.
        """
        queues = list(self.queues.values())
        self._close_queues()
        if self.admin is not None:
            self.admin.reset()
        if self._shutdown_task is not None:
            self._shutdown_task.cancel()
        self.features.reset()
        self.write_cache = True
        self.changed_namespaces.clear()
        self.ready = self._failed = False
        self._shutdown = ShutdownStatus.NORMAL_OPERATION
        busy = [queue for queue in queues if queue.busy]
        if busy:
            self._reset_task = asyncio.get_running_loop().create_task(self._end_reset(busy))

    async def _end_reset(self, queues: list[IoQueue]) -> None:
        for queue in queues:
            await queue.ended()
        self._reset_task = None

    def _begin_shutdown(self, *, abrupt: bool) -> None:
        """CC.SHN: what was written goes to media, then CSTS.SHST says complete; an abrupt one says so at once."""
        if abrupt:
            self._shutdown = ShutdownStatus.COMPLETE
        elif self._shutdown is ShutdownStatus.NORMAL_OPERATION:
            self._shutdown = ShutdownStatus.IN_PROGRESS
            self._shutdown_task = asyncio.get_running_loop().create_task(self._shut_down())

    async def _shut_down(self) -> None:
        for queue in list(self.queues.values()):
            await queue.ended()
        volumes = [namespace.volume for namespace in self.subsystem.namespaces.values()]
        for result in await asyncio.gather(*(volume.flush() for volume in volumes), return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("controller %d of %s: shutdown: %s", self.cntlid, self.subsystem.nqn, result)
                self._failed = True
        self._shutdown = ShutdownStatus.COMPLETE

    # --- queues and life ----------------------------------------------------------------------------------------------

    def record_error(self, qid: int, cid: int, status: int, nsid: int, lba: int = 0, location: int = 0xFFFF) -> None:
        """Enter a failed command into the error information log."""
        self.errors.add(qid, cid, status, nsid, lba, location)

    def namespace_changed(self, nsid: int) -> None:
        self.changed_namespaces.add(nsid)
        self.events.namespace_changed()

    def queue_lost(self, queue: IoQueue) -> None:
        """The connection of an I/O queue is gone, or is about to go. Its QID is free again."""
        if self.queues.get(queue.qid) is queue:
            del self.queues[queue.qid]
            queue.lost()

    def end(self, reason: str) -> None:
        """The association is over: every connection of it is dropped and the identifier becomes free."""
        if self.dead:
            return
        self.dead = True
        log.info("controller %d of %s for %s: %s", self.cntlid, self.subsystem.nqn, self.hostnqn, reason)
        if self.ready and self._shutdown is ShutdownStatus.NORMAL_OPERATION and not self.is_discovery:
            self.subsystem.unsafe_shutdowns += 1
        self.ready = False
        self._close_queues()
        if self.admin is not None:
            self.admin.connection.abort()
        self.subsystem.controllers.pop(self.cntlid, None)

    def tick(self, now: float) -> None:
        """Keep-alive, Base 2.0 section 3.9, traffic-based: any byte on any queue of the association counts."""
        if self.admin is None or self.dead:
            return
        kato_ms = self.features.kato_ms
        streams = [self.admin.connection, *(queue.connection for queue in self.queues.values())]
        silence = now - max(stream.queue.heard for stream in streams)
        if kato_ms and silence > (kato_ms + 2 * KEEP_ALIVE_GRANULARITY_MS) / 1000:
            self.end(f"nothing heard for {silence:.1f} s, keep-alive timeout is {kato_ms} ms")
        elif self.is_discovery and not kato_ms and silence > DISCOVERY_IDLE_SECONDS:
            self.end(f"nothing heard for {silence:.0f} s")
        else:
            self.events.check(self.subsystem)

    def _close_queues(self) -> None:
        for queue in list(self.queues.values()):
            queue.connection.abort()
            self.queue_lost(queue)
