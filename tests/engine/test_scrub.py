"""Scrub and rebuild: what they find and put back, that they go on where they stopped, and run while others write."""

from __future__ import annotations

import asyncio
import time
from itertools import combinations
from random import Random

import pytest

from nvmeof.engine.layout import NONE32, MemberState
from nvmeof.engine.pool import Pool
from nvmeof.engine.scrub import ScrubReport
from nvmeof.errors import UsageError, WriteFault
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .pools import NamedDisk, flip, image, new_disks, new_pool, open_pool, place_of, put, strip_offset

BLOCK = 4096
MIB = 1 << 20


async def filled(members: int = 4, raid: str = "raid6", seed: int = 1) -> tuple[list[NamedDisk], Pool, bytes]:
    """A pool with a MiB of noise in some 30 stripes, and what that is."""
    disks = new_disks(members)
    pool = await new_pool(disks, raid=raid, codec="none")
    data = Random(seed).randbytes(MIB)
    for at in range(0, MIB, 32768):
        await write_volume(pool.namespaces[1], at, data[at : at + 32768])
        await pool.flush()
    return disks, pool, data


def stripes(pool: Pool) -> int:
    return sum(len(pool.segments.stripes(number)) for number in list(pool.segments.starts))


async def settle(pool: Pool) -> None:
    """Let the background come to an end."""
    for _ in range(200):
        jobs = list(pool.walks.jobs.values())
        if all(job.done() for job in jobs) and not pool.wake.is_set():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(pool.walks.jobs)


async def until_healthy(pool: Pool) -> None:
    for _ in range(500):
        if all(member.state is MemberState.HEALTHY for member in pool.members):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(pool.status().members)


# --- scrub


async def test_a_scrub_of_what_is_good() -> None:
    disks, pool, _ = await filled()
    before = [image(disk, 128 << 10, 2 * MIB) for disk in disks]
    seen: list[tuple[int, int]] = []
    report = await pool.scrub(progress=lambda done, total: seen.append((done, total)))
    assert report.finished
    assert report.stripes == stripes(pool) >= 32
    assert (report.bad, report.healed, report.lost, report.lost_places) == ({}, 0, 0, [])
    assert report.seconds > 0
    assert seen == [(number, 22) for number in range(1, 23)]
    assert [image(disk, 128 << 10, 2 * MIB) for disk in disks] == before
    assert pool.scrub_state == (NONE32, report.stripes, 0, 0)
    assert report.to_json()["stripes"] == report.stripes
    await pool.close()


async def test_a_scrub_heals_and_says_where() -> None:
    disks, pool, data = await filled()
    before = [image(disk, 128 << 10, 2 * MIB) for disk in disks]
    random = Random(2)
    hit: dict[int, int] = {}
    for number in list(pool.segments.starts):
        for place in pool.segments.stripes(number):
            for role in random.sample(range(4), random.randrange(3)):
                flip(disks[role], strip_offset(pool.geometry, place) + random.randrange(place.pages * BLOCK))
                hit[role] = hit.get(role, 0) + 1
    report = await pool.scrub()
    assert report.bad == hit
    assert report.healed == sum(hit.values())
    assert [image(disk, 128 << 10, 2 * MIB) for disk in disks] == before
    assert not any(disk.unsynced() for disk in disks), "what is called healed is synced"
    assert [pool.members[role].errors for role in range(4)] == [hit.get(role, 0) for role in range(4)]
    again = await pool.scrub()
    assert (again.bad, again.healed) == ({}, 0)
    assert await read_volume(pool.namespaces[1], 0, MIB) == data
    await pool.close()


async def test_what_cannot_be_healed_is_counted_and_placed() -> None:
    disks, pool, _ = await filled()
    lost = []
    for block in (0, 100, 200):
        place = place_of(pool, pool.namespaces[1], block)
        lost.append((place.segment, place.page))
        for role in (0, 1, 2):
            put(disks[role], strip_offset(pool.geometry, place), bytes(BLOCK))
    report = await pool.scrub()
    assert report.lost == 3
    assert report.lost_places == lost
    assert report.bad == {0: 3, 1: 3, 2: 3}
    assert pool.scrub_state == (NONE32, report.stripes, 0, 3)
    assert pool.status().scrub.lost == 3
    assert not pool.log.fault
    await pool.close()


async def test_a_missing_member_is_not_called_bad() -> None:
    disks, pool, _ = await filled()
    await pool.close()
    pool = await open_pool(disks[1:])
    report = await pool.scrub()
    assert (report.bad, report.healed, report.lost) == ({}, 0, 0)
    assert report.finished
    await pool.close()


async def stop_in_the_middle(pool: Pool, after: int) -> ScrubReport:
    def stop(done: int, total: int) -> None:
        if done == after and pool.walks.walk is not None:
            pool.walks.walk.stopped = True

    return await pool.scrub(progress=stop)


async def test_a_scrub_goes_on_where_it_stopped_and_remembers_what_it_found() -> None:
    disks, pool, _ = await filled()
    place = place_of(pool, pool.namespaces[1], 0)
    flip(disks[0], strip_offset(pool.geometry, place) + 100)
    report = await stop_in_the_middle(pool, 5)
    assert not report.finished
    assert pool.scrub_state[0] == 5
    assert 0 < report.stripes < stripes(pool)
    seen: list[int] = []
    whole = await pool.scrub(progress=lambda done, total: seen.append(done))
    assert seen == list(range(6, 23))
    assert whole.finished
    assert whole.stripes == stripes(pool), "of both parts"
    assert whole.healed == 1
    assert pool.scrub_state == (NONE32, whole.stripes, 1, 0)
    await pool.close()


async def test_a_scrub_goes_on_by_itself_when_the_pool_is_opened() -> None:
    disks, pool, _ = await filled()
    total = stripes(pool)
    place = place_of(pool, pool.namespaces[1], 0)
    flip(disks[0], strip_offset(pool.geometry, place) + 100)
    pool.start_scrub(rate=1e6)
    while pool.walks.walk is None or pool.walks.walk.report.stripes < 6:
        await asyncio.sleep(0)
    assert pool.status().scrub.running
    progress = pool.status().scrub.progress
    assert progress is not None
    assert 0 <= progress < 1
    await pool.close()
    assert pool.superblock.scrub_cursor < 22
    pool = await open_pool(disks)
    assert pool.status().scrub.progress is not None
    await settle(pool)
    status = pool.status().scrub
    assert (status.running, status.progress, status.healed, status.lost) == (False, None, 1, 0)
    assert status.stripes >= total
    await pool.close()
    pool = await open_pool(disks)
    assert not pool.walks.jobs, "one that is finished is not begun again"
    assert pool.status().scrub.stripes == status.stripes
    await pool.close()


async def test_a_crash_costs_a_scrub_little() -> None:
    """Its place is in the superblock every 16 segments."""
    _, pool, _ = await filled()
    random = Random(4)
    for at in range(0, MIB, 65536):
        await write_volume(pool.namespaces[1], at, random.randbytes(65536))
    await pool.commit()
    places: list[int] = []
    save = pool.save_superblock

    async def noted(**changes: object) -> None:
        await save(**changes)
        places.append(pool.superblock.scrub_cursor)

    pool.save_superblock = noted  # type: ignore[method-assign]
    await pool.scrub()
    assert places[-1] == NONE32
    if sum(1 for generation in pool.segments.generation if generation) >= 16:
        assert 16 <= places[0] <= 22
    await pool.close()


async def test_the_throttle() -> None:
    _, pool, _ = await filled()
    pages = sum(place.pages for number in list(pool.segments.starts) for place in pool.segments.stripes(number))
    seconds = 0.2
    began = time.monotonic()
    await pool.scrub(rate=pages * BLOCK / seconds)
    assert seconds * 0.9 < time.monotonic() - began < seconds * 10
    await pool.close()


async def test_one_walk_at_a_time() -> None:
    _, pool, _ = await filled()
    task = asyncio.ensure_future(pool.scrub(rate=1e7))
    await asyncio.sleep(0)
    with pytest.raises(UsageError, match="a scrub or rebuild is running already"):
        await pool.scrub()
    await task
    pool.start_scrub()
    pool.start_scrub()
    await settle(pool)
    await pool.close()


async def test_a_scrub_while_others_write_and_clean() -> None:
    _, pool, data = await filled()
    volume, model, random = pool.namespaces[1], bytearray(data), Random(3)
    reports: list[ScrubReport] = []

    async def scrubs() -> None:
        reports.extend([await pool.scrub() for _ in range(6)])

    async def writes() -> None:
        for step in range(150):
            block, count = random.randrange(224), random.choice((1, 8, 32))
            piece = random.randbytes(count * BLOCK)
            await write_volume(volume, block * BLOCK, piece)
            model[block * BLOCK : (block + count) * BLOCK] = piece
            if step % 10 == 0:
                await volume.flush()
            await asyncio.sleep(0)

    await asyncio.gather(scrubs(), writes())
    assert pool.cleaner.cleaned
    for report in reports:
        assert (report.bad, report.lost, report.finished) == ({}, 0, True), "a stripe on its way is not a bad one"
    assert await read_volume(volume, 0, MIB) == model
    await pool.close()


async def test_a_scrub_of_a_stopped_pool() -> None:
    _, pool, _ = await filled()
    pool.log.fail("on purpose")
    with pytest.raises(WriteFault, match="on purpose"):
        await pool.scrub()
    pool.start_scrub()
    await settle(pool)
    assert "on purpose" in pool.background_error
    with pytest.raises(WriteFault):
        await pool.close()


# --- rebuild


@pytest.mark.parametrize("roles", [(0,), (3,), *combinations(range(4), 2)])
async def test_replaced_members_are_filled(roles: tuple[int, ...]) -> None:
    """Then any two others may go."""
    disks, pool, data = await filled()
    for role in roles:
        (fresh,) = new_disks(1, first=10 + role)
        await pool.replace(role, fresh)
        disks[role] = fresh
    assert [member.state is MemberState.REBUILDING for member in pool.members] == [role in roles for role in range(4)]
    assert pool.health.degraded
    report = await pool.rebuild()
    assert report.finished
    assert report.healed >= 30
    assert not pool.health.degraded
    assert all(member.state is MemberState.HEALTHY for member in pool.members)
    await pool.close()
    others = [disk for role, disk in enumerate(disks) if role not in roles][: 4 - 2 - len(roles)]
    pool = await open_pool([*(disks[role] for role in roles), *others])
    assert await read_volume(pool.namespaces[1], 0, MIB) == data
    await pool.close()


async def test_a_rebuild_of_nothing() -> None:
    _, pool, _ = await filled()
    report = await pool.rebuild()
    assert (report.finished, report.stripes) == (True, 0)
    await pool.close()


async def test_a_rebuild_goes_on_where_it_stopped() -> None:
    """Crash case 9: the next segment to rebuild is saved after a sync of the member."""
    disks, pool, data = await filled()
    (fresh,) = new_disks(1, first=9)
    await pool.replace(1, fresh)
    disks[1] = fresh

    def stop(done: int, total: int) -> None:
        if done == 5 and pool.walks.walk is not None:
            pool.walks.walk.stopped = True

    report = await pool.rebuild(progress=stop)
    assert not report.finished
    assert pool.members[1].cursor == 5
    assert pool.superblock.members[1].cursor == 5
    progress = pool.status().members[1].progress
    assert progress == 5 / 22
    await pool.close()
    pool = await open_pool(disks)
    assert pool.members[1].state is MemberState.REBUILDING
    await until_healthy(pool)
    await settle(pool)
    healed = await pool.scrub()
    assert healed.bad == {}, "all of it is there"
    await pool.close()
    pool = await open_pool(disks[:2])
    assert await read_volume(pool.namespaces[1], 0, MIB) == data
    await pool.close()


async def test_a_member_being_rebuilt_gets_what_is_written_meanwhile() -> None:
    disks, pool, data = await filled()
    (fresh,) = new_disks(1, first=9)
    await pool.replace(2, fresh)
    disks[2] = fresh
    volume, model, random = pool.namespaces[1], bytearray(data), Random(3)

    async def writes() -> None:
        for _ in range(120):
            block = random.randrange(248)
            piece = random.randbytes(8 * BLOCK)
            await write_volume(volume, block * BLOCK, piece)
            model[block * BLOCK : (block + 8) * BLOCK] = piece
            await asyncio.sleep(0)

    await asyncio.gather(pool.rebuild(), writes())
    await volume.flush()
    assert pool.members[2].state is MemberState.HEALTHY
    assert await read_volume(volume, 0, MIB) == model
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks[2:])
    assert await read_volume(pool.namespaces[1], 0, MIB) == model
    await pool.close()


async def test_a_rebuild_interrupts_a_scrub() -> None:
    disks, pool, _ = await filled()
    pool.start_scrub(rate=1e5)
    while pool.walks.walk is None or pool.walks.walk.report.stripes < 2:
        await asyncio.sleep(0)
    (fresh,) = new_disks(1, first=9)
    await pool.replace(0, fresh)
    pool.start_rebuild()
    await until_healthy(pool)
    assert pool.scrub_state[0] != NONE32, "it goes on the next time"
    await pool.close()
    assert disks


async def test_a_member_that_fails_in_its_rebuild_is_out() -> None:
    disks, pool, data = await filled()
    (fresh,) = new_disks(1, first=9)
    await pool.replace(1, fresh)
    fresh.fail("write", nth=6)
    report = await pool.rebuild()
    assert pool.members[1].state is MemberState.OUT
    assert report.finished
    assert not pool.log.fault
    assert await read_volume(pool.namespaces[1], 0, MIB) == data
    await pool.close()
    assert disks


async def test_another_member_that_goes_bad_in_a_rebuild() -> None:
    """Raid6: two at once are what it is for."""
    disks, pool, data = await filled()
    (fresh,) = new_disks(1, first=9)
    await pool.replace(1, fresh)
    disks[3].fail("read", nth=4, times=10_000)
    report = await pool.rebuild()
    assert report.finished
    assert not report.lost
    assert pool.members[1].state is MemberState.HEALTHY
    disks[3].fail("read")
    await pool.scrub()
    assert await read_volume(pool.namespaces[1], 0, MIB) == data
    await pool.close()


async def test_a_second_replacement_begins_again() -> None:
    disks, pool, data = await filled()
    fresh = new_disks(2, first=9)
    await pool.replace(1, fresh[0])
    await stop_rebuild(pool, 5)
    assert pool.members[1].cursor == 5
    await pool.replace(2, fresh[1])
    assert [pool.members[role].cursor for role in (1, 2)] == [0, 0]
    report = await pool.rebuild()
    assert report.finished
    await pool.close()
    pool = await open_pool(fresh)
    assert await read_volume(pool.namespaces[1], 0, MIB) == data
    await pool.close()
    assert disks


async def stop_rebuild(pool: Pool, after: int) -> None:
    def stop(done: int, total: int) -> None:
        if done == after and pool.walks.walk is not None:
            pool.walks.walk.stopped = True

    await pool.rebuild(progress=stop)
