"""Making a pool: geometry, empty members, and at last the labels that say it is one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from uuid import uuid4

from nvmeof.engine.disk import Disk
from nvmeof.engine.layout import (
    AREA_BYTES,
    KEYS_BYTES,
    NONE32,
    PAGE,
    RECORD_RAW_MAX,
    RING_OFFSET,
    RING_SLOTS,
    SEGMENTS_MAX,
    UNITS_MAX,
    Geometry,
    Label,
    LabelFlag,
    MemberEntry,
    MemberState,
    Superblock,
    stream_units,
)
from nvmeof.engine.member import (
    HEAD,
    TAIL,
    area_offset,
    disk_name,
    read_label,
    write_keys,
    write_label,
    write_superblock,
)  # fmt: skip
from nvmeof.errors import UsageError
from nvmeof.keys.sources import KeySource
from nvmeof.keys.table import KeyTable
from nvmeof.limits import POOL_RESERVE_SEGMENTS, POOL_SEGMENT_BYTES, POOL_STRIP_BYTES_MAX

PARITY = {"none": 0, "raid5": 1, "raid6": 2}
DATA_MAX = 16
SEGMENTS_MIN = 10
MAP_SHARE = 64
"""One segment in so many is set aside for the map and its older copies: 8 bytes for 4096, several times over."""


def geometry_for(
    members: int, member_bytes: int, *, raid: str = "raid6", encrypted: bool = False, sparse: bool = False,
    segment_bytes: int = POOL_SEGMENT_BYTES,
) -> Geometry:  # fmt: skip
    """The geometry of a new pool of ``members`` disks of ``member_bytes`` each. Raises UsageError."""
    if raid not in PARITY:
        raise UsageError(f"raid {raid!r}: want one of {', '.join(PARITY)}")
    parity = PARITY[raid]
    data = members - parity
    if not (1 if parity == 0 else 2) <= data <= DATA_MAX:
        low, high = (2 + parity if parity else 1), DATA_MAX + parity
        raise UsageError(f"{members} members: {raid} wants {low} to {high}")
    if segment_bytes % PAGE or not 16 * PAGE <= segment_bytes <= POOL_SEGMENT_BYTES:
        raise UsageError(f"segment size {segment_bytes}: want a multiple of {PAGE}, at most {POOL_SEGMENT_BYTES}")
    segments = min(SEGMENTS_MAX, (member_bytes - 2 * AREA_BYTES) // segment_bytes)
    if segments < SEGMENTS_MIN:
        least = 2 * AREA_BYTES + SEGMENTS_MIN * segment_bytes
        raise UsageError(f"members of {member_bytes} bytes: want {least} at least, {SEGMENTS_MIN} segments")
    flags = (LabelFlag.ENCRYPTED if encrypted else 0) | (LabelFlag.SPARSE if sparse else 0)
    strip = min(POOL_STRIP_BYTES_MAX, segment_bytes)
    if stream_units(data, strip // PAGE) < UNITS_MAX:
        raise UsageError(f"segment size {segment_bytes}: too small for a record of 128 KiB on {data} data members")
    return Geometry(
        uuid4().bytes,
        data,
        parity,
        flags,
        segment_bytes,
        strip,
        segments,
        member_bytes // PAGE * PAGE,
        int(time.time()),
    )


def capacity(geometry: Geometry) -> int:
    """Bytes of incompressible data that namespaces of a pool may hold together, however large its records."""
    reserved = POOL_RESERVE_SEGMENTS[0] + 3 + geometry.segments // MAP_SHARE
    stream = stream_units(geometry.data, geometry.segment_pages) * 64
    usable = max(0, geometry.segments - reserved) * min(stream * 94 // 100, _largest_records(geometry) * RECORD_RAW_MAX)
    return usable // PAGE * PAGE


def _largest_records(geometry: Geometry) -> int:
    """Records of 128 KiB that fit a segment: none is across two stripes."""
    strip_pages = geometry.strip_bytes_max // PAGE
    whole, rest = divmod(geometry.segment_pages, strip_pages)
    in_last = stream_units(geometry.data, rest) // UNITS_MAX if rest else 0
    return whole * (stream_units(geometry.data, strip_pages) // UNITS_MAX) + in_last


def member_bytes_for(members: int, size: int, *, raid: str = "raid6") -> int:
    """Bytes each member needs so that ``capacity`` is at least ``size``. Raises UsageError."""
    data = max(1, members - PARITY.get(raid, 0))
    segment_bytes = POOL_SEGMENT_BYTES
    while segment_bytes > 1 << 20 and size < 32 * data * segment_bytes:
        segment_bytes >>= 1
    segments = SEGMENTS_MIN
    while True:
        needed = 2 * AREA_BYTES + segments * segment_bytes
        geometry = geometry_for(members, needed, raid=raid, segment_bytes=segment_bytes)
        short = size - capacity(geometry)
        if short <= 0:
            return needed
        if geometry.segments == SEGMENTS_MAX:
            raise UsageError(
                f"size {size}: more than {capacity(geometry)} bytes do not fit a pool of {members} members"
            )
        segments += max(1, short // (data * segment_bytes))


def segment_bytes_for(members: int, member_bytes: int, *, raid: str = "raid6") -> int:
    """The segment size for members of that size: 16 MiB, smaller in pools that would have few of those."""
    segment_bytes = POOL_SEGMENT_BYTES
    while segment_bytes > 1 << 20 and member_bytes // segment_bytes < 40:
        segment_bytes >>= 1
    return segment_bytes


def create(
    disks: Sequence[Disk], *, raid: str, keys: KeySource | None, segment_bytes: int | None, sparse: bool, force: bool
) -> Geometry:
    """Format ``disks``; a disk that holds a pool's label only with ``force``. Blocks. Raises UsageError, OSError."""
    names = [disk_name(disk, index) for index, disk in enumerate(disks)]
    for disk, name in zip(disks, names, strict=True):
        if not force and read_label(disk, name) is not None:
            raise UsageError(f"{name}: belongs to a pool already; destroy that first")
    member_bytes = min((disk.size() for disk in disks), default=0)
    geometry = geometry_for(
        len(disks), member_bytes, raid=raid, encrypted=keys is not None, sparse=sparse,
        segment_bytes=segment_bytes or segment_bytes_for(len(disks), member_bytes, raid=raid),
    )  # fmt: skip
    identities = [secrets.token_bytes(16) for _ in disks]
    superblock = Superblock(
        generation=1, pool=geometry.pool, incarnation=secrets.token_bytes(16), epoch=0, clean=True, root=0, sequence=0,
        segment=0, page=0, root_sequence=0, media_errors=0, scrub_cursor=NONE32, scrub_stripes=0, scrub_healed=0,
        scrub_lost=0, members=tuple(MemberEntry(each, MemberState.HEALTHY, 0, 0) for each in identities),
    )  # fmt: skip
    table = b"" if keys is None else KeyTable.new(keys).encode(1)
    for disk in disks:
        for end in (HEAD, TAIL):
            wipe_area(disk, geometry, end)
            write_keys(disk, geometry, end, table)
            write_superblock(disk, geometry, end, superblock)
        disk.sync()
    for role, disk in enumerate(disks):
        write_label(disk, Label(geometry, identities[role], role))
    return geometry


def wipe_area(disk: Disk, geometry: Geometry, end: int) -> None:
    """Leave nothing of an older pool in a head or tail area. Raises OSError."""
    offset = area_offset(geometry, end)
    disk.write(offset, bytes(PAGE))
    disk.write(offset + RING_OFFSET, bytes(RING_SLOTS * PAGE))
    write_keys(disk, geometry, end, bytes(KEYS_BYTES))
