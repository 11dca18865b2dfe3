"""The instruments themselves: tape, power supply, oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

import pytest

from nvmeof.engine.volume import Volume
from nvmeof.testing.pool_disk import MemberDisk, Power, Replay, Tape
from nvmeof.testing.pool_oracle import UNCORRECTABLE, ZERO, Oracle, OracleError, content
from nvmeof.testing.virtual_disk import Damage, PowerLost


def test_power_fails_for_all_members_in_the_same_operation() -> None:
    power = Power()
    first, second = MemberDisk(8192, power=power), MemberDisk(8192, power=power)
    power.off_after(2)
    first.write(0, b"a" * 512)
    second.write(0, b"b" * 512)
    with pytest.raises(PowerLost):
        second.sync()
    for disk in (first, second):
        with pytest.raises(PowerLost):
            disk.write(0, b"c")
    power.restore()
    assert first.crash([0]).image()[:512] == b"a" * 512
    assert second.crash([]).image()[:512] == bytes(512)


def random_work(disks: list[MemberDisk], random: Random, count: int) -> None:
    for _ in range(count):
        disk = random.choice(disks)
        choice = random.randrange(6)
        if choice == 0:
            disk.sync()
        elif choice == 1:
            disk.discard(random.randrange(16) * 512, 1024)
        else:
            disk.write(random.randrange(7000), random.randbytes(random.randrange(1, 1000)))


def test_a_replayed_crash_is_the_real_crash(rng: Random) -> None:
    """Both ways to one state: the power goes off, or the tape of a run without that is cut there."""
    seed, damages = rng.randrange(1 << 20), [Damage.HONEST, Damage.ALL]
    tape = Tape(lambda: None)
    disks = [MemberDisk(8192) for _ in range(2)]
    for disk in disks:
        tape.add(disk)
    random_work(disks, Random(seed), 60)
    replay = Replay(tape)
    for point in range(replay.length - 1):
        replay.to(point)
        power = Power()
        power.off_after(point)
        cut = [MemberDisk(8192, power=power) for _ in range(2)]
        with pytest.raises(PowerLost):
            random_work(cut, Random(seed), 60)
        power.restore()
        random = Random(point)
        for disk, damage in zip(cut, damages, strict=True):
            disk.damage = damage
            disk._random = Random(random.randrange(1 << 30))
            disk.crash()
        members = replay.crashed([0, 1], damages, point)
        assert [member.image() for member in members] == [disk.image() for disk in cut]
        assert [member.media() for member in members] == [disk.media() for disk in cut]


@dataclass
class Held:
    """A volume that holds what it is told to."""

    uuid: object
    size: int
    block_size: int
    data: bytearray = field(default_factory=bytearray)

    def read_now(self, offset: int, view: memoryview) -> bool:
        view[:] = self.data[offset : offset + len(view)]
        return True


@dataclass
class Shelf:
    held: Held

    @property
    def namespaces(self) -> Mapping[int, Volume]:
        return {1: self.held}  # type: ignore[dict-item]


def test_contents_differ_in_everything_that_makes_a_block() -> None:
    seen = {content(s, b, v, size) for s in range(1, 4) for b in range(6) for v in range(1, 8) for size in (512, 4096)}
    assert len(seen) == 3 * 6 * 7 * 2
    assert {len(each) for each in seen} == {512, 4096}


async def judged(oracle: Oracle, data: bytes) -> str:
    truth = oracle.at(1)
    shelf = Shelf(Held(truth.uuid, truth.size, truth.block_size, bytearray(data)))
    try:
        await oracle.look(shelf, "hint")
    except OracleError as error:
        return str(error)
    return ""


async def test_what_may_be_there_after_a_crash() -> None:
    oracle = Oracle()
    truth = oracle.creating(1, 2 * 512, 512)
    oracle.created(truth)
    zeros = bytes(512)

    def block(number: int, version: int) -> bytes:
        return content(truth.serial, number, version, 512)

    first = oracle.begin(truth, 0, 2)
    oracle.end(first)
    second = oracle.begin(truth, 0, 1)
    one, two = first.version, second.version
    for held in (zeros, block(0, one), block(0, two)):
        assert not await judged(oracle, held + block(1, one))
    tick = oracle.now()
    oracle.end(second)
    oracle.flushed(tick)
    assert truth.visible(0) == {two}
    assert "zeros" in await judged(oracle, zeros + block(1, one))
    assert "mixture" in await judged(oracle, block(0, one)[:256] + bytes(256) + block(1, one))
    assert "block 1" in await judged(oracle, block(1, one) + block(1, one))
    assert not await judged(oracle, block(0, one) + block(1, one))
    oracle.flushed(oracle.now())
    assert "version" in await judged(oracle, block(0, one) + block(1, one))
    oracle.end(oracle.begin(truth, 0, 1, ZERO), durable=True)
    assert "version" in await judged(oracle, block(0, two) + block(1, one))
    assert not await judged(oracle, zeros + block(1, one))
    sights = await oracle.look(Shelf(Held(truth.uuid, 1024, 512, bytearray(zeros + block(1, one)))), "")
    oracle.adopt(sights)
    assert [candidate.value for candidate in truth.candidates(1)] == [one]
    assert UNCORRECTABLE not in truth.visible(0)


def test_overlapping_writes_have_no_order() -> None:
    oracle = Oracle()
    truth = oracle.creating(1, 4096, 4096)
    oracle.created(truth)
    one, two = oracle.begin(truth, 0, 1), oracle.begin(truth, 0, 1)
    oracle.end(two)
    oracle.end(one)
    oracle.flushed(oracle.now())
    assert truth.visible(0) == {one.version, two.version}
    three = oracle.begin(truth, 0, 1)
    oracle.end(three, good=False)
    assert truth.visible(0) == {one.version, two.version, three.version}
    oracle.end(oracle.begin(truth, 0, 1, ZERO), durable=True)
    assert truth.visible(0) == {ZERO}
