"""The nvme-like commands against a target on a real socket: key names, exit codes, bytes."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pytest

import nvmeof
from nvmeof.cli import nvme_io
from nvmeof.cli.main import main
from nvmeof.spec.fabrics import DISCOVERY_NQN
from tests.conftest import LIVE_BYTES, LIVE_NQN, LiveTarget

BLOCK = 4096

# Key names of nvme-cli 2.3 and later (nvme-print-json.c), which scripts rely on.
ID_CTRL_KEYS = """
    vid ssvid sn mn fr rab ieee cmic mdts cntlid ver rtd3r rtd3e oaes ctratt rrls cntrltype fguid crdt1 crdt2 crdt3
    nvmsr vwci mec oacs acl aerl frmw lpa elpe npss avscc apsta wctemp cctemp mtfa hmpre hmmin tnvmcap unvmcap rpmbs
    edstt dsto fwug kas hctma mntmt mxtmt sanicap hmminds hmmaxd nsetidmax endgidmax anatt anacap anagrpmax nanagrpid
    pels domainid megcap sqes cqes maxcmd nn oncs fuses fna vwc awun awupf icsvscc nwpc acwu ocfs sgls mnan maxdna
    maxcna subnqn ioccsz iorcsz icdoff fcatt msdbd ofcs psds
"""
ID_NS_KEYS = """
    nsze ncap nuse nsfeat nlbaf flbas mc dpc dps nmic rescap fpi dlfeat nawun nawupf nacwu nabsn nabo nabspf noiob
    nvmcap mssrl mcl msrc nulbaf anagrpid nsattr nvmsetid endgid nguid eui64 lbafs
"""
SMART_KEYS = """
    critical_warning temperature avail_spare spare_thresh percent_used endurance_grp_critical_warning_summary
    data_units_read data_units_written host_read_commands host_write_commands controller_busy_time power_cycles
    power_on_hours unsafe_shutdowns media_errors num_err_log_entries warning_temp_time critical_comp_time
    thm_temp1_trans_count thm_temp2_trans_count thm_temp1_total_time thm_temp2_total_time
"""
ERROR_KEYS = """
    error_count sqid cmdid status_field phase_tag parm_error_location lba nsid vs trtype cs trtype_spec_info
"""
DISCOVERY_KEYS = "trtype adrfam subtype treq portid trsvcid subnqn traddr eflags sectype"


class Result(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def record(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    def call(*arguments: str | Path) -> Result:
        code = main([str(argument) for argument in arguments])
        captured = capfdbinary.readouterr()
        return Result(code, captured.out, captured.err.decode())

    return call


@pytest.fixture
def good(run: Run) -> Run:
    def call(*arguments: str | Path) -> Result:
        result = run(*arguments)
        assert result.code == 0, result.err
        assert result.err == ""
        return result

    return call


def test_discover(good: Run, live_target: LiveTarget) -> None:
    record = good("discover", live_target.address, "-o", "json").record
    assert set(record) == {"genctr", "records"}
    served = {entry["subnqn"]: entry for entry in record["records"]}
    assert set(served) == {DISCOVERY_NQN, LIVE_NQN}
    entry = served[LIVE_NQN]
    assert list(entry) == DISCOVERY_KEYS.split()
    assert (entry["trtype"], entry["adrfam"], entry["subtype"]) == ("tcp", "ipv4", "nvme subsystem")
    assert (entry["traddr"], entry["trsvcid"]) == (live_target.host, str(live_target.port))
    assert served[DISCOVERY_NQN]["subtype"] == "current discovery subsystem"
    text = good("discover", f"nvme+tcp://{live_target.address}").text
    assert text.startswith(f"Discovery Log Number of Records 2, Generation counter {record['genctr']}\n")
    assert f"subnqn:  {LIVE_NQN}\n" in text
    assert len(good("discover", live_target.address, "-o", "binary").out) == 3 * 1024


def test_id_ctrl(good: Run, live_target: LiveTarget) -> None:
    record = good("id-ctrl", live_target.subsystem_url, "-o", "json").record
    assert not set(ID_CTRL_KEYS.split()) - set(record)
    assert record["subnqn"] == LIVE_NQN
    assert len(record["psds"]) == record["npss"] + 1
    data = good("id-ctrl", live_target.subsystem_url, "-o", "binary").out
    assert len(data) == 4096
    assert data[4:24].decode().strip() == record["sn"]
    text = good("id-ctrl", live_target.subsystem_url).text
    assert f"subnqn    : {LIVE_NQN}\n" in text
    assert f"oncs      : {record['oncs']:#x}\n" in text


def test_id_ns(good: Run, live_target: LiveTarget) -> None:
    record = good("id-ns", live_target.url, "-o", "json").record
    assert not set(ID_NS_KEYS.split()) - set(record)
    assert record["nsze"] == LIVE_BYTES // BLOCK
    assert [each["ds"] for each in record["lbafs"] if each["in_use"]] == [12]
    assert good("id-ns", live_target.subsystem_url, "-n", "1", "-o", "json").record == record
    assert "lbads:12 rp:0x0 (in use)" in good("id-ns", live_target.url).text


def test_lists_of_namespaces(good: Run, live_target: LiveTarget) -> None:
    assert good("list-ns", live_target.subsystem_url, "-o", "json").record == {"nsid_list": [{"nsid": 1}]}
    assert good("list-ns", live_target.subsystem_url).text == "[   0]:0x1\n"
    descriptors = good("ns-descs", live_target.url, "-o", "json").record["ns-descs"]
    found = {each["type"]: each[each["type"]] for each in descriptors}
    identity = good("id-ns", live_target.url, "-o", "json").record
    assert (found["nguid"], found["eui64"]) == (identity["nguid"], identity["eui64"])
    assert found["uuid"].replace("-", "") == identity["nguid"]


def test_smart_log_counts(good: Run, live_target: LiveTarget, tmp_path: Path) -> None:
    before = good("smart-log", live_target.subsystem_url, "-o", "json").record
    assert not set(SMART_KEYS.split()) - set(before)
    good("read", live_target.url, "-c", "249", "-d", tmp_path / "data")
    after = good("smart-log", live_target.subsystem_url, "-o", "json").record
    assert after["data_units_read"] - before["data_units_read"] in (2, 3)
    text = good("smart-log", live_target.subsystem_url).text
    assert text.startswith(f"Smart Log for NVME device:{live_target.subsystem_url} namespace-id:ffffffff\n")
    assert text.count("\n") == 1 + len(after)


def test_error_log_names_the_newest_error(good: Run, run: Run, live_target: LiveTarget) -> None:
    assert run("get-log", live_target.subsystem_url, "-i", "0xee", "-l", "512").code == 3
    url = live_target.subsystem_url
    errors = good("error-log", url, "-e", "1", "-o", "json").record["errors"]
    assert len(errors) == 1
    assert list(errors[0]) == ERROR_KEYS.split()
    assert "errors" in good("error-log", url, "-o", "json").record


def test_other_logs(good: Run, live_target: LiveTarget) -> None:
    url = live_target.subsystem_url
    firmware = good("fw-log", url, "-o", "json").record[url]
    assert firmware["Active Firmware Slot (afi)"] == 1
    assert "Firmware Rev Slot 1" in firmware
    changed = good("changed-ns-list-log", url, "-o", "json").record
    assert changed == {"Changed Namespace List Log": url, url: {}}
    (effects,) = good("effects-log", url, "-o", "json").record
    assert "ACS_6 (Identify)" in effects["admin_cmd_set"]
    assert "IOCS_2 (Read)" in effects["io_cmd_set"]
    assert "Write Zeroes" in good("effects-log", url).text
    for name in ("fw-log", "changed-ns-list-log", "error-log"):
        assert good(name, url).text


def test_incarnation_log(good: Run, live_target: LiveTarget) -> None:
    url = live_target.subsystem_url
    found = good("incarnation-log", url, "-o", "json").record["incarnations"]
    assert list(found) == ["0x1"]
    assert len(bytes.fromhex(found["0x1"])) == 16
    assert good("incarnation-log", url, "-n", "1", "-o", "json").record["incarnations"] == found
    assert good("incarnation-log", url).text == f"Incarnations for device:{url}\n0x1       : {found['0x1']}\n"
    page = good("get-log", url, "-i", "0xc0", "-l", "512", "-o", "binary").out
    assert page[:16] == b"nvmeof incarnate"
    assert page[64:80].hex() == found["0x1"]
    assert good("incarnation-log", url, "-o", "binary").out == page[:96]


def test_an_incarnation_log_that_is_not_there(run: Run, live_target: LiveTarget) -> None:
    assert run("incarnation-log", live_target.subsystem_url, "-n", "2").code == 3


def test_get_log(good: Run, live_target: LiveTarget) -> None:
    url = live_target.subsystem_url
    whole = good("get-log", url, "-i", "3", "-l", "512", "-o", "binary").out
    assert len(whole) == 512
    assert good("get-log", url, "-i", "3", "-l", "8", "-L", "8", "-o", "binary").out == whole[8:16]
    assert good("get-log", url, "-i", "0x3", "-l", "512", "-o", "json").record["data"] == whole.hex()
    assert good("get-log", url, "-i", "3", "-l", "32").text.count("\n") == 4


def test_features(good: Run, live_target: LiveTarget) -> None:
    url = live_target.subsystem_url
    record = good("get-feature", url, "-f", "6", "-o", "json").record
    assert record["name"] == "Volatile Write Cache"
    assert int(record["Current"], 16) in (0, 1)
    assert "changeable" in good("get-feature", url, "-f", "0xb", "-s", "3", "-o", "json").record["select"]
    assert good("get-feature", url, "-f", "0x0b", "-s", "1").text.startswith("get-feature:0x0b (Async Event")
    assert len(good("get-feature", url, "-f", "0xe", "-o", "binary").out) == 8
    assert len(good("get-feature", url, "-f", "0x81", "-o", "binary").out) == 16
    changed = good("set-feature", url, "-f", "0xb", "-V", "0x100", "-o", "json").record
    assert (changed["feature"], changed["value"]) == ("0x0b", "0x00000100")


def test_data_goes_both_ways(good: Run, live_target: LiveTarget, tmp_path: Path, rng: random.Random) -> None:
    data = rng.randbytes(3 * BLOCK)
    (tmp_path / "in").write_bytes(data)
    written = good("write", live_target.url, "-s", "5", "-c", "2", "-d", tmp_path / "in", "-o", "json").record
    assert (written["blocks"], written["bytes"]) == (3, 3 * BLOCK)
    assert good("read", live_target.url, "-s", "5", "-c", "2").out == data
    good("read", live_target.url, "-s", "5", "-c", "2", "-z", "100", "-d", tmp_path / "out", "-gG", "--io-queues", "2")
    assert (tmp_path / "out").read_bytes() == data[:100]
    assert live_target.backing.read_bytes()[5 * BLOCK : 8 * BLOCK] == data
    assert "Success" in good("write", live_target.url, "-d", tmp_path / "in", "--force-unit-access").text
    assert good("flush", live_target.url, "-o", "json").record["nsid"] == 1
    assert "success" in good("flush", live_target.subsystem_url, "-n", "1").text


def test_the_data_is_read_before_anything_connects(
    run: Run, live_target: LiveTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real = nvme_io.open_namespace

    def read_up_to(file: BinaryIO, size: int) -> bytes:
        events.append("read")
        return bytes(size)

    def open_namespace(args: argparse.Namespace) -> AbstractAsyncContextManager[nvmeof.Namespace]:
        events.append("connect")
        return real(args)

    monkeypatch.setattr(nvme_io, "read_up_to", read_up_to)
    monkeypatch.setattr(nvme_io, "open_namespace", open_namespace)
    (tmp_path / "in").touch()
    assert run("write", live_target.url, "-d", tmp_path / "in").code == 0
    assert events == ["read", "connect"]


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (64, "write {url} -c 65536"),
        (64, "id-ns {subsystem}"),
        (64, "id-ns {subsystem} -n 99999999999"),
        (64, "smart-log {subsystem} -n 99999999999"),
        (64, "flush {subsystem}"),
        (64, "id-ctrl http://127.0.0.1/"),
        (64, "id-ctrl nvme+tcp://{address}"),
        (64, "id-ctrl {subsystem} -o yaml"),
        (64, "id-ctrl {subsystem} --hostid x"),
        (64, "discover [::1"),
        (64, "discover nvme+tcp:/foo"),
        (3, "discover NVME+TCP://127.0.0.1:1"),
        (64, "read {url} -c 65536"),
        (64, "read {url} -c -1"),
        (64, "read {url} -z 4097"),
        (64, "read {url} -o json"),
        (64, "read {url} -d /nonexistent/file"),
        (64, "write {url} -d /nonexistent"),
        (64, "write {url} -d /dev/null"),
        (64, "get-log {subsystem} -i 2"),
        (64, "get-log {subsystem} -i 2 -l 5"),
        (64, "get-feature {subsystem} -f 256"),
        (64, "set-feature {subsystem} -f 6 -V 0x100000000"),
        (64, "get-feature {subsystem} -f six"),
        (3, "get-log {subsystem} -i 0xee -l 512"),
        (3, "get-feature {subsystem} -f 0x7f"),
        (3, "id-ns {subsystem}/77 -n 4294967294"),
        (3, "id-ctrl nvme+tcp://127.0.0.1:1/nqn.2026-11.org.example:nobody"),
        (3, "id-ctrl nvme+tcp://{address}/nqn.2026-11.org.example:nobody"),
        (64, "read {url} -s 16384 -d /dev/null"),
    ],
)
def test_refusals_are_one_line(run: Run, live_target: LiveTarget, code: int, line: str) -> None:
    known = {"address": live_target.address, "subsystem": live_target.subsystem_url, "url": live_target.url}
    result = run(*line.format(**known).split())
    assert result.code == code, result.err
    assert result.out == b""
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
