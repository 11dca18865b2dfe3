"""What went over the wire, judged by Wireshark's own dissector."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .kernels import Unavailable, find_tool

START_TIMEOUT_S = 20.0
JUDGE_TIMEOUT_S = 300.0
EXPERT_ERROR = 0x800000


@contextlib.contextmanager
def captured(port: int, file: Path) -> Iterator[None]:
    """Records the loopback traffic of a port to a file while this is held."""
    command = [str(find_tool("dumpcap")), "-i", "lo", "-f", f"tcp port {port}", "-B", "64", "-P", "-w", str(file)]
    log = file.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _wait_for("File: ", log, process)
        yield
        time.sleep(1)
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)
    dropped = re.search(r"received/dropped on interface '[^']*': \d+/(\d+)", log.read_text())
    assert dropped, log.read_text()
    assert dropped[1] == "0", log.read_text()


def _wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while text not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"dumpcap cannot capture on the loopback interface: {log.read_text().strip()}")
        time.sleep(0.05)


def pdu_types(file: Path, port: int) -> Counter[int]:
    rows = _dissect(file, port, "nvme-tcp", "nvme-tcp.type").split()
    return Counter(int(value, 0) for row in rows for value in row.split(","))


def digests_checked(file: Path, port: int) -> dict[str, Counter[str]]:
    """For header and data digests, how many were good ("1") and bad ("0")."""
    return {
        kind: Counter(re.findall(r"\d+", _dissect(file, port, "nvme-tcp", f"nvme-tcp.{kind}.status")))
        for kind in ("hdgst", "ddgst")
    }


def complaints(file: Path, port: int) -> str:
    """Everything in the capture that Wireshark holds to be malformed or wrong, one line each."""
    digests = "nvme-tcp.hdgst.status == 0 || nvme-tcp.ddgst.status == 0"
    bad = f"_ws.malformed || _ws.expert.severity == {EXPERT_ERROR} || {digests} || nvme-tcp.unknown_data"
    return _dissect(file, port, bad, "frame.number", "_ws.expert.message", "nvme-tcp.type", "_ws.col.Info")


def _dissect(file: Path, port: int, display_filter: str, *fields: str) -> str:
    command = [str(find_tool("tshark")), "-r", str(file), "-d", f"tcp.port=={port},nvme-tcp", "-Y", display_filter]
    command += ["-o", "nvme-tcp.check_hdgst:TRUE", "-o", "nvme-tcp.check_ddgst:TRUE", "-T", "fields"]
    command += [argument for field in fields for argument in ("-e", field)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=JUDGE_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
