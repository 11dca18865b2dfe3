"""From files through a store to files: directories, .safetensors, .npz. Names, modes, types, clashes."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvmeof.checkpoint import Contents, Store, open_source
from nvmeof.checkpoint.manifest import FILES, Item, RankManifest
from nvmeof.checkpoint.payload import FileStamp, MemoryPayload
from nvmeof.checkpoint.sinks import DirectorySink, open_sink
from nvmeof.errors import CheckpointError, CorruptCheckpointError, UsageError

from .states import assert_same, big_state, small_state


def names(root: Path) -> list[str]:
    return sorted(os.listdir(root))


def tree(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = os.fspath(path.relative_to(root))
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = (stat.S_IMODE(status.st_mode), None)
        else:
            found[name] = (stat.S_IMODE(status.st_mode), path.read_bytes())
    return found


async def test_a_directory_of_files_comes_back_with_names_modes_and_links(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "void").mkdir()
    (source / "empty").touch()
    (source / "run.sh").write_bytes(b"#!/bin/sh\n")
    (source / "deep/er/weights.bin").write_bytes(np.random.default_rng(1).bytes((9 << 20) + 77))
    (source / os.fsdecode(b"bad-\xff-name")).write_bytes(b"x")
    os.chmod(source / "run.sh", 0o754)
    os.chmod(source / "void", 0o700)
    os.symlink("deep/er/weights.bin", source / "latest")
    os.symlink("/nowhere", source / "dangling")
    async with Store.open(tmp_path / "store") as store:
        info = await store.save(1, open_source(source))
        assert (info.kind, info.items) == ("files", 9)
        await store.load_to(tmp_path / "back")
        assert tree(tmp_path / "back") == tree(source)
        contents = await store.load(1)
        assert bytes(contents["run.sh"]) == b"#!/bin/sh\n"
        assert sorted(contents) == sorted(
            name for name, value in tree(source).items() if value[1] is not None and type(value) is tuple
        )
        (tmp_path / "empty").mkdir()
        await store.load_to(tmp_path / "empty")
        assert tree(tmp_path / "empty") == tree(source)
        await store.verify()


async def test_safetensors_in_and_out(tmp_path: Path) -> None:
    arrays = {f"layer.{i}": np.random.default_rng(i).random((i + 1, 300), dtype=np.float32) for i in range(5)}
    arrays["big"] = np.arange(3 << 20, dtype=np.int32)
    save_file(arrays, tmp_path / "in.safetensors", {"format": "pt"})
    async with Store.open(tmp_path / "store") as store:
        await store.save(1, open_source(tmp_path / "in.safetensors"))
        await store.load_to(tmp_path / "out.safetensors")
        assert_same(dict(sorted((await store.load()).items())), dict(sorted(arrays.items())))
    loaded = load_file(tmp_path / "out.safetensors")
    assert_same(dict(sorted(loaded.items())), dict(sorted(arrays.items())))
    assert open_source(tmp_path / "out.safetensors").manifest.metadata == {"format": "pt"}


async def test_a_nested_state_survives_a_safetensors_file(tmp_path: Path) -> None:
    """Saving the loaded file again gives the same root digest: nothing was lost on the way."""
    state = {**small_state(3), "c": np.zeros(3, dtype=np.complex64), "x": bytearray(b"abc"), "n": float("nan")}
    async with Store.open(tmp_path / "one") as store, Store.open(tmp_path / "two") as other:
        info = await store.save(5, state, metadata={"run": "7"})
        await store.load_to(tmp_path / "state.safetensors")
        again = await other.save(5, open_source(tmp_path / "state.safetensors"))
        assert again.root_digest == info.root_digest
        assert_same(await other.load(), state)


async def test_npz_in_and_out(tmp_path: Path) -> None:
    arrays = {"a": np.arange(10.0), "b": np.array(["x", "yz"]), "s": np.array(5), "z": np.zeros((0, 3))}
    np.savez(tmp_path / "in.npz", allow_pickle=False, **arrays)
    async with Store.open(tmp_path / "store") as store:
        await store.save(1, open_source(tmp_path / "in.npz"))
        await store.load_to(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as loaded:
        assert_same({name: loaded[name] for name in loaded.files}, arrays)


async def test_what_does_not_fit_the_destination_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a").write_bytes(b"x")
    bits = np.zeros(3, dtype=np.dtype("<u2", metadata={"nvmeof.dtype": "BF16"}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    (tmp_path / "there.npz").touch()
    async with Store.open(tmp_path / "store") as store:
        await store.save(1, small_state(1))
        await store.save(2, {"w": bits})
        await store.save(3, open_source(tmp_path / "files"))
        before = names(tmp_path)
        for step, name, text in (
            (1, "x", "safetensors or .npz"),
            (1, "x.npz", "nested"),
            (2, "x.npz", "does not fit"),
            (3, "x.npz", "files, not tensors"),
            (3, "x.safetensors", "files, not tensors"),
            (3, "full", "exists already"),
            (2, "there.npz", "exists already"),
            (3, "no/where", "is no directory"),
        ):
            with pytest.raises(UsageError, match=text):
                await store.load_to(tmp_path / name, step)
            assert names(tmp_path) == before


async def test_nothing_appears_when_the_checkpoint_is_corrupt(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "store") as store:
        await store.save(1, big_state(1))
        shard = tmp_path / "store/step-1/shard-00000.safetensors"
        with shard.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"!")
        with pytest.raises(CorruptCheckpointError):
            await store.load_to(tmp_path / "out.safetensors")
        assert names(tmp_path) == ["store"]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", ".", "..", "", "a//b", "a/", "nodir/x", "a\0b", "link/x"]
)
async def test_names_that_lead_out_of_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    items = (Item("link", "symlink", target="/tmp"), Item(name, "file", 1, mode=0o644))
    payloads = (MemoryPayload(memoryview(b"")), MemoryPayload(memoryview(b"x")))
    async with Store.open(tmp_path / "store") as store:
        await store.save(1, Contents(RankManifest(FILES, items), payloads))
        with pytest.raises(CorruptCheckpointError, match="unacceptable name"):
            await store.load_to(tmp_path / "out")
    assert names(tmp_path) == ["store"]


async def test_setuid_does_not_come_back(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/tool").write_bytes(b"x")
    os.chmod(tmp_path / "source/tool", 0o4755)
    async with Store.open(tmp_path / "store") as store:
        await store.save(1, open_source(tmp_path / "source"))
        await store.load_to(tmp_path / "back")
    assert stat.S_IMODE((tmp_path / "back/tool").stat().st_mode) == 0o755


async def test_a_file_that_changes_while_it_is_saved_fails_the_save(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path = tmp_path / "source/log"
    for change in ("append", "truncate", "rewrite"):
        path.write_bytes(bytes(5 << 20))
        contents = open_source(tmp_path / "source")

        def tamper(done: int, total: int, change: str = change) -> None:
            if change == "append":
                with path.open("ab") as file:
                    file.write(b"more")
            elif change == "truncate":
                os.truncate(path, 100)
            else:
                os.utime(path, ns=(1, done))

        async with Store.open(tmp_path / "store", window_bytes=1) as store:
            with pytest.raises(CheckpointError, match="while it was being saved"):
                await store.save(1, contents, progress=tamper)
    assert not list((tmp_path / "store").glob("step-*"))


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    (tmp_path / "x.npz").write_bytes(b"PK")
    np.savez(tmp_path / "pickled.npz", a=np.array([object()]))
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes/fifo")
    for name, text in (
        ("x.txt", "neither"),
        ("x.npz", "no .npz"),
        ("pickled.npz", "plain arrays"),
        ("pipes", "fifo is neither"),
    ):
        with pytest.raises(UsageError, match=text):
            open_source(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "absent")
    with pytest.raises(UsageError, match="is no directory"):
        open_sink(tmp_path / "absent/x", "files")


def test_a_symlinked_safetensors_file_is_followed(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "blob")
    os.symlink("blob", tmp_path / "model.safetensors")
    contents = open_source(tmp_path / "model.safetensors")
    from nvmeof.checkpoint.payload import Scratch

    scratch = Scratch()
    scratch.reserve(24)
    assert bytes(contents.payloads[0].view(0, 24, scratch)) == bytes(24)


@pytest.mark.parametrize("text", ["{}", "x\n", "\u00e9"])
def test_a_safetensors_file_whose_embedded_manifest_does_not_fit_is_refused(tmp_path: Path, text: str) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "x.safetensors", {"nvmeof.manifest": text})
    with pytest.raises(UsageError, match=r"nvmeof\.manifest"):
        open_source(tmp_path / "x.safetensors")
    manifest = RankManifest("state", (Item("b", "bytes", 24, origin="bytes"),), {"d": [["b", {"i": 0}]]})
    save_file({"a": np.zeros(3)}, tmp_path / "y.safetensors", {"nvmeof.manifest": manifest.encode().decode()})
    with pytest.raises(UsageError, match="does not fit the tensors"):
        open_source(tmp_path / "y.safetensors")


async def test_npz_members_may_have_the_names_of_numpys_parameters(tmp_path: Path) -> None:
    state = {"file": np.arange(3), "allow_pickle": np.ones(2), "args": np.zeros((2, 0))}
    async with Store.open(tmp_path / "s") as store:
        await store.save(1, state)
        await store.load_to(tmp_path / "x.npz", 1)
    _same_arrays(tmp_path / "x.npz", state)


def _same_arrays(path: Path, state: dict[str, Any]) -> None:
    with np.load(path, allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(state)
        for name, array in state.items():
            assert np.array_equal(archive[name], array)


def test_an_npz_that_is_a_single_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(UsageError, match="single array"):
        open_source(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "item",
    [
        Item("a", "symlink", target=""),
        Item("a", "symlink", target="a\0b"),
        Item("a", "symlink", target="\ud800"),
        Item("\ud800", "file"),
    ],
)
def test_what_no_file_system_can_hold_is_corruption(tmp_path: Path, item: Item) -> None:
    with pytest.raises(CorruptCheckpointError):
        DirectorySink(tmp_path / "out").prepare(RankManifest("files", (item,)))


def test_two_files_of_one_name_are_corruption() -> None:
    item = Item("a", "file", mode=0o644)
    with pytest.raises(CorruptCheckpointError, match="two files of one name"):
        RankManifest.decode(RankManifest("files", (item, item)).encode())


def test_a_file_whose_mtime_was_set_back_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = path.stat()
    stamp = FileStamp.of(before)
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert FileStamp.of(path.stat()) != stamp
