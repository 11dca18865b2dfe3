"""What a sceptical administrator tried on ``nvmeof pool`` and got another answer to than a clear refusal."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest

from nvmeof.cli import pool_control
from nvmeof.cli.main import main
from nvmeof.cli.pool_directory import PoolDirectory
from nvmeof.cli.pool_operations import perform
from nvmeof.errors import UsageError
from nvmeof.keys.sources import COMMAND_BYTES_MAX
from tests.cli.pools import SMALL, Commands, serving
from tests.cli.test_pool import filled, flip

pytestmark = pytest.mark.slow

CREATE = ("pool", "create", "new", "--sparse")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(capsys)


def test_a_pipe_for_a_member_is_refused_at_once(commands: Commands, tmp_path: Path) -> None:
    """Opening it would wait for ever for somebody at the other end."""
    os.mkfifo(tmp_path / "pipe")
    member = ("--member", "pipe", "--raid", "none", "--no-encryption")
    said = f"{tmp_path}/pipe: is a pipe; want a regular file or a block device"
    assert commands.refused(*CREATE, "--size", "16M", *member) == said
    assert "--size: is missing" in commands.refused(*CREATE, *member)
    assert sorted(os.listdir(tmp_path)) == ["pipe"]


def test_a_pipe_for_a_passphrase_is_refused_at_once(commands: Commands, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    said = commands.refused("pool", "create", "new", *SMALL, "--passphrase-file", "pipe")
    assert said == "pipe: the passphrase cannot be read: it is not a file"


@pytest.mark.parametrize("command", ["cat /dev/zero", "cat /dev/zero >&2 & cat /dev/zero"])
def test_a_key_command_that_never_stops_printing(command: str, commands: Commands) -> None:
    """Its output is not collected for 30 s: that would be all the memory there is."""
    said = commands.refused("pool", "create", "new", *SMALL, "--key-command", command)
    assert said.startswith(f"key command {command!r} gives more than {COMMAND_BYTES_MAX} bytes; wanted: 32 raw bytes")


def test_a_key_command_that_complains_much_and_gives_a_key(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "new", "--key-command", "head -c 1000000 /dev/zero >&2; printf '%032d' 7")
    commands.json("status", "new", "--key-command", "printf '%032d' 7")


def test_a_file_too_small_for_a_member_keeps_what_is_in_it(commands: Commands, tmp_path: Path) -> None:
    """With --yes too: no pool can be made of it, so nothing is overwritten for one."""
    (tmp_path / "small").write_text("precious")
    member = ("--member", "small", "--raid", "none", "--no-encryption", "--yes")
    assert commands.refused(*CREATE, *member).startswith(f"{tmp_path}/small: members of 8 bytes: want ")
    assert (tmp_path / "small").read_text() == "precious"


def test_a_member_that_has_the_name_of_a_link(commands: Commands, tmp_path: Path) -> None:
    """The link could not be made, or there would be two names for one member."""
    (tmp_path / "new").mkdir()
    member = ("--size", "16M", "--raid", "none", "--no-encryption", "--member")
    for name in ("member-00.nvmeof", "member-03.nvmeof"):
        said = commands.refused(*CREATE, *member, f"new/{name}")
        assert said.startswith(f"--member: {tmp_path}/new/{name} has the name of a link to a member")
    assert os.listdir(tmp_path / "new") == []
    commands.create(tmp_path / "pool")
    before = sorted(os.listdir(tmp_path / "pool"))
    for words in (("add-spare", "pool"), ("replace", "pool", "0")):
        said = commands.refused("pool", *words, "--member", "pool/member-07.nvmeof")
        assert said.startswith(f"--member: {tmp_path}/pool/member-07.nvmeof has the name of a link to a member")
    assert sorted(os.listdir(tmp_path / "pool")) == before


def test_a_member_that_was_cut_short(commands: Commands, tmp_path: Path) -> None:
    """It is a member lost: the pool opens degraded, says why, and takes another in its place."""
    commands.create(tmp_path / "pool")
    member = tmp_path / "pool" / "member-01.nvmeof"
    length = member.stat().st_size
    os.truncate(member, length - 4096)
    found = commands.json("status", "pool", code=1)
    assert found["members"][1]["reason"] == f"was cut short to {length - 4096} of {length} bytes"
    assert "degraded" in found["state"]
    commands.json("replace", "pool", "1")
    assert commands.json("status", "pool")["healthy"]


def test_a_scrub_that_is_very_slow_holds_up_nobody(commands: Commands, tmp_path: Path) -> None:
    """A walk of a byte a second sleeps for days after each stripe; the process ends nonetheless when it is told to."""
    commands.create(tmp_path / "pool")
    with serving(tmp_path / "pool") as (process, _):
        commands.json("scrub", "pool", "--rate", "1", "--background")
        assert commands.json("status", "pool")["scrub"]["running"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0


async def test_what_only_a_raw_request_can_say(tmp_path: Path) -> None:
    """The commands refuse these before they ask."""
    session = cast(Any, None)
    with pytest.raises(UsageError, match="rate: got 0, wanted bytes a second, 1 at least"):
        await perform(session, "scrub", {"rate": 0})
    with pytest.raises(UsageError, match="value: has a zero byte in it"):
        await perform(session, "rotate-key", {"kind": "file", "value": "/a\0"})


def test_a_serving_process_that_is_stopped(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches pools is told, and does not wait for ever."""
    monkeypatch.setattr(pool_control, "CONTROL_SECONDS", 0.5)
    commands.create(tmp_path / "pool")
    with serving(tmp_path / "pool") as (process, _):
        process.send_signal(signal.SIGSTOP)
        said = commands.refused("pool", "status", "pool", code=3)
        process.send_signal(signal.SIGCONT)
    assert said == "the serving process gave no answer in 0.5 s: is it stopped?"


def test_members_that_cannot_be_removed_are_made_blank_nonetheless(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To destroy a pool is to destroy every copy of its keys, not just those up to the first difficulty."""
    commands.create(tmp_path / "pool", "--key-command", "printf '%032d' 7")

    def remove(directory: PoolDirectory, path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(PoolDirectory, "remove", remove)
        out, err = commands.run("pool", "destroy", "pool", "--yes", code=3)
    assert out == "destroyed 0 members of pool\n"
    assert err.count("is blank now, but cannot be removed: Operation not permitted") == 4
    assert "has a pool's label" in commands.refused("pool", "status", "pool")


def test_what_to_type_next_names_the_passphrase_file(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "pass phrase").write_text("geheim\n")
    (tmp_path / "pass phrase").chmod(0o600)
    out, _ = commands.run("pool", "create", "new", *SMALL, "--passphrase-file", "pass phrase")
    assert out.endswith(f"nvmeof serve --pool new --passphrase-file '{tmp_path}/pass phrase'\n")


def test_status_knows_of_reads_that_failed(commands: Commands, tmp_path: Path) -> None:
    """Not only a scrub finds out that data is lost; and that is no mere loss of redundancy."""
    place = tmp_path / "pool"
    commands.create(place)
    filled(place, commands)
    block = json.loads(commands.run("inspect", place, "--block", "1:300", "--json")[0])["block"]
    for strip in block["strips"][:3]:
        flip(Path(strip["path"]), strip["offset"] + 1000)
    with serving(place) as (_, url):
        assert commands.json("status", place)["healthy"]
        for start in range(0, 1024, 256):
            main(["read", f"{url}/1", "-s", str(start), "-c", "255", "--data", str(tmp_path / "read")])
        found = commands.json("status", place, code=1)
        assert found["damaged"]
        assert not found["healthy"]
        out, _ = commands.run("pool", "status", place, code=1)
        assert ": DAMAGED, " in out
        assert f"problem: {found['unreadable']} reads failed since this pool was opened" in out
