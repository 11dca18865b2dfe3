"""What nvme-cli reads from a controller: identify structures, logs, features and properties, raw and decoded."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest

from .kernel_host import KernelHost
from .target import Target

pytestmark = pytest.mark.kernel

Serve = Callable[..., Target]
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
INVALID_FIELD, INVALID_NAMESPACE, INVALID_LOG_PAGE = 0x002, 0x00B, 0x109
SUPPORTED_PAGES, ERRORS, HEALTH, FIRMWARE, CHANGED_NAMESPACES, EFFECTS, DISCOVERY = 0, 1, 2, 3, 4, 5, 0x70
LOG_BYTES = {SUPPORTED_PAGES: 1024, ERRORS: 64, HEALTH: 512, FIRMWARE: 512, CHANGED_NAMESPACES: 4096, EFFECTS: 4096}
FEATURES = {
    "arbitration": 0x01,
    "power": 0x02,
    "temperature": 0x04,
    "error-recovery": 0x05,
    "write-cache": 0x06,
    "queues": 0x07,
    "write-atomicity": 0x0A,
    "events": 0x0B,
    "timestamp": 0x0E,
    "keep-alive": 0x0F,
    "host": 0x81,
}
FEATURE_DATA_BYTES = {0x0E: 8, 0x81: 16}
CURRENT, DEFAULT, SAVED, CAPABILITIES = range(4)


class Connected(NamedTuple):
    target: Target
    controller: str
    disk: str


@pytest.fixture
def connected(serve: Serve, host: KernelHost) -> Connected:
    target = serve()
    return Connected(target, host.connect(target), host.disk(target))


def identify(host: KernelHost, controller: str, cns: int, nsid: int = 0) -> bytes:
    command = f"nvme admin-passthru {controller} --opcode=0x06 --cdw10={cns} --namespace-id={nsid}"
    data = host.raw(f"{command} --data-len=4096 --read --raw-binary")
    assert len(data) == 4096
    return data


def log_page(host: KernelHost, controller: str, page: int, length: int, offset: int = 0) -> bytes:
    data = host.raw(f"nvme get-log {controller} --log-id={page} --log-len={length} --lpo={offset} --raw-binary")
    assert len(data) == length
    return data


def feature(host: KernelHost, controller: str, fid: int, select: int) -> int:
    length = FEATURE_DATA_BYTES.get(fid, 0) if select != CAPABILITIES else 0
    scope = {FEATURES["host"]: "--cdw11=1", FEATURES["error-recovery"]: "--namespace-id=1"}.get(fid, "")
    printed = host.guest.ok(f"nvme get-feature {controller} -f {fid} -s {select} -l {length} {scope}")
    found = re.search(r"value:\s*(?:0x)?([0-9a-f]+)", printed)
    assert found, printed
    return int(found[1], 16)


def test_identify_controller(host: KernelHost, connected: Connected) -> None:
    target, controller, _ = connected
    raw = identify(host, controller, 0x01)
    decoded = host.json(f"nvme id-ctrl {controller} -o json")
    assert raw[768:1024].rstrip(b"\0").decode() == decoded["subnqn"] == target.nqn
    assert decoded["cntlid"] == int(host.guest.ok(f"cat {host.sysfs(controller)}/cntlid"))
    assert decoded["ver"] >= 0x20000
    assert (decoded["sqes"], decoded["cqes"], decoded["cntrltype"]) == (0x66, 0x44, 1)
    assert decoded["kas"] > 0
    assert decoded["nn"] >= 1
    assert decoded["mn"].strip()
    assert decoded["sn"].strip()
    assert decoded["fr"].strip()
    assert decoded["ioccsz"] >= 4
    assert decoded["iorcsz"] >= 1
    assert decoded["icdoff"] == 0


@pytest.mark.parametrize("block_size", [512, 4096])
def test_identify_namespace(serve: Serve, host: KernelHost, block_size: int) -> None:
    target = serve(block_size=block_size)
    controller = host.connect(target)
    decoded = host.json(f"nvme id-ns {host.disk(target)} -o json")
    size, capacity = struct.unpack_from("<QQ", identify(host, controller, 0x00, nsid=1))
    assert size == capacity == decoded["nsze"] == (256 << 20) // block_size
    assert 1 << decoded["lbafs"][decoded["flbas"] & 0xF]["ds"] == block_size
    assert decoded["dlfeat"] & 7 == 1
    assert identify(host, controller, 0x08, nsid=1)[14] & 1
    assert host.status(f"nvme id-ns {controller} -n 5000") == INVALID_NAMESPACE


def test_namespace_identifiers_agree(host: KernelHost, connected: Connected) -> None:
    _, controller, disk = connected
    descriptors = host.json(f"nvme ns-descs {disk} -o json")["ns-descs"]
    told = {entry["type"]: entry[entry["type"]].replace("-", "") for entry in descriptors}
    assert set(told) == {"eui64", "nguid", "uuid", "csi"}
    decoded = host.json(f"nvme id-ns {disk} -o json")
    assert (decoded["eui64"], decoded["nguid"]) == (told["eui64"], told["nguid"])
    sysfs = host.guest.ok(f"cd /sys/block/{disk[5:]} && cat eui nguid uuid").split("\n")
    assert [re.sub(r"[ -]", "", line) for line in sysfs[:3]] == [told["eui64"], told["nguid"], told["uuid"]]
    assert all(int(told[kind], 16) for kind in ("eui64", "nguid", "uuid"))
    assert identify(host, controller, 0x03, nsid=1)[0] in (1, 2, 3, 4)


def test_identify_lists(host: KernelHost, connected: Connected) -> None:
    _, controller, _ = connected
    cntlid = int(host.guest.ok(f"cat {host.sysfs(controller)}/cntlid"))
    assert host.json(f"nvme list-ns {controller} -o json") == {"nsid_list": [{"nsid": 1}]}
    for cns in (0x02, 0x10):
        assert struct.unpack_from("<II", identify(host, controller, cns)) == (1, 0)
    for cns, nsid in ((0x12, 1), (0x13, 0)):
        assert struct.unpack_from("<HH", identify(host, controller, cns, nsid)) == (1, cntlid)
    assert struct.unpack_from("<Q", identify(host, controller, 0x1C | 0xFFFF << 16)) == (1,)
    for cns, nsid in ((0x05, 1), (0x06, 0)):
        identify(host, controller, cns, nsid)
    refused = f"nvme admin-passthru {controller} --opcode=0x06 --cdw10=0x7f --data-len=4096 --read"
    assert host.status(refused) == INVALID_FIELD


def test_every_log_page_reads_whole_and_in_part(host: KernelHost, connected: Connected) -> None:
    _, controller, _ = connected
    supported = struct.unpack("<256I", log_page(host, controller, SUPPORTED_PAGES, 1024))
    pages = {page for page, entry in enumerate(supported) if entry & 1}
    assert pages >= set(LOG_BYTES)
    for page, length in LOG_BYTES.items():
        whole = log_page(host, controller, page, length)
        assert log_page(host, controller, page, 32, offset=16) == whole[16:48]
        assert log_page(host, controller, page, 4, offset=length - 4) == whole[-4:]
    for page in {0x08, 0x7F} - pages:
        assert host.status(f"nvme get-log {controller} --log-id={page} --log-len=512") == INVALID_LOG_PAGE
    beyond = f"nvme get-log {controller} --log-id={HEALTH} --log-len=4 --lpo=516"
    assert host.status(beyond) == INVALID_FIELD


def test_decoded_logs(host: KernelHost, connected: Connected) -> None:
    _, controller, _ = connected
    firmware = log_page(host, controller, FIRMWARE, 512)
    assert firmware[8:16].decode().strip() == host.json(f"nvme id-ctrl {controller} -o json")["fr"].strip()
    assert firmware[0] & 7 == 1
    assert not any(log_page(host, controller, CHANGED_NAMESPACES, 4096))
    effects = struct.unpack("<512I", log_page(host, controller, EFFECTS, 2048))
    assert all(effects[opcode] & 1 for opcode in (0x02, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18))
    assert all(effects[256 + opcode] & 1 for opcode in (0x00, 0x01, 0x02, 0x08, 0x09))
    assert not effects[0xBE]
    for command in ("smart-log", "error-log", "fw-log", "changed-ns-list-log", "effects-log", "supported-log-pages"):
        host.guest.ok(f"nvme {command} {controller}")


def test_health_log_counts(host: KernelHost, connected: Connected) -> None:
    _, controller, disk = connected
    before = host.json(f"nvme smart-log {controller} -o json")
    host.guest.ok(f"dd if=/dev/zero of={disk} bs=64k count=32 oflag=direct")
    host.guest.ok(f"dd if={disk} of=/dev/null bs=64k count=16 iflag=direct")
    after = host.json(f"nvme smart-log {controller} -o json")
    grown = {name: int(after[name]) - int(before[name]) for name in after if name.startswith(("data_", "host_"))}
    assert grown["host_write_commands"] == 32
    assert 16 <= grown["host_read_commands"] < 32
    assert grown["data_units_written"] in (4, 5)
    assert grown["data_units_read"] in (2, 3, 4)
    assert after["critical_warning"] == 0


def test_error_log_names_the_failed_command(host: KernelHost, connected: Connected) -> None:
    _, controller, disk = connected
    before = int(host.json(f"nvme smart-log {controller} -o json")["num_err_log_entries"])
    beyond = int(host.json(f"nvme id-ns {disk} -o json")["nsze"]) + 7
    host.status(f"nvme read {disk} -s {beyond} -c 0 -z 4096 -d /dev/null")
    newest = host.json(f"nvme error-log {controller} -o json")["errors"][0]
    assert newest["error_count"] == before + 1
    assert (newest["lba"], newest["nsid"], newest["status_field"] & 0x7FF) == (beyond, 1, 0x080)
    assert newest["sqid"] >= 1


def test_features_answer_every_select(host: KernelHost, connected: Connected) -> None:
    _, controller, _ = connected
    for fid in FEATURES.values():
        for select in (CURRENT, DEFAULT, SAVED):
            feature(host, controller, fid, select)
        assert feature(host, controller, fid, CAPABILITIES) <= 7


def test_features_take_new_values(host: KernelHost, connected: Connected) -> None:
    _, controller, _ = connected
    for fid, value in ((FEATURES["temperature"], 0x150), (FEATURES["write-cache"], 0)):
        default = feature(host, controller, fid, DEFAULT)
        host.guest.ok(f"nvme set-feature {controller} -f {fid} -v {value}")
        assert feature(host, controller, fid, CURRENT) == value
        assert feature(host, controller, fid, DEFAULT) == default
    assert feature(host, controller, FEATURES["keep-alive"], CURRENT) == 5000
    identifier = host.raw(f"nvme get-feature {controller} -f 0x81 -l 16 --cdw11=1 --raw-binary")
    assert identifier.hex() == host.guest.ok("cat /etc/nvme/hostid").strip().replace("-", "")
    host.guest.ok(r"printf '\000\120\245\324\350\000\000\000' >/run/stamp")
    host.guest.ok(f"nvme set-feature {controller} -f 0x0e -l 8 -d /run/stamp")
    stamp = int.from_bytes(host.raw(f"nvme get-feature {controller} -f 0x0e -l 8 --raw-binary")[:6], "little")
    assert 0 <= stamp - 0xE8D4A55000 < 60_000
    assert host.status(f"nvme get-feature {controller} -f 0x7f") == INVALID_FIELD


def test_properties_of_a_running_controller(host: KernelHost, connected: Connected) -> None:
    _, controller, _ = connected
    prints = [host.guest.ok(f"nvme get-property {controller} --offset={offset}") for offset in (0x0, 0x8, 0x14, 0x1C)]
    capabilities, version, configuration, status = (int(line.rsplit("value: ", 1)[1], 16) for line in prints)
    assert capabilities & 0xFFFF >= 127
    assert version >= 0x20000
    assert configuration & 1
    assert status & 0xF == 1


def test_abort_of_nothing_says_so(host: KernelHost, connected: Connected) -> None:
    answer = host.guest.ok(f"nvme admin-passthru {connected.controller} --opcode=0x08 --cdw10=0x7fff0001")
    assert "result: 0x00000001" in answer


def test_discovery_controller(serve: Serve, host: KernelHost) -> None:
    target = serve()
    answer = host.json(f"nvme connect {host.address(target)} -n {DISCOVERY_NQN} -o json")
    controller = f"/dev/{answer['device']}"
    decoded = host.json(f"nvme id-ctrl {controller} -o json")
    assert (decoded["cntrltype"], decoded["subnqn"]) == (2, DISCOVERY_NQN)
    header = log_page(host, controller, DISCOVERY, 1024)
    records = struct.unpack_from("<Q", header, 8)[0]
    whole = log_page(host, controller, DISCOVERY, 1024 * (1 + records))
    assert target.nqn.encode() in whole
    assert log_page(host, controller, DISCOVERY, 512, offset=1280) == whole[1280:1792]
    assert json.loads(host.guest.ok(f"nvme discover --device={answer['device']} -o json"))["records"]
