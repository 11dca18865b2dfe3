"""Raw namespaces: layout, space, several writers, formats that are not ours, damage."""

from __future__ import annotations

import asyncio
import errno
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvmeof.checkpoint import CheckpointInfo, DamagedError, Store, VerificationError, namespace_medium
from nvmeof.checkpoint.catalog import CatalogEntry
from nvmeof.checkpoint.extents import UNIT_BYTES, Extent
from nvmeof.checkpoint.medium import COMMITTED, WRITING
from nvmeof.checkpoint.superblock import RING_SLOTS, Label
from nvmeof.codec.hashes import blake3_256
from nvmeof.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConnectionLost,
    CorruptCheckpointError,
    NvmeofError,
    UncommittedError,
    UsageError,
)

from .namespaces import BadBlocks, CrashNamespace, FileNamespace, Operation
from .states import assert_same, big_state, small_state

MIB = 1 << 20


async def saved(size: int = 4 * MIB, *steps: int, block_size: int = 4096) -> CrashNamespace:
    namespace = CrashNamespace(size, block_size)
    async with Store.open(namespace) as store:
        for step in steps or (1,):
            await store.save(step, small_state(step))
    return namespace


def again(namespace: CrashNamespace, **options: Any) -> CrashNamespace:
    """The same media on a new connection."""
    return CrashNamespace(namespace.size, namespace.block_size, durable=bytearray(namespace.live), **options)


async def entry_of(namespace: CrashNamespace, step: int) -> CatalogEntry:
    async with Store.open(namespace) as store:
        info = await store.resolve(step)
    assert isinstance(info, CatalogEntry)
    return info


@pytest.mark.parametrize("block_size", [512, 4096])
async def test_round_trip_over_a_file_with_chunks_tails_and_small_items(tmp_path: Path, block_size: int) -> None:
    namespace = FileNamespace(tmp_path / "disk.img", 64 * MIB, block_size)
    state = big_state(1)
    try:
        async with Store.open(namespace) as store:
            info = await store.save(10, state)
            assert_same(await store.load(), state)
            assert [result.damage for result in await store.verify()] == [()]
        async with Store.open(namespace) as store:
            assert_same(await store.load(10), state)
            assert (await store.ls())[0] == info
    finally:
        namespace.close()


async def test_the_window_bounds_what_is_in_flight() -> None:
    class Counting(CrashNamespace):
        most = 0

        async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
            self.most = max(self.most, sum(len(content) for _, content in self.in_flight) + len(data))
            await super().write(offset, data, fua)

    state = {str(i): np.full(4 * MIB, i, dtype=np.uint8) for i in range(12)}
    most = []
    for window in (4 * MIB, 16 * MIB):
        namespace = Counting(64 * MIB)
        async with Store.open(namespace, window_bytes=window) as store:
            await store.save(1, state)
        most.append(namespace.most)
    assert most[0] == 4 * MIB
    assert 8 * MIB <= most[1] <= 16 * MIB


async def test_long_saves_flush_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace_medium, "FLUSH_BYTES", 8 * MIB)
    namespace = CrashNamespace(64 * MIB)
    async with Store.open(namespace) as store:
        await store.save(1, {str(i): np.full(4 * MIB, i, dtype=np.uint8) for i in range(8)})
    kinds = [operation.kind for operation in namespace.trace]
    data = [i for i, operation in enumerate(namespace.trace) if len(operation.data) == 4 * MIB]
    assert kinds[data[0] : data[-1]].count("flush") >= 2
    assert kinds[-4:] == ["flush", "fua", "fua", "flush"]


async def test_large_memory_is_handed_over_without_a_copy() -> None:
    addresses = []

    class Addresses(CrashNamespace):
        async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
            addresses.append(np.frombuffer(data, dtype=np.uint8).ctypes.data)
            await super().write(offset, data, fua)

        async def readinto(self, offset: int, buffer: memoryview) -> int:
            addresses.append(np.frombuffer(buffer, dtype=np.uint8).ctypes.data)
            return await super().readinto(offset, buffer)

    array = np.arange(3 * MIB, dtype=np.uint32)
    async with Store.open(Addresses(64 * MIB)) as store:
        await store.save(1, {"array": array})
        assert {array.ctypes.data + i * 4 * MIB for i in range(3)} <= set(addresses)
        addresses.clear()
        loaded = await store.load(1)
        assert {loaded["array"].ctypes.data + i * 4 * MIB for i in range(3)} <= set(addresses)


async def test_the_commit_is_one_block_written_last_by_fua_to_ring_a_then_ring_b() -> None:
    """The order of operations is the promise: data, Flush, record A, record B, Flush."""
    namespace = again(await saved(4 * MIB, 1, block_size=512))
    async with Store.open(namespace) as store:
        await store.save(2, small_state(2))
    label = Label.decode(namespace.live[:UNIT_BYTES], 512, namespace.size)
    assert label is not None
    tail = namespace.trace[-4:]
    assert [operation.kind for operation in tail] == ["flush", "fua", "fua", "flush"]
    assert [len(operation.data) for operation in tail[1:3]] == [512, 512]
    rings = [label.ring_offset(0), label.ring_offset(1)]
    assert [operation.offset - ring for operation, ring in zip(tail[1:3], rings, strict=True)] == [4 * UNIT_BYTES] * 2
    assert tail[1].offset < MIB < namespace.size - MIB < tail[2].offset
    data = [operation for operation in namespace.trace if label.data_start <= operation.offset < label.data_end]
    assert {operation.kind for operation in data if operation.kind != "flush"} == {"write"}
    last_data = max(i for i, operation in enumerate(namespace.trace) if operation in data and operation.kind == "write")
    assert last_data < len(namespace.trace) - 4


async def test_hashes_are_of_the_memory_that_was_given_not_of_what_was_written() -> None:
    """Memory that changes after it was hashed (a stray DMA, another thread) is found out at load."""
    array = np.zeros(MIB, dtype=np.uint8)

    class Stray(CrashNamespace):
        async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
            if len(data) == MIB:
                array[777777] = 1
            await super().write(offset, data, fua)

    async with Store.open(Stray(16 * MIB)) as store:
        await store.save(1, {"array": array})
        with pytest.raises(DamagedError, match="'array', chunk 0"):
            await store.load(1)
        array[777777] = 0
        table_hash = blake3_256(array.data)
    assert table_hash == blake3_256(bytes(MIB))


async def _fill(store: Store) -> int:
    count = 0
    try:
        while await store.save(count, small_state(count)):
            count += 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    return count


async def test_old_checkpoints_stay_until_they_are_deleted_and_their_space_comes_back() -> None:
    namespace = CrashNamespace(4 * MIB)
    async with Store.open(namespace) as store:
        count = await _fill(store)
        assert count >= 8
        for known in range(count):
            assert_same(await store.load(known), small_state(known))
        await store.delete(3)
        await store.delete(7)
        await store.save(200, small_state(3))
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint of step 3"):
            await store.load(3)
        for known in {*range(count), 200} - {3, 7}:
            assert_same(await store.load(known), small_state(3 if known == 200 else known))
        await store.verify()


async def test_a_checkpoint_is_scattered_over_several_free_pieces_when_it_must_be() -> None:
    namespace = CrashNamespace(4 * MIB)
    async with Store.open(namespace) as store:
        for step in range(6):
            await store.save(step, {"a": np.full(300_000, step, dtype=np.uint8)})
        for step in (0, 2, 4):
            await store.delete(step)
        state = {"a": np.arange(700_000, dtype=np.uint8), "b": b"tail" * 1000}
        info = await store.save(10, state)
        assert isinstance(info, CatalogEntry)
        assert len(info.extents) > 1
        assert_same(await store.load(10), state)
        await store.verify()


async def test_live_data_is_never_overwritten(rng: random.Random) -> None:
    """Every write of a long history is checked against what the catalogs of that moment claim."""
    claimed: set[Extent] = set()

    class Guarded(CrashNamespace):
        async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
            for extent in claimed:
                assert offset + len(data) <= extent.offset or extent.end <= offset, (offset, extent)
            await super().write(offset, data, fua)

    async with Store.open(Guarded(4 * MIB)) as store:
        for step in range(60):
            infos = list(await store.ls()) if step else []
            if len(infos) > 5:
                victim = rng.choice(infos)
                await store.delete(victim.step)
                infos.remove(victim)
            claimed = {extent for info in infos if isinstance(info, CatalogEntry) for extent in info.extents}
            await store.save(step, small_state(step))
        await store.verify()


async def test_a_failed_save_leaves_the_old_one_and_its_space_is_kept_from_reuse_until_another_commit() -> None:
    namespace = again(await saved(4 * MIB, 1), crash_at=12)
    async with Store.open(namespace) as store:
        with pytest.raises(ConnectionLost):
            await store.save(2, small_state(2))
        with pytest.raises(NvmeofError):
            await store.save(3, small_state(3))
    image = again(namespace)
    async with Store.open(image) as store:
        infos = await store.ls()
        assert [(info.step, info.state) for info in infos] == [(1, COMMITTED), (2, WRITING)]
        with pytest.raises(UncommittedError, match="step 2 was never committed"):
            await store.load(2)
        with pytest.raises(UncommittedError):
            await store.verify(2)
        await store.verify()
        interrupted = infos[1]
        assert isinstance(interrupted, CatalogEntry)
        info = await store.save(4, small_state(4))
        assert isinstance(info, CatalogEntry)
        assert not set(_units(info)) & set(_units(interrupted))
        assert [(info.step, info.state) for info in await store.ls()] == [(1, COMMITTED), (4, COMMITTED)]


def _units(entry: CatalogEntry) -> list[int]:
    return [unit for extent in entry.extents for unit in range(extent.offset, extent.end, UNIT_BYTES)]


async def test_interrupted_saves_hold_their_space_unless_reclaimed() -> None:
    state = {"a": np.ones(900_000, dtype=np.uint8)}
    namespace = CrashNamespace(4 * MIB)
    async with Store.open(namespace) as store:
        await store.save(1, {"a": b"x"})
    broken = again(namespace, crash_at=8)
    async with Store.open(broken) as store:
        with pytest.raises(ConnectionLost):
            await store.save(2, state)
    third = again(broken)
    async with Store.open(third) as store:
        with pytest.raises(OSError, match="held by interrupted saves"):
            await store.save(3, {"a": np.ones(1_500_000, dtype=np.uint8)})
    async with Store.open(again(third), reclaim=True) as store:
        await store.save(3, {"a": np.ones(1_500_000, dtype=np.uint8)})
        await store.verify()


async def test_a_save_that_failed_on_a_living_connection_gives_its_space_back() -> None:
    class Failing(CrashNamespace):
        async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
            if bytes(data[:4]) == b"BOOM":
                raise CheckpointError("refused")
            await super().write(offset, data, fua)

    namespace = Failing(4 * MIB)
    bad = np.frombuffer(b"BOOM" * 350_000, dtype=np.uint8)
    async with Store.open(namespace) as store:
        await store.save(1, small_state(1))
        for _ in range(5):
            with pytest.raises(CheckpointError, match="refused"):
                await store.save(2, {"a": bad})
        await store.save(3, {"a": np.zeros(1_400_000, dtype=np.uint8)})
        assert [info.step for info in await store.ls()] == [1, 3]
        await store.verify()


async def test_a_second_writer_takes_over_and_the_first_one_finds_out() -> None:
    namespace = await saved(4 * MIB, 1)
    gate = asyncio.Event()
    waiting = asyncio.Event()

    class Paused(FileNamespaceView):
        async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
            if len(data) > 100_000:
                waiting.set()
                await gate.wait()
            await super().write(offset, data, fua)

    first = Paused(namespace)
    async with Store.open(first) as one, Store.open(namespace) as two:
        saving = asyncio.create_task(one.save(2, small_state(2)))
        await waiting.wait()
        await two.save(3, small_state(3))
        gate.set()
        with pytest.raises(CheckpointError, match="another writer"):
            await saving
        with pytest.raises(CheckpointError, match="another writer"):
            await one.save(4, small_state(4))
        assert [info.step for info in await two.ls()] == [1, 3]
        await two.verify()


async def test_listing_and_loading_go_on_beside_a_save() -> None:
    namespace = await saved(4 * MIB, 1)

    class Listed(FileNamespaceView):
        listed = 0

        async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
            await super().write(offset, data, fua)
            assert next(iter(await store.ls())).step == 1
            assert_same(await store.load(1), small_state(1))
            self.listed += 1

    view = Listed(namespace)
    async with Store.open(view) as store:
        await store.save(2, small_state(2))
        await store.save(3, small_state(3))
        await store.verify()
    assert view.listed > 10


class FileNamespaceView:
    """Another connection to the same namespace."""

    def __init__(self, namespace: CrashNamespace) -> None:
        self._namespace = namespace
        self.size = namespace.size
        self.block_size = namespace.block_size

    async def read(self, offset: int, length: int) -> bytearray:
        return await self._namespace.read(offset, length)

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        return await self._namespace.readinto(offset, buffer)

    async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
        await self._namespace.write(offset, data, fua)

    async def flush(self) -> None:
        await self._namespace.flush()


@pytest.mark.slow
async def test_a_ghost_record_of_a_dead_writer_changes_nothing() -> None:
    """FORMAT.md, 2.7 case 9: the delayed superblock write of a lost association arrives after others have committed."""
    base = await saved(4 * MIB, 1)
    for crash_at in range(4, 40):
        dead = again(base, crash_at=crash_at)
        async with Store.open(dead) as store:
            try:
                await store.save(2, small_state(2))
            except ConnectionLost:
                pass
        live = again(dead)
        live.live[:] = dead.after_crash("none", 0)
        async with Store.open(live) as store:
            before = {info.step for info in await store.ls() if info.state == COMMITTED}
            await store.save(3, small_state(3))
        ghosts = [Operation("write", *entry) for entry in dead.in_flight + dead.volatile]
        for ghost in ghosts:
            live.live[ghost.offset : ghost.offset + len(ghost.data)] = ghost.data
        async with Store.open(live) as store:
            assert {info.step for info in await store.ls() if info.state == COMMITTED} == before | {3}
            assert_same(await store.load(3), small_state(3))
            assert_same(await store.load(1), small_state(1))


@pytest.mark.slow
async def test_rings_go_round() -> None:
    namespace = CrashNamespace(8 * MIB)
    for step in range(2 * RING_SLOTS):
        async with Store.open(namespace) as store:
            await store.save(step, {"a": np.full(9, step)})
            if step > 3:
                await store.delete(step - 3)
    async with Store.open(namespace) as store:
        steps = [info.step for info in await store.ls()]
        assert steps == [0, 2 * RING_SLOTS - 3, 2 * RING_SLOTS - 2, 2 * RING_SLOTS - 1]
        assert not store.notices
        await store.verify()


async def test_blank_and_foreign_namespaces() -> None:
    blank = CrashNamespace(4 * MIB)
    async with Store.open(blank) as store:
        for call in (store.ls, store.load, store.verify):
            with pytest.raises(CheckpointNotFoundError, match="blank"):
                await call()
    assert not blank.trace
    for offset in (0, 1024, 65536, MIB - 512, 3 * MIB, 4 * MIB - 1):
        foreign = CrashNamespace(4 * MIB)
        foreign.live[offset] = 1
        async with Store.open(foreign) as store:
            with pytest.raises(CheckpointNotFoundError):
                await store.ls()
            with pytest.raises(UsageError, match=r"not blank.*--format"):
                await store.save(1, small_state(1))
        assert not foreign.trace
        async with Store.open(foreign, format=True) as store:
            await store.save(1, small_state(1))
            await store.verify()


async def test_format_does_not_touch_a_good_store() -> None:
    namespace = again(await saved(4 * MIB, 1))
    async with Store.open(namespace, format=True) as store:
        await store.save(2, small_state(2))
        assert [info.step for info in await store.ls()] == [1, 2]


async def test_newer_and_misfitting_formats_are_refused_with_the_reason() -> None:
    namespace = await saved(4 * MIB, 1)
    newer = again(namespace)
    for offset in (0, newer.size - UNIT_BYTES):
        struct.pack_into("<I", newer.live, offset + 8, 2)
        newer.live[offset + 4064 : offset + 4096] = blake3_256(newer.live[offset : offset + 4064])
    async with Store.open(newer) as store:
        with pytest.raises(UsageError, match="format version 2; this program knows 1"):
            await store.ls()
        with pytest.raises(UsageError, match="format version 2"):
            await store.save(2, small_state(2))
    blocks = CrashNamespace(namespace.size, 512, durable=bytearray(namespace.live))
    async with Store.open(blocks) as store:
        with pytest.raises(UsageError, match="4096-byte blocks, but the namespace now has 512"):
            await store.ls()
    shrunk = CrashNamespace(3 * MIB, durable=bytearray(namespace.live[: 3 * MIB]))
    async with Store.open(shrunk) as store:
        with pytest.raises(CorruptCheckpointError, match="on a namespace of only"):
            await store.ls()
    grown = CrashNamespace(6 * MIB, durable=namespace.live + bytes(2 * MIB))
    async with Store.open(grown) as store:
        await store.save(2, small_state(2))
        await store.verify()
        assert not store.notices
    tiny = CrashNamespace(MIB)
    async with Store.open(tiny) as store:
        with pytest.raises(UsageError, match="too small"):
            await store.save(1, small_state(1))


async def test_either_end_of_the_metadata_may_be_lost() -> None:
    base = await saved(4 * MIB, 1, 2)
    for start, end in ((0, MIB), (3 * MIB, 4 * MIB)):
        namespace = again(base)
        namespace.live[start:end] = random.Random(start).randbytes(end - start)
        async with Store.open(namespace) as store:
            assert_same(await store.load(2), small_state(2))
            assert store.notices
            await store.save(3, small_state(3))
            await store.verify()
        async with Store.open(again(namespace)) as store:
            assert [info.step for info in await store.ls()] == [1, 2, 3]
            assert not any("label" in notice for notice in store.notices)
    both = again(base)
    for start in (0, 4 * MIB - UNIT_BYTES):
        both.live[start + 100] ^= 1
    async with Store.open(both) as store:
        with pytest.raises(CorruptCheckpointError, match="both labels"):
            await store.ls()
        with pytest.raises(CorruptCheckpointError, match="both labels"):
            await store.save(3, small_state(3))


async def test_both_catalogs_damaged_is_an_error_never_an_older_generation() -> None:
    namespace = again(await saved(4 * MIB, 1, 2))
    label = Label.decode(namespace.live[:UNIT_BYTES], 4096, namespace.size)
    assert label is not None
    for copy in (0, 1):
        for slot in range(4):
            namespace.live[label.catalog_offset(copy, slot) + 5] ^= 0x10
    async with Store.open(namespace) as store:
        for _ in range(2):
            with pytest.raises(CorruptCheckpointError, match="both copies of the catalog"):
                await store.ls()
            with pytest.raises(CorruptCheckpointError, match="both copies of the catalog"):
                await store.save(3, small_state(3))
    assert not namespace.trace


async def test_a_flipped_byte_is_named_with_item_chunk_range_and_place() -> None:
    namespace = CrashNamespace(64 * MIB)
    state = big_state(2)
    async with Store.open(namespace) as store:
        await store.save(1, state)
        entry = await store.resolve(1)
        assert isinstance(entry, CatalogEntry)
        start = namespace.live.index(state["embedding"][5 * MIB : 5 * MIB + 64].tobytes())
        namespace.live[start] ^= 4
        with pytest.raises(DamagedError) as caught:
            await store.load(1)
        damage = caught.value.damage[0]
        assert (damage.item, damage.chunk, damage.start, damage.end) == ("embedding", 1, 4 * MIB, 8 * MIB)
        assert f"namespace bytes {start - MIB} to {start + 3 * MIB}" in damage.where
        assert "'embedding', chunk 1" in str(caught.value)
        small = namespace.live.index(state["small.77"].tobytes())
        namespace.live[small] ^= 4
        with pytest.raises(VerificationError) as verified:
            await store.verify()
        assert sorted(found.item for found in verified.value.results[0].damage) == ["embedding", "small.77"]


@pytest.mark.slow
async def test_any_flipped_bit_is_detected_or_harmless(rng: random.Random) -> None:
    """Wherever it is: labels, rings, catalogs, tables, manifests, data. Never different bytes, never another error."""
    base = await saved(4 * MIB, 1, 2)
    entry = await entry_of(base, 2)
    used = [i for i in range(0, base.size, 64) if any(base.live[i : i + 64])]
    detected = 0
    for _ in range(250):
        namespace = again(base)
        position = rng.choice(used) + rng.randrange(64)
        namespace.live[position] ^= 1 << rng.randrange(8)
        in_two = any(extent.offset <= position < extent.end for extent in entry.extents)
        async with Store.open(namespace) as store:
            try:
                assert_same(await store.load(2), small_state(2))
            except CorruptCheckpointError:
                detected += in_two
                assert in_two, position
                with pytest.raises(VerificationError):
                    await store.verify(2)
            try:
                assert_same(await store.load(1), small_state(1))
            except CorruptCheckpointError:
                assert not in_two, position
    assert detected > 50


async def test_unreadable_blocks_are_damage_with_a_name_and_the_rest_is_still_checked() -> None:
    base = await saved(4 * MIB, 1, 2)
    state = small_state(2)
    place = base.live.index(state["rng"][:64])
    bad = BadBlocks(base.size, durable=bytearray(base.live))
    bad.bad = frozenset({place})
    async with Store.open(bad) as store:
        with pytest.raises(DamagedError, match=r"'rng', chunk 0.*Unrecovered Read Error"):
            await store.load(2)
        with pytest.raises(VerificationError) as caught:
            await store.verify()
        assert [len(result.damage) for result in caught.value.results] == [0, 1]
        assert_same(await store.load(1), small_state(1))
    for half in (0, base.size // 2):
        bad.bad = frozenset(
            block for block in range(half, half + base.size // 2, UNIT_BYTES) if not MIB <= block < 3 * MIB
        )
        async with Store.open(bad) as store:
            await store.verify()
            assert len(store.notices) >= 2
    bad.bad = frozenset({0, base.size - UNIT_BYTES})
    async with Store.open(bad) as store:
        with pytest.raises(CorruptCheckpointError, match="both labels"):
            await store.ls()
        with pytest.raises(NvmeofError):
            await store.save(9, {})


async def test_a_checkpoint_deleted_while_it_is_read_is_not_called_corrupt() -> None:
    namespace = await saved(4 * MIB, 1, 2)
    async with Store.open(namespace) as store:
        info: CheckpointInfo = await store.resolve(1)
        async with Store.open(FileNamespaceView(namespace)) as other:
            await other.delete(1)
            await other.save(3, small_state(3))
        assert isinstance(info, CatalogEntry)
        namespace.live[info.extents[0].offset : info.extents[0].end] = bytes(info.extents[0].length)
        with pytest.raises(CheckpointNotFoundError, match=r"step 1"):
            await store.examine(info)
