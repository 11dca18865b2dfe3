"""Our target as a user starts it: a process of its own that can be killed and started again on the same port."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .guest import HOST_ADDRESS, free_port

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0


class Target:
    LOG_NAME = "target.log"

    def __init__(self, directory: Path, *arguments: str) -> None:
        """``arguments``: what is served, and options."""
        self.port = free_port()
        self.nqn = f"nqn.2026-01.test:{directory.name}"
        self.log = directory / self.LOG_NAME
        self._command = [
            *(sys.executable, "-m", "nvmeof", "serve", *arguments),
            *("--listen", f"127.0.0.1:{self.port}", "--nqn", self.nqn),
            *("--advertise", f"{HOST_ADDRESS}:{self.port}"),
        ]
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            start = log.tell()
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not any(line.startswith("READY") for line in self.log.read_text()[start:].splitlines()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the target did not get READY:\n{self.log.read_text()}")
            time.sleep(0.05)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Asks the target to drain and stop, which it must do within a bound and with status 0."""
        assert self._process.poll() is None, f"the target died by itself:\n{self.log.read_text()}"
        self._process.terminate()
        try:
            status = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        assert status == 0, f"the target ended with {status}:\n{self.log.read_text()}"

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The target neither answers nor goes away while this is held."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)
