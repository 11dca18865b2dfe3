"""Small pools of real files, by the commands themselves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmeof.cli.main import main

SECONDS = 60
ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
NQN = "nqn.2026-11.org.example:pool"
SMALL = ("--members", "4", "--size", "16M", "--sparse")


class Commands:
    """Runs ``nvmeof pool`` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *argv: object, code: int = 0) -> tuple[str, str]:
        """What was printed on standard output and on standard error."""
        self._capsys.readouterr()
        got = main([str(word) for word in argv])
        printed = self._capsys.readouterr()
        assert got == code, printed.out + printed.err
        assert "Traceback" not in printed.err
        return printed.out, printed.err

    def json(self, *argv: object, code: int = 0) -> Any:
        return json.loads(self.run("pool", *argv, "--json", code=code)[0])

    def refused(self, *argv: object, code: int = 64) -> str:
        """The one line that says why."""
        out, err = self.run(*argv, code=code)
        assert out == ""
        assert err.startswith("nvmeof: ")
        assert err.count("\n") == 1, err
        return err.removeprefix("nvmeof: ").rstrip("\n")

    def create(self, directory: Path, *argv: object) -> Any:
        key = ("--no-encryption",) if not any(str(word).startswith(("--key", "--pass")) for word in argv) else ()
        return self.json("create", directory, *SMALL, *key, *argv)


@contextlib.contextmanager
def serving(directory: Path, *argv: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``nvmeof serve --pool``: the process, and the URL of its subsystem. It has to end well."""
    command = [sys.executable, "-m", "nvmeof", "serve", "--pool", str(directory), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--nqn", NQN, *map(str, argv)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("READY "), process.communicate(timeout=SECONDS)[1]
        yield process, f"nvme+tcp://{line.split()[1]}/{NQN}"
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=SECONDS)
        assert "Traceback" not in said, said
        assert process.returncode in (0, -signal.SIGKILL), said
    finally:
        process.kill()
        process.communicate()
