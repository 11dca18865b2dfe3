"""The log: records into the open stripe, stripes onto the members, group commit (FORMAT.md, section 2, 1 to 3).

Everything here but ``write_stripe`` and ``Disk.sync`` happens on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from time import perf_counter

from nvmeof.codec.checksum import xxh3_64
from nvmeof.engine.disk import Disk
from nvmeof.engine.executor import Executor, ThreadExecutor
from nvmeof.engine.layout import (
    EPOCH_SHIFT,
    NONE32,
    RECORD_BODY,
    RECORD_MAGIC,
    SEGMENT_SHIFT,
    STORED_MIN,
    UNIT,
    UNIT_OFFSET_SHIFT,
    UNIT_SHIFT,
    UNITS_MAX,
    ByteView,
    Geometry,
    Kind,
    stream_units,
)
from nvmeof.engine.layout import LENGTH_SHIFT as UNITS_SHIFT
from nvmeof.engine.member import Member
from nvmeof.engine.parity import Parity
from nvmeof.engine.record import MOVED, TWEAK, Packed, Sealed, Sealer
from nvmeof.engine.segments import Segments, StripePlace
from nvmeof.engine.stripe import Parities, Stripe, new_memory, write_stripe
from nvmeof.errors import WriteFault
from nvmeof.limits import (
    POOL_PACKERS,
    POOL_RESERVE_SEGMENTS,
    POOL_STRIPES_IN_FLIGHT_MAX,
    POOL_STRIPES_OFF_LOOP,
    WRITE_STALL_SECONDS,
    WRITE_STALL_THREAD_SECONDS,
)

DATA = int(Kind.DATA)
NEVER = 1 << 62
_PAD = bytes(UNIT)


class Level(IntEnum):
    """Who appends: how far into the reserve of free segments he may go."""

    USER = 0
    CLEANER = 1
    COMMIT = 2


_LEAST = (POOL_RESERVE_SEGMENTS[Level.USER], 1, 0)
"""Free segments, by level, with which one may go on in a segment. What a commit left of its segment, or has of its
stripe, is not for users, and for the cleaner while the next commit has another."""


class Log:
    """The end of the log, and the stripes that are not on the members yet (``resident``, by segment).

    ``starved`` says that the last append got no room for want of free segments, and not only for now. ``fault`` is why
    nothing is written any more. ``appended`` counts stream bytes since the last commit, ``persist`` is awaited
    when a member went out.
    """

    def __init__(
        self, geometry: Geometry, segments: Segments, members: Sequence[Member], executor: Executor, epoch: int
    ) -> None:
        self.geometry = geometry
        self.segments = segments
        self.members = members
        self.executor = executor
        self.sequence = self.write_sequence = epoch << EPOCH_SHIFT
        self.segment = self.next_segment = NONE32
        self.page = 0
        self.stripe: Stripe | None = None
        self.resident: dict[int, list[Stripe]] = {}
        self.starved = False
        self.fault = ""
        self.appended = 0
        self.persist: Callable[[], Awaitable[None]] | None = None
        self.on_failure: Callable[[int, OSError, str], None] | None = None
        self.must_persist = False
        """A member went out and no superblock says so yet."""
        self.unsynced = False
        self.flushed = self.sequence
        """Every stripe below this sequence is synced."""
        self.syncs = 0
        self._parity = Parity(geometry.data, geometry.parity)
        self._spare: list[Stripe] = []
        self._spare_parities: list[Parities] = []
        self._writes: set[asyncio.Task[None]] = set()
        self._flushing: asyncio.Task[None] | None = None
        self._next_flush: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self.packing = asyncio.Semaphore(POOL_PACKERS)
        """Held while a write is packed in a thread."""
        self._off_loop = 0 if isinstance(executor, ThreadExecutor) else NEVER
        """Stripes that must be quick in threads before they are written on the loop. Any other executor decides alone
        what happens when."""

    # -- append

    def append_data(self, sealer: Sealer, data: memoryview, namespace: int, first: int, count: int) -> int:
        """Pack and seal ``count`` blocks where they will lie. The entry, or 0 for no room now."""
        return self.append_packed(sealer, sealer.pack(data), namespace, first, count)

    def append_packed(self, sealer: Sealer, content: Packed, namespace: int, first: int, count: int) -> int:
        """Seal ``count`` blocks, packed already, where they will lie. The entry, or 0 for no room now."""
        codec, planes, packed = content
        length = len(packed)
        stored = length if length >= STORED_MIN else STORED_MIN
        units = (UNIT + stored + UNIT - 1) >> UNIT_SHIFT
        stripe = self._with_room(units, Level.USER)
        if stripe is None:
            return 0
        if stored != length:
            packed = bytes(packed) + bytes(stored - length)
        self.write_sequence = write_sequence = self.write_sequence + 1
        at = stripe.used << UNIT_SHIFT
        place = stripe.buffer[at + UNIT : at + UNIT + stored]
        if sealer.key is not None:
            sealer.key.encrypt_into(TWEAK(first, write_sequence), packed, place)
        else:
            place[:] = packed
        RECORD_BODY.pack_into(
            stripe.buffer, at + 8, RECORD_MAGIC, DATA, codec, planes, sealer.flags, sealer.key_id, namespace, count,
            first, length, 0, stripe.sequence, write_sequence, 0,
        )  # fmt: skip
        return self._take(stripe, units, stored)

    def append(
        self, kind: int, namespace: int, first: int, count: int, sealed: Sealed, *, level: Level = Level.USER,
        moved_from: int = 0, write_sequence: int = 0,
    ) -> int:  # fmt: skip
        """Append what is sealed already. The entry, or 0 for no room now."""
        stored = len(sealed.payload)
        units = (UNIT + stored + UNIT - 1) >> UNIT_SHIFT
        stripe = self._with_room(units, level)
        if stripe is None:
            return 0
        at = stripe.used << UNIT_SHIFT
        stripe.buffer[at + UNIT : at + UNIT + stored] = sealed.payload
        RECORD_BODY.pack_into(
            stripe.buffer, at + 8, RECORD_MAGIC, kind, sealed.codec, sealed.planes,
            sealed.flags | MOVED if moved_from else sealed.flags, sealed.key_id, namespace, count & NONE32, first,
            sealed.length, count >> 32, stripe.sequence, write_sequence or self.new_write_sequence(), moved_from,
        )  # fmt: skip
        return self._take(stripe, units, stored)

    def new_write_sequence(self) -> int:
        """A number that no record of this pool ever had."""
        self.write_sequence += 1
        return self.write_sequence

    def _take(self, stripe: Stripe, units: int, stored: int) -> int:
        """Finish the record that was put at the end of ``stripe``: padding, checksum, entry."""
        buffer, at = stripe.buffer, stripe.used << UNIT_SHIFT
        end = at + UNIT + stored
        if end & (UNIT - 1):
            buffer[end : at + (units << UNIT_SHIFT)] = _PAD[: -end & (UNIT - 1)]
        buffer[at : at + 8] = xxh3_64(buffer[at + 8 : end]).to_bytes(8, "little")
        entry = (
            stripe.segment << SEGMENT_SHIFT
            | (stripe.first + stripe.used) << UNIT_OFFSET_SHIFT
            | units << UNITS_SHIFT
        )  # fmt: skip
        stripe.used += units
        self.appended += units << UNIT_SHIFT
        return entry

    def _with_room(self, units: int, level: Level) -> Stripe | None:
        stripe = self.stripe
        if stripe is not None:
            if stripe.level > level:
                if len(self.segments.free) < _LEAST[level]:
                    self.starved = True
                    return None
                stripe.level = level
            if stripe.used + units <= stripe.room:
                return stripe
            if len(self._writes) >= POOL_STRIPES_IN_FLIGHT_MAX:
                self.starved = False
                return None
            self.close_stripe()
        return self._open_stripe(units, level)

    def has_room(self, nbytes: int) -> bool:
        """Whether records of ``nbytes`` of data can certainly be appended by a user now."""
        stripe = self.stripe
        left = 0 if stripe is None or stripe.level else (stripe.room - stripe.used) << UNIT_SHIFT
        need = nbytes + nbytes // 32
        if need <= left:
            return True
        stripes = 1 + (need - left) // (self.geometry.strip_bytes_max * self.geometry.data // 2)
        return (
            not self.fault
            and len(self._writes) + stripes < POOL_STRIPES_IN_FLIGHT_MAX
            and len(self.segments.free) > POOL_RESERVE_SEGMENTS[Level.USER] + 1
        )

    def _open_stripe(self, units: int, level: Level) -> Stripe | None:
        if self.fault:
            raise WriteFault(self.fault)
        geometry, segments = self.geometry, self.segments
        pages = min(geometry.strip_bytes_max >> 12, geometry.segment_pages - self.page)
        full = self.segment == NONE32 or pages <= 0 or stream_units(geometry.data, pages) < units
        least = POOL_RESERVE_SEGMENTS[level] + 1 if full else _LEAST[level]
        if len(segments.free) < least + (full and self.next_segment == NONE32):
            self.starved = True
            return None
        if full:
            self._next_segment()
        self.starved = False
        stripe = self._spare.pop() if self._spare else Stripe(new_memory(geometry))
        stripe.begin(
            geometry, sequence=self.sequence, segment=self.segment, next_segment=self.next_segment, page=self.page,
            first=segments.starts[self.segment][-1],
        )  # fmt: skip
        stripe.level = next(each for each in Level if len(segments.free) >= _LEAST[each])
        self.stripe = stripe
        self.resident.setdefault(self.segment, []).append(stripe)
        return stripe

    def _next_segment(self) -> None:
        """Go on in the next segment, and settle which one follows it: its strips will say so."""
        self.segment = self.segments.next_free() if self.next_segment == NONE32 else self.next_segment
        self.next_segment = self.segments.next_free()
        self.page = 0
        self.segments.begin(self.segment, self.sequence)

    @property
    def busy_segments(self) -> tuple[int, int]:
        """The segment being filled and the one after it; neither may be cleaned or freed."""
        return self.segment, self.next_segment

    @property
    def room_left(self) -> int:
        """Bytes of stream that are left in the segment being filled."""
        pages = self.geometry.segment_pages - self.page
        used = 0 if self.stripe is None else self.stripe.used
        return 0 if self.segment == NONE32 else max(0, stream_units(self.geometry.data, pages) - used) << UNIT_SHIFT

    def begin_head(self) -> tuple[int, int, int]:
        """Close the open stripe and open the next: sequence, segment and page of that. Raises WriteFault."""
        if self.fault:
            raise WriteFault(self.fault)
        self.close_stripe()
        stripe = self._open_stripe(UNITS_MAX, Level.COMMIT)
        if stripe is None:
            self.fail("no free segment is left for the map: the reserve is used up")
            raise WriteFault(self.fault)
        return stripe.sequence, stripe.segment, stripe.page

    # -- close and write

    def close_stripe(self) -> None:
        """Send the open stripe on its way, cut to what is used."""
        stripe = self.stripe
        if stripe is None:
            return
        self.stripe = None
        if not stripe.used:
            self._retire(stripe)
            return
        stripe.flushed = self.flushed & NONE32
        pages = stripe.cut(self.geometry)
        self.segments.add_stripe(stripe.segment, pages)
        self.segments.filled[stripe.segment] += stripe.used
        self.page += pages
        self.sequence += 1
        if not self._off_loop:
            self._write_here(stripe, pages)
            return
        task = asyncio.get_running_loop().create_task(self._write(stripe, pages))
        self._writes.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        """Those who wait for room are woken when the count says that there is some, and not before."""
        self._writes.discard(task)
        self._room.set()

    def _write_here(self, stripe: Stripe, pages: int) -> None:
        """On the loop, while the page cache takes stripes at once and they are still in the processor's cache."""
        out, disks = self._parities(), self.disks()
        try:
            failed, seconds = _write_timed(self.geometry, self._parity, stripe, pages, disks, out)
        except Exception as error:  # the data is not on media: nothing may be promised any more
            self.fail(f"a stripe could not be written: {error!r}")
            return
        self._off_loop = POOL_STRIPES_OFF_LOOP if seconds > WRITE_STALL_SECONDS else 0
        self._landed(stripe, disks, out, failed)

    async def _write(self, stripe: Stripe, pages: int) -> None:
        out, disks = self._parities(), self.disks()
        try:
            failed, seconds = await self.executor.run(
                _write_timed, self.geometry, self._parity, stripe, pages, disks, out
            )
        except Exception as error:
            self.fail(f"a stripe could not be written: {error!r}")
            raise
        slow = seconds > WRITE_STALL_THREAD_SECONDS
        self._off_loop = POOL_STRIPES_OFF_LOOP if slow else max(0, self._off_loop - 1)
        self._landed(stripe, disks, out, failed)

    def _parities(self) -> Parities:
        return self._spare_parities.pop() if self._spare_parities else Parities.new(self.geometry)

    def _landed(
        self, stripe: Stripe, disks: Sequence[Disk | None], out: Parities, failed: Sequence[tuple[int, OSError]]
    ) -> None:
        """A stripe was written, but for the members that failed."""
        self.unsynced = True
        for role, reason in failed:
            self.member_failed(role, disks[role], reason, "write")
        self._spare_parities.append(out)
        if not self.fault:
            self._retire(stripe)

    def _retire(self, stripe: Stripe) -> None:
        stripes = self.resident[stripe.segment]
        stripes.remove(stripe)
        if not stripes:
            del self.resident[stripe.segment]
        self._spare.append(stripe)

    def disks(self) -> list[Disk | None]:
        """By role, the disks that new stripes go to."""
        return [member.disk if member.writable else None for member in self.members[: self.geometry.width]]

    def is_in_flight(self, place: StripePlace) -> bool:
        """Whether a stripe is still being written: what is on the members is no measure of it yet."""
        return any(stripe.sequence == place.sequence for stripe in self.resident.get(place.segment, ()))

    async def wait_room(self) -> None:
        """Wait until a stripe in flight has been written. Raises WriteFault."""
        if self.fault:
            raise WriteFault(self.fault)
        if len(self._writes) >= POOL_STRIPES_IN_FLIGHT_MAX:
            self._room.clear()
            await self._room.wait()
        else:
            await asyncio.sleep(0)

    async def drain(self) -> None:
        """Close the open stripe and wait until everything appended so far is with the members."""
        self.close_stripe()
        if self._writes:
            await asyncio.wait(set(self._writes))
        if self.fault:
            raise WriteFault(self.fault)

    # -- flush

    async def flush(self) -> None:
        """Put everything appended so far on media; those who call together share one sync. Raises WriteFault."""
        if self.fault:
            raise WriteFault(self.fault)
        idle = self._flushing is None and not self._writes and (self.stripe is None or not self.stripe.used)
        if idle and not self.unsynced and not self.must_persist:
            return
        loop = asyncio.get_running_loop()
        if self._next_flush is None:
            self._next_flush = loop.create_future()
        batch = self._next_flush
        if self._flushing is None:
            self._flushing = loop.create_task(self._flush_batches())
        await asyncio.shield(batch)
        if self.fault:
            raise WriteFault(self.fault)

    async def _flush_batches(self) -> None:
        while self._next_flush is not None:
            batch, self._next_flush = self._next_flush, None
            try:
                if not self.fault:
                    await self._flush_once()
            except WriteFault:
                pass
            except Exception as error:
                self.fail(f"flush failed: {error!r}")
            batch.set_result(None)
        self._flushing = None

    async def _flush_once(self) -> None:
        self.close_stripe()
        covered = self.sequence
        await self.drain()
        self.unsynced = False
        await self.sync_members()
        if not self.fault:
            self.flushed = covered
        while self.must_persist and self.persist is not None and not self.fault:
            self.must_persist = False
            await self.persist()

    async def sync_members(self) -> None:
        """fdatasync on every member in use; one that fails is out, and is not asked again."""
        self.syncs += 1
        disks = [(role, disk) for role, disk in enumerate(self.disks()) if disk is not None]
        outcomes = await asyncio.gather(*(self._sync(disk) for _, disk in disks))
        for (role, disk), error in zip(disks, outcomes, strict=True):
            if error is not None:
                self.member_failed(role, disk, error, "sync")

    async def _sync(self, disk: Disk) -> OSError | None:
        try:
            await self.executor.run(disk.sync)
        except OSError as error:
            return error
        return None

    # -- failures

    def member_failed(self, role: int, disk: Disk | None, error: OSError, what: str) -> None:
        """A member's ``disk`` failed a write or a sync: out until it is rebuilt. Too many of them stop the log."""
        member = self.members[role]
        if not member.writable or member.disk is not disk:
            return
        member.errors += 1
        member.out(f"{what} failed: {error.strerror or error}")
        self.must_persist = True
        if self.on_failure is not None:
            self.on_failure(role, error, what)
        self.check_members()

    def check_members(self) -> None:
        """Stop if fewer than k + m - parity members can be counted upon."""
        width = self.geometry.width
        lost = [member for member in self.members[:width] if not member.readable]
        if len(lost) > self.geometry.parity:
            reasons = "; ".join(f"{member.name}: {member.reason or member.state.name.lower()}" for member in lost)
            self.fail(f"{len(lost)} of {width} members are lost, {self.geometry.parity} may be: {reasons}")

    def fail(self, why: str) -> None:
        """Write nothing any more, and take nothing into the open stripe; what it holds can be read."""
        if not self.fault:
            self.fault = why
            self.stripe = None
        self._room.set()


def _write_timed(
    geometry: Geometry, parity: Parity, stripe: Stripe, pages: int, disks: Sequence[Disk | None], out: Parities
) -> tuple[list[tuple[int, OSError]], float]:
    """:func:`write_stripe`, and the seconds it took."""
    started = perf_counter()
    failed = write_stripe(geometry, parity, stripe, pages, disks, out)
    return failed, perf_counter() - started


def record_view(stripes: Sequence[Stripe], unit: int, units: int) -> ByteView | None:
    """A record that is still in memory, None when it is not."""
    for stripe in stripes:
        within = unit - stripe.first
        if 0 <= within < stripe.used:
            return stripe.buffer[within << UNIT_SHIFT : (within + units) << UNIT_SHIFT]
    return None
