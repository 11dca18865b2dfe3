"""Power loss at every write and sync of every workload; members lost, rotten and lying then (issue 3, proofs 1 and 2).

A failure names workload, seed, point and mode: tools/simulate repeats it when given these.
"""

from __future__ import annotations

from random import Random

import pytest

from nvmeof.engine.pool import Pool
from nvmeof.errors import UsageError
from nvmeof.testing.pool_crashes import Loss, enumerate_crashes, lose_members, new_driver, recorded, tape_of
from nvmeof.testing.pool_disk import MemberDisk, Replay
from nvmeof.testing.pool_driver import Driver, Shape
from nvmeof.testing.pool_workloads import WORKLOADS
from nvmeof.testing.virtual_disk import Damage

SEEDS = 1 << 20


@pytest.mark.parametrize("name", WORKLOADS)
async def test_crashes_here_and_there(name: str, rng: Random) -> None:
    await enumerate_crashes(WORKLOADS[name], rng.randrange(SEEDS), sample=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
async def test_every_crash(name: str, rng: Random) -> None:
    tally = await enumerate_crashes(WORKLOADS[name], rng.randrange(SEEDS))
    assert tally.points > 10


async def test_members_lost_in_some_final_states(rng: Random) -> None:
    seed = rng.randrange(SEEDS)
    for workload in rng.sample(list(WORKLOADS.values()), 3):
        replay = Replay(tape_of(await recorded(workload, seed)))
        replay.to(replay.length - 1)
        await lose_members(workload, replay, seed, list(Loss), sample=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
async def test_any_members_lost_in_any_way(name: str, rng: Random) -> None:
    """Every pair, in every way, at the end and in three crashes on the way there."""
    seed = rng.randrange(SEEDS)
    replay = Replay(tape_of(await recorded(WORKLOADS[name], seed)))
    for point in [*sorted(rng.sample(range(replay.length), 3)), replay.length - 1]:
        replay.to(point)
        await lose_members(WORKLOADS[name], replay, seed, list(Loss))


@pytest.mark.parametrize("encrypted", [False, True])
async def test_crashes_while_a_pool_is_made(encrypted: bool, rng: Random) -> None:
    """There is a pool afterwards, or there is none and one can be made; a creation that returned is there for sure."""
    shape = Shape(encrypted=encrypted)
    driver = new_driver(shape, 2)
    tape = driver.record()
    await Pool.create(driver.disks, raid=shape.raid, keys=driver.keys[0], segment_bytes=shape.segment_bytes)
    replay = Replay(tape)
    for point in [*sorted(rng.sample(range(replay.length - 1), 8)), replay.length - 1]:
        replay.to(point)
        members = replay.crashed(range(shape.members), [Damage.HONEST] * shape.members, rng.randrange(SEEDS))
        again = Driver(shape, Random(point), members, keys=list(driver.keys))
        try:
            await again.open()
        except UsageError:
            assert point < replay.length - 1
            disks = [disk.reopen() for disk in members]
            await Pool.create(
                disks, raid=shape.raid, keys=driver.keys[0], segment_bytes=shape.segment_bytes, force=True
            )
            await again.open()
        await again.add(8)
        await again.write(0, 8)
        await again.flush()
        await again.close()


async def test_the_same_seed_is_the_same_tape() -> None:
    for name in ("cleaner", "rotate_key", "fua", "rebuild"):
        tapes = [tape_of(await recorded(WORKLOADS[name], 7)) for _ in range(2)]
        first, second = ([(s.disk, s.writes, s.good) for s in tape.steps if not _is_label(s.writes)] for tape in tapes)
        assert first == second


def _is_label(writes: object) -> bool:
    """Labels have the time in them."""
    return isinstance(writes, tuple) and b"NVMEOFLB" in (writes[0].data or b"")[:8]


async def test_the_judge_notices_a_member_that_does_not_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(disk: MemberDisk) -> None:
        disk._check()

    workload = WORKLOADS["flush_each"]
    monkeypatch.setattr(MemberDisk, "sync", sync)
    with pytest.raises(AssertionError, match=r"allowed are|not there|point"):
        await enumerate_crashes(workload, 1)
