"""An ext4 file system on our namespace survives what administrators do with one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .kernel_host import KernelHost
from .target import Target

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("block_size", [512, 4096])
def test_files_survive_a_reconnect(serve: Callable[..., Target], host: KernelHost, block_size: int) -> None:
    target = serve(block_size=block_size)
    host.connect(target, "--hdr-digest --data-digest")
    disk = host.disk(target)
    host.guest.ok(f"mkfs.ext4 -q {disk} && mount {disk} /mnt")
    host.guest.ok("cp -r /bin /lib/modules /mnt/ && head -c 16777216 /dev/urandom >/mnt/random && mkdir /mnt/doomed")
    host.guest.ok("cp /bin/fio /bin/nvme /mnt/doomed && sync && rm -r /mnt/doomed && fstrim /mnt")
    host.guest.ok("cd /mnt && find . -type f -print0 | xargs -0 sha256sum >/run/sums && sync")
    host.guest.ok("umount /mnt")
    host.disconnect(target)

    host.connect(target)
    disk = host.disk(target)
    host.guest.ok(f"fsck.ext4 -fn {disk} && mount -o ro {disk} /mnt")
    assert host.guest.ok("cd /mnt && sha256sum -c /run/sums | grep -c OK") == host.guest.ok("wc -l </run/sums")
    host.guest.ok("umount /mnt")
