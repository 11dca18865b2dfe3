"""Whatever is wrong with what ``nvmeof pool`` is given: one line that says so, an exit code, and nothing was done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.pools import SMALL, Commands

CREATE = ("pool", "create", "new", "--size", "16M", "--sparse", "--no-encryption")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["create", "new"], "--size: is missing"),
        (["create", "new", "--size", "12Q"], 'argument --size: got "12Q", wanted bytes'),
        (["create", "new", "--size", "16M"], "got no key, wanted --key-file, --passphrase"),
        (["create", "new", "--size", "16M", "--members", "3", "--no-encryption"], "--members: got 3, wanted 4 to 18"),
        (["create", "new", "--size", "16M", "--members", "99", "--no-encryption"], "--members: got 99, wanted 4 to 18"),
        (
            ["create", "new", "--size", "16M", "--raid", "raid5", "--members", "2", "--no-encryption"],
            "--members: got 2",
        ),
        (["create", "new", "--size", "16M", "--raid", "raid7"], "argument --raid: invalid choice: 'raid7'"),
        (["create", "new", "--members", "-1"], "argument --members: got '-1'"),
        (["create", "new", "--size", "16M", "--member", "a", "--members", "4"], "--members: got 4, but 1 --member"),
        (["create", "new", "--size", "16M", *["--member", "a"] * 4, "--no-encryption"], "--member: got the same file"),
        (["create", "new", "--size", "16M", "--key-file", "k", "--no-encryption"], "argument --no-encryption: not all"),
        (["create", "new", "--size", "16M", "--key-file", "new/k"], "PATH/new/k: the key would lie beside the data"),
        (["create", "new", "--size", "16M", "--key-file", "no/k"], "key file PATH/no/k cannot be made: No such file"),
        (["create", "new", "--size", "16M", "--key-file", ""], "--key-file: got '', wanted a name"),
        (["create", "new", "--size", "16M", "--key-command", "echo short"], "key command 'echo short' gives 6 bytes"),
        (["create", "new", "--size", "16M", "--key-command", "exit 9"], "key command 'exit 9' failed with exit status"),
        (["create", "new", "--size", "16M", "--passphrase-file", "no"], "no: the passphrase cannot be read: No such"),
        (["create", "new", "--size", "16M", "--passphrase-file", "."], ".: the passphrase cannot be read: it is not"),
        (["create", "new", "--size", "900000T", "--no-encryption"], "--size: got 989560464998400000 bytes, wanted at"),
        (["create", "no/such/new", "--size", "16M", "--no-encryption"], "no/such/new: No such file or directory"),
        (["create", "file", "--size", "16M", "--no-encryption"], "file: is not a directory"),
        (["create", "nul\0", "--size", "16M", "--no-encryption"], "'nul\\x00': is not a usable file name"),
        (["create", "full", "--size", "16M", "--no-encryption"], "full: holds 'something' already; --yes"),
        (["scrub", "empty", "--rate", "0"], 'argument --rate: got "0"'),
        (["replace", "empty"], "the following arguments are required: ROLE"),
        (["replace", "empty", "one"], "argument ROLE: got 'one', wanted a number"),
        (["set", "empty", "1", "--codec", "rar"], "argument --codec: invalid choice: 'rar'"),
        (["rotate-key", "empty"], "got no new key, wanted --new-key-file"),
        (["export-keys", "empty", "file"], "file: exists already"),
        (["destroy", "empty"], "empty: everything in this pool will be lost; --yes"),
        (["status", "file"], "file: is not a directory"),
        ([], "the following arguments are required: COMMAND"),
        (["bogus"], "argument COMMAND: invalid choice: 'bogus'"),
    ],
)
def test_what_is_refused(argv: list[str], message: str, commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("here")
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    said = commands.refused("pool", *argv, code=10 if "No such file" in message and "no/such" in message else 64)
    assert said.startswith(message.replace("PATH", str(tmp_path))), said
    assert tree(tmp_path) == before


def tree(path: Path) -> set[str]:
    return {f"{where}/{name}" for where, folders, files in os.walk(path) for name in (*folders, *files)}


@pytest.mark.parametrize("argv", [["status"], ["scrub"], ["rebuild"], ["replace", "0"], ["destroy", "--yes"]])
@pytest.mark.parametrize("where", ["empty", "missing"])
def test_no_pool(argv: list[str], where: str, commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = commands.refused("pool", argv[0], where, *argv[1:], code=10)
    assert said.startswith(f"{where}: {'No such file' if where == 'missing' else 'holds no pool'}")
    said = commands.refused("serve", "--pool", where, "--listen", "127.0.0.1:0", code=10)
    assert said.startswith(where)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--block", "1"], "argument --block: got '1', wanted NSID:LBA"),
        (["--block", "1:-1"], "argument --block: got '1:-1', wanted NSID:LBA"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_inspect(argv: list[str], message: str, commands: Commands) -> None:
    assert commands.refused("inspect", "pool", *argv).startswith(message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--pool", "a", "b"], "DISK: got it together with --pool"),
        (["--pool", "a", "--block-size", "512"], "--block-size: got it together with --pool"),
        (["--pool", "a", "--config", "b"], "--pool: got it together with --config"),
        (["--config", "b", "--key-file", "k"], "--key-file: got it together with --config"),
        (["b", "--key-file", "k"], "got a key without --pool"),
        (["--pool", "a", "--key-file", "k", "--key-command", "c"], "argument --key-command: not allowed with"),
    ],
)
def test_serve(argv: list[str], message: str, commands: Commands) -> None:
    assert commands.refused("serve", *argv).startswith(message)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_passphrase_that_others_can_read(mode: int, commands: Commands, tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text("secret\n")
    file.chmod(mode)
    said = commands.refused("pool", "create", "new", *SMALL, "--passphrase-file", "passphrase")
    assert said == f"passphrase: others can read the passphrase (mode {mode:04o}); want 0600"
    assert "secret" not in said


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n", "the passphrase is empty"), (b"\xff", "the passphrase is not UTF-8"), (b"x" * 5000, "")],
)
def test_passphrases_that_are_none(content: bytes, message: str, commands: Commands, tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.touch(mode=0o600)
    file.write_bytes(content)
    said = commands.refused("pool", "create", "new", *SMALL, "--passphrase-file", "passphrase")
    assert said.startswith("passphrase: " + message)
    assert not (tmp_path / "new").exists()


def test_a_key_file_that_others_can_read(commands: Commands, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("00" * 32)
    file.chmod(0o644)
    said = commands.refused("pool", "create", "new", *SMALL, "--key-file", "key")
    assert "others may read it" in said
    assert not (tmp_path / "new").exists()
    assert file.exists()
