"""``nvmeof serve --pool``, and the pool commands while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import nvmeof
from tests.cli.pools import ENVIRONMENT, NQN, SECONDS, Commands, serving
from tests.cli.test_pool import MIB, content_of, filled, flip, members

pytestmark = pytest.mark.slow


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(capsys)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_namespace_is_made_when_there_is_none(commands: Commands, tmp_path: Path) -> None:
    made = commands.create(tmp_path / "one")
    with serving(tmp_path / "one") as (_, url):
        assert json.loads(commands.run("id-ns", f"{url}/1", "-o", "json")[0])["nsze"] == made["capacity"] // 4096
    commands.create(tmp_path / "two")
    for size in ("8M", "16M"):
        with serving(tmp_path / "two", "--size", size) as (_, url):
            assert json.loads(commands.run("id-ns", f"{url}/1", "-o", "json")[0])["nsze"] == 8 * MIB // 4096


def test_what_it_says_of_the_opening(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    with serving(place) as (process, url):
        (tmp_path / "block").write_bytes(b"x" * 4096)
        commands.run("write", f"{url}/1", "-s", 0, "-c", 0, "--data", tmp_path / "block")
        commands.run("flush", f"{url}/1")
        process.kill()
        process.wait(SECONDS)
        assert process.stderr is not None
        assert f"nvmeof: {place}: opened in 0." in process.stderr.read()
    members(place)[1].unlink()
    assert (place / "control").exists()
    with serving(place) as (process, _):
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
        assert process.stderr is not None
        said = process.stderr.read()
    assert f"nvmeof: warning: {place}: degraded: member 1: missing\n" in said
    assert "not after a clean end: rolled " in said
    assert not (place / "control").exists()


def test_the_default_name_is_made_of_the_pools_uuid(commands: Commands, tmp_path: Path) -> None:
    made = commands.create(tmp_path / "new")
    command = [sys.executable, "-m", "nvmeof", "serve", "--pool", "new", "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        process.terminate()
        assert process.wait(SECONDS) == 0
    (subsystem,) = ready["subsystems"]
    assert subsystem["nqn"] == f"nqn.2014-08.org.nvmexpress:uuid:{made['uuid']}"
    assert [each["nsid"] for each in subsystem["namespaces"]] == [1]


def test_one_process_owns_a_pool(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    with serving(place):
        in_use = f"{place}: is in use: another process has this pool open"
        assert commands.refused("serve", "--pool", place, "--listen", "127.0.0.1:0") == in_use
        assert commands.refused("pool", "create", place, "--size", "16M", "--no-encryption", "--yes") == in_use
        assert (
            commands.refused("pool", "destroy", place, "--yes") == f"{place}: is being served; stop that process first"
        )
        assert commands.refused("inspect", place, "--segments") == in_use
        assert "good" in commands.run("inspect", place)[0]
        assert commands.json("status", place)["served"]
    status = commands.json("status", place)
    assert not status["served"]
    assert status["healthy"]


def test_no_key_is_needed_while_it_is_served(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place, "--key-file", "key")
    with serving(place, "--key-file", "key"):
        assert commands.json("status", place)["encrypted"]
        commands.run("pool", "rotate-key", place, "--new-key-file", "fresh")
        commands.run("pool", "export-keys", place, "saved")
    assert "does not open this pool" in commands.refused("serve", "--pool", place, "--key-file", "key")
    with serving(place, "--key-file", "fresh"):
        pass


def test_namespaces_come_and_go_under_the_hosts(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "new")
    asyncio.run(come_and_go(tmp_path / "new"))


async def come_and_go(place: Path) -> None:

    async def run(*argv: object) -> None:
        command = [sys.executable, "-m", "nvmeof", "pool", *map(str, argv)]
        process = await asyncio.create_subprocess_exec(*command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        assert await process.wait() == 0

    with serving(place, "--size", "8M") as (_, url):
        async with nvmeof.connect(url) as controller:
            events = controller.events()
            for argv, expected in (
                (("create-namespace", place, "--size", "4M"), {1: 8 * MIB, 2: 4 * MIB}),
                (("resize", place, 2, "6M"), {1: 8 * MIB, 2: 6 * MIB}),
                (("resize", place, 2, "2M", "--yes"), {1: 8 * MIB, 2: 2 * MIB}),
                (("delete-namespace", place, 1, "--yes"), {2: 2 * MIB}),
            ):
                await run(*argv)
                event = await asyncio.wait_for(anext(events), SECONDS)
                assert (event.type, event.info) == (2, 0), "notice: namespace attribute changed"
                await controller.get_log_page(4, 4096)
                assert {each.nsid: each.size for each in await controller.namespaces()} == expected
            namespace = await controller.namespace(2)
            await namespace.write(0, b"x" * 4096)
            await run("set", place, 2, "--codec", "none", "--write-cache", "off")
            assert await namespace.read(0, 4096) == b"x" * 4096


def test_members_deleted_and_replaced_under_a_server(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place, "--key-file", "key")
    content = filled(place, commands, "--key-file", "key")
    with serving(place, "--key-file", "key") as (_, url):
        for path in members(place)[1:3]:
            path.unlink()
        status = commands.json("status", place, code=1)
        assert status["deleted"] == [str(place / f"member-0{number}.nvmeof") for number in (1, 2)]
        assert content_of(url, len(content), commands, tmp_path) == content
        (tmp_path / "block").write_bytes(content[4096:8192])
        commands.run("write", f"{url}/1", "-s", 0, "-c", 0, "--data", tmp_path / "block")
        commands.run("flush", f"{url}/1")
        status = commands.json("status", place, code=1)
        assert [each["state"] for each in status["members"]] == ["healthy", "out", "out", "healthy"]
        content = content[4096:8192] + content[4096:]
        commands.run("pool", "replace", place, 1)
        assert commands.json("replace", place, 2, "--wait")["rebuilt"]
        eventually(lambda: not json.loads(commands.run("pool", "status", place, "--json")[0])["reason"])
        assert commands.json("scrub", place)["good"]
        for path in (members(place)[0], members(place)[-1]):
            path.unlink()
        commands.run("flush", f"{url}/1")
        assert content_of(url, len(content), commands, tmp_path) == content
    assert len(members(place)) == 2
    with serving(place, "--key-file", "key") as (_, url):
        assert content_of(url, len(content), commands, tmp_path) == content


def test_scrub_and_heal_under_a_server(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    content = filled(place, commands)
    block = json.loads(commands.run("inspect", place, "--block", "1:300", "--json")[0])["block"]
    with serving(place) as (_, url):
        for strip in block["strips"][:2]:
            flip(Path(strip["path"]), strip["offset"] + 100)
        found = commands.json("scrub", place, code=1)
        assert found["healed"] == sum(found["bad"].values()) == 2
        assert commands.json("scrub", place)["good"]
        commands.run("pool", "scrub", place, "--background", "--rate", "1M")
        assert commands.json("scrub", place, "--rate", "1G")["finished"], "it waits for the one that runs"
        assert not commands.json("status", place)["scrub"]["running"]
        assert content_of(url, len(content), commands, tmp_path) == content


@pytest.mark.parametrize("served", [True, False])
def test_a_scrub_that_nobody_waits_for_goes_on_later(commands: Commands, tmp_path: Path, served: bool) -> None:
    place = tmp_path / "new"
    commands.create(place)
    filled(place, commands)
    with serving(place) if served else contextlib.nullcontext():
        command = [sys.executable, "-m", "nvmeof", "pool", "scrub", str(place), "--rate", "300K"]
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        time.sleep(2)
        message = "running already" if served else "is in use"
        assert message in commands.refused("pool", "scrub", place)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS)[1] == "nvmeof: interrupted\n"
        assert process.returncode == 130
        if served:
            eventually(lambda: commands.json("status", place)["scrub"]["progress"] is not None)
        assert commands.json("scrub", place)["finished"]


def test_a_configuration_with_pools(commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "whole", "--key-file", "key")
    commands.create(tmp_path / "parts")
    (tmp_path / "target.toml").write_text(
        f"""
        [[listener]]
        address = "127.0.0.1:0"
        [[pool]]
        path = "whole"
        key_file = "key"
        [[pool]]
        path = "parts"
        name = "other"
        [[subsystem]]
        nqn = "{NQN}"
        pool = "whole"
        size = "4M"
        [[subsystem]]
        nqn = "{NQN}-2"
        [[subsystem.namespace]]
        pool = "other"
        pool_nsid = 5
        size = "2M"
        codec = "zstd"
        [[subsystem.namespace]]
        path = "plain.img"
        size = "1M"
        """
    )
    command = [sys.executable, "-m", "nvmeof", "serve", "--config", "target.toml", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        first, second = ready["subsystems"]
        assert [(each["nsid"], each["size"]) for each in first["namespaces"]] == [(1, 4 * MIB)]
        assert [(each["nsid"], each["size"]) for each in second["namespaces"]] == [(1, 2 * MIB), (2, MIB)]
        assert commands.json("status", "parts")["namespaces"][0]["codec"] == "zstd"
        commands.run("pool", "resize", "parts", 5, "3M")
        url = f"nvme+tcp://127.0.0.1:{ready['listeners'][0]['port']}/{NQN}-2"
        assert json.loads(commands.run("id-ns", f"{url}/1", "-o", "json")[0])["nsze"] == 3 * MIB // 4096
        commands.run("pool", "delete-namespace", "parts", 5, "--yes")
        assert commands.run("list-ns", url)[0] == "[   0]:0x2\n"
        process.terminate()
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path = "none"', "{file}: pool[0]: {path}/none: No such file or directory"),
        ('path = "new"', "{file}: pool[0]: the pool is encrypted: give its key file"),
        ('path = "new"\nkey_file = "none"', "{file}: pool[0]: key file {path}/none cannot be read: No such file"),
        ('path = "new"\nkey_command = "exit 3"', "{file}: pool[0]: key command 'exit 3' failed with exit status 3"),
    ],
)
def test_pools_that_cannot_be_opened_are_named(text: str, message: str, commands: Commands, tmp_path: Path) -> None:
    commands.create(tmp_path / "new", "--key-file", "key")
    file = tmp_path / "target.toml"
    file.write_text(f"[[pool]]\n{text}\n[[subsystem]]\npool = {json.dumps(text.split(chr(34))[1])}\n")
    assert commands.refused("serve", "--config", file).startswith(message.format(file=file, path=tmp_path))


def test_a_killed_server_leaves_nothing_in_the_way(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "new"
    commands.create(place)
    with serving(place) as (process, url):
        (tmp_path / "block").write_bytes(os.urandom(4096))
        commands.run("write", f"{url}/1", "-s", 5, "-c", 0, "--data", tmp_path / "block")
        commands.run("flush", f"{url}/1")
        process.kill()
        process.wait(SECONDS)
    assert (place / "control").exists()
    assert commands.json("status", place)["healthy"]
    with serving(place) as (_, url):
        assert commands.json("status", place)["served"]
        commands.run("read", f"{url}/1", "-s", 5, "-c", 0, "--data", tmp_path / "read")
    assert (tmp_path / "read").read_bytes() == (tmp_path / "block").read_bytes()
