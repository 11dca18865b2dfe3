"""Linux finds, connects and disconnects our target in every way it can ask for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .guest import HOST_ADDRESS
from .kernel_host import KernelHost
from .target import Target

pytestmark = pytest.mark.kernel

Serve = Callable[..., Target]
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
DIGESTS = {"none": "", "header": "--hdr-digest", "data": "--data-digest", "both": "--hdr-digest --data-digest"}
QUEUES = {"one": ("--nr-io-queues=1", 1), "several": ("--nr-io-queues=2 --nr-write-queues=2", 4)}


def test_discovery_names_the_subsystem_at_its_advertised_address(serve: Serve, host: KernelHost) -> None:
    target = serve()
    records = host.json(f"nvme discover {host.address(target)} -o json")["records"]
    found = [record for record in records if record["subnqn"] == target.nqn]
    assert [(r["trtype"], r["adrfam"], r["traddr"], r["trsvcid"], r["subtype"]) for r in found] == [
        ("tcp", "ipv4", HOST_ADDRESS, str(target.port), "nvme subsystem")
    ]


def test_connect_all_follows_the_discovery_log(serve: Serve, host: KernelHost) -> None:
    target = serve()
    host.guest.ok(f"nvme connect-all {host.address(target)}")
    assert host.guest.run(f"blockdev --getsize64 {host.disk(target)}").text.strip() == str(256 << 20)


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("queues", QUEUES)
@pytest.mark.parametrize("digests", DIGESTS)
def test_data_survives(serve: Serve, host: KernelHost, digests: str, queues: str, block_size: int) -> None:
    option, io_queues = QUEUES[queues]
    target = serve(block_size=block_size)
    controller = host.connect(target, f"{DIGESTS[digests]} {option}")
    disk = host.disk(target)
    assert host.guest.ok(f"cat {host.sysfs(controller)}/queue_count").strip() == str(io_queues + 1)
    assert host.guest.ok(f"cat /sys/block/{disk[5:]}/queue/logical_block_size").strip() == str(block_size)
    host.guest.ok(
        f"fio --name=data --filename={disk} --rw=randwrite --bsrange={block_size}-256k --size=2m --numjobs=2"
        " --offset_increment=64m --verify=crc32c --verify_fatal=1 --ioengine=libaio --iodepth=8 --direct=1"
    )
    host.disconnect(target)


def test_an_unknown_subsystem_is_refused(serve: Serve, host: KernelHost) -> None:
    host.tolerate("Connect .*", "failed to connect")
    target = serve()
    refused = host.guest.run(f"nvme connect {host.address(target)} -n nqn.2026-01.test:nobody")
    assert refused.rc != 0
    assert "0x4182" in host.guest.ok("dmesg") or "Connect Invalid Data Parameter" in host.guest.ok("dmesg")


def test_only_an_allowed_host_connects(serve: Serve, host: KernelHost) -> None:
    host.tolerate("Connect .*", "failed to connect")
    target = serve("--allow-host", host.hostnqn)
    stranger = f"nvme connect {host.address(target)} -n {target.nqn} --hostnqn=nqn.2026-01.test:stranger"
    assert host.guest.run(stranger).rc != 0
    assert "Connect for subsystem" in host.guest.ok("dmesg")
    host.connect(target)
    assert host.disk(target)


def test_two_controllers_of_one_host_share_the_namespace(serve: Serve, host: KernelHost) -> None:
    target = serve()
    host.connect(target)
    disk = host.disk(target)
    host.guest.ok(
        f"echo transport=tcp,traddr={HOST_ADDRESS},trsvcid={target.port},nqn={target.nqn},duplicate_connect"
        " >/dev/nvme-fabrics"
    )
    host.wait_for("[ $(ls -d /sys/class/nvme/nvme* | wc -l) = 2 ]")
    host.guest.ok(f"head -c 1048576 /dev/urandom >/run/random && dd if=/run/random of={disk} bs=64k oflag=direct")
    host.guest.ok("echo 1 >/sys/class/nvme/nvme0/delete_controller")
    host.guest.ok(f"dd if={disk} bs=64k iflag=direct count=16 | cmp - /run/random")


def test_an_idle_connection_stays_up(serve: Serve, host: KernelHost) -> None:
    target = serve()
    controller = host.connect(target, "--keep-alive-tmo=4")
    time.sleep(9)
    assert host.guest.ok(f"cat {host.sysfs(controller)}/state").strip() == "live"


def test_a_host_that_falls_silent_is_dropped_and_may_come_back(serve: Serve, host: KernelHost) -> None:
    host.tolerate(".*")
    target = serve()
    controller = host.connect(target, "--keep-alive-tmo=2 --reconnect-delay=1")
    disk = host.disk(target)
    assert established(target.port)
    with host.guest.frozen():
        deadline = time.monotonic() + 30
        while established(target.port):
            assert time.monotonic() < deadline, "the target kept the connections of a silent host"
            time.sleep(0.2)
    host.guest.ok(f"dd if={disk} of=/dev/null bs=64k count=16 iflag=direct")
    host.wait_live(controller)


def established(port: int) -> int:
    """How many connections the server at a loopback port holds open."""
    local, state_established = f"0100007F:{port:04X}", "01"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == local and row[3] == state_established for row in rows)
