from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.status import DNR, MORE, Status, StatusFields, describe, status_name, unpack_status

# include/linux/nvme.h of Linux 6.1, its NVME_SC_ numbers.
LINUX = {
    "SUCCESS": 0x0,
    "INVALID_OPCODE": 0x1,
    "INVALID_FIELD": 0x2,
    "COMMAND_ID_CONFLICT": 0x3,
    "DATA_TRANSFER_ERROR": 0x4,
    "ABORTED_POWER_LOSS": 0x5,
    "INTERNAL_ERROR": 0x6,
    "ABORT_REQUESTED": 0x7,
    "ABORTED_SQ_DELETION": 0x8,
    "ABORTED_FAILED_FUSED": 0x9,
    "ABORTED_MISSING_FUSED": 0xA,
    "INVALID_NAMESPACE_OR_FORMAT": 0xB,
    "COMMAND_SEQUENCE_ERROR": 0xC,
    "INVALID_SGL_SEGMENT_DESCRIPTOR": 0xD,
    "INVALID_SGL_DESCRIPTOR_COUNT": 0xE,
    "DATA_SGL_LENGTH_INVALID": 0xF,
    "METADATA_SGL_LENGTH_INVALID": 0x10,
    "SGL_DESCRIPTOR_TYPE_INVALID": 0x11,
    "INVALID_USE_OF_CMB": 0x12,
    "PRP_OFFSET_INVALID": 0x13,
    "ATOMIC_WRITE_UNIT_EXCEEDED": 0x14,
    "OPERATION_DENIED": 0x15,
    "SGL_OFFSET_INVALID": 0x16,
    "HOST_IDENTIFIER_INCONSISTENT_FORMAT": 0x18,
    "KEEP_ALIVE_TIMER_EXPIRED": 0x19,
    "KEEP_ALIVE_TIMEOUT_INVALID": 0x1A,
    "ABORTED_PREEMPT": 0x1B,
    "SANITIZE_FAILED": 0x1C,
    "SANITIZE_IN_PROGRESS": 0x1D,
    "SGL_DATA_BLOCK_GRANULARITY_INVALID": 0x1E,
    "COMMAND_NOT_SUPPORTED_IN_CMB": 0x1F,
    "NAMESPACE_WRITE_PROTECTED": 0x20,
    "COMMAND_INTERRUPTED": 0x21,
    "TRANSIENT_TRANSPORT_ERROR": 0x22,
    "ADMIN_COMMAND_MEDIA_NOT_READY": 0x24,
    "LBA_OUT_OF_RANGE": 0x80,
    "CAPACITY_EXCEEDED": 0x81,
    "NAMESPACE_NOT_READY": 0x82,
    "RESERVATION_CONFLICT": 0x83,
    "FORMAT_IN_PROGRESS": 0x84,
    "COMPLETION_QUEUE_INVALID": 0x100,
    "INVALID_QUEUE_IDENTIFIER": 0x101,
    "INVALID_QUEUE_SIZE": 0x102,
    "ABORT_LIMIT_EXCEEDED": 0x103,
    "ASYNC_EVENT_LIMIT_EXCEEDED": 0x105,
    "INVALID_FIRMWARE_SLOT": 0x106,
    "INVALID_FIRMWARE_IMAGE": 0x107,
    "INVALID_INTERRUPT_VECTOR": 0x108,
    "INVALID_LOG_PAGE": 0x109,
    "INVALID_FORMAT": 0x10A,
    "FIRMWARE_NEEDS_CONVENTIONAL_RESET": 0x10B,
    "INVALID_QUEUE_DELETION": 0x10C,
    "FEATURE_NOT_SAVEABLE": 0x10D,
    "FEATURE_NOT_CHANGEABLE": 0x10E,
    "FEATURE_NOT_NAMESPACE_SPECIFIC": 0x10F,
    "FIRMWARE_NEEDS_SUBSYSTEM_RESET": 0x110,
    "FIRMWARE_NEEDS_CONTROLLER_RESET": 0x111,
    "FIRMWARE_NEEDS_MAXIMUM_TIME_VIOLATION": 0x112,
    "FIRMWARE_ACTIVATION_PROHIBITED": 0x113,
    "OVERLAPPING_RANGE": 0x114,
    "NAMESPACE_INSUFFICIENT_CAPACITY": 0x115,
    "NAMESPACE_IDENTIFIER_UNAVAILABLE": 0x116,
    "NAMESPACE_ALREADY_ATTACHED": 0x118,
    "NAMESPACE_IS_PRIVATE": 0x119,
    "NAMESPACE_NOT_ATTACHED": 0x11A,
    "THIN_PROVISIONING_NOT_SUPPORTED": 0x11B,
    "CONTROLLER_LIST_INVALID": 0x11C,
    "SELF_TEST_IN_PROGRESS": 0x11D,
    "BOOT_PARTITION_WRITE_PROHIBITED": 0x11E,
    "INVALID_CONTROLLER_IDENTIFIER": 0x11F,
    "INVALID_SECONDARY_CONTROLLER_STATE": 0x120,
    "INVALID_CONTROLLER_RESOURCE_COUNT": 0x121,
    "INVALID_RESOURCE_IDENTIFIER": 0x122,
    "SANITIZE_PROHIBITED_PMR_ENABLED": 0x123,
    "ANA_GROUP_IDENTIFIER_INVALID": 0x124,
    "ANA_ATTACH_FAILED": 0x125,
    "CONFLICTING_ATTRIBUTES": 0x180,
    "INVALID_PROTECTION_INFORMATION": 0x181,
    "WRITE_TO_READ_ONLY_RANGE": 0x182,
    "CONNECT_INCOMPATIBLE_FORMAT": 0x180,
    "CONNECT_CONTROLLER_BUSY": 0x181,
    "CONNECT_INVALID_PARAMETERS": 0x182,
    "CONNECT_RESTART_DISCOVERY": 0x183,
    "CONNECT_INVALID_HOST": 0x184,
    "DISCOVER_RESTART": 0x190,
    "AUTHENTICATION_REQUIRED": 0x191,
    "ZONE_BOUNDARY_ERROR": 0x1B8,
    "ZONE_IS_FULL": 0x1B9,
    "ZONE_IS_READ_ONLY": 0x1BA,
    "ZONE_IS_OFFLINE": 0x1BB,
    "ZONE_INVALID_WRITE": 0x1BC,
    "TOO_MANY_ACTIVE_ZONES": 0x1BD,
    "TOO_MANY_OPEN_ZONES": 0x1BE,
    "INVALID_ZONE_STATE_TRANSITION": 0x1BF,
    "WRITE_FAULT": 0x280,
    "UNRECOVERED_READ_ERROR": 0x281,
    "GUARD_CHECK_ERROR": 0x282,
    "APPLICATION_TAG_CHECK_ERROR": 0x283,
    "REFERENCE_TAG_CHECK_ERROR": 0x284,
    "COMPARE_FAILURE": 0x285,
    "ACCESS_DENIED": 0x286,
    "DEALLOCATED_OR_UNWRITTEN_BLOCK": 0x287,
    "INTERNAL_PATH_ERROR": 0x300,
    "ANA_PERSISTENT_LOSS": 0x301,
    "ANA_INACCESSIBLE": 0x302,
    "ANA_TRANSITION": 0x303,
    "CONTROLLER_PATHING_ERROR": 0x360,
    "HOST_PATHING_ERROR": 0x370,
    "ABORTED_BY_HOST": 0x371,
}
# include/spdk/nvme_spec.h, what Linux does not name.
SPDK = {
    "PROHIBITED_BY_LOCKDOWN": 0x23,
    "FDP_DISABLED": 0x29,
    "INVALID_PLACEMENT_HANDLE_LIST": 0x2A,
    "INVALID_VALUE_SIZE": 0x85,
    "INVALID_KEY_SIZE": 0x86,
    "KEY_DOES_NOT_EXIST": 0x87,
    "UNRECOVERED_ERROR": 0x88,
    "KEY_EXISTS": 0x89,
}
# nvme-types.h of nvme-cli 3, what neither of them names.
LIBNVME = {
    "INVALID_KEY_TAG": 0x25,
    "HOST_DISPERSED_NAMESPACE_NOT_ENABLED": 0x26,
    "HOST_IDENTIFIER_NOT_INITIALIZED": 0x27,
    "INCORRECT_KEY": 0x28,
    "INSUFFICIENT_CAPACITY": 0x126,
    "NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED": 0x127,
    "LOCKDOWN_NOT_SUPPORTED": 0x128,
    "IO_COMMAND_SET_NOT_SUPPORTED": 0x129,
    "IO_COMMAND_SET_NOT_ENABLED": 0x12A,
    "IO_COMMAND_SET_COMBINATION_REJECTED": 0x12B,
    "INVALID_IO_COMMAND_SET": 0x12C,
    "IDENTIFIER_UNAVAILABLE": 0x12D,
    "INVALID_DISCOVERY_INFORMATION": 0x12F,
    "ZONING_DATA_STRUCTURE_LOCKED": 0x130,
    "ZONING_DATA_STRUCTURE_NOT_FOUND": 0x131,
    "INSUFFICIENT_DISCOVERY_RESOURCES": 0x132,
    "REQUESTED_FUNCTION_DISABLED": 0x133,
    "ZONEGROUP_ORIGINATOR_INVALID": 0x134,
    "INVALID_CONTROLLER_DATA_QUEUE": 0x137,
    "NOT_ENOUGH_RESOURCES": 0x138,
    "CONTROLLER_SUSPENDED": 0x139,
    "CONTROLLER_NOT_SUSPENDED": 0x13A,
    "CONTROLLER_DATA_QUEUE_FULL": 0x13B,
    "COMMAND_SIZE_LIMIT_EXCEEDED": 0x183,
    "INCOMPATIBLE_NAMESPACE_OR_FORMAT": 0x185,
    "INVALID_QUEUE_TYPE": 0x185,
    "FAST_COPY_NOT_POSSIBLE": 0x186,
    "OVERLAPPING_IO_RANGE": 0x187,
    "INSUFFICIENT_RESOURCES": 0x189,
    "INVALID_ZONE_OPERATION_REQUEST": 0x1B6,
    "ZRWA_RESOURCES_UNAVAILABLE": 0x1B7,
    "STORAGE_TAG_CHECK_ERROR": 0x288,
}


@pytest.mark.parametrize(("name", "value"), [*LINUX.items(), *SPDK.items(), *LIBNVME.items()])
def test_numbers_agree_with_linux_spdk_and_libnvme(name: str, value: int) -> None:
    assert Status[name] == value


@pytest.mark.parametrize(
    ("sct", "sc", "name"),
    [
        (0, 0x00, "Successful Completion"),
        (0, 0x02, "Invalid Field in Command"),
        (0, 0x07, "Command Abort Requested"),
        (0, 0x0C, "Command Sequence Error"),
        (0, 0x20, "Namespace is Write Protected"),
        (0, 0x80, "LBA Out of Range"),
        (0, 0x81, "Capacity Exceeded"),
        (1, 0x05, "Asynchronous Event Request Limit Exceeded"),
        (1, 0x09, "Invalid Log Page"),
        (1, 0x0D, "Feature Identifier Not Saveable"),
        (1, 0x82, "Attempted Write to Read Only Range"),
        (1, 0x90, "Discover Restart"),
        (2, 0x80, "Write Fault"),
        (2, 0x81, "Unrecovered Read Error"),
        (3, 0x02, "Asymmetric Access Inaccessible"),
        (3, 0x71, "Command Aborted By Host"),
        (0, 0x17, "Reserved 17h"),
        (1, 0x04, "Reserved 04h"),
        (0, 0xC0, "Vendor Specific C0h"),
        (7, 0x01, "Vendor Specific 01h"),
        (5, 0xFF, "Reserved FFh"),
    ],
)
def test_names(sct: int, sc: int, name: str) -> None:
    assert status_name(sct, sc) == name


@pytest.mark.parametrize(
    ("sc", "name"),
    [
        (0x80, "Connect Incompatible Format"),
        (0x81, "Connect Controller Busy"),
        (0x82, "Connect Invalid Parameters"),
        (0x83, "Connect Restart Discovery"),
        (0x84, "Connect Invalid Host"),
        (0x85, "Invalid Queue Type"),
        (0x91, "Authentication Required"),
        (0x09, "Invalid Log Page"),
    ],
)
def test_names_for_fabrics_commands(sc: int, name: str) -> None:
    assert status_name(1, sc, fabrics=True) == name


def test_every_status_has_a_name_of_its_own() -> None:
    names = [status_name(value >> 8, value & 0xFF) for value in {member.value for member in Status}]
    assert len(set(names)) == len(names)
    assert not any(name.startswith(("Reserved", "Vendor")) for name in names)


def test_fields_of_a_status_value() -> None:
    assert unpack_status(Status.LBA_OUT_OF_RANGE | DNR) == StatusFields(0, 0x80, 0, False, True)
    assert unpack_status(Status.WRITE_FAULT | MORE | 2 << 11) == StatusFields(2, 0x80, 2, True, False)
    assert (Status.LBA_OUT_OF_RANGE | DNR) << 1 == 0x8100


def test_description() -> None:
    assert describe(Status.INVALID_FIELD | DNR) == "Invalid Field in Command (SCT 0x0, SC 0x02, DNR)"
    assert describe(Status.CONNECT_INVALID_HOST, fabrics=True) == "Connect Invalid Host (SCT 0x1, SC 0x84)"


@given(st.integers(0, 0x7FFF), st.booleans())
def test_any_status_can_be_described(status: int, fabrics: bool) -> None:
    fields = unpack_status(status)
    assert fields.sc | fields.sct << 8 | fields.crd << 11 | fields.more * MORE | fields.dnr * DNR == status
    assert describe(status, fabrics=fabrics).isprintable()
