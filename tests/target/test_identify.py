"""Every Identify structure, byte by byte at the offsets of the figures, and what is refused."""

from __future__ import annotations

import struct

import pytest

from nvmeof import limits
from nvmeof.engine.volume import VolumeHealth
from nvmeof.target.command import CommandError
from nvmeof.target.controller import Controller
from nvmeof.target.discovery import DiscoverySubsystem
from tests.target.direct import NQN, SIZES, UUIDS, Direct, direct_controller, refusal
from tests.target.rawhost import HOST_ID, HOST_NQN

DNR = 0x4000
INVALID_FIELD, INVALID_NAMESPACE = 0x02 | DNR, 0x0B | DNR
ALL = 0xFFFFFFFF
NAMESPACE_STRUCTURES = (0x00, 0x05, 0x08, 0x11, 0x1B)
NSID_LISTS = (0x02, 0x07, 0x10, 0x1A)


@pytest.fixture
def direct() -> Direct:
    return direct_controller()


def at(data: bytes, offset: int, code: str) -> int:
    (value,) = struct.unpack_from("<" + code, data, offset)
    return int(value)


def text(data: bytes, offset: int, size: int) -> str:
    return data[offset : offset + size].decode()


def test_controller(direct: Direct) -> None:
    data = direct.identify(0x01)
    assert text(data, 4, 20) == "SERIAL".ljust(20)
    assert text(data, 24, 40) == "a model".ljust(40)
    assert text(data, 64, 8).strip()
    assert data[76] == 0x03, "CMIC: several ports, several controllers"
    assert 4096 << data[77] == limits.MDTS_BYTES
    assert at(data, 78, "H") == 5
    assert at(data, 80, "I") == 0x20000
    assert at(data, 92, "I") == 1 << 8, "OAES: namespace attribute notices"
    assert at(data, 96, "I") == 1 | 1 << 6, "CTRATT: 128-bit host identifier, traffic-based keep-alive"
    assert data[111] == 1
    assert at(data, 256, "H") == 0, "OACS"
    assert data[258] == 3
    assert data[259] + 1 == limits.ASYNC_EVENT_REQUESTS_MAX
    assert data[260] == 0x03, "FRMW: one read-only slot"
    assert data[261] == 1 << 1 | 1 << 2 | 1 << 5, "LPA"
    assert data[262] + 1 == limits.ERROR_LOG_ENTRIES
    assert data[263] == 0
    assert at(data, 320, "H") * 100 == limits.KEEP_ALIVE_GRANULARITY_MS
    assert (data[512], data[513]) == (0x66, 0x44)
    assert at(data, 514, "H") == limits.QUEUE_ENTRIES_MAX
    assert at(data, 516, "I") == limits.NAMESPACES_MAX
    uncorrectable, verify = 1 << 1, 1 << 7
    assert at(data, 520, "H") == uncorrectable | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | verify, (
        "ONCS: DSM, zeroes, select, timestamp"
    )
    assert at(data, 522, "H") == 0
    assert data[525] == 0b111, "VWC: present, flushes all namespaces"
    assert at(data, 526, "H") == at(data, 528, "H") == 0, "AWUN, AWUPF: one block"
    assert at(data, 536, "I") == 1 | 1 << 20 | 1 << 21, "SGLS"
    assert data[768:1024] == NQN.encode().ljust(256, b"\0")
    assert at(data, 1792, "I") * 16 == 64 + limits.IN_CAPSULE_BYTES
    assert at(data, 1796, "I") * 16 == 16
    assert at(data, 1800, "H") == 0
    assert data[1802] == 0, "FCATT: dynamic controllers"
    assert data[1803] == 1
    assert at(data, 1804, "H") == 1, "OFCS: Disconnect"


@pytest.mark.parametrize("cns", [0x00, 0x11])
@pytest.mark.parametrize("nsid", SIZES)
def test_namespace(direct: Direct, cns: int, nsid: int) -> None:
    size, block_size = SIZES[nsid]
    direct.volumes[nsid].write_now(0, memoryview(b"x" * 8192))
    data = direct.identify(cns, nsid)
    assert struct.unpack_from("<QQQ", data) == (size // block_size, size // block_size, 8192 // block_size)
    assert data[24] == 1 | 1 << 4, "NSFEAT: thin provisioning, optimal sizes"
    assert (data[25], data[26]) == (0, 0)
    assert data[30] == 1, "NMIC: shared"
    assert data[33] == 1 | 1 << 3, "DLFEAT: zeroes, and Write Zeroes deallocates"
    assert at(data, 34, "H") == at(data, 36, "H") == 0
    assert int.from_bytes(data[48:64], "little") == size
    assert {(at(data, offset, "H") + 1) * block_size for offset in (64, 66, 68, 70, 72)} == {4096}
    assert data[99] == 0
    assert data[104:120] == UUIDS[nsid].bytes
    assert any(data[120:128])
    assert struct.unpack_from("<HBB", data, 128) == (0, block_size.bit_length() - 1, 0)
    assert not any(data[132:384])


def test_identifiers_agree_and_differ_between_namespaces(direct: Direct) -> None:
    seen = set()
    for nsid, uuid in UUIDS.items():
        data = direct.identify(0x03, nsid)
        namespace = direct.identify(0x00, nsid)
        eui64, nguid = namespace[120:128], namespace[104:120]
        expected = b"\1\x08\0\0" + eui64 + b"\2\x10\0\0" + nguid + b"\3\x10\0\0" + uuid.bytes + b"\4\1\0\0\0"
        assert data == expected.ljust(4096, b"\0")
        seen |= {eui64, nguid}
    assert len(seen) == 2 * len(UUIDS)


def test_a_volume_that_refuses_writes_is_write_protected(direct: Direct) -> None:
    direct.volumes[2].health_override = VolumeHealth(read_only=True)
    assert (direct.identify(0x00, 2)[99], direct.identify(0x08, 2)[8]) == (1, 1)
    assert (direct.identify(0x00, 1)[99], direct.identify(0x08, 1)[8]) == (0, 0)


def test_independent_namespace(direct: Direct) -> None:
    data = direct.identify(0x08, 2)
    assert (data[1], data[14]) == (1, 1)
    assert sum(data) == 2


def test_command_set_specific_structures(direct: Direct) -> None:
    assert direct.identify(0x05, 2) == bytes(4096)
    data = direct.identify(0x06)
    assert 4096 << data[1] == 512 << 16, "WZSL: all that NLB can say, in 512 B blocks (Linux cuts NLB to 16 bits)"
    assert 4096 << data[0] == limits.VERIFY_BYTES_MAX, "VSL"
    assert sum(data) == data[0] + data[1], "no limit of Write Uncorrectable, none of Dataset Management"
    for cntid in (0, 5, 0xFFFF):
        assert direct.identify(0x1C, cntid=cntid) == b"\1".ljust(4096, b"\0")
    for cns in (0x05, 0x06, 0x07, 0x1A, 0x1B):
        with pytest.raises(CommandError) as refused:
            direct.identify(cns, 1, csi=2)
        assert refusal(refused) == (INVALID_FIELD, 47)


@pytest.mark.parametrize("cns", NSID_LISTS)
def test_lists_of_namespaces(direct: Direct, cns: int) -> None:
    for above, nsids in ((0, (1, 2, 7)), (1, (2, 7)), (2, (7,)), (6, (7,)), (7, ()), (0xFFFFFFFD, ())):
        assert direct.identify(cns, above) == struct.pack(f"<{len(nsids)}I", *nsids).ljust(4096, b"\0")
    for above in (0xFFFFFFFE, ALL):
        with pytest.raises(CommandError) as refused:
            direct.identify(cns, above)
        assert refusal(refused) == (INVALID_NAMESPACE, 4)


def test_lists_of_controllers(direct: Direct) -> None:
    for cntlid in (9, 300):
        direct.subsystem.controllers[cntlid] = Controller(direct.subsystem, cntlid, HOST_ID, HOST_NQN, 0)
    for cntid, cntlids in ((0, (5, 9, 300)), (5, (5, 9, 300)), (6, (9, 300)), (300, (300,)), (301, ())):
        expected = struct.pack(f"<{len(cntlids) + 1}H", len(cntlids), *cntlids).ljust(4096, b"\0")
        assert direct.identify(0x13, cntid=cntid) == expected
        assert direct.identify(0x12, 7, cntid=cntid) == expected
    assert direct.identify(0x12, 3) == bytes(4096)
    with pytest.raises(CommandError) as refused:
        direct.identify(0x12, ALL)
    assert refused.value.status == INVALID_FIELD


@pytest.mark.parametrize("cns", NAMESPACE_STRUCTURES)
def test_inactive_and_invalid_namespaces(direct: Direct, cns: int) -> None:
    assert direct.identify(cns, 3) == bytes(4096)
    assert direct.identify(cns, limits.NAMESPACES_MAX) == bytes(4096)
    for nsid in (0, limits.NAMESPACES_MAX + 1, 0xFFFFFFFE, ALL):
        with pytest.raises(CommandError) as refused:
            direct.identify(cns, nsid)
        assert refusal(refused) == (INVALID_NAMESPACE, 4)


def test_only_an_active_namespace_has_descriptors(direct: Direct) -> None:
    for nsid in (0, 3, limits.NAMESPACES_MAX + 1, ALL):
        with pytest.raises(CommandError) as refused:
            direct.identify(0x03, nsid)
        assert refusal(refused) == (INVALID_NAMESPACE, 4)


def test_unknown_structures(direct: Direct) -> None:
    known = {0x01, 0x03, 0x06, 0x12, 0x13, 0x1C, *NAMESPACE_STRUCTURES, *NSID_LISTS}
    for cns in sorted(set(range(256)) - known):
        with pytest.raises(CommandError) as refused:
            direct.identify(cns)
        assert refusal(refused) == (INVALID_FIELD, 40)


class Nothing:
    listeners = ()
    subsystems: dict[str, DiscoverySubsystem] = {}


def test_a_discovery_controller_identifies_itself_only(direct: Direct) -> None:
    direct.controller.subsystem = DiscoverySubsystem(Nothing())
    data = direct.identify(0x01)
    assert (data[111], data[1806]) == (2, 1)
    assert at(data, 92, "I") == 1 << 31, "OAES: discovery log page change"
    assert at(data, 516, "I") == at(data, 520, "H") == data[525] == data[512] == 0
    assert at(data, 320, "H") > 0
    assert data[261] & 1 << 2
    assert data[768:1024] == b"nqn.2014-08.org.nvmexpress.discovery".ljust(256, b"\0")
    for cns in sorted(set(range(256)) - {1}):
        with pytest.raises(CommandError) as refused:
            direct.identify(cns, 1)
        assert refusal(refused) == (INVALID_FIELD, 40)
