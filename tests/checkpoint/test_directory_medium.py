"""Directories: shards for any safetensors loader, COMMIT, and what is not believed."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from nvmeof.checkpoint import CheckpointInfo, Store, VerificationError, directory_medium
from nvmeof.checkpoint.medium import COMMITTED, CORRUPT, WRITING
from nvmeof.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, UncommittedError, UsageError

from .states import assert_same, big_state, small_state


async def saved(path: Path, *steps: int) -> Path:
    async with Store.open(path) as store:
        for step in steps:
            await store.save(step, small_state(step))
    return path


async def listed(path: Path) -> list[tuple[int, str]]:
    async with Store.open(path) as store:
        return [(info.step, info.state) for info in await store.ls()]


async def test_round_trip_and_shards_that_the_reference_loader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_medium, "SHARD_BYTES_MAX", 8 << 20)
    state = big_state(1)
    async with Store.open(tmp_path / "s") as store:
        await store.save(1, state)
        assert_same(await store.load(1), state)
        await store.verify()
    shards = sorted((tmp_path / "s/step-1").glob("shard-*.safetensors"))
    assert len(shards) == 4
    found: dict[str, Any] = {}
    for shard in shards:
        found.update(load_file(shard))
    assert_same(dict(sorted(found.items())), dict(sorted(state.items())))
    assert {path.name for path in (tmp_path / "s/step-1").iterdir()} == {
        *("COMMIT", "table", "rank", "root"),
        *(shard.name for shard in shards),
    }


async def test_latest_is_the_last_commit_not_the_highest_number(tmp_path: Path) -> None:
    await saved(tmp_path / "s", 5, 9, 7)
    async with Store.open(tmp_path / "s") as store:
        assert [info.step for info in await store.ls()] == [5, 9, 7]
        assert (await store.resolve("latest")).step == 7
        assert_same(await store.load(), small_state(7))


async def test_a_step_is_saved_once(tmp_path: Path) -> None:
    async with Store.open(await saved(tmp_path / "s", 5)) as store:
        with pytest.raises(UsageError, match="already has a committed checkpoint of step 5"):
            await store.save(5, small_state(6))
        assert_same(await store.load(5), small_state(5))


@pytest.mark.parametrize("step", [-1, 1 << 63, 1.0, True, "5", None])
async def test_steps_are_integers(tmp_path: Path, step: Any) -> None:
    async with Store.open(tmp_path / "s") as store:
        with pytest.raises(UsageError, match="step is"):
            await store.save(step, {})
    assert not (tmp_path / "s").exists()


async def test_two_savers_of_one_step_leave_one_whole_checkpoint(tmp_path: Path) -> None:
    await saved(tmp_path / "s", 1)
    async with Store.open(tmp_path / "s") as one, Store.open(tmp_path / "s") as two:
        results = await asyncio.gather(one.save(2, small_state(2)), two.save(2, small_state(2)), return_exceptions=True)
        assert any(isinstance(result, CheckpointInfo) for result in results) or all(
            isinstance(result, OSError | UsageError) for result in results
        )
        assert_same(await one.load(1), small_state(1))
        if (2, COMMITTED) in await listed(tmp_path / "s"):
            assert_same(await one.load(2), small_state(2))


def without_locks(_fd: int, _operation: int) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


async def test_without_locks_a_step_that_somebody_else_committed_meanwhile_is_not_displaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks)
    path = await saved(tmp_path / "s", 1)

    def save_the_same_step(done: int, total: int) -> None:
        if done == total:
            thread = threading.Thread(target=lambda: asyncio.run(saved(path, 2)))
            thread.start()
            thread.join()

    async with Store.open(path) as store:
        with pytest.raises(UsageError, match="committed by somebody else"):
            await store.save(2, small_state(7), progress=save_the_same_step)
        assert await listed(path) == [(1, COMMITTED), (2, COMMITTED)]
        assert_same(await store.load(2), small_state(2))
    assert sorted(entry.name for entry in path.iterdir()) == ["nvmeof-store.json", "step-1", "step-2"]


async def test_a_second_save_or_delete_is_refused_while_one_is_under_way(tmp_path: Path) -> None:
    path = await saved(tmp_path / "s", 1, 2)
    async with Store.open(path, window_bytes=4 << 20) as one, Store.open(path) as two:
        started = asyncio.Event()
        saving = asyncio.create_task(one.save(7, big_state(1), progress=lambda done, total: started.set()))
        await started.wait()
        for call in (two.save(7, small_state(7)), two.save(8, small_state(8)), two.delete(1)):
            with pytest.raises(CheckpointError, match="another save or delete is in progress"):
                await call
        await saving
        assert_same(await two.load(7), big_state(1))
        assert (await two.save(8, small_state(8))).sequence == 4
        await two.delete(1)


async def test_a_commit_goes_into_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await saved(tmp_path / "s", 1)
    publish = directory_medium._DirectoryDraft._publish

    def swapped(draft: Any) -> None:
        publish(draft)
        os.rename(path / "step-2", path / "elsewhere")
        os.mkdir(path / "step-2")

    monkeypatch.setattr(directory_medium._DirectoryDraft, "_publish", swapped)
    async with Store.open(path) as store:
        with pytest.raises(CheckpointError, match="replaced by somebody else"):
            await store.save(2, small_state(2))
    assert not list((path / "step-2").iterdir())


async def test_sequences_pass_over_a_commit_that_cannot_be_read_and_end_at_the_limit(tmp_path: Path) -> None:
    path = await saved(tmp_path / "s", 1, 2)
    commit = path / "step-2/COMMIT"
    good = commit.read_bytes()
    commit.write_bytes(b"x")
    await saved(path, 3)
    commit.write_bytes(good)
    async with Store.open(path) as store:
        assert (await store.resolve()).step == 3
        commit = path / "step-3/COMMIT"
        record = json.loads(commit.read_bytes())
        record["sequence"] = (1 << 63) - 1
        commit.write_text(json.dumps(record))
        with pytest.raises(CheckpointError, match="the next commit would be number"):
            await store.save(4, small_state(4))
    assert not (path / "step-4").exists()


@pytest.mark.parametrize("kind", ["directory", "fifo", "link to nowhere that is a loop"])
async def test_a_commit_that_is_no_file_leaves_the_other_checkpoints(tmp_path: Path, kind: str) -> None:
    path = await saved(tmp_path / "s", 1, 2)
    commit = path / "step-1/COMMIT"
    commit.unlink()
    if kind == "directory":
        commit.mkdir()
    elif kind == "fifo":
        os.mkfifo(commit)
    else:
        commit.symlink_to("COMMIT")
    assert sorted(await listed(path)) == [(1, CORRUPT), (2, COMMITTED)]
    async with Store.open(path) as store:
        assert_same(await store.load(2), small_state(2))


async def test_reclaim_removes_what_interrupted_saves_left(tmp_path: Path) -> None:
    path = await saved(tmp_path / "s", 1, 2)
    for name in (f"step-5.tmp-{'0' * 32}", f"step-2.uncommitted-{'1' * 32}"):
        shutil.copytree(path / "step-2", path / name)
    async with Store.open(path, reclaim=True) as store:
        await store.save(6, small_state(6))
    assert sorted(entry.name for entry in path.iterdir()) == ["nvmeof-store.json", "step-1", "step-2", "step-6"]


async def test_save_can_verify_what_it_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Store.open(tmp_path / "s") as store:
        await store.save(1, small_state(1), verify=True)
        publish = directory_medium._DirectoryDraft._publish

        def flipped(draft: Any) -> None:
            shard = Path(draft._path) / "shard-00000.safetensors"
            shard.write_bytes(_flipped(shard.read_bytes(), shard.stat().st_size - 1))
            publish(draft)

        monkeypatch.setattr(directory_medium._DirectoryDraft, "_publish", flipped)
        with pytest.raises(VerificationError, match="step 2"):
            await store.save(2, small_state(2), verify=True)


@pytest.mark.parametrize("place", ["", "nvme+tcp:/host/x", "nvme+tcp:host", "NVME:/x", "nvme+tcp//:x://", "a\0b"])
async def test_misspelt_places_are_refused(place: str) -> None:
    with pytest.raises(UsageError, match=r"is neither nvme\+tcp://"):
        async with Store.open(place):
            pass


async def test_the_scheme_of_a_url_may_be_in_capitals() -> None:
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        async with Store.open("NVME+TCP://127.0.0.1:1/nqn.2026-11.org.example:x/1"):
            pass


def no_commit(path: Path) -> None:
    (path / "COMMIT").unlink()


def torn_commit(path: Path) -> None:
    data = (path / "COMMIT").read_bytes()
    (path / "COMMIT").write_bytes(data[: len(data) // 2])


def foreign_commit(path: Path) -> None:
    record = json.loads((path / "COMMIT").read_bytes())
    record["root_digest"] = "00" * 32
    (path / "COMMIT").write_text(json.dumps(record))


def other_root(path: Path) -> None:
    (path / "root").write_bytes((path / "root").read_bytes().replace(b'"step":2', b'"step":3'))


def no_root(path: Path) -> None:
    (path / "root").unlink()


async def test_a_step_without_commit_is_uncommitted_and_may_be_saved_again(tmp_path: Path) -> None:
    path = await saved(tmp_path / "s", 1, 2)
    no_commit(path / "step-2")
    shutil.copytree(path / "step-1", path / f"step-3.tmp-{'ab' * 16}")
    assert sorted(await listed(path)) == [(1, COMMITTED), (2, WRITING), (3, WRITING)]
    async with Store.open(path) as store:
        for step in (2, 3):
            with pytest.raises(UncommittedError, match=f"step {step} was never committed"):
                await store.load(step)
        assert (await store.resolve()).step == 1
        await store.save(2, small_state(2))
        assert_same(await store.load(2), small_state(2))
        assert sum(info.step == 2 and info.state == WRITING for info in await store.ls()) == 1
        await store.delete(3)
        assert {info.step for info in await store.ls()} == {1, 2}
        with pytest.raises(CheckpointNotFoundError):
            await store.load(3)


@pytest.mark.parametrize("damage", [torn_commit, foreign_commit, other_root, no_root])
async def test_a_commit_that_does_not_match_is_corrupt_and_latest_is_refused(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = await saved(tmp_path / "s", 1, 2)
    damage(path / "step-2")
    assert sorted(await listed(path)) == [(1, COMMITTED), (2, CORRUPT)]
    async with Store.open(path) as store:
        with pytest.raises(CorruptCheckpointError, match="step 2 is corrupt"):
            await store.load(2)
        with pytest.raises(CorruptCheckpointError, match="name a step"):
            await store.load()
        assert_same(await store.load(1), small_state(1))
        with pytest.raises(VerificationError) as caught:
            await store.verify()
        assert [bool(result.damage) for result in sorted(caught.value.results, key=lambda r: r.info.step)] == [
            False,
            True,
        ]
        with pytest.raises(UsageError, match="already has a corrupt checkpoint"):
            await store.save(2, small_state(2))
        await store.delete(2)
        assert_same(await store.load(), small_state(1))


@pytest.mark.parametrize("name", ["table", "rank", "root", "shard-00000.safetensors"])
async def test_every_file_that_is_damaged_missing_or_short_is_noticed(tmp_path: Path, name: str) -> None:
    original = await saved(tmp_path / "s", 1)
    content = (original / "step-1" / name).read_bytes()
    changes = [
        content[:-1],
        b"",
        None,
        *(_flipped(content, i) for i in range(0, len(content), max(1, len(content) // 40))),
    ]
    for changed in changes:
        path = tmp_path / "copy"
        shutil.copytree(original, path)
        if changed is None:
            (path / "step-1" / name).unlink()
        else:
            (path / "step-1" / name).write_bytes(changed)
        async with Store.open(path) as store:
            with pytest.raises(CorruptCheckpointError):
                await store.verify()
        shutil.rmtree(path)


def _flipped(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


async def test_a_shard_header_that_misleads_other_loaders_is_found_by_verify(tmp_path: Path) -> None:
    path = await saved(tmp_path / "s", 1)
    shard = path / "step-1/shard-00000.safetensors"
    data = shard.read_bytes()
    assert data.count(b'"F32","shape":[33]') == 1
    shard.write_bytes(data.replace(b'"F32","shape":[33]', b'"I32","shape":[33]'))
    async with Store.open(path) as store:
        assert_same(await store.load(1), small_state(1))
        with pytest.raises(VerificationError, match=r"header's entry 'model\.bias' is damaged"):
            await store.verify()


async def test_places_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, error in (
        ("home", CheckpointNotFoundError),
        ("empty", CheckpointNotFoundError),
        ("absent", CheckpointNotFoundError),
        ("file", UsageError),
    ):
        async with Store.open(tmp_path / name) as store:
            with pytest.raises(error):
                await store.ls()
    async with Store.open(tmp_path / "home") as store:
        with pytest.raises(UsageError, match="--format"):
            await store.save(1, {})
    async with Store.open(tmp_path / "home", format=True) as store:
        await store.save(1, {})
        assert await store.load() == {}
    assert (tmp_path / "home/thesis.txt").exists()
    async with Store.open(tmp_path / "no/parent") as store:
        with pytest.raises(FileNotFoundError):
            await store.save(1, {})
    with pytest.raises(UsageError, match="neither"):
        async with Store.open("http://x/y"):
            pass
    with pytest.raises(UsageError, match="connection options"):
        async with Store.open(tmp_path / "empty", io_queues=3):
            pass


async def test_newer_and_damaged_store_labels(tmp_path: Path) -> None:
    path = await saved(tmp_path / "s", 1)
    label = path / "nvmeof-store.json"
    good = label.read_text()
    label.write_text(good.replace('"version":1', '"version":2'))
    async with Store.open(path) as store:
        with pytest.raises(UsageError, match="format version 2"):
            await store.ls()
    label.write_text(good[:20])
    async with Store.open(path) as store:
        with pytest.raises(CorruptCheckpointError):
            await store.save(2, {})


async def test_too_little_space_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await saved(tmp_path / "s", 1)
    real = os.statvfs(path)
    full = os.statvfs_result((real.f_bsize, real.f_frsize, real.f_blocks, real.f_bfree, 10, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    async with Store.open(path) as store:
        with pytest.raises(OSError, match=r"wanted \d+ bytes, 40960 are free") as caught:
            await store.save(2, small_state(2))
    assert caught.value.errno == errno.ENOSPC
    assert sorted(entry.name for entry in path.iterdir()) == ["nvmeof-store.json", "step-1"]


async def test_delete_keeps_the_last_committed_checkpoint(tmp_path: Path) -> None:
    path = await saved(tmp_path / "s", 1, 2)
    async with Store.open(path) as store:
        await store.delete(1)
        with pytest.raises(UsageError, match="only committed"):
            await store.delete(2)
        with pytest.raises(CheckpointNotFoundError):
            await store.delete(1)
        assert [info.step for info in await store.ls()] == [2]
    assert sorted(entry.name for entry in path.iterdir()) == ["nvmeof-store.json", "step-2"]


async def test_a_cancelled_save_leaves_nothing_and_waits_for_its_writes(tmp_path: Path) -> None:
    path = await saved(tmp_path / "s", 1)
    async with Store.open(path, window_bytes=4 << 20) as store:
        started = asyncio.Event()
        task = asyncio.create_task(store.save(2, big_state(1), progress=lambda done, total: started.set()))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await listed(path) == [(1, COMMITTED)]
        assert sorted(entry.name for entry in path.iterdir()) == ["nvmeof-store.json", "step-1"]
        await store.save(2, small_state(2))
        await store.verify()


async def test_progress_counts_payload_bytes_to_the_end(tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {"save": [], "verify": [], "load": []}
    state = big_state(1)
    total = sum(array.nbytes for array in state.values())
    async with Store.open(tmp_path / "s") as store:
        await store.save(1, state, progress=lambda *call: seen["save"].append(call))
        await store.verify(progress=lambda *call: seen["verify"].append(call))
        await store.load(progress=lambda *call: seen["load"].append(call))
    for calls in seen.values():
        assert [all_ for _, all_ in calls] == [total] * len(calls)
        done = [done for done, _ in calls]
        assert done == sorted(done)
        assert done[-1] == total


def test_threads_are_gone_when_the_store_is_closed(tmp_path: Path) -> None:
    made: list[ThreadPoolExecutor] = []

    async def use() -> None:
        async with Store.open(tmp_path / "s") as store:
            await store.save(1, {"a": np.zeros(3)})
            made.append(store._executor)

    asyncio.run(use())
    assert not any(thread.is_alive() for thread in made[0]._threads)
