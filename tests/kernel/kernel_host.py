"""The kernel's NVMe/TCP initiator in a guest, driven through nvme-cli as an administrator would."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from .guest import HOST_ADDRESS, Guest
from .target import Target

WARNING_LEVEL = 4
SLOW_MACHINE_NOISE = ("interrupt took", "clocksource", "RT throttling", "long keepalive RTT", "callbacks suppressed")
DISK_SCRIPT = """
for block in /sys/block/nvme*; do
    [ "$(cat $block/hidden)" = 0 ] && [ "$(cat $block/nsid)" = {nsid} ] && [ "$(cat $block/size)" != 0 ] &&
        [ "$(cat $block/device/subsysnqn)" = {nqn} ] && echo /dev/${{block##*/}} && exit 0
done
exit 1
"""


class KernelHost:
    """Connections of one test. Kernel warnings that the test did not say it tolerates are complaints."""

    hostnqn = "nqn.2014-08.org.nvmexpress:uuid:5f9cbdd6-62a2-4a1c-9b0e-6d3f0c2a7e11"

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._tolerated = list(SLOW_MACHINE_NOISE)
        guest.ok("dmesg -c >/dev/null")

    @staticmethod
    def address(target: Target) -> str:
        return f"-t tcp -a {HOST_ADDRESS} -s {target.port}"

    def connect(self, target: Target, options: str = "") -> str:
        """Connects and returns the controller's device, such as /dev/nvme0."""
        answer = self.json(f"nvme connect {self.address(target)} -n {target.nqn} {options} -o json")
        return f"/dev/{answer['device']}"

    def disconnect(self, target: Target) -> None:
        self.guest.ok(f"nvme disconnect -n {target.nqn}")

    def disk(self, target: Target, nsid: int = 1) -> str:
        """The block device of a namespace, such as /dev/nvme0n1, once the kernel has scanned it."""
        script = DISK_SCRIPT.format(nqn=target.nqn, nsid=nsid)
        self.wait_for(f"sh -c {shlex.quote(script)}")
        return self.guest.ok(script).strip()

    def wait_live(self, controller: str, timeout: int = 60) -> None:
        self.wait_for(f'[ "$(cat {self.sysfs(controller)}/state)" = live ]', timeout)

    @staticmethod
    def sysfs(controller: str) -> str:
        return controller.replace("/dev/", "/sys/class/nvme/")

    def wait_for(self, condition: str, timeout: int = 20) -> None:
        loop = f"until {condition} >/dev/null 2>&1; do usleep 50000; done"
        self.guest.ok(f"timeout {timeout} sh -c {shlex.quote(loop)}", timeout + 30)

    def json(self, command: str) -> Any:
        return json.loads(self.guest.ok(command))

    def raw(self, command: str) -> bytes:
        """What a command that must succeed wrote to its standard output."""
        result = self.guest.run(f"{command} 2>/run/stderr || {{ rc=$?; cat /run/stderr; exit $rc; }}")
        assert result.rc == 0, f"{command}: {result.text}"
        return result.output

    def status(self, command: str) -> int:
        """The NVMe status (type and code) with which a command failed; 0 when it did not."""
        result = self.guest.run(command)
        found = re.search(r"\((0x[0-9a-f]+)\)\s*$", result.text)
        assert found or result.rc == 0, f"{command}: {result.text}"
        return int(found[1], 16) & 0x7FF if found else 0

    def tolerate(self, *patterns: str) -> None:
        self._tolerated += patterns

    def disconnect_all(self) -> None:
        self.guest.ok("umount /mnt 2>/dev/null; nvme disconnect-all")
        self.wait_for('[ -z "$(ls /sys/class/nvme)" ]')

    def complaints(self) -> list[str]:
        """Kernel messages of this test at warning level or worse."""
        lines = re.findall(r"^<(\d+)>\[ *[\d.]+\] (.*)$", self.guest.ok("dmesg -r"), re.MULTILINE)
        severe = [text for level, text in lines if int(level) % 8 <= WARNING_LEVEL]
        return [text for text in severe if not any(re.search(pattern, text) for pattern in self._tolerated)]
