"""Fixtures: a booted guest of each kernel, our target as a process, the kernel's initiator and the kernel's target."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from .guest import Guest, GuestError
from .kernel_host import KernelHost
from .kernels import Boot, Unavailable, boot_files
from .nvmet import Nvmet
from .pool import Pool
from .target import Target

KERNEL_SERIES = ("6.1", "6.12")
BOOT_ATTEMPTS = 3


class Machine:
    """Boots its kernel when first asked, and again after a test left the guest broken."""

    def __init__(self, boot: Boot, directory: Path) -> None:
        self._boot = boot
        self._directory = directory
        self._guest: Guest | None = None

    def guest(self) -> Guest:
        if self._guest is None or self._guest.broken:
            self.close()
            self._guest = self._booted()
        return self._guest

    def _booted(self) -> Guest:
        """A boot now and then dies of an int3 while Linux patches its own code under QEMU's emulation."""
        for _ in range(BOOT_ATTEMPTS - 1):
            try:
                return Guest(self._boot, self._directory)
            except GuestError as error:
                print(error)
        return Guest(self._boot, self._directory)

    def close(self) -> None:
        if self._guest:
            self._guest.close()


@pytest.fixture(scope="session", params=KERNEL_SERIES)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(boot_files(request.param), tmp_path_factory.mktemp(f"linux-{request.param}"))
    yield machine
    machine.close()


@pytest.fixture
def guest(machine: Machine) -> Guest:
    return machine.guest()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Target]]:
    """Starts our target; the test may kill it, but one that died by itself is an error."""
    with contextlib.ExitStack() as targets:

        def start(*options: str, block_size: int = 4096, pool: Pool | None = None) -> Target:
            file = (str(tmp_path / "disk.img"), "--size", "256M", "--block-size", str(block_size))
            target = Target(tmp_path, *(file if pool is None else pool.served), *options)
            targets.callback(target.stop)
            return target

        yield start


@pytest.fixture
def host(guest: Guest, serve: Callable[..., Target]) -> Iterator[KernelHost]:
    host = KernelHost(guest)
    yield host
    if not guest.broken:
        host.disconnect_all()
        assert not host.complaints()


@pytest.fixture
def nvmet(guest: Guest) -> Iterator[Nvmet]:
    nvmet = Nvmet(guest)
    yield nvmet
    if not guest.broken:
        nvmet.remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from _what_is_missing_skips())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from _what_is_missing_skips())


def _what_is_missing_skips() -> Generator[None, object, object]:
    """Skips here, but fails where the tests must run (.ci/run sets NVMEOF_REQUIRE_KERNEL=1)."""
    try:
        return (yield)
    except Unavailable as missing:
        if os.environ.get("NVMEOF_REQUIRE_KERNEL") == "1":
            raise
        pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        guest = item.funcargs.get("guest")
        if isinstance(guest, Guest):
            report.sections.append(("guest kernel log", _kernel_log(guest)))
        directory = item.funcargs.get("tmp_path")
        if isinstance(directory, Path) and (directory / Target.LOG_NAME).exists():
            report.sections.append(("target log", (directory / Target.LOG_NAME).read_text()[-4000:]))
    return report


def _kernel_log(guest: Guest) -> str:
    if not guest.broken:
        with contextlib.suppress(GuestError):
            return guest.run("dmesg | tail -60", timeout=10).text
    return guest.console_tail()
