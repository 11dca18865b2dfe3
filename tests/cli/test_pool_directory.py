"""Member files and links: made, found, locked, retired; and what a deleted file does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeof.cli.pool_directory import MemberFile, PoolDirectory
from nvmeof.engine.layout import AREA_BYTES
from nvmeof.errors import UsageError

SIZE = 1 << 20


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[PoolDirectory]:
    with PoolDirectory.open(tmp_path) as opened:
        yield opened


def make(directory: PoolDirectory, number: int, target: Path | None = None, **options: bool) -> MemberFile:
    options = {"sparse": True, "overwrite": False} | options
    return directory.make_member(directory.path_of(number), target, SIZE, **options)


def test_members_are_in_the_order_of_their_numbers(directory: PoolDirectory) -> None:
    for name in ("member-100.nvmeof", "member-02.nvmeof", "member-11.nvmeof", "member-1.nvmeof", "other"):
        (directory.path / name).touch()
    assert [path.name for path in directory.members()] == ["member-02.nvmeof", "member-11.nvmeof", "member-100.nvmeof"]


@pytest.mark.parametrize("sparse", [False, True])
def test_space_is_taken_at_once(directory: PoolDirectory, sparse: bool) -> None:
    disk = make(directory, 0, sparse=sparse)
    assert disk.size() == SIZE
    assert disk.allocated() == (0 if sparse else SIZE)
    disk.close()


def test_no_space(directory: PoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(disk: MemberFile) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(MemberFile, "allocate", full)
    with pytest.raises(OSError, match=r"No space left on device \(--sparse") as refused:
        make(directory, 0, sparse=False)
    assert refused.value.filename == str(directory.path_of(0))
    assert not directory.members()


def test_a_link_to_a_file_that_is_made(directory: PoolDirectory, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("disks") / "a"
    make(directory, 0, target).close()
    assert directory.path_of(0).readlink() == target
    assert target.stat().st_size == SIZE


def test_what_holds_something_is_not_overwritten(directory: PoolDirectory, tmp_path: Path) -> None:
    target = tmp_path / "disk"
    target.write_bytes(b"x" * SIZE)
    with pytest.raises(UsageError, match="may hold data; --yes"):
        make(directory, 0, target)
    assert not directory.members()
    disk = make(directory, 0, target, overwrite=True)
    content = target.read_bytes()
    assert content[:AREA_BYTES] == content[-AREA_BYTES:] == bytes(AREA_BYTES)
    disk.close()


def test_a_file_that_is_there_and_blank_is_taken(directory: PoolDirectory, tmp_path: Path) -> None:
    target = tmp_path / "disk"
    with target.open("wb") as file:
        file.truncate(2 * SIZE)
    disk = make(directory, 0, target)
    assert disk.size() == 2 * SIZE
    disk.close()


def test_a_deleted_member_fails_its_next_sync(directory: PoolDirectory) -> None:
    disk = make(directory, 0)
    disk.write(0, b"x" * 4096)
    disk.sync()
    assert not disk.is_gone
    directory.path_of(0).unlink()
    assert disk.is_gone
    with pytest.raises(OSError, match="the file was deleted"):
        disk.sync()
    disk.close()
    assert not disk.is_gone


def test_one_process_at_a_time(directory: PoolDirectory) -> None:
    directory.lock()
    with PoolDirectory.open(directory.path) as other:
        with pytest.raises(UsageError, match="another process has this pool open"):
            other.lock()
        directory.close()
        other.lock()


def test_members_that_cannot_be_opened_are_named(directory: PoolDirectory) -> None:
    make(directory, 0).close()
    directory.path_of(1).touch()
    directory.path_of(2).symlink_to("nowhere")
    directory.path_of(3).mkdir()
    disks, problems = directory.open_members()
    assert [disk.path for disk in disks] == [directory.path_of(0)]
    assert [problem.split(": ")[1] for problem in problems] == [
        "is empty, and no size was given",
        "does not exist, and no size to make it with was given",
        "is a directory; want a regular file or a block device",
    ]
    for disk in disks:
        disk.close()


def test_a_member_in_use_is_no_missing_member(directory: PoolDirectory) -> None:
    make(directory, 0).close()
    held = make(directory, 1)
    with pytest.raises(UsageError, match=r"member-01\.nvmeof: is in use"):
        directory.open_members()
    held.close()


def test_retired(directory: PoolDirectory, tmp_path: Path) -> None:
    for expected in ("member-00.nvmeof.replaced", "member-00.nvmeof.replaced-1", "member-00.nvmeof.replaced-2"):
        make(directory, 0).close()
        assert directory.retire(directory.path_of(0)).endswith(f"{expected} now")
    assert len(directory.retired()) == 3
    make(directory, 0, tmp_path / "target").close()
    assert directory.retire(directory.path_of(0)) == f"{tmp_path / 'target'} is not a member any more"
    assert (tmp_path / "target").exists()
    assert not directory.members()
    assert directory.retire(directory.path_of(0)) == ""


def test_names_that_are_free(directory: PoolDirectory) -> None:
    for number in (0, 1, 3):
        make(directory, number).close()
    assert directory.free_path() == directory.path_of(2)
    assert directory.free_path(7) == directory.path_of(7)
    assert directory.free_path(3) == directory.path_of(2)
