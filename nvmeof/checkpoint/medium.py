"""What the store needs of a place that keeps checkpoints; a namespace and a directory implement it."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nvmeof.checkpoint.canonical import Fields
from nvmeof.checkpoint.manifest import Item, RankManifest
from nvmeof.checkpoint.table import ChunkTable
from nvmeof.errors import CorruptCheckpointError, StatusError

WRITING = "writing"
COMMITTED = "committed"
CORRUPT = "corrupt"

PARTS = ("table", "rank", "root")
"""The metadata of a checkpoint, in the order in which they are stored."""

MEDIA_ERROR = 2
"""Status Code Type of Media and Data Integrity Errors (NVMe Base 2.0, figure 93): the blocks cannot be had."""

Piece = tuple[int, memoryview]
"""Offset in a region, and the bytes that are (or should come) there."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where a piece of metadata lies in its region (bytes) and its BLAKE3."""

    offset: int
    length: int
    hash: bytes

    def record(self) -> list[object]:
        return [self.offset, self.length, self.hash.hex()]

    @classmethod
    def decode(cls, value: object, what: str) -> Part:
        if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], str):
            raise CorruptCheckpointError(f"{what} is {value!r:.80}, wanted [offset, length, hash]")
        record = Fields({"offset": value[0], "length": value[1], "hash": value[2]}, what)
        hashed = b"" if value[2] == "" else record.digest("hash")
        return cls(record.size("offset"), record.size("length"), hashed)


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes ``[start, end)`` of an item that cannot be had as they were saved. ``item`` is empty for metadata."""

    item: str
    chunk: int
    start: int
    end: int
    where: str
    reason: str

    def __str__(self) -> str:
        named = f"{self.item!r}, chunk {self.chunk} (bytes {self.start} to {self.end})" if self.item else "metadata"
        return f"{named}: {self.reason}, at {self.where}"


class DamagedError(CorruptCheckpointError):
    """Stored bytes are not the bytes that were saved. ``damage`` lists all that was found, at least one."""

    def __init__(self, step: int, damage: Sequence[Damage]) -> None:
        more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
        super().__init__(f"checkpoint of step {step} is corrupt: {damage[0]}{more}")
        self.step = step
        self.damage = tuple(damage)


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint of a store.

    ``state`` is ``writing`` (not committed: a save under way or one that died), ``committed`` or ``corrupt``
    (its commit record is damaged; ``note`` says how). ``size`` is in payload bytes. ``sequence`` counts the commits of
    the store: the highest is the latest. ``root_digest`` is the SHA-256 of the root manifest, empty unless committed.
    """

    step: int
    state: str
    id: str
    sequence: int = 0
    created_ns: int = 0
    kind: str = ""
    items: int = 0
    chunks: int = 0
    size: int = 0
    root_digest: bytes = b""
    parts: Mapping[str, Part] = field(default_factory=dict)
    note: str = ""

    def record(self) -> dict[str, object]:
        """What every medium keeps of it, for :mod:`nvmeof.checkpoint.canonical`."""
        return {
            "step": self.step,
            "id": self.id,
            "sequence": self.sequence,
            "created_ns": self.created_ns,
            "kind": self.kind,
            "items": self.items,
            "chunks": self.chunks,
            "bytes": self.size,
            "root_digest": self.root_digest.hex(),
            "parts": {name: part.record() for name, part in self.parts.items()},
        }


@dataclass(frozen=True)
class Plan:
    """What a save is going to write: known before the first byte is hashed, so that its space can be claimed."""

    step: int
    id: str
    created_ns: int
    manifest: RankManifest
    chunks: int
    size: int
    part_bytes: Mapping[str, int]

    @property
    def items(self) -> tuple[Item, ...]:
        return self.manifest.items


class Medium(ABC):
    """A store's place. One save, delete or format at a time; reads may go on beside it."""

    notices: list[str]
    """Damage that was survived (a bad label copy, a bad superblock slot), for people."""

    @abstractmethod
    async def list(self) -> list[CheckpointInfo]:
        """All checkpoints, committed or not, by sequence. Raises CheckpointNotFoundError if there is no store here."""

    @abstractmethod
    async def begin(self, plan: Plan) -> Draft:
        """Claim space for a checkpoint; formats a blank place. Raises OSError(ENOSPC) if there is not enough."""

    @abstractmethod
    async def open(self, info: CheckpointInfo, *, bypass_cache: bool = False) -> Stored:
        """Open a committed checkpoint for reading; ``bypass_cache`` asks the operating system to forget what
        it cached of it: a request, and none to a target."""

    @abstractmethod
    async def delete(self, infos: Sequence[CheckpointInfo]) -> None:
        """Remove checkpoints and give their space back."""

    @abstractmethod
    async def close(self) -> None: ...


class Draft(ABC):
    """A checkpoint being written. ``regions`` and ``offsets`` place each item of the plan.

    Writes may be in flight in any number. Nothing counts until :meth:`commit` returns. Exactly one of ``commit`` and
    ``abandon`` ends a draft, and only when every write has returned or raised.
    """

    alignment: int
    regions: Sequence[int]
    offsets: Sequence[int]

    @abstractmethod
    async def write(self, region: int, pieces: Sequence[Piece]) -> None:
        """Write pieces that follow one another but for padding up to ``alignment``. The memory must stay as it is."""

    @abstractmethod
    async def commit(self, parts: Mapping[str, memoryview], root_digest: bytes) -> CheckpointInfo:
        """Put everything on media and make the checkpoint visible, atomically. All or an exception; never retried."""

    @abstractmethod
    async def abandon(self, error: BaseException) -> None:
        """The save failed with ``error``: give back what can safely be given back. Raises nothing."""


class Stored(ABC):
    """A committed checkpoint opened for reading."""

    alignment: int
    info: CheckpointInfo

    capacity: int
    """Bytes of the place that the items lie in: a checkpoint cannot be larger."""

    @abstractmethod
    async def read_part(self, name: str) -> bytearray:
        """One piece of metadata, not yet verified."""

    @abstractmethod
    async def read(self, region: int, pieces: Sequence[Piece]) -> None:
        """Fill pieces that follow one another but for padding. Raises OSError or StatusError."""

    @abstractmethod
    def where(self, region: int, offset: int, length: int) -> str:
        """Where on media these bytes of a region lie, for people."""

    @abstractmethod
    def where_part(self, name: str) -> str:
        """Where on media a piece of metadata lies, for people."""

    async def check_layout(self, manifest: RankManifest, table: ChunkTable) -> Sequence[Damage]:
        """Damage to bytes that no chunk hash covers (shard headers). Used by verify."""
        return ()

    @abstractmethod
    async def close(self) -> None: ...


def is_media_error(error: StatusError | OSError) -> bool:
    """Whether a failed read says that these blocks are bad, and not that nothing can be read at the moment."""
    if isinstance(error, StatusError):
        return error.status_code_type == MEDIA_ERROR
    return error.errno == errno.EIO
