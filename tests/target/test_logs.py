"""Every log page, whole and in parts, and what reading one changes."""

from __future__ import annotations

import struct

import pytest

from nvmeof import limits
from nvmeof.engine.volume import VolumeHealth
from nvmeof.target.admin import HANDLERS
from nvmeof.target.command import CommandError
from nvmeof.target.features import FEATURES
from nvmeof.target.logs import ADMIN_EFFECTS, DISCOVERY_EFFECTS, IO_EFFECTS, critical_warning
from tests.target.direct import Direct, direct_controller, refusal

DNR = 0x4000
INVALID_FIELD, INVALID_LOG_PAGE = 0x02 | DNR, 0x109 | DNR
ALL = 0xFFFFFFFF
SIZES = {0x00: 1024, 0x01: 4096, 0x02: 512, 0x03: 512, 0x04: 4096, 0x05: 4096, 0x12: 1024, 0x13: 4096, 0xC0: 512}


@pytest.fixture
def direct() -> Direct:
    return direct_controller()


def smart(direct: Direct, offset: int) -> int:
    """One of the 16-byte counters."""
    return int.from_bytes(direct.log(0x02, 16, offset), "little")


@pytest.mark.parametrize(("lid", "size"), SIZES.items())
def test_parts_are_parts_of_the_whole(direct: Direct, lid: int, size: int) -> None:
    direct.controller.record_error(1, 2, 0x4080, 1, 77)
    direct.controller.namespace_changed(7)
    whole = direct.log(lid, size, rae=True)
    assert any(whole) or lid == 0x13
    assert b"".join(direct.log(lid, 64, offset, rae=True) for offset in range(0, size, 64)) == whole
    assert direct.log(lid, size + 64, rae=True) == whole + bytes(64)
    assert direct.log(lid, 64, size - 4, rae=True) == whole[-4:] + bytes(60)
    assert direct.log(lid, 4, size, rae=True) == bytes(4)
    for offset in (size + 4, 2, 1 << 40):
        with pytest.raises(CommandError) as refused:
            direct.log(lid, 4, offset)
        assert refusal(refused) == (INVALID_FIELD, 48)


def test_what_get_log_page_refuses(direct: Direct) -> None:
    for lid in sorted(set(range(256)) - set(SIZES)):
        with pytest.raises(CommandError) as refused:
            direct.log(lid, 4)
        assert refusal(refused) == (INVALID_LOG_PAGE, 40)
    for nsid in (1, 3, 0xFFFFFFFE):
        with pytest.raises(CommandError) as refused:
            direct.log(0x02, 512, nsid=nsid)
        assert refusal(refused) == (INVALID_FIELD, 4)
    assert direct.log(0x02, 512, nsid=ALL) == direct.log(0x02, 512, nsid=0)
    with pytest.raises(CommandError) as refused:
        direct.log(0x02, limits.MDTS_BYTES + 4)
    assert refusal(refused) == (INVALID_FIELD, 42)
    assert len(direct.log(0x02, limits.MDTS_BYTES)) == limits.MDTS_BYTES
    with pytest.raises(CommandError) as refused:
        direct.log(0x02, 4, ot=True)
    assert refusal(refused) == (INVALID_FIELD, 58 | 7 << 8)


def test_supported_pages_are_those_that_are_answered(direct: Direct) -> None:
    dwords = struct.unpack("<256I", direct.log(0x00, 1024))
    assert {lid: dword for lid, dword in enumerate(dwords) if dword} == dict.fromkeys(SIZES, 1)


def test_smart_counters(direct: Direct) -> None:
    first, second = direct.subsystem.namespaces[1], direct.subsystem.namespaces[2]
    assert [smart(direct, offset) for offset in range(32, 96, 16)] == [0, 0, 0, 0]
    first.reads, first.read_bytes = 3, 512
    second.reads, second.read_bytes = 4, 511_489
    first.writes, first.written_bytes = 5, 512_000
    direct.subsystem.busy_seconds = 119.0
    direct.subsystem.started -= 2 * 3600 + 1
    direct.subsystem.unsafe_shutdowns = 6
    direct.volumes[7].health_override = VolumeHealth(media_errors=11)
    direct.controller.record_error(0, 0, 0x4002, 0)
    assert [smart(direct, offset) for offset in range(32, 96, 16)] == [2, 1, 7, 5]
    assert [smart(direct, offset) for offset in range(96, 192, 16)] == [1, 1, 2, 6, 11, 1]


def test_smart_health(direct: Direct) -> None:
    page = direct.log(0x02, 512)
    assert (page[0], page[3], page[4], page[5]) == (0, 100, 10, 0)
    assert struct.unpack_from("<H", page, 1) == (0,), "no thermometer"
    direct.volumes[1].health_override = VolumeHealth(spare_percent=9, used_percent=300)
    direct.volumes[2].health_override = VolumeHealth(spare_percent=40, used_percent=7)
    page = direct.log(0x02, 512)
    assert (page[0], page[3], page[5]) == (0x01, 9, 255)


@pytest.mark.parametrize(
    ("health", "warning"),
    [
        ([{}, {}, {}], 0),
        ([{"spare_percent": 10}, {}, {}], 0),
        ([{"spare_percent": 9}, {}, {}], 0x01),
        ([{"degraded": True}, {}, {}], 0x04),
        ([{"read_only": True, "degraded": True}, {}, {}], 0x04),
        ([{"read_only": True}, {"read_only": True}, {"read_only": True}], 0x0C),
    ],
)
def test_critical_warnings(direct: Direct, health: list[dict[str, int]], warning: int) -> None:
    for volume, fields in zip(direct.volumes.values(), health, strict=True):
        volume.health_override = VolumeHealth(**fields)  # type: ignore[arg-type]
    assert critical_warning(direct.subsystem) == direct.log(0x02, 4)[0] == warning


def test_error_log_is_newest_first(direct: Direct) -> None:
    direct.controller.record_error(3, 0x77, 0x4080, 2, 1234)
    direct.controller.record_error(0, 0x78, 0x4002, 0, location=40)
    page = direct.log(0x01, 64 * limits.ERROR_LOG_ENTRIES)
    entries = [struct.unpack_from("<QHHHHQI", page, at) for at in (0, 64, 128)]
    assert entries == [
        (2, 0, 0x78, 0x8004, 40, 0, 0),
        (1, 3, 0x77, 0x8100, 0xFFFF, 1234, 2),
        (0, 0, 0, 0, 0, 0, 0),
    ]


def test_firmware_slot_is_what_identify_says(direct: Direct) -> None:
    page = direct.log(0x03, 512)
    assert page[0] == 1
    assert page[8:16] == direct.identify(0x01)[64:72]
    assert not any(page[16:])


def test_changed_namespaces_are_forgotten_when_read(direct: Direct) -> None:
    for nsid in (7, 2, 7):
        direct.controller.namespace_changed(nsid)
    expected = struct.pack("<II", 2, 7).ljust(4096, b"\0")
    assert direct.log(0x04, 4096, rae=True) == expected
    with pytest.raises(CommandError):
        direct.log(0x04, 4, 5000)
    assert direct.log(0x04, 4096) == expected
    assert direct.log(0x04, 4096) == bytes(4096)


def test_too_many_changed_namespaces(direct: Direct) -> None:
    direct.controller.changed_namespaces = set(range(1, 1025))
    assert direct.log(0x04, 4096, rae=True) == struct.pack("<1024I", *range(1, 1025))
    direct.controller.changed_namespaces.add(1025)
    assert direct.log(0x04, 4096) == struct.pack("<I", ALL).ljust(4096, b"\0")


@pytest.mark.parametrize(("lid", "event"), [(0x04, 0x040002), (0x02, 0x020001)])
def test_reading_a_page_settles_its_event(direct: Direct, lid: int, event: int) -> None:
    told: list[int] = []
    events = direct.controller.events
    events.complete = lambda cid, status, dw0: told.append(dw0)

    def happen() -> None:
        direct.controller.namespace_changed(2)
        events.health_changed(0)
        events.health_changed(0x04)

    for cid in range(4):
        events.request(cid)
    happen()
    told.clear()
    direct.log(lid, 512, rae=True)
    happen()
    assert told == []
    direct.log(lid, 512)
    happen()
    assert told == [event]


def test_effects_name_every_command_and_no_other(direct: Direct) -> None:
    dwords = struct.unpack("<1024I", direct.log(0x05, 4096))
    assert {opcode for opcode, dword in enumerate(dwords[:256]) if dword} == set(HANDLERS) == set(ADMIN_EFFECTS)
    assert (
        {opcode for opcode, dword in enumerate(dwords[256:512]) if dword} == {0, 1, 2, 4, 8, 9, 0x0C} == set(IO_EFFECTS)
    )
    assert not any(dwords[512:])
    assert set(DISCOVERY_EFFECTS) == set(HANDLERS)
    supported, changes_data = 1, 2
    assert all(dword & supported for dword in dwords if dword)
    assert {opcode for opcode in IO_EFFECTS if dwords[256 + opcode] & changes_data} == {1, 4, 8, 9}
    assert not any(dword >> 16 & 7 for dword in dwords), "nothing asks the host to stop other commands"
    assert not any(dword & ~(supported | changes_data) for dword in dwords[256:]), "Linux logs any other effect"


def test_feature_effects_name_every_feature(direct: Direct) -> None:
    dwords = struct.unpack("<256I", direct.log(0x12, 1024))
    assert {fid for fid, dword in enumerate(dwords) if dword & 1} == set(FEATURES)
    assert (dwords[0x05] >> 20, dwords[0x06] >> 20) == (1, 2), "scope: namespace, controller"


# --- vendor log page C0h ----------------------------------------------------------------------------------------------


def test_incarnations_of_all_namespaces(direct: Direct) -> None:
    page = direct.log(0xC0, 512)
    assert struct.unpack_from("<16sHHI", page) == (b"nvmeof incarnate", 1, 32, 3)
    assert not any(page[24:64])
    entries = [struct.unpack_from("<16sI12s", page, 64 + 32 * index) for index in range(3)]
    assert entries == [(direct.volumes[nsid].volume.incarnation, nsid, bytes(12)) for nsid in (1, 2, 7)]
    assert len({incarnation for incarnation, _, _ in entries}) == 3
    assert not any(page[64 + 3 * 32 :])
    assert direct.log(0xC0, 512, nsid=ALL) == page


def test_the_incarnation_of_one_namespace(direct: Direct) -> None:
    page = direct.log(0xC0, 512, nsid=2)
    assert struct.unpack_from("<16sHHI16sI", page, 0)[3] == 1
    assert struct.unpack_from("<16sI", page, 64) == (direct.volumes[2].incarnation, 2)
    assert not any(page[96:])
    direct.volumes[2].incarnation = b"the next one ..."
    assert direct.log(0xC0, 16, 64, nsid=2) == b"the next one ..."
    for nsid in (3, 0xFFFFFFFE):
        with pytest.raises(CommandError) as refused:
            direct.log(0xC0, 512, nsid=nsid)
        assert refusal(refused) == (0x0B | DNR, 4)


def test_incarnations_of_as_many_namespaces_as_there_may_be(direct: Direct) -> None:
    volume = direct.volumes[1]
    for nsid in range(1, limits.NAMESPACES_MAX + 1):
        if nsid not in direct.subsystem.namespaces:
            direct.subsystem.add_namespace(volume, nsid)
    size = -(-(64 + 32 * limits.NAMESPACES_MAX) // 512) * 512
    page = direct.log(0xC0, size)
    nsids = [struct.unpack_from("<I", page, 64 + 32 * index + 16)[0] for index in range(limits.NAMESPACES_MAX)]
    assert nsids == list(range(1, limits.NAMESPACES_MAX + 1))
    with pytest.raises(CommandError):
        direct.log(0xC0, 4, size + 4)


def test_smart_counts_what_removed_namespaces_did(direct: Direct) -> None:
    namespace = direct.subsystem.namespaces[7]
    namespace.reads, namespace.read_bytes, namespace.writes, namespace.written_bytes = 3, 512_000, 5, 1_024_000
    direct.volumes[7].health_override = VolumeHealth(media_errors=11)
    before = direct.log(0x02, 512)
    direct.subsystem.remove_namespace(7)
    assert direct.log(0x02, 512) == before
    assert [smart(direct, offset) for offset in (32, 48, 64, 80, 160)] == [1, 2, 3, 5, 11]
