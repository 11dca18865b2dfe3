"""Saving: hash in the source memory, write, await everything, commit last."""

from __future__ import annotations

import os
import time
from concurrent.futures import Executor

from nvmeof.checkpoint.manifest import RankManifest, RankSummary, RootManifest, root_size
from nvmeof.checkpoint.medium import CheckpointInfo, Draft, Medium, Piece, Plan
from nvmeof.checkpoint.payload import Contents, Scratch
from nvmeof.checkpoint.pipeline import Progress, in_thread, run_all
from nvmeof.checkpoint.table import ChunkTable, Run, chunk_counts, encoded_bytes
from nvmeof.codec.hashes import blake3_256


async def write_checkpoint(
    medium: Medium, step: int, contents: Contents, executor: Executor, workers: int, progress: Progress | None
) -> CheckpointInfo:
    """Save ``contents`` as ``step``. Returns when all of it is on media and committed; otherwise raises.

    ``executor`` hashes (and reads files); ``workers`` runs of up to RUN_BYTES are in flight.
    """
    manifest = contents.manifest
    rank_bytes = manifest.encode()
    draft = await medium.begin(_plan(step, manifest, len(rank_bytes)))
    try:
        table = ChunkTable.build([item.size for item in manifest.items], draft.regions, draft.offsets)
        await _Writer(draft, contents, table, executor, progress).run(workers)
        hashes = table.hashes_digest()
        size = sum(item.size for item in manifest.items)
        summary = RankSummary(len(manifest.items), len(table), size, blake3_256(rank_bytes), hashes)
        root = RootManifest(step, manifest.kind, (summary,))
        parts: dict[str, bytes | bytearray] = {"table": table.buffer, "rank": rank_bytes, "root": root.encode()}
        return await draft.commit({name: memoryview(part) for name, part in parts.items()}, root.digest())
    except BaseException as error:
        await draft.abandon(error)
        raise


def _plan(step: int, manifest: RankManifest, rank_bytes: int) -> Plan:
    sizes = [item.size for item in manifest.items]
    chunks = int(chunk_counts(sizes).sum())
    root_bytes = root_size(step, manifest.kind, len(sizes), chunks, sum(sizes))
    return Plan(
        step=step,
        id=os.urandom(16).hex(),
        created_ns=time.time_ns(),
        manifest=manifest,
        chunks=chunks,
        size=sum(sizes),
        part_bytes={"table": encoded_bytes(chunks), "rank": rank_bytes, "root": root_bytes},
    )


class _Writer:
    def __init__(
        self, draft: Draft, contents: Contents, table: ChunkTable, executor: Executor, progress: Progress | None
    ) -> None:
        self._draft = draft
        self._payloads = contents.payloads
        self._table = table
        self._executor = executor
        self._progress = progress
        self._total = sum(item.size for item in contents.manifest.items)
        self._done = 0

    async def run(self, workers: int) -> None:
        await run_all(self._table.runs(self._draft.alignment), self._write_run, workers)
        await in_thread(self._executor, self._check_sources)

    async def _write_run(self, run: Run, scratch: Scratch) -> None:
        pieces = await in_thread(self._executor, lambda: self._gather(run, scratch))
        await self._draft.write(run.region, pieces)
        for row, (_, view) in zip(run.rows, pieces, strict=True):
            self._payloads[int(self._table.item_of_row[row])].release(len(view))
            self._done += len(view)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _gather(self, run: Run, scratch: Scratch) -> list[Piece]:
        """Blocking: fetch the chunks of ``run`` and hash them before anything else gets to see their bytes."""
        scratch.reserve(run.length)
        pieces = []
        for row in run.rows:
            item, start, length = self._table.chunk_of(row)
            view = self._payloads[item].view(start, length, scratch)
            self._table.set_hash(row, blake3_256(view))
            pieces.append((int(self._table.rows["offset"][row]), view))
        return pieces

    def _check_sources(self) -> None:
        for payload in self._payloads:
            payload.check()
