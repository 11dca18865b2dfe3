"""Names and small files of a directory store, and the system calls that make them last (FORMAT.md, 3). Blocking."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from nvmeof.checkpoint import canonical
from nvmeof.checkpoint.medium import COMMITTED, CORRUPT, PARTS, WRITING, CheckpointInfo, Part
from nvmeof.checkpoint.payload import read_all, write_all
from nvmeof.codec.hashes import sha256
from nvmeof.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, UsageError

LABEL = "nvmeof-store.json"
LABEL_TEMPORARY = f"{LABEL}.tmp"
LABEL_FORMAT = "nvmeof-checkpoint-store"
COMMIT = "COMMIT"
COMMIT_FORMAT = "nvmeof-commit"
VERSION = 1

COMMIT_BYTES_MAX = 1 << 20
SEQUENCE_MAX = (1 << 63) - 1

SEQUENCE_GAP = 1 << 32
"""How far a new sequence number keeps from the last known one for each COMMIT whose own number cannot be read."""

_STEP = re.compile(r"step-(0|[1-9][0-9]*)")
_REMAINS = re.compile(r"step-(0|[1-9][0-9]*)\.(tmp|uncommitted)-([0-9a-f]{32})")


@dataclass(frozen=True)
class DirectoryEntry(CheckpointInfo):
    """A checkpoint in a directory: what everybody sees of it, its path and the number of its shards."""

    path: str = ""
    shards: int = 0

    def commit_record(self) -> bytes:
        """The content of COMMIT."""
        head = {"format": COMMIT_FORMAT, "version": VERSION}
        return canonical.encode({**head, **self.record(), "shards": self.shards}) + b"\n"


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def step_name(step: int) -> str:
    return f"step-{step}"


def check_label(root: str) -> bool:
    """Whether ``root`` is a store. False if it is absent, or empty but for the remains of making it one.

    Raises CheckpointNotFoundError if something else is kept there, CorruptCheckpointError, UsageError (newer format).
    """
    try:
        data = _read_small(os.path.join(root, LABEL))
    except FileNotFoundError:
        if os.path.isdir(root) and set(os.listdir(root)) - {LABEL_TEMPORARY}:
            raise CheckpointNotFoundError(f"{root} is a directory that is not a checkpoint store") from None
        return False
    except NotADirectoryError:
        raise UsageError(f"{root} is a file, not a directory") from None
    label = canonical.decode(data, f"{root}/{LABEL}")
    label.expect(LABEL_FORMAT, VERSION)
    return True


def create_root(root: str) -> None:
    """The directory of a new store, if its parent exists."""
    try:
        os.mkdir(root)
    except FileExistsError:
        return
    fsync_directory(os.path.dirname(os.path.abspath(root)))


def lock(root: str) -> tuple[int, str]:
    """A file descriptor that holds the store's lock until it is closed, and a notice if there can be no lock here.

    Raises CheckpointError if another save or delete has it.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise CheckpointError(f"{root}: another save or delete is in progress") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            os.close(fd)
            raise
        return fd, f"the file system cannot lock ({error.strerror}): run one save or delete at a time"
    except BaseException:
        os.close(fd)
        raise
    return fd, ""


def create_label(root: str) -> None:
    """Make the directory ``root`` a store."""
    label = canonical.encode({"format": LABEL_FORMAT, "version": VERSION, "uuid": str(uuid4())}) + b"\n"
    write_durably(os.path.join(root, LABEL_TEMPORARY), label)
    os.rename(os.path.join(root, LABEL_TEMPORARY), os.path.join(root, LABEL))
    fsync_directory(root)


def scan(root: str) -> list[DirectoryEntry]:
    """Every checkpoint in the store, committed or not, by sequence."""
    entries = []
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if not os.path.isdir(path):
            continue
        if (match := _STEP.fullmatch(name)) is not None:
            entries.append(_read_step(path, int(match[1])))
        elif (match := _REMAINS.fullmatch(name)) is not None:
            note = "under way or interrupted" if match[2] == "tmp" else "moved aside, never committed"
            entry = DirectoryEntry(int(match[1]), WRITING, match[3], created_ns=_mtime(path), path=path, note=note)
            entries.append(entry)
    return sorted(entries, key=lambda entry: (entry.sequence or 1 << 63, entry.created_ns))


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def next_sequence(root: str, entries: Sequence[DirectoryEntry]) -> int:
    """A number higher than that of every commit, those included whose COMMIT cannot be read. Raises CheckpointError."""
    unknown = sum(entry.state == CORRUPT for entry in entries)
    sequence = 1 + unknown * SEQUENCE_GAP + max((entry.sequence for entry in entries), default=0)
    if sequence > SEQUENCE_MAX:
        raise CheckpointError(f"{root}: the next commit would be number {sequence}; a COMMIT holds {SEQUENCE_MAX}")
    return sequence


def _read_step(path: str, step: int) -> DirectoryEntry:
    try:
        try:
            data = _read_small(os.path.join(path, COMMIT))
        except FileNotFoundError:
            return DirectoryEntry(step, WRITING, "", created_ns=_mtime(path), path=path, note="has no COMMIT")
        entry = _decode_commit(data, path, step)
        try:
            root = _read_small(os.path.join(path, "root"))
        except FileNotFoundError:
            raise CorruptCheckpointError(f"{path}/root is missing") from None
        if sha256(root) != entry.root_digest:
            raise CorruptCheckpointError(f"{path}/COMMIT does not match {path}/root")
    except (CorruptCheckpointError, OSError) as error:
        return DirectoryEntry(step, CORRUPT, "", created_ns=_mtime(path), path=path, note=str(error))
    return entry


def _decode_commit(data: bytes, path: str, step: int) -> DirectoryEntry:
    record = canonical.decode(data, f"{path}/{COMMIT}")
    record.expect(COMMIT_FORMAT, VERSION)
    parts_record = record.fields("parts").value
    if set(parts_record) != set(PARTS) or record.size("step") != step:
        raise CorruptCheckpointError(f"{record.what}: step {record.size('step')} with parts {sorted(parts_record)}")
    return DirectoryEntry(
        step=step,
        state=COMMITTED,
        id=record.get("id", str),
        sequence=record.size("sequence"),
        created_ns=record.size("created_ns"),
        kind=record.get("kind", str),
        items=record.size("items"),
        chunks=record.size("chunks"),
        size=record.size("bytes"),
        root_digest=record.digest("root_digest"),
        parts={name: Part.decode(parts_record[name], f"{record.what}: {name}") for name in PARTS},
        path=path,
        shards=record.size("shards"),
    )


def _read_small(path: str) -> bytes:
    fd = open_regular(path)
    try:
        data = bytearray(min(os.fstat(fd).st_size, COMMIT_BYTES_MAX))
        return bytes(data[: read_all(fd, [memoryview(data)] if data else [], 0)])
    finally:
        os.close(fd)


def read_exactly(path: str, length: int) -> bytearray:
    """A file that must be ``length`` bytes long. Raises CorruptCheckpointError before it takes memory for more."""
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size != length:
            raise CorruptCheckpointError(f"{path} is {size} bytes long, wanted {length}")
        data = bytearray(length)
        del data[read_all(fd, [memoryview(data)] if data else [], 0) :]
        return data
    finally:
        os.close(fd)


def open_regular(path: str) -> int:
    """Open for reading what must be a regular file: a FIFO or a device would keep us waiting, or worse."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CorruptCheckpointError(f"{path} is not a regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_durably(path: str, data: bytes | memoryview, directory: int | None = None) -> None:
    """Create the file ``path`` (it must not exist, but for the remains of a crash) with ``data`` on media.

    ``path`` is relative to the file descriptor ``directory`` if that is given.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666, dir_fd=directory)
    try:
        write_all(fd, [memoryview(data)] if len(data) else [], 0)
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)


def fsync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
