"""Power failures at every write, FUA write and flush of a save, a delete and a formatting (FORMAT.md, 2.7)."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest

from nvmeof.checkpoint import CheckpointInfo, Store
from nvmeof.checkpoint.medium import COMMITTED, WRITING
from nvmeof.checkpoint.superblock import RING_BYTES, Label
from nvmeof.errors import CheckpointNotFoundError, ConnectionLost, NvmeofError

from .namespaces import CrashNamespace
from .states import assert_same, small_state

pytestmark = pytest.mark.slow

SIZE = 4 << 20
MODES = (("none", 0), ("all", 0), ("some", 1), ("some", 2), ("some", 3))

Action = Callable[[Store], Awaitable[object]]


async def image_with(*steps: int, block_size: int = 4096) -> bytearray:
    namespace = CrashNamespace(SIZE, block_size)
    async with Store.open(namespace) as store:
        for step in steps:
            await store.save(step, small_state(step))
    assert namespace.live == namespace.durable
    return namespace.durable


async def committed(store: Store) -> dict[int, CheckpointInfo]:
    try:
        return {info.step: info for info in await store.ls() if info.state == COMMITTED}
    except CheckpointNotFoundError:
        return {}


async def assert_whole(image: bytearray, block_size: int, allowed: list[set[int]]) -> set[int]:
    """The store in ``image`` has one of the ``allowed`` sets of steps, all of them good, and can go on saving."""
    namespace = CrashNamespace(SIZE, block_size, durable=bytearray(image))
    async with Store.open(namespace) as store:
        steps = set(await committed(store))
        assert steps in allowed, (steps, allowed)
        for step in steps:
            assert_same(await store.load(step), small_state(step))
        await store.save(99, small_state(99))
        await store.verify()
        assert set(await committed(store)) == steps | {99}
        for step in steps | {99}:
            assert_same(await store.load(step), small_state(step))
        assert not any(info.state == WRITING for info in await store.ls())
    return steps


async def enumerate_crashes(
    before: bytearray, block_size: int, action: Action, old: set[int], new: set[int]
) -> tuple[int, list[set[int]]]:
    """Crash ``action`` at each of its operations. Returns their number and the step sets that were found after."""
    whole = CrashNamespace(SIZE, block_size, durable=bytearray(before))
    async with Store.open(whole) as store:
        await action(store)
    found = []
    for crash_at in range(len(whole.trace) + 1):
        for mode, seed in MODES:
            namespace = CrashNamespace(SIZE, block_size, seed=crash_at, crash_at=crash_at, durable=bytearray(before))
            returned = True
            async with Store.open(namespace) as store:
                try:
                    await action(store)
                except ConnectionLost:
                    returned = False
            assert returned == (crash_at == len(whole.trace)), crash_at
            allowed = [new] if returned else [old, new]
            try:
                found.append(await assert_whole(namespace.after_crash(mode, seed), block_size, allowed))
            except (AssertionError, NvmeofError) as error:
                raise AssertionError(f"crash at {crash_at} of {len(whole.trace)}, {mode} {seed}: {error!r}") from error
    return len(whole.trace), found


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [512, 4096])
async def test_save_survives_a_power_failure_at_every_operation(block_size: int) -> None:
    before = await image_with(1, 2, block_size=block_size)
    operations, found = await enumerate_crashes(
        before, block_size, lambda store: store.save(3, small_state(3)), {1, 2}, {1, 2, 3}
    )
    assert operations >= 12
    assert found.count({1, 2}) > 10
    assert found.count({1, 2, 3}) > len(MODES)


@pytest.mark.slow
async def test_first_save_on_a_blank_namespace_survives_a_power_failure_at_every_operation() -> None:
    _, found = await enumerate_crashes(bytearray(SIZE), 4096, lambda store: store.save(1, small_state(1)), set(), {1})
    assert found.count(set()) > 10
    assert found.count({1}) > len(MODES)


@pytest.mark.slow
async def test_forced_formatting_survives_a_power_failure_at_every_operation() -> None:
    """A store that says it is one works; otherwise the next save formats again."""
    before = await image_with(1, 2)
    rng = random.Random(5)
    before[0:4096] = rng.randbytes(4096)
    before[-4096:] = rng.randbytes(4096)
    whole = CrashNamespace(SIZE, durable=bytearray(before))
    async with Store.open(whole, format=True) as store:
        await store.save(7, small_state(7))
    for crash_at in range(len(whole.trace) + 1):
        for mode, seed in MODES:
            namespace = CrashNamespace(SIZE, seed=crash_at, crash_at=crash_at, durable=bytearray(before))
            async with Store.open(namespace, format=True) as store:
                try:
                    await store.save(7, small_state(7))
                except ConnectionLost:
                    pass
            image = namespace.after_crash(mode, seed)
            async with Store.open(CrashNamespace(SIZE, durable=image), format=True) as store:
                steps = set(await committed(store))
                assert steps in ([{7}] if crash_at == len(whole.trace) else [set(), {7}]), (crash_at, mode, seed)
                await store.save(8, small_state(8))
                await store.verify()
                assert set(await committed(store)) == steps | {8}


@pytest.mark.slow
async def test_delete_survives_a_power_failure_at_every_operation() -> None:
    before = await image_with(1, 2, 3)
    operations, found = await enumerate_crashes(before, 4096, lambda store: store.delete(2), {1, 2, 3}, {1, 3})
    assert operations == 12
    assert {1, 2, 3} in found
    assert {1, 3} in found


async def test_random_histories_of_saves_deletes_and_power_failures(rng: random.Random) -> None:
    """A model beside the store, over crashes: what returned is there, what raised is there whole or not at all."""
    for _ in range(12):
        image = bytearray(SIZE)
        certain: set[int] = set()
        step = 0
        for _ in range(8):
            namespace = CrashNamespace(SIZE, seed=rng.random().__hash__(), crash_at=rng.randrange(60), durable=image)
            pending: list[set[int]] = [set(certain)]
            async with Store.open(namespace) as store:
                try:
                    for _ in range(3):
                        if len(certain) > 3:
                            victim = rng.choice(sorted(certain))
                            pending = [set(certain), certain - {victim}]
                            await store.delete(victim)
                            certain = certain - {victim}
                        step += 1
                        pending = [set(certain), certain | {step}]
                        await store.save(step, small_state(step))
                        certain = certain | {step}
                        pending = [set(certain)]
                except ConnectionLost:
                    pass
            image = namespace.after_crash(rng.choice(["none", "all", "some"]), rng.randrange(1 << 30))
            async with Store.open(CrashNamespace(SIZE, durable=bytearray(image))) as store:
                found = set(await committed(store))
                assert found in pending, (found, pending)
                for known in found:
                    assert_same(await store.load(known), small_state(known))
                certain = found


async def test_a_device_that_ignores_fua_still_has_what_save_returned() -> None:
    before = await image_with(1)
    namespace = CrashNamespace(SIZE, durable=bytearray(before), ignore_fua=True)
    async with Store.open(namespace) as store:
        await store.save(2, small_state(2))
    await assert_whole(namespace.after_crash("none", 0), 4096, [{1, 2}])


async def test_the_harness_notices_a_device_that_loses_flushes() -> None:
    """The oracle must be able to fail: with flushes lost, a crash leaves a checkpoint that is not whole."""
    before = await image_with(1)
    namespace = CrashNamespace(SIZE, durable=bytearray(before), lose_flush=True)
    async with Store.open(namespace) as store:
        await store.save(2, small_state(2))
    with pytest.raises((AssertionError, NvmeofError)):
        await assert_whole(namespace.after_crash("none", 0), 4096, [{1, 2}])


async def test_a_ring_that_lags_is_brought_up_to_date_before_space_is_used_again() -> None:
    """FORMAT.md, 2.7 case 3: a delete got as far as ring A, later saves use its space, then ring A is lost."""
    steps = list(range(1, 9))
    before = await image_with(*steps)
    label = Label.decode(before[:4096], 4096, SIZE)
    assert label is not None
    rings = [range(label.ring_offset(ring), label.ring_offset(ring) + RING_BYTES) for ring in (0, 1)]
    half = CrashNamespace(SIZE, durable=bytearray(before))
    async with Store.open(half) as store:
        await store.delete(1)
    commits = [i for i, operation in enumerate(half.trace) if operation.kind == "fua"]
    half = CrashNamespace(SIZE, durable=bytearray(before), crash_at=commits[3])
    async with Store.open(half) as store:
        with pytest.raises(ConnectionLost):
            await store.delete(1)
    reopened = CrashNamespace(SIZE, durable=half.after_crash("none", 0))
    async with Store.open(reopened) as store:
        assert set(await committed(store)) == set(steps[1:])
        for step in (20, 21, 22, 23):
            await store.save(step, small_state(step))
            await store.delete(step - 18)
    first = next(operation for operation in reopened.trace if operation.kind != "flush")
    assert first.kind == "fua"
    assert first.offset in rings[1]
    for lost in rings:
        image = bytearray(reopened.durable)
        image[lost.start : lost.stop] = bytes(len(lost))
        await assert_whole(image, 4096, [{6, 7, 8, 20, 21, 22, 23}])
