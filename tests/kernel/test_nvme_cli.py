"""Our nvme-like commands beside nvme-cli's, against the same target: the same JSON keys, the same values."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from .kernel_host import KernelHost
from .target import Target

pytestmark = pytest.mark.kernel

DIFFERENT_FOR_EACH_CONTROLLER = {"cntlid"}
NOT_OURS = {"vs", "loc", "nidl"}
"""Vendor specific text, and where a descriptor lies in its page."""


def ours(command: str, url: str) -> Any:
    result = subprocess.run(
        [sys.executable, "-m", "nvmeof", command, url, "-o", "json"], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


def compare(theirs: Any, found: Any) -> None:
    """Every key of nvme-cli is there with nvme-cli's value. Version 2.3 prints 128-bit numbers as strings."""
    if isinstance(theirs, dict):
        missing = theirs.keys() - found.keys() - NOT_OURS
        assert not missing
        for key in theirs.keys() & found.keys() - DIFFERENT_FOR_EACH_CONTROLLER:
            compare(theirs[key], found[key])
    elif isinstance(theirs, list):
        assert len(theirs) == len(found)
        for one, other in zip(theirs, found, strict=True):
            compare(one, other)
    else:
        assert str(theirs).strip() == str(found)


def test_the_same_keys_and_values(serve: Callable[..., Target], host: KernelHost) -> None:
    target = serve()
    controller = host.connect(target)
    disk = host.disk(target)
    subsystem = f"nvme+tcp://127.0.0.1:{target.port}/{target.nqn}"
    for command, device, url in (
        ("id-ctrl", controller, subsystem),
        ("id-ns", disk, f"{subsystem}/1"),
        ("ns-descs", disk, f"{subsystem}/1"),
        ("list-ns", controller, subsystem),
    ):
        compare(host.json(f"nvme {command} {device} -o json"), ours(command, url))


def test_the_same_keys_of_logs_that_count(serve: Callable[..., Target], host: KernelHost) -> None:
    target = serve()
    controller = host.connect(target)
    subsystem = f"nvme+tcp://127.0.0.1:{target.port}/{target.nqn}"
    assert not host.json(f"nvme smart-log {controller} -o json").keys() - ours("smart-log", subsystem).keys()
    theirs = host.json(f"nvme error-log {controller} -o json")["errors"][0]
    assert not theirs.keys() - ours("error-log", subsystem)["errors"][0].keys()


def test_the_same_discovery_log(serve: Callable[..., Target], host: KernelHost) -> None:
    target = serve()
    theirs = host.json(f"nvme discover {host.address(target)} -o json")
    compare(theirs, ours("discover", f"127.0.0.1:{target.port}"))
