"""What is run, and what one run measured."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass

from tools.benchmark.load import Tally
from tools.benchmark.wire import NO_DIGESTS, Digests

KIB = 1024
MIB = 1024 * KIB
SMALL_BYTES_MAX = 16 * KIB
COMMANDS = 32768
"""Built beforehand, with distinct CIDs. So many that a command the server is slow with is not overtaken by its CID."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Blocks of ``block`` bytes, ``depth`` in flight, at random or in order over the first ``span`` bytes."""

    write: bool
    random: bool
    block: int
    depth: int
    digests: Digests = NO_DIGESTS

    @property
    def name(self) -> str:
        size = f"{self.block // MIB}m" if self.block >= MIB else f"{self.block // KIB}k"
        kind = ("rand" if self.random else "") + ("write" if self.write else "read")
        suffix = "-digests" if self.digests != NO_DIGESTS else ""
        return f"{size}-{kind}-qd{self.depth}{suffix}"

    def offsets(self, span: int) -> list[int]:
        """Where the commands go, in bytes. The same ones in every run."""
        blocks = span // self.block
        if not self.random:
            return [index % blocks * self.block for index in range(COMMANDS)]
        source = random.Random(self.block)
        return [source.randrange(blocks) * self.block for _ in range(COMMANDS)]

    def payload(self) -> bytes:
        """What is written, incompressible."""
        return random.Random(self.depth).randbytes(self.block)


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Latencies in microseconds; percentiles only where the generator takes them (depth 1, and fio)."""

    iops: float
    mb_s: float
    mean_us: float
    p50_us: float | None = None
    p99_us: float | None = None
    generator_us: float | None = None
    server_us: float | None = None
    """Processor time of generator and server per command."""


def result(workload: Workload, tally: Tally, server_seconds: float | None = None) -> Result:
    if not tally.completed:
        raise ValueError(f"{workload.name}: nothing was completed in {tally.seconds:.3f} s")
    iops = tally.completed / tally.seconds
    p50 = p99 = None
    if len(tally.latencies) >= 100:
        cuts = statistics.quantiles(tally.latencies, n=100)
        p50, p99 = cuts[49] * 1e6, cuts[98] * 1e6
    return Result(
        iops=iops,
        mb_s=iops * workload.block / 1e6,
        mean_us=workload.depth / iops * 1e6,
        p50_us=p50,
        p99_us=p99,
        generator_us=tally.cpu_seconds / tally.completed * 1e6,
        server_us=server_seconds / tally.completed * 1e6 if server_seconds is not None else None,
    )


def plan(only: str = "") -> list[Workload]:
    """The target benchmark's workloads whose names contain ``only``."""
    both = Digests(header=True, data=True)
    found = [Workload(write, True, 4 * KIB, depth) for write in (False, True) for depth in (1, 32, 128)]
    found += [Workload(write, True, 4 * KIB, 32, both) for write in (False, True)]
    for block, depth, digests in ((128 * KIB, 16, NO_DIGESTS), (128 * KIB, 16, both), (MIB, 8, NO_DIGESTS)):
        found += [Workload(write, False, block, depth, digests) for write in (False, True)]
    return [workload for workload in found if only in workload.name]
