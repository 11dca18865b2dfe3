"""The target: listeners, subsystems and the sockets of all hosts, on one event loop."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from nvmeof.engine.volume import Volume
from nvmeof.errors import TransportError, UsageError, VolumeError
from nvmeof.limits import DRAIN_SECONDS
from nvmeof.protocol.states import State
from nvmeof.spec.fabrics import DISCOVERY_NQN, AddressFamily
from nvmeof.target.command import log
from nvmeof.target.connection import Connection
from nvmeof.target.discovery import DiscoverySubsystem
from nvmeof.target.io import IoQueue
from nvmeof.target.subsystem import Subsystem
from nvmeof.transport.buffers import BufferPool
from nvmeof.transport.stream import Awake, format_address, tune

TICK_SECONDS = 1.0
BACKLOG = 1024


@dataclass(eq=False)
class Listener:
    """One listening socket. ``host`` and ``port`` are what it is bound to.

    ``advertised`` is what the discovery log says instead (a host behind NAT sees another address).
    ``discovery_only``: only the discovery service is served here.
    """

    host: str
    port: int
    family: AddressFamily
    advertised: tuple[str, int] | None = None
    discovery_only: bool = False
    server: asyncio.Server | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return format_address((self.host, self.port))


class Target:
    """Serves subsystems to NVMe/TCP hosts.

    >>> async with Target() as target:
    ...     subsystem = target.add_subsystem(Subsystem("nqn.2026-11.org.example:disk"))
    ...     subsystem.add_namespace(await FileVolume.open("disk.img", size=1 << 30))
    ...     listener = await target.listen("127.0.0.1", 0)

    Leaving the context closes everything, the volumes included. ``drain`` first to let hosts finish.
    """

    def __init__(self) -> None:
        self.subsystems: dict[str, Subsystem] = {}
        self.listeners: list[Listener] = []
        self.connections: set[Connection] = set()
        self.pool = BufferPool()
        self.discovery = DiscoverySubsystem(self)
        self.draining = False
        loop = asyncio.get_running_loop()
        self.awake = Awake(loop)
        self._ticker = loop.call_later(TICK_SECONDS, self._tick)

    async def __aenter__(self) -> Target:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def add_subsystem(self, subsystem: Subsystem) -> Subsystem:
        """Serve a subsystem on every listener. Raises UsageError when the NQN is taken."""
        if subsystem.nqn in self.subsystems or subsystem.nqn == DISCOVERY_NQN:
            raise UsageError(f"subsystem {subsystem.nqn}: that NQN is already served")
        self.subsystems[subsystem.nqn] = subsystem
        self.discovery.changed()
        return subsystem

    def find_subsystem(self, nqn: str, listener: Listener) -> Subsystem | None:
        """The subsystem a host asks for at this listener."""
        if nqn == DISCOVERY_NQN:
            return self.discovery
        return None if listener.discovery_only else self.subsystems.get(nqn)

    def fence(self, hostid: bytes) -> None:
        """End the host's connections that it or we have given up already, before it is answered on a new one.

        Commands that still lie unread in such a socket would otherwise be executed after the host went on elsewhere.
        """
        for connection in list(self.connections):
            owner = connection.owner
            alive = connection.queue.state is State.READY and not connection.stream.peer_closed()
            if owner is None or owner.controller.hostid != hostid or alive:
                continue
            if isinstance(owner, IoQueue):
                owner.controller.queue_lost(owner)
                connection.abort()
            else:
                owner.controller.end("the host closed the admin queue")

    async def listen(
        self,
        host: str,
        port: int,
        *,
        advertised: tuple[str, int] | None = None,
        discovery_only: bool = False,
        congestion: str | None = None,
    ) -> Listener:
        """Accept hosts at an address; port 0 takes a free one. Raises TransportError when it cannot be bound."""
        loop = asyncio.get_running_loop()
        address = format_address((host, port))
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            sock = _bound_socket(found[0][0], found[0][4], congestion)
        except OSError as error:
            raise TransportError(f"cannot listen on {address}: {error.strerror or error}") from error
        bound = sock.getsockname()
        family = AddressFamily.IPV6 if sock.family == socket.AF_INET6 else AddressFamily.IPV4
        listener = Listener(bound[0], bound[1], family, advertised, discovery_only)
        listener.server = await loop.create_server(
            lambda: Connection(self, listener).stream, sock=sock, backlog=BACKLOG
        )
        self.listeners.append(listener)
        self.discovery.changed()
        return listener

    async def drain(self, seconds: float = DRAIN_SECONDS) -> bool:
        """Accept nothing new, let commands in progress end, put everything on media. False: time ran out."""
        self.draining = True
        for listener in self.listeners:
            if listener.server is not None:
                listener.server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._busy() and loop.time() < deadline:
            await asyncio.sleep(0.01)
        for volume in self._volumes():
            try:
                await volume.flush()
            except VolumeError as error:
                log.error("drain: %s", error)
        return not self._busy()

    async def close(self) -> None:
        """Drop every connection, wait for what is at the volumes, close the volumes. Raises WriteFault."""
        self.draining = True
        for listener in self.listeners:
            if listener.server is not None:
                listener.server.close()
        while self.connections or self._lingering():
            for connection in list(self.connections):
                connection.abort()
            await asyncio.sleep(0.001)
        self._ticker.cancel()
        results = await asyncio.gather(*(volume.close() for volume in self._volumes()), return_exceptions=True)
        self.subsystems.clear()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _volumes(self) -> list[Volume]:
        return [
            namespace.volume for subsystem in self.subsystems.values() for namespace in subsystem.namespaces.values()
        ]

    def _busy(self) -> bool:
        """Whether any I/O command is in progress."""
        controllers = [each for subsystem in self.subsystems.values() for each in subsystem.controllers.values()]
        queues = [queue for controller in controllers for queue in controller.queues.values()]
        return any(queue.busy or queue.queue.transfers for queue in queues)

    def _lingering(self) -> bool:
        return any(subsystem.lingering for subsystem in self.subsystems.values())

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(TICK_SECONDS, self._tick)
        now = loop.time()
        for connection in list(self.connections):
            connection.stream.tick(now)
        for subsystem in (self.discovery, *self.subsystems.values()):
            subsystem.tick(TICK_SECONDS)
            for controller in list(subsystem.controllers.values()):
                controller.tick(now)


def _bound_socket(family: int, address: Any, congestion: str | None) -> socket.socket:
    """Options set on a listening socket are inherited by what it accepts. Raises OSError, UsageError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tune(sock, congestion)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
