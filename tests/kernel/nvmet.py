"""The kernel's own NVMe/TCP target, set up in a guest through configfs."""

from __future__ import annotations

from .guest import NVMET_PORT, Guest

NAMESPACE_MIB = 64
BLOCK_SIZES = {1: 4096, 2: 512}
LAY_OUT = """
set -e
modprobe -a nvmet nvmet_tcp loop
cd /sys/kernel/config/nvmet
mkdir subsystems/{nqn} ports/1
echo 1 >subsystems/{nqn}/attr_allow_any_host
echo tcp >ports/1/addr_trtype
echo ipv4 >ports/1/addr_adrfam
echo 0.0.0.0 >ports/1/addr_traddr
echo {port} >ports/1/addr_trsvcid
"""
ADD_NAMESPACE = """
set -e
truncate -s {mib}M /data/nvmet-{nsid}
disk=$(losetup --find --show --sector-size {block_size} /data/nvmet-{nsid})
mkdir /sys/kernel/config/nvmet/subsystems/{nqn}/namespaces/{nsid}
cd /sys/kernel/config/nvmet/subsystems/{nqn}/namespaces/{nsid}
echo -n $disk >device_path
echo 1 >enable
"""
REMOVE = """
set -e
cd /sys/kernel/config/nvmet
rm ports/1/subsystems/{nqn}
rmdir ports/1 subsystems/{nqn}/namespaces/* subsystems/{nqn}
losetup --detach-all
rm /data/nvmet-*
"""


class Nvmet:
    """One subsystem with a namespace for each of BLOCK_SIZES, reached at 127.0.0.1:port."""

    nqn = "nqn.2026-01.test:nvmet"

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.port = guest.nvmet_port
        guest.ok(LAY_OUT.format(nqn=self.nqn, port=NVMET_PORT))
        for nsid, block_size in BLOCK_SIZES.items():
            guest.ok(ADD_NAMESPACE.format(nqn=self.nqn, nsid=nsid, block_size=block_size, mib=NAMESPACE_MIB))
        self.link()

    def url(self, nsid: int | None = None) -> str:
        namespace = "" if nsid is None else f"/{nsid}"
        return f"nvme+tcp://127.0.0.1:{self.port}/{self.nqn}{namespace}"

    def link(self) -> None:
        self._guest.ok(f"cd /sys/kernel/config/nvmet && ln -s $PWD/subsystems/{self.nqn} ports/1/subsystems/")

    def unlink(self) -> None:
        """Takes the subsystem off the port: the kernel closes every connection and refuses new ones."""
        self._guest.ok(f"rm /sys/kernel/config/nvmet/ports/1/subsystems/{self.nqn}")

    def remove(self) -> None:
        self._guest.ok(REMOVE.format(nqn=self.nqn))
