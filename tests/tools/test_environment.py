"""What tools/demo and tools/test stand on: an environment that is made once and then only looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import environment


def test_refuses_what_it_does_not_know() -> None:
    result = subprocess.run(
        [sys.executable, environment.__file__, "nothing"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (64, "")
    assert result.stderr == "usage: environment.py demo|test\n"


def test_installs_once_and_again_when_the_project_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tools").mkdir()
    project = tmp_path / "pyproject.toml"
    project.write_text("[project]\n")
    installed: list[tuple[str, ...]] = []

    def install(directory: Path, *what: str) -> None:
        (directory / "bin").mkdir(parents=True, exist_ok=True)
        (directory / "bin" / "python").touch()
        installed.append(what)

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "install", install)
    python = environment.environment("test")
    assert python == tmp_path / ".venv-test" / "bin" / "python"
    assert environment.environment("test") == python
    assert installed == [("--editable", ".[test]")]
    project.write_text("[project]\nname = 'x'\n")
    environment.environment("test")
    assert len(installed) == 2


def test_a_failed_installation_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "pyproject.toml").touch()

    def install(directory: Path, *what: str) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "install", install)
    monkeypatch.setattr(sys, "argv", ["environment.py", "demo"])
    assert environment.main() == 3
    assert not (tmp_path / ".venv-demo" / "installed").exists()
