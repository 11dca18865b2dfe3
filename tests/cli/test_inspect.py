"""``nvmeof inspect``: shows what is there, and leaves every byte as it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from nvmeof.cli.inspect_disk import OverlayDisk
from nvmeof.engine.layout import PAGE, RING_OFFSET, decode_label
from tests.cli.pools import Commands, serving
from tests.cli.test_pool import filled, flip, members

pytestmark = pytest.mark.slow


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(capsys)


@pytest.fixture
def place(commands: Commands, tmp_path: Path) -> Path:
    """A pool with 4 MiB in namespace 1."""
    commands.create(tmp_path / "new", "--key-file", "key")
    filled(tmp_path / "new", commands, "--key-file", "key")
    return tmp_path / "new"


def inspected(commands: Commands, *argv: object, code: int = 0) -> Any:
    return json.loads(commands.run("inspect", *argv, "--json", code=code)[0])


def digests(place: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in members(place)]


@pytest.mark.parametrize(
    "argv", [(), ("--superblocks",), ("--segments", "--key-file", "key"), ("--block", "1:5", "--key-file", "key")]
)
@pytest.mark.parametrize("option", ["--json", ""])
def test_nothing_is_written(place: Path, commands: Commands, argv: tuple[str, ...], option: str) -> None:
    before = digests(place), [path.stat().st_mtime_ns for path in members(place)]
    commands.run("inspect", place, *argv, *filter(None, [option]))
    assert (digests(place), [path.stat().st_mtime_ns for path in members(place)]) == before
    assert not (place / "control").exists()


def test_members_that_only_can_be_read(place: Path, commands: Commands) -> None:
    for path in members(place):
        path.chmod(0o400)
    assert len(inspected(commands, place, "--segments", "--key-file", "key")["segments"]) > 1


def test_labels(place: Path, commands: Commands) -> None:
    paths = members(place)
    flip(paths[0], 100)
    paths[1].unlink()
    paths[1].symlink_to("nowhere")
    paths[2].write_bytes(bytes(4096))
    found = inspected(commands, place)["members"]
    assert [each["labels"] for each in found] == [["bad", "good"], ["blank"] * 2, ["blank"] * 2, ["good"] * 2]
    assert found[1]["problem"] == "missing: the link goes nowhere"
    assert found[0]["role"] == 0
    assert found[3]["encrypted"]


def test_a_member_of_another_pool(place: Path, commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "other")
    members(tmp_path / "other")[3].replace(place / "member-07.nvmeof")
    assert "of another pool" in commands.run("inspect", place)[0].splitlines()[-1]


def test_superblocks(place: Path, commands: Commands) -> None:
    rings = inspected(commands, place, "--superblocks")["superblocks"]
    assert len(rings) == 4
    for slots in rings.values():
        newest = max((each for each in slots if each["state"] == "good"), key=lambda each: int(each["generation"]))
        assert newest["clean"]
        assert [each["state"] for each in newest["members"]] == ["healthy"] * 4
        assert newest["scrub_cursor"] is None
    flip(members(place)[0], RING_OFFSET + newest["slot"] * PAGE + 20)
    out, _ = commands.run("inspect", place, "--superblocks")
    assert out.count(" bad") == 1


def test_a_block(place: Path, commands: Commands) -> None:
    key = ("--key-file", "key")
    block = inspected(commands, place, "--block", "1:300", *key)["block"]
    assert block["good"]
    assert block["record"]["kind"] == "data"
    assert block["record"]["flags"] == ["encrypted"]
    assert block["record"]["first"] <= 300 < block["record"]["first"] + block["record"]["blocks"]
    assert [strip["number"] for strip in block["strips"]] == [0, 1, 2, 3]
    assert sorted(strip["role"] for strip in block["strips"]) == [0, 1, 2, 3]
    assert any(strip["holds_it"] for strip in block["strips"])
    out, _ = commands.run("inspect", place, "--block", "1:300", *key)
    assert "record    good: encrypted data" in out
    assert out.splitlines()[-1] == "* holds the record"
    unwritten = inspected(commands, place, "--block", "1:2000", *key)["block"]
    assert unwritten["state"] == "not written: reads as zeros"
    for where, message in (("2:0", "namespace 2: not in this pool, which has [1]"), ("1:999999999", "is beyond its")):
        assert message in commands.refused("inspect", place, "--block", where, *key)
    assert "the pool is encrypted" in commands.refused("inspect", place, "--block", "1:0")


def test_a_block_with_bad_and_missing_strips(place: Path, commands: Commands) -> None:
    key = ("--key-file", "key")
    block = inspected(commands, place, "--block", "1:300", *key)["block"]
    first, second = block["strips"][0], block["strips"][3]
    flip(Path(first["path"]), first["offset"] + 3)
    Path(second["path"]).unlink()
    strips = inspected(commands, place, "--block", "1:300", *key, code=1)["block"]["strips"]
    assert (strips[0]["header"], strips[0]["payload"]) == ("bad", "bad")
    assert (strips[3]["header"], strips[3]["payload"]) == ("missing", "missing")
    assert (strips[1]["header"], strips[1]["payload"]) == ("good", "good")


def test_segments(place: Path, commands: Commands) -> None:
    segments = inspected(commands, place, "--segments", "--key-file", "key")["segments"]
    assert sum(each["live"] for each in segments) == 1024
    assert not any(each["bad_strips"] for each in segments)


def test_a_pool_that_is_served(place: Path, commands: Commands) -> None:
    with serving(place, "--key-file", "key"):
        assert len(inspected(commands, place, "--superblocks")["superblocks"]) == 4
        said = commands.refused("inspect", place, "--block", "1:0", "--key-file", "key")
        assert said.endswith("is in use: another process has this pool open")


def test_the_picture_takes_writes(tmp_path: Path) -> None:
    path = tmp_path / "member"
    path.write_bytes(bytes(range(256)) * 64)
    before = path.read_bytes()
    disk = OverlayDisk.open(path)
    model = bytearray(before)
    for offset, data in ((0, b"a" * 10), (4090, b"b" * 12), (8192, b"c" * 4096), (100, b"d" * 9000)):
        disk.write(offset, data)
        model[offset : offset + len(data)] = data
    disk.discard(4096, 4096)
    model[4096:8192] = bytes(4096)
    for offset, length in ((0, len(model)), (1, 5000), (4000, 200), (8191, 2), (12_288, 4096)):
        view = memoryview(bytearray(length))
        disk.read_into(offset, view)
        assert bytes(view) == bytes(model[offset : offset + length])
    with pytest.raises(OSError, match="ends at byte"):
        disk.read_into(len(model) - 1, memoryview(bytearray(2)))
    disk.close()
    assert path.read_bytes() == before
    assert decode_label(before[:PAGE]) is None
