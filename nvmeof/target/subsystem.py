"""An NVM subsystem: its namespaces, who may connect, and its controllers."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nvmeof.engine.volume import Volume
from nvmeof.errors import UsageError
from nvmeof.limits import CONTROLLERS_PER_SUBSYSTEM_MAX, MDTS_BYTES, NAMESPACES_MAX, VERIFY_BYTES_MAX
from nvmeof.spec.fabrics import CNTLID_MAX, check_nqn
from nvmeof.spec.status import DNR, Status
from nvmeof.target.command import CommandError, log

if TYPE_CHECKING:
    from nvmeof.target.controller import Controller
    from nvmeof.target.io import IoQueue


class Counters:
    """What SMART counts."""

    def __init__(self) -> None:
        self.reads = 0
        self.read_bytes = 0
        self.writes = 0
        self.written_bytes = 0
        self.media_errors = 0

    def add(self, other: Counters) -> None:
        self.reads += other.reads
        self.read_bytes += other.read_bytes
        self.writes += other.writes
        self.written_bytes += other.written_bytes
        self.media_errors += other.media_errors


class Namespace(Counters):
    """A volume with a namespace identifier.

    ``block_count`` is what hosts may reach. It follows the volume's size within a second, or at once when
    :meth:`Subsystem.resized` is called.
    """

    def __init__(self, nsid: int, volume: Volume) -> None:
        super().__init__()
        self.nsid = nsid
        self.volume = volume
        self.block_shift = volume.block_size.bit_length() - 1
        self.block_count = volume.size >> self.block_shift
        self.blocks_per_command_max = MDTS_BYTES >> self.block_shift
        self.verify_blocks_max = VERIFY_BYTES_MAX >> self.block_shift
        self.read_now = volume.read_now
        self.write_now = volume.write_now
        self.detached = False
        """The subsystem has it no more; commands that had been accepted may still know it."""
        self.volume_size = volume.size
        self.health = volume.health
        """Both as of the last look, once a second."""

    @property
    def size(self) -> int:
        """Bytes that hosts may reach."""
        return self.block_count << self.block_shift

    def check(self, offset: int = 0, length: int = 0) -> None:
        """Raise CommandError when the bytes are not there any more.

        For a command that was accepted some turns of the loop ago, just before it goes to the volume: meanwhile the
        namespace may have been removed or made smaller.
        """
        if self.detached:
            raise CommandError(Status.INVALID_NAMESPACE_OR_FORMAT | DNR)
        if offset + length > self.size:
            raise CommandError(Status.LBA_OUT_OF_RANGE | DNR)

    @property
    def nguid(self) -> bytes:
        """16 bytes, stable across restarts: the volume's UUID."""
        return self.volume.uuid.bytes

    @property
    def eui64(self) -> bytes:
        """8 bytes, stable across restarts: a locally administered EUI-64 derived from the volume's UUID."""
        digest = hashlib.sha256(b"nvmeof eui64" + self.volume.uuid.bytes).digest()
        return bytes([digest[0] & 0xFC | 0x02]) + digest[1:8]


class Subsystem:
    """Namespaces and controllers behind one NQN.

    ``allowed_hosts`` is a set of host NQNs, or None for any. ``serial`` (20 ASCII characters) is derived from the NQN
    unless given, so that it survives restarts.
    """

    is_discovery = False

    def __init__(
        self, nqn: str, *, serial: str = "", model: str = "nvmeof", allowed_hosts: Iterable[str] | None = None
    ) -> None:
        check_nqn(nqn)
        self.nqn = nqn
        self.serial = serial or hashlib.sha256(nqn.encode()).hexdigest()[:20].upper()
        self.model = model
        self.allowed_hosts = None if allowed_hosts is None else set(allowed_hosts)
        for host in self.allowed_hosts or ():
            check_nqn(host)
        self.namespaces: dict[int, Namespace] = {}
        self.controllers: dict[int, Controller] = {}
        self.started = time.time()
        self.unsafe_shutdowns = 0
        self.busy_seconds = 0.0
        """Time with I/O in progress, to the second (SMART: controller busy time)."""
        self.removed = Counters()
        """Of namespaces that are gone: what SMART counts never goes back."""
        self._operations_seen = 0
        self._cntlids = itertools.cycle(range(1, CNTLID_MAX + 1))
        self._lingering: dict[bytes, set[IoQueue]] = {}
        self._fence = asyncio.Condition()

    def add_namespace(self, volume: Volume, nsid: int | None = None) -> Namespace:
        """Attach a volume, as the lowest free NSID unless one is given, and tell the hosts. Raises UsageError."""
        if nsid is None:
            nsid = next(number for number in itertools.count(1) if number not in self.namespaces)
        if not 1 <= nsid <= NAMESPACES_MAX or nsid in self.namespaces:
            raise UsageError(f"namespace {nsid}: must be free and 1 to {NAMESPACES_MAX}")
        namespace = self.namespaces[nsid] = Namespace(nsid, volume)
        self._namespace_changed(nsid)
        return namespace

    def remove_namespace(self, nsid: int) -> Volume:
        """Detach a namespace and tell the hosts. The caller closes the volume, which waits for what is at it.

        Commands that have not reached the volume yet, those that wait for their data included, get Invalid Namespace.
        """
        namespace = self._namespace(nsid)
        del self.namespaces[nsid]
        namespace.detached = True
        namespace.media_errors = namespace.volume.health.media_errors
        self.removed.add(namespace)
        self._namespace_changed(nsid)
        return namespace.volume

    def resized(self, nsid: int, size: int | None = None) -> None:
        """Take over the size of the volume, or ``size`` bytes, and tell the hosts. Raises UsageError.

        Before a volume is made smaller, call this with its size to be: from then on no command reaches beyond it.
        After it was made larger, or could not be made smaller, call this without.
        """
        namespace = self._namespace(nsid)
        namespace.volume_size = namespace.volume.size
        blocks = (namespace.volume_size if size is None else size) >> namespace.block_shift
        if not 0 <= blocks << namespace.block_shift <= namespace.volume_size:
            raise UsageError(f"namespace {nsid}: got {size} bytes, wanted at most {namespace.volume_size}")
        if blocks != namespace.block_count:
            namespace.block_count = blocks
            self._namespace_changed(nsid)

    def _namespace(self, nsid: int) -> Namespace:
        if nsid not in self.namespaces:
            raise UsageError(f"namespace {nsid}: not in {self.nqn}")
        return self.namespaces[nsid]

    def _namespace_changed(self, nsid: int) -> None:
        for controller in self.controllers.values():
            controller.namespace_changed(nsid)

    def allows(self, hostnqn: str) -> bool:
        return self.allowed_hosts is None or hostnqn in self.allowed_hosts

    def new_cntlid(self) -> int | None:
        """A controller identifier that was not used for as long as possible; None when too many are alive."""
        if len(self.controllers) >= CONTROLLERS_PER_SUBSYSTEM_MAX:
            return None
        return next(cntlid for cntlid in self._cntlids if cntlid not in self.controllers)

    def counters(self) -> Counters:
        """Of all namespaces, those that are gone included."""
        total = Counters()
        total.add(self.removed)
        for namespace in self.namespaces.values():
            namespace.media_errors = namespace.volume.health.media_errors
            total.add(namespace)
        return total

    def tick(self, elapsed: float) -> None:
        """Called about once a second: count busy time, and tell of volumes that are not what they were."""
        self._count_busy(elapsed)
        for namespace in self.namespaces.values():
            self._look_at(namespace)

    def _look_at(self, namespace: Namespace) -> None:
        """SMART warnings are the controllers' business: they look by themselves."""
        volume, before = namespace.volume, namespace.health
        if volume.size != namespace.volume_size:
            self.resized(namespace.nsid)
        health = namespace.health = volume.health
        if health.read_only != before.read_only:
            self._namespace_changed(namespace.nsid)
        for what, was, now in (
            ("read-only", before.read_only, health.read_only),
            ("degraded", before.degraded, health.degraded),
        ):
            if now and not was:
                log.error("namespace %d of %s is %s: %s", namespace.nsid, self.nqn, what, health.reason)
            elif was and not now:
                log.warning("namespace %d of %s is no longer %s", namespace.nsid, self.nqn, what)

    def _count_busy(self, elapsed: float) -> None:
        """The last ``elapsed`` seconds were busy if anything was read or written."""
        total = self.counters()
        if total.reads + total.writes != self._operations_seen:
            self.busy_seconds += elapsed
        self._operations_seen = total.reads + total.writes

    # --- fencing ------------------------------------------------------------------------------------------------------

    def linger(self, hostid: bytes, queue: IoQueue) -> None:
        """A queue of a dead connection still has commands at the volume: Connects of that host wait for them."""
        self._lingering.setdefault(hostid, set()).add(queue)

    async def lingered(self, hostid: bytes, queue: IoQueue) -> None:
        """The queue's last command is through."""
        async with self._fence:
            queues = self._lingering.get(hostid, set())
            queues.discard(queue)
            if not queues:
                self._lingering.pop(hostid, None)
            self._fence.notify_all()

    @property
    def lingering(self) -> bool:
        """Whether commands of dead connections are still at a volume."""
        return bool(self._lingering)

    def fenced(self, hostid: bytes) -> bool:
        """Whether a dead association of this host has nothing in progress any more."""
        return hostid not in self._lingering

    async def wait_fenced(self, hostid: bytes) -> None:
        async with self._fence:
            await self._fence.wait_for(lambda: self.fenced(hostid))
