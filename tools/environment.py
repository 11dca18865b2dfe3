"""Makes the virtual environment that a tool runs in, and prints the path of its interpreter.

Runs on any Python from 3.11 on with nothing installed. An environment that already fits is used as it is, so a second
run needs neither time nor network.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = {"demo": ".", "test": ".[test]"}
"""What pip installs for each tool, beside being editable: the extras."""


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in INSTALLED:
        print(f"usage: environment.py {'|'.join(INSTALLED)}", file=sys.stderr)
        return 64
    if sys.version_info < (3, 11):  # noqa: UP036 - the tools run this before anything has checked the version
        print(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}", file=sys.stderr)
        return 64
    try:
        print(environment(sys.argv[1]))
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"the environment for tools/{sys.argv[1]} cannot be made: {error}", file=sys.stderr)
        return 3
    return 0


def environment(tool: str) -> Path:
    """The interpreter of the tool's environment, which is made or brought up to date when it has to be."""
    directory = ROOT / f".venv-{tool}"
    python = directory / "bin" / "python"
    stamp = directory / "installed"
    lock = os.open(ROOT / "tools", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = fingerprint(tool)
        if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
            install(directory, "--editable", INSTALLED[tool])
            stamp.write_text(wanted)
    finally:
        os.close(lock)
    return python


def fingerprint(tool: str) -> str:
    """Changes whenever what would be installed may change: the project file, the interpreter, the place."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), sys.version.encode(), str(ROOT).encode(), INSTALLED[tool].encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def install(directory: Path, *what: str) -> None:
    """A fresh environment with pip's ``what`` in it. Debian's Python may lack ensurepip, but then it has a pip."""
    print(f"installing into {directory} ...", file=sys.stderr)
    python = directory / "bin" / "python"
    own_pip = importlib.util.find_spec("pip") is not None
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=not own_pip).create(directory)
    pip = [sys.executable, "-m", "pip", "--python", str(python)] if own_pip else [str(python), "-m", "pip"]
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*pip, "install", *options, *what], cwd=ROOT, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
