"""A pool on virtual members, used through a driver that tells the oracle what is asked of it and what came back."""

from __future__ import annotations

import asyncio
import os
import random as random_module
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, TypeVar

from nvmeof.engine import log as log_module
from nvmeof.engine.executor import Executor, InlineExecutor
from nvmeof.engine.layout import AREA_BYTES, NONE32, MemberState, decode_label
from nvmeof.engine.pool import Pool
from nvmeof.engine.volume import Volume
from nvmeof.errors import ReadFault, UsageError
from nvmeof.keys.sources import Kdf, KeySource
from nvmeof.testing.pool_disk import MemberDisk, Power, Tape
from nvmeof.testing.pool_oracle import UNCORRECTABLE, ZERO, Operation, Oracle, OracleError, Sight, Truth, described
from nvmeof.testing.volume_conformance import read_volume, write_volume

T = TypeVar("T")

KIB = 1024
REBUILD_SECONDS = 20.0
STALL_SECONDS = 0.02
"""Longer than the engine lets a write take on the loop."""
ABANDON_SECONDS = 5.0
"""For closing a pool whose test has failed already."""


class FixedKey(KeySource):
    """A key-encryption key made of a number: no file, and the same one each time."""

    def __init__(self, number: int) -> None:
        self._number = number

    @property
    def kind(self) -> str:
        """As :attr:`KeySource.kind`."""
        return f"key number {self._number}"

    def kek(self, kdf: Kdf) -> bytes:
        """As :meth:`KeySource.kek`."""
        if kdf.get("name") != "none":
            raise UsageError("wrong key")
        return bytes((self._number,)) * 32

    def new_kdf(self) -> dict[str, object]:
        """As :meth:`KeySource.new_kdf`."""
        return {"name": "none"}


class SeededExecutor(InlineExecutor):
    """Work is done here and now, but a few turns of the loop later, and its caller hears of it a few turns after that.

    So the pool's tasks meet in ways that the seed decides.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """As :meth:`Executor.run`."""
        for _ in range(self._random.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)
        try:
            return work(*arguments)
        finally:
            for _ in range(self._random.choice((0, 0, 1, 5))):
                await asyncio.sleep(0)


@dataclass(frozen=True)
class Shape:
    """Of a pool, small enough that opening it takes milliseconds."""

    raid: str = "raid6"
    members: int = 4
    segment_bytes: int = 136 * KIB
    segments: int = 14
    encrypted: bool = False

    @property
    def parity(self) -> int:
        """Members that may be lost."""
        return {"none": 0, "raid5": 1, "raid6": 2}[self.raid]

    @property
    def member_bytes(self) -> int:
        """Bytes of each member."""
        return 2 * AREA_BYTES + self.segments * self.segment_bytes

    def disks(self, power: Power | None = None, *, seed: int = 0) -> list[MemberDisk]:
        """New members."""
        return [MemberDisk(self.member_bytes, seed=seed * 100 + i, power=power) for i in range(self.members)]


class Scene(NamedTuple):
    """What the judge of a crash needs to know: what may be there, on which disks of the tape, opened by which keys."""

    oracle: Oracle
    disks: tuple[int, ...]
    keys: tuple[KeySource | None, ...]
    incarnation: bytes


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Let the seed decide what the machine would: UUIDs, keys, incarnations, and which stripes seem to take long."""
    random, clock = Random(seed), Random(seed)
    elapsed = 0.0

    def perf_counter() -> float:
        nonlocal elapsed
        elapsed += clock.choice((0.0, 0.0, 0.0, STALL_SECONDS))
        return elapsed

    replaced: list[tuple[dict[str, Any], str, object]] = [
        (vars(os), "urandom", random.randbytes),
        (vars(random_module), "_urandom", random.randbytes),
        (vars(log_module), "perf_counter", perf_counter),
    ]
    real = [names[name] for names, name, _ in replaced]
    for names, name, value in replaced:
        names[name] = value
    try:
        yield
    finally:
        for (names, name, _), value in zip(replaced, real, strict=True):
            names[name] = value


@dataclass
class Driver:
    """Asks things of ``pool``. ``disks`` are the members and spares there are now, the unused included."""

    shape: Shape
    random: Random
    disks: list[MemberDisk]
    keys: list[KeySource | None] = field(default_factory=lambda: [None])
    oracle: Oracle = field(default_factory=Oracle)
    tape: Tape | None = None
    power: Power | None = None
    shuffle: Random | None = None
    """When given, the order in which the pool's tasks meet is its choice."""
    _pool: Pool | None = None
    _scene: Scene | None = None

    @property
    def pool(self) -> Pool:
        """The open pool."""
        if self._pool is None:
            raise RuntimeError("the pool is not open")
        return self._pool

    def scene(self) -> Scene:
        """For the tape."""
        old = self._scene
        disks = tuple(disk.number for disk in self.disks)
        keys = tuple(self.keys)
        incarnation = self._pool.incarnation if self._pool is not None else b""
        if old and (old.oracle.changes, *old[1:]) == (self.oracle.changes, disks, keys, incarnation):
            return old
        same = old is not None and old.oracle.changes == self.oracle.changes
        oracle = old.oracle if old is not None and same else self.oracle.clone()
        self._scene = Scene(oracle, disks, keys, incarnation)
        return self._scene

    def record(self) -> Tape:
        """Put all disks on a new tape."""
        self.tape = Tape(self.scene)
        for disk in self.disks:
            self.tape.add(disk)
        return self.tape

    def new_disk(self, seed: int = 99) -> MemberDisk:
        """A blank disk of the members' size, among those there are from now on."""
        disk = MemberDisk(self.shape.member_bytes, seed=seed, power=self.power)
        if self.tape is not None:
            self.tape.add(disk)
        self.disks.append(disk)
        return disk

    # -- the pool

    async def create(self) -> None:
        """Format the disks and open the pool."""
        await Pool.create(self.disks, raid=self.shape.raid, keys=self.keys[-1], segment_bytes=self.shape.segment_bytes)
        await self.open()

    async def open(self) -> None:
        """Open the pool on the disks there are. Raises UsageError."""
        executor = InlineExecutor() if self.shuffle is None else SeededExecutor(self.shuffle.randrange(1 << 30))
        self._pool = await open_members(self.disks, self.keys, executor)

    async def close(self) -> None:
        """A clean close: everything is on media. Raises WriteFault."""
        tick = self.oracle.now()
        pool, self._pool = self.pool, None
        await pool.close()
        self.oracle.flushed(tick)

    async def abandon(self) -> None:
        """Let go of the pool, whatever state it is in."""
        pool, self._pool = self._pool, None
        if pool is not None:
            with suppress(Exception):
                await asyncio.wait_for(pool.close(), ABANDON_SECONDS)

    async def reopen(self) -> None:
        """Close and open; nothing may change, the incarnation neither."""
        incarnation = self.pool.incarnation
        await self.close()
        await self.open()
        if self.pool.incarnation != incarnation:
            raise AssertionError("a clean close and opening changed the incarnation")
        await self.look("after closing and opening")

    async def look(self, hint: str = "with the power on") -> None:
        """Read everything and compare."""
        await self.oracle.look_live(self.pool, hint)

    async def recovered(self, hint: str, incarnation: bytes) -> list[Sight]:
        """After a crash and an opening: judge what is there, and take it for the truth."""
        sights = await self.oracle.look(self.pool, hint)
        if incarnation and self.oracle.lost(sights) and self.pool.incarnation == incarnation:
            raise AssertionError(f"acknowledged writes were lost and the incarnation is the same; {hint}")
        self.oracle.adopt(sights)
        return sights

    async def flush_pool(self) -> None:
        """Flush of everything."""
        tick = self.oracle.now()
        await self.pool.flush()
        self.oracle.flushed(tick)

    async def commit(self) -> None:
        """Commit of the map."""
        tick = self.oracle.now()
        await self.pool.commit()
        self.oracle.flushed(tick)

    async def scrub(self, hint: str) -> None:
        """A whole scrub, which must not find anything that cannot be healed; one that runs comes to its end first."""
        async with asyncio.timeout(REBUILD_SECONDS):
            whole = False
            while not whole:
                whole = self.pool.scrub_state[0] == NONE32
                try:
                    report = await self.pool.scrub()
                except UsageError:  # a scrub or a rebuild is running
                    await asyncio.sleep(0)
                    whole = False
                    continue
                whole = whole and report.finished
                if report.lost:
                    raise AssertionError(f"{report.lost} stripes are lost, at {report.lost_places}; {hint}")

    async def replace(self, role: int) -> None:
        """Give a role a new disk; the rebuild goes on by itself."""
        disk = self.new_disk(seed=self.random.randrange(1 << 30))
        await self.pool.replace(role, disk)
        self.disks.remove(disk)
        self.disks[role] = disk

    async def rebuilt(self) -> None:
        """No member is being rebuilt and no spare is waiting, by the rebuild that runs or by one of our own."""
        async with asyncio.timeout(REBUILD_SECONDS):
            while True:
                states = {member.state for member in self.pool.members}
                waits = MemberState.OUT in states and self.pool.spares
                if MemberState.REBUILDING not in states and not waits:
                    return
                try:
                    await self.pool.rebuild()
                except UsageError:  # one is running
                    pass
                await asyncio.sleep(0)

    async def rotate_key(self, new: KeySource) -> None:
        """Wrap the keys anew; until that returned the old or the new key source may open the pool."""
        self.keys.append(new)
        await self.pool.rotate_key(new)
        del self.keys[:-1]

    # -- namespaces

    async def add(self, blocks: int, *, nsid: int = 1, block_size: int = 4096, **settings: Any) -> int:
        """A namespace of that many blocks; its NSID."""
        truth = self.oracle.creating(nsid, blocks * block_size, block_size)
        await self.pool.create_namespace(
            blocks * block_size, nsid=nsid, block_size=block_size, uuid=truth.uuid, **settings
        )
        self.oracle.created(truth)
        return nsid

    async def delete(self, nsid: int = 1) -> None:
        """Delete a namespace."""
        truth = self.oracle.at(nsid)
        self.oracle.deleting(truth)
        await self.pool.delete_namespace(nsid)
        self.oracle.deleted(truth)

    async def resize(self, blocks: int, nsid: int = 1) -> None:
        """Give a namespace another number of blocks."""
        truth = self.oracle.at(nsid)
        size = blocks * truth.block_size
        operation = self.oracle.resizing(truth, size)
        try:
            await self.pool.resize_namespace(nsid, size)
        except BaseException:
            self.oracle.not_resized(truth, operation)
            raise
        self.oracle.resized(truth, operation)

    def volume(self, nsid: int = 1) -> Volume:
        """The volume with that NSID."""
        return self.pool.namespaces[nsid]

    # -- blocks

    async def write(self, first: int, count: int = 1, nsid: int = 1) -> None:
        """Write blocks with a new version of themselves."""
        truth = self.oracle.at(nsid)
        volume = self.volume(nsid)
        operation = self.oracle.begin(truth, first, count)
        data = self.oracle.data(operation)
        with self._ends(operation, volume):
            await write_volume(volume, first * truth.block_size, data)

    async def read(self, first: int, count: int = 1, nsid: int = 1) -> None:
        """Read blocks while others may write: each is what it was when this began, or something written since."""
        truth = self.oracle.at(nsid)
        before = [truth.visible(block) for block in range(first, first + count)]
        try:
            data = await read_volume(self.volume(nsid), first * truth.block_size, count * truth.block_size)
        except ReadFault:
            if self.power is not None and not self.power.on:
                raise
            if count > 1:
                for block in range(first, first + count):
                    await self.read(block, 1, nsid)
                return
            data = b""
        for index in range(count):
            block = first + index
            found = data[index * truth.block_size :][: truth.block_size] or None
            allowed = before[index] | {candidate.value for candidate in truth.candidates(block)}
            if all(truth.expected(block, value) != found for value in allowed):
                what = described(found) if found else "a read fault"
                raise OracleError(f"a read of block {block} of {nsid} gave {what}, allowed are {allowed}")

    async def zeroes(self, first: int, count: int = 1, nsid: int = 1, *, deallocate: bool = False) -> None:
        """Write Zeroes."""
        truth = self.oracle.at(nsid)
        volume = self.volume(nsid)
        with self._ends(self.oracle.begin(truth, first, count, ZERO), volume):
            size = truth.block_size
            await volume.write_zeroes(first * size, count * size, deallocate=deallocate)

    async def trim(self, ranges: Sequence[tuple[int, int]], nsid: int = 1) -> None:
        """Deallocate ranges of blocks."""
        truth = self.oracle.at(nsid)
        volume = self.volume(nsid)
        size = truth.block_size
        with self._ends(self.oracle.begin_all(truth, ranges, ZERO), volume):
            await volume.deallocate([(first * size, count * size) for first, count in ranges])

    async def mark(self, first: int, count: int = 1, nsid: int = 1) -> None:
        """Write Uncorrectable."""
        truth = self.oracle.at(nsid)
        volume = self.volume(nsid)
        size = truth.block_size
        with self._ends(self.oracle.begin(truth, first, count, UNCORRECTABLE), volume):
            await volume.write_uncorrectable(first * size, count * size)

    async def flush(self, nsid: int = 1) -> None:
        """Flush one namespace."""
        truth = self.oracle.at(nsid)
        tick = self.oracle.now()
        await self.volume(nsid).flush()
        self.oracle.flushed(tick, truth)

    async def fua(self, first: int, count: int = 1, nsid: int = 1) -> None:
        """A write and the flush that makes it durable, as the target does it."""
        await self.write(first, count, nsid)
        await self.flush(nsid)

    @contextmanager
    def _ends(self, operation: Operation, volume: Volume) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.oracle.end(operation, good=False)
            raise
        self.oracle.end(operation, durable=not volume.write_cache)

    def truth(self, nsid: int = 1) -> Truth:
        """What the oracle knows of a namespace."""
        return self.oracle.at(nsid)


def has_label(disk: MemberDisk) -> bool:
    """Whether either end has a label; a disk without is no member yet, and nobody gives it to ``Pool.open``."""
    image = disk.image()
    pages = (image[:4096], image[len(image) - AREA_BYTES :][:4096])
    return any(decode_label(page) is not None for page in pages)


async def open_members(
    disks: Sequence[MemberDisk], keys: Sequence[KeySource | None], executor: Executor | None = None
) -> Pool:
    """Open the pool on those of ``disks`` that have a label, by the newest of ``keys`` that is right."""
    members = [disk for disk in disks if has_label(disk)]
    executor = executor or InlineExecutor()
    for key in reversed(keys[1:]):
        try:
            return await Pool.open([disk.reopen() for disk in members], keys=key, executor=executor)
        except UsageError:
            continue
    return await Pool.open([disk.reopen() for disk in members], keys=keys[0], executor=executor)
