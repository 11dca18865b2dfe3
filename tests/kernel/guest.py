"""A Linux guest in QEMU, driven by commands over a virtio-serial port. It powers off when this process goes away."""

from __future__ import annotations

import base64
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .kernels import Boot, find_tool

HOST_ADDRESS = "10.0.2.2"
NVMET_PORT = 4420
BOOT_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 60.0
CONSOLE_TAIL_LINES = 60
KERNEL_ARGUMENTS = (
    "console=ttyS0 panic=-1 quiet mitigations=off nokaslr random.trust_cpu=on no_timer_check tsc=reliable"
)


class GuestError(AssertionError):
    """A guest command failed, ran out of time, or the guest died."""


class Result(NamedTuple):
    rc: int
    output: bytes

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")


class Guest:
    """One booted kernel. Commands may overlap: start() several jobs, then wait() for each."""

    def __init__(self, boot: Boot, directory: Path) -> None:
        self.release = boot.release
        self.console_log = directory / f"console-{boot.release}.log"
        self.nvmet_port = free_port()
        self.broken = False
        self._jobs = 0
        self._answers: dict[int, Result] = {}
        self._received = bytearray()
        self._agent, remote = socket.socketpair()
        with remote, self.console_log.open("wb") as log:
            self._qemu = subprocess.Popen(
                self._command_line(boot, remote.fileno()),
                pass_fds=[remote.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._await(0, BOOT_TIMEOUT_S, "boot")
        except GuestError:
            self.close()
            raise

    def _command_line(self, boot: Boot, agent: int) -> list[str]:
        forward = f"hostfwd=tcp:127.0.0.1:{self.nvmet_port}-:{NVMET_PORT}"
        return [
            str(find_tool("qemu-system-x86_64")),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max,-la57,-cx16", "-smp", "2", "-m", "1024"),
            *("-kernel", str(boot.vmlinuz), "-initrd", str(boot.initramfs), "-append", KERNEL_ARGUMENTS),
            *("-serial", "stdio"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci,max_ports=2"),
            *("-chardev", f"socket,id=agent,fd={agent}", "-device", "virtserialport,chardev=agent,name=agent"),
            *("-netdev", f"user,id=net,{forward}", "-device", "virtio-net-pci,netdev=net,romfile="),
        ]

    def start(self, script: str) -> int:
        """Starts a shell script in the guest; the result is fetched with wait()."""
        self._jobs += 1
        line = b"%d %s\n" % (self._jobs, base64.b64encode(script.encode()))
        self._agent.settimeout(RUN_TIMEOUT_S)
        try:
            self._agent.sendall(line)
        except OSError as error:
            raise self._failure(script, str(error)) from error
        return self._jobs

    def wait(self, job: int, timeout: float = RUN_TIMEOUT_S) -> Result:
        return self._await(job, timeout, f"job {job}")

    def run(self, script: str, timeout: float = RUN_TIMEOUT_S) -> Result:
        return self._await(self.start(script), timeout, script)

    def ok(self, script: str, timeout: float = RUN_TIMEOUT_S) -> str:
        """Runs a script that must succeed, and returns what it printed."""
        result = self.run(script, timeout)
        if result.rc:
            raise GuestError(f"Linux {self.release}: {script!r} exited {result.rc}:\n{result.text}")
        return result.text

    def _await(self, job: int, timeout: float, what: str) -> Result:
        deadline = time.monotonic() + timeout
        while job not in self._answers:
            self._agent.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                received = self._agent.recv(1 << 16)
            except TimeoutError as error:
                raise self._failure(what, f"no answer in {timeout:.0f} s") from error
            except OSError as error:
                raise self._failure(what, str(error)) from error
            if not received:
                raise self._failure(what, "the guest died")
            self._received += received
            self._parse()
        return self._answers.pop(job)

    def _parse(self) -> None:
        while (end := self._received.find(b"\n")) >= 0:
            job, rc, length = map(int, self._received[:end].split())
            if len(self._received) < end + 1 + length:
                return
            self._answers[job] = Result(rc, bytes(self._received[end + 1 : end + 1 + length]))
            del self._received[: end + 1 + length]

    def _failure(self, what: str, problem: str) -> GuestError:
        self.broken = True
        return GuestError(f"Linux {self.release}: {what!r}: {problem}\n--- console ---\n{self.console_tail()}")

    def console_tail(self) -> str:
        return "\n".join(self.console_log.read_text(errors="replace").splitlines()[-CONSOLE_TAIL_LINES:])

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Nothing in the guest moves, and nothing answers, while this is held: a host that hangs."""
        self._qemu.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._qemu.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._agent.close()
        self._qemu.kill()
        self._qemu.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
