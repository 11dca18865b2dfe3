"""Every command and every Python example of README.md, run in a fresh environment that has only the built wheel.

The blocks run from top to bottom in one empty directory, as a reader would run them. ``nvmeof serve`` stays in the
background. What needs a Linux kernel with root is run by tests/kernel, ``tools/...`` by their own tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nvmeof.cli.main import EPILOG
from tools.environment import install

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_ELSEWHERE = ("tools/", "nvme ", "sudo ", "python3 -m venv ")
PORT = "4420"
READY_SECONDS = 20.0

pytestmark = pytest.mark.slow


class Block(NamedTuple):
    language: str
    text: str


def blocks() -> list[Block]:
    return [Block(*found) for found in FENCE.findall((ROOT / "README.md").read_text())]


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of executables of an environment with the wheel and what it depends on, nothing else."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    try:
        install(directory / "venv", str(wheel))
    except subprocess.CalledProcessError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no fresh environment: {error}")
    return directory / "venv" / "bin"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Reader:
    """Runs blocks one after another in ``directory``."""

    def __init__(self, binaries: Path, directory: Path) -> None:
        self.directory = directory
        self.port = str(free_port())
        self.python = binaries / "python"
        self.environment = {
            "PATH": f"{binaries}:/usr/bin:/bin",
            "HOME": str(directory),
            "LANG": "C.UTF-8",
        }
        self.servers: list[subprocess.Popen[bytes]] = []
        self.printed = ""

    def follow(self, block: Block) -> None:
        text = re.sub(rf"\b{PORT}\b", self.port, block.text)
        if block.language == "py":
            self.run([str(self.python), "-W", "error", "-c", text], block)
        elif block.language == "toml":
            name = text.splitlines()[0].removeprefix("# ")
            (self.directory / name).write_text(text)
        elif block.language == "sh":
            self.shell(text, block)
        else:
            assert block.language == "text", f"a block of {block.language}: nothing runs it"

    def shell(self, text: str, block: Block) -> None:
        lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith(RUN_ELSEWHERE)]
        for line in [line for line in lines if line.startswith("nvmeof serve ")]:
            self.serve(line)
            lines.remove(line)
        self.run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)], block)

    def run(self, command: list[str], block: Block) -> None:
        result = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, f"{block.text}\n{result.stdout}{result.stderr}"
        self.printed += result.stdout

    def serve(self, line: str) -> None:
        """In place of the server before it, as the port is the same."""
        self.stop()
        if "--config" not in line:
            line += f" --listen 127.0.0.1:{self.port}"
        log = self.directory / f"serve-{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.servers.append(process)
        deadline = time.monotonic() + READY_SECONDS
        while "READY" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        while self.servers:
            process = self.servers.pop()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


@contextlib.contextmanager
def reading(binaries: Path, directory: Path) -> Iterator[Reader]:
    reader = Reader(binaries, directory)
    try:
        yield reader
        reader.stop()
    finally:
        for process in reader.servers:
            process.kill()
            process.wait()


def test_every_block_works(binaries: Path, tmp_path: Path) -> None:
    with reading(binaries, tmp_path) as reader:
        for block in blocks():
            reader.follow(block)
    assert "embed" in reader.printed.split("CORRUPT")[1]
    assert reader.printed.count("exit code 1\n") == 2


def test_the_wheel_is_typed_and_has_its_licence(binaries: Path) -> None:
    (wheel,) = binaries.parent.parent.glob("*.whl")
    listing = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True)
    assert "nvmeof/py.typed" in listing.stdout
    assert "licenses/LICENSE" in listing.stdout


def test_the_exit_codes_are_those_of_the_command() -> None:
    table = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    said = re.findall(r"^ +(\d+)  (.*)$", EPILOG, re.MULTILINE)
    assert [(code, meaning.replace("`", "")) for code, meaning in table] == said
