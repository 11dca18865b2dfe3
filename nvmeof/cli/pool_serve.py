"""Pools in a serving process: opened before the target and closed after it, and what becomes of their namespaces."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING
from uuid import UUID

from nvmeof.cli.pool_control import ControlServer
from nvmeof.cli.pool_directory import PoolDirectory
from nvmeof.cli.pool_keys import COMMAND, FILE, PASSPHRASE, Key, passphrase_from
from nvmeof.cli.pool_session import Audience, Session, opened, print_notices
from nvmeof.engine.volume import Volume
from nvmeof.errors import ConfigError, UsageError
from nvmeof.target.config import NamespaceConfig, PoolConfig

if TYPE_CHECKING:
    from nvmeof.target.subsystem import Subsystem


class Hosts(Audience):
    """The hosts of a target. ``whole`` is the subsystem that shows every namespace, under its number in the pool."""

    served = True

    def __init__(self) -> None:
        self.whole: Subsystem | None = None
        self._places: dict[int, tuple[Subsystem, int]] = {}

    def show(self, nsid: int, volume: Volume, subsystem: Subsystem, number: int) -> None:
        """Let hosts of a subsystem see a namespace of the pool, as ``number``."""
        subsystem.add_namespace(volume, number)
        self._places[nsid] = subsystem, number

    def appeared(self, nsid: int, volume: Volume) -> None:
        """As :meth:`Audience.appeared`."""
        if self.whole is not None:
            self.show(nsid, volume, self.whole, nsid)

    def shrinking(self, nsid: int, size: int) -> None:
        """As :meth:`Audience.shrinking`."""
        if nsid in self._places:
            subsystem, number = self._places[nsid]
            subsystem.resized(number, size)

    def resized(self, nsid: int) -> None:
        """As :meth:`Audience.resized`."""
        if nsid in self._places:
            subsystem, number = self._places[nsid]
            subsystem.resized(number)

    def disappearing(self, nsid: int) -> None:
        """As :meth:`Audience.disappearing`."""
        if nsid in self._places:
            subsystem, number = self._places.pop(nsid)
            subsystem.remove_namespace(number)


class ServedPool:
    """An open pool with its hosts."""

    def __init__(self, session: Session, hosts: Hosts) -> None:
        self.session = session
        self.hosts = hosts

    @property
    def uuid(self) -> UUID:
        """Of the pool."""
        return UUID(bytes=self.session.pool.geometry.pool)

    @property
    def control(self) -> ControlServer:
        """A control socket for it, yet to be entered."""
        return ControlServer(self.session)

    async def show_all(self, subsystem: Subsystem, size: int | None) -> None:
        """Every namespace, and those to come; makes one of ``size`` bytes, or of the capacity, if there is none."""
        pool = self.session.pool
        if not pool.namespaces:
            await pool.create_namespace(size or pool.status().capacity, nsid=1)
        self.hosts.whole = subsystem
        for nsid, volume in sorted(pool.namespaces.items()):
            self.hosts.appeared(nsid, volume)

    async def volume(self, wanted: NamespaceConfig) -> Volume:
        """The namespace that is wanted; made if it is missing and has a size. Raises UsageError."""
        pool = self.session.pool
        volume = pool.namespaces.get(wanted.pool_nsid)
        if volume is not None:
            return volume
        if wanted.size is None:
            place = f"{self.session.directory.path}: has no namespace {wanted.pool_nsid}"
            raise UsageError(f"{place}, and no size to make it with was given")
        names = ("block_size", "codec", "level", "planes", "encrypted", "write_cache")
        options = {name: value for name in names if (value := getattr(wanted, name)) is not None}
        return await pool.create_namespace(wanted.size, nsid=wanted.pool_nsid, **options)

    def show(self, wanted: NamespaceConfig, volume: Volume, subsystem: Subsystem) -> None:
        """Let hosts see one namespace."""
        self.hosts.show(wanted.pool_nsid, volume, subsystem, wanted.nsid)


@contextlib.asynccontextmanager
async def served(wanted: PoolConfig, keys: Mapping[str, Key]) -> AsyncIterator[ServedPool]:
    """Open a pool and say what that took. ``keys`` are by the name of the pool, instead of what the file says."""
    hosts = Hosts()
    async with contextlib.AsyncExitStack() as stack:
        try:
            directory = stack.enter_context(PoolDirectory.open(wanted.path))
            session = await stack.enter_async_context(
                opened(directory, lambda: keys.get(wanted.name) or _configured(wanted))
            )
        except (UsageError, OSError) as error:
            if not wanted.where:
                raise
            said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise ConfigError(f"{wanted.where}: {said}") from error
        session.audience = hosts
        print_notices(session, everything=True)
        yield ServedPool(session, hosts)


def _configured(wanted: PoolConfig) -> Key | None:
    if wanted.key_file is not None:
        return FILE, str(wanted.key_file)
    if wanted.passphrase_file is not None:
        return PASSPHRASE, passphrase_from(wanted.passphrase_file)
    if wanted.key_command is None:
        return None
    command = wanted.key_command
    return COMMAND, command if isinstance(command, str) else shlex.join(command)
