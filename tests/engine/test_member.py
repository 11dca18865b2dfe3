"""One member: label at both ends, superblock rings, key table, and what its state allows."""

from __future__ import annotations

import errno

import pytest
import xxhash

from nvmeof.engine.layout import (
    Geometry,
    Label,
    MemberEntry,
    MemberState,
    Superblock,
    encode_label,
    encode_superblock,
)
from nvmeof.engine.member import (
    HEAD,
    TAIL,
    Member,
    area_offset,
    disk_name,
    read_keys,
    read_label,
    read_superblocks,
    write_keys,
    write_label,
    write_superblock,
)
from nvmeof.errors import UsageError
from nvmeof.testing.virtual_disk import VirtualDisk

from .pools import MEMBER_BYTES, NamedDisk, flip, image, put

GEOMETRY = Geometry(b"p" * 16, 2, 2, 0, 128 << 10, 128 << 10, 22, MEMBER_BYTES, 9)
LABEL = Label(GEOMETRY, b"m" * 16, 1)
TAIL_AT = MEMBER_BYTES - (128 << 10)


def superblock(generation: int, pool: bytes = GEOMETRY.pool) -> Superblock:
    members = tuple(MemberEntry(bytes([n]) * 16, 0, 0, 0) for n in range(4))
    return Superblock(generation, pool, b"i" * 16, 3, False, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, members)


def test_areas() -> None:
    assert area_offset(GEOMETRY, HEAD) == 0
    assert area_offset(GEOMETRY, TAIL) == TAIL_AT


def test_a_label_is_at_both_ends_and_synced() -> None:
    disk = VirtualDisk(MEMBER_BYTES)
    write_label(disk, LABEL)
    assert not disk.unsynced()
    page = encode_label(LABEL)
    assert image(disk)[:4096] == image(disk)[TAIL_AT : TAIL_AT + 4096] == page
    assert sum(1 for byte in image(disk) if byte) == 2 * sum(1 for byte in page if byte)
    assert read_label(disk, "x") == LABEL


@pytest.mark.parametrize("at", [0, TAIL_AT])
def test_either_label_will_do(at: int) -> None:
    disk = VirtualDisk(MEMBER_BYTES)
    write_label(disk, LABEL)
    flip(disk, at + 20)
    assert read_label(disk, "x") == LABEL
    flip(disk, TAIL_AT - at + 4090)
    assert read_label(disk, "x") is None


def newer(version: int) -> bytes:
    page = encode_label(LABEL)
    body = page[:8] + version.to_bytes(4, "little") + page[12:4088]
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def test_a_newer_version_is_refused_by_name() -> None:
    disk = VirtualDisk(MEMBER_BYTES)
    put(disk, 0, newer(7))
    with pytest.raises(UsageError, match=r"^here: has pool format version 7, this release knows up to 1; use a newer"):
        read_label(disk, "here")
    put(disk, 0, bytes(4096))
    put(disk, TAIL_AT, newer(2))
    with pytest.raises(UsageError, match="version 2"):
        read_label(disk, "here")
    put(disk, TAIL_AT, newer(0))
    assert read_label(disk, "here") is None


def test_a_disk_that_cannot_be_read_has_no_label() -> None:
    disk = VirtualDisk(MEMBER_BYTES)
    write_label(disk, LABEL)
    disk.fail("read", times=1)
    assert read_label(disk, "x") == LABEL, "the other end"
    disk.fail("read", times=2)
    assert read_label(disk, "x") is None
    disk.close()
    assert read_label(disk, "x") is None


@pytest.mark.parametrize("size", [0, 512, 4096, 100 << 10, 128 << 10])
def test_a_disk_smaller_than_an_area_has_no_label(size: int) -> None:
    assert read_label(VirtualDisk(size), "x") is None


def test_superblocks_go_round_the_rings() -> None:
    """Slot = generation mod 8, 4 KiB each, at 64 KiB of both areas; no sync of its own."""
    disk = VirtualDisk(MEMBER_BYTES)
    for generation in range(1, 21):
        for end in (HEAD, TAIL):
            write_superblock(disk, GEOMETRY, end, superblock(generation))
    assert len(disk.unsynced()) == 40
    content = image(disk)
    for generation in range(13, 21):
        for area in (0, TAIL_AT):
            at = area + (64 << 10) + generation % 8 * 4096
            assert content[at : at + 4096] == encode_superblock(superblock(generation))
    found = read_superblocks(disk, GEOMETRY)
    assert sorted(each.generation for each in found) == sorted([*range(13, 21)] * 2)


def test_superblocks_that_do_not_verify_or_are_another_pools_are_left_out() -> None:
    disk = VirtualDisk(MEMBER_BYTES)
    write_superblock(disk, GEOMETRY, HEAD, superblock(1))
    write_superblock(disk, GEOMETRY, HEAD, superblock(2))
    write_superblock(disk, GEOMETRY, TAIL, superblock(3, b"q" * 16))
    flip(disk, (64 << 10) + 4096 + 130)
    assert [each.generation for each in read_superblocks(disk, GEOMETRY)] == [2]


def test_a_page_that_cannot_be_read_costs_one_slot() -> None:
    disk = VirtualDisk(MEMBER_BYTES)
    for generation in range(8):
        write_superblock(disk, GEOMETRY, HEAD, superblock(generation))
    disk.fail("read", nth=3)
    assert [each.generation for each in read_superblocks(disk, GEOMETRY)] == [0, 1, 3, 4, 5, 6, 7]


def test_key_tables() -> None:
    disk = VirtualDisk(MEMBER_BYTES)
    write_keys(disk, GEOMETRY, HEAD, b"old" * 5000)
    write_keys(disk, GEOMETRY, HEAD, b"new")
    write_keys(disk, GEOMETRY, TAIL, b"tail")
    assert read_keys(disk, GEOMETRY) == [b"new".ljust(32768, b"\0"), b"tail".ljust(32768, b"\0")]
    content = image(disk)
    assert content[32768:32771] == b"new"
    assert content[TAIL_AT + 32768 : TAIL_AT + 32772] == b"tail"
    assert b"old" not in content
    assert not any(content[65536:TAIL_AT])


def test_what_a_state_allows() -> None:
    disk = VirtualDisk(4096)
    member = Member(disk, b"m" * 16, "x")
    allowed = {}
    for state in MemberState:
        member.state = state
        allowed[state.name] = (member.writable, member.readable)
    assert allowed == {
        "HEALTHY": (True, True), "OUT": (False, False), "REBUILDING": (True, False), "SPARE": (False, False),
    }  # fmt: skip
    member.state, member.disk = MemberState.HEALTHY, None
    assert (member.writable, member.readable) == (False, False)


def test_a_member_that_goes_out() -> None:
    member = Member(None, b"m" * 16, "x").adopt(MemberEntry(b"m" * 16, 2, 5, 7))
    assert (member.state, member.cursor, member.errors) == (MemberState.REBUILDING, 5, 7)
    assert member.entry() == (b"m" * 16, MemberState.REBUILDING, 5, 7)
    member.out("why")
    assert (member.entry(), member.reason) == ((b"m" * 16, MemberState.OUT, 0, 7), "why")


def test_names() -> None:
    disk = NamedDisk(4096)
    disk.path = "/pool/member-3"
    assert disk_name(disk, 9) == "/pool/member-3"
    assert disk_name(VirtualDisk(4096), 9) == "member 9"


def test_errors_of_writing_are_the_callers() -> None:
    disk = VirtualDisk(MEMBER_BYTES)
    disk.fail("write", times=3, code=errno.ENOSPC)
    with pytest.raises(OSError, match="space"):
        write_label(disk, LABEL)
    with pytest.raises(OSError, match="space"):
        write_superblock(disk, GEOMETRY, HEAD, superblock(1))
    with pytest.raises(OSError, match="space"):
        write_keys(disk, GEOMETRY, HEAD, b"")
    disk.fail("sync")
    with pytest.raises(OSError, match=r"Input"):
        write_label(disk, LABEL)
