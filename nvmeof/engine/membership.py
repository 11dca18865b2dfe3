"""Which disks are a pool's members: replacing one, taking one back, spares."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from nvmeof.engine.creation import wipe_area
from nvmeof.engine.disk import Disk
from nvmeof.engine.layout import MEMBERS_MAX, ROLE_SPARE, Label, MemberState
from nvmeof.engine.member import HEAD, TAIL, Member, disk_name, read_label, write_keys, write_label
from nvmeof.errors import UsageError

if TYPE_CHECKING:
    from nvmeof.engine.pool import Pool


class Membership:
    """Changes the members of a pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def replace(self, role: int, disk: Disk) -> None:
        """Give the role to ``disk``, and own it; a rebuild fills it. Raises UsageError, WriteFault, OSError."""
        async with self.pool.admin:
            if not 0 <= role < self.pool.geometry.width:
                raise UsageError(f"member {role}: the pool has 0 to {self.pool.geometry.width - 1}")
            name = disk_name(disk, role)
            await self._check_newcomer(disk, name)
            lost = [number for number, each in enumerate(self.pool.members) if not each.readable and number != role]
            if len(lost) >= self.pool.geometry.parity and self.pool.members[role].readable:
                raise UsageError(f"member {role}: cannot be spared while {len(lost)} others are not healthy")
            member = Member(disk, secrets.token_bytes(16), name)
            await self.pool.executor.run(self._label, member, role)
            await self._install(role, member)

    async def rejoin(self, role: int) -> None:
        """Take a member that is out but there back in; a rebuild fills it. Raises UsageError, WriteFault."""
        async with self.pool.admin:
            member = self.pool.members[role] if 0 <= role < self.pool.geometry.width else None
            if member is None or member.disk is None or member.state is not MemberState.OUT:
                raise UsageError(f"member {role}: is not a member that is out and there")
            await self._install(role, member)

    async def _install(self, role: int, member: Member) -> None:
        """Between two stripes, let ``member`` take the role: written from now on, not counted upon until rebuilt."""
        await self.pool.log.drain()
        old, self.pool.members[role] = self.pool.members[role], member
        member.state, member.cursor = MemberState.REBUILDING, 0
        for each in self.pool.members:
            if each.state is MemberState.REBUILDING:
                each.cursor = 0
        if self.pool.walks.walk is not None:
            self.pool.walks.walk.stopped = True
        self.pool.log.must_persist = True  # no flush is answered before the superblock says who is counted upon
        self.pool.log.check_members()
        await self.pool.log.flush()
        if self.pool.keyring is not None:
            await self.pool.save_keys()
        await self.pool.save_superblock()
        if old.disk is not None and old is not member:
            old.disk.close()

    async def _check_newcomer(self, disk: Disk, name: str) -> None:
        if disk.size() < self.pool.geometry.member_bytes:
            raise UsageError(f"{name}: is {disk.size()} bytes, members have {self.pool.geometry.member_bytes}")
        label = await self.pool.executor.run(read_label, disk, name)
        if label is not None and label.geometry.pool != self.pool.geometry.pool:
            raise UsageError(f"{name}: belongs to another pool; destroy that first")
        if any(each.disk is disk for each in (*self.pool.members, *self.pool.spares)):
            raise UsageError(f"{name}: is in the pool already")

    def _label(self, member: Member, role: int) -> None:
        """Prepare a disk for a role. Blocks. Raises OSError."""
        assert member.disk is not None
        for end in (HEAD, TAIL):
            wipe_area(member.disk, self.pool.geometry, end)
            if self.pool.keyring is not None:
                content = self.pool.keyring.table.encode(self.pool.keyring.generation)
                write_keys(member.disk, self.pool.geometry, end, content)
        write_label(member.disk, Label(self.pool.geometry, member.identity, role))

    async def add_spare(self, disk: Disk) -> None:
        """Keep ``disk`` for the first member that goes out, and own it. Raises UsageError, WriteFault, OSError."""
        async with self.pool.admin:
            if len(self.pool.members) + len(self.pool.spares) >= MEMBERS_MAX:
                raise UsageError(f"the pool has {len(self.pool.spares)} spares: no more members fit its superblock")
            name = disk_name(disk, len(self.pool.spares))
            await self._check_newcomer(disk, name)
            member = Member(disk, secrets.token_bytes(16), name)
            member.state = MemberState.SPARE
            await self.pool.executor.run(self._label, member, ROLE_SPARE)
            self.pool.spares.append(member)
            await self.pool.save_superblock()
        self.pool.wake.set()

    async def take_spares(self) -> None:
        """Put spares in for members that are out, and rebuild."""
        for role in range(self.pool.geometry.width):
            if not self._is_out(role) or not self.pool.spares:
                continue
            async with self.pool.admin:
                while self._is_out(role) and self.pool.spares and not self.pool.log.fault:
                    spare = self.pool.spares.pop(0)
                    try:
                        await self.pool.executor.run(self._label, spare, role)
                    except OSError as error:
                        self.pool.background_error = f"{spare.name}: cannot be made a member: {error}"
                        if spare.disk is not None:
                            spare.disk.close()
                        continue
                    await self._install(role, spare)
                    self.pool.start_rebuild()

    def _is_out(self, role: int) -> bool:
        return self.pool.members[role].state is MemberState.OUT
