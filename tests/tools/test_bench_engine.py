"""tools/bench engine and volume run, and say what they promise to. The figures themselves are for people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.benchmark.engine.data import pieces
from tools.benchmark.engine.limit import Files, ReadLimit, WriteLimit
from tools.benchmark.engine.report import PARTS
from tools.benchmark.engine.site import fill, make, pump, reopen
from tools.benchmark.engine.speed import CASES
from tools.benchmark.workload import KIB, MIB

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MEMBER_BYTES = 20 * MIB


def bench(arguments: str, directory: Path) -> dict[str, Any]:
    command = [str(ROOT / "tools" / "bench"), *arguments.split(), "--json", "--dir", str(directory)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHON": sys.executable}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert not list(directory.iterdir())
    return found


@pytest.mark.slow
def test_engine_reports_every_part(tmp_path: Path) -> None:
    found = bench("engine --seconds 0.02 --repeats 1 --member-size 20m", tmp_path)
    assert set(PARTS) <= set(found)
    assert [row["workload"] for row in found["speed"]] == [case.name for case in CASES]
    for row in found["speed"]:
        assert row["per_second"] > 0
        assert row["limit_us"] == pytest.approx(sum(row["limit_steps_us"].values()))
        assert row["of_limit"] > 0
    assert set(found["threads"]["1m-write-bf16"]) == {"1", "2", "4"}
    assert {"xts 128k", "zstd-1 compress 128k", "P+Q 4 x 260k"} <= set(found["libraries"])
    assert found["fua"]["depth_1"]["syncs_per_fua"] == 1
    assert found["memory"]["blocks"] == 64 * 20 * MIB // (4 * KIB)
    assert {"crash_1m", "crash_4k", "clean", "clean_large_map"} == set(found["opening"])
    assert found["opening"]["crash_1m"]["tail_mib"] > 1
    assert found["space"]["64k-sequential"]["overhead"] < 2
    assert found["space"]["4k-flushed"]["overhead"] > found["space"]["4k-flushed"]["overhead_cleaned"]
    assert {"aim", "wanted", "measured", "met", "at_least"} == set(found["aims"][0])


@pytest.mark.slow
def test_volume_reports_calls_hops_and_stalls(tmp_path: Path) -> None:
    found = bench("volume --seconds 0.02 --repeats 1 --size 4m", tmp_path)
    assert set(found["calls_us"]) == {"4k", "128k", "1m"}
    assert set(found["calls_us"]["4k"]) == {"preadv", "read_now", "pwrite", "write_now"}
    assert found["stalls_beside_fdatasync"]["4k"]["writes"] > 0
    assert found["hop_us"]["depth_1"] > 0


def test_limit_counts_every_library(tmp_path: Path) -> None:
    files = Files(tmp_path, 8 * MIB)
    for case in CASES:
        data = pieces(case.kind)
        limit = (
            WriteLimit(files, data, case.block, case.packer)
            if case.write
            else ReadLimit(files, data, case.block, case.packer, 4 * MIB)
        )
        steps = limit.run(10.0, 3 * MIB // case.block)
        assert all(value > 0 for value in steps.values()), (case.name, steps)
    files.remove()


async def test_what_a_crash_leaves_is_rolled_forward(tmp_path: Path) -> None:
    site = await make(tmp_path, MEMBER_BYTES, 4 * MIB)
    await fill(site.volume, pieces("random"), 0, 4 * MIB)
    await site.crash()
    again = await reopen(tmp_path)
    assert again.pool.opened.rolled_forward_bytes > 6 * MIB
    out = memoryview(bytearray(MIB))
    tally = await pump(again.volume.read_now, again.volume.read, [(MIB, out)], 2, 10.0, 4)
    assert tally.commands >= 4
    assert out == pieces("random")[1]
    await again.close()


@pytest.mark.parametrize("arguments", ["--parts nothing", "--repeats 2", "--member-size 0"])
def test_bad_arguments_are_refused(arguments: str) -> None:
    done = subprocess.run(
        [str(ROOT / "tools" / "bench"), "engine", *arguments.split()],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHON": sys.executable}, timeout=60,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
