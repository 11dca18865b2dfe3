"""``nvmeof ckpt``: save, ls, verify, load and delete checkpoints on a namespace or in a directory."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import uvloop

from nvmeof.cli.nvme_session import Parser, Subparsers, add_connection_options, connect_options, number
from nvmeof.cli.text import Progress, progress_bar, rate_text, size_text, table
from nvmeof.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from nvmeof.checkpoint import CheckpointInfo, Damage, Store, Verification

DESCRIPTION = """\
Checkpoints whose bytes are proven: hashed in memory (BLAKE3, 4 MiB chunks), written, flushed, committed last, verified
whenever they are read. STORE is a namespace, nvme+tcp://HOST:PORT/SUBNQN/NSID, or a directory. A blank namespace or an
empty directory becomes a store at the first save.
"""
EPILOG = """\
examples:
  nvmeof ckpt save nvme+tcp://10.0.0.5:4420/nqn.2024-01.com.example:disk/1 model.safetensors --step 1000
  nvmeof ckpt ls /mnt/checkpoints
  nvmeof ckpt verify /mnt/checkpoints --step latest
  nvmeof ckpt load /mnt/checkpoints restored.safetensors --step 1000
exit codes: 0 good, 1 corrupt, 2 never committed, 3 input/output error, 10 not found, 64 wrong usage
"""
VERIFY_DESCRIPTION = """\
Read checkpoints back and compare every byte with its hash. What is read is what the target or the file system returns
now, which may come from its cache: to check the media themselves, verify again after the target was restarted.
"""
DAMAGE_LINES_MAX = 20
"""Damaged chunks that are printed for people; --json has all of them."""

IO_QUEUES = 2

Answer: TypeAlias = "tuple[dict[str, Any], list[str]]"
"""What --json prints, and the lines for people."""

Command: TypeAlias = "Callable[[argparse.Namespace, Store, Progress | None], Awaitable[Answer]]"


def register(subparsers: Subparsers) -> None:
    """Add the command group."""
    group = subparsers.add_parser(
        "ckpt",
        help="save, list, verify and load checkpoints",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=type(group))

    save = _command(commands, "save", "save files or tensors, and return when they are on media", _save, "saving")
    save.add_argument("source", metavar="SOURCE", help="a directory of files, a .safetensors or an .npz file")
    save.add_argument("--step", type=number, required=True, metavar="N", help="the checkpoint's number; must be new")
    save.add_argument(
        "--format", action="store_true", help="make a store also of a place that holds something else, but no store"
    )
    save.add_argument("--reclaim", action="store_true", help="use the space of interrupted saves at once")
    save.add_argument("--verify", action="store_true", help="read everything back after the commit; exit 1 on damage")

    _command(commands, "ls", "list checkpoints", _ls)

    verify = _command(
        commands, "verify", "read checkpoints back and compare every byte with its hash", _verify, "verifying"
    )
    verify.description = VERIFY_DESCRIPTION
    verify.add_argument("--step", type=_step, metavar="N|latest", help="one of them (default: all committed ones)")

    load = _command(
        commands, "load", "load a checkpoint; only verified bytes, all of them or nothing", _load, "loading"
    )
    load.add_argument("destination", metavar="DEST", help="a new directory, .safetensors or .npz file")
    load.add_argument("--step", type=_step, default="latest", metavar="N|latest", help="which (default: latest)")

    delete = _command(commands, "delete", "delete a checkpoint; the last committed one stays", _delete)
    delete.add_argument("--step", type=number, required=True, metavar="N", help="which")


def _step(text: str) -> int | Literal["latest"]:
    return "latest" if text == "latest" else number(text)


def _command(commands: Subparsers, name: str, summary: str, command: Command, doing: str = "") -> Parser:
    """``doing`` is what the progress bar says; there is none without."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("store", metavar="STORE", help="nvme+tcp://HOST:PORT/SUBNQN/NSID or a directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_connection_options(parser)
    parser.add_argument(
        "--io-queues", type=number, default=IO_QUEUES, metavar="N", help=f"connections for I/O (default: {IO_QUEUES})"
    )
    parser.set_defaults(run=lambda args: _run(args, command), doing=doing)
    return parser


def _run(args: argparse.Namespace, command: Command) -> int:
    """Run one command. Returns 0; a corrupt store is printed and then raised, so that main chooses the code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        record, lines, error = runner.run(_ask(args, command))
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        print("\n".join(lines))
    if error is not None:
        raise error
    return 0


async def _ask(args: argparse.Namespace, command: Command) -> tuple[dict[str, Any], list[str], CheckpointError | None]:
    from nvmeof.checkpoint import Store, VerificationError

    connection: dict[str, Any] = {}
    if "://" in args.store:
        connection.update(connect_options(args, io_queues=args.io_queues))
    options = {"format": getattr(args, "format", False), "reclaim": getattr(args, "reclaim", False)}
    async with Store.open(args.store, **options, **connection) as store:
        error = None
        with progress_bar(args.doing) as progress:
            try:
                record, lines = await command(args, store, progress)
            except VerificationError as failed:
                record, lines = _verified(failed.results)
                error = failed
        for notice in store.notices:
            print(f"nvmeof: warning: {args.store}: {notice}", file=sys.stderr)
        return {"store": args.store, **record, "notices": list(store.notices)}, lines, error


async def _save(args: argparse.Namespace, store: Store, progress: Progress | None) -> Answer:
    from nvmeof.checkpoint import open_source

    started = time.monotonic()
    _refuse_store_in_source(args.store, args.source)
    contents = await asyncio.to_thread(open_source, args.source)
    info = await store.save(args.step, contents, verify=args.verify, progress=progress)
    seconds = time.monotonic() - started
    line = f"saved step {info.step}: {_contents(info)} in {seconds:.2f} s ({rate_text(info.size, seconds)})"
    return _timed(info, seconds), [line, f"root digest sha256:{info.root_digest.hex()}"]


def _refuse_store_in_source(store: str, source: str) -> None:
    """A store that is part of what it saves would save itself, and grow while it is read."""
    if "://" in store:
        return
    inner, outer = os.path.realpath(store), os.path.realpath(source)
    if os.path.commonpath([inner, outer]) == outer:
        raise UsageError(f"the store {store} lies in {source}, which is to be saved in it")


async def _ls(args: argparse.Namespace, store: Store, progress: Progress | None) -> Answer:
    infos = await store.ls()
    record = {"checkpoints": [_record(info) for info in infos]}
    rows = [("STEP", "STATE", "SIZE", "ITEMS", "SAVED", "ROOT DIGEST")]
    for info in infos:
        size = size_text(info.size) if info.size or info.root_digest else "-"
        digest = info.root_digest.hex() or (f"({info.note})" if info.note else "-")
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.created_ns / 1e9))
        rows.append((str(info.step), info.state, size, str(info.items), saved, digest))
    return record, table(rows, right=(0, 2, 3))


async def _verify(args: argparse.Namespace, store: Store, progress: Progress | None) -> Answer:
    return _verified(await store.verify(args.step, progress=progress))


def _verified(results: tuple[Verification, ...] | list[Verification]) -> Answer:
    lines = []
    for result in results:
        info = result.info
        if not result.damage:
            rate = f"{result.seconds:.2f} s ({rate_text(info.size, result.seconds)})"
            lines.append(f"step {info.step}: good, {_contents(info)} in {rate}, sha256:{info.root_digest.hex()}")
            continue
        lines.append(f"step {info.step}: CORRUPT, {len(result.damage)} damaged")
        lines += [f"  {damage}" for damage in result.damage[:DAMAGE_LINES_MAX]]
        if len(result.damage) > DAMAGE_LINES_MAX:
            lines.append(f"  and {len(result.damage) - DAMAGE_LINES_MAX} more (--json lists them)")
    record = {
        "good": not any(result.damage for result in results),
        "checkpoints": [
            {**_timed(result.info, result.seconds), "good": not result.damage, "damage": _damages(result.damage)}
            for result in results
        ],
    }
    return record, lines


async def _load(args: argparse.Namespace, store: Store, progress: Progress | None) -> Answer:
    started = time.monotonic()
    info = await store.load_to(args.destination, args.step, progress=progress)
    seconds = time.monotonic() - started
    rate = f"{seconds:.2f} s ({rate_text(info.size, seconds)})"
    line = f"loaded step {info.step} into {args.destination}: {_contents(info)}, all verified, in {rate}"
    record = {**_timed(info, seconds), "destination": args.destination}
    return record, [line, f"root digest sha256:{info.root_digest.hex()}"]


async def _delete(args: argparse.Namespace, store: Store, progress: Progress | None) -> Answer:
    await store.delete(args.step)
    return {"step": args.step}, [f"deleted step {args.step}"]


def _record(info: CheckpointInfo) -> dict[str, Any]:
    return {
        "step": info.step,
        "state": info.state,
        "kind": info.kind,
        "items": info.items,
        "chunks": info.chunks,
        "bytes": info.size,
        "sequence": info.sequence,
        "created_ns": info.created_ns,
        "root_digest": info.root_digest.hex(),
        "note": info.note,
    }


def _timed(info: CheckpointInfo, seconds: float) -> dict[str, Any]:
    return {**_record(info), "seconds": round(seconds, 6), "bytes_per_second": int(info.size / max(seconds, 1e-9))}


def _damages(damage: tuple[Damage, ...]) -> list[dict[str, Any]]:
    return [
        {
            "item": found.item,
            "chunk": found.chunk,
            "start": found.start,
            "end": found.end,
            "where": found.where,
            "reason": found.reason,
        }
        for found in damage
    ]


def _contents(info: CheckpointInfo) -> str:
    kind = "files" if info.kind == "files" else "tensors"
    return f"{size_text(info.size)}, {info.items} {kind}, {info.chunks} chunks"
