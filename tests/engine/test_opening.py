"""Opening: everything flushed is there, what was dropped is told, and every set of disks that is no pool is refused."""

from __future__ import annotations

from itertools import combinations
from random import Random
from uuid import UUID

import pytest
import xxhash

from nvmeof.engine.layout import (
    AREA_BYTES,
    RING_OFFSET,
    MemberState,
    Superblock,
    decode_superblock,
    encode_superblock,
)
from nvmeof.engine.opening import OpenReport, find
from nvmeof.engine.pool import Pool
from nvmeof.engine.segments import StripePlace
from nvmeof.errors import ReadFault, UsageError, WriteFault
from nvmeof.testing.virtual_disk import VirtualDisk
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .pools import (
    MEMBER_BYTES,
    GivenKey,
    NamedDisk,
    check_counts,
    flip,
    image,
    new_disks,
    new_pool,
    open_pool,
    place_of,
    put,
    strip_offset,
)

BLOCK = 4096


def stripe_pages(pool: Pool) -> int:
    """A flushed 4 KiB block: header and record of 65 units over two strips, one page each."""
    return 1 if pool.geometry.data >= 2 else 2


async def crashed(
    flushed: int, unflushed: int, *, lose: bool = True, **options: object
) -> tuple[list[NamedDisk], Pool]:
    """A pool with so many stripes flushed since the commit, then so many written and not flushed; the power went."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none", **options)  # type: ignore[arg-type]
    volume = pool.namespaces[1]
    for block in range(flushed + unflushed):
        await write_volume(volume, block * BLOCK, bytes([block + 1]) * BLOCK)
        if block < flushed:
            await volume.flush()
        else:
            await pool.log.drain()
    for disk in disks:
        disk.crash([] if lose else range(len(disk.unsynced())))
    return disks, pool


async def content(pool: Pool, blocks: int) -> list[int]:
    """The first byte of each block, which must be the same all over."""
    found = []
    for block in range(blocks):
        data = await read_volume(pool.namespaces[1], block * BLOCK, BLOCK)
        assert data == data[:1] * BLOCK
        found.append(data[0])
    return found


# --- what is there afterwards


async def test_a_clean_opening() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    await write_volume(pool.namespaces[1], 0, b"x" * BLOCK)
    incarnation, epoch = pool.incarnation, pool.epoch
    await pool.close()
    pool = await open_pool(reversed(disks))
    report = pool.opened
    assert report.clean
    assert (report.dropped_stripes, report.repaired_strips, report.lost_map_pages, report.missing_members) == (0,) * 4
    assert report.seconds > 0
    assert report.to_json()["clean"] is True
    assert pool.incarnation == incarnation == pool.namespaces[1].incarnation
    assert pool.epoch == epoch + 1
    assert await read_volume(pool.namespaces[1], 0, BLOCK) == b"x" * BLOCK
    check_counts(pool)
    await pool.close()


async def test_an_unclean_opening_has_a_new_incarnation() -> None:
    disks, old = await crashed(2, 0)
    pool = await open_pool(disks)
    assert not pool.opened.clean
    assert pool.incarnation != old.incarnation
    assert len(pool.incarnation) == 16
    incarnation = pool.incarnation
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks)
    assert pool.incarnation != incarnation, "every unclean opening"
    incarnation = pool.incarnation
    await pool.close()
    pool = await open_pool(disks)
    assert pool.incarnation == incarnation
    await pool.close()


@pytest.mark.parametrize("flushed", [0, 1, 5])
@pytest.mark.parametrize("unflushed", [0, 1, 4])
async def test_what_was_flushed_is_there(flushed: int, unflushed: int) -> None:
    disks, old = await crashed(flushed, unflushed)
    pool = await open_pool(disks)
    assert await content(pool, flushed + unflushed) == [*range(1, flushed + 1), *([0] * unflushed)]
    commit = pool.opened.rolled_forward_stripes - flushed
    assert commit in (0, 1), "the commit's own records and those behind"
    assert pool.opened.rolled_forward_bytes >= flushed * stripe_pages(old) * 4 * 4096
    check_counts(pool)
    await pool.close()


async def test_what_was_written_and_landed_is_there_too() -> None:
    disks, _ = await crashed(2, 3, lose=False)
    pool = await open_pool(disks)
    assert await content(pool, 5) == [1, 2, 3, 4, 5]
    assert pool.opened.dropped_stripes == 0
    await pool.close()


async def test_stripes_behind_a_gap_are_dropped_for_good() -> None:
    """Crash case 2: they landed, one before them did not."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume = pool.namespaces[1]
    for block in range(5):
        await write_volume(volume, block * BLOCK, bytes([block + 1]) * BLOCK)
        await pool.log.drain()
    for disk in disks:
        disk.crash([index for index in range(5) if index != 2])
    pool = await open_pool(disks)
    assert await content(pool, 5) == [1, 2, 0, 0, 0]
    assert pool.opened.dropped_stripes == 2
    await write_volume(pool.namespaces[1], 2 * BLOCK, b"\x09" * BLOCK)
    await pool.flush()
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks)
    assert await content(pool, 5) == [1, 2, 9, 0, 0], "taken up again"
    await pool.close()


@pytest.mark.parametrize("landed", [(0,), (1,), (0, 3), (1, 2), (0, 1, 2), (0, 1, 2, 3)])
async def test_a_torn_stripe_counts_if_k_strips_of_it_are_good(landed: tuple[int, ...]) -> None:
    """Crash case 1."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"\x01" * BLOCK)
    await volume.flush()
    await write_volume(volume, BLOCK, b"\x02" * BLOCK)
    await pool.log.drain()
    for role, disk in enumerate(disks):
        disk.crash([0] if role in landed else [])
    pool = await open_pool(disks)
    good = len(landed) >= 2
    assert await content(pool, 2) == [1, 2 if good else 0]
    assert pool.opened.repaired_strips == (4 - len(landed) if good else 0)
    await write_volume(pool.namespaces[1], 2 * BLOCK, b"\x03" * BLOCK)
    await pool.flush()
    for pair in combinations(range(4), 2):
        rest = [disk for role, disk in enumerate(disks) if role not in pair]
        copies = [copy_of(disk) for disk in rest]
        again = await open_pool(copies)
        assert await content(again, 3) == [1, 2 if good else 0, 3]
        await again.close()
    await pool.close()


def copy_of(disk: NamedDisk) -> NamedDisk:
    copy = NamedDisk(disk.size())
    copy.path = f"copy of {disk.path}"
    put(copy, 0, image(disk))
    return copy


async def test_deallocation_and_marks_are_rolled_forward() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none", size=4 << 20)
    volume = pool.namespaces[1]
    for block in range(10):
        await write_volume(volume, block * BLOCK, bytes([block + 1]) * BLOCK)
    await pool.commit()
    await volume.deallocate([(2 * BLOCK, 3 * BLOCK)])
    await volume.write_uncorrectable(6 * BLOCK, 2 * BLOCK)
    await write_volume(volume, 3 * BLOCK, b"\x40" * BLOCK)
    await volume.flush()
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks)
    assert await content(pool, 6) == [1, 2, 0, 0x40, 0, 6]
    for block in (6, 7):
        with pytest.raises(ReadFault, match="uncorrectable"):
            await pool.namespaces[1].read(block * BLOCK, memoryview(bytearray(BLOCK)))
    check_counts(pool)
    await pool.close()


async def test_the_same_after_any_number_of_crashes() -> None:
    """A model of blocks; random work, power off at a random operation of a random member, open, compare."""
    random = Random(5)
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none", size=2 << 20)
    await pool.flush()
    durable = [{0} for _ in range(512)]
    for round_ in range(12):
        volume = pool.namespaces[1]
        for step in range(random.randrange(5, 60)):
            block, value = random.randrange(512), random.randrange(256)
            count = min(random.choice((1, 8, 32)), 512 - block)
            await write_volume(volume, block * BLOCK, bytes([value]) * BLOCK * count)
            for number in range(block, block + count):
                durable[number].add(value)
            if step % 9 == 8:
                await volume.flush()
                now = await content(pool, 512)
                durable = [{value} for value in now]
        for disk in disks:
            disk.crash()
        pool = await open_pool(disks)
        now = await content(pool, 512)
        assert all(value in allowed for value, allowed in zip(now, durable, strict=True)), f"round {round_}"
        durable = [{value} for value in now]
        check_counts(pool)
    await pool.close()


async def test_an_opening_that_is_interrupted_changes_nothing() -> None:
    """Crash case 7, at every operation of the opening."""
    disks, _ = await crashed(3, 2)
    images = [image(disk) for disk in disks]
    for operations in range(200):
        again = new_disks(4)
        for disk, each in zip(again, images, strict=True):
            put(disk, 0, each)
        victim = again[operations % 4]
        victim.power_off_after(operations // 4)
        try:
            pool = await open_pool(again)
        except (UsageError, WriteFault, OSError):
            done = False
        else:
            done = not any(member.state for member in pool.members)
        for disk in again:
            disk.crash()
        pool = await open_pool(again)
        assert await content(pool, 5) == [1, 2, 3, 0, 0]
        await pool.close()
        if done:
            break
    assert 8 < operations < 199


@pytest.mark.parametrize("pair", list(combinations(range(4), 2)))
async def test_without_any_two_members(pair: tuple[int, int]) -> None:
    disks, _ = await crashed(4, 0)
    pool = await open_pool([disk for role, disk in enumerate(disks) if role not in pair])
    assert await content(pool, 4) == [1, 2, 3, 4]
    assert pool.opened.missing_members == 2
    assert [member.state is MemberState.OUT for member in pool.members] == [role in pair for role in range(4)]
    assert all(pool.members[role].reason == "missing" for role in pair)
    await pool.close()
    pool = await open_pool(disks)
    assert [member.state is MemberState.OUT for member in pool.members] == [role in pair for role in range(4)]
    assert all("was out" in pool.members[role].reason for role in pair), "what they missed they do not have"
    assert await content(pool, 4) == [1, 2, 3, 4]
    await pool.close()


async def test_a_map_page_lost_for_good_costs_its_blocks_only() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, size=8 << 20, codec="none")
    volume = pool.namespaces[1]
    for page in range(4):
        await write_volume(volume, page * 512 * BLOCK, bytes([page + 1]) * BLOCK)
    await pool.commit()
    entry = volume.map.table[2]
    await write_volume(volume, 0, b"\x09" * BLOCK)
    await pool.close()
    segment, unit = entry >> 39, entry >> 17 & 0x3FFFFF
    place = pool.segments.stripe_at(segment, unit)
    assert place is not None
    for disk in disks:
        disk.reopen()
    wreck_record(pool, place, disks, unit)
    pool = await open_pool(disks)
    assert pool.opened.lost_map_pages == 1
    volume = pool.namespaces[1]
    for page in (0, 1, 3):
        assert await read_volume(volume, page * 512 * BLOCK, BLOCK) == bytes([9 if page == 0 else page + 1]) * BLOCK
    with pytest.raises(ReadFault, match="uncorrectable"):
        await volume.read(2 * 512 * BLOCK, memoryview(bytearray(BLOCK)))
    await write_volume(volume, 2 * 512 * BLOCK, b"\x07" * BLOCK)
    await pool.close()
    pool = await open_pool(disks)
    assert pool.opened.lost_map_pages == 0
    assert await read_volume(pool.namespaces[1], 2 * 512 * BLOCK, BLOCK) == b"\x07" * BLOCK
    await pool.close()


def wreck_record(pool: Pool, place: StripePlace, disks: list[NamedDisk], unit: int) -> None:
    """Damage one record and enough of the parity that it cannot be rebuilt."""
    payload = place.units // pool.geometry.data
    strip, within = divmod(unit - place.first, payload)
    offset = strip_offset(pool.geometry, place)
    flip(disks[(strip + place.sequence) % 4], offset + 64 + within * 64 + 70)
    for index in (2, 3):
        put(disks[(index + place.sequence) % 4], offset + 64, bytes(place.pages * 4096 - 64))
    other = disks[(1 - strip + place.sequence) % 4]
    flip(other, offset + 20)


# --- refusals


async def refusal(disks: list[NamedDisk], keys: GivenKey | None = None) -> str:
    before = [image(disk) for disk in disks]
    with pytest.raises(UsageError) as caught:
        await open_pool(disks, keys)
    assert "\n" not in str(caught.value)
    for disk, content_before in zip(disks, before, strict=True):
        assert image(disk.reopen()) == content_before, "a refusal writes nothing"
    return str(caught.value)


async def closed(first: int = 0, **options: object) -> list[NamedDisk]:
    disks = new_disks(4, first=first)
    pool = await new_pool(disks, **options)  # type: ignore[arg-type]
    await write_volume(pool.namespaces[1], 0, b"x" * BLOCK)
    await pool.close()
    for disk in disks:
        disk.reopen()
    return disks


async def test_no_labels() -> None:
    assert "none of the disks has a pool's label; create a pool first" in await refusal(new_disks(3))
    assert "none of the disks" in await refusal([])


async def test_a_newer_version() -> None:
    disks = await closed()
    for at in (0, MEMBER_BYTES - AREA_BYTES):
        page = bytearray(image(disks[1], at, 4096))
        page[8] = 2
        page[4088:] = xxhash.xxh3_64_intdigest(bytes(page[:4088])).to_bytes(8, "little")
        put(disks[1], at, bytes(page))
    assert await refusal(disks) == (
        "disk-1: has pool format version 2, this release knows up to 1; use a newer release"
    )  # fmt: skip


async def test_two_pools_mixed() -> None:
    one, other = await closed(), await closed(10)
    message = await refusal([*one[:3], other[3]])
    assert message.startswith("disk-13: belongs to another pool (")
    assert "take it out" in message
    assert "belongs to another pool" in await refusal([*one[:2], *other[2:]])


async def test_a_copy_of_a_member() -> None:
    disks = await closed()
    copy = copy_of(disks[2])
    assert await refusal([*disks, copy]) == "copy of disk-2: is a copy of disk-2; take one of them out"


async def test_too_many_missing() -> None:
    disks = await closed()
    message = await refusal(disks[2:3])
    assert message.startswith("3 of 4 members are missing, 2 may be: bring back member 0, member 1, member 3")


@pytest.mark.parametrize(("raid", "members", "may"), [("none", 2, 0), ("raid5", 3, 1)])
async def test_too_many_missing_of_lesser_pools(raid: str, members: int, may: int) -> None:
    disks = new_disks(members)
    pool = await new_pool(disks, raid=raid)
    await pool.close()
    for disk in disks:
        disk.reopen()
    message = await refusal(disks[: members - may - 1])
    assert f"{may + 1} of {members} members are missing, {may} may be" in message
    pool = await open_pool(disks[: members - may])
    await pool.close()


async def test_members_that_were_replaced_do_not_count() -> None:
    disks = await closed()
    pool = await open_pool(disks)
    (fresh,) = new_disks(1, first=9)
    await pool.replace(0, fresh)
    await pool.rebuild()
    await pool.close()
    for disk in [*disks, fresh]:
        disk.reopen()
    message = await refusal([disks[0], disks[1]])
    assert "bring back member 0, member 2, member 3" in message or "are missing" in message
    pool = await open_pool([*disks, fresh])
    assert [member.name for member in pool.members] == ["disk-9", "disk-1", "disk-2", "disk-3"]
    assert not pool.health.degraded
    await pool.close()


async def test_a_member_cut_short() -> None:
    disks = await closed()
    """It is as lost as one that is missing; the others serve."""
    said = f"disk-{{}}: was cut short to {MEMBER_BYTES - 4096} of {MEMBER_BYTES} bytes"
    disks = await closed()
    disks[1].truncate(MEMBER_BYTES - 4096)
    pool = await open_pool(disks)
    assert pool.health.degraded
    assert pool.health.reason == said.format(1)
    await pool.close()


async def test_more_members_cut_short_than_may_be_lost() -> None:
    disks = await closed()
    for disk in disks[:3]:
        disk.truncate(MEMBER_BYTES - 4096)
    how = f"(was cut short to {MEMBER_BYTES - 4096} of {MEMBER_BYTES} bytes)"
    assert (await refusal(disks)).endswith(f"bring back disk-0 {how}, disk-1 {how}, disk-2 {how}")
    disks[3].truncate(MEMBER_BYTES - 4096)
    assert (await refusal(disks)).endswith("(disk-0, disk-1, disk-2, disk-3: cut short; bring back the whole)")


async def test_a_label_that_contradicts_the_others() -> None:
    disks = await closed()
    for at in (0, MEMBER_BYTES - AREA_BYTES):
        page = bytearray(image(disks[3], at, 4096))
        page[72] ^= 1
        page[4088:] = xxhash.xxh3_64_intdigest(bytes(page[:4088])).to_bytes(8, "little")
        put(disks[3], at, bytes(page))
    assert await refusal(disks) == "disk-3: its label contradicts those of the other members; replace this member"


async def test_no_superblock() -> None:
    disks = await closed()
    for disk in disks:
        for area in (0, MEMBER_BYTES - AREA_BYTES):
            put(disk, area + RING_OFFSET, bytes(32768))
    assert "no superblock of the pool verifies on any member" in await refusal(disks)


async def test_one_superblock_is_enough() -> None:
    disks = await closed()
    for disk in disks[1:]:
        put(disk, RING_OFFSET, bytes(32768))
    for disk in disks:
        put(disk, MEMBER_BYTES - AREA_BYTES + RING_OFFSET, bytes(32768))
    pool = await open_pool(disks)
    assert await read_volume(pool.namespaces[1], 0, BLOCK) == b"x" * BLOCK
    await pool.close()


async def test_no_key() -> None:
    disks = await closed(keys=GivenKey(1))
    assert "the pool is encrypted: give its key file, passphrase or key command" in await refusal(disks)
    assert "wrong key: the given key does not open this pool" in await refusal(disks, GivenKey(2))


@pytest.mark.parametrize("bad", [3, 4])
@pytest.mark.parametrize("which", [0, 1])
async def test_a_flushed_stripe_lost_beyond_redundancy(bad: int, which: int) -> None:
    """Crash case 7: what the map would say instead is old, so it is refused and said."""
    disks, old = await crashed(3, 0)
    place = place_of(old, old.namespaces[1], which)
    for index in range(bad):
        put(disks[(index + place.sequence) % 4], strip_offset(old.geometry, place), bytes(4096))
    message = await refusal(disks)
    assert f"segment {place.segment}" in message
    assert "was flushed and is lost" in message
    assert "bring back missing members, or restore a backup" in message


async def test_the_last_flushed_stripe_cannot_be_missed() -> None:
    """Nothing behind it says that it was flushed; as if it had never landed."""
    disks, old = await crashed(3, 0)
    place = place_of(old, old.namespaces[1], 2)
    for disk in disks[:3]:
        put(disk, strip_offset(old.geometry, place), bytes(4096))
    pool = await open_pool(disks)
    assert await content(pool, 3) == [1, 2, 0]
    await pool.close()


async def test_a_stripe_of_the_commit_lost() -> None:
    disks = await closed()
    superblocks = [
        superblock
        for slot in range(8)
        if (superblock := decode_superblock(image(disks[0], RING_OFFSET + slot * 4096, 4096))) is not None
    ]
    newest = max(superblocks, key=lambda each: each.generation)
    offset = AREA_BYTES + newest.segment * (128 << 10) + newest.page * 4096
    for disk in disks[:3]:
        put(disk, offset, bytes(4096))
    message = await refusal(disks)
    assert "cannot be opened" in message or "was flushed and is lost" in message


@pytest.mark.parametrize(
    "change",
    [
        {"segment": 22}, {"segment": 0xFFFFFFFF}, {"page": 32}, {"root": 5}, {"root": 1 << 58}, {"root": 1 << 63},
        {"sequence": 7}, {"page": 7},
    ],
    ids=str,
)  # fmt: skip
async def test_a_superblock_that_verifies_and_makes_no_sense(change: dict[str, int]) -> None:
    """Somebody made it; UsageError and nothing else."""
    disks = await closed()
    newest = max(
        (
            superblock
            for slot in range(8)
            if (superblock := decode_superblock(image(disks[0], RING_OFFSET + slot * 4096, 4096))) is not None
        ),
        key=lambda each: each.generation,
    )
    forged = encode_superblock(newest._replace(generation=newest.generation + 1, **change))  # type: ignore[arg-type]
    put(disks[2], RING_OFFSET + (newest.generation + 1) % 8 * 4096, forged)
    with pytest.raises(UsageError):
        await open_pool(disks)


async def test_disks_are_closed_after_a_refusal() -> None:
    disks = new_disks(4)
    with pytest.raises(UsageError):
        await Pool.open(disks)
    for disk in disks:
        with pytest.raises(OSError, match="descriptor"):
            disk.size()


async def test_finding_reads_only_and_takes_any_order() -> None:
    disks = await closed()
    operations = [disk.operations for disk in disks]
    stranger = VirtualDisk(MEMBER_BYTES)
    found = find([stranger, disks[2], disks[0], disks[3], disks[1]])
    assert [member.name for member in found.members] == ["disk-0", "disk-1", "disk-2", "disk-3"]
    assert [member.disk for member in found.members] == disks
    assert [disk.operations for disk in disks] == operations
    assert found.superblock.clean
    assert UUID(bytes=found.geometry.pool).version == 4


async def test_a_new_pool_has_nothing_to_roll_forward() -> None:
    disks = new_disks(4)
    await Pool.create(disks, segment_bytes=128 << 10)
    pool = await open_pool(disks)
    assert pool.opened == OpenReport(seconds=pool.opened.seconds)
    assert pool.namespaces == {}
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks)
    assert not pool.opened.clean
    await pool.close()


# --- what somebody forged, or what only many losses together do


def newest_of(disk: NamedDisk) -> Superblock:
    found = (decode_superblock(image(disk, RING_OFFSET + slot * 4096, 4096)) for slot in range(8))
    return max((each for each in found if each is not None), key=lambda each: each.generation)


async def forged(**change: object) -> list[NamedDisk]:
    disks = await closed()
    newest = newest_of(disks[0])
    page = encode_superblock(newest._replace(**({"generation": newest.generation + 1} | change)))  # type: ignore[arg-type]
    generation = decode_superblock(page)
    assert generation is not None
    put(disks[2], RING_OFFSET + generation.generation % 8 * 4096, page)
    return disks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": (1 << 24) - 1}, "the pool was opened 16777215 times, which is all it can be"),
        ({"generation": 1 << 63}, "generation 9223372036854775808 cannot be"),
        ({"page": 31}, "cannot be opened"),
    ],
)
async def test_forged_superblocks(change: dict[str, int], message: str) -> None:
    assert message in await refusal(await forged(**change))


async def test_a_superblock_that_names_a_member_twice() -> None:
    disks = await closed()
    members = newest_of(disks[0]).members
    for disk in disks:
        disk.reopen()
    disks = await forged(members=(members[0], members[0], *members[2:]))
    assert "names a member twice" in await refusal(disks)


async def test_members_that_cannot_be_counted_upon() -> None:
    """Two are out and there, a third is missing: none of the two has what was written since."""
    disks = await closed()
    pool = await open_pool(disks[2:])
    await pool.close()
    for disk in disks:
        disk.reopen()
    message = await refusal(disks[:3])
    assert "3 of 4 members cannot be counted upon, 2 may be" in message
    assert "disk-0: was out when the pool was last open" in message
    assert "bring back those that are missing" in message


async def test_a_larger_member_whose_first_label_is_lost() -> None:
    """Its second label is where the others' is, not at its own end."""
    disks = [*new_disks(3), *new_disks(1, MEMBER_BYTES + MEMBER_BYTES, first=3)]
    await (await new_pool(disks)).close()
    put(disks[3].reopen(), 0, bytes(4096))
    pool = await open_pool(disks)
    assert pool.opened.missing_members == 0
    assert not pool.health.degraded
    await pool.close()


async def test_the_first_stripe_of_the_heads_segment_lost() -> None:
    disks, old = await crashed(3, 0)
    newest = newest_of(disks[0])
    assert newest.page > 0
    offset = old.geometry.segment_offset(newest.segment)
    for disk in disks:
        put(disk, offset, bytes(4096))
    assert f"segment {newest.segment}: its first stripe is lost and the log goes on in it" in await refusal(disks)


async def test_a_stripe_before_the_head_lost() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    for block in range(3):
        await write_volume(pool.namespaces[1], block * BLOCK, bytes([block + 1]) * BLOCK)
        await pool.flush()
    place = place_of(pool, pool.namespaces[1], 1)
    await pool.commit()
    await pool.flush()
    newest = pool.superblock
    assert (newest.segment, place.segment) == (place.segment, newest.segment)
    for disk in disks:
        disk.crash([])
        put(disk, strip_offset(pool.geometry, place), bytes(4096))
    assert "stripes before the log's head are lost" in await refusal(disks)


async def test_the_root_lost_beyond_redundancy() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    await pool.commit()
    root = pool.committer.root
    await pool.flush()
    place = pool.segments.stripe_at(root >> 39, root >> 17 & 0x3FFFFF)
    assert place is not None
    for disk in disks:
        disk.crash([])
    wreck_record(pool, place, disks, root >> 17 & 0x3FFFFF)
    message = await refusal(disks)
    assert "was flushed and is lost" in message or "the pool's root is damaged beyond redundancy" in message


async def test_a_table_of_map_pages_lost_costs_what_it_names() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, size=4 << 20, codec="none")
    volume = await pool.create_namespace(1 << 20, codec="none")
    await write_volume(pool.namespaces[1], 0, b"a" * BLOCK)
    await write_volume(volume, 0, b"b" * BLOCK)
    await pool.commit()
    entry = volume.map.chunks[0]
    await write_volume(pool.namespaces[1], 0, b"c" * BLOCK)
    await pool.close()
    place = pool.segments.stripe_at(entry >> 39, entry >> 17 & 0x3FFFFF)
    assert place is not None
    for disk in disks:
        disk.reopen()
    wreck_record(pool, place, disks, entry >> 17 & 0x3FFFFF)
    with pytest.raises(UsageError, match="pages of the map are lost while members are missing; bring those back"):
        await open_pool(disks[:3])
    pool = await open_pool(disks)
    assert pool.opened.lost_map_pages == 1
    assert await read_volume(pool.namespaces[1], 0, BLOCK) == b"c" * BLOCK
    with pytest.raises(ReadFault, match="uncorrectable"):
        await pool.namespaces[2].read(0, memoryview(bytearray(BLOCK)))
    await pool.close()


async def test_a_torn_end_is_taken_away_and_a_member_that_cannot_be_is_out() -> None:
    """One strip of an unflushed stripe landed: whoever walks the segment later must not go on there."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"\x01" * BLOCK)
    await volume.flush()
    await write_volume(volume, BLOCK, b"\x02" * BLOCK)
    await pool.log.drain()
    place = place_of(pool, volume, 1)
    offset = strip_offset(pool.geometry, place)
    for role, disk in enumerate(disks):
        disk.crash([0] if role == 1 else [])
    assert image(disks[1], offset + 8, 4) == b"STRP"
    copies = [copy_of(disk) for disk in disks]
    pool = await open_pool(disks)
    assert not any(image(disks[1], offset, 64))
    assert await content(pool, 2) == [1, 0]
    await pool.close()
    for nth in range(1, 6):
        again = [copy_of(disk) for disk in copies]
        again[1].fail("write", nth=nth)
        pool = await open_pool(again)
        assert pool.members[1].state is MemberState.OUT
        assert await content(pool, 2) == [1, 0]
        await pool.close()
