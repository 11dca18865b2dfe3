"""fio's nbd engine against an NBD server.

``--thread``: a job process would call setsid, and so leave the scheduler's autogroup that everyone else here is in.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache

from tools.benchmark.nvme import WARM_SECONDS
from tools.benchmark.wire import BenchError
from tools.benchmark.workload import Result, Workload


@cache
def why_not() -> str:
    """Why fio cannot be used, or nothing."""
    if shutil.which("fio") is None:
        return "fio: not installed"
    engines = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True, check=False).stdout
    return "" if "nbd" in engines.split() else "fio: built without its nbd engine"


def run_fio(address: tuple[str, int], workload: Workload, span: int, seconds: float) -> Result:
    kind = "write" if workload.write else "read"
    command = [
        "fio",
        "--name=bench",
        "--output-format=json",
        "--ioengine=nbd",
        "--thread",
        f"--uri=nbd://{address[0]}:{address[1]}/",
        f"--rw={'rand' if workload.random else ''}{kind}",
        f"--bs={workload.block}",
        f"--iodepth={workload.depth}",
        f"--size={span}",
        "--norandommap",
        "--time_based",
        f"--runtime={round(seconds * 1000)}ms",
        f"--ramp_time={round(WARM_SECONDS * 1000)}ms",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"fio: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][kind]
    percentiles = job["clat_ns"].get("percentile", {})
    return Result(
        iops=job["iops"],
        mb_s=job["iops"] * workload.block / 1e6,
        mean_us=job["lat_ns"]["mean"] / 1e3,
        p50_us=percentiles.get("50.000000", 0) / 1e3 or None,
        p99_us=percentiles.get("99.000000", 0) / 1e3 or None,
    )
