"""FileVolume: the conformance suite on files and virtual disks and both event loops, identity, faults, group commit."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
import uvloop

from nvmeof.engine import file_volume as module
from nvmeof.engine.disk import ByteBuffer, FileDisk
from nvmeof.engine.file_volume import FileVolume
from nvmeof.errors import UsageError, WriteFault
from nvmeof.limits import CLEAR_BYTES_MAX, WRITE_STALL_SECONDS, WRITES_OFF_LOOP
from nvmeof.testing.virtual_disk import VirtualDisk
from nvmeof.testing.volume_conformance import SIZE_MIN, VOLUME_CHECKS, OpenVolume, read_volume, write_volume

from .volumes import BLOCK, DATA, SIZE, UUID_ONE, assert_no_more_threads_than, refusal, virtual_volume

Loop = Callable[[], asyncio.AbstractEventLoop]


@pytest.mark.parametrize(
    ("kind", "block_size", "loop"),
    [
        ("file", 512, asyncio.new_event_loop),
        ("file", 4096, asyncio.new_event_loop),
        ("file", 4096, uvloop.new_event_loop),
        ("memory", 4096, uvloop.new_event_loop),
        ("virtual", 512, uvloop.new_event_loop),
        ("virtual-waits", 4096, asyncio.new_event_loop),
    ],
    ids=["file-512", "file", "file-uvloop", "memory", "virtual", "virtual-waits"],
)
@pytest.mark.parametrize("check", VOLUME_CHECKS, ids=lambda check: check.__name__)
def test_conformance(
    check: Callable[[OpenVolume], Awaitable[None]], kind: str, block_size: int, loop: Loop, tmp_path: Path
) -> None:
    if kind == "memory" and not os.path.isdir("/dev/shm"):
        pytest.skip("no /dev/shm")
    disk = VirtualDisk(SIZE_MIN, waits=kind == "virtual-waits")

    async def run() -> None:
        with TemporaryDirectory(dir="/dev/shm" if kind == "memory" else tmp_path) as directory:

            async def open_volume() -> FileVolume:
                if kind.startswith("virtual"):
                    return virtual_volume(disk, block_size)
                return await FileVolume.open(Path(directory, "disk.img"), SIZE_MIN, block_size)

            await check(open_volume)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


# -- opening and identity


async def test_a_plain_file_holds_nothing_but_the_blocks(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    volume = await FileVolume.open(path, SIZE)
    assert (volume.size, volume.block_size, volume.allocated) == (SIZE, 4096, 0)
    await write_volume(volume, 8192, DATA)
    await volume.close()
    assert path.read_bytes() == bytes(8192) + DATA + bytes(SIZE - 8192 - len(DATA))


async def test_identity_survives_restarts_and_renames(tmp_path: Path) -> None:
    volume = await FileVolume.open(tmp_path / "disk.img", SIZE, 512)
    identity = volume.uuid
    await volume.close()
    for suffix in ("", ".nvmeof"):
        (tmp_path / f"disk.img{suffix}").rename(tmp_path / f"other.img{suffix}")
    (tmp_path / "link").symlink_to("other.img")
    for name, size, block_size in (("other.img", None, None), ("other.img", SIZE, 512), ("link", None, None)):
        volume = await FileVolume.open(tmp_path / name, size, block_size)
        assert (volume.uuid, volume.block_size, volume.size) == (identity, 512, SIZE)
        await volume.close()
    volume = await FileVolume.open(tmp_path / "fresh.img", SIZE)
    assert volume.uuid != identity
    await volume.close()


async def test_an_image_from_elsewhere_gets_an_identity(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    volume = await FileVolume.open(path, uuid=UUID_ONE)
    assert await read_volume(volume, 0, len(DATA)) == DATA
    await volume.close()
    volume = await FileVolume.open(path)
    assert (volume.uuid, volume.block_size) == (UUID_ONE, 4096)
    await volume.close()


async def test_a_resized_image_is_accepted_when_the_size_is_given(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    volume = await FileVolume.open(path, SIZE)
    identity = volume.uuid
    await volume.close()
    os.truncate(path, 2 * SIZE)
    with pytest.raises(UsageError, match=rf"is {2 * SIZE} bytes, .*disk.img.nvmeof says {SIZE}; .* give the size"):
        await FileVolume.open(path)
    for size in (2 * SIZE, None):
        volume = await FileVolume.open(path, size)
        assert (volume.uuid, volume.size) == (identity, 2 * SIZE)
        await volume.close()


async def test_refusals_name_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    assert await refusal(path) == f"{path}: does not exist, and no size to make it with was given"
    expected = f"{path}: size 10000 bytes; want a multiple of the block size 4096 (nearest: 8192 or 12288)"
    assert await refusal(path, 10000) == expected
    assert await refusal(path, 0) == f"{path}: size 0 bytes; want a multiple of the block size 4096"
    assert "size -4096 bytes" in await refusal(path, -4096)
    assert await refusal(path, SIZE, 1024) == f"{path}: block size 1024; want one of (512, 4096)"
    assert await refusal(path, SIZE, 0) == f"{path}: block size 0; want one of (512, 4096)"
    assert "less than 2**63" in await refusal(path, 1 << 70)
    assert os.listdir(tmp_path) == [], "a refused request made a file"
    assert "is a directory" in await refusal(tmp_path)
    assert "is a character device" in await refusal("/dev/null")
    assert "not a usable file name" in await refusal("zero\0byte")
    path.write_bytes(b"x" * 10000)
    assert "size 10000 bytes; want a multiple of the block size 4096" in await refusal(path)
    assert "is 10000 bytes, but 8192 bytes were asked for" in await refusal(path, 8192)
    path.write_bytes(b"")
    assert "is empty, and no size was given" in await refusal(path)
    assert os.listdir(tmp_path) == [path.name], "a refused image got a sidecar"


async def test_refuses_what_contradicts_the_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    sidecar = tmp_path / "disk.img.nvmeof"
    volume = await FileVolume.open(path, SIZE, 512, UUID_ONE)
    assert "is in use" in await refusal(path)
    await volume.close()
    assert await refusal(path, SIZE, 4096) == f"{path}: has blocks of 512 bytes ({sidecar}); 4096 were asked for"
    other = uuid4()
    assert await refusal(path, uuid=other) == f"{path}: is {UUID_ONE} ({sidecar}); {other} was asked for"
    path.rename(tmp_path / "away")
    assert f"is missing or empty, but {sidecar} says it has {SIZE} bytes" in await refusal(path, SIZE)
    path.touch()
    assert "is missing or empty" in await refusal(path, SIZE)
    (tmp_path / "away").rename(path)
    good = sidecar.read_text()
    sidecar.write_text(good[:-20])
    assert f"{sidecar}: damaged: is not JSON" in await refusal(path)
    sidecar.write_text(good)
    volume = await FileVolume.open(path)
    assert json.loads(good)["uuid"] == str(volume.uuid)
    await volume.close()


async def test_a_disk_that_cannot_be_cut_into_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="size 1000 bytes; want a multiple of the block size 512"):
        FileVolume(VirtualDisk(1000), uuid=UUID_ONE, block_size=512)


async def test_a_cancelled_open_lets_go_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.img"
    entered, leave = threading.Event(), threading.Event()
    open_disk = module._open_disk

    def slowly(*arguments: object) -> object:
        entered.set()
        assert leave.wait(10)
        return open_disk(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_open_disk", slowly)
    task = asyncio.create_task(FileVolume.open(path, SIZE))
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    leave.set()
    monkeypatch.undo()
    for _ in range(200):
        try:
            volume = await FileVolume.open(path, SIZE)
            break
        except UsageError:
            await asyncio.sleep(0.01)
    else:
        raise AssertionError("the file is still locked")
    await volume.close()


async def test_close_gives_threads_and_descriptors_back(tmp_path: Path) -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    volume = await FileVolume.open(tmp_path / "disk.img", SIZE)
    await asyncio.gather(*(volume.read(0, memoryview(bytearray(BLOCK))) for _ in range(50)), volume.flush())
    assert threading.active_count() > threads
    await volume.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    await assert_no_more_threads_than(threads)


# -- the loop and the threads


async def test_cached_reads_and_writes_need_no_thread(volume: FileVolume) -> None:
    threads = threading.active_count()
    view = memoryview(bytearray(BLOCK))
    for _ in range(100):
        assert volume.write_now(0, memoryview(DATA))
        assert volume.read_now(0, view)
    assert view == DATA
    assert threading.active_count() <= threads


async def test_nothing_on_the_loop_while_a_thread_has_the_range(disk: VirtualDisk, volume: FileVolume) -> None:
    view = memoryview(bytearray(BLOCK))
    with disk.hold("write") as hold:
        writing = asyncio.create_task(volume.write(0, memoryview(DATA)))
        await asyncio.to_thread(hold.entered.wait, 10)
        assert not volume.read_now(0, view)
        assert not volume.write_now(0, memoryview(DATA))
        reading = asyncio.create_task(volume.read(0, view))
        await asyncio.sleep(0.01)
        assert not reading.done(), "a read passed a write of the same block"
    await asyncio.gather(writing, reading)
    assert view == DATA
    with disk.hold("read") as hold:
        reading = asyncio.create_task(volume.read(0, view))
        await asyncio.to_thread(hold.entered.wait, 10)
        assert not volume.write_now(0, memoryview(DATA)), "a write on the loop met a read in a thread"
    await reading
    assert volume.write_now(0, memoryview(DATA))
    assert volume.read_now(0, view)


async def test_a_slow_sync_keeps_nobody_else(disk: VirtualDisk, volume: FileVolume) -> None:
    disk.waits = True
    with disk.hold("sync") as hold:
        flushing = asyncio.create_task(volume.flush())
        await asyncio.to_thread(hold.entered.wait, 10)
        async with asyncio.timeout(5):
            await asyncio.gather(*(volume.write(0, memoryview(DATA)) for _ in range(20)))
            assert await read_volume(volume, 0, BLOCK) == DATA
            await volume.deallocate([(BLOCK, BLOCK)])
        assert not flushing.done()
    await flushing


class Clock:
    """Seconds pass only when a disk says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowDisk(VirtualDisk):
    """Every write takes ``seconds`` of ``clock``; ``on_loop`` counts those of the main thread."""

    seconds = 0.0
    on_loop = 0
    clock: Clock

    def write(self, offset: int, data: ByteBuffer) -> None:
        self.on_loop += threading.current_thread() is threading.main_thread()
        self.clock.now += self.seconds
        super().write(offset, data)


async def test_writes_leave_the_loop_while_the_page_cache_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(SIZE)
    disk.clock = Clock()
    monkeypatch.setattr(module, "perf_counter", disk.clock)
    monkeypatch.setattr(module, "WRITE_STALL_SECONDS", WRITE_STALL_SECONDS)
    volume = virtual_volume(disk)
    disk.seconds = 0.0019
    for _ in range(10):
        assert volume.write_now(0, memoryview(DATA))
    disk.seconds = 0.05
    assert volume.write_now(0, memoryview(DATA)), "the slow one itself is done"
    on_loop = disk.on_loop
    for _ in range(3 * WRITES_OFF_LOOP):
        await write_volume(volume, 0, DATA)
    assert disk.on_loop == on_loop, "writes went on to stall the loop"
    disk.seconds = 0.0001
    for _ in range(WRITES_OFF_LOOP - 1):
        await write_volume(volume, 0, DATA)
    disk.seconds = 0.05
    await write_volume(volume, 0, DATA)
    disk.seconds = 0.0001
    for _ in range(WRITES_OFF_LOOP):
        assert disk.on_loop == on_loop, "a stall did not start the count again"
        await write_volume(volume, 0, DATA)
    await write_volume(volume, 0, DATA)
    assert disk.on_loop == on_loop + 1, "writes did not come back"
    await volume.close()


async def test_clearing_is_done_in_bounded_pieces(disk: VirtualDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    size = CLEAR_BYTES_MAX * 3
    pieces: list[tuple[int, int]] = []
    monkeypatch.setattr(disk, "size", lambda: size)
    monkeypatch.setattr(disk, "discard", lambda offset, length: pieces.append((offset, length)))
    volume = virtual_volume(disk)
    await volume.write_zeroes(BLOCK, size - BLOCK, deallocate=True)
    await volume.deallocate([(number * 2 * BLOCK, BLOCK) for number in range(600)])
    await volume.deallocate([(0, 0), (5 * BLOCK, 0)])
    assert [length for _, length in pieces[:3]] == [CLEAR_BYTES_MAX, CLEAR_BYTES_MAX, CLEAR_BYTES_MAX - BLOCK]
    assert sum(length for _, length in pieces) == size - BLOCK + 600 * BLOCK
    assert max(len(batch) for batch in module._batches([(number, 1) for number in range(600)])) == 256
    await volume.close()


# -- group commit


async def test_flushes_share_the_next_sync(disk: VirtualDisk, volume: FileVolume) -> None:
    with disk.hold("sync") as hold:
        first = asyncio.create_task(volume.flush())
        await asyncio.to_thread(hold.entered.wait, 10)
        assert volume.write_now(0, memoryview(DATA))
        later = [asyncio.create_task(volume.flush()) for _ in range(50)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in (first, *later))
        hold.release()
        await asyncio.gather(first, *later)
    assert disk.operations == 3, "one write and two syncs"
    assert disk.unsynced() == []


async def test_a_flush_is_not_answered_by_a_sync_that_began_before_it(disk: VirtualDisk, volume: FileVolume) -> None:
    with disk.hold("sync") as hold:
        first = asyncio.create_task(volume.flush())
        await asyncio.to_thread(hold.entered.wait, 10)
        assert volume.write_now(0, memoryview(DATA))
        second = asyncio.create_task(volume.flush())
        hold.release()
        await first
        await second
        assert disk.unsynced() == []


async def test_a_cancelled_flush_spoils_nobody_elses(disk: VirtualDisk, volume: FileVolume) -> None:
    with disk.hold("sync") as hold:
        running = [asyncio.create_task(volume.flush()) for _ in range(2)]
        await asyncio.to_thread(hold.entered.wait, 10)
        waiting = [asyncio.create_task(volume.flush()) for _ in range(3)]
        await asyncio.sleep(0)
        running[0].cancel()
        waiting[0].cancel()
        waiting[1].cancel()
        await asyncio.sleep(0)
        hold.release()
        outcomes = await asyncio.gather(*running, *waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        asyncio.CancelledError,
        type(None),
        asyncio.CancelledError,
        asyncio.CancelledError,
        type(None),
    ]
    await volume.flush()


# -- closing


async def test_close_waits_for_those_in_threads(disk: VirtualDisk) -> None:
    volume = virtual_volume(disk)
    with disk.hold("write") as hold:
        writing = asyncio.create_task(volume.write(0, memoryview(DATA)))
        await asyncio.to_thread(hold.entered.wait, 10)
        closing = asyncio.create_task(volume.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
        with pytest.raises(WriteFault, match="is closed"):
            await volume.flush()
    await asyncio.gather(writing, closing)
    assert disk.unsynced() == [], "closed without a sync of the last write"
    assert volume.allocated == 0


async def test_a_cancelled_close_still_closes(disk: VirtualDisk) -> None:
    volume = virtual_volume(disk)
    with disk.hold("sync") as hold:
        closing = asyncio.create_task(volume.close())
        await asyncio.to_thread(hold.entered.wait, 10)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    await volume.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.size()


async def test_a_file_disk_may_be_handed_over(tmp_path: Path) -> None:
    volume = FileVolume(FileDisk.open(tmp_path / "raw", SIZE), uuid=UUID_ONE, block_size=512, name="raw")
    await write_volume(volume, 512, DATA[:512])
    await volume.close()
    assert (tmp_path / "raw").read_bytes()[512:1024] == DATA[:512]


async def test_each_opening_is_an_incarnation(tmp_path: Path) -> None:
    """It does not know whether the last one ended well."""
    seen = set()
    for _ in range(3):
        volume = await FileVolume.open(tmp_path / "disk", SIZE)
        seen.add(volume.incarnation)
        await volume.close()
    assert len(seen) == 3
    assert {len(each) for each in seen} == {16}
