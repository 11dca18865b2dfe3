"""``nvmeof pool create`` and ``destroy``: what happens to members before there is a pool, and at its end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from nvmeof.cli import pool_control
from nvmeof.cli.pool_directory import CONTROL_NAME, MemberFile, PoolDirectory, is_in_use
from nvmeof.cli.pool_keys import PASSPHRASE, Key, has_key, key_of, make_key_file, source_of
from nvmeof.cli.text import size_text
from nvmeof.engine.disk import sync_directory
from nvmeof.engine.layout import AREA_BYTES, SEGMENTS_MAX, Geometry, LabelFlag
from nvmeof.errors import UsageError
from nvmeof.limits import POOL_SEGMENT_BYTES

if TYPE_CHECKING:
    from nvmeof.keys.sources import KeySource

PARITY = {"none": 0, "raid5": 1, "raid6": 2}
MEMBERS = 6
DATA_MAX = 16
FAILED = 3


class Plan(NamedTuple):
    """What is to be made. ``size`` 0: as much as the files and devices that are there hold."""

    raid: str
    members: int
    targets: tuple[Path, ...]
    size: int
    sparse: bool
    overwrite: bool


def create(args: argparse.Namespace) -> int:
    """Make a pool."""
    plan = plan_of(args)
    if not args.no_encryption and not has_key(args):
        raise UsageError(
            "got no key, wanted --key-file, --passphrase, --passphrase-file or --key-command, or else --no-encryption"
        )
    with _directory(args.directory, plan) as directory:
        key = key_of(args, twice=True)
        created = asyncio.run(_create(directory, plan, key))
    print(json.dumps(created, indent=2) if args.json else "\n".join(_lines(created, key, args.passphrase_file)))
    return 0


def plan_of(args: argparse.Namespace) -> Plan:
    """What the options ask for. Raises UsageError."""
    targets = tuple(Path(os.path.abspath(file)) for file in args.files or ())
    members = args.members if args.members is not None else len(targets) or MEMBERS
    if targets and len(targets) != members:
        raise UsageError(f"--members: got {members}, but {len(targets)} --member")
    if len({os.path.realpath(target) for target in targets}) != len(targets):
        raise UsageError("--member: got the same file twice")
    parity = PARITY[args.raid]
    least, most = 2 + parity if parity else 1, DATA_MAX + parity
    if not least <= members <= most:
        raise UsageError(f"--members: got {members}, wanted {least} to {most} with {args.raid}")
    present = [target for target in targets if _length(target)]
    if present and args.size is not None:
        raise UsageError(f"--size: {present[0]} is there and has a size; leave --size out")
    if not present and args.size is None:
        raise UsageError("--size: is missing; wanted what namespaces may fill altogether")
    return Plan(args.raid, members, targets, args.size or 0, args.sparse, args.yes)


@contextlib.contextmanager
def _directory(path: Path, plan: Plan) -> Iterator[PoolDirectory]:
    """The locked directory, made if it is missing, and removed again if nothing comes of it."""
    made = False
    try:
        path.mkdir(mode=0o700)
        made = True
    except FileExistsError:
        pass
    except ValueError as error:
        raise UsageError(f"{str(path)!r}: is not a usable file name: {error}") from error
    try:
        with PoolDirectory.open(path) as directory:
            directory.lock()
            if made:
                sync_directory(Path(os.path.abspath(path)).parent)
            elif (names := os.listdir(directory.fd)) and not plan.overwrite:
                what = "a pool, or what is left of one" if directory.members() else f"{min(names)!r} already"
                raise UsageError(f"{path}: holds {what}; --yes says that its members may be overwritten")
            yield directory
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


async def _create(directory: PoolDirectory, plan: Plan, key: Key | None) -> dict[str, Any]:
    from nvmeof.engine.pool import Pool

    member_bytes = member_bytes_of(plan)
    for each in plan.targets:
        directory.check_target(each)
    disks: list[MemberFile] = []
    made_key = False
    try:
        made_key = make_key_file(key, directory.path)
        keys = source_of(key)
        _check(keys)
        _clear(directory)
        for index in range(plan.members):
            target = plan.targets[index] if plan.targets else None
            path = directory.path_of(index)
            disks.append(
                directory.make_member(path, target, member_bytes, sparse=plan.sparse, overwrite=plan.overwrite)
            )
        geometry = await Pool.create(disks, raid=plan.raid, keys=keys, sparse=plan.sparse)
        return _described(directory, geometry, plan)
    except BaseException:
        for index, disk in enumerate(disks):
            directory.remove(directory.path_of(index))
            if disk.created:
                disk.path.unlink(missing_ok=True)
        if made_key and key is not None:
            os.unlink(key[1])  # it has locked nothing
        raise
    finally:
        for disk in disks:
            disk.close()


def member_bytes_of(plan: Plan) -> int:
    """Bytes of a member: of the smallest that is there, or as many as namespaces of ``plan.size`` need.

    Raises UsageError when no pool can be made of such members: nothing was overwritten for it by then.
    """
    from nvmeof.engine.creation import capacity, geometry_for, member_bytes_for, segment_bytes_for

    if plan.size:
        largest = geometry_for(plan.members, 2 * AREA_BYTES + SEGMENTS_MAX * POOL_SEGMENT_BYTES, raid=plan.raid)
        if plan.size > capacity(largest):
            raise UsageError(f"--size: got {plan.size} bytes, wanted at most {capacity(largest)} with these members")
        return member_bytes_for(plan.members, plan.size, raid=plan.raid)
    smallest, named = min((length, target) for target in plan.targets if (length := _length(target)))
    segment_bytes = segment_bytes_for(plan.members, smallest, raid=plan.raid)
    try:
        geometry_for(plan.members, smallest, raid=plan.raid, segment_bytes=segment_bytes)
    except UsageError as error:
        raise UsageError(f"{named}: {error}") from error
    return smallest


def _described(directory: PoolDirectory, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    from nvmeof.engine.creation import capacity

    return {
        "directory": str(directory.path),
        "uuid": str(UUID(bytes=geometry.pool)),
        "raid": plan.raid,
        "data": geometry.data,
        "parity": geometry.parity,
        "encrypted": bool(geometry.flags & LabelFlag.ENCRYPTED),
        "capacity": capacity(geometry),
        "segment_bytes": geometry.segment_bytes,
        "member_bytes": geometry.member_bytes,
        "members": [str(path) for path in directory.members()],
    }


def _lines(created: dict[str, Any], key: Key | None, passphrase_file: str | None) -> list[str]:
    """What was made, and what to type next."""
    option = "" if key is None else f" {_option(key, passphrase_file)}"
    kind = "encrypted" if created["encrypted"] else "NOT encrypted"
    return [
        f"pool {created['uuid']}: {created['raid']}, {created['data']} data + {created['parity']} parity members of "
        f"{size_text(created['member_bytes'])}, room for {size_text(created['capacity'])}, {kind}",
        f"nvmeof serve --pool {shlex.quote(created['directory'])}{option}",
    ]


def _option(key: Key, passphrase_file: str | None) -> str:
    """How to give the key again."""
    kind, value = key
    if passphrase_file is not None:
        return f"--passphrase-file {shlex.quote(os.path.abspath(passphrase_file))}"
    return "--passphrase" if kind == PASSPHRASE else f"--key-{kind} {shlex.quote(value)}"


def _check(keys: KeySource | None) -> None:
    """A key that cannot be had is found out before anything is overwritten."""
    if keys is not None:
        keys.kek(keys.new_kdf())


def _clear(directory: PoolDirectory) -> None:
    """Remove the members of a pool that was here. Raises UsageError while one is in use."""
    if directory.members():
        wipe_members(directory)


def _length(path: Path) -> int:
    """Bytes in a file or device, 0 when there is none."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return 0  # to open a pipe may take for ever; what this is will be said when it is to be used
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END)
    except OSError:
        return 0


# --- the end of a pool ------------------------------------------------------------------------------------------------


def destroy(args: argparse.Namespace) -> int:
    """Destroy every copy of the keys and everything else that says what the members are; remove files and links."""
    if not args.yes:
        raise UsageError(f"{args.directory}: everything in this pool will be lost; --yes says that this is wanted")
    with PoolDirectory.open(args.directory) as directory:
        directory.need_members()
        sock = pool_control.connect(directory)
        if sock is not None:
            sock.close()
            raise UsageError(f"{args.directory}: is being served; stop that process first")
        directory.lock()
        gone, problems = wipe_members(directory)
        with contextlib.suppress(OSError):
            os.unlink(CONTROL_NAME, dir_fd=directory.fd)
    with contextlib.suppress(OSError):
        args.directory.rmdir()
    for problem in problems:
        print(f"nvmeof: warning: {problem}", file=sys.stderr)
    if args.json:
        print(json.dumps({"destroyed": gone, "problems": problems}, indent=2))
    else:
        print(f"destroyed {len(gone)} members of {args.directory}")
    return FAILED if problems else 0


def wipe_members(directory: PoolDirectory) -> tuple[list[str], list[str]]:
    """Make members blank, then remove their names. What is gone, and what is wrong with those that could not be.

    Raises UsageError, before anything is done, when one is in use.
    """
    paths = [*directory.members(), *directory.retired()]
    disks: list[MemberFile] = []
    problems = []
    with contextlib.ExitStack() as stack:
        for path in paths:
            try:
                disks.append(MemberFile.open(path))
            except UsageError as error:
                if is_in_use(error):
                    raise
                if os.path.exists(path):
                    problems.append(f"{error}; keys may be left on it")
                else:
                    directory.remove(path)  # a link to nowhere
            else:
                stack.callback(disks[-1].close)
        gone = []
        for disk in disks:
            try:
                disk.wipe()
                if disk.path.is_symlink():
                    disk.discard(0, disk.size())
            except OSError as error:
                problems.append(f"{disk.path}: {error.strerror}; keys may be left on it")
                continue
            try:
                directory.remove(disk.path)
            except OSError as error:
                problems.append(f"{disk.path}: is blank now, but cannot be removed: {error.strerror}")
            else:
                gone.append(str(disk.path))
    return gone, problems
