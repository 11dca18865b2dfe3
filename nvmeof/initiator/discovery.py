"""``discover``: what a discovery controller knows. NVMe Base 2.0 section 5.16.1.23."""

from __future__ import annotations

from typing import NamedTuple, Unpack

from nvmeof.errors import TransportError, UsageError
from nvmeof.initiator.controller import Controller
from nvmeof.initiator.host import connect
from nvmeof.initiator.options import ConnectOptions
from nvmeof.initiator.url import Url, parse_url
from nvmeof.limits import DISCOVERY_ATTEMPTS_MAX, DISCOVERY_ENTRIES_MAX
from nvmeof.spec.command import LogPage
from nvmeof.spec.fabrics import (
    DISCOVERY_ENTRY,
    DISCOVERY_HEADER,
    DISCOVERY_NQN,
    PORT_DISCOVERY,
    DiscoveryHeader,
    DiscoveryLogEntry,
    SubsystemType,
    TransportType,
    decode_nqn,
)
from nvmeof.spec.fields import ascii_text


class DiscoveryEntry(NamedTuple):
    """One entry, with the specification's names.

    ``subtype`` is a ``nvmeof.spec.fabrics.SubsystemType`` (a referral points to another discovery service), ``trtype``
    a ``TransportType``, ``adrfam`` an ``AddressFamily``, ``treq`` a ``TransportRequirements``, ``sectype`` a
    ``SecurityType``; ``asqsz`` in entries.
    """

    trtype: int
    adrfam: int
    subtype: int
    treq: int
    portid: int
    cntlid: int
    asqsz: int
    eflags: int
    trsvcid: str
    subnqn: str
    traddr: str
    sectype: int

    @property
    def url(self) -> str:
        """What ``connect`` (or ``discover``, for a referral) takes. Empty when it is not NVMe/TCP."""
        if self.trtype != TransportType.TCP or not self.trsvcid.isdecimal():
            return ""
        subnqn = None if self.subtype == SubsystemType.REFERRAL else self.subnqn
        return str(Url(self.traddr, int(self.trsvcid), subnqn))


async def discover(url: str, **options: Unpack[ConnectOptions]) -> list[DiscoveryEntry]:
    """Every entry of the discovery log at ``nvme+tcp://HOST[:PORT]`` (port 8009 unless given). Follows no referral.

    Raises what ``connect`` raises, TransportError when the log is malformed or keeps changing.
    """
    parsed = parse_url(url, default_port=PORT_DISCOVERY)
    if parsed.nsid is not None:
        raise UsageError(f"URL {url!r}: got a namespace, wanted nvme+tcp://HOST[:PORT]")
    target = str(parsed._replace(subnqn=parsed.subnqn or DISCOVERY_NQN))
    chosen: ConnectOptions = {**options, "io_queues": 0, "keep_alive": 0.0}
    async with connect(target, **chosen) as controller:
        _, entries = decode_log(await read_log(controller))
        return [_entry(controller, entry) for entry in entries]


async def read_log(controller: Controller) -> bytes:
    """The header and all entries of one generation. Raises TransportError when it is malformed or keeps changing."""
    for _ in range(DISCOVERY_ATTEMPTS_MAX):
        head, header = await _header(controller)
        size = header.numrec * DISCOVERY_ENTRY.size
        entries = b""
        if size:
            entries = await controller.get_log_page(LogPage.DISCOVERY, size, offset=DISCOVERY_HEADER.size, nsid=0)
        _, again = await _header(controller)
        if again.genctr == header.genctr and again.numrec == header.numrec:
            return head + entries
    raise TransportError(
        f"{controller.url.address}: the discovery log changed {DISCOVERY_ATTEMPTS_MAX} times while being read"
    )


def decode_log(data: bytes) -> tuple[DiscoveryHeader, list[DiscoveryLogEntry]]:
    """The parts of what ``read_log`` returns."""
    positions = range(DISCOVERY_HEADER.size, len(data), DISCOVERY_ENTRY.size)
    return DISCOVERY_HEADER.decode(data), [DISCOVERY_ENTRY.decode(data, position) for position in positions]


async def _header(controller: Controller) -> tuple[bytes, DiscoveryHeader]:
    data = await controller.get_log_page(LogPage.DISCOVERY, DISCOVERY_HEADER.size, nsid=0)
    header = DISCOVERY_HEADER.decode(data)
    if header.recfmt or header.numrec > DISCOVERY_ENTRIES_MAX:
        raise TransportError(
            f"{controller.url.address}: a discovery log of format {header.recfmt} with {header.numrec} entries; "
            f"format 0 and {DISCOVERY_ENTRIES_MAX} are the most that is read"
        )
    return data, header


def _entry(controller: Controller, entry: DiscoveryLogEntry) -> DiscoveryEntry:
    try:
        subnqn = decode_nqn(entry.subnqn)
    except ValueError as error:
        raise TransportError(f"{controller.url.address}: discovery log: {error}") from error
    return DiscoveryEntry(
        trtype=entry.trtype,
        adrfam=entry.adrfam,
        subtype=entry.subtype,
        treq=entry.treq,
        portid=entry.portid,
        cntlid=entry.cntlid,
        asqsz=entry.asqsz,
        eflags=entry.eflags,
        trsvcid=ascii_text(entry.trsvcid),
        subnqn=subnqn,
        traddr=ascii_text(entry.traddr),
        sectype=entry.tsas[0],
    )
