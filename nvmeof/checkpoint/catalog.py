"""The list of a namespace's checkpoints and the space they claim (FORMAT.md, 2.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from nvmeof.checkpoint import canonical
from nvmeof.checkpoint.canonical import Fields
from nvmeof.checkpoint.extents import EXTENTS_MAX, UNIT_BYTES, Extent
from nvmeof.checkpoint.medium import COMMITTED, PARTS, WRITING, CheckpointInfo, Part
from nvmeof.errors import CorruptCheckpointError

FORMAT = "nvmeof-catalog"
VERSION = 1
EPOCH_SHIFT = 32
"""Generation = epoch << 32 | sequence in the epoch."""


@dataclass(frozen=True)
class CatalogEntry(CheckpointInfo):
    """A checkpoint on a namespace: what everybody sees of it, its extents and the epoch of its writer."""

    epoch: int = 0
    extents: tuple[Extent, ...] = ()

    def record(self) -> dict[str, object]:
        extents = [list(extent) for extent in self.extents]
        return {**super().record(), "state": self.state, "epoch": self.epoch, "extents": extents}


@dataclass(frozen=True)
class Catalog:
    """One generation of the store. Immutable: a change makes a new one."""

    generation: int
    next_sequence: int = 1
    entries: tuple[CatalogEntry, ...] = field(default=())

    def claimed(self) -> list[Extent]:
        return [extent for entry in self.entries for extent in entry.extents]

    def with_entries(self, entries: Iterable[CatalogEntry]) -> Catalog:
        return replace(self, entries=tuple(entries))

    def encode(self) -> bytes:
        return canonical.encode(
            {
                "format": FORMAT,
                "version": VERSION,
                "generation": self.generation,
                "next_sequence": self.next_sequence,
                "checkpoints": [entry.record() for entry in self.entries],
            }
        )

    @classmethod
    def decode(cls, data: bytes | bytearray, data_start: int, data_end: int) -> Catalog:
        """Raises CorruptCheckpointError if anything is off, overlapping extents included."""
        head = canonical.decode(data, "catalog")
        head.expect(FORMAT, VERSION)
        entries = tuple(_decode_entry(record, data_start, data_end) for record in head.objects("checkpoints"))
        catalog = cls(head.size("generation"), head.size("next_sequence"), entries)
        end = 0
        for extent in sorted(catalog.claimed()):
            if extent.offset < end:
                raise CorruptCheckpointError(f"catalog: two checkpoints claim byte {extent.offset} of the namespace")
            end = extent.end
        return catalog


def _decode_entry(record: Fields, data_start: int, data_end: int) -> CatalogEntry:
    state = record.one_of("state", WRITING, COMMITTED)
    parts_record = record.fields("parts").value
    if set(parts_record) != set(PARTS):
        raise CorruptCheckpointError(f"{record.what}: parts are {sorted(parts_record)}")
    parts = {name: Part.decode(parts_record[name], f"{record.what}: {name}") for name in PARTS}
    extents = record.get("extents", list)
    if not 0 < len(extents) <= EXTENTS_MAX:
        raise CorruptCheckpointError(f"{record.what}: {len(extents)} extents")
    decoded = tuple(_decode_extent(record, value, data_start, data_end) for value in extents)
    room = sum(extent.length for extent in decoded)
    if any(part.offset + part.length > room for part in parts.values()):
        raise CorruptCheckpointError(f"{record.what}: metadata beyond the {room} bytes of its extents")
    return CatalogEntry(
        step=record.size("step"),
        state=state,
        id=record.get("id", str),
        sequence=record.size("sequence"),
        created_ns=record.size("created_ns"),
        kind=record.get("kind", str),
        items=record.size("items"),
        chunks=record.size("chunks"),
        size=record.size("bytes"),
        root_digest=record.digest("root_digest") if state == COMMITTED else b"",
        parts=parts,
        epoch=record.size("epoch"),
        extents=decoded,
    )


def _decode_extent(record: Fields, value: object, data_start: int, data_end: int) -> Extent:
    if isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value):
        extent = Extent(*value)
        aligned = extent.offset % UNIT_BYTES == 0 and extent.length % UNIT_BYTES == 0
        if aligned and extent.length > 0 and data_start <= extent.offset and extent.end <= data_end:
            return extent
    raise CorruptCheckpointError(f"{record.what}: {value!r:.60} is no extent of the data area")
