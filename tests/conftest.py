"""Shared fixtures: both event loops, a target on a real socket, random numbers that can be had again."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop
from hypothesis import settings

from nvmeof.engine.file_volume import FileVolume
from nvmeof.target.server import Target
from nvmeof.target.subsystem import Subsystem

ROOT = Path(__file__).parent
SEED = int(os.environ.setdefault("NVMEOF_TEST_SEED", str(random.SystemRandom().randrange(1 << 32))))
"""In the environment, so that the workers of pytest-xdist have the seed that is printed."""
ON_BOTH_LOOPS = ("transport", "target", "initiator")
"""Directories whose asynchronous tests run on asyncio and on uvloop: the two keep buffers for different times."""

settings.register_profile("nvmeof", print_blob=True, deadline=None)
settings.load_profile("nvmeof")


def pytest_report_header() -> str:
    return f"NVMEOF_TEST_SEED={SEED}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(pytest_report_header())


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.relative_to(ROOT).parts[0] in ON_BOTH_LOOPS:
        loops["uvloop"] = uvloop.new_event_loop
        if os.environ.get("NVMEOF_TEST_QUICK"):
            del loops["asyncio"]
    return loops


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test: the same ones again with the seed in the header of the report."""
    return random.Random(f"{SEED} {request.node.nodeid}")


@dataclass(frozen=True)
class LiveTarget:
    """A target with one namespace (NSID 1) of 64 MiB in 4096-byte blocks."""

    host: str
    port: int
    nqn: str
    backing: Path

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def subsystem_url(self) -> str:
        return f"nvme+tcp://{self.address}/{self.nqn}"

    @property
    def url(self) -> str:
        return f"{self.subsystem_url}/1"


LIVE_NQN = "nqn.2026-11.org.example:live"
LIVE_BYTES = 64 << 20
START_SECONDS = 10.0


@pytest.fixture
def live_target(tmp_path: Path) -> Iterator[LiveTarget]:
    """Runs in a thread with a loop of its own, so that synchronous tests can use it."""
    backing = tmp_path / "live.img"
    started: list[LiveTarget] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with Target() as target:
            subsystem = target.add_subsystem(Subsystem(LIVE_NQN))
            subsystem.add_namespace(await FileVolume.open(backing, size=LIVE_BYTES, block_size=4096))
            listener = await target.listen("127.0.0.1", 0)
            started.append(LiveTarget(listener.host, listener.port, LIVE_NQN, backing))
            ready.set()
            await stop.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="live-target")
    thread.start()
    try:
        assert ready.wait(START_SECONDS), "the target did not start"
        yield started[0]
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join(START_SECONDS)
        assert not thread.is_alive()
