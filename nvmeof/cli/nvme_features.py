"""get-feature and set-feature."""

from __future__ import annotations

from pathlib import Path

from nvmeof.cli.nvme_session import Answer, Json, Request, Subparsers, add_admin_command, hex_dump, number
from nvmeof.errors import UsageError
from nvmeof.spec.command import FEATURE_SELECT_SHIFT, AdminOpcode, FeatureCapability, FeatureId, FeatureSelect
from nvmeof.spec.features import HOST_BEHAVIOR, HOST_IDENTIFIER, HOST_IDENTIFIER_SIZE, TIMESTAMP_SIZE, HostIdentifier

SELECTIONS = {
    FeatureSelect.CURRENT: "Current",
    FeatureSelect.DEFAULT: "Default",
    FeatureSelect.SAVED: "Saved",
    FeatureSelect.SUPPORTED: "Supported capabilities",
}
CAPABILITIES = {
    FeatureCapability.SAVEABLE: "saveable",
    FeatureCapability.NAMESPACE_SPECIFIC: "per-namespace",
    FeatureCapability.CHANGEABLE: "changeable",
}
DATA_SIZES: dict[int, int] = {
    FeatureId.TIMESTAMP: TIMESTAMP_SIZE,
    FeatureId.HOST_BEHAVIOR_SUPPORT: HOST_BEHAVIOR.size,
    FeatureId.HOST_IDENTIFIER: HOST_IDENTIFIER_SIZE,
}
"""Bytes of data of the features whose value is not in a dword."""
DWORD_MAX = 0xFFFF_FFFF


def register(subparsers: Subparsers) -> None:
    getter = add_admin_command(subparsers, "get-feature", "the value of a feature", get_feature, namespace=True)
    getter.add_argument("-f", "--feature-id", type=number, required=True, metavar="FID", help="which feature")
    getter.add_argument(
        "-s", "--sel", type=number, choices=range(4), default=0, help="0 current, 1 default, 2 saved, 3 capabilities"
    )
    setter = add_admin_command(subparsers, "set-feature", "change a feature", set_feature, namespace=True)
    setter.add_argument("-f", "--feature-id", type=number, required=True, metavar="FID", help="which feature")
    setter.add_argument("-V", "-v", "--value", type=number, default=0, metavar="VALUE", help="command dword 11")
    setter.add_argument("-d", "--data", type=Path, metavar="FILE", help="data of features whose value is no dword")
    setter.add_argument("-s", "--save", action="store_true", help="keep it over power cycles")


async def get_feature(request: Request) -> Answer:
    fid = feature_id(request)
    select = FeatureSelect(request.args.sel)
    length = 0 if select is FeatureSelect.SUPPORTED else DATA_SIZES.get(fid, 0)
    cdw11 = HOST_IDENTIFIER.encode(HostIdentifier(extended=1)) if fid == FeatureId.HOST_IDENTIFIER else 0
    completion = await request.controller.admin(
        AdminOpcode.GET_FEATURES, request.nsid, cdw10=fid | select << FEATURE_SELECT_SHIFT, cdw11=cdw11, data_in=length
    )
    value = f"{completion.dw0:#010x}"
    lines = [f"get-feature:{fid:#04x} ({feature_name(fid)}), {SELECTIONS[select]} value:{value}"]
    record: dict[str, Json] = {"feature": f"{fid:#04x}", "name": feature_name(fid), SELECTIONS[select]: value}
    if select is FeatureSelect.SUPPORTED:
        can: list[Json] = [name for bit, name in CAPABILITIES.items() if completion.dw0 & bit]
        lines.append(f"  {', '.join(map(str, can)) or 'not changeable'}")
        record["select"] = can
    if completion.data:
        lines += hex_dump(completion.data)
        record["data"] = completion.data.hex()
    return Answer("\n".join(lines), record, completion.data or completion.dw0.to_bytes(4, "little"))


async def set_feature(request: Request) -> Answer:
    args, fid = request.args, feature_id(request)
    if args.value > DWORD_MAX:
        raise UsageError(f"--value: got {args.value:#x}, wanted 32 bits")
    try:
        data = args.data.read_bytes() if args.data else b""
    except OSError as error:
        raise UsageError(f"--data {args.data}: {error.strerror}") from error
    result = await request.controller.set_features(fid, args.value, nsid=request.nsid, save=args.save, data=data)
    text = f"set-feature:{fid:#04x} ({feature_name(fid)}), value:{args.value:#010x}, result:{result:#010x}"
    record: dict[str, Json] = {
        "feature": f"{fid:#04x}",
        "name": feature_name(fid),
        "value": f"{args.value:#010x}",
        "result": f"{result:#010x}",
    }
    return Answer(text, record, result.to_bytes(4, "little"))


def feature_id(request: Request) -> int:
    fid = int(request.args.feature_id)
    if fid > 0xFF:
        raise UsageError(f"--feature-id: got {fid:#x}, wanted 8 bits")
    return fid


def feature_name(fid: int) -> str:
    return FeatureId(fid).name.replace("_", " ").title() if fid in list(FeatureId) else "Unknown"
