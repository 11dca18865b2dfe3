"""``nvmeof serve``: what the arguments ask for, what it prints, and how it ends; mostly as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeof.cli import serve
from nvmeof.cli.main import main
from nvmeof.errors import UsageError
from nvmeof.target.config import ListenerConfig, NamespaceConfig, SubsystemConfig, TargetConfig
from tests.protocol import wire
from tests.target.rawhost import RawHost, connect_data, connect_sqe

SECONDS = 30
PACKAGE_ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
NQN, HOST = "nqn.2026-11.org.example:disk", "nqn.2026-11.org.example:host"
DISCOVERY = "nqn.2014-08.org.nvmexpress.discovery"
READY = re.compile(r"READY (\S+)")
CONNECT = re.compile(r"nvme connect -t tcp -a (\S+) -s (\d+) -n (\S+)")


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.register(parser.add_subparsers())
    return parser.parse_args(["serve", *argv])


def wanted(*argv: str) -> TargetConfig:
    return serve.config_of(parsed(*argv))


def test_the_least() -> None:
    assert wanted("disk.img") == TargetConfig(
        (SubsystemConfig((NamespaceConfig(Path("disk.img")),)),), (ListenerConfig("127.0.0.1", 4420),)
    )


def test_everything() -> None:
    config = wanted(
        *("disk.img", "--size", "1G", "--block-size", "512", "--listen", "[::1]:0", "--listen", "0.0.0.0:1"),
        *("--nqn", NQN, "--allow-host", HOST, "--allow-host", HOST + "2", "--advertise", "192.0.2.1:5"),
        *("--congestion", "reno", "--discovery-listen", "127.0.0.1"),
    )
    assert config == TargetConfig(
        (
            SubsystemConfig(
                (NamespaceConfig(Path("disk.img"), size=1 << 30, block_size=512),),
                nqn=NQN,
                allowed_hosts=(HOST, HOST + "2"),
            ),
        ),
        (
            ListenerConfig("::1", 0, ("192.0.2.1", 5), congestion="reno"),
            ListenerConfig("0.0.0.0", 1, congestion="reno"),
            ListenerConfig("127.0.0.1", 8009, discovery_only=True, congestion="reno"),
        ),
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "got neither DISK nor --pool nor --config"),
        (["a", "--config", "b"], "DISK: got it together with --config"),
        (["--config", "b", "--nqn", NQN], "--nqn: got it together with --config"),
        (["--config", "b", "--block-size", "512"], "--block-size: got it together with --config"),
        (["a", "--advertise", "192.0.2.1:1", "--advertise", "192.0.2.2:1"], "--advertise: got 2, wanted at most one"),
    ],
)
def test_arguments_that_do_not_go_together(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        wanted(*argv)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a", "--size", "12Q"], 'argument --size: got "12Q", wanted bytes or a number with K, M, G, T, above 0'),
        (["a", "--block-size", "1024"], 'argument --block-size: got "1024", wanted 512 or 4096'),
        (["a", "--listen", "a:b"], 'argument --listen: got "a:b", wanted HOST:PORT or [IPV6]:PORT'),
        (["a", "--discovery-listen", "::"], 'argument --discovery-listen: got "::", wanted HOST:PORT or [IPV6]:PORT'),
        (["a", "--advertise", "here:1"], 'argument --advertise: got "here:1", wanted a numeric address'),
        (["a", "--nqn", "disk"], "argument --nqn: NQN: got 'disk', wanted nqn."),
        (["a", "--nqn", DISCOVERY], f'argument --nqn: got "{DISCOVERY}", wanted another NQN'),
        (["a", "--allow-host", "x y"], "argument --allow-host: NQN: got 'x y', wanted no white space"),
        (["a", "--loop", "trio"], "argument --loop: invalid choice: 'trio'"),
        (["a.img"], "a.img: does not exist, and no size"),
        (["a.img", "--size", "1000"], "a.img: size 1000 bytes"),
        (["no/such/a.img", "--size", "1M"], "no/such/a.img: cannot be created"),
        (["--config", "none.toml"], "none.toml: cannot be read: No such file or directory"),
        (["a.img", "--size", "1M", "--listen", "127.0.0.1:0", "--congestion", "nope"], "congestion control 'nope': "),
    ],
)
def test_what_is_refused(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *argv]) == 64
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"nvmeof: {message}")
    assert printed.err.count("\n") == 1


def test_an_address_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert main(["serve", str(tmp_path / "a.img"), "--size", "1M", "--listen", address]) == 3
    assert capsys.readouterr().err == f"nvmeof: cannot listen on {address}: Address already in use\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('congestion = "nope"\n', "congestion"),
        ('[[listener]]\naddress = "127.0.0.1:0"\ncongestion = "nope"\n', "listener[0].congestion"),
        ('congestion = "nope"\n[[listener]]\naddress = "127.0.0.1:0"\n', "congestion"),
        ('congestion = ""\n', "congestion"),
    ],
)
def test_congestion_control_that_the_kernel_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, place: str
) -> None:
    file = tmp_path / "target.toml"
    file.write_text(f'{text}[[subsystem]]\n[[subsystem.namespace]]\npath = "a.img"\nsize = "1M"\n')
    assert main(["serve", "--config", str(file)]) == 64
    assert capsys.readouterr().err.startswith(f"nvmeof: {file}: {place}: congestion control ")


def test_a_namespace_of_the_file_that_cannot_be_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "target.toml"
    config.write_text(
        '[[subsystem]]\n[[subsystem.namespace]]\npath = "a.img"\nsize = "1M"\n'
        '[[subsystem.namespace]]\npath = "no/b.img"\nsize = "1M"\n[[listener]]\naddress = "127.0.0.1:0"\n'
    )
    assert main(["serve", "--config", str(config)]) == 64
    line = f"nvmeof: {config}: subsystem[0].namespace[1]: {tmp_path}/no/b.img: cannot be created: "
    assert capsys.readouterr().err.startswith(line)


# --- a process of its own ---------------------------------------------------------------------------------------------


class Process:
    """A running ``nvmeof serve``. ``lines`` is what it printed when it was ready."""

    def __init__(self, directory: Path, *argv: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "nvmeof", "serve", *argv],
            cwd=directory,
            env=PACKAGE_ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.popen.stdout is not None
        self.lines = [self.popen.stdout.readline().rstrip("\n")]
        assert self.lines[0], self.popen.communicate(timeout=SECONDS)[1]

    def rest(self, count: int) -> list[str]:
        assert self.popen.stdout is not None
        return [self.popen.stdout.readline().rstrip("\n") for _ in range(count)]

    def addresses(self) -> list[tuple[str, int]]:
        words = self.lines[0].split()
        assert words[0] == "READY"
        return [(host.strip("[]"), int(port)) for host, _, port in (word.rpartition(":") for word in words[1:])]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and standard error."""
        self.popen.send_signal(number)
        _, printed = self.popen.communicate(timeout=SECONDS)
        return self.popen.returncode, printed


@contextlib.contextmanager
def running(directory: Path, *argv: str) -> Iterator[Process]:
    process = Process(directory, *argv)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.communicate()


async def identify(address: tuple[str, int], nqn: str) -> bytes:
    host = await RawHost.admin(address, nqn)
    assert await host.status(6, nsid=0, sgl=(0, 4096, 0x5A), cdw10=1) == 0
    await host.close()
    return host.data


async def connect(address: tuple[str, int], nqn: str) -> int:
    """Status of Connect."""
    host = await RawHost.open(address)
    status = (await host.command(connect_sqe(), connect_data(nqn)))[5]
    await host.close()
    return status


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_serves_and_drains(tmp_path: Path, loop: str, number: int) -> None:
    with running(
        tmp_path, "disk.img", "--size", "1M", "--listen", "127.0.0.1:0", "--nqn", NQN, "--loop", loop
    ) as process:
        (address,) = process.addresses()
        assert address[1] > 0
        assert process.rest(1) == [f"nvme connect -t tcp -a 127.0.0.1 -s {address[1]} -n {NQN}"]
        data = asyncio.run(identify(address, NQN))
        assert data[768:1024].rstrip(b"\0").decode() == NQN
        code, printed = process.stop(number)
    assert (code, printed) == (0, "nvmeof: draining, 10 s at most; a second signal stops at once\n")
    assert (tmp_path / "disk.img").stat().st_size == 1 << 20


def test_closed_standard_streams(tmp_path: Path) -> None:
    """It serves, drains and ends well though nobody can be told."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    serve = f"{sys.executable} -m nvmeof serve disk.img --size 1M --listen 127.0.0.1:{port} --nqn {NQN}"
    for closed in (">&-", "<&- >&- 2>&-"):
        popen = subprocess.Popen(["bash", "-c", f"exec {serve} {closed}"], cwd=tmp_path, env=PACKAGE_ENVIRONMENT)
        try:
            asyncio.run(identify_when_ready(("127.0.0.1", port), NQN))
            popen.send_signal(signal.SIGTERM)
            assert popen.wait(SECONDS) == 0
        finally:
            popen.kill()
            popen.wait()


async def identify_when_ready(address: tuple[str, int], nqn: str) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                await identify(address, nqn)
                return
            await asyncio.sleep(0.05)


def test_the_default_name_survives_a_restart(tmp_path: Path) -> None:
    names = []
    for argv in (["--size", "1M"], []):
        with running(tmp_path, "disk.img", *argv, "--listen", "127.0.0.1:0") as process:
            found = CONNECT.fullmatch(process.rest(1)[0])
            assert found
            names.append(found[3])
            asyncio.run(identify(process.addresses()[0], found[3]))
            assert process.stop()[0] == 0
    assert names[0] == names[1]
    assert re.fullmatch(r"nqn\.2014-08\.org\.nvmexpress:uuid:[0-9a-f-]{36}", names[0])


def test_every_listener_is_named_and_reached(tmp_path: Path) -> None:
    argv = ["--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--discovery-listen", "127.0.0.1:0"]
    with running(tmp_path, "disk.img", "--size", "1M", "--nqn", NQN, *argv, "--advertise", "192.0.2.1:5") as process:
        first, second, discovery = process.addresses()
        assert (first[0], second[0], discovery[0]) == ("127.0.0.1", "::1", "127.0.0.1")
        assert process.rest(3) == [
            f"nvme connect -t tcp -a 192.0.2.1 -s 5 -n {NQN}",
            f"nvme connect -t tcp -a ::1 -s {second[1]} -n {NQN}",
            f"nvme discover -t tcp -a 127.0.0.1 -s {discovery[1]}",
        ]
        for address in (first, second):
            asyncio.run(identify(address, NQN))
        for address in (first, second, discovery):
            asyncio.run(identify(address, DISCOVERY))
        assert process.stop()[0] == 0


def test_a_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "target.toml").write_text(
        f'[[listener]]\naddress = "127.0.0.1:0"\n[[subsystem]]\nnqn = "{NQN}"\nserial = "S-77"\nmodel = "a model"\n'
        '[[subsystem.namespace]]\npath = "a.img"\nsize = "1M"\nnsid = 5\n'
        '[[subsystem.namespace]]\npath = "b.img"\nsize = "2M"\nblock_size = 512\n'
        f'[[subsystem]]\nnqn = "{NQN}-2"\nallowed_hosts = ["{HOST}"]\n'
        '[[subsystem.namespace]]\npath = "c.img"\nsize = "1M"\n'
    )
    with running(tmp_path, "--config", "target.toml", "--json") as process:
        ready = json.loads(process.lines[0])
        assert ready["ready"]
        assert ready["pid"] == process.popen.pid
        (listener,) = ready["listeners"]
        first, second = ready["subsystems"]
        assert (first["nqn"], second["nqn"]) == (NQN, f"{NQN}-2")
        spaces = [(each["nsid"], each["size"], each["block_size"]) for each in first["namespaces"]]
        assert spaces == [(5, 1 << 20, 4096), (1, 2 << 20, 512)]
        assert [shlex.split(line)[-1] for line in ready["commands"]] == [NQN, f"{NQN}-2"]
        address = listener["host"], listener["port"]
        data = asyncio.run(identify(address, NQN))
        assert (data[4:24].rstrip(), data[24:64].rstrip()) == (b"S-77", b"a model")
        assert asyncio.run(connect(address, f"{NQN}-2")) == 0x4184, "this host is not allowed"
        assert process.stop()[0] == 0


def test_a_host_that_stays_does_not_hold_it_up(tmp_path: Path) -> None:
    async def stay(process: Process) -> int:
        host = await RawHost.admin(process.addresses()[0], NQN)
        host.send(host.wire.capsule(wire.sqe(0x0C, 0x700, nsid=0)))
        assert await host.status(0x18, nsid=0) == 0
        code, _ = await asyncio.to_thread(process.stop)
        assert await host.closed()
        await host.close()
        return code

    with running(tmp_path, "disk.img", "--size", "1M", "--nqn", NQN, "--listen", "127.0.0.1:0") as process:
        assert asyncio.run(stay(process)) == 0


def test_the_second_signal_does_not_wait_for_a_command(tmp_path: Path) -> None:
    async def hold(process: Process) -> tuple[int, float]:
        """A write whose data never come keeps the target draining."""
        loop = asyncio.get_running_loop()
        address = process.addresses()[0]
        admin = await RawHost.admin(address, NQN)
        io = await RawHost.io(address, NQN, admin.cntlid)
        io.send(io.wire.capsule(wire.sqe(1, 1, sgl=(0, 4096, 0x5A))))
        assert (await io.pdu())[0] == 9
        process.popen.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert process.popen.poll() is None, "it did not wait for the command"
        began = loop.time()
        code, _ = await asyncio.to_thread(process.stop)
        for host in (admin, io):
            await host.close()
        return code, loop.time() - began

    with running(tmp_path, "disk.img", "--size", "1M", "--nqn", NQN, "--listen", "127.0.0.1:0") as process:
        code, seconds = asyncio.run(hold(process))
    assert code == 0
    assert seconds < 8
