"""Get Log Page (NVMe Base 2.0, section 5.16): a page is made whole, then the part that was asked for is cut out."""

from __future__ import annotations

import importlib.metadata
import struct
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from nvmeof.limits import MDTS_BYTES
from nvmeof.spec.command import NSID_ALL, AdminOpcode, GetLogPageDwords, IoOpcode, LogPage
from nvmeof.spec.fields import u128
from nvmeof.spec.logpage import (
    FIRMWARE_SLOT_LOG,
    SMART_LOG,
    CommandEffect,
    CommandEffects,
    FirmwareSlotLog,
    LogPageSupport,
    SmartLog,
    SmartWarning,
    encode_changed_namespaces,
    encode_incarnations,
    encode_supported_log_pages,
)
from nvmeof.spec.status import DNR, Status
from nvmeof.target.command import Command, CommandError, Reply
from nvmeof.target.discovery import DiscoverySubsystem
from nvmeof.target.features import FEATURES
from nvmeof.target.locations import CDW10, CDW12, CDW14, NSID, invalid_field, invalid_namespace

if TYPE_CHECKING:
    from nvmeof.target.controller import Controller
    from nvmeof.target.subsystem import Subsystem

SPARE_THRESHOLD_PERCENT = 10
"""Less spare than this is a critical warning."""

DISTRIBUTION = "nvmeof-store"
FIRMWARE_SIZE = 8
DATA_UNIT = 512 * 1000
MI_COMMANDS_SIZE = 4096
_SUPPORTED = int(CommandEffect.SUPPORTED)
_IN_CONTROLLER = _SUPPORTED | CommandEffect.CONTROLLER_SCOPE
_CHANGES_DATA = _SUPPORTED | CommandEffect.BLOCK_CONTENT_CHANGE

DISCOVERY_EFFECTS: dict[int, int] = dict.fromkeys(
    (
        AdminOpcode.GET_LOG_PAGE,
        AdminOpcode.IDENTIFY,
        AdminOpcode.ABORT,
        AdminOpcode.SET_FEATURES,
        AdminOpcode.GET_FEATURES,
        AdminOpcode.ASYNC_EVENT_REQUEST,
        AdminOpcode.KEEP_ALIVE,
    ),
    _IN_CONTROLLER,
)
"""Admin commands of a discovery controller (figure 28): no feature or log of it belongs to a namespace."""

ADMIN_EFFECTS: dict[int, int] = DISCOVERY_EFFECTS | {
    AdminOpcode.IDENTIFY: _IN_CONTROLLER | CommandEffect.NAMESPACE_SCOPE,
    AdminOpcode.SET_FEATURES: _IN_CONTROLLER | CommandEffect.NAMESPACE_SCOPE,
    AdminOpcode.GET_FEATURES: _IN_CONTROLLER | CommandEffect.NAMESPACE_SCOPE,
}
IO_EFFECTS: dict[int, int] = {
    IoOpcode.FLUSH: _SUPPORTED,
    IoOpcode.WRITE: _CHANGES_DATA,
    IoOpcode.READ: _SUPPORTED,
    IoOpcode.WRITE_UNCORRECTABLE: _CHANGES_DATA,
    IoOpcode.WRITE_ZEROES: _CHANGES_DATA,
    IoOpcode.DATASET_MANAGEMENT: _CHANGES_DATA,
    IoOpcode.VERIFY: _SUPPORTED,
}
"""Without a scope: Linux up to 6.12 logs "unusual effects" for an I/O command that reports one."""


def get_log_page(controller: Controller, command: Command) -> Reply:
    """Execute Get Log Page. Raises CommandError."""
    dwords = GetLogPageDwords.decode(command.cdw10, command.cdw11, command.cdw12, command.cdw13, command.cdw14)
    pages = _DISCOVERY_PAGES if controller.is_discovery else _PAGES
    make = pages.get(dwords.lid)
    if make is None:
        raise CommandError(Status.INVALID_LOG_PAGE | DNR, location=CDW10)
    if command.nsid not in (0, NSID_ALL) and dwords.lid not in _NAMESPACE_PAGES:
        raise invalid_field(NSID)
    if dwords.length > MDTS_BYTES:
        raise invalid_field(CDW10 + 2)
    if dwords.offset_is_index:
        raise invalid_field(CDW14 + 2, bit=7)
    page = make(controller, command.nsid)
    if dwords.offset % 4 or dwords.offset > len(page):
        raise invalid_field(CDW12)
    if not dwords.rae:
        if dwords.lid == LogPage.CHANGED_NAMESPACES:
            controller.changed_namespaces.clear()
        controller.events.cleared(dwords.lid)
    return Reply(data=page[dwords.offset : dwords.offset + dwords.length].ljust(dwords.length, b"\0"))


@cache
def firmware_revision() -> str:
    """This release, in the 8 characters that Identify Controller has for it."""
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "source"
    return version[:FIRMWARE_SIZE]


def critical_warning(subsystem: Subsystem) -> int:
    """The SMART critical warnings that hold now (figure 207).

    Read-only means that all media are (the specification's word); one of several namespaces degrades reliability.
    """
    health = [namespace.volume.health for namespace in subsystem.namespaces.values()]
    warning = SmartWarning(0)
    if any(each.spare_percent < SPARE_THRESHOLD_PERCENT for each in health):
        warning |= SmartWarning.SPARE
    if any(each.degraded or each.read_only for each in health):
        warning |= SmartWarning.RELIABILITY
    if health and all(each.read_only for each in health):
        warning |= SmartWarning.READ_ONLY
    return int(warning)


def _smart(controller: Controller, nsid: int) -> bytes:
    """Figure 207. There is no thermometer: a temperature of 0 K is what targets report that have none."""
    subsystem = controller.subsystem
    health = [namespace.volume.health for namespace in subsystem.namespaces.values()]
    counters = subsystem.counters()
    log = SmartLog(
        critical_warning=critical_warning(subsystem),
        available_spare=max(0, min((each.spare_percent for each in health), default=100)),
        available_spare_threshold=SPARE_THRESHOLD_PERCENT,
        percentage_used=min(max((each.used_percent for each in health), default=0), 255),
        data_units_read=u128(-(-counters.read_bytes // DATA_UNIT)),
        data_units_written=u128(-(-counters.written_bytes // DATA_UNIT)),
        host_read_commands=u128(counters.reads),
        host_write_commands=u128(counters.writes),
        controller_busy_time=u128(int(subsystem.busy_seconds) // 60),
        power_cycles=u128(1),
        power_on_hours=u128(max(0, int(time.time() - subsystem.started)) // 3600),
        unsafe_shutdowns=u128(subsystem.unsafe_shutdowns),
        media_errors=u128(counters.media_errors),
        error_log_entries=u128(controller.errors.count),
    )
    return SMART_LOG.encode(log)


def _error_information(controller: Controller, nsid: int) -> bytes:
    return controller.errors.encode()


def _firmware_slot(controller: Controller, nsid: int) -> bytes:
    return FIRMWARE_SLOT_LOG.encode(FirmwareSlotLog(frs1=firmware_revision().encode().ljust(FIRMWARE_SIZE)))


def _changed_namespaces(controller: Controller, nsid: int) -> bytes:
    return encode_changed_namespaces(controller.changed_namespaces)


def _command_effects(controller: Controller, nsid: int) -> bytes:
    if controller.is_discovery:
        return CommandEffects(DISCOVERY_EFFECTS, {}).encode()
    return CommandEffects(ADMIN_EFFECTS, IO_EFFECTS).encode()


def _feature_effects(controller: Controller, nsid: int) -> bytes:
    """Figure 256: the dwords have the layout of the commands' ones, support in bit 0 and scope in bits 31:20."""
    dwords = [0] * 256
    for fid, feature in FEATURES.items():
        if feature.on_discovery or not controller.is_discovery:
            scope = CommandEffect.NAMESPACE_SCOPE if feature.namespace_specific else CommandEffect.CONTROLLER_SCOPE
            dwords[fid] = _SUPPORTED | scope
    return struct.pack("<256I", *dwords)


def _mi_commands(controller: Controller, nsid: int) -> bytes:
    """LPA bit 5 promises this page; no management interface command is supported."""
    return bytes(MI_COMMANDS_SIZE)


def _incarnation(controller: Controller, nsid: int) -> bytes:
    namespaces = controller.subsystem.namespaces
    if nsid in (0, NSID_ALL):
        return encode_incarnations({each.nsid: each.volume.incarnation for each in namespaces.values()})
    if nsid not in namespaces:
        raise invalid_namespace()
    return encode_incarnations({nsid: namespaces[nsid].volume.incarnation})


def _discovery(controller: Controller, nsid: int) -> bytes:
    assert isinstance(controller.subsystem, DiscoverySubsystem)
    return controller.subsystem.log_page(controller)


def _supported_pages(controller: Controller, nsid: int) -> bytes:
    pages = _DISCOVERY_PAGES if controller.is_discovery else _PAGES
    return encode_supported_log_pages(dict.fromkeys(pages, int(LogPageSupport.SUPPORTED)))


_PAGES: dict[int, Callable[[Controller, int], bytes]] = {
    LogPage.SUPPORTED_LOG_PAGES: _supported_pages,
    LogPage.ERROR_INFORMATION: _error_information,
    LogPage.SMART: _smart,
    LogPage.FIRMWARE_SLOT: _firmware_slot,
    LogPage.CHANGED_NAMESPACES: _changed_namespaces,
    LogPage.COMMANDS_SUPPORTED_AND_EFFECTS: _command_effects,
    LogPage.FEATURES_SUPPORTED_AND_EFFECTS: _feature_effects,
    LogPage.MI_COMMANDS_SUPPORTED_AND_EFFECTS: _mi_commands,
    LogPage.INCARNATION: _incarnation,
}
_NAMESPACE_PAGES = frozenset([LogPage.INCARNATION])
"""Those that may be asked for one namespace."""
_DISCOVERY_PAGES: dict[int, Callable[[Controller, int], bytes]] = {
    LogPage.SUPPORTED_LOG_PAGES: _supported_pages,
    LogPage.ERROR_INFORMATION: _error_information,
    LogPage.COMMANDS_SUPPORTED_AND_EFFECTS: _command_effects,
    LogPage.FEATURES_SUPPORTED_AND_EFFECTS: _feature_effects,
    LogPage.MI_COMMANDS_SUPPORTED_AND_EFFECTS: _mi_commands,
    LogPage.DISCOVERY: _discovery,
}
