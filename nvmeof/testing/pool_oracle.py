"""What each block of a pool may hold: the judge of the engine's crash and fault tests.

A block is known by namespace, number and version: its content says all three and is filled from them, so that a torn
block, another block's data or an older version is told from what belongs there.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from copy import copy
from functools import lru_cache
from random import Random
from typing import NamedTuple, Protocol
from uuid import UUID

from nvmeof.engine.volume import Volume
from nvmeof.errors import ReadFault
from nvmeof.testing.volume_conformance import read_volume

ZERO = 0
UNCORRECTABLE = -1
NEVER = 1 << 62
READ_BYTES = 128 << 10

_HEADER = struct.Struct("<8sIIQQ")
_MAGIC = b"POOLTEST"


class OracleError(AssertionError):
    """The pool holds what it must not hold."""


class HasNamespaces(Protocol):
    """What the oracle looks at."""

    @property
    def namespaces(self) -> Mapping[int, Volume]:
        """By NSID."""
        ...


@lru_cache(1 << 14)
def content(serial: int, block: int, version: int, size: int) -> bytes:
    """Block ``block`` of namespace ``serial`` as version ``version`` wrote it: five kinds, random to nearly empty."""
    kind = version % 5
    header = _HEADER.pack(_MAGIC, serial, kind, block, version)
    random = Random(serial << 80 | block << 40 | version)
    rest = size - len(header)
    if kind == 0:
        return header + random.randbytes(rest)
    if kind == 1:
        return (header * (size // len(header) + 1))[:size]
    if kind == 2:
        return header + random.randbytes(rest // 2) + bytes(rest - rest // 2 - len(header)) + header
    if kind == 3:
        noise = random.randbytes(rest // 2)
        return header + b"".join(bytes((byte, 0x3F)) for byte in noise) + bytes(rest % 2)
    return header + bytes(rest - len(header)) + header


def described(data: bytes) -> str:
    """What a block seems to be, for a failure's message."""
    if not any(data):
        return "zeros"
    if not data.startswith(_MAGIC):
        return f"garbage {data[:16].hex()}..."
    _, serial, _, block, version = _HEADER.unpack_from(data)
    return (
        f"{'' if is_a_block(data) else 'a mixture that begins with '}namespace {serial} block {block} version {version}"
    )


def is_a_block(data: bytes) -> bool:
    """Whether it is whole: zeros, or what somebody wrote as one block once."""
    if not any(data):
        return True
    _, serial, _, block, version = _HEADER.unpack_from(data)
    return data.startswith(_MAGIC) and version < NEVER and data == content(serial, block, version, len(data))


class Candidate(NamedTuple):
    """A value a block may have: ZERO, UNCORRECTABLE or a version. ``ended`` is 0 while its write is in flight."""

    value: int
    begun: int
    ended: int
    good: bool

    def before(self, other: Candidate) -> bool:
        """Whether it was over when ``other`` began."""
        return 0 < self.ended < other.begun


_UNTOUCHED = (Candidate(ZERO, 0, 1, True),)


class Operation(NamedTuple):
    """A change to blocks that has begun."""

    serial: int
    blocks: tuple[int, ...]
    begun: int
    version: int


class Truth:
    """One namespace, from its creation to its end; a number used again is another one."""

    def __init__(self, serial: int, nsid: int, size: int, block_size: int) -> None:
        self.serial = serial
        self.nsid = nsid
        self.block_size = block_size
        self.sizes: tuple[int, ...] = (size,)
        self.surely_there = False
        self.surely_gone = False
        self.may_be_gone = True
        self.blocks: dict[int, tuple[Candidate, ...]] = {}

    @property
    def uuid(self) -> UUID:
        """What it is recognized by."""
        return UUID(int=0x4E564D65_4F46_4000_8000_000000000000 | self.serial)

    @property
    def size(self) -> int:
        """Bytes, after the last resize that began."""
        return self.sizes[-1]

    @property
    def count(self) -> int:
        """Blocks."""
        return self.size // self.block_size

    def clone(self) -> Truth:
        """A copy that later changes do not reach."""
        other = copy(self)
        other.blocks = dict(self.blocks)
        return other

    def candidates(self, block: int) -> tuple[Candidate, ...]:
        """What block may hold after a crash now."""
        return self.blocks.get(block, _UNTOUCHED)

    def visible(self, block: int) -> set[int]:
        """What a read may return while power is on: everything no later good write stands behind of."""
        candidates = self.candidates(block)
        return {c.value for c in candidates if not any(c.before(other) and other.good for other in candidates)}

    def prune(self, block: int, tick: int) -> None:
        """All that ended by ``tick`` is on media: what went before it is not possible any more."""
        candidates = self.candidates(block)
        floors = [c for c in candidates if c.good and 0 < c.ended <= tick]
        kept = tuple(c for c in candidates if not any(c.before(floor) for floor in floors))
        self.blocks[block] = kept

    def name(self, block: int, data: bytes | None) -> int | None:
        """The candidate value that ``data`` is (None: a read fault), or None."""
        for candidate in reversed(self.candidates(block)):
            if data == self.expected(block, candidate.value):
                return candidate.value
        return None

    def expected(self, block: int, value: int) -> bytes | None:
        """The bytes of a value; None for UNCORRECTABLE."""
        if value == UNCORRECTABLE:
            return None
        return content(self.serial, block, value, self.block_size) if value else bytes(self.block_size)


class Sight(NamedTuple):
    """A namespace as it was read: the value of each block."""

    serial: int
    size: int
    values: list[int]
    faults: list[int]


class Oracle:
    """All namespaces of a pool. ``changes`` counts, so that an unchanged oracle need not be cloned again."""

    def __init__(self) -> None:
        self.truths: dict[int, Truth] = {}
        self.changes = 1
        self._serial = 0

    def clone(self) -> Oracle:
        """A copy that later changes do not reach."""
        other = copy(self)
        other.truths = {serial: truth.clone() for serial, truth in self.truths.items()}
        return other

    def now(self) -> int:
        """The time, for :meth:`flushed`: everything that ended so far."""
        return self.changes

    def at(self, nsid: int) -> Truth:
        """The namespace that has this number now."""
        return next(truth for truth in self.living() if truth.nsid == nsid)

    def living(self) -> list[Truth]:
        """Those that were not deleted, in order of creation."""
        return [truth for truth in self.truths.values() if not truth.may_be_gone]

    def _tick(self) -> int:
        self.changes += 1
        return self.changes

    # -- namespaces

    def creating(self, nsid: int, size: int, block_size: int) -> Truth:
        """A namespace is about to be asked for."""
        self._tick()
        self._serial += 1
        truth = self.truths[self._serial] = Truth(self._serial, nsid, size, block_size)
        return truth

    def created(self, truth: Truth) -> None:
        """It is there, for good."""
        self._tick()
        truth.surely_there, truth.may_be_gone = True, False

    def deleting(self, truth: Truth) -> None:
        """It is about to go."""
        self._tick()
        truth.surely_there, truth.may_be_gone = False, True

    def deleted(self, truth: Truth) -> None:
        """It is gone, for good."""
        self._tick()
        truth.surely_gone = True

    def resizing(self, truth: Truth, size: int) -> Operation:
        """The size is about to change; what a smaller one cuts off may read as zeros from now on."""
        beyond = [block for block in truth.blocks if block >= size // truth.block_size]
        truth.sizes += (size,)
        return self._begin(truth, beyond, ZERO)

    def resized(self, truth: Truth, operation: Operation) -> None:
        """The size has changed, for good."""
        truth.sizes = truth.sizes[-1:]
        self.end(operation, durable=True)

    def not_resized(self, truth: Truth, operation: Operation) -> None:
        """The resize failed; either size may be found later, the former now."""
        self.end(operation, good=False)
        truth.sizes = (*truth.sizes[1:], truth.sizes[0])

    # -- blocks

    def begin(self, truth: Truth, first: int, count: int, value: int | None = None) -> Operation:
        """A write of ``count`` blocks (or their change to ZERO or UNCORRECTABLE) is about to be asked for."""
        return self._begin(truth, range(first, first + count), value)

    def begin_all(self, truth: Truth, ranges: Iterable[tuple[int, int]], value: int) -> Operation:
        """Ranges of blocks are about to become ``value``."""
        return self._begin(truth, [at for first, count in ranges for at in range(first, first + count)], value)

    def _begin(self, truth: Truth, blocks: Iterable[int], value: int | None) -> Operation:
        begun = self._tick()
        operation = Operation(truth.serial, tuple(blocks), begun, begun if value is None else value)
        for block in operation.blocks:
            truth.blocks[block] = (*truth.candidates(block), Candidate(operation.version, begun, 0, False))
        return operation

    def data(self, operation: Operation) -> bytes:
        """What a write has to write."""
        size = self.truths[operation.serial].block_size
        return b"".join(content(operation.serial, block, operation.version, size) for block in operation.blocks)

    def end(self, operation: Operation, *, good: bool = True, durable: bool = False) -> None:
        """It returned (``good``) or failed; ``durable`` when that means it is on media."""
        tick = self._tick()
        truth = self.truths[operation.serial]
        for block in operation.blocks:
            truth.blocks[block] = tuple(
                c._replace(ended=tick, good=good) if c.begun == operation.begun else c for c in truth.candidates(block)
            )
            if durable:
                truth.prune(block, tick)

    def flushed(self, tick: int, truth: Truth | None = None) -> None:
        """A flush returned that was called at ``tick``; of one namespace, or of all."""
        self._tick()
        for one in [truth] if truth else list(self.truths.values()):
            for block, candidates in list(one.blocks.items()):
                if len(candidates) > 1:
                    one.prune(block, tick)

    # -- judgement

    async def look(self, pool: HasNamespaces, hint: str) -> list[Sight]:
        """Read everything and compare it with what may be there after a crash. Raises OracleError."""
        return [sight async for sight in self._sights(pool, hint, may_fault=False)]

    async def look_live(self, pool: HasNamespaces, hint: str) -> None:
        """Read everything and compare it with what must be there while power is on. Raises OracleError."""
        async for sight in self._sights(pool, hint, may_fault=False):
            truth = self.truths[sight.serial]
            for block, value in enumerate(sight.values):
                if value not in (visible := truth.visible(block)):
                    raise OracleError(f"{_name(truth, block)} is {value}, must be one of {visible}; {hint}")

    async def look_damaged(self, pool: HasNamespaces, hint: str) -> dict[int, list[int]]:
        """As :meth:`look`, but a read fault is no error: the blocks that have one, by NSID. Raises OracleError."""
        faults: dict[int, list[int]] = {}
        async for sight in self._sights(pool, hint, may_fault=True):
            faults[self.truths[sight.serial].nsid] = sight.faults
        return faults

    async def _sights(self, pool: HasNamespaces, hint: str, *, may_fault: bool) -> AsyncIterator[Sight]:
        volumes = {volume.uuid: (nsid, volume) for nsid, volume in pool.namespaces.items()}
        for truth in list(self.truths.values()):
            nsid, volume = volumes.pop(truth.uuid, (0, None))
            if volume is None:
                if truth.surely_there:
                    raise OracleError(f"namespace {truth.nsid} ({truth.serial}) is not there; {hint}")
                continue
            if truth.surely_gone:
                raise OracleError(f"namespace {truth.nsid} ({truth.serial}) was deleted and is there; {hint}")
            if (nsid, volume.block_size) != (truth.nsid, truth.block_size) or volume.size not in truth.sizes:
                raise OracleError(f"namespace {truth.nsid} has become {nsid}, {volume.size}, {truth.sizes}; {hint}")
            yield await self._sight(truth, volume, hint, may_fault=may_fault)
        if volumes:
            raise OracleError(f"there are namespaces nobody made: {sorted(volumes.values())}; {hint}")

    async def _sight(self, truth: Truth, volume: Volume, hint: str, *, may_fault: bool) -> Sight:
        sight = Sight(truth.serial, volume.size, [], [])
        async for block, data, why in _blocks(volume, truth.block_size):
            value = truth.name(block, data)
            if value is None and data is None and may_fault:
                value = UNCORRECTABLE
            if value is None:
                found = f"cannot be read ({why})" if data is None else f"holds {described(data)}"
                allowed = [candidate.value for candidate in truth.candidates(block)]
                raise OracleError(f"{_name(truth, block)} {found}, allowed are {allowed}; {hint}")
            if data is None:
                sight.faults.append(block)
            sight.values.append(value)
        return sight

    def lost(self, sights: Iterable[Sight]) -> bool:
        """Whether an acknowledged change is not to be seen in ``sights``."""
        for sight in sights:
            truth = self.truths[sight.serial]
            for block, value in enumerate(sight.values):
                if block in truth.blocks and value not in truth.visible(block):
                    return True
        return False

    def adopt(self, sights: Iterable[Sight]) -> None:
        """What was seen after a recovery is the flushed truth from now on; what was not is gone."""
        tick = self._tick()
        seen = {sight.serial: sight for sight in sights}
        for serial, truth in list(self.truths.items()):
            sight = seen.get(serial)
            if sight is None:
                truth.surely_there, truth.may_be_gone, truth.surely_gone = False, True, True
                continue
            truth.surely_there, truth.may_be_gone = True, False
            truth.sizes = (sight.size,)
            truth.blocks = {
                block: (Candidate(value, tick, tick, True),)
                for block, value in enumerate(sight.values)
                if value != ZERO
            }


def _name(truth: Truth, block: int) -> str:
    return f"namespace {truth.nsid} ({truth.serial}) block {block}"


async def _blocks(volume: Volume, block_size: int) -> AsyncIterator[tuple[int, bytes | None, str]]:
    """Every block of a volume: number, data or None, and why there is none."""
    for offset in range(0, volume.size, READ_BYTES):
        length = min(READ_BYTES, volume.size - offset)
        try:
            piece = await read_volume(volume, offset, length)
        except ReadFault:
            for at in range(offset, offset + length, block_size):
                try:
                    yield at // block_size, await read_volume(volume, at, block_size), ""
                except ReadFault as fault:
                    yield at // block_size, None, str(fault)
            continue
        for at in range(0, length, block_size):
            yield (offset + at) // block_size, piece[at : at + block_size], ""
