"""VirtualDisk: a good disk until it is told otherwise, then exactly as bad as it says, the same for the same seed."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from nvmeof.testing.disk_conformance import DISK_CHECKS, SIZE_MIN, OpenDisk
from nvmeof.testing.virtual_disk import PAGE, SECTOR, Damage, Operation, PowerLost, VirtualDisk

SIZE = 64 * PAGE
OLD = b"old sect" * (PAGE // 8)
NEW = b"new sect" * (PAGE // 8)


def content(disk: VirtualDisk, offset: int = 0, length: int = PAGE) -> bytes:
    view = memoryview(bytearray(length))
    disk.read_into(offset, view)
    return bytes(view)


def sectors(data: bytes) -> list[bytes]:
    return [data[start : start + SECTOR] for start in range(0, len(data), SECTOR)]


def after_crash(seed: int, damage: Damage) -> VirtualDisk:
    """Page 0 is OLD on media and NEW in the cache when the power goes."""
    disk = VirtualDisk(SIZE, seed=seed, damage=damage)
    disk.write(0, OLD)
    disk.sync()
    disk.write(0, NEW)
    return disk.crash()


@pytest.mark.parametrize("check", DISK_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("waits", [False, True])
def test_conformance(check: Callable[[OpenDisk], None], waits: bool) -> None:
    check(VirtualDisk(SIZE_MIN, waits=waits).reopen)


# -- crashes


@pytest.mark.parametrize("damage", [*Damage, Damage.HONEST, Damage.ALL, Damage.NONE])
def test_what_was_synced_survives_unless_misdirected_upon(damage: Damage) -> None:
    for seed in range(50):
        disk = VirtualDisk(SIZE, seed=seed, damage=damage & ~Damage.MISDIRECT)
        disk.write(0, OLD)
        disk.write(PAGE, NEW)
        disk.discard(PAGE, PAGE)
        disk.sync()
        disk.write(2 * PAGE, NEW)
        assert content(disk.crash(), 0, 2 * PAGE) == OLD + bytes(PAGE), f"seed {seed}"


def test_nothing_is_lost_by_a_crash_without_damage() -> None:
    disk = after_crash(0, Damage.NONE)
    assert content(disk) == NEW
    assert disk.unsynced() == []
    assert content(disk.crash()) == NEW


def test_loses() -> None:
    found = {content(after_crash(seed, Damage.LOSE)) for seed in range(50)}
    assert found == {OLD, NEW}


def test_tears_between_sectors() -> None:
    torn = 0
    for seed in range(50):
        found = sectors(content(after_crash(seed, Damage.TEAR)))
        assert all(sector in (OLD[:SECTOR], NEW[:SECTOR]) for sector in found), f"seed {seed}"
        torn += len(set(found)) == 2
    assert torn > 10


def test_garbles() -> None:
    garbled = 0
    for seed in range(50):
        found = sectors(content(after_crash(seed, Damage.GARBLE)))
        garbled += any(sector not in (OLD[:SECTOR], NEW[:SECTOR]) for sector in found)
    assert garbled > 10


def test_misdirects() -> None:
    misdirected = 0
    for seed in range(50):
        disk = after_crash(seed, Damage.MISDIRECT)
        rest = content(disk, PAGE, SIZE - PAGE)
        misdirected += content(disk) != NEW and any(sector == NEW[:SECTOR] for sector in sectors(rest))
    assert misdirected > 10


def test_reorders() -> None:
    found = set()
    for seed in range(50):
        disk = VirtualDisk(SIZE, seed=seed, damage=Damage.REORDER)
        disk.write(0, OLD)
        disk.write(0, NEW)
        found.add(content(disk.crash()))
    assert found == {OLD, NEW}


def test_a_discard_can_be_lost_too() -> None:
    found = set()
    for seed in range(50):
        disk = VirtualDisk(SIZE, seed=seed, damage=Damage.LOSE)
        disk.write(0, OLD)
        disk.sync()
        disk.discard(0, PAGE)
        assert content(disk) == bytes(PAGE)
        found.add(content(disk.crash()))
    assert found == {OLD, bytes(PAGE)}


def test_the_same_seed_does_the_same() -> None:
    def run(seed: int) -> bytes:
        disk = VirtualDisk(SIZE, seed=seed, damage=Damage.ALL)
        for number in range(40):
            disk.write(number * 700, NEW)
            if number % 9 == 0:
                disk.sync()
        return content(disk.crash(), 0, SIZE)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_survivors_can_be_chosen() -> None:
    disk = VirtualDisk(SIZE, damage=Damage.ALL)
    for number in range(3):
        disk.write(number * PAGE, NEW)
    assert [write.offset for write in disk.unsynced()] == [0, PAGE, 2 * PAGE]
    assert content(disk.crash([1]), 0, 3 * PAGE) == bytes(PAGE) + NEW + bytes(PAGE)


def test_power_goes_in_the_middle_of_an_operation() -> None:
    disk = VirtualDisk(SIZE, damage=Damage.NONE)
    disk.power_off_after(2)
    disk.write(0, OLD)
    disk.sync()
    with pytest.raises(PowerLost):
        disk.write(PAGE, NEW)
    assert not disk.read_now(0, memoryview(bytearray(PAGE)))
    operations: tuple[Callable[[], object], ...] = (
        lambda: content(disk),
        lambda: disk.write(0, NEW),
        disk.sync,
        lambda: disk.discard(0, PAGE),
        disk.size,
    )
    for operation in operations:
        with pytest.raises(PowerLost):
            operation()
    assert content(disk.crash(), 0, 2 * PAGE) == OLD + NEW, "a write cut off may have landed"
    assert disk.operations == 3


def test_a_sync_cut_off_has_synced_nothing() -> None:
    disk = VirtualDisk(SIZE)
    disk.write(0, OLD)
    disk.power_off_after(0)
    with pytest.raises(PowerLost):
        disk.sync()
    assert content(disk.crash([])) == bytes(PAGE)


# -- injected errors


@pytest.mark.parametrize("operation", ["read", "write", "sync", "discard"])
def test_the_nth_operation_fails(operation: Operation) -> None:
    disk = VirtualDisk(SIZE)
    run: dict[Operation, Callable[[], object]] = {
        "read": lambda: content(disk),
        "write": lambda: disk.write(0, NEW),
        "sync": disk.sync,
        "discard": lambda: disk.discard(0, PAGE),
    }
    disk.fail(operation, nth=3, times=2, code=errno.EROFS)
    outcomes = []
    for _ in range(6):
        try:
            run[operation]()
            outcomes.append(0)
        except OSError as error:
            outcomes.append(error.errno or -1)
    assert outcomes == [0, 0, errno.EROFS, errno.EROFS, 0, 0]


def test_a_failed_write_leaves_a_part() -> None:
    lengths = set()
    for seed in range(30):
        disk = VirtualDisk(SIZE, seed=seed)
        disk.write(0, OLD)
        disk.fail("write")
        with pytest.raises(OSError, match="Input/output error"):
            disk.write(0, b"n" * PAGE)
        lengths.add(content(disk).count(b"n"))
    assert len(lengths) > 10


def test_after_a_failed_sync_the_disk_lies() -> None:
    for seed in range(20):
        disk = VirtualDisk(SIZE, seed=seed, damage=Damage.NONE)
        disk.write(0, OLD)
        disk.sync()
        disk.write(0, NEW)
        disk.fail("sync")
        with pytest.raises(OSError, match="Input/output error"):
            disk.sync()
        assert content(disk) == NEW
        disk.sync()
        assert content(disk.crash()) == OLD


def test_space_runs_out_and_comes_back() -> None:
    disk = VirtualDisk(SIZE, capacity=2 * PAGE)
    disk.write(0, NEW)
    with pytest.raises(OSError, match="No space left") as caught:
        disk.write(PAGE, NEW + NEW)
    assert caught.value.errno == errno.ENOSPC
    assert disk.allocated() == 2 * PAGE
    disk.write(0, OLD)
    disk.discard(0, PAGE)
    disk.write(3 * PAGE, OLD)
    assert content(disk, 3 * PAGE) == OLD


def test_a_truncated_disk_ends_early_until_it_is_written_past_its_end() -> None:
    disk = VirtualDisk(SIZE)
    disk.write(0, NEW * 4)
    disk.truncate(PAGE)
    assert disk.size() == PAGE
    with pytest.raises(OSError, match=f"ends at byte {PAGE}"):
        content(disk, PAGE)
    disk.write(3 * PAGE, NEW)
    assert content(disk, 0, 4 * PAGE) == NEW + bytes(2 * PAGE) + NEW


# -- holding


def test_a_sync_covers_what_was_written_before_it_began() -> None:
    disk = VirtualDisk(SIZE)
    disk.write(0, OLD)
    with disk.hold("sync") as hold:
        thread = threading.Thread(target=disk.sync)
        thread.start()
        assert hold.entered.wait(10)
        disk.write(PAGE, NEW)
        hold.release()
        thread.join(10)
    assert [write.offset for write in disk.unsynced()] == [PAGE]


def test_a_held_read_is_not_answered_at_once() -> None:
    disk = VirtualDisk(SIZE)
    with disk.hold("read") as hold:
        assert not disk.read_now(0, memoryview(bytearray(PAGE)))
        hold.release()
        assert content(disk) == bytes(PAGE)
    assert disk.read_now(0, memoryview(bytearray(PAGE)))


def test_a_hold_does_not_last_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmeof.testing.virtual_disk.HOLD_SECONDS_MAX", 0.01)
    disk = VirtualDisk(SIZE)
    with disk.hold("write"), pytest.raises(OSError, match="held for too long"):
        disk.write(0, NEW)
