"""Power failures and errors at every system call of a save into a directory (FORMAT.md, 3)."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from nvmeof.checkpoint import Store
from nvmeof.checkpoint.medium import COMMITTED
from nvmeof.errors import CheckpointNotFoundError, NvmeofError

from .faulty_os import FaultyOs, PowerFailure, install
from .states import assert_same, small_state

pytestmark = pytest.mark.slow

MODES = (("none", 0), ("all", 0), ("some", 1), ("some", 2), ("some", 3))


async def store_with(path: Path, *steps: int) -> None:
    async with Store.open(path) as store:
        for step in steps:
            await store.save(step, small_state(step))


async def save(path: Path, step: int) -> None:
    async with Store.open(path, threads=1) as store:
        await store.save(step, small_state(step))


async def run_save(monkeypatch: pytest.MonkeyPatch, path: Path, step: int, faulty: FaultyOs) -> BaseException | None:
    with monkeypatch.context() as patch:
        install(patch, faulty)
        try:
            await save(path, step)
        except (PowerFailure, OSError, NvmeofError) as error:
            return error
    return None


async def assert_whole(path: Path, allowed: list[set[int]]) -> set[int]:
    async with Store.open(path) as store:
        try:
            steps = {info.step for info in await store.ls() if info.state == COMMITTED}
            corrupt = [info for info in await store.ls() if info.state == "corrupt"]
        except CheckpointNotFoundError:
            steps, corrupt = set(), []
        assert not corrupt
        assert steps in allowed, steps
        for step in steps:
            assert_same(await store.load(step), small_state(step))
        for step in {9, 10} - steps:
            await store.save(step, small_state(step))
        await store.verify()
        assert_same(await store.load(), small_state(10))
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["blank", "second save"])
async def test_save_survives_a_power_failure_at_every_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    old = set() if first else {1}
    template = tmp_path / "template"
    if not first:
        await store_with(template, 1)
    whole = FaultyOs()
    place = tmp_path / "whole"
    if not first:
        shutil.copytree(template, place)
    assert await run_save(monkeypatch, place, 9, whole) is None
    found = []
    for crash_at in range(len(whole.calls) + 1):
        for mode, seed in MODES:
            place = tmp_path / f"{crash_at}.{mode}.{seed}"
            if not first:
                shutil.copytree(template, place)
            faulty = FaultyOs(crash_at=crash_at)
            failure = await run_save(monkeypatch, place, 9, faulty)
            assert (failure is None) == (crash_at == len(whole.calls))
            faulty.power_failure(mode, seed)
            allowed = [old | {9}] if failure is None else [old, old | {9}]
            try:
                found.append(await assert_whole(place, allowed))
            except (AssertionError, NvmeofError) as error:
                raise AssertionError(
                    f"crash at {crash_at} {whole.calls[crash_at:]}, {mode} {seed}: {error!r}"
                ) from error
            shutil.rmtree(place, ignore_errors=True)
    assert found.count(old) > 20
    assert found.count(old | {9}) > len(MODES)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_an_error_of_any_system_call_raises_and_nothing_is_retried_or_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """fsync that fails once and then succeeds is the trap: only the first answer counts. close counts too."""
    whole = FaultyOs()
    await store_with(tmp_path / "whole", 1)
    assert await run_save(monkeypatch, tmp_path / "whole", 9, whole) is None
    assert {"fsync", "close", "rename", "pwritev", "open", "mkdir"} <= set(whole.calls)
    for failing in range(len(whole.calls)):
        place = tmp_path / str(failing)
        await store_with(place, 1)
        faulty = FaultyOs(errors={failing: number})
        failure = await run_save(monkeypatch, place, 9, faulty)
        assert isinstance(failure, OSError), (failing, whole.calls[failing])
        assert failure.errno == number
        after = [name for name in faulty.calls[failing + 1 :] if name != "close"]
        assert not after, (failing, after)
        assert not list(place.glob("*.tmp-*"))
        await assert_whole(place, [{1}, {1, 9}])
        shutil.rmtree(place)


async def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await run_save(monkeypatch, tmp_path / "store", 3, FaultyOs(short_writes=True)) is None
    async with Store.open(tmp_path / "store") as store:
        assert_same(await store.load(3), small_state(3))


async def test_the_order_of_the_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, directory, name, parent, then COMMIT: written, synced, named, synced."""
    await store_with(tmp_path / "store", 1)
    faulty = FaultyOs()
    assert await run_save(monkeypatch, tmp_path / "store", 2, faulty) is None
    names = [name for name in faulty.calls if name in ("fsync", "rename")]
    table, rank, root, shard, directory, parent = ["fsync"] * 6
    assert names == [table, rank, root, shard, directory, "rename", parent, "fsync", "rename", "fsync"]


async def test_without_the_fsync_of_shards_the_harness_finds_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle must be able to fail."""

    class NoFsync(FaultyOs):
        def fsync(self, fd: int) -> None:
            self._call("fsync")

    faulty = NoFsync()
    assert await run_save(monkeypatch, tmp_path / "store", 9, faulty) is None
    faulty.power_failure("none", 1)
    with pytest.raises((AssertionError, NvmeofError)):
        await assert_whole(tmp_path / "store", [{9}])
