"""``nvmeof ckpt`` in a process of its own: a directory, and a namespace of a target on a real socket."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvmeof.cli.main import main
from tests.conftest import LiveTarget

from .states import assert_same

pytestmark = pytest.mark.slow


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Result:
        code = main(["ckpt", *(str(argument) for argument in arguments)])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def arrays(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {f"layer{i}.weight": rng.random((300, 1000 + i), dtype=np.float32) for i in range(8)}


@pytest.fixture(params=["directory", "namespace"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "directory":
        return os.fspath(tmp_path / "store")
    target: LiveTarget = request.getfixturevalue("live_target")
    return target.url


def damage(place: str, tmp_path: Path, content: bytes) -> None:
    """Flip one bit of ``content`` where it lies on disk."""
    path = tmp_path / "live.img" if "://" in place else tmp_path / "store/step-1/shard-00000.safetensors"
    position = path.read_bytes().index(content)
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([content[0] ^ 1]))


def test_save_ls_verify_load_and_a_flipped_bit(place: str, tmp_path: Path, run: Run) -> None:
    source = tmp_path / "in.safetensors"
    save_file(arrays(1), source)
    saved = run("save", place, source, "--step", 1, "--json")
    assert (saved.code, saved.err) == (0, "")
    digest = saved.json["root_digest"]
    assert (saved.json["step"], saved.json["items"], saved.json["bytes"]) == (
        1,
        8,
        sum(a.nbytes for a in arrays(1).values()),
    )
    save_file(arrays(2), tmp_path / "two.safetensors")
    second = run("save", place, tmp_path / "two.safetensors", "--step", 2)
    assert second.code == 0
    assert second.out.startswith("saved step 2: 9.2 MiB, 8 tensors, 8 chunks in ")
    listed = run("ls", place, "--json").json["checkpoints"]
    assert [(entry["step"], entry["state"]) for entry in listed] == [(1, "committed"), (2, "committed")]
    assert digest in run("ls", place).out
    verified = run("verify", place, "--json")
    assert verified.code == 0
    assert verified.json["good"] is True
    assert run("load", place, tmp_path / "out.safetensors").code == 0
    assert_same(load_file(tmp_path / "out.safetensors"), dict(sorted(arrays(2).items())))
    assert run("load", place, tmp_path / "one.safetensors", "--step", 1).code == 0
    assert_same(load_file(tmp_path / "one.safetensors"), dict(sorted(arrays(1).items())))

    damage(place, tmp_path, arrays(1)["layer5.weight"][100].tobytes())
    bad = run("verify", place, "--json")
    assert bad.code == 1
    assert [(entry["step"], entry["good"]) for entry in bad.json["checkpoints"]] == [(1, False), (2, True)]
    (found,) = bad.json["checkpoints"][0]["damage"]
    assert (found["item"], found["chunk"], found["start"]) == ("layer5.weight", 0, 0)
    assert "step 1" in bad.err
    text = run("verify", place, "--step", 1)
    assert text.code == 1
    assert "step 1: CORRUPT, 1 damaged" in text.out
    assert "'layer5.weight', chunk 0 (bytes 0 to 1206000): does not match its hash, at " in text.out
    assert text.err.count("\n") == 1
    assert run("verify", place, "--step", 2).code == 0
    loaded = run("load", place, tmp_path / "bad.safetensors", "--step", 1)
    assert loaded.code == 1
    assert "'layer5.weight'" in loaded.err
    assert not (tmp_path / "bad.safetensors").exists()


def test_exit_codes_and_one_line_errors(place: str, tmp_path: Path, run: Run) -> None:
    np.savez(tmp_path / "x.npz", allow_pickle=False, a=np.zeros(3))
    for arguments, code in (
        (("ls", place), 10),
        (("verify", place), 10),
        (("load", place, tmp_path / "y.npz"), 10),
        (("save", place, tmp_path / "absent.npz", "--step", 1), 10),
        (("save", place, tmp_path / "x.npz", "--step", -1), 64),
        (("save", place, tmp_path / "x.npz", "--step", 1 << 63), 64),
        (("save", place, tmp_path / "x.npz"), 64),
        (("save", place, tmp_path / "x.npz", "--step", 1), 0),
        (("save", place, tmp_path / "x.npz", "--step", 1), 64),
        (("load", place, tmp_path / "y.npz", "--step", 2), 10),
        (("load", place, tmp_path / "y.txt"), 64),
        (("load", place, tmp_path / "x.npz"), 64),
        (("verify", place, "--step", "newest"), 64),
        (("delete", place, "--step", 1), 64),
        (("delete", place, "--step", 9), 10),
        (("nonsense", place), 64),
        (("ls", "ftp://x"), 64),
        (("ls", "nvme+tcp://127.0.0.1:1/nqn.2026-11.org.example:x/1"), 3),
    ):
        result = run(*arguments)
        assert result.code == code, (arguments, result)
        if code:
            assert result.out == ""
            assert result.err.startswith("nvmeof: ")
            assert result.err.count("\n") == 1, result.err


def test_delete_frees_the_step(place: str, tmp_path: Path, run: Run) -> None:
    np.savez(tmp_path / "x.npz", allow_pickle=False, a=np.zeros(3))
    for step in (1, 2):
        assert run("save", place, tmp_path / "x.npz", "--step", step).code == 0
    assert run("delete", place, "--step", 1, "--json").json["step"] == 1
    assert run("save", place, tmp_path / "x.npz", "--step", 1).code == 0
    assert run("verify", place, "--step", "latest", "--json").json["checkpoints"][0]["step"] == 1


def test_the_same_content_has_the_same_root_digest_on_both_media(
    tmp_path: Path, live_target: LiveTarget, run: Run
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.bin").write_bytes(bytes(range(256)) * 40_000)
    (tmp_path / "files/b").write_bytes(b"b")
    digests = [
        run("save", place, tmp_path / "files", "--step", 4, "--json").json["root_digest"]
        for place in (live_target.url, tmp_path / "store")
    ]
    assert digests[0] == digests[1]
    for place in (live_target.url, tmp_path / "store"):
        assert run("load", place, tmp_path / f"back{len(str(place))}").code == 0
        assert (tmp_path / f"back{len(str(place))}/a.bin").read_bytes() == bytes(range(256)) * 40_000


KILLED = """
import asyncio, os, signal, sys
from nvmeof.checkpoint import Store, open_source

async def main(place, source, step, fraction):
    def progress(done, total):
        if done >= float(fraction) * total:
            os.kill(os.getpid(), signal.SIGKILL)

    async with Store.open(place) as store:
        await store.save(int(step), open_source(source), progress=progress)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_save_is_uncommitted_and_the_next_one_works(place: str, tmp_path: Path, run: Run) -> None:
    big = {f"w{i}": np.random.default_rng(i).integers(0, 256, 2 << 20, dtype=np.uint8) for i in range(6)}
    source = os.fspath(tmp_path / "big.safetensors")
    save_file(big, source)
    save_file(arrays(1), tmp_path / "small.safetensors")
    assert run("save", place, tmp_path / "small.safetensors", "--step", 1).code == 0
    for step, fraction in ((11, 0.0), (12, 0.5), (13, 1.0)):
        killed = subprocess.run([sys.executable, "-c", KILLED, place, source, str(step), str(fraction)], check=False)
        assert killed.returncode == -signal.SIGKILL
        found = {entry["step"]: entry["state"] for entry in run("ls", place, "--json").json["checkpoints"]}
        assert (found[1], found[step]) == ("committed", "writing")
        assert run("verify", place, "--step", step).code == 2
        never = run("load", place, tmp_path / "never.safetensors", "--step", step)
        assert never.code == 2
        assert f"step {step} was never committed" in never.err
        assert run("verify", place).code == 0
        assert run("verify", place, "--step", "latest", "--json").json["checkpoints"][0]["step"] == 1
    assert run("save", place, source, "--step", 12, "--reclaim").code == 0
    assert run("verify", place).code == 0
    assert run("load", place, tmp_path / "out.safetensors").code == 0
    assert_same(load_file(tmp_path / "out.safetensors"), dict(sorted(big.items())))


def test_a_progress_bar_on_a_terminal_and_none_elsewhere(tmp_path: Path) -> None:
    save_file(arrays(1), tmp_path / "in.safetensors")
    command = [
        sys.executable,
        "-m",
        "nvmeof",
        "ckpt",
        "save",
        os.fspath(tmp_path / "store"),
        os.fspath(tmp_path / "in.safetensors"),
    ]
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run([*command, "--step", "1"], stdout=subprocess.PIPE, stderr=child, check=True, env=environment)
    os.close(child)
    shown = os.read(parent, 1 << 16)
    os.close(parent)
    assert b"saving" in shown
    assert b"/s" in shown
    assert done.stdout.startswith(b"saved step 1")
    plain = subprocess.run([*command, "--step", "2"], capture_output=True, check=True)
    assert plain.stderr == b""


def test_a_foreign_namespace_is_not_overwritten(live_target: LiveTarget, tmp_path: Path, run: Run) -> None:
    with live_target.backing.open("r+b") as file:
        file.seek(70_000)
        file.write(b"somebody's file system")
    np.savez(tmp_path / "x.npz", allow_pickle=False, a=np.zeros(3))
    refused = run("save", live_target.url, tmp_path / "x.npz", "--step", 1)
    assert refused.code == 64
    assert "--format" in refused.err
    assert b"somebody's file system" in live_target.backing.read_bytes()[:100_000]
    assert run("ls", live_target.url).code == 10
    assert run("save", live_target.url, tmp_path / "x.npz", "--step", 1, "--format").code == 0
    assert run("verify", live_target.url).code == 0


def test_a_store_inside_what_is_saved_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_bytes(b"a")
    for store in (tmp_path / "src", tmp_path / "src/store"):
        result = run("save", store, tmp_path / "src", "--step", 1)
        assert (result.code, "lies in" in result.err) == (64, True)
    assert sorted(path.name for path in (tmp_path / "src").iterdir()) == ["a"]
    assert run("save", tmp_path / "src-store", tmp_path / "src", "--step", 1, "--verify").code == 0
