"""What a pool says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nvmeof.engine.layout import NONE32, LabelFlag
from nvmeof.engine.member import Member

if TYPE_CHECKING:
    from nvmeof.engine.pool import Pool

RAID = {0: "none", 1: "raid5", 2: "raid6"}


@dataclass
class MemberStatus:
    """One member. ``role`` is None for a spare; ``progress`` is 0 to 1 while it is rebuilt."""

    role: int | None
    name: str
    state: str
    errors: int
    reason: str
    progress: float | None


@dataclass
class NamespaceStatus:
    """One namespace; sizes in bytes."""

    nsid: int
    uuid: str
    size: int
    allocated: int
    block_size: int
    codec: str
    level: int
    planes: int
    encrypted: bool
    write_cache: bool


@dataclass
class ScrubStatus:
    """The running or the last scrub; ``progress`` is 0 to 1 while one is unfinished."""

    running: bool
    progress: float | None
    stripes: int
    healed: int
    lost: int


@dataclass
class PoolStatus:
    """A pool. Sizes in bytes: ``capacity`` of namespaces together, ``free`` of it by free segments. ``state`` is
    healthy, degraded or faulted, ``errors`` the latest media errors in words."""

    uuid: str
    raid: str
    data: int
    parity: int
    encrypted: bool
    state: str
    reason: str
    capacity: int
    used: int
    segments: int
    segments_free: int
    segment_bytes: int
    member_bytes: int
    media_errors: int
    incarnation: str
    members: list[MemberStatus]
    namespaces: list[NamespaceStatus]
    scrub: ScrubStatus
    errors: list[dict[str, Any]]
    opened: dict[str, Any]
    background_error: str

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def status_of(pool: Pool) -> PoolStatus:
    """Everything about a pool. Cheap but for counting what namespaces have allocated."""
    geometry, health = pool.geometry, pool.health
    used_segments = geometry.segments - len(pool.segments.free)
    return PoolStatus(
        uuid=str(pool.uuid),
        raid=RAID[geometry.parity],
        data=geometry.data,
        parity=geometry.parity,
        encrypted=bool(geometry.flags & LabelFlag.ENCRYPTED),
        state="faulted" if health.read_only else "degraded" if health.degraded else "healthy",
        reason=health.reason,
        capacity=pool.capacity,
        used=min(pool.capacity, used_segments * geometry.segment_bytes * geometry.data),
        segments=geometry.segments,
        segments_free=len(pool.segments.free),
        segment_bytes=geometry.segment_bytes,
        member_bytes=geometry.member_bytes,
        media_errors=pool.media_errors,
        incarnation=pool.incarnation.hex(),
        members=_members(pool),
        namespaces=_namespaces(pool),
        scrub=_scrub(pool),
        errors=[error._asdict() for error in pool.reader.errors],
        opened=pool.opened.to_json(),
        background_error=pool.background_error,
    )


def _members(pool: Pool) -> list[MemberStatus]:
    def one(role: int | None, member: Member) -> MemberStatus:
        rebuilding = member.state.name == "REBUILDING"
        cursor = pool.walks.walk.cursor if rebuilding and pool.walks.walk is not None else member.cursor
        progress = cursor / pool.geometry.segments if rebuilding else None
        return MemberStatus(role, member.name, member.state.name.lower(), member.errors, member.reason, progress)

    return [one(role, member) for role, member in enumerate(pool.members)] + [one(None, each) for each in pool.spares]


def _namespaces(pool: Pool) -> list[NamespaceStatus]:
    return [
        NamespaceStatus(
            nsid=volume.info.nsid,
            uuid=str(volume.info.uuid),
            size=volume.info.size,
            allocated=volume.allocated,
            block_size=volume.info.block_size,
            codec=volume.info.codec,
            level=volume.info.level,
            planes=volume.info.planes,
            encrypted=bool(volume.info.key_id),
            write_cache=volume.info.write_cache,
        )
        for volume in pool.volumes()
    ]


def _scrub(pool: Pool) -> ScrubStatus:
    cursor, stripes, healed, lost = pool.scrub_state
    running = pool.walks.jobs.get("scrub")
    walk = pool.walks.walk
    active = running is not None and not running.done() and walk is not None
    if active and walk is not None:
        cursor, stripes = walk.cursor, walk.report.stripes
        healed, lost = walk.report.healed, walk.report.lost
    progress = None if cursor == NONE32 else cursor / pool.geometry.segments
    return ScrubStatus(active, progress, stripes, healed, lost)
