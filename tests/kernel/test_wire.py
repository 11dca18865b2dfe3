"""Wireshark, a neutral judge, reads what Linux and our target say to each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .capture import captured, complaints, digests_checked, pdu_types
from .kernel_host import KernelHost
from .kernels import find_tool
from .target import Target

pytestmark = pytest.mark.kernel

ICREQ, ICRESP, COMMAND, RESPONSE, H2C_DATA, C2H_DATA, R2T = 0, 1, 4, 5, 6, 7, 9
PATTERN = b"a pattern to look for in the capture\n"


def record_session(host: KernelHost, target: Target, options: str, file: Path) -> None:
    with captured(target.port, file):
        host.guest.ok(f"nvme discover {host.address(target)}")
        controller = host.connect(target, options)
        disk = host.disk(target)
        host.guest.ok(f"nvme id-ctrl {controller} && nvme smart-log {controller} && nvme error-log {controller}")
        host.guest.ok(f"yes '{PATTERN.decode().strip()}' | dd of={disk} bs=64k count=4 iflag=fullblock oflag=direct")
        host.guest.ok(
            f"fio --name=data --filename={disk} --rw=randwrite --bsrange=4k-256k --size=2m --verify=crc32c"
            " --verify_fatal=1 --ioengine=libaio --iodepth=8 --direct=1"
        )
        host.guest.ok(f"blkdiscard -l 1048576 {disk} && blkdiscard -z -l 1048576 {disk} && nvme flush {disk}")
        host.status(f"nvme read {disk} -s 0xffffffffff -c 0 -z 4096 -d /dev/null")
        host.guest.ok(f"nvme reset {controller}")
        host.disconnect(target)


@pytest.mark.parametrize("options", ["", "--hdr-digest --data-digest"], ids=["plain", "digests"])
def test_nothing_malformed(serve: Callable[..., Target], host: KernelHost, tmp_path: Path, options: str) -> None:
    host.tolerate("resetting controller")
    find_tool("tshark")
    target = serve()
    capture = tmp_path / "session.pcapng"
    record_session(host, target, options, capture)

    seen = pdu_types(capture, target.port)
    assert set(seen) == {ICREQ, ICRESP, COMMAND, RESPONSE, H2C_DATA, C2H_DATA, R2T}
    assert complaints(capture, target.port) == ""
    if options:
        checked = digests_checked(capture, target.port)
        assert checked["hdgst"]["1"] > 300
        assert checked["ddgst"]["1"] > 100
        tampered = tmp_path / "tampered.pcapng"
        tampered.write_bytes(capture.read_bytes().replace(PATTERN, PATTERN.swapcase(), 1))
        assert digests_checked(tampered, target.port)["ddgst"]["0"] == 1
        assert complaints(tampered, target.port)
