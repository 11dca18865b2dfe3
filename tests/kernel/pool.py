"""A pool of real files, made and looked after with the commands that an administrator types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nvmeof.engine.layout import AREA_BYTES

SECONDS = 180.0


class Pool:
    """Six members, two of them parity, and a key in a file."""

    def __init__(self, directory: Path, size: str) -> None:
        self.directory = directory / "pool"
        self._key = ("--key-file", str(directory / "pool.key"))
        self.ask("create", "--members", "6", "--size", size)

    @property
    def served(self) -> tuple[str, ...]:
        """The arguments of ``nvmeof serve`` that serve it."""
        return ("--pool", str(self.directory), *self._key)

    def ask(self, command: str, *arguments: str, code: int = 0) -> Any:
        """What ``nvmeof pool`` answers: the serving process if there is one, else one that opens the pool."""
        words = [sys.executable, "-m", "nvmeof", "pool", command, str(self.directory), *arguments, *self._key, "--json"]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == code, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def lose(self, role: int) -> None:
        """Delete a member's file."""
        (self.directory / f"member-{role:02d}.nvmeof").unlink()

    def damage(self, role: int) -> None:
        """Overwrite all that a member holds between its labels and superblocks at either end."""
        with (self.directory / f"member-{role:02d}.nvmeof").open("r+b") as member:
            end = member.seek(0, os.SEEK_END) - AREA_BYTES
            member.seek(AREA_BYTES)
            member.write(b"rotten! " * ((end - AREA_BYTES) // 8))
