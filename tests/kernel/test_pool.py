"""A pool under a real kernel: what was promised is there after every kill, and with two members lost.

What may a host expect of a target that was killed? With a volatile write cache, and the kernel sees one here always:
that which it flushed, or wrote with FUA. A target that dies loses what it had answered but not yet put on media, as a
disk that loses power does. But a host whose disk loses power dies with it, or sees the disk go away. Linux reconnects,
sends the commands again that were not answered, and goes on: it does not ask whether the target is the one that took
the earlier ones (log page C0h says so, the incarnation). A flush after the reconnect then succeeds and says nothing of
writes before it. So an fsync that spans a kill promises nothing, and a file system that stays mounted over one can be
damaged: a block of its journal, or one it wrote in place, was answered and is gone, and it goes on as if it were there.
That is a limit of the protocol's hosts, not what these tests are about. They stay on sound ground in four ways:

- A namespace whose write cache is off has no such limit: what was answered is on media, and what was not is sent again.
  There a file system stays mounted over all kills, and everything in it must be right in the end.
- So it is with a write that has FUA, wherever it is: the raw disk with its cache on is written with O_DSYNC only.
- A flush counts if the incarnation is the same before the writes and after the flush, as the log page's text says.
- With the cache on and a file system, the host must see the disk go away: after the kill it is disconnected before the
  target comes back, so everything unanswered fails. An fsync that said yes then had all its commands answered by one
  incarnation. What it promised must be there after the journal's replay.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .kernel_host import KernelHost
from .pool import Pool
from .target import Target

pytestmark = pytest.mark.kernel

Serve = Callable[..., Target]
CONNECT = "--nr-io-queues=2 --data-digest --reconnect-delay=1 --ctrl-loss-tmo=600"
PATIENCE_S = 300
UNRECOVERED_READ_ERROR = 0x281
MEBIBYTE = 1 << 20

KILLS = 20
LOST_WHILE_SERVED, LOST_WHILE_DEAD, REPLACED, REBUILT = 3, 7, 10, 16
"""After how many kills each happens to members 1, 4, 1 and 1."""
CUTS = 5

# randrw: of a workload that only writes, fio 3.33 does not compare the seed in a block's header with the wanted one,
# and takes what an earlier pass wrote for its own. No --rate: with it the order of the blocks would not come again.
FIO = (
    "fio --minimal --verify=crc32c --verify_fatal=1 --verify_state_save=0 --rw=randrw --rwmixread=20 --bsrange=4k-256k"
)
DIRECT = f"{FIO} --name=direct --filename=/mnt/direct --size=16m --direct=1 --ioengine=libaio --iodepth=8"
CACHED = f"{FIO} --name=cached --filename=/mnt/cached --size=8m --ioengine=psync --fdatasync=4 --end_fsync=1"
FORCED = f"{FIO} --name=forced --size=12m --direct=1 --sync=1 --ioengine=libaio --iodepth=8"
PASSES = """
trap '' PIPE
pass=0
while [ ! -e /run/stop ]; do
    pass=$((pass + 1))
    {fio} --randseed=$pass --thinktime=20000 --do_verify=0 && {fio} --randseed=$pass --verify_only ||
        {{ touch /run/stop; exit 1; }}
done
echo LAST $pass
"""
RECORDS = """
trap '' PIPE
mkdir -p /mnt/records
number=$(wc -l </run/sums)
while [ ! -e /run/stop ]; do
    number=$((number + 1))
    head -c $((1 + number * 7919 % 65536)) /dev/urandom >/run/record
    dd if=/run/record of=/mnt/records/$number bs=64k conv=fsync || { touch /run/stop; exit 1; }
    sha256sum </run/record | sed "s|-|/mnt/records/$number|" >>/run/sums
    usleep 20000
done
"""
"""Files, named in /run/sums once fsync has said that they are on media. (nvme-tcp sends without MSG_NOSIGNAL: who
submits while the connection breaks gets a SIGPIPE.)"""
FLUSHED = """
trap '' PIPE
slot=256
incarnation='nvme get-log {controller} --log-id=0xc0 --log-len=512 --raw-binary'
while [ ! -e /run/stop ]; do
    slot=$((slot + 1))
    head -c 65536 /dev/urandom >/run/flushed
    $incarnation >/run/before 2>/dev/null || continue
    dd if=/run/flushed of={disk} bs=64k seek=$slot oflag=direct || {{ touch /run/stop; exit 1; }}
    nvme flush {disk} 2>/dev/null && $incarnation >/run/after 2>/dev/null && cmp /run/before /run/after &&
        echo $slot $(sha256sum </run/flushed) >>/run/slots
done
"""
"""Blocks of 64 KiB behind those of FORCED, named in /run/slots if a flush is known to have covered them. While there is
no connection the kernel keeps reads and writes waiting, but refuses what nvme-cli sends."""
CHECK_SLOTS = """
while read slot sum _; do
    dd if={disk} bs=64k skip=$slot count=1 iflag=direct | sha256sum | grep -q $sum || {{ echo $slot; exit 1; }}
done </run/slots
wc -l </run/slots
"""
VOLATILE = """
trap '' PIPE
while dd if=/dev/urandom of=/mnt/volatile bs=64k count=64 conv=notrunc oflag=direct; do :; done
exit 1
"""
"""Writes that nobody flushes: in the target's memory when it dies."""


class Load:
    """Jobs in the guest, until told to stop."""

    def __init__(self, host: KernelHost) -> None:
        self._guest = host.guest
        self._jobs: list[int] = []
        self._checked = 0
        self._guest.ok("rm -f /run/stop /run/slots && : >/run/sums")

    def start(self, script: str) -> None:
        self._jobs.append(self._guest.start(script))

    def records(self) -> int:
        """How many are on media by now, if all went well so far."""
        if self._jobs and not self._guest.run("[ -e /run/stop ]").rc:
            self.stop()
        return int(self._guest.ok("wc -l </run/sums"))

    def check(self, upto: int | None = None) -> None:
        """The records up to one, from the one after those checked before; all of them without ``upto``."""
        first, last = (1, self.records()) if upto is None else (self._checked + 1, upto)
        if last >= first:
            self._guest.ok(
                "echo 3 >/proc/sys/vm/drop_caches;"
                f" sed -n {first},{last}p /run/sums >/run/some && sha256sum -c /run/some >/run/checked 2>&1"
                " || { grep -v OK /run/checked; exit 1; }",
                PATIENCE_S,
            )
        self._checked = max(self._checked, last)

    def stop(self) -> list[str]:
        """What the jobs printed, once they have ended well."""
        self._guest.ok("touch /run/stop")
        return self._ended(0)

    def cut_off(self) -> None:
        """Wait until every job has met an error, as it must when its disk has gone."""
        self._ended(1)
        self._guest.ok("rm -f /run/stop")

    def _ended(self, rc: int) -> list[str]:
        results = [self._guest.wait(job, PATIENCE_S) for job in self._jobs]
        self._jobs.clear()
        for result in results:
            assert result.rc == rc, result.text
        return [result.text for result in results]


def test_twenty_kills_and_two_lost_members_under_a_mounted_file_system(
    serve: Serve, host: KernelHost, tmp_path: Path
) -> None:
    host.tolerate(".*")
    pool = Pool(tmp_path, "384M")
    pool.ask("create-namespace", "--size", "160M", "--write-cache", "off")
    pool.ask("create-namespace", "--size", "64M")
    target = serve(pool=pool)
    controller = host.connect(target, CONNECT)
    disk, raw = host.disk(target), host.disk(target, nsid=2)
    host.guest.ok(f"mkfs.ext4 -q {disk} && mount {disk} /mnt")
    load = Load(host)
    forced = f"{FORCED} --filename={raw}"
    for fio in (DIRECT, CACHED, forced):
        load.start(PASSES.format(fio=fio))
    load.start(RECORDS)
    load.start(FLUSHED.format(controller=controller, disk=raw))

    moments = random.Random(20)
    for kill in range(1, KILLS + 1):
        time.sleep(moments.uniform(0.3, 1.5))
        promised = load.records()
        target.kill()
        if kill == LOST_WHILE_DEAD:
            pool.lose(4)
        target.start()
        host.wait_live(controller, PATIENCE_S)
        opened = pool.ask("status", code=int(kill > LOST_WHILE_SERVED))["opened"]
        assert not opened["clean"]
        assert opened["lost_map_pages"] == 0
        load.check(promised)
        if kill == LOST_WHILE_SERVED:
            pool.lose(1)
        elif kill == REPLACED:
            pool.ask("replace", "1", "--rate", "4M")
        elif kill == REBUILT:
            assert pool.ask("rebuild")["state"] == "degraded"
            assert states(pool, 1) == {0: "healthy", 1: "healthy", 2: "healthy", 3: "healthy", 4: "out", 5: "healthy"}

    printed = load.stop()
    host.guest.ok(f"umount /mnt && fsck.ext4 -fn {disk} && mount {disk} /mnt")
    load.check()
    for fio, text in zip((DIRECT, CACHED, forced), printed, strict=False):
        host.guest.ok(f"{fio} --randseed={text.split()[-1]} --verify_only", PATIENCE_S)
    assert int(host.guest.ok(f"{{ {CHECK_SLOTS.format(disk=raw)} }} 2>/dev/null", PATIENCE_S)) > KILLS
    assert "EXT4-fs error" not in host.guest.ok("dmesg")

    pool.ask("replace", "4", "--wait")
    report = pool.ask("scrub")
    assert report["good"]
    assert report["lost"] == 0
    status = pool.ask("status")
    assert status["media_errors"] == 0
    assert set(states(pool, 0).values()) == {"healthy"}


def states(pool: Pool, code: int) -> dict[int, str]:
    return {member["role"]: member["state"] for member in pool.ask("status", code=code)["members"]}


def test_what_fsync_promised_survives_the_loss_of_the_cache(serve: Serve, host: KernelHost, tmp_path: Path) -> None:
    host.tolerate(".*")
    pool = Pool(tmp_path, "128M")
    pool.ask("create-namespace", "--size", "96M")
    target = serve(pool=pool)
    host.connect(target, CONNECT)
    host.guest.ok(f"mkfs.ext4 -q {host.disk(target)} && mount {host.disk(target)} /mnt")
    load = Load(host)
    moments = random.Random(5)
    for _ in range(CUTS):
        load.start(RECORDS)
        load.start(VOLATILE)
        time.sleep(moments.uniform(2, 3))
        target.kill()
        host.disconnect(target)
        load.cut_off()
        host.guest.ok("umount /mnt")
        target.start()
        host.connect(target, CONNECT)
        host.guest.ok(f"mount {host.disk(target)} /mnt")
        load.check()
    assert load.records() > CUTS
    host.guest.ok(f"umount /mnt && fsck.ext4 -fn {host.disk(target)}")
    assert pool.ask("scrub")["good"]


def test_a_file_system_without_a_write_cache(serve: Serve, host: KernelHost, tmp_path: Path) -> None:
    host.tolerate(".*")
    pool = Pool(tmp_path, "128M")
    pool.ask("create-namespace", "--size", "96M", "--write-cache", "off")
    target = serve(pool=pool)
    controller = host.connect(target, CONNECT)
    disk = host.disk(target)
    host.guest.ok(f"mkfs.ext4 -q {disk} && mount {disk} /mnt && cp -r /bin /mnt/ && mkdir /mnt/doomed", PATIENCE_S)
    host.guest.ok(f"head -c {24 * MEBIBYTE} /dev/urandom >/mnt/doomed/random", PATIENCE_S)
    host.guest.ok("cd /mnt && find . -type f -print0 | xargs -0 sha256sum >/run/sums && sync", PATIENCE_S)
    full, before = allocated(pool), incarnation(host, controller)
    target.kill()
    target.start()
    host.wait_live(controller, PATIENCE_S)
    assert incarnation(host, controller) != before
    host.guest.ok(f"umount /mnt && fsck.ext4 -fn {disk} && mount {disk} /mnt")
    assert host.guest.ok("cd /mnt && sha256sum -c /run/sums | grep -c OK") == host.guest.ok("wc -l </run/sums")
    host.guest.ok("rm -r /mnt/doomed && sync && fstrim /mnt && umount /mnt")
    assert allocated(pool) < full - 20 * MEBIBYTE


def test_a_full_pool_has_room_again_after_a_discard(serve: Serve, host: KernelHost, tmp_path: Path) -> None:
    """Thin namespaces promise more than there is; Linux calls Capacity Exceeded "no space left"."""
    host.tolerate(".*")
    pool = Pool(tmp_path, "32M")
    for _ in range(2):
        pool.ask("create-namespace", "--size", "32M")
    target = serve(pool=pool)
    host.connect(target, CONNECT)
    one, other = host.disk(target), host.disk(target, nsid=2)
    host.guest.ok(f"head -c {24 * MEBIBYTE} /dev/urandom >/run/random")
    fill = "dd if=/run/random bs=1M oflag=direct conv=fsync"
    host.guest.ok(f"{fill} of={one}", PATIENCE_S)
    refused = host.guest.run(f"{fill} of={other}", PATIENCE_S)
    assert refused.rc == 1
    assert "No space left on device" in refused.text
    host.guest.ok(f"cmp -n {24 * MEBIBYTE} {one} /run/random")
    host.guest.ok(f"blkdiscard {one}")
    assert allocated(pool) == 0
    host.guest.ok(f"{fill} of={other} && cmp -n {24 * MEBIBYTE} {other} /run/random", PATIENCE_S)
    host.guest.ok("rm /run/random")
    assert pool.ask("scrub")["good"]


def test_verify_and_write_uncorrectable(serve: Serve, host: KernelHost, tmp_path: Path) -> None:
    host.tolerate(".*")
    pool = Pool(tmp_path, "64M")
    target = serve(pool=pool)
    host.connect(target)
    disk = host.disk(target)
    host.guest.ok(f"head -c {8 * MEBIBYTE} /dev/urandom >/run/random")
    host.guest.ok(f"dd if=/run/random of={disk} bs=256k oflag=direct conv=fsync")

    host.guest.ok(f"nvme write-uncor {disk} -s 4 -c 3")
    assert host.status(f"nvme verify {disk} -s 0 -c 15") == UNRECOVERED_READ_ERROR
    for block, wanted in ((3, 0), (4, UNRECOVERED_READ_ERROR), (7, UNRECOVERED_READ_ERROR), (8, 0)):
        assert host.status(f"nvme read {disk} -s {block} -c 0 -z 4096 -d /run/block") == wanted
    host.guest.ok(
        f"dd if=/run/random of={disk} bs=4k seek=4 skip=4 count=4 oflag=direct && nvme verify {disk} -s 0 -c 15"
    )

    pool.damage(2)
    verify = f"for mebibyte in 0 1 2 3 4 5 6 7; do nvme verify {disk} -s $((mebibyte * 256)) -c 255 || exit 1; done"
    host.guest.ok(verify)
    status = pool.ask("status")
    assert {member["role"] for member in status["members"] if member["errors"]} == {2}
    assert status["media_errors"] > 0
    assert all(error["healed"] for error in status["errors"])
    host.guest.ok(f"cmp -n {8 * MEBIBYTE} {disk} /run/random")
    report = pool.ask("scrub", code=1)
    assert report["lost"] == 0
    assert report["healed"] == sum(report["bad"].values())
    assert pool.ask("scrub")["good"]


def allocated(pool: Pool) -> int:
    size: int = pool.ask("status")["namespaces"][0]["allocated"]
    return size


def incarnation(host: KernelHost, controller: str) -> bytes:
    return host.raw(f"nvme get-log {controller} --log-id=0xc0 --log-len=512 --raw-binary")[64:80]
