"""FileDisk: the conformance suite on every kind of file we can reach, and what the kernel may do to each call."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from nvmeof.engine import disk as disk_module
from nvmeof.engine.disk import FileDisk, load_file, replace_file
from nvmeof.errors import UsageError
from nvmeof.testing.disk_conformance import DISK_CHECKS, SIZE_MIN, OpenDisk

SIZE = 1 << 20


def open_bare(path: Path) -> FileDisk:
    """A disk on a file system that has neither RWF_NOWAIT nor fallocate."""
    disk = FileDisk.open(path, SIZE_MIN)
    disk._now_flags = -1
    disk._can_punch = disk._can_zero_range = False
    return disk


@pytest.fixture
def memory_path() -> Iterator[Path]:
    if not os.path.isdir("/dev/shm"):
        pytest.skip("no /dev/shm")
    with TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileDisk]:
    disk = FileDisk.open(tmp_path / "disk", SIZE)
    yield disk
    disk.close()


@pytest.mark.parametrize("check", DISK_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["file", "memory", "bare"])
def test_conformance(
    check: Callable[[OpenDisk], None], kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue("memory_path") if kind == "memory" else tmp_path
    open_disk = open_bare if kind == "bare" else lambda path: FileDisk.open(path, SIZE_MIN)
    check(lambda: open_disk(directory / "disk"))


# -- reading and writing


def test_reads_what_is_cached_without_waiting(disk: FileDisk, memory_path: Path) -> None:
    assert disk._now_flags in (os.RWF_NOWAIT, 0, -1)
    with_memory = FileDisk.open(memory_path / "disk", SIZE)
    for one in (disk, with_memory):
        if one._now_flags >= 0:
            one.write(0, b"cached" * 100)
            view = memoryview(bytearray(600))
            assert one.read_now(0, view)
            assert view == b"cached" * 100
    assert with_memory._now_flags == 0 or with_memory._now_flags == os.RWF_NOWAIT
    with_memory.close()


def test_read_now_says_no_when_it_would_wait(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def cold(fd: int, buffers: object, offset: int, flags: int = 0) -> int:
        raise BlockingIOError(errno.EAGAIN, "cold")

    disk._now_flags = os.RWF_NOWAIT
    monkeypatch.setattr(disk_module, "preadv", cold)
    assert not disk.read_now(0, memoryview(bytearray(512)))
    assert disk._now_flags == os.RWF_NOWAIT


def test_read_now_gives_up_where_it_is_unsupported(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def unsupported(fd: int, buffers: object, offset: int, flags: int = 0) -> int:
        calls.append(flags)
        raise OSError(errno.EOPNOTSUPP, "no")

    disk._now_flags = os.RWF_NOWAIT
    monkeypatch.setattr(disk_module, "preadv", unsupported)
    view = memoryview(bytearray(512))
    assert not disk.read_now(0, view)
    assert not disk.read_now(0, view)
    assert calls == [os.RWF_NOWAIT]


def test_read_now_does_not_take_a_part_for_the_whole(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk._now_flags = os.RWF_NOWAIT
    monkeypatch.setattr(disk_module, "preadv", lambda *arguments: 256)
    assert not disk.read_now(0, memoryview(bytearray(512)))


def test_short_reads_are_completed(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(5000)
    disk.write(100, data)
    preadv = os.preadv

    def short(fd: int, buffers: tuple[memoryview], offset: int, flags: int = 0) -> int:
        return preadv(fd, (buffers[0][:700],), offset, flags)

    monkeypatch.setattr(disk_module, "preadv", short)
    view = memoryview(bytearray(5000))
    disk.read_into(100, view)
    assert view == data


def test_short_writes_are_completed(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(5000)
    pwrite = os.pwrite
    monkeypatch.setattr(disk_module, "pwrite", lambda fd, data, offset: pwrite(fd, memoryview(data)[:700], offset))
    disk.write(100, data)
    view = memoryview(bytearray(5000))
    disk.read_into(100, view)
    assert view == data


def test_a_write_of_nothing_ends(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        disk.write(0, b"x" * 512)


def test_a_file_that_became_shorter_is_an_error(disk: FileDisk) -> None:
    disk.write(0, b"x" * SIZE)
    os.truncate(disk.path, SIZE - 1000)
    assert disk.size() == SIZE - 1000
    view = memoryview(bytearray(4096))
    assert not disk.read_now(SIZE - 4096, view)
    with pytest.raises(OSError, match=f"ends at byte {SIZE - 1000}") as caught:
        disk.read_into(SIZE - 4096, view)
    assert caught.value.errno == errno.EIO


def test_errors_of_sync_come_out(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OSError, match="broken"):
        disk.sync()


# -- fallocate


class Fallocate:
    """Stands in for fallocate(2): answers with ``codes`` in turn, then does the real thing."""

    def __init__(self, codes: list[int]) -> None:
        self.codes = codes
        self.real = disk_module._fallocate
        self.modes: list[int] = []

    def __call__(self, fd: int, mode: int, offset: int, length: int) -> int:
        self.modes.append(mode)
        if self.codes:
            ctypes.set_errno(self.codes.pop(0))
            return -1
        return int(self.real(fd, mode, offset, length))


@pytest.mark.parametrize("method", ["discard", "zero"])
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_without_fallocate_zeros_are_written(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch, method: str, code: int
) -> None:
    fallocate = Fallocate([code] * 100)
    monkeypatch.setattr(disk_module, "_fallocate", fallocate)
    clear = disk.discard if method == "discard" else disk.zero
    for _ in range(3):
        disk.write(0, b"x" * 10_000)
        clear(1000, 8000)
        view = memoryview(bytearray(10_000))
        disk.read_into(0, view)
        assert view == b"x" * 1000 + bytes(8000) + b"x" * 1000
    assert len(fallocate.modes) == (1 if method == "discard" else 2), "did not remember"


def test_an_interrupted_fallocate_goes_on(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    fallocate = Fallocate([errno.EINTR, errno.EINTR])
    monkeypatch.setattr(disk_module, "_fallocate", fallocate)
    disk.write(0, b"x" * 8192)
    disk.discard(0, 4096)
    view = memoryview(bytearray(8192))
    disk.read_into(0, view)
    assert view == bytes(4096) + b"x" * 4096
    assert len(fallocate.modes) == 3
    assert disk._can_punch


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EPERM])
def test_errors_of_fallocate_come_out(disk: FileDisk, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(disk_module, "_fallocate", Fallocate([code, code]))
    for clear in (disk.discard, disk.zero):
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            clear(0, 4096)
        assert caught.value.errno == code
    assert disk._can_punch
    assert disk._can_zero_range


def test_a_hole_gives_space_back(disk: FileDisk) -> None:
    assert disk.allocated() < SIZE
    disk.write(0, b"x" * SIZE)
    disk.sync()
    assert disk.allocated() == SIZE
    disk.discard(0, SIZE // 2)
    if not disk._can_punch:
        pytest.skip("this file system cannot punch holes")
    assert disk.allocated() <= SIZE // 2 + 65536


# -- opening


def test_a_new_file_is_sparse_private_and_on_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def record(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    disk = FileDisk.open(tmp_path / "disk", 1 << 40)
    assert disk.created
    assert disk.size() == 1 << 40
    assert disk.allocated() < 1 << 20
    assert stat.S_IMODE(os.stat(tmp_path / "disk").st_mode) == 0o600
    assert synced == [str(tmp_path / "disk"), str(tmp_path)]
    assert not os.get_inheritable(disk._fd)
    disk.close()


def test_an_existing_file_is_served_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"as it is" * 512)
    for size in (None, 4096):
        disk = FileDisk.open(path, size)
        assert (disk.created, disk.size()) == (False, 4096)
        disk.close()
    assert path.read_bytes() == b"as it is" * 512


def test_an_empty_file_is_made_as_large_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    disk = FileDisk.open(path, 8192)
    assert (disk.created, disk.size()) == (True, 8192)
    disk.close()


def refusal(path: Path, size: int | None) -> str:
    with pytest.raises(UsageError) as caught:
        FileDisk.open(path, size)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_refusals_name_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    assert refusal(path, None) == f"{path}: does not exist, and no size to make it with was given"
    assert refusal(path, 0) == f"{path}: size 0 bytes; want more than 0 and less than 2**63"
    assert "want more than 0" in refusal(path, -1)
    assert "less than 2**63" in refusal(path, 1 << 63)
    assert refusal(tmp_path, None) == f"{tmp_path}: is a directory; want a regular file or a block device"
    assert "cannot be created: No such file" in refusal(tmp_path / "missing" / "disk", 4096)
    for name in ("disk\0", "disk\ud800"):
        assert refusal(Path(name), 4096) == f"{name!r}: is not a usable file name"
    path.write_bytes(b"x" * 4096)
    assert refusal(path, 8192) == f"{path}: is 4096 bytes, but 8192 bytes were asked for"
    assert "Not a directory" in refusal(path / "below", 4096)
    path.write_bytes(b"")
    assert refusal(path, None) == f"{path}: is empty, and no size was given"
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe; want a regular file" in refusal(tmp_path / "pipe", None)
    assert "is a character device" in refusal(Path("/dev/null"), 4096)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "symbolic link to a file that does not exist" in refusal(tmp_path / "dangling", 4096)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_that_may_not_be_written_is_refused() -> None:
    path = Path("/sys/devices/system/cpu/possible")
    if not path.exists():
        pytest.skip("no sysfs, whose files refuse even root")
    assert refusal(path, None) == f"{path}: cannot be opened for writing: Permission denied"


def test_a_file_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, size: int) -> None:
        if size:
            raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "ftruncate", full)
    descriptors = len(os.listdir("/proc/self/fd"))
    assert "cannot be made 4096 bytes long: File too large" in refusal(tmp_path / "disk", 4096)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").touch()
    assert "cannot be made" in refusal(tmp_path / "mine", 4096)
    assert (tmp_path / "mine").exists(), "removed a file that was there before"
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_one_opener_at_a_time(disk: FileDisk) -> None:
    assert refusal(disk.path, None) == f"{disk.path}: is in use: another process, or this one, has it open and locked"
    program = f"from nvmeof.engine.disk import FileDisk; FileDisk.open({str(disk.path)!r})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "UsageError" in result.stderr
    assert "is in use" in result.stderr
    disk.close()
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("nvmeof.engine.disk.fcntl.flock", no_locks)
    assert "cannot be locked: No locks available" in refusal(tmp_path / "disk", 4096)


def test_a_block_device_is_served_and_claimed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"d" * SIZE)
    try:
        found = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no losetup")
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    device = Path(found.stdout.strip())
    try:
        disk = FileDisk.open(device)
        try:
            assert disk.is_device
            assert disk.size() == disk.allocated() == SIZE
            disk.write(SIZE - 4096, b"e" * 4096)
            disk.discard(0, 4096)
            disk.zero(8192, 4096)
            disk.sync()
            view = memoryview(bytearray(12288))
            disk.read_into(0, view)
            assert view == bytes(4096) + b"d" * 4096 + bytes(4096)
            assert "in use by the system" in refusal(device, None)
        finally:
            disk.close()
        claim = os.open(device, os.O_RDWR | os.O_EXCL)
        assert "(mounted, or in use by the system)" in refusal(device, None)
        os.close(claim)
        assert "asked for" in refusal(device, SIZE * 2)
        assert image.read_bytes()[-4096:] == b"e" * 4096
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


# -- small files


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small"
    assert load_file(path, 100) is None
    replace_file(path, b"one")
    assert load_file(path, 100) == b"one"
    replace_file(path, b"two" * 33)
    assert load_file(path, 99) == b"two" * 33
    with pytest.raises(OSError, match="larger than 98 bytes"):
        load_file(path, 98)

    def broken(source: object, target: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="broken"):
        replace_file(path, b"three")
    assert load_file(path, 99) == b"two" * 33
    assert list(tmp_path.iterdir()) == [path], "left something behind"


def test_a_small_file_is_on_media_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = os.fsync, os.replace

    def record_sync(fd: int) -> None:
        events.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "content")
        fsync(fd)

    def record_replace(source: Path, target: Path) -> None:
        events.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    replace_file(tmp_path / "small", b"data")
    assert events == ["content", "name", "directory"]
