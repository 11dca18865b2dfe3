"""One member of a pool: a disk, its label, its two superblock rings and key tables, and its state."""

from __future__ import annotations

from typing import Self

from nvmeof.engine.disk import Disk
from nvmeof.engine.layout import (
    AREA_BYTES,
    COUNT_MAX,
    FORMAT_VERSION,
    KEYS_BYTES,
    KEYS_OFFSET,
    PAGE,
    RING_OFFSET,
    RING_SLOTS,
    Geometry,
    Label,
    MemberEntry,
    MemberState,
    Superblock,
    decode_label,
    decode_superblock,
    encode_label,
    encode_superblock,
    label_version,
)
from nvmeof.errors import UsageError

HEAD, TAIL = 0, 1


class Member:
    """A disk with a role. ``disk`` is None while it is missing.

    ``state`` and ``cursor`` (the next segment to rebuild) are as in the superblock; ``errors`` counts what was bad.
    """

    def __init__(self, disk: Disk | None, identity: bytes, name: str) -> None:
        self.disk = disk
        self.identity = identity
        self.name = name
        self.state = MemberState.HEALTHY
        self.cursor = 0
        self.errors = 0
        self.reason = ""

    @property
    def writable(self) -> bool:
        """Whether new stripes go to it."""
        return self.disk is not None and self.state in (MemberState.HEALTHY, MemberState.REBUILDING)

    @property
    def readable(self) -> bool:
        """Whether it is asked first."""
        return self.disk is not None and self.state is MemberState.HEALTHY

    def entry(self) -> MemberEntry:
        """Its line in the superblock."""
        return MemberEntry(self.identity, self.state, self.cursor, min(self.errors, COUNT_MAX))

    def adopt(self, entry: MemberEntry) -> Self:
        """Take state, cursor and errors from the superblock."""
        self.state, self.cursor, self.errors = MemberState(entry.state), entry.cursor, entry.errors
        return self

    def out(self, reason: str) -> None:
        """It failed a write or a sync, or is missing: neither written nor counted upon until it is rebuilt."""
        self.state = MemberState.OUT
        self.reason = reason
        self.cursor = 0


def disk_name(disk: Disk, index: int) -> str:
    """What to call a disk in messages: its path, where it has one."""
    return str(getattr(disk, "path", f"member {index}"))


def area_offset(geometry: Geometry, end: int) -> int:
    """Byte at which the head or tail area of a member begins."""
    return 0 if end == HEAD else geometry.member_bytes - AREA_BYTES


def read_label(disk: Disk, name: str, member_bytes: int = 0) -> Label | None:
    """The label of either end, None when neither verifies. Raises UsageError for a newer format version.

    ``member_bytes``: what a pool's members have, where that is known; else the disk's size.
    """
    try:
        offsets = (0, (member_bytes or disk.size()) - AREA_BYTES)
    except OSError:
        return None
    newer = 0
    for offset in offsets:
        page = _read(disk, offset, PAGE)
        label = decode_label(page)
        if label is not None:
            return label
        newer = max(newer, label_version(page) or 0)
    if newer > FORMAT_VERSION:
        raise UsageError(
            f"{name}: has pool format version {newer}, this release knows up to {FORMAT_VERSION}; use a newer release"
        )
    return None


def write_label(disk: Disk, label: Label) -> None:
    """Both copies, and a sync. Raises OSError."""
    page = encode_label(label)
    for end in (HEAD, TAIL):
        disk.write(area_offset(label.geometry, end), page)
    disk.sync()


def read_superblocks(disk: Disk, geometry: Geometry) -> list[Superblock]:
    """Every superblock of the pool that verifies, of both rings."""
    found = []
    for end in (HEAD, TAIL):
        ring = _read(disk, area_offset(geometry, end) + RING_OFFSET, RING_SLOTS * PAGE)
        for slot in range(RING_SLOTS):
            superblock = decode_superblock(ring[slot * PAGE : (slot + 1) * PAGE])
            if superblock is not None and superblock.pool == geometry.pool:
                found.append(superblock)
    return found


def write_superblock(disk: Disk, geometry: Geometry, end: int, superblock: Superblock) -> None:
    """Into its slot of one ring, without a sync. Raises OSError."""
    offset = area_offset(geometry, end) + RING_OFFSET + superblock.generation % RING_SLOTS * PAGE
    disk.write(offset, encode_superblock(superblock))


def read_keys(disk: Disk, geometry: Geometry) -> list[bytes]:
    """The key table regions of both ends, as they are."""
    return [_read(disk, area_offset(geometry, end) + KEYS_OFFSET, KEYS_BYTES) for end in (HEAD, TAIL)]


def write_keys(disk: Disk, geometry: Geometry, end: int, content: bytes) -> None:
    """A key table and zeros behind it, without a sync. Raises OSError."""
    disk.write(area_offset(geometry, end) + KEYS_OFFSET, content + bytes(KEYS_BYTES - len(content)))


def _read(disk: Disk, offset: int, length: int) -> bytes:
    """What is there; zeros for pages that cannot be read."""
    content = bytearray(length)
    with memoryview(content) as view:
        for at in range(0, length, PAGE):
            try:
                disk.read_into(offset + at, view[at : at + PAGE])
            except (OSError, ValueError):
                view[at : at + PAGE] = bytes(len(view[at : at + PAGE]))
    return bytes(content)
