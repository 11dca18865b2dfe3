"""Reads, writes, discards and zeroes from Linux, and what it is told when it asks for too much."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .kernel_host import KernelHost
from .target import Target

pytestmark = pytest.mark.kernel

Serve = Callable[..., Target]
INVALID_OPCODE = 0x001
INVALID_FIELD = 0x002
LBA_OUT_OF_RANGE = 0x080


def test_mixed_sizes_verify(serve: Serve, host: KernelHost) -> None:
    target = serve()
    host.connect(target, "--nr-io-queues=2 --data-digest")
    host.guest.ok(
        f"fio --name=mixed --filename={host.disk(target)} --rw=randrw --bsrange=4k-256k --size=24m --numjobs=2"
        " --offset_increment=64m --verify=crc32c --verify_fatal=1 --verify_backlog=64 --ioengine=libaio --iodepth=16"
        " --direct=1",
        timeout=180,
    )


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("command", ["blkdiscard", "blkdiscard -z"])
def test_a_cleared_range_reads_as_zeroes(serve: Serve, host: KernelHost, command: str, block_size: int) -> None:
    target = serve(block_size=block_size)
    host.connect(target)
    disk = host.disk(target)
    host.guest.ok(f"head -c 4194304 /dev/urandom >/run/expected && dd if=/run/expected of={disk} bs=64k oflag=direct")
    for offset, length in ((3 * block_size, 5 * block_size), (1 << 20, 1 << 20), (3 << 20, block_size)):
        host.guest.ok(f"{command} -o {offset} -l {length} {disk}")
        host.guest.ok(
            f"dd if=/dev/zero of=/run/expected bs={block_size} seek={offset // block_size}"
            f" count={length // block_size} conv=notrunc"
        )
    host.guest.ok(f"dd if={disk} bs=64k iflag=direct count=64 | cmp - /run/expected")


def test_zeroing_more_than_one_command_can_name(serve: Serve, host: KernelHost) -> None:
    """Linux 6.x cuts NLB to 16 bits when WZSL promises more than 65,536 blocks of 512 bytes."""
    target = serve(block_size=512)
    host.connect(target)
    disk = host.disk(target)
    for mebibyte in (0, 31, 33, 60, 99):
        host.guest.ok(f"echo mark | dd of={disk} bs=1M seek={mebibyte} conv=sync oflag=direct")
    host.guest.ok(f"blkdiscard -z -o 0 -l {100 << 20} {disk}")
    host.guest.ok(f"dd if={disk} bs=1M iflag=direct count=100 | cmp -n {100 << 20} - /dev/zero", timeout=120)


def test_writes_through_the_cache_and_flush(serve: Serve, host: KernelHost) -> None:
    target = serve()
    host.connect(target)
    disk = host.disk(target)
    assert host.guest.ok(f"cat /sys/block/{disk[5:]}/queue/write_cache").strip() == "write back"
    host.guest.ok("head -c 4096 /dev/urandom >/run/block")
    host.guest.ok(f"nvme write {disk} -s 5 -c 0 -z 4096 -d /run/block --force-unit-access && nvme flush {disk}")
    host.guest.ok(f"nvme read {disk} -s 5 -c 0 -z 4096 -d /run/back --force-unit-access --limited-retry")
    host.guest.ok("cmp /run/block /run/back")


def test_requests_beyond_the_end_are_refused(serve: Serve, host: KernelHost) -> None:
    target = serve()
    host.connect(target)
    disk = host.disk(target)
    blocks = int(host.json(f"nvme id-ns {disk} -o json")["nsze"])
    host.guest.ok("head -c 8192 /dev/urandom >/run/blocks")
    for first, count in ((blocks, 1), (blocks - 1, 2), ((1 << 64) - 1, 2)):
        span = f"{disk} -s {first} -c {count - 1} -z {count * 4096} -d /run/blocks"
        assert host.status(f"nvme write {span}") == LBA_OUT_OF_RANGE
        assert host.status(f"nvme read {span}") == LBA_OUT_OF_RANGE
        assert host.status(f"nvme write-zeroes {disk} -s {first} -c {count - 1}") == LBA_OUT_OF_RANGE
    assert host.status(f"nvme read {disk} -s {blocks - 1} -c 0 -z 4096 -d /run/blocks") == 0


def test_an_unknown_command_is_refused(serve: Serve, host: KernelHost) -> None:
    target = serve()
    controller = host.connect(target)
    assert host.status(f"nvme io-passthru {host.disk(target)} --opcode=0x7e --namespace-id=1") == INVALID_OPCODE
    assert host.status(f"nvme admin-passthru {controller} --opcode=0xbe") == INVALID_OPCODE


def test_verify_and_what_a_file_cannot(serve: Serve, host: KernelHost) -> None:
    """The kernel passes them through; a refused Write Uncorrectable leaves the disk as it was."""
    target = serve()
    controller = host.connect(target)
    disk = host.disk(target)
    blocks = int(host.json(f"nvme id-ns {disk} -o json")["nsze"])
    host.guest.ok(f"nvme verify {disk} -s 0 -c 7")
    host.guest.ok(f"nvme verify {disk} -s {blocks - 1} -c 0 --force-unit-access")
    assert host.status(f"nvme verify {disk} -s {blocks} -c 0") == LBA_OUT_OF_RANGE
    assert host.status(f"nvme verify {disk} -s 0 -c 65535") == INVALID_FIELD, "more than VSL in blocks of 4096"
    assert host.status(f"nvme write-uncor {disk} -s 0 -c 0") == INVALID_FIELD
    host.guest.ok(f"dd if={disk} of=/dev/null bs=64k count=16 iflag=direct")
    page = host.raw(f"nvme get-log {controller} --log-id=0xc0 --log-len=512 --raw-binary")
    assert page[:16] == b"nvmeof incarnate"
    assert page[80:84] == b"\1\0\0\0"
