#!/usr/bin/env python3
"""How fast checkpoints are saved, verified and loaded, beside what the same machine does without any of it.

    tools/bench_checkpoint.py [--size 1G] [--rounds 3] [--directory DIR] [--url nvme+tcp://HOST:PORT/SUBNQN/NSID]

Prints GB/s, the median of the rounds, and the ratio to plain write + fsync (or plain read) of the same bytes in the
same round. With --url the store is that namespace: everything on it is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import uvloop

from nvmeof.checkpoint import Store
from nvmeof.checkpoint.table import CHUNK_BYTES
from nvmeof.codec.hashes import blake3_256

Results = dict[str, list[float]]


def size(text: str) -> int:
    units = {"M": 20, "G": 30}
    return int(text[:-1]) << units[text[-1]] if text[-1] in units else int(text)


def transformer(total: int) -> dict[str, Any]:
    """Tensors in the shape of a transformer: large matrices, small norms; ``total`` bytes within a few per cent."""
    rng = np.random.default_rng(1)
    state: dict[str, Any] = {}
    layer = 0
    left = total
    width = 2048
    while left > 0:
        for name, shape in (("qkv", (3 * width, width)), ("mlp", (4 * width, width)), ("norm", (width,))):
            array = rng.integers(0, 1 << 62, size=(int(np.prod(shape)) // 4,), dtype=np.int64).view(np.float16)
            state[f"layers.{layer}.{name}.weight"] = array.reshape(shape)
            left -= array.nbytes
        layer += 1
    return state


def timed(results: Results, name: str, total: int, action: Callable[[], object]) -> None:
    started = time.perf_counter()
    action()
    results.setdefault(name, []).append(total / (time.perf_counter() - started) / 1e9)


def plain_write(path: str, views: list[memoryview]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for view in views:
        for start in range(0, len(view), CHUNK_BYTES):
            os.write(fd, view[start : start + CHUNK_BYTES])
    os.fsync(fd)
    os.close(fd)


def plain_read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    memory = np.empty(os.fstat(fd).st_size, dtype=np.uint8).data
    done = 0
    while done < len(memory):
        done += os.preadv(fd, [memory[done : done + CHUNK_BYTES]], done)
    os.close(fd)


def hash_all(views: list[memoryview], threads: int) -> None:
    chunks = [view[start : start + CHUNK_BYTES] for view in views for start in range(0, len(view), CHUNK_BYTES)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(blake3_256, chunks))


async def store_round(results: Results, place: str, state: dict[str, Any], total: int, step: int) -> None:
    async def call(name: str, awaitable: Any) -> Any:
        started = time.perf_counter()
        value = await awaitable
        results.setdefault(name, []).append(total / (time.perf_counter() - started) / 1e9)
        return value

    options: dict[str, Any] = {"io_queues": 2} if "://" in place else {}
    async with Store.open(place, format=True, **options) as store:
        await call("save", store.save(step, state))
        await call("verify", store.verify(step))
        await call("load", store.load(step))
        if step:
            await store.delete(step - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--url")
    args = parser.parse_args()
    state = transformer(args.size)
    views = [array.reshape(-1).view(np.uint8).data for array in state.values()]
    total = sum(len(view) for view in views)
    work = tempfile.mkdtemp(dir=args.directory)
    plain = os.path.join(work, "plain")
    results: Results = {}
    try:
        for number in range(args.rounds):
            for threads in sorted({1, 2, os.cpu_count() or 1}):
                timed(results, f"blake3, {threads} threads", total, partial(hash_all, views, threads))
            timed(results, "plain write + fsync", total, partial(plain_write, plain, views))
            timed(results, "plain read, cached", total, partial(plain_read, plain))
            os.unlink(plain)
            place = args.url or os.path.join(work, "store")
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(store_round(results, place, state, total, number))
    finally:
        shutil.rmtree(work)
    print(f"{total / 1e9:.2f} GB in {len(views)} tensors, {args.rounds} rounds, {args.url or args.directory}")
    compared = {"save": "plain write + fsync", "load": "plain read, cached"}
    for name, rates in results.items():
        line = f"{name:24} {statistics.median(rates):6.2f} GB/s"
        if name in compared:
            ratios = [a / b for a, b in zip(rates, results[compared[name]], strict=True)]
            line += f"   {statistics.median(ratios):5.2f} x {compared[name]}"
        print(line)


if __name__ == "__main__":
    main()
