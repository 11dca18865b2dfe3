"""Key sources give the key or say what is wrong with which file or command, and never show a key."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from nvmeof.errors import UsageError
from nvmeof.keys.sources import KeyCommand, KeyFile, KeySource, Passphrase, check_kdf

KEY = bytes(range(0x80, 0xA0))
NONE: dict[str, object] = {"name": "none"}
SCRYPT: dict[str, object] = {"name": "scrypt", "salt": "00" * 16, "n": 16, "r": 8, "p": 1}


def key_file(path: Path, content: bytes, mode: int = 0o600) -> KeyFile:
    path.write_bytes(content)
    path.chmod(mode)
    return KeyFile(path)


@pytest.mark.parametrize(
    "content",
    [KEY, KEY.hex().encode(), KEY.hex().upper().encode(), KEY.hex().encode() + b"\n", KEY.hex().encode() + b"\r\n"],
)
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_file(tmp_path: Path, content: bytes, mode: int) -> None:
    source = key_file(tmp_path / "key", content, mode)
    assert source.new_kdf() == NONE
    assert source.kek(NONE) == KEY


def test_file_behind_a_link(tmp_path: Path) -> None:
    key_file(tmp_path / "key", KEY)
    (tmp_path / "link").symlink_to("key")
    assert KeyFile(tmp_path / "link").kek(NONE) == KEY


HEX = KEY.hex().encode()
NO_KEYS = [
    b"",
    KEY[:31],
    KEY + b"\n",
    KEY + b"x",
    HEX[:63],
    HEX + b"\n\n",
    b" " + HEX,
    b"a " * 32,
    b"g" * 64,
    b"\xff" * 64,
]


@pytest.mark.parametrize("content", [*NO_KEYS, b"a" * 5000])
def test_file_with_something_else(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"key file .*/key .*wanted: 32 raw bytes or 64 hex digits") as caught:
        key_file(tmp_path / "key", content).kek(NONE)
    assert KEY.hex()[:20] not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o700, 0o200, 0o4600])
def test_file_that_others_may_read(tmp_path: Path, mode: int) -> None:
    source = key_file(tmp_path / "key", KEY, mode)
    if mode == 0o200 and os.geteuid() != 0:
        pytest.skip("cannot be opened at all")
    with pytest.raises(UsageError, match=rf"key has mode {mode:04o}.*chmod 600"):
        source.kek(NONE)


def test_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = key_file(tmp_path / "key", KEY)
    mine = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: mine + 1)
    with pytest.raises(UsageError, match=f"belongs to user {mine}, not to user {mine + 1}"):
        source.kek(NONE)


def test_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent cannot be read: No such file"):
        KeyFile(tmp_path / "absent").kek(NONE)
    with pytest.raises(UsageError, match="is not a file"):
        KeyFile(tmp_path).kek(NONE)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UsageError, match="is not a file"):
        KeyFile(tmp_path / "pipe").kek(NONE)


def test_create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr("os.fsync", note)
    path = tmp_path / "key"
    before = os.umask(0o777)
    try:
        source = KeyFile.create(path)
    finally:
        os.umask(before)
    assert synced == [False, True]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert source.kek(NONE).hex() + "\n" == path.read_text()
    assert KeyFile.create(tmp_path / "other").kek(NONE) != source.kek(NONE)


def test_create_overwrites_nothing(tmp_path: Path) -> None:
    source = KeyFile.create(tmp_path / "key")
    key = source.kek(NONE)
    (tmp_path / "link").symlink_to("absent")
    for name in ("key", "link"):
        with pytest.raises(UsageError, match=f"{name} exists already"):
            KeyFile.create(tmp_path / name)
    assert source.kek(NONE) == key
    assert not (tmp_path / "absent").exists()
    with pytest.raises(UsageError, match="cannot be made: No such file"):
        KeyFile.create(tmp_path / "absent" / "key")


def test_create_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UsageError, match="key cannot be written: No space left on device; remove it"):
        KeyFile.create(tmp_path / "key")


def command(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_command(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    assert KeyCommand(f"cat '{tmp_path}/key'").kek(NONE) == KEY
    assert KeyCommand(["cat", str(tmp_path / "key")]).kek(NONE) == KEY
    assert KeyCommand(f"echo {KEY.hex()} | tr a-z A-Z").kek(NONE) == KEY
    assert KeyCommand(command(f"print('{KEY.hex()}')")).kek(NONE) == KEY
    assert KeyCommand("true").new_kdf() == NONE


def test_command_that_fails() -> None:
    code = f"import sys; print('{KEY.hex()}'); print('first\\nno token', file=sys.stderr); sys.exit(7)"
    with pytest.raises(UsageError, match=r"failed with exit status 7: no token$") as caught:
        _Hidden(command(code)).kek(NONE)
    assert KEY.hex() not in str(caught.value)
    with pytest.raises(UsageError, match=r"key command 'exit 3' failed with exit status 3$"):
        KeyCommand("exit 3").kek(NONE)


class _Hidden(KeyCommand):
    """A command whose text has the key in it, as only a test's has."""

    @property
    def kind(self) -> str:
        return "key command"


def test_command_that_gives_something_else() -> None:
    with pytest.raises(UsageError, match=r"key command 'echo secret' gives 7 bytes that are no key") as caught:
        KeyCommand("echo secret").kek(NONE)
    assert str(caught.value).count("secret") == 1
    with pytest.raises(UsageError, match="gives 0 bytes"):
        KeyCommand("true").kek(NONE)


def test_command_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"key command '/absent/kms get' cannot be run: No such file"):
        KeyCommand(["/absent/kms", "get"]).kek(NONE)
    with pytest.raises(UsageError, match="exit status 127"):
        KeyCommand("/absent/kms").kek(NONE)
    for empty in ("", ()):
        with pytest.raises(UsageError, match="empty"):
            KeyCommand(empty)


@pytest.mark.parametrize("text", ["sleep 60", "sleep 60; true", "sleep 60 &", "trap '' TERM; sleep 60"])
def test_command_that_hangs_is_ended_with_its_children(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"no key within 0\.2 s"):
        KeyCommand(text, seconds_max=0.2).kek(NONE)
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_what_a_command_has_started_is_ended_too(tmp_path: Path) -> None:
    path = tmp_path / "child"
    with pytest.raises(UsageError, match="no key"):
        KeyCommand(f"sleep 60 & echo $! > '{path}'; wait", seconds_max=1).kek(NONE)
    status = Path("/proc", path.read_text().strip(), "stat")
    deadline = time.monotonic() + 5
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.01)


def test_command_gets_no_input() -> None:
    assert KeyCommand(command(f"import sys; assert not sys.stdin.read(); print('{KEY.hex()}')")).kek(NONE) == KEY


def test_passphrase_against_hashlib() -> None:
    kdf = {"name": "scrypt", "salt": (b"NaCl" * 4).hex(), "n": 1024, "r": 8, "p": 16}
    expected = hashlib.scrypt(b"password", salt=b"NaCl" * 4, n=1024, r=8, p=16, dklen=32)
    assert Passphrase("password").kek(kdf) == expected


def test_passphrase_has_a_salt_of_its_own_each_time() -> None:
    source = Passphrase("correct horse", n=16)
    first, second = source.new_kdf(), source.new_kdf()
    assert first["salt"] != second["salt"]
    assert len(bytes.fromhex(str(first["salt"]))) == 16
    assert source.kek(first) == source.kek(first) != source.kek(second)
    assert Passphrase("correct horsf").kek(first) != source.kek(first)


def test_passphrase_default_cost() -> None:
    kdf = Passphrase("x").new_kdf()
    assert (kdf["n"], kdf["r"], kdf["p"]) == (1 << 15, 8, 1)


def test_passphrase_is_normalized() -> None:
    assert Passphrase("Zu\u0308rich").kek(SCRYPT) == Passphrase("Z\u00fcrich").kek(SCRYPT)


@pytest.mark.parametrize("text", ["", "\udcff"])
def test_passphrase_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="passphrase is"):
        Passphrase(text)


REFUSED: dict[str, list[object]] = {
    "n": [0, 1, 3, 1 << 21, 1 << 62, -16, 16.0, "16", True],
    "r": [0, 17, None],
    "p": [0, 17, [1]],
    "salt": ["", "00" * 15, "0" * 33, "zz" * 16, "00" * 65, 5, "00 " * 16],
    "more": [1],
}
HOSTILE: list[dict[str, object]] = [
    {},
    {"name": "argon2"},
    {"name": None},
    {"name": "none", "n": 1},
    {**SCRYPT, "n": 1 << 20, "r": 16},
    *({**SCRYPT, name: value} for name, values in REFUSED.items() for value in values),
]


@pytest.mark.parametrize("kdf", HOSTILE, ids=str)
def test_hostile_parameters_are_refused(kdf: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        check_kdf(kdf)
    with pytest.raises(UsageError):
        Passphrase("x").kek(kdf)


def test_the_largest_parameters_that_are_taken() -> None:
    check_kdf({**SCRYPT, "n": 1 << 20, "r": 8, "p": 16, "salt": "00" * 64})
    check_kdf(NONE)


def test_a_cost_that_could_not_be_read_back_is_refused() -> None:
    for n in (0, 1000, 1 << 30):
        with pytest.raises(UsageError):
            Passphrase("x", n=n).new_kdf()


def test_wrong_sort_of_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"wrong key.*not with a passphrase"):
        Passphrase("x").kek(NONE)
    with pytest.raises(UsageError, match=r"wrong key.*with a passphrase, not with a key file"):
        key_file(tmp_path / "key", KEY).kek(SCRYPT)


def test_nothing_is_shown(tmp_path: Path) -> None:
    sources: list[KeySource] = [Passphrase("geheim"), key_file(tmp_path / "key", KEY), KeyCommand("echo geheim")]
    assert [repr(source) for source in sources] == ["<Passphrase>", "<KeyFile>", "<KeyCommand>"]
    assert [source.kind for source in sources] == [
        "passphrase",
        f"key file {tmp_path}/key",
        "key command 'echo geheim'",
    ]
