"""Crash a workload at every operation of its members, open what is left, judge it, go on, and crash again.

The workload runs once, on a tape; each crash point is made from the tape. A point and a mode (what the unsynced writes
meet) with the seed make the same members each time, so ``repeat`` shows a failure again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from random import Random

from nvmeof.engine.layout import AREA_BYTES
from nvmeof.errors import CapacityError
from nvmeof.testing.pool_disk import MemberDisk, Replay, Tape
from nvmeof.testing.pool_driver import Driver, FixedKey, Scene, Shape, repeatable
from nvmeof.testing.pool_oracle import Sight
from nvmeof.testing.pool_workloads import Workload
from nvmeof.testing.virtual_disk import Damage

SECONDS_MAX = 60.0
"""For opening, judging and going on once. It takes tens of milliseconds; more is a hang."""


class Mode(Enum):
    """What becomes of the writes that were not synced when the power failed.

    BEHIND: some members have all of them, others none. NEWEST: those before a moment are lost, those after it landed.
    """

    HONEST = "honest"
    LANDED = "landed"
    LOST = "lost"
    BEHIND = "behind"
    NEWEST = "newest"
    GARBLE = "garble"
    MISDIRECT = "misdirect"


OTHER_MODES = tuple(mode for mode in Mode if mode is not Mode.HONEST)
_GARBLE = Damage.HONEST | Damage.GARBLE
_MISDIRECT = Damage.HONEST | Damage.MISDIRECT


def damages(mode: Mode, count: int, liars: int, random: Random) -> list[Damage | None]:
    """For each of ``count`` members what its unsynced writes meet; ``liars`` may do more than lose and tear."""
    if mode is Mode.LANDED:
        return [Damage.NONE] * count
    if mode is Mode.LOST:
        return [None] * count
    if mode is Mode.BEHIND:
        return [random.choice((Damage.NONE, None)) for _ in range(count)]
    plan: list[Damage | None] = [Damage.HONEST] * count
    if mode in (Mode.GARBLE, Mode.MISDIRECT):
        for member in random.sample(range(count), min(liars, count)):
            plan[member] = _GARBLE if mode is Mode.GARBLE else _MISDIRECT
    return plan


@dataclass
class Tally:
    """What was tried."""

    operations: int = 0
    points: int = 0
    images: int = 0

    def __iadd__(self, other: Tally) -> Tally:
        self.operations += other.operations
        self.points += other.points
        self.images += other.images
        return self


def new_driver(shape: Shape, seed: int) -> Driver:
    """Blank disks of a pool."""
    keys = [FixedKey(1) if shape.encrypted else None]
    shuffle = Random(seed) if seed % 2 else None
    return Driver(shape, Random(seed), shape.disks(seed=seed), keys=list(keys), shuffle=shuffle)


async def recorded(workload: Workload, seed: int) -> Driver:
    """Run the workload, and close the pool, on a tape."""
    driver = new_driver(workload.shape, seed)
    with repeatable(seed):
        await driver.create()
        tape = driver.record()
        await workload.prepare(driver)
        tape.restart()
        await asyncio.wait_for(workload.run(driver), SECONDS_MAX)
        await driver.look(f"workload {workload.name}, seed {seed}, at its end")
        await driver.close()
    return driver


def tape_of(driver: Driver) -> Tape:
    """Its tape."""
    if driver.tape is None:
        raise RuntimeError("nothing was recorded")
    return driver.tape


def scene_of(replay: Replay) -> Scene:
    """The scene at its point."""
    if not isinstance(replay.scene, Scene):
        raise TypeError("no scene on the tape")
    return replay.scene


async def go_on(driver: Driver) -> None:
    """A few more writes and flushes on whatever namespaces there are."""
    random = driver.random
    for truth in driver.oracle.living():
        for _ in range(2):
            first = random.randrange(truth.count)
            count = min(random.randrange(1, 7), truth.count - first)
            try:
                await driver.write(first, count, truth.nsid)
            except CapacityError:
                await driver.trim([(first, count)], truth.nsid)
        await driver.flush(truth.nsid)
        await driver.zeroes(random.randrange(truth.count), 1, truth.nsid)


async def recover(
    members: Sequence[MemberDisk], scene: Scene, shape: Shape, seed: int, hint: str
) -> tuple[Driver, list[Sight]]:
    """Open, judge, go on, judge, close; all on a new tape."""
    keys = list(scene.keys)
    driver = Driver(shape, Random(seed), list(members), keys=keys, oracle=scene.oracle.clone())
    driver.record()
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await driver.open()
            sights = await driver.recovered(hint, scene.incarnation)
            await go_on(driver)
            await driver.look(f"going on after {hint}")
            await driver.close()
            if seed % 4 == 0:
                await driver.open()
                await driver.scrub(f"going on after {hint}")
                await driver.look(f"after a scrub, {hint}")
                await driver.close()
    except Exception as error:
        await driver.abandon()
        if isinstance(error, AssertionError):
            raise
        raise AssertionError(f"{type(error).__name__}: {error}; {hint}") from error
    return driver, sights


async def crash_at(workload: Workload, replay: Replay, mode: Mode, seed: int, *, again: int) -> int:
    """Crash at the replay's point, and ``again`` times while going on; how many images were tried."""
    scene = scene_of(replay)
    random = Random(f"{seed} {replay.point} {mode.value}")
    liars = max(0, workload.shape.parity - workload.out)
    hint = f"workload {workload.name}, seed {seed}, point {replay.point} of {replay.length}, mode {mode.value}"
    plan = damages(mode, len(scene.disks), liars, random)
    since = random.randrange(replay.oldest_unsynced(), replay.point + 1) if mode is Mode.NEWEST else None
    members = replay.crashed(scene.disks, plan, random.randrange(1 << 30), since=since)
    with repeatable(random.randrange(1 << 30)):
        driver, _ = await recover(members, scene, workload.shape, seed, hint)
        second = Replay(tape_of(driver))
        for point in sorted(random.sample(range(second.length), min(again, second.length))):
            second.to(point)
            scene = scene_of(second)
            mode = random.choice((Mode.HONEST, Mode.BEHIND, Mode.LOST, Mode.NEWEST))
            plan = damages(mode, len(scene.disks), 0, random)
            since = random.randrange(second.oldest_unsynced(), point + 1) if mode is Mode.NEWEST else None
            members = second.crashed(scene.disks, plan, random.randrange(1 << 30), since=since)
            await recover(members, scene, workload.shape, seed, f"{hint}; then point {point}, mode {mode.value}")
    return 1 + again


async def enumerate_crashes(workload: Workload, seed: int, *, sample: int | None = None) -> Tally:
    """Every point, or ``sample`` of them: honestly, and in another mode by turns; some crash again while going on."""
    driver = await recorded(workload, seed)
    replay = Replay(tape_of(driver))
    tally = Tally(operations=replay.length - 1)
    points = list(range(replay.length))
    if sample is not None:
        points = sorted(Random(seed).sample(points, min(sample, len(points))))
    for point in points:
        replay.to(point)
        other = OTHER_MODES[(point + seed) % len(OTHER_MODES)]
        for mode in (Mode.HONEST, other):
            again = 2 if (point + seed + (mode is other)) % 3 == 0 else 0
            tally.images += await crash_at(workload, replay, mode, seed, again=again)
        tally.points += 1
    return tally


async def repeat(workload: Workload, seed: int, point: int, mode: Mode) -> None:
    """One crash point once more."""
    replay = Replay(tape_of(await recorded(workload, seed)))
    replay.to(point)
    await crash_at(workload, replay, mode, seed, again=2)


# -- members lost, corrupted, lying


class Loss(Enum):
    """What has become of a member."""

    GONE = "gone"
    ROTTEN = "rotten"
    ZEROS = "zeros"
    GARBAGE = "garbage"
    OLD = "old"


def lose(
    members: Sequence[MemberDisk], which: Collection[int], how: Loss, old: Sequence[bytes], random: Random
) -> list[MemberDisk]:
    """``members`` without some, or with something else on them; OLD is what they held when the tape began."""
    kept = list(members)
    for index in which:
        disk = kept[index]
        image = bytearray(disk.image())
        body = len(image) - 2 * AREA_BYTES
        if how is Loss.ROTTEN:
            image[AREA_BYTES : AREA_BYTES + body] = random.randbytes(body)
        elif how is Loss.ZEROS:
            image[AREA_BYTES : AREA_BYTES + body] = bytes(body)
        elif how is Loss.GARBAGE:
            image[:] = random.randbytes(len(image))
        elif how is Loss.OLD:
            image[:] = old[index]
        disk.become(image)
    return [disk for index, disk in enumerate(kept) if how is not Loss.GONE or index not in which]


async def lose_members(
    workload: Workload, replay: Replay, seed: int, losses: Sequence[Loss], *, sample: int | None = None
) -> int:
    """At the replay's point, crash, and lose as many members as may be lost, in every combination or some."""
    scene = scene_of(replay)
    old = [replay.tape.bases[number].media for number in scene.disks]
    tried = 0
    numbers = range(len(scene.disks))
    sets = list(combinations(numbers, max(0, workload.shape.parity - workload.out)))
    for how in losses:
        for which in sets if sample is None else Random(seed).sample(sets, sample):
            random = Random(f"{seed} {replay.point} {how.value} {which}")
            plan = damages(Mode.HONEST, len(numbers), 0, random)
            members = replay.crashed(scene.disks, plan, random.randrange(1 << 30))
            left = lose(members, which, how, old, random)
            hint = (
                f"workload {workload.name}, seed {seed}, point {replay.point} of {replay.length}, {how.value} {which}"
            )
            with repeatable(random.randrange(1 << 30)):
                await recover(left, scene, workload.shape, seed, hint)
            tried += 1
    return tried
