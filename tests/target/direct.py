"""A controller without a socket, for what depends on the controller alone."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from nvmeof.engine.file_volume import FileVolume
from nvmeof.target.command import Command, CommandError, Reply
from nvmeof.target.controller import Controller
from nvmeof.target.identify import identify
from nvmeof.target.logs import get_log_page
from nvmeof.target.subsystem import Subsystem
from nvmeof.testing.fault_volume import FaultVolume
from nvmeof.testing.virtual_disk import VirtualDisk
from tests.target.rawhost import HOST_ID, HOST_NQN

NQN = "nqn.2026-11.org.example:direct"
SIZES = {1: (1 << 20, 512), 2: (4 << 20, 4096), 7: (1 << 20, 4096)}
"""Bytes and block size by NSID."""
UUIDS = {nsid: UUID(int=0x1234_5678 << 96 | nsid) for nsid in SIZES}


def command(opcode: int = 0, *, nsid: int = 0, **dwords: int) -> Command:
    fields: dict[str, int] = dict.fromkeys(Command._fields, 0)
    return Command(**(fields | {"opcode": opcode, "flags": 0x40, "cid": 1, "nsid": nsid, "sgl_id": 0x5A} | dwords))


class Direct:
    """Namespaces 1, 2 and 7; ``volumes`` injects faults into them."""

    def __init__(self, volumes: dict[int, FaultVolume]) -> None:
        self.subsystem = Subsystem(NQN, serial="SERIAL", model="a model")
        self.volumes = volumes
        for nsid, volume in volumes.items():
            self.subsystem.add_namespace(volume, nsid)
        self.controller = Controller(self.subsystem, 5, HOST_ID, HOST_NQN, 15_000)
        self.subsystem.controllers[5] = self.controller

    def identify(self, cns: int, nsid: int = 0, *, cntid: int = 0, csi: int = 0) -> bytes:
        reply = identify(self.controller, command(6, nsid=nsid, cdw10=cns | cntid << 16, cdw11=csi << 24))
        assert len(reply.data) == 4096
        return reply.data

    def log(
        self, lid: int, length: int, offset: int = 0, *, nsid: int = 0, rae: bool = False, ot: bool = False
    ) -> bytes:
        dwords = length // 4 - 1
        reply = get_log_page(
            self.controller,
            command(
                2,
                nsid=nsid,
                cdw10=lid | rae << 15 | (dwords & 0xFFFF) << 16,
                cdw11=dwords >> 16,
                cdw12=offset & 0xFFFFFFFF,
                cdw13=offset >> 32,
                cdw14=ot << 23,
            ),
        )
        assert len(reply.data) == length
        return reply.data

    def get_feature(self, fid: int, select: int = 0, *, nsid: int = 0, cdw11: int = 0) -> Reply:
        return self.controller.features.get(
            self.controller, command(10, nsid=nsid, cdw10=fid | select << 8, cdw11=cdw11)
        )

    def set_feature(self, fid: int, cdw11: int = 0, data: bytes = b"", *, nsid: int = 0, save: bool = False) -> Reply:
        """As the admin queue does it, for what completes at once."""
        wanted = command(9, nsid=nsid, cdw10=fid | save << 31, cdw11=cdw11)
        needed = self.controller.features.check_set(self.controller, wanted)
        assert len(data) >= needed
        admin: Any = self
        reply = self.controller.features.set(admin, wanted, data)
        assert reply is not None
        return reply


def direct_controller() -> Direct:
    """On disks in memory. Nothing waits for them, so nothing need be closed."""
    return Direct(
        {
            nsid: FaultVolume(FileVolume(VirtualDisk(size), uuid=UUIDS[nsid], block_size=block_size))
            for nsid, (size, block_size) in SIZES.items()
        }
    )


def refusal(error: pytest.ExceptionInfo[CommandError]) -> tuple[int, int]:
    """Status and parameter error location."""
    return error.value.status, error.value.location
