"""The pool's key table on its members: read, written to both ends, rotated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self
from uuid import UUID

from nvmeof.engine.disk import Disk
from nvmeof.engine.layout import Geometry
from nvmeof.engine.member import HEAD, TAIL, read_keys, write_keys
from nvmeof.errors import UsageError
from nvmeof.keys.cipher import DataKey, new_data_key
from nvmeof.keys.sources import KeySource
from nvmeof.keys.table import KEY_ID_MAX, KeyTable


class Keyring:
    """An unlocked key table and its generation. Everything that writes blocks, and raises OSError."""

    def __init__(self, geometry: Geometry, table: KeyTable, generation: int) -> None:
        self.geometry = geometry
        self.table = table
        self.generation = generation

    @classmethod
    def load(
        cls, geometry: Geometry, disks: Sequence[Disk | None], stale: Sequence[Disk | None], source: KeySource
    ) -> Self:
        """The newest table that ``source`` opens. Raises UsageError.

        Those on the disks that are ``stale`` count only if there is no other: they may be older than a rotation.
        """
        found = cls._tables(geometry, disks) or cls._tables(geometry, stale)
        if not found:
            raise UsageError(
                "no member has a key table that verifies; put an export of it back (nvmeof pool import-keys)"
            )
        refused: UsageError | None = None
        for generation in sorted(found, reverse=True):
            try:
                found[generation].unlock(source)
            except UsageError as error:
                refused = refused or error
                continue
            return cls(geometry, found[generation], max(found))
        assert refused is not None
        raise refused

    @classmethod
    def restore(
        cls, geometry: Geometry, disks: Sequence[Disk | None], content: bytes, source: KeySource, *, force: bool
    ) -> Self:
        """The table of an export, under a generation above those on ``disks``; not written yet. Raises UsageError.

        ``force``: also where a table that verifies would be lost, and with it keys that are newer than the export.
        """
        pool, table = KeyTable.from_export(content)
        if pool != geometry.pool:
            raise UsageError(f"the export is of another pool: {UUID(bytes=pool)}")
        present = cls._tables(geometry, disks)
        if present and not force:
            raise UsageError(
                "the members have a key table that verifies; import over it only if it is not the right one"
            )
        table.unlock(source)
        return cls(geometry, table, max(present, default=0))

    @staticmethod
    def _tables(geometry: Geometry, disks: Sequence[Disk | None]) -> dict[int, KeyTable]:
        """Those that verify, by generation."""
        contents = [content for disk in disks if disk is not None for content in read_keys(disk, geometry)]
        return dict(decoded for decoded in map(KeyTable.decode, contents) if decoded is not None)

    def key(self, key_id: int) -> DataKey:
        """Raises UsageError."""
        return self.table.key(key_id)

    def add(self) -> int:
        """A new data key in the table, not written yet; its id."""
        used = set(self.table.key_ids)
        free = (number for number in range(max(used, default=0) + 1, KEY_ID_MAX + 1) if number not in used)
        key_id = next(free, None) or next((number for number in range(1, KEY_ID_MAX + 1) if number not in used), 0)
        self.table.add(key_id, new_data_key())
        return key_id

    def is_everywhere(self, disks: Sequence[Disk | None]) -> bool:
        """Whether every copy on ``disks`` is this table; a crash may have left older ones, under an older key."""
        contents = [content for disk in disks if disk is not None for content in read_keys(disk, self.geometry)]
        return all(decoded is not None and decoded[0] == self.generation for decoded in map(KeyTable.decode, contents))

    def save(self, disks: Sequence[Disk | None]) -> list[tuple[int, OSError]]:
        """Write the table to both ends of ``disks``, by role, each end synced before the next. Returns who failed."""
        self.generation += 1
        content = self.table.encode(self.generation)
        failed: dict[int, OSError] = {}
        for end in (HEAD, TAIL):
            for write in (True, False):
                for role, disk in enumerate(disks):
                    if disk is not None and role not in failed:
                        try:
                            write_keys(disk, self.geometry, end, content) if write else disk.sync()
                        except OSError as error:
                            failed[role] = error
        return list(failed.items())
