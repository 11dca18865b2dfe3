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
from nvmeof.limits import CONTROLLERS_PER_SUBSYSTEM_MAX, MDTS_BYTES, NAMESPACES_MAX
from nvmeof.spec.fabrics import CNTLID_MAX, check_nqn

if TYPE_CHECKING:
    from nvmeof.target.controller import Controller
    from nvmeof.target.io import IoQueue


class Namespace:
    """A volume with a namespace identifier, and the counters SMART reports."""

    def __init__(self, nsid: int, volume: Volume) -> None:
        self.nsid = nsid
        self.volume = volume
        self.block_shift = volume.block_size.bit_length() - 1
        self.block_count = volume.size >> self.block_shift
        self.blocks_per_command_max = MDTS_BYTES >> self.block_shift
        self.read_now = volume.read_now
        self.write_now = volume.write_now
        self.reads = 0
        self.read_bytes = 0
        self.writes = 0
        self.written_bytes = 0
        self.read_only = volume.health.read_only
        """As of the last look, once a second; a change is an event."""

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
        self._operations_seen = 0
        self._cntlids = itertools.cycle(range(1, CNTLID_MAX + 1))
        self._lingering: dict[bytes, set[IoQueue]] = {}
        self._fence = asyncio.Condition()

    def add_namespace(self, volume: Volume, nsid: int | None = None) -> Namespace:
        """Attach a volume, as the lowest free NSID unless one is given. Raises UsageError."""
        if nsid is None:
            nsid = next(number for number in itertools.count(1) if number not in self.namespaces)
        if not 1 <= nsid <= NAMESPACES_MAX or nsid in self.namespaces:
            raise UsageError(f"namespace {nsid}: must be free and 1 to {NAMESPACES_MAX}")
        namespace = self.namespaces[nsid] = Namespace(nsid, volume)
        self._namespace_changed(nsid)
        return namespace

    def remove_namespace(self, nsid: int) -> Volume:
        """Detach a namespace; commands for it then get Invalid Namespace. The caller closes the volume."""
        if nsid not in self.namespaces:
            raise UsageError(f"namespace {nsid}: not in {self.nqn}")
        namespace = self.namespaces.pop(nsid)
        self._namespace_changed(nsid)
        return namespace.volume

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

    def tick(self, elapsed: float) -> None:
        """Called about once a second: count busy time, and tell hosts of a volume that has become read-only."""
        self._count_busy(elapsed)
        for namespace in self.namespaces.values():
            read_only = namespace.volume.health.read_only
            if read_only != namespace.read_only:
                namespace.read_only = read_only
                self._namespace_changed(namespace.nsid)

    def _count_busy(self, elapsed: float) -> None:
        """The last ``elapsed`` seconds were busy if anything was read or written."""
        operations = sum(namespace.reads + namespace.writes for namespace in self.namespaces.values())
        if operations != self._operations_seen:
            self.busy_seconds += elapsed
        self._operations_seen = operations

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
