"""The configuration file: what it may hold, and the sentence for everything it may not."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from nvmeof.errors import ConfigError, UsageError
from nvmeof.limits import CONFIG_BYTES_MAX, NAMESPACES_MAX
from nvmeof.target.config import (
    ListenerConfig,
    NamespaceConfig,
    PoolConfig,
    SubsystemConfig,
    TargetConfig,
    load_config,
    parse_address,
    parse_advertised,
    parse_size,
)

NQN, HOST = "nqn.2026-11.org.example:disks", "nqn.2026-11.org.example:host"
FULL = f"""
congestion = "reno"
[[listener]]
address = "0.0.0.0:4420"
advertise = "192.0.2.7:5000"
[[listener]]
address = "[::1]:8009"
discovery_only = true
congestion = "cubic"
[[subsystem]]
nqn = "{NQN}"
serial = "S123"
model = "a model"
allowed_hosts = ["{HOST}"]
[[subsystem.namespace]]
path = "one.img"
size = "1G"
block_size = 512
[[subsystem.namespace]]
path = "/srv/two.img"
size = 1048576
nsid = 1
[[subsystem]]
[[subsystem.namespace]]
path = "three.img"
"""
SPACE = '[[subsystem]]\n[[subsystem.namespace]]\npath = "a.img"\n'


def load(directory: Path, text: str) -> TargetConfig:
    path = directory / "target.toml"
    path.write_text(text)
    return load_config(path)


def test_everything(tmp_path: Path) -> None:
    assert load(tmp_path, FULL) == TargetConfig(
        subsystems=(
            SubsystemConfig(
                namespaces=(
                    NamespaceConfig(tmp_path / "one.img", nsid=2, size=1 << 30, block_size=512),
                    NamespaceConfig(Path("/srv/two.img"), nsid=1, size=1 << 20),
                ),
                nqn=NQN,
                serial="S123",
                model="a model",
                allowed_hosts=(HOST,),
            ),
            SubsystemConfig(namespaces=(NamespaceConfig(tmp_path / "three.img"),)),
        ),
        listeners=(
            ListenerConfig("0.0.0.0", 4420, ("192.0.2.7", 5000), congestion="reno"),
            ListenerConfig("::1", 8009, discovery_only=True, congestion="cubic"),
        ),
    )


def test_the_least(tmp_path: Path) -> None:
    config = load(tmp_path, SPACE)
    assert config.listeners == (ListenerConfig("127.0.0.1", 4420),)
    assert config.subsystems[0] == SubsystemConfig((NamespaceConfig(tmp_path / "a.img", nsid=1),))
    assert load(tmp_path, 'congestion = "bbr"\n' + SPACE).listeners == (ListenerConfig(congestion="bbr"),)


def test_an_error_later_can_name_the_namespace(tmp_path: Path) -> None:
    spaces = [each.where for subsystem in load(tmp_path, FULL).subsystems for each in subsystem.namespaces]
    file = tmp_path / "target.toml"
    assert spaces == [f"{file}: subsystem[{at}].namespace[{number}]" for at, number in ((0, 0), (0, 1), (1, 0))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "subsystem: got none, wanted at least one [[subsystem]]"),
        ("subsystem = 3", "subsystem: got 3, wanted tables, each under [[subsystem]]"),
        ("[subsystem]\nnqn = 'x'", 'subsystem: got {"nqn": "x"}, wanted tables, each under [[subsystem]]'),
        ("subsytem = 1", "subsytem: unknown key; did you mean 'subsystem'?"),
        ("zzz = 1", "zzz: unknown key; wanted one of congestion, listener, pool, subsystem"),
        ("congestion = 1\n" + SPACE, "congestion: got 1, wanted a string"),
        ("[[listener]]\n" + SPACE, 'listener[0].address: is missing, wanted "HOST:PORT"'),
        ("[[listener]]\nadress = 'x'\n" + SPACE, "listener[0].adress: unknown key; did you mean 'address'?"),
        (
            "[[listener]]\naddress = '::1'\n" + SPACE,
            'listener[0].address: got "::1", wanted HOST:PORT or [IPV6]:PORT (port 4420 if left out)',
        ),
        (
            "[[listener]]\naddress = 'a:65536'\n" + SPACE,
            'listener[0].address: got "a:65536", wanted a port from 0 to 65535',
        ),
        (
            "[[listener]]\naddress = 'a'\nadvertise = 'b:1'\n" + SPACE,
            'listener[0].advertise: got "b:1", wanted a numeric address: the discovery log has no names',
        ),
        (
            "[[listener]]\naddress = 'a'\ndiscovery_only = 1\n" + SPACE,
            "listener[0].discovery_only: got 1, wanted true or false",
        ),
        (
            "[[listener]]\naddress = 'a'\n[[listener]]\naddress = 'a:4420'\n" + SPACE,
            'listener[1].address: got "a:4420", which is listener[0].address already',
        ),
        ("[[subsystem]]", "subsystem[0].namespace: got none, wanted at least one [[subsystem.namespace]]"),
        (
            "[[subsystem]]\n[[subsystem.namespace]]\nsize = 1",
            "subsystem[0].namespace[0].path: is missing, wanted a file name, or pool instead",
        ),
        (
            "[[subsystem]]\n[[subsystem.namespace]]\npath = ''",
            'subsystem[0].namespace[0].path: got "", wanted a file name, or pool instead',
        ),
        (
            SPACE + "[[subsystem.namespace]]\npath = 'b.img'\nsize = '12Q'",
            'subsystem[0].namespace[1].size: got "12Q", wanted bytes or a number with K, M, G, T, above 0',
        ),
        (
            SPACE + "size = 1.5",
            "subsystem[0].namespace[0].size: got 1.5, wanted bytes or a number with K, M, G, T",
        ),
        (
            SPACE + "size = true",
            "subsystem[0].namespace[0].size: got true, wanted bytes or a number with K, M, G, T",
        ),
        (
            SPACE + "size = -4096",
            'subsystem[0].namespace[0].size: got "-4096", wanted bytes or a number with K, M, G, T, above 0',
        ),
        (SPACE + "size = 1000", "subsystem[0].namespace[0].size: got 1000 bytes, wanted a multiple of 512"),
        (
            SPACE + "size = 512\nblock_size = 4096",
            "subsystem[0].namespace[0].size: got 512 bytes, wanted a multiple of 4096",
        ),
        (SPACE + "block_size = 1024", "subsystem[0].namespace[0].block_size: got 1024, wanted 512 or 4096"),
        (SPACE + "block_size = '512'", 'subsystem[0].namespace[0].block_size: got "512", wanted a whole number'),
        (SPACE + "nsid = 0", f"subsystem[0].namespace[0].nsid: got 0, wanted 1 to {NAMESPACES_MAX}"),
        (
            SPACE + f"nsid = {NAMESPACES_MAX + 1}",
            f"subsystem[0].namespace[0].nsid: got {NAMESPACES_MAX + 1}, wanted 1 to {NAMESPACES_MAX}",
        ),
        (
            SPACE + "nsid = 3\n[[subsystem.namespace]]\npath = 'b'\nnsid = 3",
            'subsystem[0].namespace[1].nsid: got "3", which is subsystem[0].namespace[0].nsid already',
        ),
        (
            SPACE + "[[subsystem]]\nnqn = 'nqn.2014-08.org.nvmexpress.discovery'\n" + SPACE[14:],
            'subsystem[1].nqn: got "nqn.2014-08.org.nvmexpress.discovery", wanted another NQN: the discovery service '
            "has this one",
        ),
        (
            "[[subsystem]]\nallowed_hosts = []\n" + SPACE[14:],
            "subsystem[0].allowed_hosts: got [], wanted a list of strings that is not empty",
        ),
        (
            f"[[subsystem]]\nallowed_hosts = ['{HOST}', 7]\n" + SPACE[14:],
            "subsystem[0].allowed_hosts[1]: got 7, wanted a string",
        ),
        (
            "[[subsystem]]\nserial = '%s'\n" % ("S" * 21) + SPACE[14:],
            f"subsystem[0].serial: ASCII field: got 21 characters ('{'S' * 21}'), wanted at most 20",
        ),
        (
            "[[subsystem]]\nmodel = 'Äpfel'\n" + SPACE[14:],
            "subsystem[0].model: ASCII field: got 'Äpfel', wanted printable ASCII only",
        ),
    ],
)
def test_what_it_may_not_hold(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert str(refused.value) == f"{tmp_path / 'target.toml'}: {message}"


@pytest.mark.parametrize("nqn", ["disk", "nqn.2026-13.org:x", "nqn.2026-11.org.example:" + "x" * 224, "nqn a"])
def test_names_are_checked(tmp_path: Path, nqn: str) -> None:
    for key in (f"nqn = '{nqn}'", f"allowed_hosts = ['{nqn}']"):
        with pytest.raises(ConfigError, match=r"target.toml: subsystem\[0\]\.\w+(\[0\])?: NQN: got "):
            load(tmp_path, f"[[subsystem]]\n{key}\n" + SPACE[14:])


def test_two_subsystems_share_neither_name_nor_file(tmp_path: Path) -> None:
    one = f'[[subsystem]]\nnqn = "{NQN}"\n[[subsystem.namespace]]\npath = '
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, one + '"a"\n' + one + '"b"\n')
    file = tmp_path / "target.toml"
    assert str(refused.value) == f'{file}: subsystem[1].nqn: got "{NQN}", which is subsystem[0].nqn already'
    (tmp_path / "link").symlink_to("a")
    other = one.replace("disks", "others")
    for same in ("a", "./a", f"{tmp_path}/a", "link"):
        with pytest.raises(ConfigError) as refused:
            load(tmp_path, f'{one}"a"\n{other}"{same}"\n')
        assert str(refused.value) == (
            f'{file}: subsystem[1].namespace[0].path: got "{tmp_path / "a"}", '
            "which is subsystem[0].namespace[0].path already"
        )


@pytest.mark.parametrize(
    ("one", "other", "address"),
    [
        ("127.0.0.1:5000", "localhost:5000", "127.0.0.1:5000"),
        ("[::1]:5000", "[0:0::1]:5000", "[::1]:5000"),
        ("[2001:DB8::1]:5000", "[2001:db8:0::0001]:5000", "[2001:db8::1]:5000"),
    ],
)
def test_one_address_in_two_spellings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str, address: str
) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "localhost" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    text = f"[[listener]]\naddress = '{one}'\n[[listener]]\naddress = '{other}'\n"
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text + SPACE)
    file = tmp_path / "target.toml"
    assert str(refused.value) == f'{file}: listener[1].address: got "{address}", which is listener[0].address already'
    assert len(load(tmp_path, text.replace("5000", "5001", 1) + SPACE).listeners) == 2


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "target.toml"
    with pytest.raises(ConfigError, match=r"target\.toml: cannot be read: No such file or directory"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="is not a usable file name"):
        load_config(Path("a\0b"))
    for content, message in (
        (b"a = \xff", "is not TOML: not UTF-8 at byte 4"),
        (b"a = ", "is not TOML: Invalid value"),
        (b"a = 1\na = 2", "is not TOML: Cannot overwrite a value"),
        (b"a = " + b"[" * 100_000, "is not TOML: "),
        (b"a = 1" + b"0" * 5000, "got a number with more digits than any key takes"),
        (b"#" * (CONFIG_BYTES_MAX + 1), f"got more than {CONFIG_BYTES_MAX} bytes, wanted a TOML file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as refused:
            load_config(path)
        assert str(refused.value).startswith(f"{path}: {message}")


def test_more_namespaces_than_there_are_numbers(tmp_path: Path) -> None:
    spaces = "".join(f'[[subsystem.namespace]]\npath = "{number}"\n' for number in range(NAMESPACES_MAX + 1))
    with pytest.raises(ConfigError, match=f"got {NAMESPACES_MAX + 1} namespaces, wanted at most {NAMESPACES_MAX}"):
        load(tmp_path, "[[subsystem]]\n" + spaces)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("512K", 512 << 10),
        ("3m", 3 << 20),
        ("1G", 1 << 30),
        ("2TiB", 2 << 40),
        (" 7 k ", 7168),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0G", "-1", "1.5G", "G", "1P", "1KB", "0x10", "1 000", "٣", "9" * 30])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"^got .*, wanted bytes or a number with K, M, G, T, above 0$"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("host", ("host", 4420)),
        ("[::]:1", ("::", 1)),
        ("[fe80::1%eth0]", ("fe80::1%eth0", 4420)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", ":1", "::1", "::1:4420", "a:", "a:x", "a:-1", "[]:1", "[a]:1", "[::1", "a b:1", "a/b", "a:1:2", "a:123456"],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"^got .*, wanted "):
        parse_address(text)


@pytest.mark.parametrize("text", ["192.0.2.1", "host:1", "0.0.0.0:1", "[::]:1", "192.0.2.1:0", "[192.0.2.1]:5"])
def test_addresses_that_cannot_be_advertised(text: str) -> None:
    with pytest.raises(UsageError, match=r"^got .*, wanted "):
        parse_advertised(text)
    assert parse_advertised("[2001:db8::1]:5") == ("2001:db8::1", 5)


# --- pools ------------------------------------------------------------------------------------------------------------

POOLS = """
[[pool]]
path = "fast"
key_file = "fast.key"
[[pool]]
path = "/srv/members"
name = "big"
passphrase_file = "/etc/passphrase"
[[pool]]
path = "three"
key_command = "vault read x"
[[pool]]
path = "four"
key_command = ["vault", "read", "x"]
[[pool]]
path = "plain"
"""
OF_POOLS = """
[[subsystem]]
[[subsystem.namespace]]
pool = "fast"
[[subsystem.namespace]]
pool = "fast"
pool_nsid = 9
nsid = 7
size = "1T"
block_size = 512
codec = "zstd"
level = 3
planes = 2
encrypted = false
write_cache = false
[[subsystem.namespace]]
path = "a.img"
[[subsystem]]
pool = "big"
size = "2G"
[[subsystem]]
pool = "plain"
"""
ONE_POOL = '[[pool]]\npath = "p"\n'
OF_POOL = '[[subsystem]]\n[[subsystem.namespace]]\npool = "p"\n'


def test_pools(tmp_path: Path) -> None:
    config = load(tmp_path, POOLS + OF_POOLS)
    assert config.pools == (
        PoolConfig("fast", tmp_path / "fast", key_file=tmp_path / "fast.key"),
        PoolConfig("big", Path("/srv/members"), passphrase_file=Path("/etc/passphrase")),
        PoolConfig("three", tmp_path / "three", key_command="vault read x"),
        PoolConfig("four", tmp_path / "four", key_command=("vault", "read", "x")),
        PoolConfig("plain", tmp_path / "plain"),
    )
    assert [each.where for each in config.pools] == [f"{tmp_path}/target.toml: pool[{number}]" for number in range(5)]


def test_namespaces_of_pools(tmp_path: Path) -> None:
    mixed, whole, empty = load(tmp_path, POOLS + OF_POOLS).subsystems
    assert mixed.namespaces == (
        NamespaceConfig(pool="fast", nsid=1, pool_nsid=1),
        NamespaceConfig(
            pool="fast",
            nsid=7,
            pool_nsid=9,
            size=1 << 40,
            block_size=512,
            codec="zstd",
            level=3,
            planes=2,
            encrypted=False,
            write_cache=False,
        ),
        NamespaceConfig(tmp_path / "a.img", nsid=2),
    )
    assert whole == SubsystemConfig((), pool="big", size=2 << 30)
    assert empty == SubsystemConfig((), pool="plain")
    assert empty.where == f"{tmp_path}/target.toml: subsystem[2]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[pool]]\n" + SPACE, "pool[0].path: is missing, wanted a directory"),
        ("[[pool]]\npath = ''\n" + SPACE, 'pool[0].path: got "", wanted a directory'),
        ("[[pool]]\npath = 7\n" + SPACE, "pool[0].path: got 7, wanted a string"),
        ("[[pool]]\npath = '/'\n" + SPACE, "pool[0].name: got none, wanted a name, since path ends in none"),
        (
            ONE_POOL + "key = 'x'\n" + SPACE,
            "pool[0].key: unknown key; wanted one of name, path, key_file, passphrase_file, key_command",
        ),
        (ONE_POOL + "key_fil = 'x'\n" + SPACE, "pool[0].key_fil: unknown key; did you mean 'key_file'?"),
        (ONE_POOL + "key_file = ''\n" + SPACE, 'pool[0].key_file: got "", wanted a file name'),
        (
            ONE_POOL + "key_file = 'a'\nkey_command = 'b'\n" + SPACE,
            "pool[0].key_command: got it together with key_file, wanted one of them",
        ),
        (
            ONE_POOL + "key_command = []\n" + SPACE,
            "pool[0].key_command: got [], wanted a command: a string, or a list of strings",
        ),
        (
            ONE_POOL + "key_command = ''\n" + SPACE,
            'pool[0].key_command: got "", wanted a command: a string, or a list of strings',
        ),
        (
            ONE_POOL + "key_command = ['a', 7]\n" + SPACE,
            'pool[0].key_command: got ["a", 7], wanted a command: a string, or a list of strings',
        ),
        (
            ONE_POOL + "key_command = true\n" + SPACE,
            "pool[0].key_command: got true, wanted a command: a string, or a list of strings",
        ),
        (ONE_POOL + "[[pool]]\npath = 'x/p'\n" + SPACE, 'pool[1].name: got "p", which is pool[0].name already'),
        (OF_POOL, 'subsystem[0].namespace[0].pool: got "p", wanted the name of a [[pool]], and there is none'),
        (
            "[[pool]]\npath = 'a'\n[[pool]]\npath = 'b'\n" + OF_POOL,
            'subsystem[0].namespace[0].pool: got "p", wanted one of a, b',
        ),
        (
            ONE_POOL + OF_POOL + "path = 'x'",
            "subsystem[0].namespace[0].pool: got it together with path, wanted one of them",
        ),
        (
            SPACE + "codec = 'zstd'",
            "subsystem[0].namespace[0].codec: got it without pool, wanted it only for a namespace of a pool",
        ),
        (
            ONE_POOL + OF_POOL + "codec = 'zip'",
            'subsystem[0].namespace[0].codec: got "zip", wanted one of auto, zstd, lz4, deflate, none',
        ),
        (ONE_POOL + OF_POOL + "level = 20", "subsystem[0].namespace[0].level: got 20, wanted 0 to 19"),
        (ONE_POOL + OF_POOL + "planes = 3", "subsystem[0].namespace[0].planes: got 3, wanted one of 0, 2, 4, 8"),
        (ONE_POOL + OF_POOL + "encrypted = 1", "subsystem[0].namespace[0].encrypted: got 1, wanted true or false"),
        (
            ONE_POOL + OF_POOL + "pool_nsid = 0",
            f"subsystem[0].namespace[0].pool_nsid: got 0, wanted 1 to {NAMESPACES_MAX}",
        ),
        (
            ONE_POOL + OF_POOL + "size = 1000",
            "subsystem[0].namespace[0].size: got 1000 bytes, wanted a multiple of 512",
        ),
        (
            ONE_POOL + OF_POOL + "[[subsystem.namespace]]\npool = 'p'\npool_nsid = 1",
            'subsystem[0].namespace[1].pool_nsid: got "p/1", which is subsystem[0].namespace[0].pool_nsid already',
        ),
        (
            ONE_POOL + OF_POOL + "[[subsystem]]\npool = 'p'",
            'subsystem[0].namespace[0].pool: got "p", all of which is in subsystem[1] already',
        ),
        (
            ONE_POOL + "[[subsystem]]\npool = 'p'\n[[subsystem]]\npool = 'p'",
            'subsystem[1].pool: got "p", which is subsystem[0].pool already',
        ),
        (ONE_POOL + "[[subsystem]]\npool = 'q'", 'subsystem[0].pool: got "q", wanted one of p'),
        (
            ONE_POOL + "[[subsystem]]\npool = 'p'\n[[subsystem.namespace]]\npath = 'x'",
            "subsystem[0].pool: got it together with namespaces, wanted one or the other",
        ),
        (
            SPACE.replace("[[subsystem]]", "[[subsystem]]\nsize = 512"),
            "subsystem[0].size: got it without pool, wanted it with one, or in [[subsystem.namespace]]",
        ),
    ],
)
def test_what_a_pool_may_not_hold(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert str(refused.value) == f"{tmp_path / 'target.toml'}: {message}"


def test_one_directory_in_two_spellings(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("p")
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, ONE_POOL + "[[pool]]\npath = 'link'\n" + SPACE)
    assert str(refused.value) == (
        f'{tmp_path / "target.toml"}: pool[1].path: got "{tmp_path / "p"}", which is pool[0].path already'
    )
