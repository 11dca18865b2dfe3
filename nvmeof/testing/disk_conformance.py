"""What every disk must do, whatever it is made of.

A check is a function that raises AssertionError; it takes a function that opens the disk under test. Called again after
a close, that must open the same disk again; each check wants a new one, of at least ``SIZE_MIN`` bytes::

    @pytest.mark.parametrize("check", DISK_CHECKS, ids=lambda check: check.__name__)
    def test_conformance(check, tmp_path):
        check(lambda: FileDisk.open(tmp_path / "disk", SIZE_MIN))
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

from nvmeof.engine.disk import Disk

SIZE_MIN = 8 << 20
SEED = 20240601

OpenDisk = Callable[[], Disk]


def read_disk(disk: Disk, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset``, at once if that is possible; both ways have to agree. Raises OSError."""
    at_once, waited = bytearray(length), bytearray(length)
    answered = disk.read_now(offset, memoryview(at_once))
    disk.read_into(offset, memoryview(waited))
    assert not answered or at_once == waited, f"read_now and read_into differ at {offset}"
    return bytes(waited)


def disk_begins_as_zeros(open_disk: OpenDisk) -> None:
    """Nothing written reads as zeros, over the whole size."""
    disk = open_disk()
    assert disk.size() >= SIZE_MIN, "the disk is too small for these checks"
    for offset in (0, disk.size() // 2, disk.size() - 4096):
        assert read_disk(disk, offset, 4096) == bytes(4096), f"not zero at {offset}"
    disk.close()


def disk_keeps_any_range(open_disk: OpenDisk) -> None:
    """Offsets and lengths need no alignment, and neighbours stay as they are."""
    disk = open_disk()
    random = Random(SEED)
    model = bytearray(SIZE_MIN)
    for _ in range(200):
        length = random.choice((0, 1, 511, 512, 4096, 4097, 70_000, 1 << 20))
        offset = random.randrange(SIZE_MIN - length)
        data = random.randbytes(length)
        disk.write(offset, random.choice((bytes, bytearray, memoryview))(data))
        model[offset : offset + length] = data
        low, high = max(0, offset - 100), min(SIZE_MIN, offset + length + 100)
        assert read_disk(disk, low, high - low) == model[low:high], f"wrong around {offset}+{length} (seed {SEED})"
    assert read_disk(disk, 0, SIZE_MIN) == model, f"wrong somewhere (seed {SEED})"
    disk.close()


def disk_writes_two_in_a_row(open_disk: OpenDisk) -> None:
    """``write_two`` is a write of both buffers, one behind the other, and of nothing else."""
    disk = open_disk()
    random = Random(SEED)
    for first, second in ((64, 4032), (0, 10), (10, 0), (64, 266176), (4096, 1)):
        head, tail = random.randbytes(first), random.randbytes(second)
        disk.write(1000, b"x" * (first + second + 8))
        disk.write_two(1004, head, memoryview(tail))
        assert read_disk(disk, 1000, first + second + 8) == b"xxxx" + head + tail + b"xxxx", f"{first} and {second}"
    disk.close()


def disk_reaches_its_ends(open_disk: OpenDisk) -> None:
    """The first and the last byte can be written; past the last there is nothing to read; the size stays."""
    disk = open_disk()
    size = disk.size()
    disk.write(0, b"a")
    disk.write(size - 1, b"z")
    assert (read_disk(disk, 0, 1), read_disk(disk, size - 1, 1)) == (b"a", b"z")
    assert disk.size() == size, "a write changed the size"
    view = memoryview(bytearray(2))
    assert not disk.read_now(size - 1, view), "read_now answered past the end"
    try:
        disk.read_into(size - 1, view)
    except OSError:
        pass
    else:
        raise AssertionError("a read across the end did not raise OSError")
    disk.close()


def disk_zeroes(open_disk: OpenDisk) -> None:
    """``discard`` and ``zero`` make exactly the range zeros, aligned or not; none makes the disk take more space."""
    disk = open_disk()
    data = Random(SEED).randbytes(3 << 20)
    ranges = ((0, 4096), (4096, 1 << 20), (5000, 100), (512, 512), (1000, 200_000), (7, 0), (0, 3 << 20))
    for clear in (disk.discard, disk.zero):
        for offset, length in ranges:
            disk.write(0, data)
            before = disk.allocated()
            clear(offset, length)
            expected = data[:offset] + bytes(length) + data[offset + length :]
            assert read_disk(disk, 0, len(data)) == expected, f"{clear.__name__} of {length} at {offset}"
            assert disk.allocated() <= before, f"{clear.__name__} of {length} at {offset} took space"
    disk.close()


def disk_keeps_what_was_synced(open_disk: OpenDisk) -> None:
    """Synced writes and discards are there for the next opener; a sync of nothing is a sync."""
    disk = open_disk()
    disk.sync()
    disk.write(4096, b"kept" * 1024)
    disk.write(16384, b"gone" * 1024)
    disk.sync()
    disk.discard(16384, 4096)
    disk.sync()
    disk.sync()
    size = disk.size()
    disk.close()
    disk = open_disk()
    assert disk.size() == size
    assert read_disk(disk, 4096, 4096) == b"kept" * 1024
    assert read_disk(disk, 16384, 4096) == bytes(4096)
    disk.close()


def disk_works_from_threads(open_disk: OpenDisk) -> None:
    """Operations on disjoint ranges from eight threads at once, syncs among them."""
    disk = open_disk()
    share = SIZE_MIN // 8

    def work(number: int) -> None:
        random = Random(SEED + number)
        base = number * share
        for _ in range(30):
            length = random.randrange(1, 20_000)
            offset = base + random.randrange(share - length)
            data = random.randbytes(length)
            disk.write(offset, data)
            assert read_disk(disk, offset, length) == data, f"thread {number}, {offset}+{length} (seed {SEED})"
            if random.random() < 0.1:
                disk.sync()
                disk.discard(offset, length)
                assert read_disk(disk, offset, length) == bytes(length), f"thread {number} (seed {SEED})"

    with ThreadPoolExecutor(8) as executor:
        for outcome in executor.map(work, range(8)):
            assert outcome is None
    disk.close()


def disk_closes(open_disk: OpenDisk) -> None:
    """After ``close`` nothing works, least of all on somebody else's descriptor; a second ``close`` is nothing."""
    disk = open_disk()
    disk.close()
    disk.close()
    view = memoryview(bytearray(512))
    assert not disk.read_now(0, view), "read_now answered after close"
    operations: tuple[Callable[[], object], ...] = (
        lambda: disk.read_into(0, view),
        lambda: disk.write(0, view),
        disk.sync,
        lambda: disk.discard(0, 4096),
        lambda: disk.zero(0, 4096),
        disk.size,
    )
    for number, operation in enumerate(operations):
        try:
            operation()
        except OSError:
            continue
        raise AssertionError(f"operation {number} works on a closed disk")


DISK_CHECKS: tuple[Callable[[OpenDisk], None], ...] = (
    disk_begins_as_zeros,
    disk_keeps_any_range,
    disk_writes_two_in_a_row,
    disk_reaches_its_ends,
    disk_zeroes,
    disk_keeps_what_was_synced,
    disk_works_from_threads,
    disk_closes,
)
