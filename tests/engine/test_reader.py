"""Reading: verified always, rebuilt and healed in place where that is possible, and exactly what is lost fails."""

from __future__ import annotations

import errno
from random import Random

import pytest

from nvmeof.engine.layout import UNCORRECTABLE, Kind, MemberState, address_of, entry_of
from nvmeof.engine.pool import Pool
from nvmeof.engine.pool_volume import PoolVolume
from nvmeof.engine.reader import find_header, walk
from nvmeof.engine.segments import StripePlace
from nvmeof.errors import ReadFault
from nvmeof.limits import POOL_MEDIA_ERRORS_KEPT
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .pools import NamedDisk, flip, image, new_disks, new_pool, open_pool, place_of, put, strip_offset

BLOCK = 4096


class Subject:
    """A pool whose first stripe behind the commits holds blocks 0 to 23, one record each."""

    disks: list[NamedDisk]
    pool: Pool
    volume: PoolVolume
    data: bytes
    place: StripePlace

    @classmethod
    async def make(cls, members: int = 4, raid: str = "raid6", blocks: int = 24) -> Subject:
        self = cls()
        self.disks = new_disks(members)
        self.pool = await new_pool(self.disks, raid=raid, codec="none")
        self.volume = self.pool.namespaces[1]
        self.data = Random(7).randbytes(blocks * BLOCK)
        for block in range(blocks):
            await write_volume(self.volume, block * BLOCK, self.block(block))
        await self.volume.flush()
        self.place = place_of(self.pool, self.volume, 0)
        assert self.place == place_of(self.pool, self.volume, blocks - 1), "they are in one stripe"
        return self

    def block(self, number: int) -> bytes:
        return self.data[number * BLOCK : (number + 1) * BLOCK]

    async def read(self, block: int) -> bytes:
        return await read_volume(self.volume, block * BLOCK, BLOCK)

    def disk_of_strip(self, index: int) -> NamedDisk:
        return self.disks[(index + self.place.sequence) % len(self.disks)]

    def role_of_strip(self, index: int) -> int:
        return (index + self.place.sequence) % len(self.disks)

    def strip(self, index: int) -> bytes:
        at = strip_offset(self.pool.geometry, self.place)
        return image(self.disk_of_strip(index), at, self.place.pages * 4096)

    def hit(self, index: int, at: int) -> None:
        """One byte of a strip; below 64 it is the header's."""
        flip(self.disk_of_strip(index), strip_offset(self.pool.geometry, self.place) + at, 0x40)

    def span(self, block: int) -> tuple[int, int, int]:
        """Strip, first byte within it, and bytes in it, of a block's record."""
        address = address_of(self.volume.map.entries[block])
        strip, unit = divmod(address.unit - self.place.first, self.place.units // self.pool.geometry.data)
        units = self.place.units // self.pool.geometry.data
        return strip, 64 + unit * 64, min(address.units, units - unit) * 64

    def within(self, strip: int) -> list[int]:
        """Blocks whose records lie in that strip whole."""
        spans = {block: self.span(block) for block in range(len(self.data) // BLOCK)}
        return [block for block, (index, _, length) in spans.items() if index == strip and length == 65 * 64]


async def test_a_damaged_record_is_rebuilt_healed_and_told() -> None:
    subject = await Subject.make()
    before = [image(disk) for disk in subject.disks]
    for block in range(0, 24, 3):
        strip, at, length = subject.span(block)
        subject.hit(strip, at + length // 2)
        role = subject.role_of_strip(strip)
        errors = subject.pool.members[role].errors
        assert await subject.read(block) == subject.block(block)
        assert subject.pool.members[role].errors == errors + 1
        error = subject.pool.reader.errors[-1]
        assert (error.role, error.segment, error.page) == (role, subject.place.segment, subject.place.page)
        assert error.healed
        assert f"disk-{role}" in error.what
        assert [image(disk) for disk in subject.disks] == before, "put back byte by byte"
    assert subject.pool.reader.error_count == 8
    assert subject.pool.health.media_errors == 8
    await subject.pool.close()
    pool = await open_pool(subject.disks)
    assert pool.media_errors == 8, "over the pool's life"
    await pool.close()


@pytest.mark.parametrize("reading", ["now", "waiting", "verify"])
async def test_every_way_of_reading_heals(reading: str) -> None:
    subject = await Subject.make()
    good = subject.strip(0)
    (block, *_) = subject.within(0)
    subject.hit(0, subject.span(block)[1] + 100)
    if reading == "now":
        assert not subject.volume.read_now(block * BLOCK, memoryview(bytearray(BLOCK)))
    if reading == "verify":
        await subject.volume.verify(block * BLOCK, BLOCK)
    else:
        view = bytearray(BLOCK)
        await subject.volume.read(block * BLOCK, memoryview(view))
        assert view == subject.block(block)
    assert subject.strip(0) == good
    await subject.pool.close()


async def test_verify_looks_at_all_strips_of_the_stripe() -> None:
    """Damage to parity is nothing a read sees."""
    subject = await Subject.make()
    for index in (2, 3):
        good = subject.strip(index)
        subject.hit(index, 500)
        assert await subject.read(0) == subject.block(0)
        assert subject.strip(index) != good
        await subject.volume.verify(0, BLOCK)
        assert subject.strip(index) == good
    await subject.pool.close()


async def test_healed_strips_are_synced_by_the_next_flush() -> None:
    subject = await Subject.make()
    subject.hit(0, 200)
    await subject.volume.verify(0, BLOCK)
    disk = subject.disk_of_strip(0)
    assert disk.unsynced()
    await subject.volume.flush()
    assert not disk.unsynced()
    await subject.pool.close()


async def test_any_two_strips_may_be_bad() -> None:
    subject = await Subject.make()
    for first in range(4):
        for second in range(first):
            good = [subject.strip(index) for index in range(4)]
            for index in (first, second):
                at = strip_offset(subject.pool.geometry, subject.place)
                put(subject.disk_of_strip(index), at, bytes(subject.place.pages * 4096))
            for block in range(24):
                assert await subject.read(block) == subject.block(block)
            await subject.pool.scrub()
            assert [subject.strip(index) for index in range(4)] == good
    await subject.pool.close()


async def test_a_strip_that_cannot_be_read_is_written_again() -> None:
    subject = await Subject.make()
    (block, *_) = subject.within(1)
    disk = subject.disk_of_strip(1)
    operations = disk.operations
    disk.fail("read", times=3)
    assert await subject.read(block) == subject.block(block)
    assert disk.operations == operations + 1, "written, once"
    assert subject.pool.members[subject.role_of_strip(1)].state is MemberState.HEALTHY
    await subject.pool.close()


async def test_a_heal_that_fails_puts_the_member_out() -> None:
    subject = await Subject.make()
    (block, *_) = subject.within(1)
    role = subject.role_of_strip(1)
    subject.hit(1, subject.span(block)[1])
    subject.disks[role].fail("write", code=errno.EROFS)
    assert await subject.read(block) == subject.block(block)
    assert subject.pool.members[role].state is MemberState.OUT
    assert not subject.pool.reader.errors[-1].healed if subject.pool.reader.errors else True
    await subject.volume.flush()
    assert subject.pool.superblock.members[role].state == MemberState.OUT
    await subject.pool.close()


# --- beyond redundancy


async def test_beyond_redundancy_exactly_the_damaged_blocks_fail() -> None:
    """Three strips of four are bad, each in one record or in none."""
    subject = await Subject.make()
    victims = [subject.within(0)[1], subject.within(1)[2]]
    for strip, block in enumerate(victims):
        subject.hit(strip, subject.span(block)[1] + 70)
    for strip in (2, 3):
        for at in range(64 + 128 * strip, subject.place.pages * 4096, 512):
            subject.hit(strip, at)
    for block in range(24):
        if block in victims:
            with pytest.raises(ReadFault, match=rf"block {block} .*lost: .*4 bad strips of 4") as caught:
                await subject.read(block)
            assert caught.value.offset == block * BLOCK
        else:
            assert await subject.read(block) == subject.block(block)
    assert not subject.pool.log.fault
    assert [error.healed for error in subject.pool.reader.errors if error.role == -1]
    for block in victims:
        await write_volume(subject.volume, block * BLOCK, subject.block(block))
        assert await subject.read(block) == subject.block(block), "written again it is good"
    await subject.pool.close()


async def test_reconstruction_tries_each_choice_of_strips() -> None:
    """Three are bad, but what is wrong with two of them is not where this record needs them."""
    subject = await Subject.make()
    (block, *_) = subject.within(0)
    subject.hit(0, subject.span(block)[1] + 70)
    subject.hit(1, 9)
    subject.hit(2, 9)
    assert await subject.read(block) == subject.block(block)
    assert not subject.pool.reader.errors[-1].healed, "and nothing is put back on a guess"
    assert await subject.read(block) == subject.block(block)
    await subject.pool.close()


async def test_two_members_gone_and_a_bad_byte_elsewhere() -> None:
    """The strip that is rebuilt with it is wrong at that byte only."""
    subject = await Subject.make()
    damaged, *others = subject.within(0)
    at = subject.span(damaged)[1] + 200
    subject.hit(0, at)
    for index in (1, 2):
        subject.pool.members[subject.role_of_strip(index)].disk = None
    lost = []
    for block in range(24):
        _, begin, length = subject.span(block)
        try:
            assert await subject.read(block) == subject.block(block)
        except ReadFault:
            lost.append(block)
            assert begin <= at < begin + length or length < 65 * 64, f"block {block} is not where the damage is"
    assert damaged in lost
    assert len(lost) <= 3
    assert others[0] not in lost
    for index, disk in enumerate(subject.disks):
        subject.pool.members[index].disk = disk
    await subject.pool.close()


async def test_with_all_but_one_unreadable_that_one_still_answers() -> None:
    subject = await Subject.make()
    (block, *_) = subject.within(0)
    for index in (1, 2, 3):
        subject.disk_of_strip(index).fail("read", times=100)
    subject.disk_of_strip(0).fail("read")
    assert await subject.read(block) == subject.block(block)
    for index in range(4):
        subject.disk_of_strip(index).fail("read", times=100)
    with pytest.raises(ReadFault):
        await subject.read(block)
    for index in range(4):
        subject.disk_of_strip(index).fail("read")
    await subject.pool.scrub()
    await subject.pool.close()


@pytest.mark.parametrize(("members", "raid", "bad"), [(3, "none", 1), (3, "raid5", 2)])
async def test_with_less_parity(members: int, raid: str, bad: int) -> None:
    subject = await Subject.make(members, raid, blocks=10)
    (block, *_) = subject.within(0)
    subject.hit(0, subject.span(block)[1] + 70)
    if bad == 2:
        assert await subject.read(block) == subject.block(block)
        subject.hit(0, subject.span(block)[1] + 70)
        at = strip_offset(subject.pool.geometry, subject.place)
        put(subject.disk_of_strip(1), at, bytes(subject.place.pages * 4096))
    with pytest.raises(ReadFault, match=f"{bad} bad strips of {members}"):
        await subject.read(block)
    await subject.pool.close()


# --- what is another's


async def test_an_entry_that_points_at_another_block_gives_nothing() -> None:
    """I4: never another block's data, however right its checksum is."""
    subject = await Subject.make()
    entries = subject.volume.map.entries
    for wrong in (entries[6], entries[6] + 1):
        subject.volume.map.set_block(5, wrong)
        with pytest.raises(ReadFault, match="block 5"):
            await subject.read(5)
    await subject.pool.close()


@pytest.mark.parametrize(
    "entry",
    [entry_of(0, 0, 4095), entry_of(0, 1 << 21, 65), entry_of(0, 0, 1), entry_of(21, 0, 65), entry_of(0, 100, 65)],
)
async def test_entries_that_point_at_nothing(entry: int) -> None:
    subject = await Subject.make()
    for resident in (False, True):
        if resident:
            await write_volume(subject.volume, 30 * BLOCK, subject.block(0))
        subject.volume.map.set_block(5, entry)
        with pytest.raises(ReadFault):
            await subject.read(5)
        with pytest.raises(ReadFault):
            await subject.pool.reader.record(entry, Kind.DATA, 1, 5)
        assert await subject.read(6) == subject.block(6)
    await subject.pool.close()


async def test_metadata_is_read_like_everything_else() -> None:
    subject = await Subject.make()
    await subject.pool.commit()
    root = subject.pool.committer.root
    header, _ = await subject.pool.reader.record(root, Kind.ROOT, 0, 0)
    assert header.kind == Kind.ROOT
    for kind, namespace, number in ((Kind.MAP_PAGE, 0, 0), (Kind.ROOT, 1, 0), (Kind.ROOT, 0, 1)):
        with pytest.raises(ReadFault, match="stale or misdirected"):
            await subject.pool.reader.record(root, kind, namespace, number)
    await subject.pool.close()


async def test_an_old_stripe_in_place_of_the_new_one_is_rebuilt() -> None:
    """A write that the disk said it did, and did not: the segment's older content is still there, and verifies."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume, random = pool.namespaces[1], Random(8)
    old = {}
    for _ in range(40):
        for segment in range(22):
            if pool.segments.generation[segment] and segment not in old:
                offset = pool.geometry.segment_offset(segment)
                old[segment] = [image(disk, offset, 128 << 10) for disk in disks]
        for block in range(0, 256, 32):
            await write_volume(volume, block * BLOCK, random.randbytes(32 * BLOCK))
        await volume.flush()
    data = await read_volume(volume, 0, volume.size)
    (segment,) = {address_of(volume.map.entries[block]).segment for block in range(32)}
    for role in (0, 1):
        put(disks[role], pool.geometry.segment_offset(segment), old[segment][role])
    assert await read_volume(volume, 0, volume.size) == data
    report = await pool.scrub()
    assert not report.lost
    await pool.close()


# --- at once


async def test_reads_at_once_at_every_place() -> None:
    """Records of all lengths over strip boundaries, from memory and from media, block by block and in runs."""
    disks = new_disks(6)
    pool = await new_pool(disks, codec="none")
    volume, random, model = pool.namespaces[1], Random(9), bytearray(1 << 20)
    for _ in range(60):
        count = random.choice((1, 2, 3, 7, 16, 32))
        block = random.randrange(256 - count)
        data = random.randbytes(count * BLOCK)
        await write_volume(volume, block * BLOCK, data)
        model[block * BLOCK : (block + count) * BLOCK] = data
        if random.random() < 0.2:
            await volume.flush()
    for flushed in (False, True):
        if flushed:
            await volume.flush()
            pool.decoded.clear()
        for _ in range(200):
            count = random.choice((1, 1, 4, 32))
            block = random.randrange(256 - count)
            view = bytearray(count * BLOCK)
            assert volume.read_now(block * BLOCK, memoryview(view))
            assert view == model[block * BLOCK : (block + count) * BLOCK]
    await pool.close()


async def test_nothing_at_once_from_a_disk_that_waits_or_is_not_counted_upon() -> None:
    subject = await Subject.make()
    view = memoryview(bytearray(BLOCK))
    assert subject.volume.read_now(0, view)
    role = subject.role_of_strip(subject.span(0)[0])
    member = subject.pool.members[role]
    for state in (MemberState.OUT, MemberState.REBUILDING):
        member.state = state
        assert not subject.volume.read_now(0, view)
        assert await subject.read(0) == subject.block(0)
    member.state = MemberState.HEALTHY
    subject.disks[role].waits = True
    assert not subject.volume.read_now(0, view)
    assert await subject.read(0) == subject.block(0)
    assert not subject.pool.reader.errors, "what is missing on a member known to be out is no news"
    subject.volume.map.set_block(1, UNCORRECTABLE)
    assert not subject.volume.read_now(BLOCK, view)
    await subject.pool.close()


async def test_not_all_errors_are_kept_but_all_are_counted() -> None:
    subject = await Subject.make()
    for number in range(POOL_MEDIA_ERRORS_KEPT + 50):
        subject.hit(3, 100 + number)
        await subject.pool.reader.check_stripe(subject.place)
    assert len(subject.pool.reader.errors) == POOL_MEDIA_ERRORS_KEPT
    assert subject.pool.reader.error_count == POOL_MEDIA_ERRORS_KEPT + 50
    await subject.pool.close()


async def test_looking_without_healing() -> None:
    subject = await Subject.make()
    subject.hit(3, 100)
    damaged = subject.strip(3)
    outcome = await subject.pool.reader.check_stripe(subject.place, heal=False)
    assert (outcome.bad, outcome.healed, outcome.lost) == ([subject.role_of_strip(3)], [], False)
    assert subject.strip(3) == damaged
    assert b"".join(map(bytes, outcome.payloads[:2])).count(subject.block(0)) == 1
    await subject.pool.close()


# --- headers


async def test_a_header_of_any_member_will_do_and_only_its_own() -> None:
    subject = await Subject.make()
    geometry, place = subject.pool.geometry, subject.place
    for index in range(3):
        subject.hit(index, 20)
    header = find_header(geometry, subject.disks, place.segment, place.page, place.sequence)
    assert header is not None
    assert (header.index, header.sequence, header.pages) == (3, place.sequence, place.pages)
    assert find_header(geometry, subject.disks, place.segment, place.page, None) == header
    assert find_header(geometry, subject.disks, place.segment, place.page, place.sequence + 1) is None
    swapped = [subject.disks[1], subject.disks[0], subject.disks[3], subject.disks[2]]
    assert find_header(geometry, swapped, place.segment, place.page, None) is None, "a strip has its role"
    assert find_header(geometry, [None] * 4, place.segment, place.page, None) is None
    for disk in subject.disks:
        disk.fail("read")
    assert find_header(geometry, subject.disks, place.segment, place.page, None) is None
    await subject.pool.close()


async def test_a_walk_ends_where_sequences_do() -> None:
    subject = await Subject.make()
    pool, segment = subject.pool, subject.place.segment
    generation = pool.segments.generation[segment]
    stripes = pool.segments.stripes(segment)
    found = list(walk(pool.geometry, subject.disks, segment, 0, generation))
    assert [(each.page, each.pages, each.sequence) for each in found] == [
        (place.page, place.pages, place.sequence) for place in stripes
    ]
    assert list(walk(pool.geometry, subject.disks, segment, 0, generation + 1)) == []
    middle = stripes[len(stripes) // 2]
    for disk in subject.disks:
        put(disk, strip_offset(pool.geometry, middle), bytes(64))
    assert len(list(walk(pool.geometry, subject.disks, segment, 0, generation))) == middle.number
    await pool.close()


async def test_segments_are_walked_once_when_first_read() -> None:
    subject = await Subject.make()
    await subject.pool.close()
    pool = await open_pool(subject.disks)
    volume = pool.namespaces[1]
    segment = address_of(volume.map.entries[0]).segment
    pool.segments.starts.pop(segment, None)
    view = memoryview(bytearray(BLOCK))
    assert not volume.read_now(0, view), "the walk is no work for the loop"
    await volume.read(0, view)
    assert view == subject.block(0)
    assert [place.sequence for place in pool.segments.stripes(segment)]
    assert volume.read_now(BLOCK, view)
    await pool.close()


async def test_a_stripe_rebuilt_for_one_read_serves_the_next_while_a_member_is_out() -> None:
    """Sequential reads of a degraded pool: not a whole stripe for each record. Once healed, damage is news again."""
    subject = await Subject.make()
    role = subject.role_of_strip(0)
    subject.pool.members[role].out("on purpose")
    reads: list[int] = []
    read = subject.disk_of_strip(1).read_into

    def counted(offset: int, view: memoryview) -> None:
        reads.append(len(view))
        read(offset, view)

    subject.disk_of_strip(1).read_into = counted  # type: ignore[method-assign]
    blocks = subject.within(0)
    for block in blocks:
        assert await subject.read(block) == subject.block(block)
    assert reads.count(subject.place.pages * 4096) == 1
    await write_volume(subject.volume, blocks[0] * BLOCK, b"n" * BLOCK)
    assert await subject.read(blocks[0]) == b"n" * BLOCK
    assert await subject.read(blocks[1]) == subject.block(blocks[1])
    await subject.pool.close()


async def test_a_record_in_memory_or_in_pieces() -> None:
    """record() is for metadata, and must find it before and after it is on media, over a strip boundary too."""
    subject = await Subject.make()
    split = next(block for block in range(24) if subject.span(block)[2] < 65 * 64)
    header, record = await subject.pool.reader.record(subject.volume.map.entries[split], Kind.DATA, 1, split)
    assert bytes(record[64:4160]) == subject.block(split)
    assert header.first == split
    for disk in subject.disks:
        disk.waits = True
    _, record = await subject.pool.reader.record(subject.volume.map.entries[split], Kind.DATA, 1, split)
    assert bytes(record[64:4160]) == subject.block(split)
    await write_volume(subject.volume, 30 * BLOCK, b"m" * BLOCK)
    _, record = await subject.pool.reader.record(subject.volume.map.entries[30], Kind.DATA, 1, 30)
    assert bytes(record[64:4160]) == b"m" * BLOCK
    view = memoryview(bytearray(BLOCK))
    assert not subject.volume.read_now(split * BLOCK, view)
    await subject.pool.close()


async def test_refilling_writes_what_reads_well() -> None:
    """After a failed sync what a member answers may be in a page cache and nowhere else."""
    subject = await Subject.make()
    role = subject.role_of_strip(2)
    subject.pool.members[role].state = MemberState.REBUILDING
    operations = subject.disks[role].operations
    outcome = await subject.pool.reader.check_stripe(subject.place)
    assert (outcome.bad, subject.disks[role].operations) == ([], operations)
    outcome = await subject.pool.reader.check_stripe(subject.place, refill=True)
    assert subject.disks[role].operations == operations + 1
    await subject.pool.close()
