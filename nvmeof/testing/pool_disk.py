"""Members of a pool that lose their power together, and a tape of all they did from which any crash is made again.

A :class:`Tape` keeps what every member was asked for in one order, each step with the scene at that moment: what the
oracle allowed, which members there were. :class:`Replay` walks it and makes, at each step, members as a power loss in
the middle of that step leaves them. One run of a workload so gives every crash point.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from nvmeof.engine.disk import ByteBuffer
from nvmeof.testing.virtual_disk import PAGE, Damage, PowerLost, Unsynced, VirtualDisk


class Power:
    """One supply for many disks: it fails for all in the middle of the same operation."""

    def __init__(self) -> None:
        self.on = True
        self.operations = 0
        self.left: int | None = None

    def off_after(self, operations: int) -> None:
        """Go off in the middle of what follows the next ``operations`` writes, discards and syncs of all members."""
        self.left = operations

    def restore(self) -> None:
        """Come back."""
        self.on, self.left = True, None

    def spend(self) -> None:
        """One operation. Raises PowerLost."""
        self.operations += 1
        if self.left is None:
            return
        if self.left == 0:
            self.on = False
            raise PowerLost
        self.left -= 1


class MemberDisk(VirtualDisk):
    """A :class:`VirtualDisk` with a power supply shared with others, and a tape."""

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        damage: Damage = Damage.HONEST,
        capacity: int | None = None,
        power: Power | None = None,
    ) -> None:
        super().__init__(size, seed=seed, damage=damage, capacity=capacity)
        self.power = power
        self.tape: Tape | None = None
        self.number = -1
        self.path = f"member-{seed}"

    def write(self, offset: int, data: ByteBuffer) -> None:
        """As :meth:`Disk.write`."""
        if self.tape is None:
            return super().write(offset, data)
        before = len(self._unsynced)
        try:
            super().write(offset, data)
        finally:
            self.tape.put(self.number, self._unsynced[before:])
        return None

    def discard(self, offset: int, length: int) -> None:
        """As :meth:`Disk.discard`."""
        if self.tape is None:
            return super().discard(offset, length)
        before = len(self._unsynced)
        try:
            super().discard(offset, length)
        finally:
            self.tape.put(self.number, self._unsynced[before:])
        return None

    def sync(self) -> None:
        """As :meth:`Disk.sync`."""
        if self.tape is None:
            return super().sync()
        try:
            super().sync()
        except OSError:
            self.tape.synced(self.number, good=False)
            raise
        self.tape.synced(self.number, good=True)
        return None

    def _count(self) -> None:
        super()._count()
        if self.power is not None:
            self.power.spend()

    def _check(self) -> None:
        if self.power is not None and not self.power.on:
            raise PowerLost
        super()._check()

    # -- the image

    def image(self) -> bytes:
        """What reads return."""
        return bytes(self._cache)

    def media(self) -> bytes:
        """What is certain to be there after a crash."""
        return bytes(self._media)

    def become(self, image: bytes | bytearray) -> None:
        """Hold ``image`` from now on, on media too, whatever was written: somebody else's doing."""
        if len(image) != len(self._media):
            raise OSError(errno.EINVAL, "another size")
        self._cache[:] = image
        self._media[:] = image
        self._unsynced, self._dropped = [], []

    def flip(self, offset: int, mask: int = 1) -> None:
        """Change bits of the byte at ``offset``, in the cache and on media."""
        self.scribble(offset, bytes((self._cache[offset] ^ mask,)))

    def scribble(self, offset: int, data: bytes) -> None:
        """Put ``data`` there behind everybody's back, in the cache and on media."""
        self._cache[offset : offset + len(data)] = data
        self._media[offset : offset + len(data)] = data
        if self.tape is not None:
            self.tape.landed(self.number, Unsynced(offset, len(data), data))

    @classmethod
    def holding(
        cls,
        media: bytes | bytearray,
        *,
        seed: int = 0,
        unsynced: Sequence[Unsynced] = (),
        dropped: Sequence[Unsynced] = (),
        damage: Damage = Damage.HONEST,
        capacity: int | None = None,
        power: Power | None = None,
    ) -> MemberDisk:
        """A disk with that on it, and that on the way to media: :meth:`crash` says what becomes of it."""
        disk = cls(0, seed=seed, damage=damage, power=power)
        disk.capacity = len(media) if capacity is None else capacity
        disk._cache = bytearray(media)
        disk._media = bytearray(media)
        disk._unsynced = list(unsynced)
        disk._dropped = list(dropped)
        if disk.capacity < len(media):
            disk._count_pages()
        return disk

    def crash(self, survivors: Iterable[int] | None = None) -> MemberDisk:
        """As :meth:`VirtualDisk.crash`."""
        super().crash(survivors)
        if self.capacity < len(self._media):
            self._count_pages()
        return self

    def _count_pages(self) -> None:
        pages = range(0, len(self._cache), PAGE)
        self._pages = {at // PAGE for at in pages if any(self._cache[at : at + PAGE])}


class Step(NamedTuple):
    """One operation of one member: what it put, or (``writes`` None) a sync and whether it was good.

    Writes that are not ``good`` nobody asked for: they are on media at once.
    """

    disk: int
    writes: tuple[Unsynced, ...] | None
    good: bool
    scene: object


@dataclass
class _Base:
    media: bytes
    unsynced: list[Unsynced]
    dropped: list[Unsynced]
    capacity: int


class Tape:
    """The steps of all disks added to it. ``scene`` is asked at each; it should answer the same object if it can."""

    def __init__(self, scene: Callable[[], object]) -> None:
        self.scene = scene
        self.disks: list[MemberDisk] = []
        self.steps: list[Step] = []
        self.bases: list[_Base] = []

    def add(self, disk: MemberDisk) -> int:
        """Record ``disk`` from now on; its number."""
        disk.tape, disk.number = self, len(self.disks)
        self.disks.append(disk)
        self.bases.append(_base(disk))
        return disk.number

    def restart(self) -> None:
        """Forget what was before now."""
        self.steps.clear()
        self.bases = [_base(disk) for disk in self.disks]

    def put(self, disk: int, writes: Sequence[Unsynced]) -> None:
        """A write or a discard was begun."""
        if writes:
            self.steps.append(Step(disk, tuple(writes), True, self.scene()))

    def landed(self, disk: int, write: Unsynced) -> None:
        """The media of a member changed by itself."""
        self.steps.append(Step(disk, (write,), False, self.scene()))

    def synced(self, disk: int, *, good: bool) -> None:
        """A sync was done."""
        self.steps.append(Step(disk, None, good, self.scene()))


def _base(disk: MemberDisk) -> _Base:
    return _Base(disk.media(), disk.unsynced(), list(disk._dropped), disk.capacity)


class Replay:
    """A walk along a tape: ``point`` is the step in the middle of which the power fails."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.point = 0
        self._media = [bytearray(base.media) for base in tape.bases]
        self._unsynced = [list(base.unsynced) for base in tape.bases]
        self._dropped = [list(base.dropped) for base in tape.bases]
        self._since = [[-1] * len(base.unsynced) for base in tape.bases]

    @property
    def length(self) -> int:
        """Crash points: in each step, and behind the last."""
        return len(self.tape.steps) + 1

    @property
    def scene(self) -> object:
        """The scene at the point."""
        steps = self.tape.steps
        return steps[self.point].scene if self.point < len(steps) else self.tape.scene()

    def to(self, point: int) -> None:
        """Go on to ``point``."""
        while self.point < point:
            disk, writes, good, _ = self.tape.steps[self.point]
            if writes is not None and good:
                self._unsynced[disk] += writes
                self._since[disk] += [self.point] * len(writes)
            elif writes is not None:
                self._land(disk, writes)
            elif good:
                self._land(disk, self._unsynced[disk])
                self._unsynced[disk], self._since[disk] = [], []
            else:
                self._dropped[disk] += self._unsynced[disk]
                self._unsynced[disk], self._since[disk] = [], []
            self.point += 1

    def _land(self, disk: int, writes: Iterable[Unsynced]) -> None:
        for write in writes:
            self._media[disk][write.offset : write.offset + write.length] = write.content()

    def oldest_unsynced(self) -> int:
        """The first step of which something is not on media yet; the point if there is none."""
        return min((steps[0] for steps in self._since if steps), default=self.point)

    def crashed(
        self, disks: Sequence[int], damage: Sequence[Damage | None], seed: int, *, since: int | None = None
    ) -> list[MemberDisk]:
        """The members ``disks`` after a power loss here; ``damage`` is by position in ``disks``, None loses all.

        With ``since``, what was written in that step and later lands whole, and what was written before it is lost.
        """
        random = Random(seed)
        step = self.tape.steps[self.point] if self.point < len(self.tape.steps) else None
        members = []
        for number, harm in zip(disks, damage, strict=True):
            unsynced = list(self._unsynced[number])
            if step is not None and step.disk == number and step.writes is not None and step.good:
                unsynced += step.writes
            member = MemberDisk.holding(
                self._media[number],
                seed=random.randrange(1 << 30),
                unsynced=unsynced,
                dropped=self._dropped[number],
                damage=harm or Damage.NONE,
                capacity=self.tape.bases[number].capacity,
            )
            survivors: Iterable[int] | None = () if harm is None else None
            if since is not None:
                survivors = range(sum(at < since for at in self._since[number]), len(unsynced))
            members.append(member.crash(survivors))
        return members
