"""A bit flips, in any class of bytes on media: never a wrong byte, always noticed, healed, and said where (proof 3)."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import pytest

from nvmeof.engine.layout import AREA_BYTES, Kind
from nvmeof.testing.pool_disk import MemberDisk
from nvmeof.testing.pool_driver import Driver
from nvmeof.testing.pool_images import Anatomy, RecordPlace, Span, StripeOnMedia

from .images import filled_driver

PER_CLASS_QUICK = 1
PER_CLASS_SLOW = 40
IN_STRIPES = ("strip header", "P", "Q", "data", "map", "segment", "root", "deallocated", "uncorrectable", "padding")
"""Classes of bytes within stripes, by how their names begin. A scrub reads those not in free segments."""


class Subject(NamedTuple):
    """A closed pool to damage copies of."""

    driver: Driver
    images: list[bytes]
    anatomy: Anatomy

    def members(self) -> list[MemberDisk]:
        return [MemberDisk.holding(image, seed=number) for number, image in enumerate(self.images)]

    def fresh(self, members: list[MemberDisk]) -> Driver:
        driver = self.driver
        return Driver(driver.shape, Random(1), members, keys=list(driver.keys), oracle=driver.oracle.clone())


async def subject(*, encrypted: bool) -> Subject:
    driver = await filled_driver(encrypted=encrypted)
    images = [disk.image() for disk in driver.disks]
    return Subject(driver, images, Anatomy(images))


def sampled(span: Span, random: Random) -> tuple[int, int]:
    """An offset in it and a mask of one bit."""
    return span.offset + random.randrange(span.length), 1 << random.randrange(8)


def is_walked(driver: Driver, span: Span) -> bool:
    """Whether it is in a stripe of a segment in use: a scrub must find it."""
    segment = (span.offset - AREA_BYTES) // driver.shape.segment_bytes
    return bool(driver.pool.segments.generation[segment])


async def flip_once(subject: Subject, name: str, span: Span, random: Random, *, again: bool = True) -> None:
    """Flip, open, read, scrub, close; ``again``: open without two members that were not flipped."""
    members = subject.members()
    offset, mask = sampled(span, random)
    hint = f"{name}: bit {mask:#x} of byte {offset} of member {span.member}"
    members[span.member].flip(offset, mask)
    driver = subject.fresh(members)
    await driver.open()
    try:
        await driver.look(hint)
        report = await driver.pool.scrub()
        assert not report.lost, hint
        await driver.look(hint)
        if name.startswith(IN_STRIPES) and is_walked(driver, span):
            assert members[span.member].image()[offset] == subject.images[span.member][offset], f"not healed: {hint}"
            said = [(error.role, error.healed) for error in driver.pool.reader.errors]
            assert (span.member, True) in said, f"nobody says so ({said}): {hint}"
            assert driver.pool.status().members[span.member].errors, f"not in the status: {hint}"
    finally:
        await driver.close()
    if not again:
        return
    others = [number for number in range(len(members)) if number != span.member]
    gone = random.sample(others, driver.shape.parity)
    driver.disks = [disk for number, disk in enumerate(members) if number not in gone]
    await driver.open()
    try:
        await driver.look(f"{hint}, healed; then without {gone}")
    finally:
        await driver.close()


async def flip_all(encrypted: bool, per_class: int, random: Random) -> int:
    it = await subject(encrypted=encrypted)
    flips = 0
    for name, spans in it.anatomy.classes().items():
        for span in random.sample(spans, min(per_class, len(spans))):
            await flip_once(it, name, span, random)
            flips += 1
    return flips


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_flipped_bit_of_each_class(encrypted: bool, rng: Random) -> None:
    assert await flip_all(encrypted, PER_CLASS_QUICK, rng) > 10


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True])
async def test_many_flipped_bits_of_each_class(encrypted: bool, rng: Random) -> None:
    assert await flip_all(encrypted, PER_CLASS_SLOW, rng) > 150


@pytest.mark.slow
async def test_every_byte_of_every_header(rng: Random) -> None:
    """Label, superblock, one strip header, one record header of each kind: byte by byte, while everything is read."""
    it = await subject(encrypted=True)
    for name, spans in it.anatomy.classes().items():
        if name.endswith("header") or name in ("label", "superblock", "key table"):
            span = rng.choice(spans)
            for at in range(span.length):
                await flip_once(it, name, Span(span.member, span.offset + at, 1), rng, again=at % 16 == 0)


def strips_with(it: Subject, name: str) -> list[StripeOnMedia]:
    return [
        stripe
        for stripe in it.anatomy.stripes()
        if any(record.kind == Kind[name] for record in stripe.records(it.images))
    ]


async def test_two_bad_strips_of_each_stripe(rng: Random) -> None:
    """In all stripes at once, another two in each: everything reads right, and a scrub heals everything."""
    it = await subject(encrypted=False)
    members = it.members()
    bad = 0
    for stripe in it.anatomy.stripes():
        for strip in rng.sample(stripe.strips, it.driver.shape.parity):
            members[strip.member].flip(strip.offset + rng.randrange(strip.header.pages * 4096), 1 << rng.randrange(8))
            bad += 1
    driver = it.fresh(members)
    await driver.open()
    await driver.look("two bad strips in each stripe")
    report = await driver.pool.scrub()
    assert not report.lost
    again = await driver.pool.scrub()
    assert not again.bad
    await driver.close()
    assert bad


async def test_beyond_redundancy_exactly_the_damaged_blocks_fail(rng: Random) -> None:
    """Three bad strips in one stripe of data: the blocks whose bytes are hit cannot be read, all others can."""
    it = await subject(encrypted=False)
    newest = max(superblock.sequence for _, superblock in it.anatomy.superblocks(0))
    stripes = [stripe for stripe in strips_with(it, "DATA") if stripe.sequence < newest]
    stripe = rng.choice(stripes)
    members = it.members()
    records = [record for record in stripe.records(it.images) if record.kind == Kind.DATA]
    victim = rng.choice(records)
    span = next(stripe.spans((victim.unit + 1) * 64, 1))
    others = [strip for strip in stripe.strips if strip.member != span.member]
    members[span.member].flip(span.offset)
    hit = {victim.unit}
    for strip in rng.sample(others, it.driver.shape.parity):
        members[strip.member].flip(strip.offset)
    driver = it.fresh(members)
    await driver.open()
    faults = await driver.oracle.look_damaged(driver.pool, "three bad strips")
    dead = {(nsid, block) for nsid, blocks in faults.items() for block in blocks}
    expected = blocks_of(driver, [record for record in records if record.unit in hit])
    marked = {(1, 41), (1, 42)}
    assert dead - marked <= expected - marked
    report = await driver.pool.scrub()
    assert report.lost == 1
    assert report.lost_places
    for nsid, block in dead:
        await driver.write(block, 1, nsid)
    await driver.flush()
    driver.oracle.adopt(await driver.oracle.look(driver.pool, "written again"))
    await driver.close()


def blocks_of(driver: Driver, records: list[RecordPlace]) -> set[tuple[int, int]]:
    """NSIDs and blocks of some records."""
    numbers = {volume.info.identifier: volume for volume in driver.pool.namespaces.values()}
    found = set()
    for record in records:
        volume = numbers[record.namespace]
        each = 4096 // volume.block_size
        for block in range(record.first * each, (record.first + record.blocks) * each):
            found.add((volume.info.nsid, block))
    return found
