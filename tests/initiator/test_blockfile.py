"""The synchronous file: the rules of io.RawIOBase, threads, forks, and the ends it can come to."""

from __future__ import annotations

import errno
import gc
import io
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nvmeof
from nvmeof.errors import ConnectionLost, StatusError, TransportError, UsageError
from nvmeof.initiator.blockfile import BlockFile
from tests.conftest import LIVE_BYTES, LiveTarget

BLOCK = 4096


@pytest.fixture
def file(live_target: LiveTarget) -> Iterator[BlockFile]:
    with nvmeof.open(live_target.url, "r+b") as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_what_it_is(file: BlockFile, live_target: LiveTarget) -> None:
    assert isinstance(file, io.RawIOBase)
    assert (file.readable(), file.writable(), file.seekable()) == (True, True, True)
    assert (file.name, file.mode, file.size, file.block_size) == (live_target.url, "rb+", LIVE_BYTES, BLOCK)
    assert not file.isatty()
    with pytest.raises(io.UnsupportedOperation):
        file.fileno()
    assert live_target.url in repr(file)


def test_any_bytes_anywhere(file: BlockFile) -> None:
    file.write(b"\x11" * 3 * BLOCK)
    file.seek(BLOCK - 3)
    assert file.write(b"abcdef") == 6
    assert file.tell() == BLOCK + 3
    file.seek(0)
    expected = bytearray(b"\x11" * 3 * BLOCK)
    expected[BLOCK - 3 : BLOCK + 3] = b"abcdef"
    assert file.read(3 * BLOCK) == expected
    assert file.read(2) == bytes(2)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "write"]), st.integers(0, 5 * BLOCK), st.integers(0, 3 * BLOCK)), max_size=12
    ),
)
def test_like_a_file_in_memory(file: BlockFile, data: st.DataObject, steps: list[tuple[str, int, int]]) -> None:
    file.seek(0)
    model = io.BytesIO(file.read(8 * BLOCK))
    for operation, offset, length in steps:
        file.seek(offset)
        model.seek(offset)
        if operation == "write":
            payload = random.Random(length).randbytes(length)
            assert file.write(payload) == model.write(payload)
        else:
            assert file.read(length) == model.read(length)
        assert file.tell() == model.tell()
    file.seek(0)
    assert file.read(8 * BLOCK) == model.getvalue()


def test_seek(file: BlockFile) -> None:
    assert file.seek(10) == 10
    assert file.seek(5, os.SEEK_CUR) == 15
    assert file.seek(-1, os.SEEK_END) == LIVE_BYTES - 1
    assert file.read(10) == b"\0"
    assert file.read(10) == b""
    assert file.seek(LIVE_BYTES + 100) == LIVE_BYTES + 100
    assert (file.read(1), file.readall()) == (b"", b"")
    with pytest.raises(OSError, match="before the beginning") as caught:
        file.seek(-1)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="whence"):
        file.seek(0, 9)
    for wrong in (1.5, None, "1"):
        with pytest.raises(TypeError):
            file.seek(wrong)  # type: ignore[arg-type]
    assert file.tell() == LIVE_BYTES + 100


def test_the_end(file: BlockFile) -> None:
    file.seek(-100, os.SEEK_END)
    assert file.write(b"e" * 100) == 100
    assert file.write(b"") == 0
    for where in (LIVE_BYTES - 99, LIVE_BYTES, LIVE_BYTES + 5):
        file.seek(where)
        with pytest.raises(OSError, match="do not fit into 67108864 bytes") as caught:
            file.write(b"x" * 100)
        assert caught.value.errno == errno.ENOSPC
        assert file.tell() == where
    file.seek(-200, os.SEEK_END)
    assert file.readall() == bytes(100) + b"e" * 100
    buffer = bytearray(300)
    file.seek(-200, os.SEEK_END)
    assert file.readinto(buffer) == 200
    assert buffer[100:] == b"e" * 100 + bytes(100)


def test_buffers(file: BlockFile) -> None:
    matrix = np.arange(1000, dtype=np.float32).reshape(10, 100)
    assert file.write(matrix) == 4000
    target = np.empty_like(matrix)
    file.seek(0)
    assert file.readinto(target) == 4000
    assert (target == matrix).all()
    with pytest.raises(TypeError, match="read-only"):
        file.readinto(b"xx")
    with pytest.raises(UsageError, match="not contiguous"):
        file.write(matrix[:, ::2])
    for wrong in ("text", None, [1]):
        with pytest.raises(TypeError, match="bytes-like"):
            file.write(wrong)
        with pytest.raises(TypeError, match="bytes-like"):
            file.readinto(wrong)


def test_reading_all_holds_it_once(file: BlockFile) -> None:
    file.seek(LIVE_BYTES - 5)
    file.write(b"the e")
    file.seek(0)
    tracemalloc.start()
    try:
        data = file.readall()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) == LIVE_BYTES
    assert data.endswith(b"\0the e")
    assert not any(data[:-5])
    assert peak < 1.6 * LIVE_BYTES


def test_what_a_namespace_cannot_do(file: BlockFile, live_target: LiveTarget) -> None:
    for size in (None, 0, LIVE_BYTES):
        with pytest.raises(io.UnsupportedOperation, match="fixed size"):
            file.truncate(size)
    with nvmeof.open(live_target.url) as readable:
        assert (readable.mode, readable.writable()) == ("rb", False)
        assert readable.read(4) == bytes(4)
        with pytest.raises(io.UnsupportedOperation, match="not writable"):
            readable.write(b"x")
        readable.flush()


@pytest.mark.parametrize("mode", ["r", "wb", "w+b", "ab", "xb", "rt", "", "br"])
def test_modes(mode: str) -> None:
    with pytest.raises(UsageError, match="wanted 'rb' or 'r\\+b'"):
        nvmeof.open("nvme+tcp://127.0.0.1:1/x/1", mode)


def test_refused_before_a_thread_is_started() -> None:
    with pytest.raises(UsageError, match="got no namespace"):
        nvmeof.open("nvme+tcp://127.0.0.1:1/x")
    with pytest.raises(UsageError, match="io_queues"):
        nvmeof.open("nvme+tcp://127.0.0.1:1/x/1", io_queues=-1)


def test_what_connecting_raises(live_target: LiveTarget) -> None:
    with pytest.raises(TransportError, match="refused"):
        nvmeof.open("nvme+tcp://127.0.0.1:1/x/1")
    with pytest.raises(StatusError, match="Connect Invalid Parameters"):
        nvmeof.open(f"nvme+tcp://{live_target.address}/nqn.2026-11.org:other/1")
    with pytest.raises(UsageError, match="not active"):
        nvmeof.open(f"{live_target.subsystem_url}/9")


def test_closed(file: BlockFile) -> None:
    file.write(b"x")
    file.close()
    file.close()
    assert file.closed
    assert "closed" in repr(file)
    for use in (file.tell, file.readable, file.writable, file.seekable, file.flush, file.readall, file.truncate,
                lambda: file.read(1), lambda: file.write(b""), lambda: file.seek(0)):  # fmt: skip
        with pytest.raises(ValueError, match="closed file"):
            use()
    with pytest.raises(ValueError, match="closed"), file:
        pass


def test_written_data_reaches_others_and_media(live_target: LiveTarget) -> None:
    with nvmeof.open(live_target.url, "r+b") as file:
        file.seek(BLOCK + 5)
        file.write(b"everyone")
        with nvmeof.open(live_target.url) as other:
            other.seek(BLOCK + 5)
            assert other.read(8) == b"everyone"
        file.flush()
    assert live_target.backing.read_bytes()[BLOCK + 5 : BLOCK + 13] == b"everyone"


def test_buffered(file: BlockFile, live_target: LiveTarget) -> None:
    payload = random.Random(1).randbytes(100_000)
    writer = io.BufferedWriter(file, 10_000)
    for start in range(0, len(payload), 777):
        writer.write(payload[start : start + 777])
    writer.flush()
    assert writer.detach() is file
    file.seek(0)
    reader = io.BufferedReader(file)
    assert reader.read(100_000) == payload
    reader.seek(50_001)
    assert reader.read(3) == payload[50_001:50_004]
    assert reader.peek(1)
    reader.detach()
    with io.BufferedRandom(nvmeof.open(live_target.url, "r+b")) as both:
        both.seek(99_990)
        both.write(b"0123456789abcdef")
        both.seek(99_985)
        assert both.read(21) == payload[99_985:99_990] + b"0123456789abcdef"
    assert both.raw.closed


def test_what_libraries_do_with_files(file: BlockFile, tmp_path: Path) -> None:
    value = {"weights": np.arange(10_000.0), "step": 7}
    pickle.dump(value, file)
    file.seek(0)
    loaded = pickle.load(io.BufferedReader(file, 1 << 16))
    assert (loaded["weights"] == value["weights"]).all()


def test_torch(live_target: LiveTarget) -> None:
    torch = pytest.importorskip("torch")
    with nvmeof.open(live_target.url, "r+b") as file:
        torch.save({"w": torch.arange(1000)}, file)
        end = file.tell()
        file.seek(0)
        loaded = torch.load(io.BytesIO(file.read(end)))
    assert (loaded["w"] == torch.arange(1000)).all()


def test_copyfileobj(file: BlockFile) -> None:
    source = io.BytesIO(random.Random(2).randbytes(3_000_001))
    shutil.copyfileobj(source, file, 1 << 20)
    file.flush()
    file.seek(0)
    assert file.read(3_000_001) == source.getvalue()


def test_threads(file: BlockFile) -> None:
    """Each call is one step: position and data belong together."""
    file.write(b"".join(bytes([index]) * 1000 for index in range(200)))
    file.seek(0)
    found: list[bytes] = []

    def work() -> None:
        found.extend(file.read(1000) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [bytes([index]) * 1000 for index in range(200)]


def test_partial_blocks_from_threads(file: BlockFile) -> None:
    def work(index: int) -> None:
        for step in range(10):
            with lock:
                file.seek((10 * step + index) * 100)
                file.write(bytes([index + 1]) * 100)

    lock = threading.Lock()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.seek(0)
    assert file.read(10_000) == b"".join(bytes([index % 10 + 1]) * 100 for index in range(100))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked(file: BlockFile) -> None:
    """The child is told, closes without harm though a thread held the lock while forking, and the parent goes on."""
    file.write(b"parent")
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with file._lock:
            held.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(in_the_child(file))
    release.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
    file.seek(0)
    assert file.read(6) == b"parent"
    file.flush()


def in_the_child(file: BlockFile) -> int:
    """Exit code: 0 when every use is refused and closing works."""
    try:
        for use in (file.tell, file.readall, lambda: file.write(b"x"), lambda: file.seek(0), file.flush):
            with pytest.raises(UsageError, match="forked"):
                use()
        file.close()
        return 0 if file.closed else 1
    except BaseException:
        return 2


def test_unclosed(live_target: LiveTarget) -> None:
    def leave_open() -> None:
        nvmeof.open(live_target.url)
        gc.collect()

    with pytest.warns(ResourceWarning, match=r"unclosed file <nvmeof\.BlockFile"):
        leave_open()


@pytest.mark.slow
def test_unclosed_in_a_cycle(live_target: LiveTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector takes the file together with all that it needs to close itself."""

    def leave_open() -> None:
        for _ in range(5):
            file = nvmeof.open(live_target.url)
            cycle: list[object] = [file]
            cycle.append(cycle)
            del file, cycle
            gc.collect()

    failures: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: failures.append(args.exc_value))
    with pytest.warns(ResourceWarning, match="unclosed file"):
        leave_open()
    assert failures == []


def test_unclosed_where_warnings_are_errors(live_target: LiveTarget) -> None:
    """It is closed all the same: its thread ends."""
    script = (
        f"import gc, nvmeof, threading; file = nvmeof.open({live_target.url!r}); del file; gc.collect(); "
        "print(threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], timeout=30, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "unclosed file" in done.stderr


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(0)", "file.close()"])
def test_left_open_at_exit(live_target: LiveTarget, ending: str) -> None:
    """The interpreter ends, in time and without noise, and what was written is flushed."""
    script = f"import nvmeof; file = nvmeof.open({live_target.url!r}, 'r+b'); file.write(b'left'); {ending}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], timeout=30, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert live_target.backing.read_bytes()[:4] == b"left"


def test_interrupted(file: BlockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """KeyboardInterrupt while waiting: the buffer is free at once, and the file still works."""
    from concurrent.futures import Future

    result = Future.result

    def interrupt(self: Future[Any], timeout: float | None = None) -> Any:
        monkeypatch.setattr(Future, "result", result)
        raise KeyboardInterrupt

    buffer = bytearray(8 << 20)
    monkeypatch.setattr(Future, "result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        file.readinto(buffer)
    assert file.tell() == 0
    assert file.read(10) == bytes(10)


def test_a_lost_association(live_target: LiveTarget) -> None:
    """Closing says that the flush failed, and leaves nothing behind."""
    file = nvmeof.open(live_target.url, "r+b")
    file.write(b"x")
    controller = file._namespace.controller
    file._worker.run(abort(controller))
    with pytest.raises((ConnectionLost, TransportError)):
        file.read(1)
    with pytest.raises(TransportError):
        file.close()
    assert file.closed
    readable = nvmeof.open(live_target.url)
    readable._worker.run(abort(readable._namespace.controller))
    readable.close()


async def abort(controller: nvmeof.Controller) -> None:
    for connection in list(controller._connections):
        connection.abort("pulled")
