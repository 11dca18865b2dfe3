"""What a pool says of itself: in words, in numbers, as JSON."""

from __future__ import annotations

import json
from random import Random

import pytest

from nvmeof.engine.pool_status import PoolStatus
from nvmeof.errors import WriteFault
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .pools import MEMBER_BYTES, SEGMENT_BYTES, GivenKey, flip, new_disks, new_pool, open_pool, place_of, strip_offset

BLOCK = 4096


async def test_a_healthy_pool() -> None:
    pool = await new_pool(new_disks(4), keys=GivenKey(1), codec="zstd", level=3, planes=2, block_size=512)
    await write_volume(pool.namespaces[1], 0, b"x" * 5 * BLOCK)
    status = pool.status()
    assert (status.uuid, status.raid, status.data, status.parity) == (str(pool.uuid), "raid6", 2, 2)
    assert (status.encrypted, status.state, status.reason, status.background_error) == (True, "healthy", "", "")
    assert (status.segments, status.segment_bytes, status.member_bytes) == (22, SEGMENT_BYTES, MEMBER_BYTES)
    assert status.segments_free == len(pool.segments.free) == 20
    assert (status.capacity, status.used) == (pool.capacity, 2 * 2 * SEGMENT_BYTES)
    assert (status.media_errors, status.errors) == (0, [])
    assert status.incarnation == pool.incarnation.hex()
    assert [(member.role, member.name, member.state, member.errors) for member in status.members] == [
        (role, f"disk-{role}", "healthy", 0) for role in range(4)
    ]
    assert all((member.reason, member.progress) == ("", None) for member in status.members)
    (namespace,) = status.namespaces
    assert (namespace.nsid, namespace.size, namespace.allocated, namespace.block_size) == (1, 1 << 20, 5 * BLOCK, 512)
    assert (namespace.codec, namespace.level, namespace.planes) == ("zstd", 3, 2)
    assert (namespace.encrypted, namespace.write_cache) == (True, True)
    assert namespace.uuid == str(pool.namespaces[1].uuid)
    assert (status.scrub.running, status.scrub.progress, status.scrub.stripes) == (False, None, 0)
    assert status.opened["clean"] is True
    await pool.close()


@pytest.mark.parametrize(("raid", "members"), [("none", 2), ("raid5", 3), ("raid6", 4)])
async def test_it_is_json(raid: str, members: int) -> None:
    disks = new_disks(members)
    pool = await new_pool(disks, raid=raid)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, Random(1).randbytes(BLOCK))
    await volume.flush()
    if raid != "none":
        place = place_of(pool, volume, 0)
        flip(disks[place.sequence % members], strip_offset(pool.geometry, place) + 200)
        await pool.scrub()
    status = json.loads(json.dumps(pool.status().to_json()))
    assert set(status) == set(PoolStatus.__dataclass_fields__)
    assert status["raid"] == raid
    assert len(status["members"]) == members
    assert len(status["errors"]) == (raid != "none")
    await pool.close()


async def test_a_degraded_pool() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    (spare,) = new_disks(1, first=9)
    disks[1].fail("sync")
    await write_volume(pool.namespaces[1], 0, b"x" * BLOCK)
    await pool.flush()
    status = pool.status()
    assert status.state == "degraded"
    assert status.reason.startswith("disk-1: sync failed: Input/output error")
    assert (status.members[1].state, status.members[1].errors) == ("out", 1)
    health = pool.namespaces[1].health
    assert (health.degraded, health.read_only, health.spare_percent) == (True, False, 50)
    await pool.replace(1, spare)
    status = pool.status()
    assert (status.members[1].name, status.members[1].state, status.members[1].progress) == ("disk-9", "rebuilding", 0)
    seen: list[float | None] = []
    await pool.rebuild(progress=lambda done, total: seen.append(pool.status().members[1].progress))
    assert seen == [number / 22 for number in range(1, 23)]
    status = pool.status()
    assert (status.state, status.reason, status.members[1].progress) == ("healthy", "", None)
    await pool.close()


async def test_a_faulted_pool() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    await write_volume(pool.namespaces[1], 0, b"x" * BLOCK)
    for disk in disks[:3]:
        disk.fail("write", times=10)
    with pytest.raises(WriteFault):
        await pool.flush()
    status = pool.status()
    assert status.state == "faulted"
    assert status.reason.startswith("3 of 4 members are lost, 2 may be")
    health = pool.namespaces[1].health
    assert (health.read_only, health.degraded, health.spare_percent) == (True, True, 0)
    with pytest.raises(WriteFault):
        await pool.close()


async def test_spares_have_no_role() -> None:
    pool = await new_pool(new_disks(4))
    (spare,) = new_disks(1, first=9)
    await pool.add_spare(spare)
    last = pool.status().members[-1]
    assert (last.role, last.name, last.state) == (None, "disk-9", "spare")
    await pool.close()


async def test_space() -> None:
    pool = await new_pool(new_disks(4), size=64 << 20, codec="none")
    volume = pool.namespaces[1]
    before = pool.status()
    percent = volume.health.used_percent
    for at in range(0, 1 << 20, 65536):
        await write_volume(volume, at, Random(at).randbytes(65536))
    after = pool.status()
    assert after.used > before.used + (1 << 20) - SEGMENT_BYTES
    assert after.segments_free < before.segments_free
    assert volume.health.used_percent > percent + 20
    assert volume.allocated == 1 << 20
    assert after.used <= after.capacity
    await volume.deallocate([(0, 1 << 20)])
    for _ in range(3):
        await pool.commit()
    assert pool.status().used <= before.used + 2 * SEGMENT_BYTES
    await pool.close()


async def test_errors_are_told_with_place_and_healing() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    volume = pool.namespaces[1]
    await write_volume(volume, 0, Random(1).randbytes(BLOCK))
    await volume.flush()
    place = place_of(pool, volume, 0)
    role = place.sequence % 4
    flip(disks[role], strip_offset(pool.geometry, place) + 100)
    pool.decoded.clear()
    await read_volume(volume, 0, BLOCK)
    (error,) = pool.status().errors
    assert (error["role"], error["segment"], error["page"], error["healed"]) == (role, place.segment, place.page, True)
    assert error["time"] > 1e9
    assert pool.status().members[role].errors == 1
    assert pool.health.media_errors == pool.status().media_errors == 1
    await pool.close()
    pool = await open_pool(disks)
    status = pool.status()
    assert (status.media_errors, status.members[role].errors, status.errors) == (1, 1, [])
    await pool.close()


async def test_a_running_scrub() -> None:
    pool = await new_pool(new_disks(4))
    await write_volume(pool.namespaces[1], 0, Random(1).randbytes(1 << 20))
    seen: list[float | None] = []
    await pool.scrub(progress=lambda done, total: seen.append(pool.status().scrub.progress))
    status = pool.status().scrub
    assert (status.running, status.progress, status.lost) == (False, None, 0)
    assert status.stripes > 0
    assert len(seen) == 22
    await pool.close()
