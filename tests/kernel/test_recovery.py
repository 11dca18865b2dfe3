"""I/O under faults: the kernel resets, loses and finds the target again, and every byte is still right."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from .kernel_host import KernelHost
from .target import Target

pytestmark = pytest.mark.kernel

Serve = Callable[..., Target]
CONNECT = "--nr-io-queues=2 --data-digest --reconnect-delay=1 --ctrl-loss-tmo=60"


@contextlib.contextmanager
def verified_load(host: KernelHost, disk: str) -> Iterator[None]:
    """Writes for about six seconds, or for as long as faults hold them up, and then checks what was written."""
    fio = (
        f"fio --name=load --filename={disk} --rw=randwrite --bsrange=4k-256k --size=24m --verify=crc32c"
        " --ioengine=libaio --iodepth=16 --direct=1"
    )
    # The kernel's nvme-tcp sends without MSG_NOSIGNAL: who submits I/O while the connection breaks gets a SIGPIPE.
    job = host.guest.start(f"trap '' PIPE; {fio} --rate=4m --do_verify=0")
    time.sleep(1.5)
    yield
    written = host.guest.wait(job, timeout=120)
    assert written.rc == 0, written.text
    host.guest.ok(f"{fio} --verify_only --verify_fatal=1", timeout=120)


def test_controller_resets_under_load(serve: Serve, host: KernelHost) -> None:
    host.tolerate("resetting controller", "no usable path - requeuing", "failed to send request")
    target = serve()
    controller = host.connect(target, CONNECT)
    with verified_load(host, host.disk(target)):
        for _ in range(4):
            host.guest.ok(f"nvme reset {controller}")
            time.sleep(1)
    host.wait_live(controller)


def test_a_target_killed_under_load_is_found_again(serve: Serve, host: KernelHost) -> None:
    host.tolerate(".*")
    target = serve()
    controller = host.connect(target, CONNECT)
    disk = host.disk(target)
    with verified_load(host, disk):
        for _ in range(2):
            target.kill()
            time.sleep(1)
            target.start()
            host.wait_live(controller)
            time.sleep(1)
    assert host.disk(target) == disk


def test_a_target_that_hangs_under_load_is_found_again(serve: Serve, host: KernelHost) -> None:
    host.tolerate(".*")
    target = serve()
    controller = host.connect(target, f"{CONNECT} --keep-alive-tmo=2")
    with verified_load(host, host.disk(target)):
        with target.frozen():
            host.wait_for(f'[ "$(cat {host.sysfs(controller)}/state)" = connecting ]', 60)
        host.wait_live(controller)


def test_identity_survives_a_restart(serve: Serve, host: KernelHost) -> None:
    host.tolerate("starting error recovery", "failed to connect socket", "failed nvme_keep_alive", "queue_size")
    target = serve()
    controller = host.connect(target, CONNECT)
    disk = host.disk(target)
    identifiers = f"nvme ns-descs {disk} -o json && nvme id-ns {disk} -o json && cat /sys/block/{disk[5:]}/wwid"
    before = host.guest.ok(identifiers)
    target.stop()
    host.wait_for(f'[ "$(cat {host.sysfs(controller)}/state)" != live ]')
    target.start()
    host.wait_live(controller)
    assert host.guest.ok(identifiers) == before
