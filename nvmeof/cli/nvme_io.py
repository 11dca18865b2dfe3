"""read, write and flush."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import nvmeof
from nvmeof.cli.nvme_session import (
    JSON,
    NORMAL,
    Answer,
    Json,
    Parser,
    Subparsers,
    add_connection_options,
    add_namespace_option,
    add_output_option,
    connect_options,
    number,
    show,
    subsystem_url,
)
from nvmeof.errors import UsageError
from nvmeof.initiator.namespace import Namespace
from nvmeof.initiator.url import SCHEME, Url
from nvmeof.limits import HOST_BLOCK_SIZE_MAX, MIB

BLOCK_COUNT_MAX = 0xFFFF
"""0's based, as NLB of a Read or Write command."""


def register(subparsers: Subparsers) -> None:
    reader = add_io_command(subparsers, "read", "read blocks to a file or standard output")
    add_range_options(reader, "where to (default: standard output)")
    reader.set_defaults(run=run_read)
    writer = add_io_command(subparsers, "write", "write blocks from a file or standard input")
    add_range_options(writer, "where from (default: standard input)")
    writer.add_argument("--force-unit-access", action="store_true", help="complete when it is on media")
    writer.set_defaults(run=run_write)
    flusher = add_io_command(subparsers, "flush", "put everything written so far on media")
    flusher.set_defaults(run=run_flush)


def add_io_command(subparsers: Subparsers, name: str, summary: str) -> Parser:
    parser = subparsers.add_parser(name, help=summary, description=summary)
    parser.add_argument("url", type=subsystem_url, metavar="URL", help=f"{SCHEME}HOST:PORT/SUBNQN[/NSID]")
    add_namespace_option(parser)
    add_output_option(parser, NORMAL, JSON)
    add_connection_options(parser)
    parser.add_argument("--io-queues", type=number, default=1, metavar="N", help="connections for I/O (default: 1)")
    return parser


def add_range_options(parser: Parser, data_help: str) -> None:
    parser.add_argument("-s", "--start-block", type=number, default=0, metavar="LBA", help="first block (default: 0)")
    parser.add_argument(
        "-c", "--block-count", type=number, default=0, metavar="N", help="blocks minus one (default: 0)"
    )
    parser.add_argument("-z", "--data-size", type=number, metavar="BYTES", help="bytes of data (default: all blocks)")
    parser.add_argument("-d", "--data", type=Path, metavar="FILE", help=data_help)


class Range(NamedTuple):
    """Bytes of the namespace, and how many of them the caller's data covers."""

    offset: int
    length: int
    data_size: int


def checked_blocks(args: argparse.Namespace) -> int:
    if args.block_count > BLOCK_COUNT_MAX:
        raise UsageError(f"--block-count: got {args.block_count}, wanted 0 to {BLOCK_COUNT_MAX} (0's based)")
    return int(args.block_count) + 1


def checked_range(args: argparse.Namespace, block_size: int) -> Range:
    length = checked_blocks(args) * block_size
    size = length if args.data_size is None else args.data_size
    if not 0 < size <= length:
        raise UsageError(
            f"--data-size: got {size}, wanted 1 to {length} ({args.block_count + 1} blocks of {block_size})"
        )
    return Range(args.start_block * block_size, length, size)


def run_read(args: argparse.Namespace) -> int:
    if args.output_format == JSON and args.data is None:
        raise UsageError("read -o json: wanted --data FILE, since the data cannot go to standard output too")
    return asyncio.run(read(args))


async def read(args: argparse.Namespace) -> int:
    async with open_namespace(args) as namespace:
        where = checked_range(args, namespace.block_size)
        start = time.perf_counter()
        data = memoryview(await namespace.read(where.offset, where.length))[: where.data_size]
        elapsed = time.perf_counter() - start
    if args.data is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return 0
    try:
        args.data.write_bytes(data)
    except OSError as error:
        raise UsageError(f"--data {args.data}: {error.strerror}") from error
    return show(transferred("read", args, where, elapsed), args.output_format)


def run_write(args: argparse.Namespace) -> int:
    size = checked_blocks(args) * HOST_BLOCK_SIZE_MAX
    data = source(args, size if args.data_size is None else min(args.data_size, size))
    return asyncio.run(write(args, data))


async def write(args: argparse.Namespace, data: bytes) -> int:
    """The data is there before anything connects: whoever produces it may take longer than a target waits."""
    async with open_namespace(args) as namespace:
        where = checked_range(args, namespace.block_size)
        if len(data) < where.data_size:
            name = args.data or "standard input"
            raise UsageError(f"--data {name}: got {len(data)} bytes, wanted {where.data_size}")
        data = data[: where.data_size].ljust(where.length, b"\0")
        start = time.perf_counter()
        await namespace.write(where.offset, data, fua=args.force_unit_access)
        elapsed = time.perf_counter() - start
    return show(transferred("write", args, where, elapsed), args.output_format)


def source(args: argparse.Namespace, size: int) -> bytes:
    """The first ``size`` bytes of the file or of standard input, fewer if it has fewer."""
    try:
        if args.data is None:
            return read_up_to(sys.stdin.buffer, size)
        with args.data.open("rb") as file:
            return read_up_to(file, size)
    except OSError as error:
        raise UsageError(f"--data {args.data or 'standard input'}: {error.strerror}") from error


def read_up_to(file: BinaryIO, size: int) -> bytes:
    """In pieces: one read of ``size`` would allocate all of it first."""
    data = bytearray()
    while piece := file.read(min(MIB, size - len(data))):
        data += piece
    return bytes(data)


def transferred(what: str, args: argparse.Namespace, where: Range, elapsed: float) -> Answer:
    record: dict[str, Json] = {
        "command": what,
        "start_block": args.start_block,
        "blocks": args.block_count + 1,
        "bytes": where.data_size,
        "microseconds": round(elapsed * 1e6),
    }
    return Answer(f"{what}: Success, {where.data_size} bytes in {elapsed * 1000:.3f} ms", record)


def run_flush(args: argparse.Namespace) -> int:
    return asyncio.run(flush(args))


async def flush(args: argparse.Namespace) -> int:
    async with open_namespace(args) as namespace:
        start = time.perf_counter()
        await namespace.flush()
        elapsed = time.perf_counter() - start
        nsid = namespace.nsid
    record: dict[str, Json] = {"command": "flush", "nsid": nsid, "microseconds": round(elapsed * 1e6)}
    return show(Answer(f"NVMe Flush: success, namespace {nsid}, {elapsed * 1000:.3f} ms", record), args.output_format)


def open_namespace(args: argparse.Namespace) -> AbstractAsyncContextManager[Namespace]:
    url: Url = args.url
    chosen = url if args.namespace_id is None else url._replace(nsid=args.namespace_id)
    if chosen.nsid is None:
        raise UsageError(f"{url}: no namespace is named, wanted /NSID at its end or -n NSID")
    return nvmeof.open_namespace(str(chosen), **connect_options(args, io_queues=args.io_queues))
