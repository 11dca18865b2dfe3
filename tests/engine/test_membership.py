"""Replacing members, taking them back, spares: who is refused, who takes over, and what the superblock says."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from nvmeof.engine.layout import ROLE_SPARE, MemberState
from nvmeof.engine.member import read_label
from nvmeof.engine.pool import Pool
from nvmeof.errors import UsageError
from nvmeof.testing.virtual_disk import VirtualDisk
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .pools import MEMBER_BYTES, SIZE, GivenKey, NamedDisk, new_disks, new_pool, open_pool

pytestmark = pytest.mark.slow

BLOCK = 4096


async def filled(members: int = 4, raid: str = "raid6") -> tuple[list[NamedDisk], Pool, bytes]:
    disks = new_disks(members)
    pool = await new_pool(disks, raid=raid, codec="none")
    data = Random(1).randbytes(SIZE)
    await write_volume(pool.namespaces[1], 0, data)
    await pool.flush()
    return disks, pool, data


async def until_healthy(pool: Pool) -> None:
    for _ in range(500):
        if all(member.state is MemberState.HEALTHY for member in pool.members):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(pool.status().members)


async def put_out(pool: Pool, disk: NamedDisk) -> None:
    disk.fail("sync")
    await write_volume(pool.namespaces[1], 0, await read_volume(pool.namespaces[1], 0, BLOCK))
    await pool.flush()


# --- replace


async def test_the_label_is_written_before_the_superblock_that_names_it() -> None:
    """Crash case 11."""
    _, pool, _ = await filled()
    (fresh,) = new_disks(1, first=9)
    await pool.replace(2, fresh)
    label = read_label(fresh, "x")
    assert label is not None
    assert (label.geometry, label.role, label.member) == (pool.geometry, 2, pool.members[2].identity)
    assert pool.superblock.members[2].member == label.member
    assert pool.superblock.members[2].state == MemberState.REBUILDING
    await pool.close()


async def test_a_crash_anywhere_in_a_replacement() -> None:
    """Either member is in the pool afterwards, the other is not, and nothing is lost."""
    for operations in range(60):
        disks, pool, data = await filled()
        (fresh,) = new_disks(1, first=9)
        fresh.power_off_after(operations)
        try:
            await pool.replace(1, fresh)
            done = True
        except OSError:
            done = False
        for disk in (*disks, fresh):
            disk.crash([])
        pool = await open_pool([*disks, fresh])
        assert await read_volume(pool.namespaces[1], 0, SIZE) == data
        assert pool.members[1].name in ("disk-1", "disk-9")
        assert pool.opened.missing_members == 0
        await pool.close()
        if done and fresh.operations < operations:
            break
    assert 3 < operations < 59


async def test_a_replaced_disk_is_let_go() -> None:
    disks, pool, _ = await filled()
    (fresh,) = new_disks(1, first=9)
    await pool.replace(2, fresh)
    with pytest.raises(OSError, match="descriptor"):
        disks[2].size()
    await pool.close()


@pytest.mark.parametrize("role", [-1, 4, 100])
async def test_roles_there_are_not(role: int) -> None:
    _, pool, _ = await filled()
    (fresh,) = new_disks(1, first=9)
    with pytest.raises(UsageError, match=f"member {role}: the pool has 0 to 3"):
        await pool.replace(role, fresh)
    with pytest.raises(UsageError, match=f"member {role}: is not a member that is out and there"):
        await pool.rejoin(role)
    await pool.close()


async def test_newcomers_that_are_refused() -> None:
    disks, pool, _ = await filled()
    foreign = new_disks(4, first=20)
    await (await new_pool(foreign)).close()
    small = new_disks(1, MEMBER_BYTES - 1, first=30)[0]
    for disk, message in (
        (small, f"disk-30: is {MEMBER_BYTES - 1} bytes, members have {MEMBER_BYTES}"),
        (foreign[0].reopen(), "disk-20: belongs to another pool; destroy that first"),
        (disks[3], "disk-3: is in the pool already"),
    ):
        with pytest.raises(UsageError, match=message):
            await pool.replace(0, disk)
        with pytest.raises(UsageError, match=message):
            await pool.add_spare(disk)
    assert not pool.health.degraded
    assert not pool.spares
    await pool.close()


async def test_a_healthy_member_is_not_given_up_when_the_others_are_needed() -> None:
    disks, pool, data = await filled()
    await put_out(pool, disks[0])
    await put_out(pool, disks[1])
    (fresh,) = new_disks(1, first=9)
    with pytest.raises(UsageError, match="member 2: cannot be spared while 2 others are not healthy"):
        await pool.replace(2, fresh)
    await pool.replace(0, fresh)
    await pool.rebuild()
    assert pool.members[0].state is MemberState.HEALTHY
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data
    await pool.close()


async def test_without_parity_nobody_can_be_spared() -> None:
    _, pool, _ = await filled(3, "none")
    (fresh,) = new_disks(1, first=9)
    with pytest.raises(UsageError, match="cannot be spared"):
        await pool.replace(0, fresh)
    await pool.close()


async def test_a_member_put_in_during_a_rebuild_begins_at_the_start() -> None:
    """And so do the others that are being rebuilt: one walk fills them all."""
    disks, pool, _ = await filled()
    one, two = new_disks(2, first=8)
    await pool.replace(1, one)
    pool.members[1].cursor = 5
    await pool.replace(2, two)
    assert [pool.members[role].cursor for role in (1, 2)] == [0, 0]
    assert [pool.superblock.members[role].cursor for role in (1, 2)] == [0, 0]
    await pool.close()
    assert disks


async def test_a_larger_disk_will_do() -> None:
    _, pool, data = await filled()
    large = new_disks(1, MEMBER_BYTES * 2, first=9)[0]
    await pool.replace(3, large)
    await pool.rebuild()
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data
    assert not pool.health.degraded
    await pool.close()


async def test_a_disk_that_cannot_be_labelled_changes_nothing() -> None:
    _, pool, data = await filled()
    (fresh,) = new_disks(1, first=9)
    fresh.fail("write")
    with pytest.raises(OSError, match="Input/output"):
        await pool.replace(3, fresh)
    assert not pool.health.degraded
    assert pool.members[3].name == "disk-3"
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data
    await pool.close()


# --- rejoin


async def test_a_member_comes_back() -> None:
    disks, pool, _ = await filled()
    volume = pool.namespaces[1]
    await put_out(pool, disks[1])
    with pytest.raises(UsageError, match="member 0: is not a member that is out"):
        await pool.rejoin(0)
    data = Random(2).randbytes(SIZE)
    await write_volume(volume, 0, data)
    await pool.flush()
    await pool.rejoin(1)
    assert pool.status().members[1].state == "rebuilding"
    report = await pool.rebuild()
    assert report.healed > 0, "what it missed"
    assert pool.status().members[1].state == "healthy"
    assert pool.members[1].reason == ""
    await pool.close()
    pool = await open_pool(disks[1:3])
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data
    await pool.close()


async def test_a_member_that_was_missing_comes_back_with_the_next_opening() -> None:
    disks, pool, data = await filled()
    await pool.close()
    pool = await open_pool(disks[:3])
    with pytest.raises(UsageError, match="member 3: is not a member that is out and there"):
        await pool.rejoin(3)
    await write_volume(pool.namespaces[1], 0, data[::-1])
    await pool.close()
    pool = await open_pool(disks)
    await pool.rejoin(3)
    await pool.rebuild()
    await pool.close()
    pool = await open_pool(disks[2:])
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data[::-1]
    await pool.close()


# --- spares


async def test_a_spare_takes_over_by_itself() -> None:
    disks, pool, data = await filled()
    (spare,) = new_disks(1, first=9)
    await pool.add_spare(spare)
    label = read_label(spare, "x")
    assert label is not None
    assert label.role == ROLE_SPARE
    assert pool.superblock.members[4].state == MemberState.SPARE
    await put_out(pool, disks[2])
    await until_healthy(pool)
    assert [member.name for member in pool.members] == ["disk-0", "disk-1", "disk-9", "disk-3"]
    assert pool.spares == []
    label = read_label(spare, "x")
    assert label is not None
    assert label.role == 2
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data
    await pool.close()
    pool = await open_pool([spare, disks[3].reopen()])
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data
    await pool.close()


async def test_a_spare_is_remembered_and_used_at_the_next_opening() -> None:
    disks, pool, data = await filled()
    (spare,) = new_disks(1, first=9)
    await pool.add_spare(spare)
    await pool.close()
    pool = await open_pool([*disks, spare])
    assert [member.name for member in pool.spares] == ["disk-9"]
    assert not pool.health.degraded
    await pool.close()
    pool = await open_pool([*disks[1:], spare])
    await until_healthy(pool)
    assert pool.members[0].name == "disk-9"
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data
    await pool.close()


async def test_two_spares_for_two_members() -> None:
    disks, pool, data = await filled()
    for disk in new_disks(2, first=8):
        await pool.add_spare(disk)
    await put_out(pool, disks[0])
    await put_out(pool, disks[3])
    await until_healthy(pool)
    assert {pool.members[0].name, pool.members[3].name} == {"disk-8", "disk-9"}
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data
    await pool.close()


async def test_a_spare_added_when_it_is_needed_already() -> None:
    disks, pool, _ = await filled()
    await put_out(pool, disks[1])
    (spare,) = new_disks(1, first=9)
    await pool.add_spare(spare)
    await until_healthy(pool)
    assert pool.members[1].name == "disk-9"
    await pool.close()


async def test_a_spare_that_fails_gives_way_to_the_next() -> None:
    disks, pool, _ = await filled()
    first, second = new_disks(2, first=8)
    await pool.add_spare(first)
    await pool.add_spare(second)
    first.fail("write", times=100)
    await put_out(pool, disks[1])
    await until_healthy(pool)
    assert pool.members[1].name == "disk-9"
    assert "disk-8: cannot be made a member" in pool.background_error
    await pool.close()


async def test_spares_of_an_encrypted_pool() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    (spare,) = new_disks(1, first=9)
    await pool.add_spare(spare)
    await pool.rotate_key(GivenKey(2))
    data = Random(1).randbytes(SIZE)
    await write_volume(pool.namespaces[1], 0, data)
    await put_out(pool, disks[0])
    await until_healthy(pool)
    await pool.close()
    pool = await open_pool([spare, disks[1]], GivenKey(2))
    assert await read_volume(pool.namespaces[1], 0, SIZE) == data
    await pool.close()


async def test_no_more_spares_than_the_superblock_names() -> None:
    """64 members in its table; 60 spares beside four."""
    _, pool, _ = await filled()
    for disk in new_disks(60, first=10):
        await pool.add_spare(disk)
    with pytest.raises(UsageError, match="60 spares"):
        await pool.add_spare(VirtualDisk(MEMBER_BYTES))
    assert len(pool.superblock.members) == 64
    await pool.close()
