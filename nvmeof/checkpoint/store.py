"""The checkpoint store: one API over a raw namespace and a directory."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from nvmeof.checkpoint.directory_medium import DirectoryMedium
from nvmeof.checkpoint.medium import COMMITTED, CORRUPT, WRITING, CheckpointInfo, Damage, DamagedError, Medium
from nvmeof.checkpoint.namespace_catalog import BlockNamespace
from nvmeof.checkpoint.namespace_medium import NamespaceMedium
from nvmeof.checkpoint.payload import Contents, Discard
from nvmeof.checkpoint.pipeline import Progress, in_thread
from nvmeof.checkpoint.reader import Reader, read_metadata
from nvmeof.checkpoint.sinks import MemorySink, Sink, open_sink
from nvmeof.checkpoint.state import flatten
from nvmeof.checkpoint.table import RUN_BYTES
from nvmeof.checkpoint.writer import write_checkpoint
from nvmeof.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, UncommittedError, UsageError

WINDOW_BYTES = 64 << 20
"""Bytes in flight of one save or load by default: 16 runs of 4 MiB, which is
more than bandwidth times delay of 100 Gb/s and 5 ms."""

IO_TIMEOUT_SECONDS = 120.0
"""For one command, unless the caller says otherwise: a Flush may have to wait for a slow disk behind the target."""

STEP_MAX = (1 << 63) - 1

SCHEME = "nvme+tcp://"
_NEARLY_URL = re.compile(r"nvme(\+\w*)?:", re.IGNORECASE)
"""Where a slash was forgotten; a directory of such a name can be called ./NAME."""

Step = int | Literal["latest"]


@dataclass(frozen=True)
class Verification:
    """What examining one checkpoint found. ``damage`` is empty if every byte is as it was saved."""

    info: CheckpointInfo
    damage: tuple[Damage, ...]
    seconds: float


class VerificationError(CorruptCheckpointError):
    """At least one checkpoint is corrupt. ``results`` has all that were examined."""

    def __init__(self, results: Sequence[Verification]) -> None:
        bad = [result for result in results if result.damage]
        steps = ", ".join(str(result.info.step) for result in bad)
        super().__init__(f"{len(bad)} of {len(results)} checkpoints corrupt (step {steps}): {bad[0].damage[0]}")
        self.results = tuple(results)


class Store:
    """A place with checkpoints. Open it with :meth:`open`, as an asynchronous context manager.

    Contract. ``save`` returns only when every byte is on media, committed, and hashed from the memory it was given;
    otherwise it raises and what was there before is untouched. ``load`` returns only bytes that match those hashes.
    Nothing is retried: after a :class:`~nvmeof.errors.ConnectionLost` open the store again and save again.
    One save or delete at a time per object (others wait); loads, lists and verifications may go on beside it.
    The memory of a state must not be written to until ``save`` returns.
    """

    def __init__(
        self, connect: Callable[[ThreadPoolExecutor], Awaitable[Medium]], window_bytes: int, threads: int
    ) -> None:
        self._connect = connect
        self._workers = max(1, window_bytes // RUN_BYTES)
        self._threads = threads
        self._changing = asyncio.Lock()

    @classmethod
    def open(
        cls,
        place: str | os.PathLike[str] | BlockNamespace,
        *,
        format: bool = False,  # noqa: A002  the option has this name on the command line too
        reclaim: bool = False,
        window_bytes: int = WINDOW_BYTES,
        threads: int | None = None,
        **connection: Any,
    ) -> Store:
        """A store on a namespace URL (``nvme+tcp://HOST:PORT/SUBNQN/NSID``), in a directory, or on an open namespace.

        A blank place becomes a store at the first save; ``format`` allows that also where something else is kept.
        ``reclaim`` lets a save use the space of interrupted ones at once. ``window_bytes`` bounds what is in flight.
        ``threads`` hash and do file I/O (default: cores + 2, at most 8). ``connection`` goes to ``open_namespace``.
        Raises UsageError for a place that is none of these.
        """
        threads = threads or min(8, (os.cpu_count() or 1) + 2)

        async def connect(executor: ThreadPoolExecutor) -> Medium:
            if not isinstance(place, str | os.PathLike):
                return NamespaceMedium(place, "namespace", force_format=format, reclaim=reclaim)
            text = os.fspath(place)
            if text.lower().startswith(SCHEME):
                return await _connect_namespace(text, connection, format, reclaim)
            if not text or "\0" in text or "://" in text or _NEARLY_URL.match(text):
                raise UsageError(f"{text!r} is neither nvme+tcp://HOST:PORT/SUBNQN/NSID nor a directory")
            if connection:
                raise UsageError(f"a directory takes no connection options, got {', '.join(connection)}")
            return DirectoryMedium(text, executor, force_format=format, reclaim=reclaim)

        return cls(connect, window_bytes, threads)

    async def __aenter__(self) -> Store:
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="checkpoint")
        try:
            self._medium = await self._connect(self._executor)
        except BaseException:
            self._executor.shutdown()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._medium.close()
        finally:
            self._executor.shutdown()

    @property
    def notices(self) -> Sequence[str]:
        """Damage to the store itself that was survived so far (a bad label copy, a bad superblock slot)."""
        return tuple(self._medium.notices)

    async def save(
        self,
        step: int,
        state: Mapping[Any, object] | Contents,
        *,
        metadata: Mapping[str, str] | None = None,
        verify: bool = False,
        progress: Progress | None = None,
    ) -> CheckpointInfo:
        """Save a state dict (see :func:`~nvmeof.checkpoint.state.flatten`) or opened files as ``step``.

        ``verify`` reads everything back after the commit, as :meth:`verify` does; the checkpoint stays if that fails.

        Raises UsageError (bad step or state, the step exists), OSError (no space, directory I/O), StatusError,
        ConnectionLost and CheckpointError; then nothing was committed, or, if the commit record's own completion was
        lost, either nothing or the whole checkpoint. With ``verify`` also VerificationError.
        """
        if type(step) is not int or not 0 <= step <= STEP_MAX:
            raise UsageError(f"step is {step!r}, wanted an integer from 0 to {STEP_MAX}")
        contents = state if isinstance(state, Contents) else flatten(state, metadata)
        async with self._changing:
            info = await write_checkpoint(self._medium, step, contents, self._executor, self._workers, progress)
        if verify:
            result = await self.examine(info)
            if result.damage:
                raise VerificationError([result])
        return info

    async def ls(self) -> list[CheckpointInfo]:
        """Every checkpoint, committed or not, in the order of commits.

        Raises CheckpointNotFoundError if there is no store here.
        """
        return await self._medium.list()

    async def resolve(self, step: Step = "latest") -> CheckpointInfo:
        """The committed checkpoint of ``step``, or the one committed last.

        Raises CheckpointNotFoundError, UncommittedError, or CorruptCheckpointError if its commit record is damaged.
        """
        infos = await self.ls()
        if step != "latest":
            infos = [info for info in infos if info.step == step]
        for info in infos:
            if info.state == CORRUPT:
                hint = "" if step != "latest" else "; which checkpoint is the latest cannot be told: name a step"
                raise CorruptCheckpointError(f"checkpoint of step {info.step} is corrupt: {info.note}{hint}")
        committed = [info for info in infos if info.state == COMMITTED]
        if committed:
            return max(committed, key=lambda info: info.sequence)
        if infos:
            note = f" ({infos[-1].note})" if infos[-1].note else ""
            raise UncommittedError(f"the checkpoint of step {infos[-1].step} was never committed{note}")
        raise CheckpointNotFoundError("the store is empty" if step == "latest" else f"no checkpoint of step {step}")

    async def load(self, step: Step = "latest", *, progress: Progress | None = None) -> dict[Any, Any]:
        """The state that was saved as ``step``, every byte verified; of a checkpoint of files their contents by name.

        Raises DamagedError (a CorruptCheckpointError) at the first chunk that is not as it was saved.
        """
        sink = MemorySink()
        await self._load(await self.resolve(step), sink, progress)
        return sink.finish()

    async def load_to(
        self, destination: str | Path, step: Step = "latest", *, progress: Progress | None = None
    ) -> CheckpointInfo:
        """Load into a new directory (files), .safetensors or .npz file (state); all of it appears, or none."""
        info = await self.resolve(step)
        sink = open_sink(destination, info.kind)
        await self._load(info, sink, progress, finish=True)
        return info

    async def _load(self, info: CheckpointInfo, sink: Sink, progress: Progress | None, finish: bool = False) -> None:
        try:
            stored = await self._medium.open(info)
            try:
                manifest, table = await read_metadata(stored)
                destinations = await in_thread(self._executor, lambda: sink.prepare(manifest))
                await Reader(stored, manifest, table, destinations, self._executor, progress).run(self._workers)
            finally:
                await stored.close()
            if finish:
                await in_thread(self._executor, sink.finish)
        except BaseException as error:
            await in_thread(self._executor, sink.abort)
            if isinstance(error, CorruptCheckpointError):
                await self._check_still_there(info)
            if isinstance(error, MemoryError):
                raise CheckpointError(f"step {info.step}, {info.size} bytes, does not fit into memory") from None
            raise

    async def _check_still_there(self, info: CheckpointInfo) -> None:
        """What looks like damage may be that somebody deleted the checkpoint while it was being read."""
        if info.id not in {other.id for other in await self._medium.list()}:
            raise CheckpointNotFoundError(f"the checkpoint of step {info.step} was deleted while it was being read")

    async def examine(self, info: CheckpointInfo, progress: Progress | None = None) -> Verification:
        """Read one checkpoint as :meth:`ls` gave it and compare every byte with the hashes; lists all damage."""
        started = time.monotonic()
        if info.state == WRITING:
            raise UncommittedError(f"the checkpoint of step {info.step} was never committed")
        if info.state == CORRUPT:
            return Verification(info, (Damage("", 0, 0, 0, "its commit record", info.note),), 0.0)
        try:
            damage = await self._damage(info, progress)
        except DamagedError as error:
            damage = list(error.damage)
        except CorruptCheckpointError as error:
            damage = [Damage("", 0, 0, 0, "its metadata", str(error))]
        if damage:
            await self._check_still_there(info)
        return Verification(info, tuple(damage), time.monotonic() - started)

    async def _damage(self, info: CheckpointInfo, progress: Progress | None) -> list[Damage]:
        stored = await self._medium.open(info, bypass_cache=True)
        try:
            manifest, table = await read_metadata(stored)
            destinations = [Discard()] * len(manifest.items)
            reader = Reader(stored, manifest, table, destinations, self._executor, progress, collect=True)
            await reader.run(self._workers)
            return [*reader.damage, *await stored.check_layout(manifest, table)]
        finally:
            await stored.close()

    async def verify(self, step: Step | None = None, *, progress: Progress | None = None) -> list[Verification]:
        """Read one checkpoint, or all committed ones, back and verify every byte.

        What is read is what the place returns now: a target may answer from its cache, and a file system from pages
        that are not yet written back or that it will not drop. So this finds bytes that went wrong on the way, and
        those that went wrong at rest once the caches are cold (after a restart); it is no proof of what is on media.

        Returns what was examined if all of it is good. Raises VerificationError, after examining everything, if not;
        CheckpointNotFoundError or UncommittedError if there is nothing (committed) to verify.
        """
        infos = await self.ls() if step is None else [await self.resolve(step)]
        examined = [info for info in infos if info.state != WRITING] or [await self.resolve("latest")]
        total = sum(info.size for info in examined)
        results = []
        before = 0
        for info in examined:
            results.append(await self.examine(info, _shifted(progress, before, total)))
            before += info.size
        if any(result.damage for result in results):
            raise VerificationError(results)
        return results

    async def delete(self, step: int) -> None:
        """Remove the checkpoint of ``step`` and what interrupted saves of it left. The last committed one stays.

        Raises CheckpointNotFoundError, or UsageError for the only committed checkpoint.
        """
        async with self._changing:
            infos = await self.ls()
            doomed = [info for info in infos if info.step == step]
            if not doomed:
                raise CheckpointNotFoundError(f"no checkpoint of step {step}")
            if {info.step for info in infos if info.state == COMMITTED} == {step}:
                raise UsageError(f"step {step} is the only committed checkpoint; it is not deleted")
            await self._medium.delete(doomed)


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


async def _connect_namespace(url: str, connection: Mapping[str, Any], force_format: bool, reclaim: bool) -> Medium:
    from nvmeof.initiator import open_namespace

    context = open_namespace(url, **{"io_timeout": IO_TIMEOUT_SECONDS, **connection})
    namespace = await context.__aenter__()

    async def close() -> None:
        await context.__aexit__(None, None, None)

    return NamespaceMedium(namespace, url, force_format=force_format, reclaim=reclaim, on_close=close)
