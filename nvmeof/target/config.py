"""What a target serves: the same tree of dataclasses from a TOML file and from command line flags.

::

    congestion = "reno"                     # of every listener that names no other; default: the system's

    [[listener]]
    address = "0.0.0.0:4420"                # "[::]:4420" for IPv6; port 0 takes a free one
    advertise = "192.0.2.7:4420"            # what the discovery log says instead, for a host behind NAT
    congestion = "cubic"
    discovery_only = false                  # true: the discovery service and nothing else

    [[subsystem]]
    nqn = "nqn.2026-11.org.example:disks"   # default: made from the UUID of the first namespace
    serial = "0123456789ABCDEF0123"         # up to 20 characters; default: made from the NQN
    model = "nvmeof"                        # up to 40 characters
    allowed_hosts = ["nqn.2014-08.org.nvmexpress:uuid:..."]     # default: any host

    [[subsystem.namespace]]
    path = "disk.img"                       # relative to this file
    size = "1G"                             # of a file that is made; bytes, or a number with K, M, G, T
    block_size = 4096                       # of a file that is made; 512 or 4096
    nsid = 1                                # default: the lowest that is free

    [[pool]]
    path = "pool"                           # a directory of member files; relative to this file
    name = "pool"                           # default: the last part of path
    key_file = "/etc/pool.key"              # or one of the next two, or none of them if it is not encrypted
    passphrase_file = "/etc/passphrase"     # its first line
    key_command = "vault read pool"         # a string for the shell, or a list: a program and its arguments

    [[subsystem.namespace]]
    pool = "pool"                           # instead of path: a namespace of that pool
    pool_nsid = 1                           # its number there; default: nsid
    nsid = 2
    size = "1T"                             # this and what follows: of one that is made because there is none yet
    block_size = 4096
    codec = "auto"                          # "zstd", "lz4", "deflate", "none"
    level = 1
    planes = 0                              # 2, 4, 8: bytes of a number, for tensors
    encrypted = true                        # default: if the pool has a key
    write_cache = true                      # false: a write is on media when it completes

    [[subsystem]]
    pool = "pool"                           # instead of namespaces: all that the pool has, under their numbers there
    size = "1T"                             # of namespace 1, made if the pool has none
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nvmeof.errors import ConfigError, UsageError
from nvmeof.limits import CONFIG_BYTES_MAX, NAMESPACES_MAX, VOLUME_BLOCK_SIZES
from nvmeof.spec.fabrics import DISCOVERY_NQN, PORT_IO, check_nqn
from nvmeof.spec.fields import ascii_field
from nvmeof.target.toml_table import Table, quoted, refuse_twice

SERIAL_SIZE, MODEL_SIZE = 20, 40
DEFAULT_HOST = "127.0.0.1"
PORT_MAX = 0xFFFF
CODECS = ("auto", "zstd", "lz4", "deflate", "none")
LEVEL_MAX = 19
PLANES = (0, 2, 4, 8)
KEYS = ("key_file", "passphrase_file", "key_command")
FILE_KEYS = ("path", "size", "block_size", "nsid")
MADE_KEYS = ("codec", "level", "planes", "encrypted", "write_cache")
POOL_KEYS = ("pool", "pool_nsid", *MADE_KEYS)
_SIZE = re.compile(r"([0-9]+) ?(?:([KMGT])(?:iB)?)?", re.IGNORECASE)
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True)
class ListenerConfig:
    """An address to accept hosts at; port 0 takes a free one.

    ``where`` is what an error about its congestion control begins with.
    """

    host: str = DEFAULT_HOST
    port: int = PORT_IO
    advertised: tuple[str, int] | None = None
    discovery_only: bool = False
    congestion: str | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class PoolConfig:
    """A directory of members, and at most one of the three that say where its key is.

    ``where`` is what an error about it begins with.
    """

    name: str
    path: Path
    key_file: Path | None = None
    passphrase_file: Path | None = None
    key_command: str | tuple[str, ...] | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class NamespaceConfig:
    """A backing file at ``path``; or, where ``pool`` is the name of one, namespace ``pool_nsid`` of that pool.

    ``size`` (bytes), ``block_size`` and whatever follows ``pool_nsid`` describe one that is yet to be made; None is
    the default of who makes it. ``where`` is what an error about it begins with.
    """

    path: Path = Path()
    nsid: int = 1
    size: int | None = None
    block_size: int | None = None
    where: str = field(default="", compare=False)
    pool: str = ""
    pool_nsid: int = 0
    codec: str | None = None
    level: int | None = None
    planes: int | None = None
    encrypted: bool | None = None
    write_cache: bool | None = None


@dataclass(frozen=True)
class SubsystemConfig:
    """``nqn`` empty: made from the UUID of the first namespace. ``allowed_hosts`` None: any host.

    Where ``pool`` is the name of one, there are no ``namespaces`` but those of the pool, under their numbers there;
    ``size`` is that of namespace 1 if it is to be made because the pool has none. ``where`` begins an error.
    """

    namespaces: tuple[NamespaceConfig, ...]
    nqn: str = ""
    serial: str = ""
    model: str = "nvmeof"
    allowed_hosts: tuple[str, ...] | None = None
    pool: str = ""
    size: int | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class TargetConfig:
    """Everything that is served, and where. Every pool that a subsystem or namespace names is in ``pools``."""

    subsystems: tuple[SubsystemConfig, ...]
    listeners: tuple[ListenerConfig, ...] = (ListenerConfig(),)
    pools: tuple[PoolConfig, ...] = ()


# --- values, from flags and from files --------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Bytes from "4096", "512K", "1G", "2TiB"; powers of 1024. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    size = int(match[1]) << _SHIFTS[(match[2] or "").upper()] if match and len(match[1]) <= 20 else 0
    if not size:
        raise UsageError(f"got {quoted(text)}, wanted bytes or a number with K, M, G, T, above 0")
    return size


def parse_block_size(text: str | int) -> int:
    """Raises UsageError."""
    for size in VOLUME_BLOCK_SIZES:
        if text in (size, str(size)):
            return size
    raise UsageError(f"got {quoted(text)}, wanted {' or '.join(map(str, VOLUME_BLOCK_SIZES))}")


def parse_address(text: str, default_port: int | None = PORT_IO) -> tuple[str, int]:
    """Host and port of "HOST:PORT", "[IPV6]:PORT", or HOST alone if there is a default port. Raises UsageError."""
    wanted = "HOST:PORT or [IPV6]:PORT" + ("" if default_port is None else f" (port {default_port} if left out)")
    match = _ADDRESS.fullmatch(text)
    host = (match["v6"] if match["name"] is None else match["name"]) if match else ""
    if not match or not host or re.search(r"[\s/]", host) or (match["v6"] is not None and ":" not in host):
        raise UsageError(f"got {quoted(text)}, wanted {wanted}")
    if match["port"] is None:
        if default_port is None:
            raise UsageError(f"got {quoted(text)}, wanted {wanted}")
        return host, default_port
    if int(match["port"]) > PORT_MAX:
        raise UsageError(f"got {quoted(text)}, wanted a port from 0 to {PORT_MAX}")
    return host, int(match["port"])


def parse_advertised(text: str) -> tuple[str, int]:
    """As :func:`parse_address`, but an address a host can be sent to: numeric and with a port. Raises UsageError."""
    host, port = parse_address(text, default_port=None)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(f"got {quoted(text)}, wanted a numeric address: the discovery log has no names") from None
    if address.is_unspecified or not port:
        raise UsageError(f"got {quoted(text)}, wanted the address and the port that hosts connect to")
    return host, port


def parse_nqn(text: str) -> str:
    """A name to serve or to allow. Raises UsageError."""
    check_nqn(text)
    if text == DISCOVERY_NQN:
        raise UsageError(f"got {quoted(text)}, wanted another NQN: the discovery service has this one")
    return text


def parse_ascii(text: str, size: int) -> str:
    """Text of an ASCII field in Identify Controller. Raises UsageError."""
    ascii_field(text, size)
    return text


# --- files ------------------------------------------------------------------------------------------------------------


def load_config(path: Path) -> TargetConfig:
    """Read a TOML file. Raises ConfigError naming the file, the key, what it got and what it wanted."""
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not a usable file name: {error}") from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: got more than {CONFIG_BYTES_MAX} bytes, wanted a TOML file")
    try:
        content = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: not UTF-8 at byte {error.start}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: got a number with more digits than any key takes") from error
    return _target(Table(path, "", content))


def _target(top: Table) -> TargetConfig:
    top.only("congestion", "listener", "pool", "subsystem")
    congestion = top.text("congestion", str, None)
    listeners = [_listener(table, congestion) for table in top.tables("listener")]
    pools = [_pool(table) for table in top.tables("pool")]
    tables = top.tables("subsystem")
    if not tables:
        raise top.error("subsystem", "got none, wanted at least one [[subsystem]]")
    names = [each.name for each in pools]
    subsystems = [_subsystem(table, names) for table in tables]
    refuse_twice(((table.where("nqn"), each.nqn) for table, each in zip(tables, subsystems, strict=True) if each.nqn))
    _check_spaces(subsystems, pools)
    _check_addresses(top, listeners)
    default = ListenerConfig(congestion=congestion, where=top.where("congestion"))
    return TargetConfig(tuple(subsystems), tuple(listeners) or (default,), tuple(pools))


def _check_spaces(subsystems: Sequence[SubsystemConfig], pools: Sequence[PoolConfig]) -> None:
    """Nothing is served twice."""
    refuse_twice((f"{each.where}.name", each.name) for each in pools)
    refuse_twice((f"{each.where}.path", os.path.realpath(each.path)) for each in pools)
    spaces = [space for each in subsystems for space in each.namespaces]
    refuse_twice((f"{space.where}.path", os.path.realpath(space.path)) for space in spaces if not space.pool)
    refuse_twice((f"{each.where}.pool", each.pool) for each in subsystems if each.pool)
    of_pools = [space for space in spaces if space.pool]
    refuse_twice((f"{space.where}.pool_nsid", f"{space.pool}/{space.pool_nsid}") for space in of_pools)
    whole = {each.pool: each.where for each in subsystems if each.pool}
    for space in of_pools:
        if space.pool in whole:
            other = whole[space.pool].partition(": ")[2]
            raise ConfigError(f"{space.where}.pool: got {quoted(space.pool)}, all of which is in {other} already")


def _check_addresses(top: Table, listeners: Sequence[ListenerConfig]) -> None:
    fixed = [(index, each) for index, each in enumerate(listeners) if each.port]
    refuse_twice((top.where(f"listener[{index}].address"), _address(each.host, each.port)) for index, each in fixed)
    ports = Counter(each.port for _, each in fixed)
    refuse_twice(
        (top.where(f"listener[{index}].address"), _address(_resolved(each.host), each.port))
        for index, each in fixed
        if ports[each.port] > 1
    )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _resolved(host: str) -> str:
    """The address a listener would be bound to, in its one spelling; ``host`` itself where there is no telling."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return host
    return str(found[0][4][0])


def _listener(table: Table, congestion: str | None) -> ListenerConfig:
    table.only("address", "advertise", "congestion", "discovery_only")
    if not table.has("address"):
        raise table.error("address", 'is missing, wanted "HOST:PORT"')
    host, port = table.text("address", parse_address, ("", 0))
    return ListenerConfig(
        host=host,
        port=port,
        advertised=table.text("advertise", parse_advertised, None),
        discovery_only=table.flag("discovery_only"),
        congestion=table.text("congestion", str, congestion),
        where=table.where("congestion") if table.has("congestion") else f"{table.file}: congestion",
    )


def _pool(table: Table) -> PoolConfig:
    table.only("name", "path", *KEYS)
    path = table.path("path", "a directory")
    keys = [key for key in KEYS if table.has(key)]
    if len(keys) > 1:
        raise table.error(keys[1], f"got it together with {keys[0]}, wanted one of them")
    name = table.text("name", str, path.name)
    if not name:
        raise table.error("name", "got none, wanted a name, since path ends in none")
    return PoolConfig(
        name=name,
        path=path,
        key_file=table.path("key_file") if "key_file" in keys else None,
        passphrase_file=table.path("passphrase_file") if "passphrase_file" in keys else None,
        key_command=_command(table, "key_command"),
        where=table.where(),
    )


def _command(table: Table, key: str) -> str | tuple[str, ...] | None:
    def parse(got: str | list[object]) -> str | tuple[str, ...]:
        words = got if isinstance(got, list) else [got]
        if not words or not words[0] or not all(isinstance(word, str) and "\0" not in word for word in words):
            raise UsageError(f"got {quoted(got)}, wanted a command: a string, or a list of strings")
        return got if isinstance(got, str) else tuple(map(str, words))

    return table.get(key, (str, list), "a command: a string, or a list of strings", parse, None)


def _pool_name(table: Table, pools: Sequence[str]) -> str:
    name = table.text("pool", str, "")
    if table.has("pool") and name not in pools:
        wanted = f"one of {', '.join(pools)}" if pools else "the name of a [[pool]], and there is none"
        raise table.error("pool", f"got {quoted(name)}, wanted {wanted}")
    return name


def _subsystem(table: Table, pools: Sequence[str]) -> SubsystemConfig:
    table.only("nqn", "serial", "model", "allowed_hosts", "namespace", "pool", "size")
    spaces = table.tables("namespace")
    pool = _pool_name(table, pools)
    if pool and spaces:
        raise table.error("pool", "got it together with namespaces, wanted one or the other")
    if not pool and not spaces:
        raise table.error("namespace", "got none, wanted at least one [[subsystem.namespace]]")
    if not pool and table.has("size"):
        raise table.error("size", "got it without pool, wanted it with one, or in [[subsystem.namespace]]")
    for each in spaces:
        each.only(*FILE_KEYS, *POOL_KEYS)
    return SubsystemConfig(
        namespaces=tuple(_namespace(space, nsid, pools) for space, nsid in zip(spaces, _nsids(spaces), strict=True)),
        nqn=table.text("nqn", parse_nqn, ""),
        serial=table.text("serial", lambda text: parse_ascii(text, SERIAL_SIZE), ""),
        model=table.text("model", lambda text: parse_ascii(text, MODEL_SIZE), SubsystemConfig.model),
        allowed_hosts=table.texts("allowed_hosts", parse_nqn),
        pool=pool,
        size=_size(table)[0],
        where=table.where(),
    )


def _nsids(tables: Sequence[Table]) -> list[int]:
    """The given NSIDs; those left out get the lowest that are free."""
    given = [table.number("nsid", 1, NAMESPACES_MAX) for table in tables]
    refuse_twice((table.where("nsid"), str(nsid)) for table, nsid in zip(tables, given, strict=True) if nsid)
    free = (nsid for nsid in range(1, NAMESPACES_MAX + 1) if nsid not in given)
    try:
        return [next(free) if nsid is None else nsid for nsid in given]
    except StopIteration:
        raise tables[-1].error("nsid", f"got {len(tables)} namespaces, wanted at most {NAMESPACES_MAX}") from None


def _namespace(table: Table, nsid: int, pools: Sequence[str]) -> NamespaceConfig:
    if not table.has("pool"):
        for key in POOL_KEYS:
            if table.has(key):
                raise table.error(key, "got it without pool, wanted it only for a namespace of a pool")
        path = table.path("path", "a file name, or pool instead")
        size, block_size = _size(table)
        return NamespaceConfig(path, nsid, size, block_size, table.where())
    if table.has("path"):
        raise table.error("pool", "got it together with path, wanted one of them")
    pool, (size, block_size) = _pool_name(table, pools), _size(table)
    return NamespaceConfig(
        nsid=nsid,
        size=size,
        block_size=block_size,
        where=table.where(),
        pool=pool,
        pool_nsid=table.number("pool_nsid", 1, NAMESPACES_MAX) or nsid,
        codec=table.text("codec", _parse_codec, None),
        level=table.number("level", 0, LEVEL_MAX),
        planes=table.get("planes", int, "a whole number", _parse_planes, None),
        encrypted=table.flag("encrypted") if table.has("encrypted") else None,
        write_cache=table.flag("write_cache") if table.has("write_cache") else None,
    )


def _size(table: Table) -> tuple[int | None, int | None]:
    """Size and block size, the one a multiple of the other."""
    wanted = "bytes or a number with K, M, G, T"
    size: int | None = table.get("size", (str, int), wanted, lambda got: parse_size(str(got)), None)
    block_size: int | None = table.get("block_size", int, "a whole number", parse_block_size, None)
    multiple = block_size or min(VOLUME_BLOCK_SIZES)
    if size and size % multiple:
        raise table.error("size", f"got {size} bytes, wanted a multiple of {multiple}")
    return size, block_size


def _parse_codec(name: str) -> str:
    if name not in CODECS:
        raise UsageError(f"got {quoted(name)}, wanted one of {', '.join(CODECS)}")
    return name


def _parse_planes(planes: int) -> int:
    if planes not in PLANES:
        raise UsageError(f"got {planes}, wanted one of {', '.join(map(str, PLANES))}")
    return planes
