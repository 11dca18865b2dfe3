"""What can be done to an open pool: each operation once, for the commands and for the control socket of a server.

An operation takes a session and arguments that JSON can say, and answers with a dict that JSON can say.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from nvmeof.cli.pool_directory import MemberFile
from nvmeof.cli.pool_keys import COMMAND, FILE, PASSPHRASE, source_of
from nvmeof.cli.pool_session import Session
from nvmeof.cli.text import Progress
from nvmeof.engine.executor import finished
from nvmeof.engine.layout import LabelFlag, MemberState
from nvmeof.errors import UsageError, WriteFault
from nvmeof.limits import CONTROL_PROGRESS_SECONDS

if TYPE_CHECKING:
    from nvmeof.engine.pool_volume import PoolVolume
    from nvmeof.engine.scrub import ScrubReport

Arguments: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = dict[str, Any]
Function: TypeAlias = Callable[[Session, Arguments, Progress | None], Coroutine[Any, Any, Answer]]

_NAMESPACE: dict[str, type] = {"codec": str, "level": int, "planes": int, "write_cache": bool}
_MEMBER: dict[str, type] = {"member": str, "sparse": bool, "overwrite": bool}
_WALK: dict[str, type] = {"rate": int, "wait": bool}


SPARES_SECONDS = 10.0
"""For labels to be written to them, and synced."""


class Operation(NamedTuple):
    """``takes``: the arguments and their types. Those in ``needs`` must be there.

    ``whole``: goes on to its end when nobody waits for it any more. The others see to that where it matters.
    """

    function: Function
    takes: Mapping[str, type] = {}
    needs: tuple[str, ...] = ()
    whole: bool = True


async def perform(session: Session, name: str, arguments: Arguments, progress: Progress | None = None) -> Answer:
    """Do it. Raises UsageError, OSError, VolumeError."""
    operation = OPERATIONS.get(name)
    if operation is None:
        raise UsageError(f"operation {name!r}: unknown; want one of {', '.join(OPERATIONS)}")
    for key, value in arguments.items():
        wanted = operation.takes.get(key)
        if wanted is None or type(value) is not wanted:
            raise UsageError(f"operation {name}: got {key!r}, wanted {_wanted(operation)}")
    if missing := [key for key in operation.needs if key not in arguments]:
        raise UsageError(f"operation {name}: got no {missing[0]!r}, wanted {_wanted(operation)}")
    for key, value in arguments.items():
        if key == "rate" and value < 1:
            raise UsageError(f"rate: got {value}, wanted bytes a second, 1 at least")
        if isinstance(value, str) and "\0" in value:
            raise UsageError(f"{key}: has a zero byte in it")
    work = operation.function(session, arguments, progress)
    return await (finished(work) if operation.whole else work)


def _wanted(operation: Operation) -> str:
    return ", ".join(f"{key} ({kind.__name__})" for key, kind in operation.takes.items()) or "nothing"


# --- the pool ---------------------------------------------------------------------------------------------------------


async def status(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """Everything there is to know, and whether it is well."""
    pool = session.pool
    found = pool.status().to_json()
    gone = []
    for number, member in enumerate((*pool.members, *pool.spares)):
        if isinstance(member.disk, MemberFile) and member.disk.is_gone:
            gone.append(member.name)
            found["members"][number]["reason"] = "the file was deleted"
    unread = sum(volume.health.media_errors for volume in pool.namespaces.values())
    damaged = bool(unread or found["scrub"]["lost"])
    healthy = found["state"] == "healthy" and not gone and not damaged
    return {
        "directory": str(session.directory.path),
        "served": session.audience.served,
        "healthy": healthy,
        "damaged": damaged,
        "unreadable": unread,
        "deleted": gone,
        "problems": session.problems,
        **found,
    }


async def scrub(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """Read and check everything, heal what can be healed. One that is stopped, or is waited for no more, is resumed."""
    pool, rate = session.pool, arguments.get("rate")
    if not arguments.get("wait", True):
        if pool.walks.walk is not None:
            raise UsageError("a scrub or rebuild is running already")
        pool.start_scrub(rate)
        return {"started": True}
    began = time.time()
    report = await _followed(session, "scrub", rate, progress) or await _scrubbed(session, rate, progress)
    found = report.to_json()
    found["bad"] = {pool.members[role].name: count for role, count in report.bad.items()}
    found["errors"] = [error._asdict() for error in pool.reader.errors if error.time >= began]
    good = not report.bad and not report.lost and not pool.health.degraded
    return {"good": good, "state": pool.status().state, "reason": pool.health.reason, **found}


async def rebuild(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """Write what belongs on members that were replaced. It goes on when nobody waits for it."""
    await _spares_taken(session)
    needed = any(member.state is MemberState.REBUILDING for member in session.pool.members)
    if needed and not arguments.get("wait", True):
        session.pool.start_rebuild(arguments.get("rate"))
        return {"started": True}
    seconds = await _rebuilt(session, arguments.get("rate"), progress) if needed else 0.0
    pool = session.pool
    return {"rebuilt": needed, "seconds": seconds, "state": pool.status().state, "reason": pool.health.reason}


async def _spares_taken(session: Session) -> None:
    """Just after the opening spares may be about to step in."""
    pool, deadline = session.pool, time.monotonic() + SPARES_SECONDS
    while any(member.state is MemberState.OUT for member in pool.members) and (pool.spares or pool.admin.locked()):
        if pool.background_error or pool.health.read_only or time.monotonic() > deadline:
            return
        await asyncio.sleep(CONTROL_PROGRESS_SECONDS)


async def _rebuilt(session: Session, rate: int | None, progress: Progress | None) -> float:
    """Wait for the rebuild, which runs by itself. The seconds it took. Raises what ended it."""
    pool, began = session.pool, time.monotonic()
    pool.start_rebuild(rate)
    report = await _followed(session, "rebuild", rate, progress)
    if report is None or not report.finished:
        raise WriteFault(f"the rebuild did not end: {pool.health.reason or 'it was stopped'}")
    return time.monotonic() - began


async def _scrubbed(session: Session, rate: int | None, progress: Progress | None) -> ScrubReport:
    pool = session.pool
    work = asyncio.ensure_future(pool.scrub(rate, _in_bytes(session, progress)))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if pool.walks.walk is not None:
            pool.walks.walk.stopped = True
        await asyncio.wait([work])
        raise


async def _followed(session: Session, name: str, rate: int | None, progress: Progress | None) -> ScrubReport | None:
    """Wait for a scrub or rebuild that runs by itself; None if there is none. Raises what ended it."""
    walks, tell = session.pool.walks, _in_bytes(session, progress)
    job = walks.jobs.get(name)
    if job is None or job.done():
        return None
    while not job.done():
        if walks.walk is not None:
            walks.walk.rate = walks.walk.rate if rate is None else rate
            tell(walks.walk.cursor, session.pool.geometry.segments)
        await asyncio.wait([job], timeout=CONTROL_PROGRESS_SECONDS)
    return job.result()


def _in_bytes(session: Session, progress: Progress | None) -> Progress:
    """The engine counts segments; people read bytes of all members."""
    scale = session.pool.geometry.segment_bytes * session.pool.geometry.width

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(done * scale, total * scale)

    return tell


# --- members ----------------------------------------------------------------------------------------------------------


async def replace(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """A new member takes a role. What had it before keeps its bytes, under a name that is no member's."""
    role = arguments["role"]
    width = session.pool.geometry.width
    if not 0 <= role < width:
        raise UsageError(f"role {role}: got {role}, wanted 0 to {width - 1}")
    answer = await finished(_replaced(session, arguments))
    return await _fill(session, arguments, progress, answer)


async def _replaced(session: Session, arguments: Arguments) -> Answer:
    role = arguments["role"]
    async with session.lock:
        old = _path_of(session, role)
        disk, path = await asyncio.to_thread(_new_member, session, arguments, role)
        try:
            await session.pool.replace(role, disk)
        except BaseException:
            _give_up(session, disk, path)
            raise
        note = session.directory.retire(old) if old is not None and old != path else ""
    return {"role": role, "member": str(path), "note": note}


async def _fill(session: Session, arguments: Arguments, progress: Progress | None, answer: Answer) -> Answer:
    """Rebuild what has a role now, and wait for that if it is wanted."""
    if not arguments.get("wait", False):
        session.pool.start_rebuild(arguments.get("rate"))
        return answer | {"rebuilt": False}
    return answer | {"rebuilt": True, "seconds": await _rebuilt(session, arguments.get("rate"), progress)}


async def rejoin(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """A member that was out, and is there again, takes its role back."""
    role = arguments["role"]
    await finished(session.pool.rejoin(role))
    answer = {"role": role, "member": session.pool.members[role].name, "note": ""}
    return await _fill(session, arguments, progress, answer)


async def add_spare(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """A member that takes the place of the next one that fails."""
    async with session.lock:
        disk, path = await asyncio.to_thread(_new_member, session, arguments, None)
        try:
            await session.pool.add_spare(disk)
        except BaseException:
            _give_up(session, disk, path)
            raise
    return {"member": str(path)}


def _path_of(session: Session, role: int) -> Path | None:
    """The name in the directory of the member that has a role now."""
    disk = session.pool.members[role].disk
    return disk.path if isinstance(disk, MemberFile) else None


def _new_member(session: Session, arguments: Arguments, role: int | None) -> tuple[MemberFile, Path]:
    target = Path(arguments["member"]) if "member" in arguments else None
    if target is not None and not target.is_absolute():
        raise UsageError(f"{target}: want an absolute path")
    if target is not None:
        session.directory.check_target(target)
    path = session.directory.free_path(role)
    geometry = session.pool.geometry
    disk = session.directory.make_member(
        path,
        target,
        geometry.member_bytes,
        sparse=arguments.get("sparse", False) or bool(geometry.flags & LabelFlag.SPARSE),
        overwrite=arguments.get("overwrite", False),
    )
    return disk, path


def _give_up(session: Session, disk: MemberFile, path: Path) -> None:
    """Leave no half member behind: it would be in the way at the next opening."""
    disk.close()
    session.directory.remove(path)
    if disk.created:
        disk.path.unlink(missing_ok=True)


# --- keys -------------------------------------------------------------------------------------------------------------


async def rotate_key(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """Wrap the data keys with another key."""
    kind, value = arguments["kind"], arguments["value"]
    if kind not in (FILE, PASSPHRASE, COMMAND):
        raise UsageError(f"key: got {kind!r}, wanted {FILE}, {PASSPHRASE} or {COMMAND}")
    source = source_of((kind, value))
    assert source is not None
    await session.pool.rotate_key(source)
    return {"rotated": True, "retired": [str(path) for path in session.directory.retired()]}


async def export_keys(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """The wrapped data keys."""
    return {"keys": base64.b64encode(session.pool.export_keys()).decode()}


# --- namespaces -------------------------------------------------------------------------------------------------------


async def create_namespace(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """Make a thin namespace; hosts see it at once."""
    wanted = dict(arguments)
    volume = await session.pool.create_namespace(wanted.pop("size"), **wanted)
    nsid = next(nsid for nsid, each in session.pool.namespaces.items() if each is volume)
    session.audience.appeared(nsid, volume)
    return namespace(nsid, volume)


async def resize(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """Give a namespace another size."""
    nsid, size = arguments["nsid"], arguments["size"]
    volume = _namespace(session, nsid)
    if size < volume.size and not arguments.get("shrink", False):
        raise UsageError(f"namespace {nsid}: has {volume.size} bytes; --yes says that those beyond {size} may be lost")
    if size < volume.size:
        session.audience.shrinking(nsid, size)
    try:
        await session.pool.resize_namespace(nsid, size)
    finally:
        session.audience.resized(nsid)
    return namespace(nsid, session.pool.namespaces[nsid])


async def set_namespace(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """Change how a namespace is written from now on."""
    wanted = dict(arguments)
    nsid = wanted.pop("nsid")
    _namespace(session, nsid)
    await session.pool.set_namespace(nsid, **wanted)
    return namespace(nsid, session.pool.namespaces[nsid])


async def delete_namespace(session: Session, arguments: Arguments, progress: Progress | None) -> Answer:
    """Delete a namespace, its key first."""
    nsid = arguments["nsid"]
    volume = _namespace(session, nsid)
    record = namespace(nsid, volume)
    session.audience.disappearing(nsid)
    try:
        await session.pool.delete_namespace(nsid)
    except BaseException:
        if session.pool.namespaces.get(nsid) is volume:
            session.audience.appeared(nsid, volume)
        raise
    return record


def _namespace(session: Session, nsid: int) -> PoolVolume:
    volume = session.pool.namespaces.get(nsid)
    if volume is None:
        known = ", ".join(map(str, sorted(session.pool.namespaces))) or "none"
        raise UsageError(f"namespace {nsid}: not in this pool, which has {known}")
    return volume


def namespace(nsid: int, volume: PoolVolume) -> Answer:
    """What is said about one."""
    return {
        "nsid": nsid,
        "uuid": str(volume.uuid),
        "size": volume.size,
        "block_size": volume.block_size,
        "allocated": volume.allocated,
        "codec": volume.info.codec,
        "level": volume.info.level,
        "planes": volume.info.planes,
        "encrypted": bool(volume.info.key_id),
        "write_cache": volume.write_cache,
    }


OPERATIONS: dict[str, Operation] = {
    "status": Operation(status),
    "scrub": Operation(scrub, _WALK, whole=False),
    "rebuild": Operation(rebuild, _WALK, whole=False),
    "replace": Operation(replace, {"role": int, **_MEMBER, **_WALK}, ("role",), whole=False),
    "rejoin": Operation(rejoin, {"role": int, **_WALK}, ("role",), whole=False),
    "add-spare": Operation(add_spare, _MEMBER),
    "rotate-key": Operation(rotate_key, {"kind": str, "value": str}, ("kind", "value")),
    "export-keys": Operation(export_keys),
    "create-namespace": Operation(
        create_namespace, {"size": int, "nsid": int, "block_size": int, "encrypted": bool, **_NAMESPACE}, ("size",)
    ),
    "delete-namespace": Operation(delete_namespace, {"nsid": int}, ("nsid",)),
    "resize": Operation(resize, {"nsid": int, "size": int, "shrink": bool}, ("nsid", "size")),
    "set": Operation(set_namespace, {"nsid": int, **_NAMESPACE}, ("nsid",)),
}
