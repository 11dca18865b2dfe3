"""The store over our initiator and target on a real socket; the target is killed while a checkpoint is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvmeof.checkpoint import DamagedError, Store
from nvmeof.errors import TransportError, UncommittedError
from tests.conftest import LiveTarget

from .states import assert_same, big_state, small_state

pytestmark = pytest.mark.slow

MIB = 1 << 20


class Server:
    """``nvmeof serve`` in a process, which can be killed and started again on the same disk and port."""

    def __init__(self, disk: Path, block_size: int) -> None:
        self._command = [sys.executable, "-m", "nvmeof", "serve", os.fspath(disk)]
        self._options = ["--size", "128M", "--block-size", str(block_size)]
        self._nqn = "nqn.2026-11.org.example:e2e"
        self._port = 0
        self.start()

    def start(self) -> None:
        listen = ["--listen", f"127.0.0.1:{self._port}", "--nqn", self._nqn, "--json"]
        command = [*self._command, *self._options, *listen]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self._port = int(json.loads(line)["listeners"][0]["port"])
        self.url = f"nvme+tcp://127.0.0.1:{self._port}/{self._nqn}/1"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(params=[512, 4096])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "disk.img", request.param)
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.parametrize("digests", [False, True], ids=["", "digests"])
async def test_round_trip_over_the_wire(server: Server, digests: bool) -> None:
    state = big_state(3)
    options: dict[str, Any] = {"header_digest": digests, "data_digest": digests, "io_queues": 2}
    async with Store.open(server.url, **options) as store:
        info = await store.save(1, state)
        await store.save(2, small_state(2))
        assert_same(await store.load(1), state)
        await store.verify()
    async with Store.open(server.url) as store:
        assert_same(await store.load(), small_state(2))
        assert (await store.resolve(1)).root_digest == info.root_digest
        with pytest.raises(TypeError):
            async with Store.open(server.url, nonsense=1):
                pass


@pytest.mark.slow
async def test_a_target_killed_during_a_save_never_costs_a_checkpoint(server: Server) -> None:
    """The incident: the save raises, the old checkpoint is good, the half-written one is never believed."""
    async with Store.open(server.url) as store:
        await store.save(1, small_state(1))
    state = {f"w{i}": np.full(4 * MIB, i, dtype=np.uint8) for i in range(8)}
    for step, fraction in ((2, 0.1), (3, 0.6), (4, 1.0)):

        def progress(done: int, total: int, fraction: float = fraction) -> None:
            if done >= fraction * total and server.process.poll() is None:
                server.kill()

        started = time.monotonic()
        async with Store.open(server.url) as store:
            with pytest.raises(TransportError):
                await store.save(step, state, progress=progress)
            with pytest.raises(TransportError):
                await store.ls()
        assert time.monotonic() - started < 30
        server.start()
        async with Store.open(server.url) as store:
            assert [(info.step, info.state) for info in await store.ls()][:2] == [(1, "committed"), (step, "writing")]
            with pytest.raises(UncommittedError):
                await store.load(step)
            assert_same(await store.load(), small_state(1))
            await store.verify()
            assert not store.notices
        async with Store.open(server.url, reclaim=True) as store:
            await store.save(100 + step, small_state(2))
            await store.delete(100 + step)


async def test_a_byte_flipped_on_the_disk_of_the_target_is_found_and_placed(live_target: LiveTarget) -> None:
    state = big_state(4)
    async with Store.open(live_target.url) as store:
        await store.save(1, state)
        needle = state["embedding"][6 * MIB : 6 * MIB + 32].tobytes()
        position = live_target.backing.read_bytes().index(needle)
        with live_target.backing.open("r+b") as file:
            file.seek(position)
            file.write(bytes([needle[0] ^ 0x80]))
        with pytest.raises(DamagedError) as caught:
            await store.load(1)
    damage = caught.value.damage[0]
    assert (damage.item, damage.chunk, damage.start, damage.end) == ("embedding", 1, 4 * MIB, 8 * MIB)
    assert damage.where == f"{live_target.url} bytes {position - 2 * MIB} to {position + 2 * MIB}"


async def test_blockfile_sees_the_documented_bytes(live_target: LiveTarget) -> None:
    """The label is where FORMAT.md says, read by other means than the store's own."""
    async with Store.open(live_target.url) as store:
        await store.save(1, small_state(1))
    data = live_target.backing.read_bytes()
    assert data[:8] == data[-4096:-4088] == b"NVCKLBL1"
    assert data[4096:4104] == data[-266240:-266232] == b"NVCKSUP1"
