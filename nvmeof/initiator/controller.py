"""A controller: the admin queue, I/O queues, namespaces, and the end of it all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from nvmeof.errors import ConnectionLost, NvmeofError, StatusError, TransportError, UsageError
from nvmeof.initiator.admin import Admin
from nvmeof.initiator.background import Event, EventFeed, KeepAlive
from nvmeof.initiator.bringup import connect_queue, enable, shut_down
from nvmeof.initiator.connection import Connection
from nvmeof.initiator.dispatch import Command, Dispatcher
from nvmeof.initiator.namespace import Namespace
from nvmeof.initiator.options import Options
from nvmeof.initiator.url import Url
from nvmeof.limits import (
    HOST_ADMIN_QUEUE_DEPTH,
    HOST_ASYNC_EVENTS_MAX,
    HOST_TRANSFER_BYTES_MAX,
    SHUTDOWN_SECONDS,
)
from nvmeof.protocol.states import State
from nvmeof.spec.command import SQE_SIZE, AdminOpcode, Cns, CommandSet, FabricsType, FeatureId
from nvmeof.spec.fabrics import CNTLID_DYNAMIC, VS, Capabilities, Configuration, Property, Version
from nvmeof.spec.features import NUMBER_OF_QUEUES, NumberOfQueues
from nvmeof.spec.identify import (
    IDENTIFY_CONTROLLER,
    NVM_IDENTIFY_CONTROLLER,
    OFCS_DISCONNECT,
    AsyncEventBit,
    ControllerAttribute,
    ControllerType,
    IdentifyController,
    NvmIdentifyController,
)
from nvmeof.spec.identify_lists import NAMESPACE_LIST_MAX, decode_namespace_list
from nvmeof.spec.logpage import SmartWarning
from nvmeof.transport.buffers import BufferPool

log = logging.getLogger("nvmeof.initiator")
EVENTS_WANTED = int(
    AsyncEventBit.NAMESPACE_ATTRIBUTE
    | AsyncEventBit.FIRMWARE_ACTIVATION
    | AsyncEventBit.ANA_CHANGE
    | AsyncEventBit.DISCOVERY_LOG
)
SMART_EVENTS_WANTED = int(
    SmartWarning.SPARE
    | SmartWarning.TEMPERATURE
    | SmartWarning.RELIABILITY
    | SmartWarning.READ_ONLY
    | SmartWarning.VOLATILE_BACKUP
)
PAGE_BYTES = 4096
"""CAP.MPSMIN is 0 or the controller is refused: the unit of MDTS and WZSL."""


class Controller(Admin):
    """One association: an admin queue and I/O queues. Made by ``nvmeof.connect``.

    Concurrency contract. Any number of commands may be in flight from any number of tasks of one event loop. When one
    connection ends, all of them do: whatever is in flight raises ConnectionLost (outcome unknown), whatever comes
    later TransportError (nothing was sent). Nothing reconnects and nothing is sent twice. A cancelled call may still
    be executed by the controller, but its buffer is no longer used.
    """

    identity: IdentifyController
    capabilities: Capabilities
    version: Version

    def __init__(self, url: Url, options: Options) -> None:
        assert url.subnqn is not None
        super().__init__(Dispatcher(options.connect_timeout, reserved=1))
        self.url = url
        self.subnqn = url.subnqn
        self.options = options
        self.cntlid = CNTLID_DYNAMIC
        self.nvm_limits = NvmIdentifyController()
        """Limits of commands without data and of Dataset Management (CNS 06h); zeroes when none are reported."""
        self.io = Dispatcher(options.io_timeout)
        self.closed = ""
        """Why the association is over; empty while it lives."""
        self._pool = BufferPool()
        self._connections: list[Connection] = []
        self._events: EventFeed | None = None
        self._keep_alive: KeepAlive | None = None
        self._configuration = Configuration()

    @property
    def io_queues(self) -> int:
        """I/O queues that are connected."""
        return len(self.io.queues)

    @property
    def queue_depth(self) -> int:
        """Commands that may be in flight on all I/O queues together."""
        return sum(queue.capacity for queue in self.io.queues)

    def events(self) -> AsyncIterator[Event]:
        """Asynchronous events since the connection was made, each once. Ends when the controller is closed.

        Raises ConnectionLost when the association is lost.
        """
        assert self._events is not None
        return aiter(self._events)

    async def namespaces(self) -> list[Namespace]:
        """The active namespaces that can be read, by NSID: those of the NVM Command Set without metadata."""
        nsids: list[int] = []
        while True:
            after = nsids[-1] if nsids else 0
            page = decode_namespace_list(await self.identify(Cns.ACTIVE_NAMESPACES, after))
            if any(low >= high for low, high in zip([after, *page], page, strict=False)):
                raise TransportError(f"{self.url.address}: the active namespace list is not ascending")
            nsids += page
            if len(page) < NAMESPACE_LIST_MAX:
                break
        found = []
        for nsid in nsids:
            try:
                found.append(await self.namespace(nsid))
            except UsageError as error:
                log.warning("%s: left out: %s", self.url.address, error)
        return found

    async def namespace(self, nsid: int) -> Namespace:
        """One namespace. Raises UsageError when it is not active or not of the NVM Command Set."""
        found = await Namespace.identify(self, nsid)
        if found.command_set != CommandSet.NVM:
            raise UsageError(f"namespace {nsid}: got command set {found.command_set:#04x}, wanted NVM (00h)")
        return found

    # --- the beginning ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and bring the controller up. Raises TransportError, StatusError, UsageError.

        Whatever is raised, nothing is left open.
        """
        begin = asyncio.get_running_loop().time()
        scope = asyncio.timeout(self.options.connect_timeout)
        try:
            async with scope:
                await self._bring_up(scope)
        except BaseException as error:
            await self._drop("not connected")
            address = self.url.address
            if isinstance(error, TimeoutError):
                waited = (scope.when() or begin) - begin
                raise TransportError(f"{address}: not connected within {waited:.3g} s") from error
            if isinstance(error, ConnectionLost):
                raise TransportError(f"{address}: {error}") from error
            raise

    async def _bring_up(self, scope: asyncio.Timeout) -> None:
        admin = await self._dial(self._admin)
        self._events = EventFeed(admin)
        self.cntlid = await connect_queue(
            admin.queue, self.options, self.subnqn, qid=0, depth=HOST_ADMIN_QUEUE_DEPTH, cntlid=CNTLID_DYNAMIC
        )
        self.capabilities, self._configuration = await enable(self, scope)
        self.version = VS.decode(await self.property_get(Property.VS))
        await self._identify()
        await self._start_events()
        if self.identity.cntrltype not in (ControllerType.DISCOVERY, ControllerType.ADMINISTRATIVE):
            await self._connect_io_queues()
        if not self.io.queues:
            self.io.close("there are no I/O queues (io_queues=0, or a controller without any)")
        self._admin.seconds = self.options.io_timeout
        if self.options.keep_alive and self.identity.kas:
            traffic_based = bool(self.identity.ctratt & ControllerAttribute.TRAFFIC_BASED_KEEP_ALIVE)
            self._keep_alive = KeepAlive(
                admin, self.options.keep_alive, traffic_based, self._take_active, self._association_lost
            )
        if self.closed:
            raise TransportError(f"{self.url.address}: {self.closed}")

    async def _dial(self, dispatcher: Dispatcher) -> Connection:
        connection = Connection(self.options, self._pool, dispatcher.feed, self._connection_lost)
        await connection.open(self.url)
        self._connections.append(connection)
        if dispatcher is self._admin:
            dispatcher.queues.append(connection.queue)
        return connection

    async def _identify(self) -> None:
        identity = self.identity = IDENTIFY_CONTROLLER.decode(await self.identify(Cns.CONTROLLER))
        if identity.cntlid != self.cntlid:
            raise TransportError(
                f"{self.url.address}: Connect says controller {self.cntlid:#06x}, Identify {identity.cntlid:#06x}"
            )
        if identity.mdts:
            self.transfer_bytes_max = min(HOST_TRANSFER_BYTES_MAX, PAGE_BYTES << min(identity.mdts, 32))
        if identity.cntrltype in (ControllerType.NOT_REPORTED, ControllerType.IO):
            self.nvm_limits = await self._nvm_limits()

    async def _nvm_limits(self) -> NvmIdentifyController:
        """CNS 06h is of Base 2.0."""
        if self.version.major < 2:
            return NvmIdentifyController()
        try:
            return NVM_IDENTIFY_CONTROLLER.decode(await self.identify(Cns.CSI_CONTROLLER))
        except StatusError:
            return NvmIdentifyController()

    async def _start_events(self) -> None:
        """Ask for every event we know that the controller has, and keep requests for them outstanding."""
        wanted = self.identity.oaes & EVENTS_WANTED
        if self.identity.cntrltype != ControllerType.DISCOVERY:
            wanted |= SMART_EVENTS_WANTED
        try:
            if wanted:
                await self.set_features(FeatureId.ASYNC_EVENT_CONFIGURATION, wanted)
        except StatusError as error:
            log.warning("%s: %s", self.url.address, error)
        assert self._events is not None
        self._events.arm(min(self.identity.aerl + 1, HOST_ASYNC_EVENTS_MAX))

    async def _connect_io_queues(self) -> None:
        """Set Features, Number of Queues; then a connection and a Connect for each queue."""
        options, identity = self.options, self.identity
        if not options.io_queues:
            return
        wanted = NUMBER_OF_QUEUES.encode(NumberOfQueues(options.io_queues - 1, options.io_queues - 1))
        granted = NUMBER_OF_QUEUES.decode(await self.set_features(FeatureId.NUMBER_OF_QUEUES, wanted))
        depth = min(options.queue_depth, self.capabilities.mqes, identity.maxcmd or options.queue_depth)
        in_capsule = max(16 * identity.ioccsz - SQE_SIZE, 0) if not identity.icdoff else 0
        for qid in range(1, min(options.io_queues, granted.submission + 1, granted.completion + 1) + 1):
            connection = await self._dial(self.io)
            await connect_queue(
                connection.queue, options, self.subnqn, qid=qid, depth=depth, cntlid=self.cntlid,
                disconnectable=self._disconnectable,
            )  # fmt: skip
            connection.queue.in_capsule_bytes = in_capsule
            self.io.queues.append(connection.queue)

    @property
    def _disconnectable(self) -> bool:
        return bool(self.identity.ofcs & OFCS_DISCONNECT)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Shut the controller down in an orderly way, as far as it answers, and close every connection.

        I/O in flight raises ConnectionLost. Takes about SHUTDOWN_SECONDS at most; nothing is left open even when
        cancelled.
        """
        try:
            if not self.closed:
                assert self._events is not None
                self._events.end("closed by this host", orderly=True)
                self.io.close("closed by this host")
                async with asyncio.timeout(SHUTDOWN_SECONDS + 1):
                    await self._shut_down()
        except (NvmeofError, TimeoutError) as error:
            log.info("%s: no orderly shutdown: %s", self.url.address, error or "it took too long")
        finally:
            await self._drop("closed by this host")

    async def _shut_down(self) -> None:
        for connection in self._connections[1:]:
            connection.orderly = True
            queue = connection.queue
            if self._disconnectable and queue.ready and not queue.requests:
                dispatcher = Dispatcher(SHUTDOWN_SECONDS)
                dispatcher.queues.append(queue)
                await dispatcher.run_one(Command(AdminOpcode.FABRICS, FabricsType.DISCONNECT), "Disconnect")
            await connection.close()
        await shut_down(self, self._configuration, SHUTDOWN_SECONDS)

    async def _drop(self, reason: str) -> None:
        """Close every connection without asking the controller."""
        self._over(reason, orderly=True)
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.abort(reason)
        for connection in connections:
            await connection.wait_closed()

    def _connection_lost(self, connection: Connection) -> None:
        if not connection.orderly:
            self._association_lost(connection.reason)

    def _association_lost(self, reason: str) -> None:
        if self.closed:
            return
        self._over(reason, orderly=False)
        for connection in self._connections:
            if connection.queue.state is not State.TERMINATING:
                connection.abort(reason)

    def _over(self, reason: str, *, orderly: bool) -> None:
        self.closed = self.closed or reason
        if self._keep_alive is not None:
            self._keep_alive.cancel()
        if self._events is not None:
            self._events.end(reason, orderly=orderly)
        self._admin.close(reason)
        self.io.close(reason)

    def _take_active(self) -> bool:
        """Whether any command completed since the last time."""
        active = any(connection.active for connection in self._connections)
        for connection in self._connections:
            connection.active = False
        return active
