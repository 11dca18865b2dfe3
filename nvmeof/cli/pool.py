"""``nvmeof pool``: make pools, look at them, replace members, scrub, change keys and namespaces."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import uvloop

from nvmeof.cli import pool_text
from nvmeof.cli.arguments import argument
from nvmeof.cli.nvme_session import Parser, Subparsers, number
from nvmeof.cli.pool_ask import ask
from nvmeof.cli.pool_create import create, destroy
from nvmeof.cli.pool_key_commands import export_keys, import_keys, rotate_key
from nvmeof.cli.pool_keys import add_key_options
from nvmeof.cli.text import progress_bar
from nvmeof.errors import UsageError
from nvmeof.target.config import parse_block_size, parse_size

DESCRIPTION = """\
A pool keeps namespaces on several members, files or block devices: compressed, encrypted, checksummed, and with up to
two members lost. DIR is a directory of member files, or of links to them. The commands work while nvmeof serve --pool
DIR runs, through the socket DIR/control, and then need no key; else they open the pool themselves.
"""
EPILOG = """\
examples:
  nvmeof pool create pool --members 6 --size 4G --key-file pool.key
  nvmeof serve --pool pool --key-file pool.key
  nvmeof pool status pool
  nvmeof pool replace pool 3
  nvmeof pool scrub pool --rate 100M
exit codes: 0 well, 1 degraded or damaged (status, scrub), 3 input/output error, 10 no such pool, 64 wrong usage
"""
CODECS = ("auto", "zstd", "lz4", "deflate", "none")
PLANES = (0, 2, 4, 8)

Arguments: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]


def register(subparsers: Subparsers) -> None:
    """Add the command group."""
    group = subparsers.add_parser(
        "pool",
        help="make and look after pools: encrypted, compressed, RAID",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=type(group))
    _register_create(commands)
    _register_pool(commands)
    _register_members(commands)
    _register_keys(commands)
    _register_namespaces(commands)
    _register_destroy(commands)


def _register_create(commands: Subparsers) -> None:
    parser = _parser(commands, "create", "make a pool of new files, or of files and devices that are there")
    add = parser.add_argument
    add("--members", type=number, metavar="N", help="how many, with those for parity (default: 6)")
    target = "a file or device to use, made if there is none; DIR gets a link to it; repeatable"
    add("--member", metavar="FILE", action="append", dest="files", help=target)
    size = "what namespaces may fill altogether: bytes, or a number with K, M, G, T"
    add("--size", type=argument(parse_size), help=size)
    raid = "how many members may be lost: 0, 1 or 2 (default: raid6)"
    add("--raid", choices=("none", "raid5", "raid6"), default="raid6", help=raid)
    add("--sparse", action="store_true", help="files that take space only as they are filled, and give it back")
    add("--yes", action="store_true", help="overwrite what DIR or a FILE may hold")
    add_key_options(parser, create=True)
    parser.set_defaults(run=create)


def _register_pool(commands: Subparsers) -> None:
    status = _operation(commands, "status", "what a pool has and how it is; exit code 1 if not well", pool_text.status)
    status.set_defaults(code=lambda answer: 0 if answer["healthy"] else 1)

    scrub = _walk(commands, "scrub", "read, check and heal everything; exit code 1 if anything was bad", "scrubbing")
    scrub.set_defaults(text=pool_text.scrub, code=lambda answer: 0 if answer.get("good", True) else 1)

    rebuild = _walk(commands, "rebuild", "write what belongs on members that were replaced", "rebuilding")
    rebuild.set_defaults(text=pool_text.rebuild)


def _register_members(commands: Subparsers) -> None:
    replace = _walk(commands, "replace", "give a member's role to a new one, and rebuild it", "rebuilding", False)
    replace.add_argument("role", type=number, metavar="ROLE", help="of the member, as status shows it")
    replace.set_defaults(text=pool_text.replace, arguments=_replace_arguments)

    rejoin = _walk(commands, "rejoin", "take a member that was out, and is there again, back in", "rebuilding", False)
    rejoin.add_argument("role", type=number, metavar="ROLE", help="of the member, as status shows it")
    rejoin.set_defaults(text=pool_text.replace, arguments=_rejoin_arguments)

    spare = _operation(commands, "add-spare", "add a member that takes the place of the next one lost", pool_text.spare)
    spare.set_defaults(arguments=_member_arguments)
    for parser in (replace, spare):
        add = parser.add_argument
        add("--member", metavar="FILE", help="a file or device to use (default: a new file in DIR)")
        add(
            "--sparse",
            action="store_true",
            help="a file that takes space only as it is filled, as in such a pool",
        )
        add("--yes", action="store_true", help="overwrite what FILE may hold")


def _register_keys(commands: Subparsers) -> None:
    rotate = _parser(commands, "rotate-key", "lock the pool with another key; the old one opens nothing any more")
    add_key_options(rotate)
    add_key_options(rotate, new=True)
    rotate.set_defaults(run=rotate_key)

    export = _parser(commands, "export-keys", "save the wrapped data keys, for a pool whose copies are all lost")
    export.add_argument("file", metavar="FILE", help="a new file for them, - for standard output")
    add_key_options(export)
    export.set_defaults(run=export_keys)

    restore = _parser(commands, "import-keys", "put saved data keys back on the members of a pool that nobody serves")
    restore.add_argument("file", metavar="FILE", help="what export-keys saved, - for standard input")
    restore.add_argument("--yes", action="store_true", help="also over a key table that verifies")
    add_key_options(restore)
    restore.set_defaults(run=import_keys)


def _register_namespaces(commands: Subparsers) -> None:
    make = _operation(commands, "create-namespace", "make a thin namespace", pool_text.namespace_made)
    make.add_argument("--size", type=argument(parse_size), required=True, help="bytes, or a number with K, M, G, T")
    make.add_argument("--nsid", type=number, metavar="NSID", help="its number (default: the lowest that is free)")
    make.add_argument("--block-size", type=argument(parse_block_size), help="512 or 4096 (default: 4096)")
    make.add_argument("--encryption", choices=("on", "off"), help="off leaves it plain (default: on, with a key)")
    make.set_defaults(arguments=_create_arguments)

    settings = _operation(commands, "set", "change how a namespace is written from now on", pool_text.namespace_set)
    settings.add_argument("nsid", type=number, metavar="NSID", help="its number")
    settings.set_defaults(arguments=_set_arguments)
    for parser in (make, settings):
        add = parser.add_argument
        add("--codec", choices=CODECS, help="compression; auto tries zstd where it pays (default: auto)")
        add("--level", type=int, metavar="N", help="of the compression (default: 1)")
        add("--planes", type=int, choices=PLANES, help="bytes of a number, for tensors: 2 for bf16 (default: 0, none)")
        add("--write-cache", choices=("on", "off"), help="off: every write is on media when it completes")

    resize = _operation(commands, "resize", "give a namespace another size", pool_text.namespace_resized)
    resize.add_argument("nsid", type=number, metavar="NSID", help="its number")
    resize.add_argument("size", type=argument(parse_size), metavar="SIZE", help="bytes, or a number with K, M, G, T")
    resize.add_argument("--yes", action="store_true", help="lose what lies beyond a smaller size")
    resize.set_defaults(arguments=_resize_arguments)

    delete = _operation(commands, "delete-namespace", "delete a namespace and its key", pool_text.namespace_deleted)
    delete.add_argument("nsid", type=number, metavar="NSID", help="its number")
    delete.add_argument("--yes", action="store_true", help="really")
    delete.set_defaults(arguments=_delete_arguments)


def _register_destroy(commands: Subparsers) -> None:
    parser = _parser(commands, "destroy", "destroy the keys and all else that makes the members a pool, and the files")
    parser.add_argument("--yes", action="store_true", help="really")
    parser.set_defaults(run=destroy)


def _parser(commands: Subparsers, name: str, summary: str) -> Parser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("directory", metavar="DIR", type=Path, help="of the pool")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _operation(commands: Subparsers, name: str, summary: str, text: Callable[[Answer], list[str]]) -> Parser:
    """A command that is one operation. ``code`` makes the exit code of the answer, ``text`` the lines for people."""
    parser = _parser(commands, name, summary)
    add_key_options(parser)
    parser.set_defaults(
        run=_run, operation=name, arguments=lambda args, served: {}, text=text, code=lambda answer: 0, doing=""
    )
    return parser


def _walk(commands: Subparsers, name: str, summary: str, doing: str, waits: bool = True) -> Parser:
    """An operation that takes its time. ``waits``: also while the pool is served, unless told otherwise."""
    parser = _operation(commands, name, summary, lambda answer: [])
    parser.add_argument(
        "--rate", type=argument(parse_size), metavar="SIZE", help="bytes a second of each member (default: no limit)"
    )
    if waits:
        parser.add_argument("--background", action="store_true", help="let the serving process go on with it alone")
    else:
        parser.add_argument("--wait", action="store_true", help="until it is rebuilt; as always when nobody serves it")
    parser.set_defaults(doing=doing, arguments=_walk_arguments)
    return parser


# --- what the options ask for -----------------------------------------------------------------------------------------


def _walk_arguments(args: argparse.Namespace, served: bool) -> Arguments:
    background = getattr(args, "background", not getattr(args, "wait", True))
    if background and not served and hasattr(args, "background"):
        raise UsageError("--background: nobody serves this pool, so there is no process to go on with it")
    return _given(rate=args.rate) | {"wait": not (background and served)}


def _member_arguments(args: argparse.Namespace, served: bool) -> Arguments:
    member = None if args.member is None else os.path.abspath(args.member)
    return _given(member=member) | {"sparse": args.sparse, "overwrite": args.yes}


def _replace_arguments(args: argparse.Namespace, served: bool) -> Arguments:
    return {"role": args.role} | _member_arguments(args, served) | _walk_arguments(args, served)


def _rejoin_arguments(args: argparse.Namespace, served: bool) -> Arguments:
    return {"role": args.role} | _walk_arguments(args, served)


def _create_arguments(args: argparse.Namespace, served: bool) -> Arguments:
    wanted = _given(nsid=args.nsid, block_size=args.block_size, encrypted=_switch(args.encryption))
    return {"size": args.size} | wanted | _writing(args)


def _set_arguments(args: argparse.Namespace, served: bool) -> Arguments:
    wanted = _writing(args)
    if not wanted:
        raise UsageError("got nothing to set, wanted --codec, --level, --planes or --write-cache")
    return {"nsid": args.nsid} | wanted


def _writing(args: argparse.Namespace) -> Arguments:
    return _given(codec=args.codec, level=args.level, planes=args.planes, write_cache=_switch(args.write_cache))


def _resize_arguments(args: argparse.Namespace, served: bool) -> Arguments:
    return {"nsid": args.nsid, "size": args.size, "shrink": args.yes}


def _delete_arguments(args: argparse.Namespace, served: bool) -> Arguments:
    if not args.yes:
        raise UsageError(f"namespace {args.nsid}: everything in it will be lost; --yes says that this is wanted")
    return {"nsid": args.nsid}


def _given(**values: Any) -> Arguments:
    return {name: value for name, value in values.items() if value is not None}


def _switch(text: str | None) -> bool | None:
    return None if text is None else text == "on"


# --- running ----------------------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    """Have the operation done, print the answer; the exit code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, progress_bar(args.doing) as progress:
        answer = runner.run(ask(args, args.operation, lambda served: args.arguments(args, served), progress))
    print(json.dumps(answer, indent=2) if args.json else "\n".join(args.text(answer)))
    return int(args.code(answer))
