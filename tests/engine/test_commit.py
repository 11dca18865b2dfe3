"""Commits of the map: what is written, what is freed, that counts stay right, and which roots are believed."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any
from uuid import UUID

import pytest

from nvmeof.engine.commit import BadRootError, decode_root, encode_root
from nvmeof.engine.layout import Kind, address_of, decode_superblock
from nvmeof.engine.pool import Pool
from nvmeof.engine.record import content_of
from nvmeof.errors import WriteFault
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .pools import NamedDisk, check_counts, image, new_disks, new_pool, open_pool

BLOCK = 4096
ROOT: dict[str, Any] = {
    "namespaces": [
        {
            "id": 3, "nsid": 1, "uuid": "0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77", "size": 1 << 20, "block_size": 512,
            "codec": "zstd", "level": 3, "planes": 2, "key_id": 7, "write_cache": False, "chunks": [0, 1 << 40],
        }
    ],
    "segments": [5 << 39],
    "next": 4,
}  # fmt: skip


async def noise(pool: Pool, seed: int, count: int = 40) -> None:
    volume, random = pool.namespaces[1], Random(seed)
    for _ in range(count):
        blocks = random.choice((1, 3, 16))
        at = random.randrange(256 - blocks) * BLOCK
        if random.random() < 0.2:
            await volume.deallocate([(at, blocks * BLOCK)])
        else:
            await write_volume(volume, at, random.randbytes(blocks * BLOCK))


def superblocks(disk: NamedDisk, member_bytes: int) -> list[int]:
    """Generations in the head ring and in the tail ring."""
    content, found = image(disk), []
    for area in (0, member_bytes - (128 << 10)):
        ring = [content[area + 65536 + slot * 4096 :][:4096] for slot in range(8)]
        decoded = [superblock for page in ring if (superblock := decode_superblock(page)) is not None]
        found.append(max(superblock.generation for superblock in decoded))
    return found


async def test_a_commit_is_on_every_member_at_both_ends() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    await noise(pool, 1)
    await pool.commit()
    generation = pool.superblock.generation
    assert pool.superblock.root == pool.committer.root
    for disk in disks:
        assert superblocks(disk, pool.geometry.member_bytes) == [generation, generation]
        assert not disk.unsynced()
    header, record = await pool.reader.record(pool.committer.root, Kind.ROOT, 0, 0)
    assert content_of(record, header) == encode_root(pool, list(pool.committer.tables))
    await pool.close()


async def test_only_what_changed_is_written() -> None:
    pool = await new_pool(new_disks(4), size=8 << 20)
    volume = pool.namespaces[1]
    for page in range(4):
        await write_volume(volume, page * 512 * BLOCK, b"x" * BLOCK)
    await pool.commit()
    before = volume.map.table.tolist()
    assert all(before)
    await write_volume(volume, 2 * 512 * BLOCK, b"y" * BLOCK)
    await pool.commit()
    after = volume.map.table.tolist()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
    chunk = volume.map.chunks[0]
    await pool.commit()
    assert volume.map.table.tolist() == after
    assert volume.map.chunks[0] == chunk
    await pool.close()


async def test_a_page_of_zeros_has_no_record() -> None:
    pool = await new_pool(new_disks(4))
    volume = pool.namespaces[1]
    await write_volume(volume, 0, b"x" * BLOCK)
    await pool.commit()
    assert volume.map.table[0]
    await volume.deallocate([(0, volume.size)])
    await pool.commit()
    assert volume.map.table[0] == 0
    check_counts(pool)
    await pool.close()


async def test_counts_are_right_whatever_happens() -> None:
    """Live blocks and metadata of every segment, recounted after each commit; namespaces come, go, grow, shrink."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none")
    random = Random(2)
    for step in range(30):
        await noise(pool, step, 12)
        choice = random.randrange(5)
        if choice == 0 and len(pool.namespaces) < 4:
            volume = await pool.create_namespace(random.randrange(1, 900) * BLOCK)
            await write_volume(volume, 0, random.randbytes(BLOCK))
        elif choice == 1 and len(pool.namespaces) > 1:
            await pool.delete_namespace(max(pool.namespaces))
        elif choice == 2 and len(pool.namespaces) > 1:
            await pool.resize_namespace(max(pool.namespaces), random.randrange(1, 900) * BLOCK)
        elif choice == 3:
            await pool.close()
            pool = await open_pool(disks)
        else:
            await pool.commit()
        check_counts(pool)
    await pool.close()


async def test_segments_come_back() -> None:
    """For ever: what a commit leaves behind the next one frees."""
    pool = await new_pool(new_disks(4))
    free = set()
    for _ in range(100):
        await pool.commit()
        free.add(len(pool.segments.free))
    assert min(free) >= 16
    check_counts(pool)
    await pool.close()


async def test_a_namespace_survives_with_all_its_properties() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, size=0)
    uuid = UUID("0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77")
    await pool.create_namespace(
        3 * BLOCK, nsid=200, block_size=512, codec="lz4", level=9, planes=4, write_cache=False, uuid=uuid
    )
    await pool.create_namespace(1 << 36)
    info = {nsid: volume.info for nsid, volume in pool.namespaces.items()}
    assert list(info) == [200, 1]
    assert (info[200].identifier, info[1].identifier) == (1, 2)
    await pool.close()
    pool = await open_pool(disks)
    assert {nsid: volume.info for nsid, volume in pool.namespaces.items()} == info
    volume = pool.namespaces[200]
    assert (volume.uuid, volume.block_size, volume.size, volume.write_cache) == (uuid, 512, 3 * BLOCK, False)
    await pool.delete_namespace(200)
    assert (await pool.create_namespace(BLOCK)).info.identifier == 3, "a number is never used twice"
    await pool.close()


async def test_what_is_written_while_a_commit_is_on() -> None:
    """The map is copied as of the head; later changes are the next commit's, and nothing is lost meanwhile."""
    disks = new_disks(4)
    pool = await new_pool(disks, codec="none", size=3 << 20)
    volume = pool.namespaces[1]
    model = bytearray(volume.size)
    random = Random(3)
    put_pages = pool.committer._put_pages

    async def slowly(batch: Any) -> None:
        for _ in range(random.randrange(20)):
            await asyncio.sleep(0)
        await put_pages(batch)
        for _ in range(random.randrange(20)):
            await asyncio.sleep(0)

    async def change() -> None:
        for _ in range(6):
            block, count = random.randrange(700), random.randrange(1, 30)
            if random.random() < 0.5:
                data = random.randbytes(count * BLOCK)
                await write_volume(volume, block * BLOCK, data)
            else:
                data = bytes(count * BLOCK)
                await volume.deallocate([(block * BLOCK, count * BLOCK)])
            model[block * BLOCK : (block + count) * BLOCK] = data
            await asyncio.sleep(0)

    pool.committer._put_pages = slowly  # type: ignore[method-assign]
    for _ in range(25):
        await change()
        await asyncio.gather(pool.commit(), change())
        check_counts(pool)
    assert await read_volume(volume, 0, volume.size) == model
    await volume.flush()
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks)
    assert await read_volume(pool.namespaces[1], 0, volume.size) == model
    await pool.close()


async def test_a_commit_that_fails_stops_the_pool() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    await noise(pool, 1)
    for disk in disks[:3]:
        disk.fail("sync", times=10)
    with pytest.raises(WriteFault, match="3 of 4 members are lost"):
        await pool.commit()
    with pytest.raises(WriteFault):
        await pool.commit()
    with pytest.raises(WriteFault):
        await pool.close()


async def test_a_commit_that_breaks_in_the_middle_stops_the_pool() -> None:
    pool = await new_pool(new_disks(4))

    async def broken(batch: object) -> None:
        raise RuntimeError("in the middle")

    await noise(pool, 1)
    pool.committer._put_pages = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        await pool.commit()
    with pytest.raises(WriteFault, match="a commit of the map failed: RuntimeError"):
        await pool.flush()
    with pytest.raises(WriteFault):
        await pool.close()


async def test_a_member_that_fails_in_a_commit_is_out_in_the_superblock() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks)
    for nth in range(1, 9):
        await noise(pool, nth, 3)
        disks[1].fail("write", nth=nth)
        await pool.commit()
        if pool.members[1].state.name == "OUT":
            break
    assert pool.superblock.members[1].state == 1
    assert address_of(pool.superblock.root).segment < 22
    await pool.close()


# --- the root


def changed(path: str, value: object) -> bytes:
    content = json.loads(json.dumps(ROOT))
    at = content
    *names, last = path.split(".")
    for name in names:
        at = at[int(name) if name.isdigit() else name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return json.dumps(content).encode()


def test_a_root_is_understood_for_ever() -> None:
    ((info, chunks),), segments, following = decode_root(json.dumps(ROOT).encode())
    assert (info.identifier, info.nsid, info.size, info.block_size) == (3, 1, 1 << 20, 512)
    assert (info.codec, info.level, info.planes, info.key_id, info.write_cache) == ("zstd", 3, 2, 7, False)
    assert info.uuid == UUID(ROOT["namespaces"][0]["uuid"])
    assert (chunks, segments, following) == ([0, 1 << 40], [5 << 39], 4)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b"{}", b"7", b"{" * 100_000, b"[" * 100_000, b"\xff\xfe",
        *(changed(name, None) for name in ROOT),
        *(changed(f"namespaces.0.{name}", None) for name in ROOT["namespaces"][0]),
        changed("namespaces", 5), changed("namespaces", [5]), changed("segments", 5), changed("segments", ["x"]),
        changed("segments", [[]]), changed("next", 0), changed("next", "4"), changed("next", 1 << 32),
        changed("namespaces.0.id", 0), changed("namespaces.0.id", 1 << 32), changed("namespaces.0.id", True),
        changed("namespaces.0.nsid", 0), changed("namespaces.0.nsid", 1.0), changed("namespaces.0.uuid", "x"),
        changed("namespaces.0.uuid", 5), changed("namespaces.0.size", 0), changed("namespaces.0.size", 1 << 60),
        changed("namespaces.0.size", 513), changed("namespaces.0.size", -512),
        changed("namespaces.0.block_size", 1024), changed("namespaces.0.block_size", "512"),
        changed("namespaces.0.level", 1000), changed("namespaces.0.planes", -1), changed("namespaces.0.planes", 9),
        changed("namespaces.0.key_id", 1 << 16), changed("namespaces.0.key_id", -1),
        changed("namespaces.0.chunks", 5), changed("namespaces.0.chunks", [-1]),
        changed("namespaces.0.chunks", [1 << 64]), changed("namespaces.0.chunks", ["1"]),
    ],
    ids=lambda content: content[:50].decode(errors="replace"),
)  # fmt: skip
def test_a_root_that_makes_no_sense(content: bytes) -> None:
    with pytest.raises(BadRootError, match="the root makes no sense"):
        decode_root(content)
