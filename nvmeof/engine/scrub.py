"""Scrub and rebuild: one walk over all stripes that reads every strip and puts back what is bad or missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nvmeof.engine.layout import NONE32, PAGE, MemberState
from nvmeof.errors import UsageError, WriteFault
from nvmeof.limits import POOL_SCRUB_NAP_SECONDS, POOL_SCRUB_SAVE_SEGMENTS

if TYPE_CHECKING:
    from nvmeof.engine.pool import Pool
    from nvmeof.engine.segments import StripePlace

Progress = Callable[[int, int], None]
"""Called with segments done and segments in all."""


@dataclass
class ScrubReport:
    """What a walk found. ``bad`` strips by role, how many of them were ``healed``, stripes ``lost`` beyond redundancy.

    ``lost_places`` are ``(segment, page)``, the first hundred of them.
    """

    stripes: int = 0
    bad: dict[int, int] = field(default_factory=dict)
    healed: int = 0
    lost: int = 0
    lost_places: list[tuple[int, int]] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


class Walk:
    """Walks all segments from ``cursor`` on, healing; ``rate`` is bytes a second of each member, None for no limit."""

    def __init__(self, pool: Pool, cursor: int, rate: float | None, progress: Progress | None) -> None:
        self.pool = pool
        self.cursor = cursor
        self.rate = rate
        self.progress = progress
        self.report = ScrubReport()
        self.stopped = False
        self.refill = False
        """Whether members being rebuilt are written whatever is on them."""

    async def run(self, save: Callable[[], None]) -> ScrubReport:
        """Walk to the end. ``save`` notes the cursor in what the next superblock says; it is written now and then."""
        pool, started = self.pool, time.monotonic()
        total = pool.geometry.segments
        since = 0
        while self.cursor < total and not self.stopped:
            if pool.segments.generation[self.cursor]:
                await self._segment(self.cursor)
                since += 1
            if self.stopped:  # perhaps within the segment: it is walked again
                break
            self.cursor += 1
            if self.progress is not None:
                self.progress(self.cursor, total)
            if since >= POOL_SCRUB_SAVE_SEGMENTS:
                since = 0
                await pool.flush()
                save()
                await pool.save_superblock()
        self.report.finished = self.cursor >= total
        self.report.seconds = time.monotonic() - started
        return self.report

    async def _segment(self, number: int) -> None:
        segments, reader = self.pool.segments, self.pool.reader
        segments.pin([number])
        try:
            await reader.load_starts([number])
            index = 0
            while segments.generation[number] and index < len(segments.starts[number]) - 1 and not self.stopped:
                place = segments.stripe(number, index)
                while self.pool.log.is_in_flight(place) and not self.pool.log.fault:
                    await asyncio.sleep(0)
                await self._stripe(place)
                index += 1
        finally:
            segments.unpin([number])

    async def _stripe(self, place: StripePlace) -> None:
        if self.pool.log.fault:
            raise WriteFault(self.pool.log.fault)
        began = time.monotonic()
        report, pool = self.report, self.pool
        outcome = await pool.reader.check_stripe(place, refill=self.refill)
        report.stripes += 1
        report.healed += len(outcome.healed)
        for role in outcome.bad:
            if pool.members[role].state is not MemberState.OUT:
                report.bad[role] = report.bad.get(role, 0) + 1
        if outcome.lost:
            report.lost += 1
            if len(report.lost_places) < 100:
                report.lost_places.append((place.segment, place.page))
        await asyncio.sleep(0)
        while self.rate and not self.stopped:  # in short naps: it may be stopped, or told another rate
            left = place.pages * PAGE / self.rate - (time.monotonic() - began)
            if left <= 0:
                break
            await asyncio.sleep(min(left, POOL_SCRUB_NAP_SECONDS))


async def scrub(pool: Pool, walk: Walk) -> ScrubReport:
    """Check everything, from where an unfinished scrub stopped, whose counts go on."""
    if pool.scrub_state[0] != NONE32:
        _, walk.report.stripes, walk.report.healed, walk.report.lost = pool.scrub_state

    def save() -> None:
        pool.scrub_state = (walk.cursor, walk.report.stripes, walk.report.healed, walk.report.lost)

    report = await walk.run(save)
    await pool.flush()
    save()
    if report.finished:
        pool.scrub_state = (NONE32, report.stripes, report.healed, report.lost)
    await pool.save_superblock()
    return report


async def rebuild(pool: Pool, walk: Walk) -> ScrubReport:
    """Fill the members that are being rebuilt; at the end of a walk without losses on them they are healthy."""
    wanted = [member for member in pool.members if member.state is MemberState.REBUILDING]
    walk.refill = True

    def save() -> None:
        for member in wanted:
            member.cursor = walk.cursor

    report = await walk.run(save)
    if not report.finished:
        await pool.flush()
        save()
        await pool.save_superblock()
        return report
    await pool.log.drain()
    pool.log.unsynced = True
    await pool.flush()
    if walk.stopped:  # a member was put in meanwhile, perhaps one of these again, that went out
        report.finished = False
        return report
    for member in wanted:
        if member.state is MemberState.REBUILDING:
            member.state = MemberState.HEALTHY
            member.cursor = 0
            member.reason = ""
    await pool.save_superblock()
    return report


class Walks:
    """The walks of a pool, of which one is on at a time: ``walk``. ``jobs`` are those in the background."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.walk: Walk | None = None
        self.jobs: dict[str, asyncio.Task[ScrubReport]] = {}
        self._walking = asyncio.Lock()

    async def scrub(self, rate: float | None = None, progress: Progress | None = None) -> ScrubReport:
        """Read every strip of every stripe and heal what is bad; goes on where an unfinished one stopped.

        ``rate`` is in bytes a second of each member. Raises UsageError while another walk is on, WriteFault.
        """
        cursor = self.pool.scrub_state[0]
        return await self._run_walk(scrub, 0 if cursor == NONE32 else cursor, rate, progress)

    async def rebuild(self, rate: float | None = None, progress: Progress | None = None) -> ScrubReport:
        """Fill members that were replaced; goes on where it stopped. Raises as :meth:`scrub`."""
        cursors = [member.cursor for member in self.pool.members if member.state is MemberState.REBUILDING]
        if not cursors:
            return ScrubReport(finished=True)
        return await self._run_walk(rebuild, min(cursors), rate, progress)

    async def _run_walk(self, kind: Any, cursor: int, rate: float | None, progress: Progress | None) -> ScrubReport:
        if self.pool.closing:
            raise UsageError("the pool is being closed")
        if self._walking.locked():
            raise UsageError("a scrub or rebuild is running already")
        async with self._walking:
            self.walk = Walk(self.pool, cursor, rate, progress)
            try:
                report: ScrubReport = await kind(self.pool, self.walk)
                return report
            finally:
                self.walk = None

    def start_scrub(self, rate: float | None = None) -> None:
        """Scrub in the background."""
        self._start("scrub", lambda: self.scrub(rate))

    def start_rebuild(self, rate: float | None = None) -> None:
        """Rebuild in the background; a scrub that runs stops, and goes on the next time."""
        self._start("rebuild", lambda: self._rebuild_after_walk(rate))

    async def _rebuild_after_walk(self, rate: float | None) -> ScrubReport:
        while self._walking.locked():
            if self.walk is not None:
                self.walk.stopped = True
            await asyncio.sleep(0.01)
        report = await self.rebuild(rate)
        while not report.finished and not self.pool.closing and not self.pool.log.fault:
            report = await self.rebuild(rate)
        return report

    def _start(self, name: str, work: Callable[[], Any]) -> None:
        job = self.jobs.get(name)
        if job is None or job.done():
            self.jobs[name] = asyncio.get_running_loop().create_task(work())
            self.jobs[name].add_done_callback(self._job_done)

    def _job_done(self, job: asyncio.Task[ScrubReport]) -> None:
        if not job.cancelled() and job.exception() is not None:
            self.pool.background_error = str(job.exception())

    def resume(self) -> None:
        """Go on with a rebuild or a scrub that the last opening did not finish; put in spares."""
        if any(member.state is MemberState.REBUILDING for member in self.pool.members):
            self.start_rebuild()
        elif self.pool.scrub_state[0] != NONE32:
            self.start_scrub()
        self.pool.wake.set()

    async def stop(self) -> None:
        """Let what runs stop where it is, and wait for that."""
        if self.walk is not None:
            self.walk.stopped = True
        await asyncio.gather(*self.jobs.values(), return_exceptions=True)
        async with self._walking:  # one that is nobody's job
            pass
