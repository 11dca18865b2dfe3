"""tools/simulate: lives of a pool at random, judged block by block; what a seed finds it finds again.

    tools/simulate --seeds 1000 [--start 0] [--steps 60] [--jobs 2] [--keep-going] [--json]
    tools/simulate --workload cleaner --seed 7 [--point 41 --mode honest]     as tests/engine/pool/test_crashes.py

Exit status 0 when every block of every life was right, 1 when not, 64 for wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nvmeof.testing.pool_crashes import Mode, enumerate_crashes, repeat
from nvmeof.testing.pool_simulation import simulate
from nvmeof.testing.pool_workloads import WORKLOADS

FAILURES_SHOWN_MAX = 5


class Life(NamedTuple):
    """What came of one seed; ``failure`` is empty when all was right."""

    seed: int
    digest: str
    crashes: int
    failure: str


def live(seed: int, steps: int) -> Life:
    """One seed. Never raises: a failure goes into the result."""
    try:
        simulation, digest = simulate(seed, steps)
    except AssertionError as error:
        return Life(seed, "", 0, str(error))
    return Life(seed, digest, simulation.crashes, "")


def lives(seeds: Iterable[int], steps: int, jobs: int) -> Iterator[Life]:
    """In the order of the seeds."""
    work = partial(live, steps=steps)
    if jobs == 1:
        yield from map(work, seeds)
        return
    with ProcessPoolExecutor(jobs) as processes:
        try:
            yield from processes.map(work, seeds)
        finally:
            processes.shutdown(cancel_futures=True)


def soak(options: argparse.Namespace) -> int:
    """Many seeds."""
    seeds = range(options.start, options.start + options.seeds)
    console = Console(stderr=True)
    failures: list[Life] = []
    done = crashes = 0
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"seeds from {options.start}", total=options.seeds)
        for life in lives(seeds, options.steps, options.jobs):
            done, crashes = done + 1, crashes + life.crashes
            progress.update(task, advance=1, description=f"seed {life.seed}, {crashes} crashes")
            if life.failure:
                failures.append(life)
                if len(failures) <= FAILURES_SHOWN_MAX:
                    console.print(f"seed {life.seed}: {life.failure}\n", markup=False, highlight=False)
                if not options.keep_going:
                    break
    seconds = time.perf_counter() - started
    result = {
        "seeds": done, "start": options.start, "steps": options.steps, "crashes": crashes,
        "seconds": round(seconds, 1), "failures": [{"seed": life.seed, "what": life.failure} for life in failures],
    }  # fmt: skip
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        wrong = f"{len(failures)} failed: {', '.join(str(life.seed) for life in failures)}" if failures else "all right"
        print(f"{done} lives of {options.steps} steps, {crashes} crashes, {seconds:.0f} s: {wrong}")
    return 1 if failures else 0


def crash(options: argparse.Namespace) -> int:
    """One workload: every crash point, or one."""
    workload = WORKLOADS[options.workload]
    try:
        if options.point is None:
            tally = asyncio.run(enumerate_crashes(workload, options.seed))
            print(f"{tally.points} crash points, {tally.images} images: all right")
        else:
            asyncio.run(repeat(workload, options.seed, options.point, Mode(options.mode)))
            print("right")
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """Parse and do."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="tools/simulate", description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many lives (default 100)")
    parser.add_argument("--start", type=int, default=0, metavar="S", help="the first seed (default 0)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a life (default 60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one for each CPU)")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), help="crash this workload instead")
    parser.add_argument("--seed", type=int, default=0, help="seed of the workload")
    parser.add_argument("--point", type=int, help="only this crash point")
    parser.add_argument("--mode", choices=[mode.value for mode in Mode], default="honest", help="of that point")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return 64 if stop.code else 0
    return crash(options) if options.workload else soak(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
