"""Several writers on one namespace: whatever the order, what returned stays, and the store stays readable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from nvmeof.checkpoint import Store
from nvmeof.checkpoint.medium import COMMITTED
from nvmeof.checkpoint.superblock import Label
from nvmeof.errors import CheckpointError, CorruptCheckpointError, UsageError

from .namespaces import BadBlocks, CrashNamespace
from .states import assert_same, small_state

pytestmark = pytest.mark.slow

SIZE = 4 << 20
Action = Callable[[Store], Awaitable[object]]


class View:
    """A connection of its own, which holds write number ``hold`` back until it is released."""

    def __init__(self, namespace: CrashNamespace, hold: int, only_plain: bool = False) -> None:
        self._namespace = namespace
        self.size = namespace.size
        self.block_size = namespace.block_size
        self.hold = hold
        self.only_plain = only_plain
        self.held = asyncio.Event()
        self.release = asyncio.Event()
        self.writes = 0

    async def read(self, offset: int, length: int) -> bytearray:
        return await self._namespace.read(offset, length)

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        return await self._namespace.readinto(offset, buffer)

    async def write(self, offset: int, data: bytes | memoryview, fua: bool = False) -> None:
        if not (fua and self.only_plain):
            if self.writes == self.hold:
                self.held.set()
                await self.release.wait()
            self.writes += 1
        await self._namespace.write(offset, data, fua)

    async def flush(self) -> None:
        await self._namespace.flush()


async def base() -> bytearray:
    namespace = CrashNamespace(SIZE)
    async with Store.open(namespace) as store:
        for step in (1, 2, 3):
            await store.save(step, small_state(step))
    return namespace.live


ACTIONS: dict[str, Action] = {
    "save 8": lambda store: store.save(8, small_state(8)),
    "save 9": lambda store: store.save(9, small_state(9)),
    "delete 1": lambda store: store.delete(1),
    "delete 2": lambda store: store.delete(2),
}


def effect(name: str, steps: set[int]) -> bool:
    verb, step = name.split()
    return (int(step) in steps) == (verb == "save")


async def check(namespace: CrashNamespace, returned: list[str]) -> None:
    async with Store.open(namespace) as store:
        steps = {info.step for info in await store.ls() if info.state == COMMITTED}
        for name in returned:
            assert effect(name, steps), (name, steps)
        assert steps >= {3}
        for step in steps:
            assert_same(await store.load(step), small_state(step))
        await store.save(20, small_state(20))
        await store.verify()


async def both(first: str, second: str, hold: int, hold_second: int | None, warm: bool) -> bool:
    """The first held at a write, the second done (or held too, released last). False if there was no such write."""
    namespace = CrashNamespace(SIZE, durable=bytearray(await base()))
    one = View(namespace, hold)
    two = View(namespace, 1 << 30 if hold_second is None else hold_second, only_plain=True)
    returned = []
    async with Store.open(one) as early, Store.open(two) as late:
        if warm:
            two.hold, kept = 1 << 30, two.hold
            await late.save(4, small_state(4))
            two.hold, two.writes = kept, 0
        tasks = {first: asyncio.ensure_future(ACTIONS[first](early))}
        holding = asyncio.ensure_future(one.held.wait())
        await asyncio.wait([tasks[first], holding], return_when=asyncio.FIRST_COMPLETED)
        reached = one.held.is_set()
        tasks[second] = asyncio.ensure_future(ACTIONS[second](late))
        holding_second = asyncio.ensure_future(two.held.wait())
        await asyncio.wait([tasks[second], holding_second], return_when=asyncio.FIRST_COMPLETED)
        reached = reached and (hold_second is None or two.held.is_set())
        one.release.set()
        await asyncio.wait([tasks[first]])
        two.release.set()
        await asyncio.wait([tasks[second]])
        holding.cancel()
        holding_second.cancel()
        for name, task in tasks.items():
            error = task.exception()
            assert error is None or (isinstance(error, CheckpointError) and "another writer" in str(error)), error
            if error is None:
                returned.append(name)
    await check(namespace, returned)
    return reached


@pytest.mark.parametrize("warm", [False, True], ids=["new session", "session that wrote before"])
@pytest.mark.parametrize("first", ["save 8", pytest.param("delete 1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("second", [pytest.param("save 9", marks=pytest.mark.slow), "delete 2"])
async def test_a_writer_held_at_any_write_undoes_nothing_of_another_one(first: str, second: str, warm: bool) -> None:
    hold = 0
    while await both(first, second, hold, None, warm):
        hold += 1
    assert hold >= 8


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("save 8", "delete 1"), ("delete 2", "save 9")])
async def test_two_writers_held_at_any_two_writes(first: str, second: str) -> None:
    """All but a record's own write, which no check can take back (FORMAT.md, 2.5)."""
    pairs = 0
    for hold in range(0, 14, 2):
        for hold_second in range(4):
            pairs += await both(first, second, hold, hold_second, False)
    assert pairs > 6


async def test_a_late_catalog_write_of_a_writer_that_died_spoils_one_copy_only() -> None:
    namespace = CrashNamespace(SIZE, durable=bytearray(await base()))
    stale = View(namespace, 0)
    async with Store.open(stale) as dead, Store.open(namespace) as store:
        saving = asyncio.ensure_future(dead.save(8, small_state(8)))
        await stale.held.wait()
        await store.delete(1)
        stale.release.set()
        with pytest.raises(CheckpointError, match="another writer"):
            await saving
    await check(namespace, ["delete 1"])


async def test_records_of_one_generation_that_differ_leave_a_store_that_can_be_read() -> None:
    """Ring A has the record of a writer whose catalog was overwritten, ring B the one of the other writer."""
    image = await base()
    one = CrashNamespace(SIZE, durable=bytearray(image))
    two = CrashNamespace(SIZE, durable=bytearray(image))
    label = Label.decode(image[:4096], 4096, SIZE)
    assert label is not None
    for namespace in (one, two):
        async with Store.open(namespace) as store:
            await store.delete(1 if namespace is one else 2)
    ring = label.ring_offset(0)
    two.live[ring : ring + 64 * 4096] = one.live[ring : ring + 64 * 4096]
    async with Store.open(two) as store:
        steps = {info.step for info in await store.ls()}
        assert steps == {1, 3}
        assert any("the other ring" in notice for notice in store.notices)
    await check(two, [])


async def test_a_store_with_an_unreadable_ring_can_be_written() -> None:
    image = await base()
    label = Label.decode(image[:4096], 4096, SIZE)
    assert label is not None
    namespace = BadBlocks(SIZE, durable=bytearray(image))
    namespace.bad = frozenset({label.ring_offset(0) + 8192})
    async with Store.open(namespace) as store:
        await store.save(8, small_state(8))
        await store.delete(1)
        assert [info.step for info in await store.ls()] == [2, 3, 8]


async def test_format_destroys_no_store_however_damaged_or_new() -> None:
    image = await base()
    for damage in ("labels", "rings", "catalogs"):
        namespace = CrashNamespace(SIZE, durable=bytearray(image))
        label = Label.decode(image[:4096], 4096, SIZE)
        assert label is not None
        places = {
            "labels": [offset + 50 for offset in label.offsets],
            "rings": [label.slot_offset(ring, slot) + 50 for ring in (0, 1) for slot in range(64)],
            "catalogs": [label.catalog_offset(copy, slot) + 5 for copy in (0, 1) for slot in range(4)],
        }
        for place in places[damage]:
            namespace.live[place] ^= 1
        before = bytes(namespace.live)
        async with Store.open(namespace, format=True) as store:
            with pytest.raises(CorruptCheckpointError, match="--format overwrites no checkpoint store"):
                await store.save(9, small_state(9))
        assert namespace.live == before
    small = CrashNamespace(SIZE // 2, durable=bytearray(image[: SIZE // 2]))
    async with Store.open(small, format=True) as store:
        with pytest.raises((CorruptCheckpointError, UsageError), match="--format overwrites no checkpoint store"):
            await store.save(9, small_state(9))
