"""discover: what a discovery controller knows."""

from __future__ import annotations

import argparse
import asyncio

import nvmeof
from nvmeof.cli.nvme_session import (
    BINARY,
    JSON,
    NORMAL,
    Answer,
    Json,
    Subparsers,
    add_connection_options,
    add_output_option,
    connect_options,
    show,
)
from nvmeof.errors import UsageError
from nvmeof.initiator.discovery import decode_log, read_log
from nvmeof.initiator.url import SCHEME, Url, is_url, parse_url
from nvmeof.spec.fabrics import (
    DISCOVERY_NQN,
    PORT_DISCOVERY,
    AddressFamily,
    DiscoveryLogEntry,
    EntryFlags,
    SecurityType,
    SubsystemType,
    TransportRequirements,
    TransportType,
)
from nvmeof.spec.fields import ascii_text

SUMMARY = "the subsystems that a discovery controller knows"
TRANSPORTS: dict[int, str] = {
    TransportType.RDMA: "rdma",
    TransportType.FIBRE_CHANNEL: "fc",
    TransportType.TCP: "tcp",
    TransportType.INTRA_HOST: "loop",
}
FAMILIES: dict[int, str] = {
    AddressFamily.IPV4: "ipv4",
    AddressFamily.IPV6: "ipv6",
    AddressFamily.INFINIBAND: "infiniband",
    AddressFamily.FIBRE_CHANNEL: "fibre-channel",
    AddressFamily.INTRA_HOST: "loop",
}
SUBTYPES: dict[int, str] = {
    SubsystemType.REFERRAL: "discovery subsystem referral",
    SubsystemType.NVM: "nvme subsystem",
    SubsystemType.CURRENT_DISCOVERY: "current discovery subsystem",
}
SECURITY: dict[int, str] = {SecurityType.NONE: "none", SecurityType.TLS_1_2: "tls", SecurityType.TLS_1_3: "tls13"}
CHANNELS: dict[int, str] = {
    TransportRequirements.NOT_SPECIFIED: "not specified",
    TransportRequirements.SECURE_CHANNEL_REQUIRED: "required",
    TransportRequirements.SECURE_CHANNEL_NOT_REQUIRED: "not required",
}
FLAGS = {
    EntryFlags.EXPLICIT_PERSISTENT_CONNECTION: "explicit discovery connections",
    EntryFlags.DUPLICATE_RETURNED_INFORMATION: "duplicate discovery information",
    EntryFlags.NO_CDC_CONNECTIVITY: "no cdc connectivity",
}


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("discover", help=SUMMARY, description=SUMMARY)
    parser.add_argument("url", type=address_url, metavar="HOST:PORT", help=f"or {SCHEME}HOST:PORT")
    add_output_option(parser, NORMAL, JSON, BINARY)
    add_connection_options(parser)
    parser.set_defaults(run=lambda args: show(asyncio.run(discover(args)), args.output_format))


def address_url(text: str) -> Url:
    """A URL, or only HOST[:PORT]."""
    try:
        return parse_url(text if "://" in text or is_url(text) else SCHEME + text, default_port=PORT_DISCOVERY)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


async def discover(args: argparse.Namespace) -> Answer:
    url = str(args.url._replace(subnqn=args.url.subnqn or DISCOVERY_NQN, nsid=None))
    async with nvmeof.connect(url, **connect_options(args, io_queues=0)) as controller:
        data = await read_log(controller)
    header, found = decode_log(data)
    entries = [entry_record(entry) for entry in found]
    lines = [f"Discovery Log Number of Records {header.numrec}, Generation counter {header.genctr}"]
    for index, entry in enumerate(entries):
        lines.append(f"=====Discovery Log Entry {index}======")
        lines += [f"{key + ':':8} {value}" for key, value in entry.items()]
    return Answer("\n".join(lines), {"genctr": header.genctr, "records": [*entries]}, data)


def entry_record(entry: DiscoveryLogEntry) -> dict[str, Json]:
    record: dict[str, Json] = {
        "trtype": named(TRANSPORTS, entry.trtype),
        "adrfam": named(FAMILIES, entry.adrfam),
        "subtype": named(SUBTYPES, entry.subtype),
        "treq": requirements(entry.treq),
        "portid": entry.portid,
        "trsvcid": ascii_text(entry.trsvcid),
        "subnqn": entry.subnqn.split(b"\0", 1)[0].decode(errors="replace"),
        "traddr": ascii_text(entry.traddr),
        "eflags": ", ".join(text for flag, text in FLAGS.items() if entry.eflags & flag) or "none",
    }
    if entry.trtype == TransportType.TCP:
        record["sectype"] = named(SECURITY, entry.tsas[0])
    return record


def named(names: dict[int, str], value: int) -> str:
    return names.get(value, "unrecognized")


def requirements(treq: int) -> str:
    text = named(CHANNELS, treq & 3)
    if treq & TransportRequirements.SQ_FLOW_CONTROL_DISABLE_SUPPORTED:
        text += ", sq flow control disable supported"
    return text
