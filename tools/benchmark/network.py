"""A network of our own, so that every peer has the same congestion control and nobody else's traffic.

Not every server and client can be told TCP_CONGESTION, so the benchmark runs itself in a private network namespace
whose loopback route names the algorithm; that holds for both ends of each connection. Where no namespace can be had,
all of them take the system's default, which is just as alike.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

MARK = "NVMEOF_BENCH_NETWORK"


def enter() -> None:
    """Run this program again in a private network namespace; returns there, or here if none can be had."""
    if os.environ.get(MARK) is not None:
        return
    missing = [tool for tool in ("unshare", "ip") if shutil.which(tool) is None]
    os.environ[MARK] = f"{' and '.join(missing)} not installed" if missing else "no permission for a namespace"
    if missing:
        return
    for options in (["--net"], ["--user", "--map-root-user", "--net"]):
        prefix = ["unshare", *options, "--"]
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            os.environ[MARK] = ""
            os.execvp("unshare", [*prefix, sys.executable, *sys.orig_argv[1:]])


def prepare(congestion: str) -> str:
    """Set the loopback up. Returns a line for the report."""
    reason = os.environ.get(MARK, "not asked for")
    if not reason:
        commands = ["link set lo up"]
        commands += [
            f"route replace local {prefix} dev lo table local congctl {congestion}"
            for prefix in ("127.0.0.1", "127.0.0.0/8")
        ]
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
            if done.returncode:
                reason = f"ip {command}: {done.stderr.strip()}"
                break
    found = " and ".join(sorted(set(measured())))
    where = "in a private network namespace" if not reason else f"the system's default, for all: {reason}"
    return f"{found} on both sides of every connection ({where})"


def measured() -> tuple[str, str]:
    """The algorithm that a connecting and an accepted socket have."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0] as far,
    ):
        return _algorithm(near), _algorithm(far)


def _algorithm(sock: socket.socket) -> str:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode()
