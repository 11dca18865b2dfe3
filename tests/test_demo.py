"""tools/demo as a user runs it, only with a smaller model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    command = [str(ROOT / "tools" / "demo"), "--json", "--layers", "2", "--directory", str(tmp_path)]
    result = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["bytes"] > 100_000_000
    assert not report["plaintext"]
    assert report["lost"] == ["member-01.nvmeof", "member-04.nvmeof"]
    assert (report["status_degraded"], report["status_rebuilt"]) == (1, 0)
    assert (report["scrub"], report["scrub_again"]) == (1, 0)
    assert "member-00.nvmeof" in report["healed"]
    assert (report["exit_code"], report["exit_code_repaired"]) == (1, 0)
    assert "CORRUPT" in report["found"]
    assert "model." in report["found"]
    assert min(report[f"{what}_gbps"] for what in ("save", "load", "verify", "degraded")) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_demo_refuses(tmp_path: Path) -> None:
    for options, code in ((["--layers", "0"], 64), (["--directory", str(tmp_path / "missing")], 3)):
        result = subprocess.run([ROOT / "tools" / "demo", *options], capture_output=True, text=True, check=False)
        assert result.returncode == code
        assert "Traceback" not in result.stderr
