"""What all nvme-like commands share: the options of a connection, the URL, and the three ways to print an answer."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, TypeAlias

import nvmeof
from nvmeof.errors import UsageError
from nvmeof.initiator.controller import Controller
from nvmeof.initiator.options import ConnectOptions
from nvmeof.initiator.url import SCHEME, Url, parse_url

Parser: TypeAlias = argparse.ArgumentParser
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Json: TypeAlias = "int | str | Mapping[str, Json] | list[Json]"

NORMAL, JSON, BINARY = "normal", "json", "binary"
LINE_WIDTH = 16


class Answer(NamedTuple):
    """What a command found out: for people, for programs with nvme-cli's key names, and as it came over the wire."""

    text: str
    record: Json
    data: bytes = b""


class Request(NamedTuple):
    """``nsid`` is 0 where neither the URL nor an option names a namespace."""

    args: argparse.Namespace
    controller: Controller
    nsid: int

    @property
    def device(self) -> str:
        """What stands where nvme-cli prints the device's name."""
        return str(self.args.url)

    def need_nsid(self) -> int:
        if not self.nsid:
            raise UsageError(f"{self.device}: no namespace is named, wanted /NSID at its end or -n NSID")
        return self.nsid


Command: TypeAlias = Callable[[Request], Awaitable[Answer]]


def number(text: str) -> int:
    """A number as nvme-cli takes it: decimal, or hexadecimal with 0x; not negative."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a number (decimal, or hexadecimal with 0x)")
    return value


def seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted seconds") from None


def subsystem_url(text: str) -> Url:
    try:
        url = parse_url(text)
        if url.subnqn is None:
            raise UsageError(f"URL {text!r}: no subsystem is named, wanted {SCHEME}HOST:PORT/SUBNQN[/NSID]")
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return url


def add_connection_options(parser: Parser) -> None:
    group = parser.add_argument_group("connection")
    group.add_argument("--hostnqn", metavar="NQN", help="who we are (default: /etc/nvme/hostnqn, else a random one)")
    group.add_argument("--hostid", metavar="UUID", help="our host identifier (default: /etc/nvme/hostid)")
    group.add_argument("-g", "--header-digest", action="store_true", help="CRC32C over PDU headers")
    group.add_argument("-G", "--data-digest", action="store_true", help="CRC32C over PDU data")
    group.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="for connecting (default: 10) and for each command (default: 30)",
    )


def add_output_option(parser: Parser, *formats: str) -> None:
    parser.add_argument("-o", "--output-format", choices=formats, default=NORMAL, help="how to print (default: normal)")


def add_namespace_option(parser: Parser) -> None:
    parser.add_argument("-n", "--namespace-id", type=number, metavar="NSID", help="instead of the one in the URL")


def connect_options(args: argparse.Namespace, *, io_queues: int) -> ConnectOptions:
    options = ConnectOptions(
        host_nqn=args.hostnqn,
        host_id=args.hostid,
        io_queues=io_queues,
        header_digest=args.header_digest,
        data_digest=args.data_digest,
    )
    if args.timeout is not None:
        options["connect_timeout"] = options["io_timeout"] = args.timeout
    return options


def add_admin_command(
    subparsers: Subparsers, name: str, summary: str, command: Command, *, namespace: bool = False
) -> Parser:
    """A command that needs the admin queue only."""
    parser = subparsers.add_parser(name, help=summary, description=summary)
    parser.add_argument("url", type=subsystem_url, metavar="URL", help=f"{SCHEME}HOST:PORT/SUBNQN[/NSID]")
    if namespace:
        add_namespace_option(parser)
    add_output_option(parser, NORMAL, JSON, BINARY)
    add_connection_options(parser)
    parser.set_defaults(run=lambda args: show(asyncio.run(ask(args, command)), args.output_format))
    return parser


async def ask(args: argparse.Namespace, command: Command) -> Answer:
    url: Url = args.url
    nsid = getattr(args, "namespace_id", None)
    async with nvmeof.connect(str(url._replace(nsid=None)), **connect_options(args, io_queues=0)) as controller:
        return await command(Request(args, controller, url.nsid or 0 if nsid is None else nsid))


def show(answer: Answer, output_format: str) -> int:
    """Print to standard output; the exit code."""
    if output_format == JSON:
        print(json.dumps(answer.record, indent=2))
    elif output_format == BINARY:
        sys.stdout.buffer.write(answer.data)
        sys.stdout.buffer.flush()
    else:
        print(answer.text)
    return 0


def fields(record: Mapping[str, Json], *, hexadecimal: frozenset[str] = frozenset(), width: int = 9) -> list[str]:
    """``key : value`` lines of what is a plain value in ``record``."""
    return [
        f"{key:{width}} : {value:#x}" if key in hexadecimal and isinstance(value, int) else f"{key:{width}} : {value}"
        for key, value in record.items()
        if isinstance(value, int | str)
    ]


def hex_dump(data: bytes) -> list[str]:
    """Sixteen bytes a line, with their offset and what of them is printable."""
    ruler = " " * 7 + "".join(f"{column:3x}" for column in range(LINE_WIDTH))
    lines = [ruler]
    for start in range(0, len(data), LINE_WIDTH):
        part = data[start : start + LINE_WIDTH]
        printable = "".join(chr(byte) if 0x21 <= byte <= 0x7E else "." for byte in part)
        lines.append(f"{start:06x}: {part.hex(' '):{3 * LINE_WIDTH - 1}} {printable}")
    return lines
