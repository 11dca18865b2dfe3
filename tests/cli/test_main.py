"""Every exception becomes one line on standard error and an exit code; nothing escapes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

from nvmeof.cli import main as module
from nvmeof.cli.main import exit_code, main
from nvmeof.errors import (
    CapacityError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    ConnectionLost,
    CorruptCheckpointError,
    StatusError,
    TransportError,
    UncommittedError,
    UsageError,
    WriteFault,
)

CODES = [
    (CorruptCheckpointError("chunk 3"), 1),
    (UncommittedError("half"), 2),
    (StatusError(0, 0x80, dnr=True, name="LBA Out of Range"), 3),
    (TransportError("refused"), 3),
    (ConnectionLost("gone"), 3),
    (WriteFault("sync"), 3),
    (CapacityError("full"), 3),
    (CheckpointError("other"), 3),
    (OSError(5, "Input/output error"), 3),
    (CheckpointNotFoundError("none"), 10),
    (FileNotFoundError(2, "No such file or directory", "disk.img"), 10),
    (UsageError("got 1, wanted 2"), 64),
    (ConfigError("target.toml: x"), 64),
    (ZeroDivisionError("division by zero"), 70),
    (KeyboardInterrupt(), 130),
]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let ``main`` have one command, ``fail``, which raises."""

    def run(args: argparse.Namespace) -> int:
        raise error

    parser = argparse.ArgumentParser()
    parser.set_defaults(run=run, verbose=0)
    monkeypatch.setattr(module, "_parser", lambda: parser)


@pytest.mark.parametrize(("error", "code"), CODES)
def test_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(error) == code
    failing(monkeypatch, error)
    assert main([]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("nvmeof: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("got 1,\n  wanted 2"), "got 1, wanted 2"),
        (FileNotFoundError(2, "No such file or directory", "a.img"), "a.img: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyboardInterrupt(), "interrupted"),
        (WriteFault(""), "WriteFault"),
        (ValueError("odd"), "internal error: ValueError: odd (NVMEOF_DEBUG=1 shows where)"),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [TransportError("refused")])]), "refused"),
    ],
)
def test_lines(
    error: BaseException, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    main([])
    assert capsys.readouterr().err == f"nvmeof: {line}\n"


def test_an_internal_error_shows_where_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ValueError("odd"))
    monkeypatch.setenv("NVMEOF_DEBUG", "1")
    with pytest.raises(ValueError, match="odd"):
        main([])


@pytest.mark.parametrize("argv", [[], ["bogus"], ["serve", "--size"], ["serve", "a", "b"], ["--bogus"]])
def test_wrong_arguments_are_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 64
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("nvmeof: ")
    assert printed.err.count("\n") == 1
    assert "--help)" in printed.err


def test_help_documents_the_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for _, code in CODES:
        assert f"\n  {code:3}  " in printed
    assert "serve" in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("nvmeof ")


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m nvmeof --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert int(done.stdout) in (0, 141)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(closed: str) -> None:
    """Nothing else gets their numbers."""
    script = "import os, sys; from nvmeof.cli.main import main; code = main(['--version']); print(); "
    script += "sys.exit(code or min(os.open(os.devnull, os.O_RDONLY), 3) - 3)"
    command = f'{sys.executable} -c "{script}" {closed}; echo $?'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_names_that_the_terminal_cannot_show() -> None:
    command = [sys.executable, "-m", "nvmeof", "serve", os.fsdecode(b"\xff\xe9"), "--config", os.fsdecode(b"\xff")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)
    assert done.returncode == 64
    script = "from nvmeof.cli.main import main; main(['--version']); print('\\udcff\\u00e9')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == b"\\udcff\\xe9"
