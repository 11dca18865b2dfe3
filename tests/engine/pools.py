"""What the tests of the pool's modules share: small pools on virtual disks, and damage to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nvmeof.engine.disk import Disk
from nvmeof.engine.executor import Executor, InlineExecutor
from nvmeof.engine.layout import PAGE, Geometry
from nvmeof.engine.pool import Pool
from nvmeof.engine.pool_volume import PoolVolume
from nvmeof.engine.segments import Segments, StripePlace
from nvmeof.keys.sources import Kdf, KeySource
from nvmeof.testing.virtual_disk import VirtualDisk

SEGMENT_BYTES = 128 << 10
MEMBER_BYTES = 3 << 20
SIZE = 1 << 20


class GivenKey(KeySource):
    """The KEK itself."""

    def __init__(self, number: int) -> None:
        self.bytes = bytes([number]) * 32

    @property
    def kind(self) -> str:
        return "given key"

    def kek(self, kdf: Kdf) -> bytes:
        return self.bytes

    def new_kdf(self) -> dict[str, object]:
        return {"name": "none"}


class NamedDisk(VirtualDisk):
    """A virtual disk that has a path, so that messages name it."""

    path = "?"


def new_disks(count: int = 4, size: int = MEMBER_BYTES, *, first: int = 0, **options: Any) -> list[NamedDisk]:
    disks = [NamedDisk(size, seed=number, **options) for number in range(first, first + count)]
    for number, disk in enumerate(disks, first):
        disk.path = f"disk-{number}"
    return disks


async def open_pool(
    disks: Iterable[VirtualDisk], keys: KeySource | None = None, executor: Executor | None = None
) -> Pool:
    """The pool on ``disks``, as another process would open it."""
    return await Pool.open([disk.reopen() for disk in disks], keys=keys, executor=executor or InlineExecutor())


async def new_pool(
    disks: Sequence[Disk],
    *,
    raid: str = "raid6",
    keys: KeySource | None = None,
    size: int = SIZE,
    sparse: bool = False,
    executor: Executor | None = None,
    **namespace: Any,
) -> Pool:
    """A new pool with one namespace of ``size`` bytes, or none for 0."""
    await Pool.create(disks, raid=raid, keys=keys, segment_bytes=SEGMENT_BYTES, sparse=sparse)
    pool = await Pool.open(disks, keys=keys, executor=executor or InlineExecutor())
    if size:
        await pool.create_namespace(size, **namespace)
    return pool


def image(disk: Disk, offset: int = 0, length: int | None = None) -> bytes:
    """All that a read returns, or a piece of it."""
    content = bytearray(disk.size() - offset if length is None else length)
    with memoryview(content) as view:
        disk.read_into(offset, view)
    return bytes(content)


def put(disk: Disk, offset: int, data: bytes) -> None:
    """Change what is on media."""
    disk.write(offset, data)
    disk.sync()


def flip(disk: Disk, offset: int, mask: int = 1) -> None:
    """Change bits of one byte on media."""
    byte = bytearray(1)
    disk.read_into(offset, memoryview(byte))
    put(disk, offset, bytes([byte[0] ^ mask]))


def strip_offset(geometry: Geometry, place: StripePlace) -> int:
    """Where the strips of a stripe begin on their members."""
    return geometry.segment_offset(place.segment) + place.page * PAGE


def place_of(pool: Pool, volume: PoolVolume, block: int) -> StripePlace:
    """The stripe that holds a block, which is on media."""
    entry = volume.map.entries[block]
    place = pool.segments.stripe_at(entry >> 39 & 0xFFFFF, entry >> 17 & 0x3FFFFF)
    assert place is not None
    return place


def recount(pool: Pool) -> list[int]:
    """Live blocks of each segment, counted one by one."""
    live = [0] * pool.geometry.segments
    for volume in pool.volumes():
        for entry in volume.map.entries:
            if entry and not entry >> 63:
                live[entry >> 39 & 0xFFFFF] += 1
    return live


def recount_meta(pool: Pool) -> list[int]:
    """Metadata records of each segment that something refers to, counted one by one."""
    meta = [0] * pool.geometry.segments
    entries = [pool.committer.root, *pool.committer.tables]
    for volume in pool.volumes():
        entries += [*volume.map.table, *volume.map.chunks]
    for entry in entries:
        if entry:
            meta[entry >> 39 & 0xFFFFF] += 1
    return meta


def check_counts(pool: Pool) -> None:
    """What the segments believe is what the maps say."""
    segments: Segments = pool.segments
    assert list(segments.live) == recount(pool)
    assert list(segments.meta) == recount_meta(pool)
    free = set(segments.free)
    assert len(free) == len(segments.free)
    for number in free:
        assert not segments.generation[number]
        assert not segments.live[number]
        assert not segments.meta[number]
