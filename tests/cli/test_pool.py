"""``nvmeof pool`` on real files: made, looked at, broken, repaired and destroyed, with nobody serving them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from nvmeof.engine.layout import AREA_BYTES, KEYS_BYTES, KEYS_OFFSET
from nvmeof.limits import KEY_EXPORT_BYTES_MAX
from tests.cli.pools import ENVIRONMENT, SMALL, Commands, serving

pytestmark = pytest.mark.slow

SHAPES = [
    ("raid6", 4),
    ("raid6", 6),
    ("raid6", 18),
    ("raid5", 3),
    ("raid5", 17),
    ("none", 1),
    ("none", 2),
    ("none", 16),
]
MIB = 1 << 20


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(capsys)


def members(directory: Path) -> list[Path]:
    return sorted(directory.glob("member-*.nvmeof"))


def filled(directory: Path, commands: Commands, *key: object) -> bytes:
    """Write something to namespace 1 of a pool through a target; what was written."""
    content = os.urandom(4 * MIB)
    source = directory.parent / "content"
    source.write_bytes(content)
    with serving(directory, *key) as (_, url):
        for start in range(0, len(content) // 4096, 256):
            (directory.parent / "piece").write_bytes(content[start * 4096 : (start + 256) * 4096])
            commands.run("write", f"{url}/1", "-s", start, "-c", 255, "--data", directory.parent / "piece")
        commands.run("flush", f"{url}/1")
    return content


def content_of(url: str, length: int, commands: Commands, directory: Path) -> bytes:
    found = b""
    for start in range(0, length // 4096, 256):
        commands.run("read", f"{url}/1", "-s", start, "-c", 255, "--data", directory / "read")
        found += (directory / "read").read_bytes()
    return found


# --- making -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("raid", "count"), SHAPES)
def test_create_every_shape(raid: str, count: int, commands: Commands) -> None:
    size = ("--size", "16M", "--sparse", "--no-encryption")
    made = commands.json("create", "new", "--members", count, "--raid", raid, *size)
    assert made["raid"] == raid
    assert made["capacity"] >= 16 * MIB
    assert len(made["members"]) == made["data"] + made["parity"] == count
    status = commands.json("status", "new")
    assert status["healthy"]
    assert status["uuid"] == made["uuid"]
    assert [(each["role"], each["state"]) for each in status["members"]] == [(n, "healthy") for n in range(count)]


def test_what_is_made(commands: Commands, tmp_path: Path) -> None:
    out, _ = commands.run("pool", "create", "new", "--members", 4, "--size", "16M", "--key-file", "key")
    assert "raid6, 2 data + 2 parity" in out
    assert out.splitlines()[-1] == f"nvmeof serve --pool new --key-file {tmp_path}/key"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    for path in members(tmp_path / "new"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_blocks * 512 >= path.stat().st_size, "space is to be taken at once"


def test_sparse_files_take_no_space(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "new")
    assert all(path.stat().st_blocks * 512 < MIB for path in members(tmp_path / "new"))


def test_links_to_files(commands: Commands, tmp_path: Path) -> None:
    places = [tmp_path / f"disk{number}" for number in range(4)]
    for place in places:
        place.mkdir()
    files = [place / "member" for place in places]
    options = [word for file in files for word in ("--member", file)]
    made = commands.json("create", "new", *options, "--size", "16M", "--sparse", "--no-encryption")
    assert [Path(path).readlink() for path in made["members"]] == files
    assert commands.json("status", "new")["healthy"]


def test_files_that_are_there(commands: Commands, tmp_path: Path) -> None:
    options: list[object] = []
    for number in range(4):
        with (tmp_path / f"disk{number}").open("wb") as file:
            file.truncate((20 + number) * MIB)
        options += ["--member", f"disk{number}"]
    said = commands.refused("pool", "create", "new", *options, "--size", "16M", "--no-encryption")
    assert said == f"--size: {tmp_path}/disk0 is there and has a size; leave --size out"
    made = commands.json("create", "new", *options, "--no-encryption", "--sparse")
    assert made["member_bytes"] == 20 * MIB
    assert commands.json("status", "new")["healthy"]


def test_a_file_that_holds_something(commands: Commands, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"disk{number}").write_bytes(b"mine" * (5 * MIB))
    options = [word for number in range(4) for word in ("--member", f"disk{number}")]
    said = commands.refused("pool", "create", "new", *options, "--no-encryption")
    assert said == f"{tmp_path}/disk0: may hold data; --yes says that it may be overwritten"
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "disk0").read_bytes() == b"mine" * (5 * MIB)
    commands.json("create", "new", *options, "--no-encryption", "--yes")
    assert commands.json("status", "new")["healthy"]


def test_a_pool_is_not_overwritten_by_accident(commands: Commands, tmp_path: Path) -> None:
    first = commands.create(tmp_path / "new")
    said = commands.refused("pool", "create", "new", *SMALL, "--no-encryption")
    assert said == "new: holds a pool, or what is left of one; --yes says that its members may be overwritten"
    assert commands.json("status", "new")["uuid"] == first["uuid"]
    second = commands.json("create", "new", "--members", 5, "--size", "16M", "--sparse", "--no-encryption", "--yes")
    assert commands.json("status", "new")["uuid"] == second["uuid"] != first["uuid"]
    assert len(members(tmp_path / "new")) == 5


def test_a_disk_that_is_full_leaves_nothing_behind(commands: Commands, tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    if space.f_bavail * space.f_frsize > 1 << 50:
        pytest.skip("there is no end of space")
    size = f"{(space.f_bavail * space.f_frsize >> 30) + 8}G"
    said = commands.refused("pool", "create", "new", "--size", size, "--key-file", "key", code=3)
    assert "--sparse makes files that grow" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == []


# --- keys -------------------------------------------------------------------------------------------------------------


def test_every_key_source(commands: Commands, tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("correct horse battery staple\nnot this\n")
    for number, key in enumerate(
        [("--key-file", "key"), ("--passphrase-file", "passphrase"), ("--key-command", f"printf %064d {7}")]
    ):
        place = tmp_path / f"pool{number}"
        assert commands.create(place, *key)["encrypted"]
        assert commands.json("status", place, *key)["encrypted"]
        assert "the pool is encrypted" in commands.refused("pool", "status", place)
    wrong = commands.refused("pool", "status", "pool0", "--key-command", "printf %064d 8")
    assert "does not open this pool" in wrong
    assert "passphrase" in commands.refused("pool", "status", "pool1", "--key-file", "key")


def test_rotation(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "new", "--key-file", "old")
    commands.run("pool", "rotate-key", "new", "--key-file", "old", "--new-key-file", "fresh")
    assert (tmp_path / "fresh").stat().st_mode & 0o777 == 0o600
    assert "does not open this pool" in commands.refused("pool", "status", "new", "--key-file", "old")
    assert commands.json("status", "new", "--key-file", "fresh")["healthy"]
    commands.run("pool", "replace", "new", 0, "--key-file", "fresh")
    _, err = commands.run("pool", "rotate-key", "new", "--key-file", "fresh", "--new-key-file", "other")
    assert err.startswith("nvmeof: warning: new/member-00.nvmeof.replaced: was a member, and the old key opens")
    beside = ("--key-file", "fresh", "--new-key-file", "new/key")
    assert "beside the data" in commands.refused("pool", "rotate-key", "new", *beside)


def test_a_rotation_that_fails_keeps_the_new_key(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "new", "--key-file", "old")
    commands.refused("pool", "rotate-key", "new", "--new-key-file", "fresh")
    assert (tmp_path / "fresh").exists()
    assert commands.json("status", "new", "--key-file", "old")["healthy"]


def test_export(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "new", "--key-file", "key")
    commands.run("pool", "export-keys", "new", "saved", "--key-file", "key")
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o600
    assert bytes.fromhex((tmp_path / "key").read_text().strip()).hex() not in (tmp_path / "saved").read_bytes().hex()
    assert "exists already" in commands.refused("pool", "export-keys", "new", "saved", "--key-file", "key")
    commands.create(tmp_path / "plain")
    assert "not encrypted" in commands.refused("pool", "export-keys", "plain", "other")
    assert "not encrypted" in commands.refused("pool", "import-keys", "plain", "saved", "--key-file", "key")
    assert not (tmp_path / "other").exists()


def test_import_of_an_export(commands: Commands, tmp_path: Path) -> None:
    """What is left of the pool when every key table is overwritten: the export and the key bring it back."""
    commands.create(tmp_path / "new", "--key-file", "key")
    commands.json("create-namespace", "new", "--size", "8M", "--key-file", "key")
    commands.run("pool", "export-keys", "new", "saved", "--key-file", "key")
    restore = ("pool", "import-keys", "new", "saved", "--key-file", "key")
    assert "only if it is not the right one" in commands.refused(*restore)
    for member in (tmp_path / "new").glob("member-*"):
        with member.open("r+b") as file:
            for area in (0, member.stat().st_size // 4096 * 4096 - AREA_BYTES):
                file.seek(area + KEYS_OFFSET)
                file.write(bytes(KEYS_BYTES))
    assert "import-keys" in commands.refused("pool", "status", "new", "--key-file", "key")
    commands.create(tmp_path / "other-pool", "--key-file", "other")
    assert "wrong key" in commands.refused("pool", "import-keys", "new", "saved", "--key-file", "other")
    assert "got no key" in commands.refused("pool", "import-keys", "new", "saved")
    (tmp_path / "half").write_bytes((tmp_path / "saved").read_bytes()[:100])
    assert "no exported key table" in commands.refused("pool", "import-keys", "new", "half", "--key-file", "key")
    (tmp_path / "huge").write_bytes(bytes(KEY_EXPORT_BYTES_MAX + 1))
    assert "more than" in commands.refused("pool", "import-keys", "new", "huge", "--key-file", "key")
    elsewhere = ("pool", "import-keys", "other-pool", "saved", "--key-file", "key", "--yes")
    assert "another pool" in commands.refused(*elsewhere)
    assert "1 keys are back" in commands.run(*restore)[0]
    assert commands.json("status", "new", "--key-file", "key")["healthy"]


def test_a_passphrase_is_asked_for_on_the_terminal(commands: Commands, tmp_path: Path) -> None:
    create = ["pool", "create", "new", *SMALL, "--passphrase"]
    assert "the two passphrases differ" in on_terminal(tmp_path, create, ["secret words", "secret word"], code=64)
    assert not (tmp_path / "new").exists()
    assert "the passphrase is empty" in on_terminal(tmp_path, create, [""], code=64)
    said = on_terminal(tmp_path, create, ["secret words", "secret words"])
    assert "encrypted" in said
    assert "nvmeof serve --pool new --passphrase\n" in said
    status = ["pool", "status", "new", "--passphrase"]
    assert "healthy" in on_terminal(tmp_path, status, ["secret words"])
    assert "does not open this pool" in on_terminal(tmp_path, status, ["other words"], code=64)


def test_no_terminal_to_ask_at(commands: Commands, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nvmeof", "pool", "create", "new", *SMALL, "--passphrase"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, start_new_session=True, check=False
    )
    assert ended.returncode == 64
    assert ended.stderr == "nvmeof: --passphrase: there is no terminal to ask at, want --passphrase-file\n"


def on_terminal(directory: Path, argv: list[str], answers: list[str], code: int = 0) -> str:
    """What a command says at a terminal where somebody types the answers."""
    process, terminal = pty.fork()
    if not process:
        os.chdir(directory)
        os.execve(sys.executable, [sys.executable, "-m", "nvmeof", *argv], ENVIRONMENT)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(terminal, 4096):
            said += chunk
            if chunk.rstrip().endswith(b":") and answers:
                os.write(terminal, answers.pop(0).encode() + b"\n")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code, said
    assert not answers
    assert b"secret" not in said
    return said.decode().replace("\r\n", "\n")


# --- namespaces -------------------------------------------------------------------------------------------------------


def test_namespaces(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place, "--key-file", "key")
    key = ("--key-file", "key")
    made = commands.json(
        "create-namespace", place, "--size", "1G", "--codec", "zstd", "--level", 3, "--planes", 2, *key
    )
    assert (made["nsid"], made["size"], made["codec"], made["level"], made["planes"]) == (1, 1 << 30, "zstd", 3, 2)
    made = commands.json("create-namespace", place, "--size", "1M", "--nsid", 9, "--block-size", 512, *key)
    assert (made["nsid"], made["block_size"], made["encrypted"]) == (9, 512, True)
    made = commands.json("create-namespace", place, "--size", "1M", "--encryption", "off", "--write-cache", "off", *key)
    assert (made["nsid"], made["encrypted"], made["write_cache"]) == (2, False, False)
    assert commands.json("resize", place, 2, "2M", *key)["size"] == 2 * MIB
    assert "--yes says" in commands.refused("pool", "resize", place, 2, "1M", *key)
    assert commands.json("resize", place, 2, "1M", "--yes", *key)["size"] == MIB
    assert commands.json("set", place, 2, "--codec", "lz4", "--write-cache", "on", *key)["codec"] == "lz4"
    assert "namespace 2: everything in it" in commands.refused("pool", "delete-namespace", place, 2, *key)
    commands.run("pool", "delete-namespace", place, 2, "--yes", *key)
    left = {each["nsid"]: each for each in commands.json("status", place, *key)["namespaces"]}
    assert sorted(left) == [1, 9]
    assert left[1]["planes"] == 2
    for argv in (["delete-namespace", place, 2, "--yes"], ["resize", place, 2, "1M"], ["set", place, 2, "--level", 1]):
        assert commands.refused("pool", *argv, *key) == "namespace 2: not in this pool, which has 1, 9"
    assert commands.refused("pool", "create-namespace", place, "--size", "1M", "--nsid", 9, *key).startswith(
        "namespace 9: there is one already"
    )
    assert commands.refused("pool", "create-namespace", place, "--size", "1000", *key).startswith("size 1000: want")


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_is_found_healed_and_named(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    filled(place, commands)
    block = json.loads(commands.run("inspect", place, "--block", "1:300", "--json")[0])["block"]
    assert block["good"]
    strip = next(each for each in block["strips"] if each["holds_it"])
    flip(Path(strip["path"]), strip["offset"] + 1000)
    out, _ = commands.run("inspect", place, "--block", "1:300", code=1)
    assert "bad" in out
    found = commands.json("scrub", place, code=1)
    assert found["bad"] == {strip["path"]: 1}
    assert (found["healed"], found["lost"], found["good"]) == (1, 0, False)
    assert [(error["what"], error["healed"]) for error in found["errors"]] == [
        (f"a bad strip on {strip['path']}", True)
    ]
    assert commands.json("scrub", place)["good"]
    assert commands.json("status", place)["healthy"]
    assert "good" in commands.run("inspect", place, "--block", "1:300")[0]


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_what_is_beyond_redundancy_is_said(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    filled(place, commands)
    block = json.loads(commands.run("inspect", place, "--block", "1:300", "--json")[0])["block"]
    for strip in block["strips"][:3]:
        flip(Path(strip["path"]), strip["offset"] + 1000)
    found = commands.json("scrub", place, code=1)
    assert found["lost"] == 1
    out, _ = commands.run("pool", "scrub", place, code=1)
    assert "LOST 1 stripes" in out
    assert not commands.json("status", place, code=1)["healthy"]


def test_two_members_lost_and_replaced(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    content = filled(place, commands)
    for number in (0, 3):
        members(place)[number if number == 0 else -1].unlink()
    out, err = commands.run("pool", "status", place, code=1)
    assert "DEGRADED" in out
    assert "warning" in err
    assert "degraded" in err
    with serving(place) as (_, url):
        assert content_of(url, len(content), commands, tmp_path) == content
    for role in (0, 3):
        replaced = commands.json("replace", place, role)
        assert replaced["rebuilt"]
        assert replaced["member"] == str(place / f"member-{role:02d}.nvmeof")
    assert commands.json("status", place)["healthy"]
    members(place)[1].unlink()
    members(place)[-2].unlink()
    with serving(place) as (_, url):
        assert content_of(url, len(content), commands, tmp_path) == content


def test_too_many_members_lost(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "new")
    for path in members(tmp_path / "new")[:3]:
        path.unlink()
    for argv in (["pool", "status", "new"], ["serve", "--pool", "new"]):
        assert commands.refused(*argv).startswith("3 of 4 members are missing, 2 may be: bring back")


def test_a_member_that_cannot_be_read_is_named(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "new")
    path = members(tmp_path / "new")[1]
    path.unlink()
    path.touch()
    _, err = commands.run("pool", "status", "new", code=1)
    assert "nvmeof: warning: new/member-01.nvmeof: is empty, and no size was given\n" in err


def test_a_member_of_another_pool_is_named(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "one")
    commands.create(tmp_path / "two")
    os.replace(members(tmp_path / "one")[2], members(tmp_path / "two")[2])
    said = commands.refused("pool", "status", "two")
    assert said.startswith("two/member-02.nvmeof: belongs to another pool")


def test_a_healthy_member_is_replaced(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    answer = commands.json("replace", place, 1)
    assert answer["member"] == str(place / "member-04.nvmeof")
    assert Path(answer["member"]).stat().st_blocks * 512 < 2 * MIB, "the pool is one of sparse files"
    assert answer["note"] == f"the old file is {place}/member-01.nvmeof.replaced now"
    status = commands.json("status", place)
    assert [each["name"] for each in status["members"]][1] == answer["member"]
    answer = commands.json("replace", place, 1, "--member", "elsewhere")
    assert Path(answer["member"]).readlink() == tmp_path / "elsewhere"
    assert commands.json("status", place)["healthy"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["replace", "new", "4"], "role 4: got 4, wanted 0 to 3"),
        (["replace", "new", "1", "--member", "small"], "PATH/small: is 4096 bytes, members have"),
        (["replace", "new", "1", "--member", "full"], "PATH/full: may hold data; --yes"),
        (["replace", "new", "1", "--member", "new"], "PATH/new: is a directory"),
        (["add-spare", "new", "--member", "small"], "PATH/small: is 4096 bytes, members have"),
        (
            ["add-spare", "new", "--member", "new/member-00.nvmeof"],
            "--member: PATH/new/member-00.nvmeof has the name of a link to a member",
        ),
        (["scrub", "new", "--background"], "--background: nobody serves this pool"),
        (["rotate-key", "new", "--new-key-file", "key"], "the pool is not encrypted"),
    ],
)
def test_a_newcomer_that_is_refused_leaves_nothing(
    argv: list[str], message: str, commands: Commands, tmp_path: Path
) -> None:
    commands.create(tmp_path / "new")
    with (tmp_path / "small").open("wb") as small:
        small.truncate(4096)
    (tmp_path / "full").write_bytes(b"x" * 64 * MIB)
    assert commands.refused("pool", *argv).startswith(message.replace("PATH", str(tmp_path)))
    assert len(members(tmp_path / "new")) == 4
    assert commands.json("status", "new")["healthy"]
    assert (tmp_path / "small").stat().st_size == 4096


def test_a_spare_steps_in(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    content = filled(place, commands)
    assert commands.json("add-spare", place)["member"] == str(place / "member-04.nvmeof")
    members(place)[0].unlink()
    commands.run("pool", "rebuild", place)
    status = commands.json("status", place)
    assert status["healthy"]
    assert status["members"][0]["name"] == str(place / "member-04.nvmeof")
    with serving(place) as (_, url):
        assert content_of(url, len(content), commands, tmp_path) == content


def test_a_member_that_was_away_comes_back(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    content = filled(place, commands)
    away = members(place)[1]
    away.rename(tmp_path / "away")
    commands.json("create-namespace", place, "--size", "1M")
    (tmp_path / "away").rename(away)
    status = commands.json("status", place, code=1)
    assert [each["state"] for each in status["members"]] == ["healthy", "out", "healthy", "healthy"]
    for role in (0, 9):
        _, err = commands.run("pool", "rejoin", place, role, code=64)
        assert err.splitlines()[-1] == f"nvmeof: member {role}: is not a member that is out and there"
    assert commands.json("rejoin", place, 1)["rebuilt"]
    assert commands.json("status", place)["healthy"]
    members(place)[0].unlink()
    members(place)[-1].unlink()
    with serving(place) as (_, url):
        assert content_of(url, len(content), commands, tmp_path) == content


def test_rebuild_with_nothing_to_do(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "new")
    assert commands.run("pool", "rebuild", "new")[0] == "nothing to rebuild\n"


# --- the end ----------------------------------------------------------------------------------------------------------


def test_destroy(commands: Commands, tmp_path: Path) -> None:
    place, outside = tmp_path / "new", [tmp_path / f"disk{number}" for number in range(4)]
    options = [word for file in outside for word in ("--member", file)]
    commands.json("create", place, *options, "--size", "16M", "--sparse", "--key-file", "key")
    commands.json("replace", place, 1, "--key-file", "key")
    commands.json("replace", place, 1, "--key-file", "key")
    destroyed = commands.json("destroy", place, "--yes")
    assert len(destroyed["destroyed"]) == 5
    assert not place.exists()
    for file in (outside[0], *outside[2:]):
        assert file.read_bytes().count(0) == file.stat().st_size, "something is left"
    assert (tmp_path / "key").exists()


def test_destroy_says_what_it_could_not_reach(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    path = members(place)[0]
    path.unlink()
    path.mkdir()
    _, err = commands.run("pool", "destroy", place, "--yes", code=3)
    assert (
        err
        == f"nvmeof: warning: {path}: is a directory; want a regular file or a block device; keys may be left on it\n"
    )
    assert [each.name for each in place.iterdir()] == ["member-00.nvmeof"]


def test_hostile_members_are_one_line(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    for number, path in enumerate(members(place)):
        content = bytearray(path.read_bytes())
        noise = os.urandom(AREA_BYTES)
        content[:AREA_BYTES] = content[-AREA_BYTES:] = noise if number else bytes(AREA_BYTES)
        path.write_bytes(content)
    for argv in (["pool", "status", place], ["serve", "--pool", place], ["inspect", place, "--segments"]):
        said = commands.refused(*argv)
        assert "none of the disks has a pool's label" in said
    assert "bad" in commands.run("inspect", place)[0]
