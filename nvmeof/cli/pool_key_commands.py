"""``nvmeof pool rotate-key``, ``export-keys`` and ``import-keys``."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from nvmeof.cli.pool_ask import ask
from nvmeof.cli.pool_directory import PoolDirectory
from nvmeof.cli.pool_keys import key_of, make_key_file, source_of
from nvmeof.cli.pool_operations import Answer, Arguments
from nvmeof.errors import UsageError
from nvmeof.limits import KEY_EXPORT_BYTES_MAX

if TYPE_CHECKING:
    from nvmeof.keys.sources import KeySource

STANDARD_OUTPUT = "-"


def rotate_key(args: argparse.Namespace) -> int:
    """Lock the pool with another key."""
    key = key_of(args, new=True, twice=True)
    if key is None:
        raise UsageError(
            "got no new key, wanted --new-key-file, --new-passphrase, --new-passphrase-file or --new-key-command"
        )
    # A key file that was made stays whatever happens: the pool may be locked with it by then.
    made = make_key_file(key, args.directory)
    answer = _ask(args, "rotate-key", {"kind": key[0], "value": key[1]})
    for path in answer["retired"]:
        print(f"nvmeof: warning: {path}: was a member, and the old key opens what is left on it", file=sys.stderr)
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        print(f"the pool is locked with the new key now{f', made in {key[1]}' if made else ''}")
    return 0


def export_keys(args: argparse.Namespace) -> int:
    """Save the key table."""
    if args.file != STANDARD_OUTPUT and os.path.lexists(args.file):
        raise UsageError(f"{args.file}: exists already; want the name of a new file")
    content = base64.b64decode(_ask(args, "export-keys", {})["keys"])
    if args.file == STANDARD_OUTPUT:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return 0
    _save(Path(args.file), content)
    if args.json:
        print(json.dumps({"file": args.file, "bytes": len(content)}, indent=2))
    else:
        print(f"{args.file}: {len(content)} bytes, still wrapped with the pool's key")
    return 0


def import_keys(args: argparse.Namespace) -> int:
    """Put a saved key table back."""
    key = key_of(args)
    source = source_of(key)
    if source is None:
        raise UsageError("got no key, wanted the one that the export was wrapped with")
    content = _load(args.file)
    count = asyncio.run(_import(args, content, source))
    if args.json:
        print(json.dumps({"keys": count}, indent=2))
    else:
        print(f"{count} keys are back on the members of {args.directory}")
    return 0


async def _import(args: argparse.Namespace, content: bytes, source: KeySource) -> int:
    from nvmeof.engine.pool import Pool

    with PoolDirectory.open(args.directory) as directory:
        directory.lock()
        disks, _ = directory.open_members()
        try:
            return await Pool.import_keys(disks, content, keys=source, force=args.yes)
        finally:
            for disk in disks:
                disk.close()


def _load(name: str) -> bytes:
    with sys.stdin.buffer if name == STANDARD_OUTPUT else open(name, "rb") as file:
        content = file.read(KEY_EXPORT_BYTES_MAX + 1)
    if len(content) > KEY_EXPORT_BYTES_MAX:
        raise UsageError(f"{name}: is no exported key table: more than {KEY_EXPORT_BYTES_MAX} bytes")
    return content


def _ask(args: argparse.Namespace, name: str, arguments: Arguments) -> Answer:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(ask(args, name, lambda served: arguments))


def _save(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
