"""Every feature with every select, what may be set and what is refused (offsets and values from the figures)."""

from __future__ import annotations

import struct

import pytest

from nvmeof import limits
from nvmeof.spec.command import FeatureId
from nvmeof.target.command import CommandError
from nvmeof.target.discovery import DiscoverySubsystem
from nvmeof.target.features import FEATURES, Features
from tests.target.direct import Direct, direct_controller, refusal
from tests.target.rawhost import HOST_ID

DNR = 0x4000
CURRENT, DEFAULT, SAVED, CAPABILITIES = range(4)
CHANGEABLE, NAMESPACE_SPECIFIC = 4, 2
INVALID_FIELD, INVALID_NAMESPACE = 0x02 | DNR, 0x0B | DNR
ALL = 0xFFFFFFFF

DEFAULTS = {
    0x01: 7,
    0x02: 0,
    0x04: 0xFFFF,
    0x06: 1,
    0x07: 127 | 127 << 16,
    0x0A: 0,
    0x0B: 0x13F,
    0x0F: 120_000,
    0x19: 0,
}
SETTINGS = [(0x01, 0x01020304, 0x01020304), (0x01, 0xF8, 0), (0x02, 0x40, 0x40), (0x0A, 3, 1), (0x0B, 0x104, 0x104)]


@pytest.fixture
def direct() -> Direct:
    return direct_controller()


@pytest.mark.parametrize(("fid", "default"), DEFAULTS.items())
def test_default_is_also_the_saved_value(direct: Direct, fid: int, default: int) -> None:
    assert direct.get_feature(fid, DEFAULT) == (default, 0, b"")
    assert direct.get_feature(fid, SAVED) == (default, 0, b"")
    if fid != 0x0F:
        assert direct.get_feature(fid) == (default, 0, b"")


@pytest.mark.parametrize("fid", FEATURES)
def test_capabilities(direct: Direct, fid: int) -> None:
    expected = {0x05: CHANGEABLE | NAMESPACE_SPECIFIC, 0x81: 0}.get(fid, CHANGEABLE)
    assert direct.get_feature(fid, CAPABILITIES) == (expected, 0, b"")


def test_there_is_no_other_select(direct: Direct) -> None:
    for select in range(4, 8):
        with pytest.raises(CommandError) as refused:
            direct.get_feature(0x01, select)
        assert refusal(refused) == (INVALID_FIELD, 41)


@pytest.mark.parametrize(("fid", "value", "kept"), SETTINGS)
def test_a_value_that_is_set_is_current_until_the_reset(direct: Direct, fid: int, value: int, kept: int) -> None:
    direct.set_feature(fid, value)
    assert direct.get_feature(fid).dw0 == kept
    assert direct.get_feature(fid, DEFAULT).dw0 == DEFAULTS[fid]
    direct.controller.features.reset()
    assert direct.get_feature(fid).dw0 == DEFAULTS[fid]


def test_an_unknown_feature_is_refused(direct: Direct) -> None:
    for fid in sorted(set(range(256)) - set(FEATURES)):
        with pytest.raises(CommandError) as refused:
            direct.get_feature(fid)
        assert refusal(refused) == (INVALID_FIELD, 40)
        with pytest.raises(CommandError) as refused:
            direct.set_feature(fid)
        assert refusal(refused) == (INVALID_FIELD, 40)


@pytest.mark.parametrize("fid", FEATURES)
def test_nothing_can_be_saved(direct: Direct, fid: int) -> None:
    with pytest.raises(CommandError) as refused:
        direct.set_feature(fid, save=True)
    assert refusal(refused) == (0x10D | DNR, 43 | 7 << 8)


def test_a_feature_of_the_controller_takes_no_namespace(direct: Direct) -> None:
    direct.set_feature(0x01, 1, nsid=ALL)
    assert direct.get_feature(0x01, nsid=1).dw0 == 1
    with pytest.raises(CommandError) as refused:
        direct.set_feature(0x01, 2, nsid=1)
    assert refusal(refused) == (0x10F | DNR, 4)
    with pytest.raises(CommandError) as refused:
        direct.set_feature(0x01, 2, nsid=limits.NAMESPACES_MAX + 1)
    assert refusal(refused) == (INVALID_NAMESPACE, 4)


@pytest.mark.parametrize(
    ("fid", "cdw11", "status", "location"),
    [
        (0x02, 1, INVALID_FIELD, 44),
        (0x04, 0x1_0150, INVALID_FIELD, 46),
        (0x04, 0x20_0150, INVALID_FIELD, 46 | 4 << 8),
        (0x07, 0xFFFF, INVALID_FIELD, 44),
        (0x07, 0xFFFF_0000, INVALID_FIELD, 46),
        (0x0B, 1 << 9, INVALID_FIELD, 44),
        (0x0B, 1 << 31, INVALID_FIELD, 44),
        (0x0B, 1 << 6, INVALID_FIELD, 44),
        (0x0F, 0, 0x1A | DNR, 44),
        (0x0F, limits.KEEP_ALIVE_MS_MAX + 1, 0x1A | DNR, 44),
        (0x19, 1, 0x12B | DNR, 44),
        (0x81, 1, 0x0C | DNR, 0xFFFF),
    ],
)
def test_values_that_are_refused(direct: Direct, fid: int, cdw11: int, status: int, location: int) -> None:
    with pytest.raises(CommandError) as refused:
        direct.set_feature(fid, cdw11)
    assert refusal(refused) == (status, location)


def test_temperature_thresholds_are_two(direct: Direct) -> None:
    over, under = 0, 1 << 20
    direct.set_feature(0x04, 0x157 | over)
    direct.set_feature(0x04, 0x111 | under | 0xF << 16)
    assert direct.get_feature(0x04, cdw11=over).dw0 == 0x157
    assert direct.get_feature(0x04, cdw11=under).dw0 == 0x111 | under
    assert direct.get_feature(0x04, DEFAULT, cdw11=under).dw0 == under
    for unknown in (1 << 16, 0xF << 16, 1 << 21):
        with pytest.raises(CommandError) as refused:
            direct.get_feature(0x04, cdw11=unknown)
        assert refused.value.status == INVALID_FIELD


def test_error_recovery_belongs_to_a_namespace(direct: Direct) -> None:
    direct.set_feature(0x05, 3, nsid=2)
    assert [direct.get_feature(0x05, nsid=nsid).dw0 for nsid in (1, 2, 7)] == [0, 3, 0]
    direct.set_feature(0x05, 9, nsid=ALL)
    assert [direct.get_feature(0x05, nsid=nsid).dw0 for nsid in (1, 2, 7)] == [9, 9, 9]
    assert direct.get_feature(0x05, DEFAULT, nsid=2).dw0 == 0
    for nsid, status in (
        (0, INVALID_NAMESPACE),
        (ALL, INVALID_NAMESPACE),
        (3, INVALID_FIELD),
        (1025, INVALID_NAMESPACE),
    ):
        with pytest.raises(CommandError) as refused:
            direct.get_feature(0x05, nsid=nsid)
        assert refusal(refused) == (status, 4)
    with pytest.raises(CommandError) as refused:
        direct.set_feature(0x05, 1, nsid=3)
    assert refusal(refused) == (INVALID_FIELD, 4)
    with pytest.raises(CommandError) as refused:
        direct.set_feature(0x05, 1 << 16, nsid=1)
    assert refusal(refused) == (INVALID_FIELD, 46)


@pytest.mark.parametrize(
    ("wanted", "granted"),
    [(0, 0), (3 | 9 << 16, 3 | 9 << 16), (0xFFFE_FFFE, 127 | 127 << 16), (200 | 2 << 16, 127 | 2 << 16)],
)
def test_number_of_queues(direct: Direct, wanted: int, granted: int) -> None:
    assert direct.set_feature(0x07, wanted).dw0 == granted
    assert direct.get_feature(0x07).dw0 == granted
    assert direct.controller.features.io_queues == min(granted & 0xFFFF, granted >> 16) + 1


def test_keep_alive_is_rounded_up(direct: Direct) -> None:
    assert direct.get_feature(0x0F).dw0 == 15_000
    for wanted, kept in ((1, 1000), (1000, 1000), (1001, 2000), (limits.KEEP_ALIVE_MS_MAX, limits.KEEP_ALIVE_MS_MAX)):
        direct.set_feature(0x0F, wanted)
        assert direct.get_feature(0x0F).dw0 == kept == direct.controller.features.kato_ms
    direct.controller.features.reset()
    assert direct.controller.features.kato_ms == limits.KEEP_ALIVE_MS_MAX


def test_timestamp_goes_on_from_what_was_set() -> None:
    now = [100.0]
    direct = Direct({})
    direct.controller.features = Features(0, clock=lambda: now[0])

    def timestamp(select: int = CURRENT) -> tuple[int, int]:
        (value,) = struct.unpack("<Q", direct.get_feature(0x0E, select).data)
        return value & (1 << 48) - 1, value >> 48

    now[0] += 2.5
    assert timestamp() == (2500, 0)
    direct.set_feature(0x0E, data=struct.pack("<Q", 1_700_000_000_000))
    now[0] += 1.25
    assert timestamp() == (1_700_000_001_250, 1 << 1)
    assert timestamp(DEFAULT) == timestamp(SAVED) == (0, 0)
    direct.controller.features.reset()
    assert timestamp() == (0, 0)


def test_host_behavior_is_kept(direct: Direct) -> None:
    direct.set_feature(0x16, data=b"\1\0\1".ljust(512, b"\xee"))
    assert direct.get_feature(0x16).data == b"\1\0\1".ljust(512, b"\0")
    assert direct.get_feature(0x16, DEFAULT).data == bytes(512)
    with pytest.raises(CommandError) as refused:
        direct.set_feature(0x16, data=b"\2".ljust(512, b"\0"))
    assert refused.value.status == INVALID_FIELD


def test_host_identifier_is_connects(direct: Direct) -> None:
    assert direct.get_feature(0x81, cdw11=1).data == HOST_ID
    with pytest.raises(CommandError) as refused:
        direct.get_feature(0x81, cdw11=0)
    assert refusal(refused) == (0x18 | DNR, 44)


def test_events_switched_on_tell_what_holds_already(direct: Direct) -> None:
    told: list[int] = []
    controller = direct.controller
    controller.events.complete = lambda cid, status, dw0: told.append(dw0)
    direct.set_feature(0x0B, 0)
    controller.events.request(1)
    controller.namespace_changed(2)
    assert not told
    direct.set_feature(0x0B, 1 << 8)
    assert told == [0x040002]


def test_a_discovery_controller_has_two_features(direct: Direct) -> None:
    class Nothing:
        listeners = ()
        subsystems: dict[str, DiscoverySubsystem] = {}

    direct.controller.subsystem = DiscoverySubsystem(Nothing())
    for fid in FEATURES:
        if fid in (FeatureId.ASYNC_EVENT_CONFIGURATION, FeatureId.KEEP_ALIVE_TIMER):
            assert direct.get_feature(fid, CAPABILITIES).dw0 == CHANGEABLE
        else:
            with pytest.raises(CommandError) as refused:
                direct.get_feature(fid, CAPABILITIES)
            assert refused.value.status == INVALID_FIELD
    assert direct.get_feature(0x0B, DEFAULT).dw0 == 1 << 31
    with pytest.raises(CommandError):
        direct.set_feature(0x0B, 1 << 8)
    direct.set_feature(0x0B, 1 << 31)
