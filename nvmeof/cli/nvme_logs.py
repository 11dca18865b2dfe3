"""smart-log, error-log, fw-log, changed-ns-list-log, effects-log, incarnation-log and get-log."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from nvmeof.cli.nvme_session import (
    Answer,
    Json,
    Request,
    Subparsers,
    add_admin_command,
    fields,
    hex_dump,
    number,
)
from nvmeof.errors import TransportError, UsageError
from nvmeof.spec.command import NSID_ALL, AdminOpcode, CommandSet, IoOpcode, LogPage
from nvmeof.spec.fields import ascii_text, u128_value
from nvmeof.spec.identify import IDENTIFY_SIZE
from nvmeof.spec.identify_lists import NAMESPACE_LIST_MAX
from nvmeof.spec.logpage import (
    COMMANDS_SUPPORTED_SIZE,
    ERROR_ENTRY,
    ERROR_ENTRY_SIZE,
    FIRMWARE_SLOT_LOG,
    FIRMWARE_SLOT_SIZE,
    INCARNATION_HEADER,
    INCARNATION_MAGIC,
    SMART_LOG,
    SMART_SIZE,
    CommandEffects,
    ErrorEntry,
    SmartLog,
    decode_changed_namespaces,
    decode_incarnations,
)
from nvmeof.spec.status import describe

KELVIN_OF_ZERO_CELSIUS = 273
DATA_UNIT_BYTES = 512_000
SMART_COUNTERS = {
    "data_units_read": "data_units_read",
    "data_units_written": "data_units_written",
    "host_read_commands": "host_read_commands",
    "host_write_commands": "host_write_commands",
    "controller_busy_time": "controller_busy_time",
    "power_cycles": "power_cycles",
    "power_on_hours": "power_on_hours",
    "unsafe_shutdowns": "unsafe_shutdowns",
    "media_errors": "media_errors",
    "error_log_entries": "num_err_log_entries",
}
"""Fields of 128 bits, and nvme-cli's key for them."""
OPCODE_WORDS = {
    "ASYNC": "Asynchronous",
    "IO": "I/O",
    "SQ": "Submission Queue",
    "CQ": "Completion Queue",
    "LBA": "LBA",
    "NVM": "NVM",
}
ERROR_HEXADECIMAL = frozenset(["cmdid", "status_field", "parm_error_location", "lba", "nsid", "cs"])


def register(subparsers: Subparsers) -> None:
    add_admin_command(subparsers, "smart-log", "SMART / Health Information log", smart_log, namespace=True)
    errors = add_admin_command(subparsers, "error-log", "Error Information log", error_log)
    errors.add_argument("-e", "--log-entries", type=number, metavar="N", help="how many entries (default: all)")
    add_admin_command(subparsers, "fw-log", "Firmware Slot Information log", fw_log)
    changed = add_admin_command(subparsers, "changed-ns-list-log", "Changed Namespace List log", changed_ns_list_log)
    changed.add_argument("-r", "--rae", action="store_true", help="keep the event, do not clear it")
    add_admin_command(subparsers, "effects-log", "Commands Supported and Effects log", effects_log)
    add_admin_command(
        subparsers, "incarnation-log", "when writes may have been lost (ours)", incarnation_log, namespace=True
    )
    page = add_admin_command(subparsers, "get-log", "any log page, as bytes", get_log, namespace=True)
    page.add_argument("-i", "--log-id", type=number, required=True, metavar="LID", help="which log page")
    page.add_argument("-l", "--log-len", type=number, required=True, metavar="BYTES", help="a multiple of 4")
    page.add_argument(
        "-L", "--lpo", type=number, default=0, metavar="BYTES", help="offset, a multiple of 4 (default: 0)"
    )
    page.add_argument("-s", "--lsp", type=number, default=0, metavar="LSP", help="log specific field")
    page.add_argument("-S", "--lsi", type=number, default=0, metavar="LSI", help="log specific identifier")
    page.add_argument("-r", "--rae", action="store_true", help="keep the event that announced this page")


async def smart_log(request: Request) -> Answer:
    nsid = request.nsid or NSID_ALL
    data = await request.controller.get_log_page(LogPage.SMART, SMART_SIZE, nsid=nsid)
    log = SMART_LOG.decode(data)
    record = smart_record(log)
    shown: dict[str, Json] = dict(record)
    shown["critical_warning"] = f"{log.critical_warning:#x}"
    shown["temperature"] = celsius(log.temperature)
    for key in ("avail_spare", "spare_thresh", "percent_used"):
        shown[key] = f"{record[key]}%"
    for name in ("data_units_read", "data_units_written"):
        units = u128_value(getattr(log, name))
        shown[name] = f"{units} ({bytes_text(units * DATA_UNIT_BYTES)})"
    for key in record:
        if key.startswith("temperature_sensor_"):
            shown[key] = celsius(int(str(record[key])))
    title = f"Smart Log for NVME device:{request.device} namespace-id:{nsid:x}"
    return Answer("\n".join([title, *fields(shown, width=38)]), record, data)


def smart_record(log: SmartLog) -> dict[str, Json]:
    sensors = struct.unpack("<8H", log.temperature_sensors)
    return {
        "critical_warning": log.critical_warning,
        "temperature": log.temperature,
        "avail_spare": log.available_spare,
        "spare_thresh": log.available_spare_threshold,
        "percent_used": log.percentage_used,
        "endurance_grp_critical_warning_summary": log.endurance_group_warning,
        **{key: u128_value(getattr(log, name)) for name, key in SMART_COUNTERS.items()},
        "warning_temp_time": log.warning_temperature_time,
        "critical_comp_time": log.critical_temperature_time,
        **{f"temperature_sensor_{index}": value for index, value in enumerate(sensors, 1) if value},
        "thm_temp1_trans_count": log.thermal_transitions_1,
        "thm_temp2_trans_count": log.thermal_transitions_2,
        "thm_temp1_total_time": log.thermal_time_1,
        "thm_temp2_total_time": log.thermal_time_2,
    }


def celsius(kelvin: int) -> str:
    return f"{kelvin - KELVIN_OF_ZERO_CELSIUS} °C ({kelvin} K)" if kelvin else "not reported"


def bytes_text(count: float) -> str:
    """In decimal units, as disks are sold and nvme-cli prints."""
    units = iter(("B", "kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    while count >= 1000 and unit != "PB":
        count /= 1000
        unit = next(units)
    return f"{count:.2f} {unit}"


async def error_log(request: Request) -> Answer:
    available = request.controller.identity.elpe + 1
    wanted = request.args.log_entries
    count = available if wanted is None else max(1, min(wanted, available))
    data = await request.controller.get_log_page(LogPage.ERROR_INFORMATION, count * ERROR_ENTRY_SIZE)
    entries = [ERROR_ENTRY.decode(data, index * ERROR_ENTRY_SIZE) for index in range(count)]
    records = [error_record(entry) for entry in entries]
    lines = [f"Error Log Entries for device:{request.device} entries:{count}"]
    for index, (entry, record) in enumerate(zip(entries, records, strict=True)):
        if entry.error_count:
            lines += ["." * 17, f" Entry[{index:2}]", "." * 17]
            lines += fields(record, hexadecimal=ERROR_HEXADECIMAL, width=19)
            lines.append(f"{'status':19} : {describe(entry.status >> 1)}")
    if len(lines) == 1:
        lines.append("no errors")
    return Answer("\n".join(lines), {"errors": [*records]}, data)


def error_record(entry: ErrorEntry) -> dict[str, Json]:
    return {
        "error_count": entry.error_count,
        "sqid": entry.sqid,
        "cmdid": entry.cid,
        "status_field": entry.status >> 1,
        "phase_tag": entry.status & 1,
        "parm_error_location": entry.parameter_error,
        "lba": entry.lba,
        "nsid": entry.nsid,
        "vs": entry.vendor_page,
        "trtype": entry.trtype,
        "cs": entry.command_specific,
        "trtype_spec_info": entry.transport_specific,
    }


async def fw_log(request: Request) -> Answer:
    data = await request.controller.get_log_page(LogPage.FIRMWARE_SLOT, FIRMWARE_SLOT_SIZE)
    log = FIRMWARE_SLOT_LOG.decode(data)
    slots: dict[str, Json] = {"Active Firmware Slot (afi)": log.afi}
    lines = [f"Firmware Log for device:{request.device}", f"afi  : {log.afi:#x}"]
    for slot in range(1, 8):
        revision: bytes = getattr(log, f"frs{slot}")
        if revision[0]:
            value = int.from_bytes(revision, "little")
            slots[f"Firmware Rev Slot {slot}"] = f"{value} ({ascii_text(revision)})"
            lines.append(f"frs{slot} : {value:#018x} ({ascii_text(revision)})")
    return Answer("\n".join(lines), {request.device: slots}, data)


async def changed_ns_list_log(request: Request) -> Answer:
    data = await request.controller.get_log_page(LogPage.CHANGED_NAMESPACES, IDENTIFY_SIZE, rae=request.args.rae)
    nsids = decode_changed_namespaces(data)
    title = "Changed Namespace List Log"
    if nsids == [NSID_ALL]:
        return Answer("more than 1024 namespaces have changed", {title: request.device}, data)
    listed: dict[str, Json] = {f"[{index:4}]": f"{nsid:#x}" for index, nsid in enumerate(nsids, 1)}
    lines = [f"{place}: {nsid}" for place, nsid in listed.items()] or ["no namespace has changed"]
    return Answer("\n".join(lines), {title: request.device, request.device: listed}, data)


async def effects_log(request: Request) -> Answer:
    data = await request.controller.get_log_page(LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, COMMANDS_SUPPORTED_SIZE)
    effects = CommandEffects.decode(data)
    admin_names = {int(opcode): opcode.name for opcode in AdminOpcode}
    io_names = {int(opcode): opcode.name for opcode in IoOpcode}
    lines = ["Admin Command Set", *effect_lines("ACS", effects.admin, admin_names)]
    lines += ["", "NVM Command Set", *effect_lines("IOCS", effects.io, io_names)]
    record: dict[str, Json] = {
        "command_set_identifier": int(CommandSet.NVM),
        "admin_cmd_set": effect_record("ACS", effects.admin, admin_names),
        "io_cmd_set": effect_record("IOCS", effects.io, io_names),
    }
    return Answer("\n".join(lines), [record], data)


def opcode_name(opcode: int, names: Mapping[int, str]) -> str:
    """As nvme-cli spells it, since it is part of a key."""
    words = names.get(opcode, "UNKNOWN").split("_")
    return " ".join(OPCODE_WORDS.get(word, word.capitalize()) for word in words)


def effect_lines(prefix: str, effects: Mapping[int, int], names: Mapping[int, str]) -> list[str]:
    return [
        f"{f'{prefix}{opcode}':9} [{opcode_name(opcode, names):32}] {effect:08x}" for opcode, effect in effects.items()
    ]


def effect_record(prefix: str, effects: Mapping[int, int], names: Mapping[int, str]) -> dict[str, Json]:
    return {f"{prefix}_{opcode} ({opcode_name(opcode, names)})": effect for opcode, effect in effects.items()}


async def incarnation_log(request: Request) -> Answer:
    """Read in two parts: the head says how many entries there are."""
    controller, nsid = request.controller, request.nsid or NSID_ALL
    head = await controller.get_log_page(LogPage.INCARNATION, INCARNATION_HEADER.size, nsid=nsid)
    header = INCARNATION_HEADER.decode(head)
    if header.magic != INCARNATION_MAGIC:
        raise UsageError(f"{request.device}: log page C0h is of another vendor, wanted a target of ours")
    entries = min(header.entries, NAMESPACE_LIST_MAX) * header.entry_size
    length = -(-(INCARNATION_HEADER.size + entries) // 4) * 4
    data = await controller.get_log_page(LogPage.INCARNATION, length, nsid=nsid)
    try:
        incarnations = decode_incarnations(data) or {}
    except ValueError as error:
        raise TransportError(f"{request.device}: log page C0h: {error}") from error
    record: dict[str, Json] = {f"{number:#x}": each.hex() for number, each in incarnations.items()}
    title = f"Incarnations for device:{request.device}"
    return Answer("\n".join([title, *fields(record)]), {"incarnations": record}, data)


async def get_log(request: Request) -> Answer:
    args, nsid = request.args, request.nsid or NSID_ALL
    data = await request.controller.get_log_page(
        args.log_id, args.log_len, args.lpo, nsid=nsid, lsp=args.lsp, lsi=args.lsi, rae=args.rae
    )
    title = f"Device:{request.device} log-id:{args.log_id} namespace-id:{nsid:#x}"
    record: dict[str, Json] = {
        "device": request.device,
        "log_id": args.log_id,
        "nsid": nsid,
        "offset": args.lpo,
        "data": data.hex(),
    }
    return Answer("\n".join([title, *hex_dump(data)]), record, data)
