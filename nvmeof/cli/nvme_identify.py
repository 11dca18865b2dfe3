"""id-ctrl, id-ns, list-ns and ns-descs."""

from __future__ import annotations

from uuid import UUID

from nvmeof.cli.nvme_session import Answer, Json, Request, Subparsers, add_admin_command, fields
from nvmeof.spec.command import Cns
from nvmeof.spec.fields import ascii_text, u128_value
from nvmeof.spec.identify import IDENTIFY_CONTROLLER, POWER_STATE, IdentifyController, PowerState
from nvmeof.spec.identify_lists import NamespaceIdentifiers, NamespaceIdentifierType, decode_namespace_list
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE, LBA_FORMAT, IdentifyNamespace, formatted_lba

CONTROLLER_TEXTS = {"sn", "mn", "fr"}
CONTROLLER_LONG_NUMBERS = {"tnvmcap", "unvmcap", "megcap", "maxdna"}
CONTROLLER_OTHER_NAMES = {"cdfs": "ocfs"}
"""Where nvme-cli's key is not the field's name here."""
# fmt: off
CONTROLLER_HEXADECIMAL = frozenset([
    "vid", "ssvid", "cmic", "cntlid", "ver", "rtd3r", "rtd3e", "oaes", "ctratt", "rrls", "bpcap", "plsi", "nvmsr",
    "vwci", "mec", "oacs", "frmw", "lpa", "avscc", "apsta", "rpmbs", "hctma", "sanicap", "anacap", "tmpthha", "sqes",
    "cqes", "oncs", "fuses", "fna", "vwc", "icsvscc", "nwpc", "ocfs", "sgls", "fcatt", "ofcs",
])
NAMESPACE_HEXADECIMAL = frozenset([
    "nsze", "ncap", "nuse", "nsfeat", "flbas", "mc", "dpc", "dps", "nmic", "rescap", "fpi", "dlfeat", "anagrpid",
    "nsattr",
])
# fmt: on


def register(subparsers: Subparsers) -> None:
    add_admin_command(subparsers, "id-ctrl", "Identify Controller", id_ctrl)
    add_admin_command(subparsers, "id-ns", "Identify Namespace", id_ns, namespace=True)
    add_admin_command(subparsers, "list-ns", "the active namespaces", list_ns)
    add_admin_command(subparsers, "ns-descs", "the identifiers of a namespace", ns_descs, namespace=True)


async def id_ctrl(request: Request) -> Answer:
    data = await request.controller.identify(Cns.CONTROLLER)
    record = controller_record(IDENTIFY_CONTROLLER.decode(data))
    lines = ["NVME Identify Controller:", *fields(record, hexadecimal=CONTROLLER_HEXADECIMAL)]
    states = record["psds"]
    assert isinstance(states, list)
    for index, state in enumerate(states):
        assert isinstance(state, dict)
        lines.append(f"ps {index:>6} : mp:{state['max_power']} enlat:{state['entry_lat']} exlat:{state['exit_lat']}")
    return Answer("\n".join(lines), record, data)


def controller_record(identity: IdentifyController) -> dict[str, Json]:
    record: dict[str, Json] = {}
    for name, value in identity._asdict().items():
        key = CONTROLLER_OTHER_NAMES.get(name, name)
        if name.startswith(("reserved", "psd")) or name == "vendor":
            continue
        if name in CONTROLLER_TEXTS:
            record[key] = ascii_text(value)
        elif name in CONTROLLER_LONG_NUMBERS:
            record[key] = u128_value(value)
        elif name == "ieee":
            record[key] = int.from_bytes(value, "little")
        elif name == "fguid":
            record[key] = str(UUID(bytes=value))
        elif name == "subnqn":
            record[key] = value.split(b"\0", 1)[0].decode(errors="replace")
        else:
            record[key] = value
    states = identity.psd0 + identity.psd_rest
    record["psds"] = [
        power_state(POWER_STATE.decode(states, 32 * index)) for index in range(min(identity.npss, 31) + 1)
    ]
    return record


def power_state(state: PowerState) -> dict[str, Json]:
    return {
        "max_power": state.mp,
        "flags": state.flags,
        "max_power_scale": state.flags & 1,
        "non-operational_state": state.flags >> 1 & 1,
        "entry_lat": state.enlat,
        "exit_lat": state.exlat,
        "read_tput": state.rrt,
        "read_lat": state.rrl,
        "write_tput": state.rwt,
        "write_lat": state.rwl,
        "idle_power": state.idlp,
        "idle_scale": state.ips >> 6,
        "active_power": state.actp,
        "active_power_work": state.apw & 7,
        "active_scale": state.apw >> 6,
    }


async def id_ns(request: Request) -> Answer:
    nsid = request.need_nsid()
    data = await request.controller.identify(Cns.NAMESPACE, nsid=nsid)
    namespace = IDENTIFY_NAMESPACE.decode(data)
    record = namespace_record(namespace)
    lines = [f"NVME Identify Namespace {nsid}:", *fields(record, hexadecimal=NAMESPACE_HEXADECIMAL, width=8)]
    formats = record["lbafs"]
    assert isinstance(formats, list)
    for index, each in enumerate(formats):
        assert isinstance(each, dict)
        in_use = " (in use)" if each["in_use"] else ""
        lines.append(f"lbaf {index:>3} : ms:{each['ms']:<3} lbads:{each['ds']:<2} rp:{each['rp']:#x}{in_use}")
    return Answer("\n".join(lines), record, data)


def namespace_record(namespace: IdentifyNamespace) -> dict[str, Json]:
    record: dict[str, Json] = {}
    for name, value in namespace._asdict().items():
        if name.startswith("reserved") or name in ("lbaf", "vendor"):
            continue
        record[name] = value
    record["nvmcap"] = u128_value(namespace.nvmcap)
    record["nguid"] = namespace.nguid.hex()
    record["eui64"] = namespace.eui64.hex()
    formats = [LBA_FORMAT.decode(namespace.lbaf, 4 * index) for index in range(min(namespace.nlbaf, 63) + 1)]
    in_use = formats.index(formatted_lba(namespace)) if namespace.nsze else -1
    record["lbafs"] = [
        {"lbaf": index, "ms": each.ms, "ds": each.lbads, "rp": each.rp, "in_use": int(index == in_use)}
        for index, each in enumerate(formats)
    ]
    return record


async def list_ns(request: Request) -> Answer:
    data = await request.controller.identify(Cns.ACTIVE_NAMESPACES)
    nsids = decode_namespace_list(data)
    text = "\n".join(f"[{index:4}]:{nsid:#x}" for index, nsid in enumerate(nsids)) or "no active namespaces"
    return Answer(text, {"nsid_list": [{"nsid": nsid} for nsid in nsids]}, data)


async def ns_descs(request: Request) -> Answer:
    nsid = request.need_nsid()
    data = await request.controller.identify(Cns.NAMESPACE_DESCRIPTORS, nsid=nsid)
    found = NamespaceIdentifiers.decode(data)
    texts = {
        NamespaceIdentifierType.EUI64: found.eui64.hex(),
        NamespaceIdentifierType.NGUID: found.nguid.hex(),
        NamespaceIdentifierType.UUID: str(UUID(bytes=found.uuid)) if found.uuid else "",
        NamespaceIdentifierType.CSI: "" if found.csi is None else f"{found.csi:#x}" if found.csi else "0",
    }
    present = {kind: text for kind, text in texts.items() if text}
    lines = [f"NVME Namespace Identification Descriptors NS {nsid}:"]
    lines += fields({kind.name.lower(): text for kind, text in present.items()}, width=7)
    descriptors: list[Json] = [
        {"nidt": int(kind), "type": kind.name.lower(), kind.name.lower(): text} for kind, text in present.items()
    ]
    return Answer("\n".join(lines), {"ns-descs": descriptors}, data)
