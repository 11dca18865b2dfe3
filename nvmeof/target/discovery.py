"""The discovery service: a subsystem whose log page lists the others (NVMe Base 2.0, section 5.16.1.23).

Every listener serves it. What it lists depends on who asks and over which address: subsystems that refuse the host are
left out, and a listener bound to a wildcard is reachable at the address the host used.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from nvmeof.limits import ADMIN_QUEUE_ENTRIES_MAX
from nvmeof.spec.fabrics import (
    DISCOVERY_ENTRY,
    DISCOVERY_HEADER,
    DISCOVERY_NQN,
    AddressFamily,
    DiscoveryHeader,
    DiscoveryLogEntry,
    EntryFlags,
    SubsystemType,
    TransportRequirements,
    tcp_entry,
)
from nvmeof.target.subsystem import Subsystem

if TYPE_CHECKING:
    from nvmeof.target.controller import Controller


class ListenerView(Protocol):
    """What is listed of a listener: see :class:`nvmeof.target.server.Listener`."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def family(self) -> AddressFamily: ...

    @property
    def advertised(self) -> tuple[str, int] | None: ...

    @property
    def discovery_only(self) -> bool: ...


class TargetView(Protocol):
    """What the discovery service knows of the target."""

    @property
    def listeners(self) -> Sequence[ListenerView]: ...

    @property
    def subsystems(self) -> Mapping[str, Subsystem]: ...


class DiscoverySubsystem(Subsystem):
    """The well-known discovery subsystem of a target.

    ``generation`` counts what the target has ever listed, to whomever (GENCTR).
    """

    is_discovery = True

    def __init__(self, target: TargetView) -> None:
        super().__init__(DISCOVERY_NQN)
        self.generation = 0
        self._target = target
        self._listed: object = ((), ())

    def changed(self) -> None:
        """Something about listeners, subsystems or their hosts may be different: count it and tell the hosts."""
        listed = (
            tuple((each.host, each.port, each.advertised, each.discovery_only) for each in self._target.listeners),
            tuple(
                (nqn, None if subsystem.allowed_hosts is None else frozenset(subsystem.allowed_hosts))
                for nqn, subsystem in self._target.subsystems.items()
            ),
        )
        if listed == self._listed:
            return
        self._listed = listed
        self.generation += 1
        for controller in self.controllers.values():
            controller.events.discovery_changed()

    def tick(self, elapsed: float) -> None:
        """Called about once a second: a host may have been allowed or refused since."""
        self.changed()

    def log_page(self, controller: Controller) -> bytes:
        """The Discovery log page for the host of ``controller``."""
        self.changed()
        assert controller.admin is not None
        local_host = controller.admin.connection.local_address[0]
        entries = [DISCOVERY_ENTRY.encode(entry) for entry in self._entries(controller.hostnqn, local_host)]
        header = DISCOVERY_HEADER.encode(DiscoveryHeader(genctr=self.generation, numrec=len(entries)))
        return b"".join([header, *entries])

    def _entries(self, hostnqn: str, local_host: str) -> Iterator[DiscoveryLogEntry]:
        nqns = [nqn for nqn, subsystem in self._target.subsystems.items() if subsystem.allows(hostnqn)]
        for portid, listener in enumerate(self._target.listeners, 1):
            address = reachable(listener, local_host)
            if address is None:
                continue
            flags = EntryFlags.DUPLICATE_RETURNED_INFORMATION | EntryFlags.EXPLICIT_PERSISTENT_CONNECTION
            yield _entry(self.nqn, portid, address, SubsystemType.CURRENT_DISCOVERY, flags)
            if not listener.discovery_only:
                for nqn in nqns:
                    yield _entry(nqn, portid, address, SubsystemType.NVM, 0)


def reachable(listener: ListenerView, local_host: str) -> tuple[str, int] | None:
    """Where a host that reached us at ``local_host`` can reach a listener, None when there is no telling.

    A wildcard is replaced by ``local_host`` if that is of the listener's family.
    """
    if listener.advertised is not None:
        return listener.advertised
    if not ipaddress.ip_address(_unscoped(listener.host)).is_unspecified:
        return _unscoped(listener.host), listener.port
    local_host = _unscoped(local_host)
    return (local_host, listener.port) if _family(local_host) is listener.family else None


def _entry(nqn: str, portid: int, address: tuple[str, int], subtype: SubsystemType, flags: int) -> DiscoveryLogEntry:
    host, port = address
    return tcp_entry(
        subnqn=nqn,
        address=host,
        port=port,
        family=_family(host),
        subtype=subtype,
        portid=portid,
        treq=TransportRequirements.NOT_SPECIFIED | TransportRequirements.SQ_FLOW_CONTROL_DISABLE_SUPPORTED,
        eflags=flags,
        asqsz=ADMIN_QUEUE_ENTRIES_MAX,
    )


def _unscoped(host: str) -> str:
    """Without the zone of a link-local address, which means nothing to another machine."""
    return host.partition("%")[0]


def _family(host: str) -> AddressFamily:
    return AddressFamily.IPV6 if ":" in host else AddressFamily.IPV4
