"""Making pools: which geometries there are, what a pool holds, every refusal, and what is on the disks afterwards."""

from __future__ import annotations

from random import Random

import pytest

from nvmeof.engine import creation
from nvmeof.engine.creation import (
    capacity,
    create,
    geometry_for,
    member_bytes_for,
    segment_bytes_for,
)
from nvmeof.engine.layout import LabelFlag, MemberState, decode_label
from nvmeof.engine.member import read_keys, read_label, read_superblocks
from nvmeof.engine.pool import Pool
from nvmeof.errors import CapacityError, UsageError
from nvmeof.keys.table import KeyTable
from nvmeof.testing.virtual_disk import VirtualDisk
from nvmeof.testing.volume_conformance import write_volume

from .pools import MEMBER_BYTES, SEGMENT_BYTES, GivenKey, image, new_disks, open_pool, put

MIB = 1 << 20
GIB = 1 << 30
AREAS = 256 << 10


@pytest.mark.parametrize(
    ("raid", "low", "high", "parity"), [("none", 1, 16, 0), ("raid5", 3, 17, 1), ("raid6", 4, 18, 2)]
)
def test_how_many_members(raid: str, low: int, high: int, parity: int) -> None:
    for members in range(low, high + 1):
        geometry = geometry_for(members, GIB, raid=raid)
        assert (geometry.data, geometry.parity, geometry.width) == (members - parity, parity, members)
    for members in (0, low - 1, high + 1):
        with pytest.raises(UsageError, match=f"{members} members: {raid} wants {low} to {high}"):
            geometry_for(members, GIB, raid=raid)


@pytest.mark.parametrize("raid", ["raid0", "", "RAID6", "raid7"])
def test_raid_levels(raid: str) -> None:
    with pytest.raises(UsageError, match="want one of none, raid5, raid6"):
        geometry_for(6, GIB, raid=raid)


@pytest.mark.parametrize(
    ("segment_bytes", "good"),
    [
        (64 << 10, True), (60 << 10, False), ((64 << 10) + 512, False), ((64 << 10) + 4096, True), (16 * MIB, True),
        (16 * MIB + 4096, False), (0, False), (-4096, False), (4096, False),
    ],
)  # fmt: skip
def test_segment_sizes(segment_bytes: int, good: bool) -> None:
    if good:
        geometry = geometry_for(6, GIB, segment_bytes=segment_bytes)
        assert geometry.segment_bytes == segment_bytes
        assert geometry.segments == (GIB - AREAS) // segment_bytes
        assert geometry.strip_bytes_max == min(260 << 10, segment_bytes)
    else:
        with pytest.raises(UsageError, match=f"segment size {segment_bytes}: want a multiple of 4096"):
            geometry_for(6, GIB, segment_bytes=segment_bytes)


def test_a_record_must_fit_a_stripe() -> None:
    """2049 units; two data strips of 64 KiB hold 2046, three 3069."""
    with pytest.raises(UsageError, match="too small for a record of 128 KiB on 2 data members"):
        geometry_for(4, GIB, segment_bytes=64 << 10)
    assert geometry_for(4, GIB, segment_bytes=68 << 10)
    assert geometry_for(5, GIB, segment_bytes=64 << 10)


def test_how_small_and_how_large_members_may_be() -> None:
    least = AREAS + 10 * SEGMENT_BYTES
    assert geometry_for(4, least, segment_bytes=SEGMENT_BYTES).segments == 10
    with pytest.raises(UsageError, match=f"members of {least - 1} bytes: want {least} at least, 10 segments"):
        geometry_for(4, least - 1, segment_bytes=SEGMENT_BYTES)
    with pytest.raises(UsageError, match="members of 0 bytes"):
        geometry_for(4, 0)
    assert geometry_for(4, AREAS + (16 * MIB << 20)).segments == 1 << 20
    assert geometry_for(4, AREAS + (16 * MIB << 20) + (1 << 40)).segments == 1 << 20


def test_geometry_in_full() -> None:
    geometry = geometry_for(6, GIB + 5000, encrypted=True, sparse=True)
    assert geometry.flags == LabelFlag.ENCRYPTED | LabelFlag.SPARSE
    assert geometry.member_bytes == GIB + 4096
    assert geometry.segments == 63
    assert len(geometry.pool) == 16
    assert geometry.pool != geometry_for(6, GIB).pool
    assert geometry_for(6, GIB).flags == 0


def test_capacity_grows_with_members_and_segments() -> None:
    before = 0
    for segments in range(10, 400, 7):
        geometry = geometry_for(6, AREAS + segments * MIB, segment_bytes=MIB)
        now = capacity(geometry)
        assert before <= now < segments * 4 * MIB
        assert now % 4096 == 0, "not whole blocks"
        before = now
    assert capacity(geometry_for(4, AREAS + 10 * MIB, segment_bytes=MIB)) > 0
    large = geometry_for(6, 1 << 40)
    assert capacity(large) > 0.9 * 4 * (1 << 40)


@pytest.mark.parametrize(("members", "raid"), [(4, "raid6"), (6, "raid6"), (3, "raid5"), (1, "none"), (18, "raid6")])
def test_members_large_enough_for_a_capacity(members: int, raid: str) -> None:
    for size in (4096, MIB, 100 * MIB, 5 * GIB + 4096, 1 << 42):
        needed = member_bytes_for(members, size, raid=raid)
        segment_bytes = segment_bytes_for(members, needed, raid=raid)
        assert capacity(geometry_for(members, needed, raid=raid, segment_bytes=segment_bytes)) >= size
    data = members - creation.PARITY[raid]
    assert member_bytes_for(members, 1 << 42, raid=raid) < (1 << 42) / data * 1.15


def test_members_for_a_size_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="raid 'x'"):
        member_bytes_for(4, MIB, raid="x")
    with pytest.raises(UsageError, match="3 members: raid6 wants 4"):
        member_bytes_for(3, MIB)


@pytest.mark.parametrize(
    ("member_bytes", "segment_bytes"),
    [
        (MIB, MIB), (39 * 2 * MIB, MIB), (40 * 2 * MIB, 2 * MIB), (40 * 16 * MIB - 1, 8 * MIB),
        (40 * 16 * MIB, 16 * MIB), (1 << 44, 16 * MIB),
    ],
)  # fmt: skip
def test_segment_size_for_members(member_bytes: int, segment_bytes: int) -> None:
    """16 MiB, and less where there would be fewer than 40; never below 1 MiB."""
    assert segment_bytes_for(6, member_bytes) == segment_bytes


@pytest.mark.parametrize("length", [4096, 40960, 131072])
@pytest.mark.parametrize(("members", "raid"), [(4, "raid6"), (3, "raid5"), (2, "none"), (8, "raid6")])
async def test_what_capacity_promises_fits(members: int, raid: str, length: int) -> None:
    """In records of any length, incompressible; written twice, so that the cleaner has had its share."""
    disks = new_disks(members, 2 * MIB)
    await Pool.create(disks, raid=raid, segment_bytes=SEGMENT_BYTES)
    pool = await open_pool(disks)
    volume = await pool.create_namespace(pool.capacity, codec="none")
    data = Random(1).randbytes(length)
    for _ in range(2):
        for at in range(0, volume.size, length):
            await write_volume(volume, at, data[: volume.size - at])
        await volume.flush()
    assert volume.allocated == pool.capacity
    await pool.close()


async def test_more_than_fits_is_refused() -> None:
    disks = new_disks(4, 2 * MIB)
    await Pool.create(disks, segment_bytes=SEGMENT_BYTES)
    pool = await open_pool(disks)
    volume = await pool.create_namespace(64 * MIB, codec="none")

    async def fill() -> None:
        for at in range(0, volume.size, 131072):
            await write_volume(volume, at, Random(at).randbytes(131072))

    with pytest.raises(CapacityError):
        await fill()
    assert pool.capacity < volume.allocated < 14 * 2 * SEGMENT_BYTES
    await pool.close()


def test_what_is_on_the_disks() -> None:
    disks = new_disks(4)
    geometry = create(disks, raid="raid6", keys=GivenKey(1), segment_bytes=SEGMENT_BYTES, sparse=True, force=False)
    assert geometry.segments == 22
    for role, disk in enumerate(disks):
        label = read_label(disk, "x")
        assert label is not None
        assert (label.geometry, label.role) == (geometry, role)
        found = read_superblocks(disk, geometry)
        assert len(found) == 2
        for superblock in found:
            assert superblock.generation == 1
            assert superblock.clean
            assert [member.state for member in superblock.members] == [MemberState.HEALTHY] * 4
            assert superblock.members[role].member == label.member
            assert (superblock.root, superblock.epoch) == (0, 0)
        assert all(KeyTable.decode(content) is not None for content in read_keys(disk, geometry))
        assert not disk.unsynced()
    assert len({superblock.members for disk in disks for superblock in read_superblocks(disk, geometry)}) == 1


def test_labels_are_written_last() -> None:
    """Crash case 12: without a label it is no pool; the rest is synced by then."""
    for operations in range(100):
        disks = new_disks(4)
        disks[0].power_off_after(operations)
        try:
            create(disks, raid="raid6", keys=None, segment_bytes=SEGMENT_BYTES, sparse=False, force=False)
        except OSError:
            disks[0].crash([])
        else:
            break
        labels = [read_label(disk, "x") for disk in disks]
        for disk, label in zip(disks, labels, strict=True):
            if label is not None:
                assert len(read_superblocks(disk, label.geometry)) == 2
    assert 5 < operations < 99


def test_a_disk_of_a_pool_is_not_formatted_without_force() -> None:
    disks = new_disks(4)
    options = {"raid": "raid6", "keys": None, "segment_bytes": SEGMENT_BYTES, "sparse": False}
    first = create(disks, **options, force=False)  # type: ignore[arg-type]
    before = [image(disk) for disk in disks]
    fresh = new_disks(3, first=10)
    with pytest.raises(UsageError, match=r"^disk-2: belongs to a pool already; destroy that first$"):
        create([*fresh, disks[2]], **options, force=False)  # type: ignore[arg-type]
    assert [image(disk) for disk in disks] == before
    assert not any(map(any, map(image, fresh)))
    second = create(disks, **options, force=True)  # type: ignore[arg-type]
    assert second.pool != first.pool
    for disk in disks:
        label = read_label(disk, "x")
        assert label is not None
        assert label.geometry == second
        assert {superblock.pool for superblock in read_superblocks(disk, second)} == {second.pool}
        assert read_superblocks(disk, first) == []


async def test_nothing_of_an_encrypted_pool_is_left_by_the_next() -> None:
    """Head and tail areas: keys and superblocks of the older pool are overwritten."""
    disks = new_disks(4)
    await Pool.create(disks, keys=GivenKey(1), segment_bytes=SEGMENT_BYTES)
    pool = await open_pool(disks, GivenKey(1))
    await pool.create_namespace(MIB)
    for _ in range(9):
        await pool.commit()
    await pool.close()
    disks = [disk.reopen() for disk in disks]  # type: ignore[misc]
    await Pool.create(disks, segment_bytes=SEGMENT_BYTES, force=True)
    for disk in disks:
        content = image(disk)
        assert content.count(b"NVMEOFKT") == 0
        assert content.count(b"NVMEOFSB") == 2


async def test_disks_of_several_sizes_make_a_pool_of_the_smallest() -> None:
    disks = [*new_disks(3, MEMBER_BYTES + 70000), *new_disks(1, MEMBER_BYTES, first=3)]
    geometry = await Pool.create(disks, segment_bytes=SEGMENT_BYTES)
    assert geometry.member_bytes == MEMBER_BYTES
    assert decode_label(image(disks[0])[MEMBER_BYTES - (128 << 10) :][:4096]) is not None
    pool = await open_pool(disks)
    await pool.close()


async def test_no_disks() -> None:
    with pytest.raises(UsageError, match="0 members"):
        await Pool.create([])


async def test_a_disk_that_cannot_be_written_is_an_error() -> None:
    disks = new_disks(4)
    disks[1].fail("write")
    with pytest.raises(OSError, match="Input/output"):
        await Pool.create(disks, segment_bytes=SEGMENT_BYTES)
    disks[2].fail("sync")
    with pytest.raises(OSError, match="Input/output"):
        await Pool.create(disks, segment_bytes=SEGMENT_BYTES)
    assert not any(read_label(disk, "x") for disk in disks)


async def test_a_wrecked_label_is_no_label() -> None:
    disks = new_disks(4)
    for disk in disks:
        put(disk, 0, b"NVMEOFLB" + bytes(100))
    await Pool.create(disks, segment_bytes=SEGMENT_BYTES)


async def test_the_default_segment_size() -> None:
    disks = [VirtualDisk(12 * MIB) for _ in range(4)]
    geometry = await Pool.create(disks)
    assert (geometry.segment_bytes, geometry.segments) == (MIB, 11)
