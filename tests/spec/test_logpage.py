"""Log pages: NVMe Base 2.0 section 5.16.1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import LocalProtocolError
from nvmeof.spec import logpage as lp
from nvmeof.spec.command import AdminOpcode, AsyncEventType, IoOpcode, LogPage, NoticeEvent
from nvmeof.spec.fields import u128
from nvmeof.spec.logpage import (
    ASYNC_EVENT,
    ERROR_ENTRY,
    FIRMWARE_SLOT_LOG,
    SMART_LOG,
    AnaGroup,
    AnaState,
    AsyncEvent,
    CommandEffect,
    CommandEffects,
    ErrorEntry,
    FirmwareSlotLog,
    SmartLog,
    SmartWarning,
    decode_ana,
    encode_ana,
    parameter_error,
)
from nvmeof.spec.status import Status

from .images import assert_same_offsets, image


def test_supported_log_pages() -> None:
    """Figure 204: bit 0 supported, bit 1 index offset."""
    wire = image(1024, {0: "01", 4: "01", 0x70 * 4: "03 00 05 00"})
    pages = {0x00: 1, 0x01: 1, 0x70: 0x50003}
    assert lp.encode_supported_log_pages(pages) == wire
    assert lp.decode_supported_log_pages(wire) == pages
    with pytest.raises(LocalProtocolError, match="from 0 to 255"):
        lp.encode_supported_log_pages({256: 1})


def test_error_entry() -> None:
    """Figure 206."""
    wire = image(
        64,
        {0: "05", 8: "01 00 34 12 04 40 28 03", 16: "10", 24: "01 00 00 00", 29: "03", 32: "aa", 40: "bb"},
    )
    value = ErrorEntry(
        error_count=5,
        sqid=1,
        cid=0x1234,
        status=(Status.INVALID_FIELD | 0x2000) << 1,
        parameter_error=parameter_error(40, 3),
        lba=16,
        nsid=1,
        trtype=3,
        command_specific=0xAA,
        transport_specific=0xBB,
    )
    assert ERROR_ENTRY.encode(value) == wire
    assert ERROR_ENTRY.decode(wire) == value
    fields = (
        "error_count:8 sqid:2 cid:2 status:2 parameter_error:2 lba:8 nsid:4 vendor_page:1 trtype:1 -:2 "
        "command_specific:8 transport_specific:2 -:22"
    )
    assert_same_offsets(ERROR_ENTRY.offsets, 64, fields)


def test_default_error_entry_belongs_to_no_command() -> None:
    assert ERROR_ENTRY.encode(ErrorEntry()) == image(64, {8: "ff ff ff ff", 14: "ff ff"})


def test_smart_log() -> None:
    """Figure 207."""
    wire = image(
        512,
        {
            0: "0c 2a 01 64 0a 05",
            32: "01",
            48: "00 01",
            64: "03",
            80: "04",
            96: "05",
            112: "06",
            128: "07",
            144: "08",
            160: "09",
            176: "0a",
            192: "0b 00 00 00 0c",
            200: "2a 01",
            228: "0d",
        },
    )
    value = SmartLog(
        critical_warning=SmartWarning.RELIABILITY | SmartWarning.READ_ONLY,
        temperature=298,
        available_spare=100,
        available_spare_threshold=10,
        percentage_used=5,
        data_units_read=u128(1),
        data_units_written=u128(256),
        host_read_commands=u128(3),
        host_write_commands=u128(4),
        controller_busy_time=u128(5),
        power_cycles=u128(6),
        power_on_hours=u128(7),
        unsafe_shutdowns=u128(8),
        media_errors=u128(9),
        error_log_entries=u128(10),
        warning_temperature_time=11,
        critical_temperature_time=12,
        temperature_sensors=bytes.fromhex("2a01") + bytes(14),
        thermal_time_2=13,
    )
    assert SMART_LOG.encode(value) == wire
    assert SMART_LOG.decode(wire) == value


def test_smart_offsets_agree_with_linux() -> None:
    fields = (
        "critical_warning:1 temperature:2 available_spare:1 available_spare_threshold:1 percentage_used:1 "
        "endurance_group_warning:1 -:25 data_units_read:16 data_units_written:16 host_read_commands:16 "
        "host_write_commands:16 controller_busy_time:16 power_cycles:16 power_on_hours:16 unsafe_shutdowns:16 "
        "media_errors:16 error_log_entries:16 warning_temperature_time:4 critical_temperature_time:4 "
        "temperature_sensors:16 thermal_transitions_1:4 thermal_transitions_2:4 thermal_time_1:4 thermal_time_2:4 -:280"
    )
    assert_same_offsets(SMART_LOG.offsets, 512, fields)


def test_firmware_slots() -> None:
    """Figure 209."""
    wire = image(512, {0: "01", 8: b"0.1.0   ".hex(), 56: b"factory ".hex()})
    value = FirmwareSlotLog(afi=1, frs1=b"0.1.0   ", frs7=b"factory ")
    assert FIRMWARE_SLOT_LOG.encode(value) == wire
    assert FIRMWARE_SLOT_LOG.decode(wire) == value
    assert_same_offsets(
        FIRMWARE_SLOT_LOG.offsets, 512, "afi:1 -:7 frs1:8 frs2:8 frs3:8 frs4:8 frs5:8 frs6:8 frs7:8 -:448"
    )


def test_changed_namespaces() -> None:
    wire = image(4096, {0: "01 00 00 00  07 00 00 00"})
    assert lp.encode_changed_namespaces([7, 1, 7]) == wire
    assert lp.decode_changed_namespaces(wire) == [1, 7]
    assert lp.encode_changed_namespaces([]) == bytes(4096)
    assert lp.decode_changed_namespaces(lp.encode_changed_namespaces(range(1, 1025))) == list(range(1, 1025))
    assert lp.encode_changed_namespaces(range(1, 1026)) == image(4096, {0: "ff ff ff ff"})


def test_commands_supported_and_effects() -> None:
    """Figure 210: admin commands at 0, I/O commands at 1024."""
    wire = image(4096, {6 * 4: "01 00 00 00", 9 * 4: "01 00 20 00", 1024 + 4: "03 00 10 00"})
    effects = CommandEffects(
        admin={
            AdminOpcode.IDENTIFY: CommandEffect.SUPPORTED,
            AdminOpcode.SET_FEATURES: CommandEffect.SUPPORTED | CommandEffect.CONTROLLER_SCOPE,
        },
        io={
            IoOpcode.WRITE: CommandEffect.SUPPORTED | CommandEffect.BLOCK_CONTENT_CHANGE | CommandEffect.NAMESPACE_SCOPE
        },
    )
    assert effects.encode() == wire
    assert CommandEffects.decode(wire) == effects


def test_ana_log() -> None:
    wire = bytes.fromhex(
        "09 00 00 00 00 00 00 00  02 00 00 00 00 00 00 00"
        "01 00 00 00  02 00 00 00  09 00 00 00 00 00 00 00  01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
        "01 00 00 00  03 00 00 00"
        "02 00 00 00  00 00 00 00  00 00 00 00 00 00 00 00  0f 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
    )
    groups = [AnaGroup(1, AnaState.OPTIMIZED, (1, 3), 9), AnaGroup(2, AnaState.CHANGE, ())]
    assert encode_ana(9, groups) == wire
    assert decode_ana(wire) == groups
    for size in range(len(wire)):
        with pytest.raises(ValueError, match="needs"):
            decode_ana(wire[:size])


@given(st.binary(max_size=300))
def test_any_ana_log_decodes_or_is_a_value_error(data: bytes) -> None:
    try:
        decode_ana(data)
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("event", "dword"),
    [
        (
            AsyncEvent(AsyncEventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogPage.CHANGED_NAMESPACES),
            0x40002,
        ),
        (AsyncEvent(AsyncEventType.NOTICE, NoticeEvent.ANA_CHANGE, LogPage.ANA), 0x0C0302),
        (AsyncEvent(AsyncEventType.NOTICE, NoticeEvent.DISCOVERY_LOG_CHANGED, LogPage.DISCOVERY), 0x70F002),
        (AsyncEvent(AsyncEventType.SMART, 0, LogPage.SMART), 0x20001),
        (AsyncEvent(AsyncEventType.ERROR, 3, LogPage.ERROR_INFORMATION), 0x10300),
    ],
)
def test_event_dword(event: AsyncEvent, dword: int) -> None:
    """Figure 143; the values are those a Linux host switches on."""
    assert ASYNC_EVENT.encode(event) == dword
    assert ASYNC_EVENT.decode(dword) == event


@pytest.mark.parametrize(
    ("decode", "size"),
    [
        (lp.decode_supported_log_pages, 1024),
        (lp.decode_changed_namespaces, 4096),
        (CommandEffects.decode, 4096),
        (SMART_LOG.decode, 512),
    ],
)
def test_short_pages(decode: object, size: int) -> None:
    assert callable(decode)
    with pytest.raises(ValueError, match=f"needs {size} bytes, got {size - 1}"):
        decode(bytes(size - 1))


def test_incarnations() -> None:
    """The layout in the docstring of the module."""
    first, second = bytes(range(16)), bytes(range(16, 32))
    wire = image(
        512,
        {
            0: b"nvmeof incarnate".hex(),
            16: "01 00 20 00 02 00 00 00",
            64: first.hex() + "01 00 00 00",
            96: second.hex() + "00 01 00 00",
        },
    )
    assert lp.encode_incarnations({0x100: second, 1: first}) == wire
    assert lp.decode_incarnations(wire) == {1: first, 0x100: second}
    assert lp.decode_incarnations(wire[:96]) == {1: first}, "as many as there are bytes for"
    assert lp.decode_incarnations(lp.encode_incarnations({})) == {}
    sizes = [len(lp.encode_incarnations(dict.fromkeys(range(1, count + 1), first))) for count in (0, 14, 15, 1024)]
    assert sizes == [512, 512, 1024, 33280]


def test_incarnations_of_other_vendors_and_versions() -> None:
    page = bytearray(lp.encode_incarnations({7: bytes(range(16))}))
    newer = bytearray(page[:64] + page[64:96] + b"\xff" * 16 + page[64:80] + b"\x08" + page[81:96] + b"\xff" * 16)
    newer[16:24] = bytes.fromhex("02 00 30 00 02 00 00 00")
    assert lp.decode_incarnations(newer) == {7: bytes(range(16)), 8: bytes(range(16))}
    assert lp.decode_incarnations(bytes(512)) is None
    page[18] = 31
    with pytest.raises(ValueError, match="got entries of 31 bytes, wanted 32"):
        lp.decode_incarnations(page)
    page[18] = 0
    with pytest.raises(ValueError, match="got entries of 0 bytes"):
        lp.decode_incarnations(page)
    with pytest.raises(ValueError, match="needs 64 bytes, got 63"):
        lp.decode_incarnations(page[:63])
