"""The key table on the members: rotation, crypto-erase, members that come back, and no secret anywhere in the clear."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from random import Random

import pytest

from nvmeof.engine import keyring as module
from nvmeof.engine.creation import geometry_for
from nvmeof.engine.disk import Disk
from nvmeof.engine.keyring import Keyring
from nvmeof.engine.layout import AREA_BYTES, KEYS_OFFSET, Geometry, MemberState
from nvmeof.engine.member import read_keys
from nvmeof.engine.pool import Pool
from nvmeof.errors import UsageError
from nvmeof.keys.sources import KeyFile, Passphrase
from nvmeof.keys.table import KEY_ID_MAX, KEYS_MAX, KeyTable
from nvmeof.testing.volume_conformance import read_volume, write_volume

from .pools import MEMBER_BYTES, SEGMENT_BYTES, GivenKey, NamedDisk, flip, image, new_disks, new_pool, open_pool, put

BLOCK = 4096
SECRET = b"the quick brown fox jumps over the lazy dog. " * 500
HEADS = (KEYS_OFFSET, MEMBER_BYTES - AREA_BYTES + KEYS_OFFSET)


@pytest.fixture
def data_keys(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The data keys that are made, in order."""
    made: list[bytes] = []

    def new_key() -> bytes:
        made.append(Random(f"key {len(made)}").randbytes(64))
        return made[-1]

    monkeypatch.setattr(module, "new_data_key", new_key)
    return made


def tables(disks: Iterable[Disk], geometry: Geometry) -> list[tuple[int, KeyTable] | None]:
    return [KeyTable.decode(content) for disk in disks for content in read_keys(disk, geometry)]


def wrapped(pool: Pool, key_id: int) -> bytes:
    """A key as it stands in the table on media: base64 of AES key wrap."""
    assert pool.keyring is not None
    found = re.search(rb'"%d":"([^"]+)"' % key_id, pool.keyring.table.encode(1))
    assert found is not None
    return found[1]


async def test_the_table_is_at_both_ends_of_every_member() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    assert pool.keyring is not None
    found = tables(disks, pool.geometry)
    assert len(found) == 8
    for each in found:
        assert each is not None
        assert each[0] == pool.keyring.generation
        assert each[1].key_ids == (1,)
    assert not any(disk.unsynced() for disk in disks)
    for disk in disks:
        assert [image(disk, at, 8) for at in HEADS] == [b"NVMEOFKT"] * 2
    await pool.close()


async def test_any_one_copy_is_enough() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    await write_volume(pool.namespaces[1], 0, SECRET[: 2 * BLOCK])
    await pool.close()
    for disk in disks:
        disk.reopen()
        for at in HEADS:
            if (disk, at) != (disks[2], HEADS[1]):
                flip(disk, at + 40)
    pool = await open_pool(disks, GivenKey(1))
    assert await read_volume(pool.namespaces[1], 0, 2 * BLOCK) == SECRET[: 2 * BLOCK]
    await pool.close()
    for disk in disks:
        disk.reopen()
        for at in HEADS:
            put(disk, at, bytes(32768))
    with pytest.raises(UsageError, match="no member has a key table that verifies; put an export of it back"):
        await open_pool(disks, GivenKey(1))


@pytest.mark.parametrize("passphrase", [False, True])
async def test_rotation(passphrase: bool, tmp_path: Path) -> None:
    """The old key opens nothing any more, the new one everything; data is not written again."""
    disks = new_disks(4)
    old = Passphrase("one", n=16) if passphrase else KeyFile.create(tmp_path / "old")
    new = Passphrase("two", n=16) if passphrase else KeyFile.create(tmp_path / "new")
    pool = await new_pool(disks, keys=old)
    await write_volume(pool.namespaces[1], 0, SECRET[: 4 * BLOCK])
    await pool.flush()
    before = wrapped(pool, 1)
    content = [image(disk, AREA_BYTES, MEMBER_BYTES - 2 * AREA_BYTES) for disk in disks]
    await pool.rotate_key(new)
    assert [image(disk, AREA_BYTES, MEMBER_BYTES - 2 * AREA_BYTES) for disk in disks] == content
    assert not any(before in image(disk) for disk in disks), "the key as it was wrapped before"
    await write_volume(pool.namespaces[1], 8 * BLOCK, SECRET[: 4 * BLOCK])
    await pool.close()
    with pytest.raises(UsageError, match="wrong key"):
        await open_pool(disks, old)
    pool = await open_pool(disks, new)
    for at in (0, 8 * BLOCK):
        assert await read_volume(pool.namespaces[1], at, 4 * BLOCK) == SECRET[: 4 * BLOCK]
    await pool.close()


async def test_rotation_between_kinds_of_keys() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    await pool.rotate_key(Passphrase("words", n=16))
    await pool.close()
    with pytest.raises(UsageError, match="wrong key: the given key does not open"):
        await open_pool(disks, GivenKey(1))
    pool = await open_pool(disks, Passphrase("words", n=16))
    await pool.close()


@pytest.mark.parametrize("pair", list(combinations(range(4), 2)))
async def test_members_that_missed_a_rotation_do_not_bring_the_old_key_back(pair: tuple[int, int]) -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    await pool.close()
    pool = await open_pool([disk for role, disk in enumerate(disks) if role not in pair], GivenKey(1))
    await pool.rotate_key(GivenKey(2))
    await pool.close()
    with pytest.raises(UsageError, match="wrong key"):
        await open_pool(disks, GivenKey(1))
    pool = await open_pool(disks, GivenKey(2))
    for role in pair:
        await pool.rejoin(role)
    await pool.rebuild()
    assert {each and each[1].key_ids for each in tables(disks, pool.geometry)} == {(1,)}
    generations = {each[0] for each in tables(disks, pool.geometry) if each}
    assert len(generations) == 1, "the newest is written over the rest"
    await pool.close()
    pool = await open_pool([disks[role] for role in pair], GivenKey(2))
    await pool.close()


async def test_a_crash_anywhere_in_a_rotation_leaves_one_key_that_opens() -> None:
    """Crash case 10: and once it was opened with the new key, the old one is of no use."""
    for operations in range(60):
        disks = new_disks(4)
        pool = await new_pool(disks, keys=GivenKey(1))
        await write_volume(pool.namespaces[1], 0, SECRET[:BLOCK])
        await pool.flush()
        for disk in disks:
            disk.power_off_after(operations // 4 + (disk.seed < operations % 4))
        try:
            await pool.rotate_key(GivenKey(2))
            done = True
        except Exception:
            done = False
        for disk in disks:
            disk.crash([])
        keys = GivenKey(2)
        try:
            pool = await open_pool(disks, keys)
        except UsageError:
            assert not done
            keys = GivenKey(1)
            pool = await open_pool(disks, keys)
        assert await read_volume(pool.namespaces[1], 0, BLOCK) == SECRET[:BLOCK]
        await pool.close()
        if keys.bytes[0] == 2:
            with pytest.raises(UsageError, match="wrong key"):
                await open_pool(disks, GivenKey(1))
        if done:
            break
    assert 3 < operations < 59


async def test_crypto_erase_leaves_no_copy_of_the_key(data_keys: list[bytes]) -> None:
    """Deleting a namespace destroys its key on every member, spares too, whatever happens to its blocks."""
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    volume = await pool.create_namespace(1 << 20)
    (spare,) = new_disks(1, first=8)
    await pool.add_spare(spare)
    await write_volume(volume, 0, SECRET[:BLOCK])
    await pool.commit()
    gone, kept = wrapped(pool, 2), wrapped(pool, 1)
    assert len(data_keys) == 2
    everyone: list[NamedDisk] = [*disks, spare]
    assert all(image(disk).count(gone) == 2 for disk in everyone)
    await pool.delete_namespace(2)
    assert not any(gone in image(disk) for disk in everyone)
    assert all(image(disk).count(kept) == 2 for disk in disks)
    assert not any(disk.unsynced() for disk in disks)
    assert pool.keyring is not None
    with pytest.raises(UsageError, match="destroyed"):
        pool.keyring.key(2)
    await pool.close()
    for disk in everyone:
        disk.crash([])
    pool = await open_pool(everyone, GivenKey(1))
    assert pool.namespaces.keys() == {1}
    assert not any(gone in image(disk) for disk in everyone)
    await pool.close()


async def test_crypto_erase_reaches_a_member_that_is_out_when_it_comes_back() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    await pool.create_namespace(1 << 20)
    gone = wrapped(pool, 2)
    disks[1].fail("sync")
    await write_volume(pool.namespaces[1], 0, SECRET[:BLOCK])
    await pool.flush()
    assert pool.members[1].state is MemberState.OUT
    await pool.delete_namespace(2)
    assert not any(gone in image(disk) for disk in (disks[0], disks[2], disks[3]))
    await pool.rejoin(1)
    assert gone not in image(disks[1])
    await pool.close()


async def test_the_newest_table_counts_and_is_written_over_the_rest() -> None:
    """A crash in the middle of writing it: the older one still has a key that was destroyed."""
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    await pool.create_namespace(1 << 20)
    gone = wrapped(pool, 2)
    older = [image(disk, HEADS[1], 32768) for disk in disks]
    await pool.delete_namespace(2)
    await pool.close()
    for disk, content in zip(disks, older, strict=True):
        put(disk.reopen(), HEADS[1], content)
    assert all(gone in image(disk) for disk in disks)
    pool = await open_pool(disks, GivenKey(1))
    assert pool.keyring is not None
    assert pool.keyring.table.key_ids == (1,)
    assert not any(gone in image(disk) for disk in disks)
    await pool.close()


async def test_an_older_table_that_lacks_a_key_does_not_count() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    older = [image(disk, HEADS[0], 32768) for disk in disks]
    await write_volume(await pool.create_namespace(1 << 20), 0, SECRET[:BLOCK])
    await pool.close()
    for disk, content in zip(disks, older, strict=True):
        put(disk.reopen(), HEADS[0], content)
    pool = await open_pool(disks, GivenKey(1))
    assert await read_volume(pool.namespaces[2], 0, BLOCK) == SECRET[:BLOCK]
    await pool.close()


async def test_a_crash_between_deleting_a_namespace_and_its_key() -> None:
    """The key is of no namespace then; the next opening destroys it."""
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    await pool.create_namespace(1 << 20)
    gone = wrapped(pool, 2)

    async def never() -> None:
        return None

    pool._drop_orphaned_keys = never  # type: ignore[method-assign]
    await pool.delete_namespace(2)
    assert all(gone in image(disk) for disk in disks)
    for disk in disks:
        disk.crash([])
    pool = await open_pool(disks, GivenKey(1))
    assert not any(gone in image(disk) for disk in disks)
    await pool.close()


async def test_nothing_secret_is_on_any_member(data_keys: list[bytes]) -> None:
    """Neither data nor names of it, nor a key; searched in the raw bytes of every disk."""
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(0x5A), codec="none", size=2 << 20)
    volume = pool.namespaces[1]
    other = await pool.create_namespace(1 << 20, codec="auto", block_size=512)
    marker = bytes(range(200, 232))
    random = Random(1)
    for _ in range(60):
        block = random.randrange(256)
        await write_volume(volume, block * BLOCK, (marker + SECRET)[:BLOCK])
        await write_volume(other, random.randrange(2048) * 512, (marker * 16)[:512])
    await volume.flush()
    await pool.commit()
    await pool.cleaner._round()
    await pool.close()
    for disk in disks:
        raw = image(disk.reopen())
        assert marker[:16] not in raw
        assert SECRET[:16] not in raw
        assert b"brown fox" not in raw
        assert GivenKey(0x5A).bytes[:16] not in raw
        for key in data_keys:
            for at in (0, 16, 32, 48):
                assert key[at : at + 16] not in raw
    plain = new_disks(4)
    pool = await new_pool(plain, codec="none")
    await write_volume(pool.namespaces[1], 0, (marker + SECRET)[:BLOCK])
    await pool.flush()
    assert any(marker in image(disk) for disk in plain), "the search finds what is there"
    await pool.close()


async def test_the_same_data_is_never_the_same_on_media() -> None:
    """Each write has a tweak of its own, and each namespace a key."""
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1), codec="none")
    await pool.create_namespace(1 << 20, codec="none")
    sealed = set()
    for volume in (*pool.namespaces.values(), pool.namespaces[1]):
        await write_volume(volume, 0, SECRET[:BLOCK])
        _, record = await pool.reader.record(volume.map.entries[0], 1, volume.info.identifier, 0)
        sealed.add(bytes(record[64:80]))
    assert len(sealed) == 3
    await pool.close()


async def test_a_namespace_may_do_without_encryption() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    volume = await pool.create_namespace(1 << 20, encrypted=False, codec="none")
    await write_volume(volume, 0, SECRET[:BLOCK])
    await pool.flush()
    assert any(SECRET[:100] in image(disk) for disk in disks)
    assert [each.encrypted for each in pool.status().namespaces] == [True, False]
    await pool.close()


async def test_pools_without_keys() -> None:
    pool = await new_pool(new_disks(4))
    with pytest.raises(UsageError, match="the pool has no keys: it was created without encryption"):
        await pool.create_namespace(1 << 20, encrypted=True)
    with pytest.raises(UsageError, match="the pool is not encrypted"):
        await pool.rotate_key(GivenKey(1))
    with pytest.raises(UsageError, match="the pool is not encrypted"):
        pool.export_keys()
    await pool.close()


async def test_an_export_opens_a_pool_whose_tables_are_lost() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    await write_volume(pool.namespaces[1], 0, SECRET[:BLOCK])
    exported = pool.export_keys()
    uuid = pool.uuid
    await pool.close()
    identity, table = KeyTable.from_export(exported)
    assert identity == uuid.bytes
    for disk in disks:
        disk.reopen()
        for at in HEADS:
            put(disk, at, bytes(32768))
    put(disks[0], HEADS[0], table.encode(1))
    pool = await open_pool(disks, GivenKey(1))
    assert await read_volume(pool.namespaces[1], 0, BLOCK) == SECRET[:BLOCK]
    await pool.close()


async def test_one_member_failing_while_keys_are_written_is_out() -> None:
    disks = new_disks(4)
    pool = await new_pool(disks, keys=GivenKey(1))
    disks[2].fail("write")
    await pool.create_namespace(1 << 20)
    assert pool.members[2].state is MemberState.OUT
    disks[0].fail("sync")
    await pool.rotate_key(GivenKey(2))
    assert pool.members[0].state is MemberState.OUT
    assert not pool.log.fault
    await pool.close()
    pool = await open_pool(disks, GivenKey(2))
    assert len(pool.namespaces) == 2
    await pool.close()


# --- the ring itself


def ring() -> Keyring:
    geometry = geometry_for(4, MEMBER_BYTES, encrypted=True, segment_bytes=SEGMENT_BYTES)
    return Keyring(geometry, KeyTable.new(GivenKey(1)), 1)


def test_key_ids_are_new_until_there_are_no_more() -> None:
    """A key id is in records; one that was destroyed should be long forgotten before it comes again."""
    keyring = ring()
    assert [keyring.add() for _ in range(3)] == [1, 2, 3]
    keyring.table.remove(1)
    assert keyring.add() == 4
    keyring.table.add(KEY_ID_MAX, bytes(range(64)))
    assert keyring.add() == 1, "around the end"
    for _ in range(KEYS_MAX - len(keyring.table.key_ids)):
        keyring.add()
    with pytest.raises(UsageError, match="the key table is full"):
        keyring.add()
