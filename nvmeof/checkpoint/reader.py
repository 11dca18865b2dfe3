"""Loading: read into the final memory, hash what landed there, fail closed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from nvmeof.checkpoint.manifest import RankManifest, RankSummary, RootManifest
from nvmeof.checkpoint.medium import Damage, DamagedError, Piece, Stored, is_media_error
from nvmeof.checkpoint.payload import Destination, Scratch
from nvmeof.checkpoint.pipeline import Progress, in_thread, run_all
from nvmeof.checkpoint.table import ChunkTable, Run
from nvmeof.codec.hashes import blake3_256, sha256
from nvmeof.errors import CorruptCheckpointError, StatusError, UsageError

SIZE_FACTOR_MAX = 2
SIZE_SLACK_BYTES = 64 << 20
"""A checkpoint that says it is larger than twice its place and this is not believed, and no memory is taken for it.
Up to there (a shard that was cut off) reading goes on, to name the chunks that are missing."""

DAMAGE_MAX = 1000
"""Damaged chunks that one verification lists; beyond that the list helps nobody."""


async def read_metadata(stored: Stored) -> tuple[RankManifest, ChunkTable]:
    """Read and verify everything between the commit record and the chunk hashes. Raises CorruptCheckpointError."""
    info = stored.info
    what = f"checkpoint of step {info.step}"
    parts: dict[str, bytearray] = {}
    for name, part in info.parts.items():
        parts[name] = await stored.read_part(name)
        if blake3_256(parts[name]) != part.hash:
            raise DamagedError(
                info.step, [Damage("", 0, 0, 0, stored.where_part(name), f"the part {name!r} is damaged")]
            )
    if sha256(parts["root"]) != info.root_digest:
        raise CorruptCheckpointError(
            f"{what}: the root manifest does not match the root digest {info.root_digest.hex()}"
        )
    root = RootManifest.decode(parts["root"])
    if len(root.ranks) > 1:
        raise UsageError(f"{what} was saved by {len(root.ranks)} ranks; this program reads one: use a newer one")
    if not root.ranks or root.ranks[0].rank != 0:
        raise CorruptCheckpointError(f"{what} has no rank 0")
    if (root.step, root.kind) != (info.step, info.kind):
        raise CorruptCheckpointError(
            f"{what} of kind {info.kind!r} has the root manifest of step {root.step}, {root.kind!r}"
        )
    summary = root.ranks[0]
    if blake3_256(parts["rank"]) != summary.manifest:
        raise CorruptCheckpointError(f"{what}: the rank manifest does not match the root manifest")
    manifest = RankManifest.decode(parts["rank"])
    sizes = [item.size for item in manifest.items]
    if sum(sizes) > SIZE_FACTOR_MAX * stored.capacity + SIZE_SLACK_BYTES:
        raise CorruptCheckpointError(f"{what}: items of {sum(sizes)} bytes in a place of {stored.capacity}")
    table = ChunkTable.decode(parts["table"], sizes)
    found = RankSummary(len(sizes), len(table), sum(sizes), summary.manifest, table.hashes_digest())
    if found != summary or manifest.kind != root.kind:
        raise CorruptCheckpointError(f"{what}: manifest and chunk table do not match the root manifest")
    return manifest, table


class Reader:
    """Moves all chunks of a checkpoint to their destinations, each verified against the hash of its source bytes."""

    def __init__(
        self,
        stored: Stored,
        manifest: RankManifest,
        table: ChunkTable,
        destinations: Sequence[Destination],
        executor: Executor,
        progress: Progress | None = None,
        collect: bool = False,
    ) -> None:
        self._stored = stored
        self._items = manifest.items
        self._table = table
        self._destinations = destinations
        self._executor = executor
        self._progress = progress
        self._collect = collect
        self._total = sum(item.size for item in manifest.items)
        self._done = 0
        self.damage: list[Damage] = []

    async def run(self, workers: int) -> None:
        """Read everything. Stops with DamagedError at the first damaged chunk, or collects them in ``damage``."""
        await run_all(self._table.runs(self._stored.alignment), self._read_run, workers)

    async def _read_run(self, run: Run, scratch: Scratch) -> None:
        scratch.reserve(run.length)
        pieces: list[Piece] = []
        through_scratch: list[bool] = []
        for row in run.rows:
            item, start, length = self._table.chunk_of(row)
            memory = self._destinations[item].memory(start, length)
            through_scratch.append(memory is None)
            pieces.append((int(self._table.rows["offset"][row]), scratch.take(length) if memory is None else memory))
        try:
            await self._stored.read(run.region, pieces)
        except (StatusError, OSError) as error:
            if not is_media_error(error):
                raise
            await self._read_singly(run, pieces, through_scratch)
        else:
            self._report(await in_thread(self._executor, lambda: self._check(run.rows, pieces, through_scratch)))
        self._done += sum(len(view) for _, view in pieces)
        if self._progress is not None:
            self._progress(self._done, self._total)

    async def _read_singly(self, run: Run, pieces: Sequence[Piece], through_scratch: Sequence[bool]) -> None:
        """Part of the run cannot be read: find out which chunks."""
        for row, piece, scratched in zip(run.rows, pieces, through_scratch, strict=True):
            try:
                await self._stored.read(run.region, [piece])
            except (StatusError, OSError) as error:
                if not is_media_error(error):
                    raise
                self._report([self._damage(row, f"unreadable ({error})")])
            else:
                check = partial(self._check, [row], [piece], [scratched])
                self._report(await in_thread(self._executor, check))

    def _check(self, rows: Sequence[int], pieces: Sequence[Piece], through_scratch: Sequence[bool]) -> list[Damage]:
        """Blocking: hash what landed, and hand on what came through scratch memory and is right."""
        damage = []
        for row, (_, view), scratched in zip(rows, pieces, through_scratch, strict=True):
            if blake3_256(view) != self._table.hash_of(row):
                damage.append(self._damage(row, "does not match its hash"))
            elif scratched:
                item, start, _ = self._table.chunk_of(row)
                self._destinations[item].verified(start, view)
        return damage

    def _damage(self, row: int, reason: str) -> Damage:
        item, start, length = self._table.chunk_of(row)
        record = self._table.rows[row]
        where = self._stored.where(int(record["region"]), int(record["offset"]), length)
        chunk = row - int(self._table.first_row[item])
        return Damage(self._items[item].name, chunk, start, start + length, where, reason)

    def _report(self, damage: list[Damage]) -> None:
        if damage and not self._collect:
            raise DamagedError(self._stored.info.step, damage)
        self.damage.extend(damage[: DAMAGE_MAX - len(self.damage)])
