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
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import socket
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nvmeof.errors import ConfigError, UsageError
from nvmeof.limits import CONFIG_BYTES_MAX, NAMESPACES_MAX, VOLUME_BLOCK_SIZES
from nvmeof.spec.fabrics import DISCOVERY_NQN, PORT_IO, check_nqn
from nvmeof.spec.fields import ascii_field

T = TypeVar("T")

SERIAL_SIZE, MODEL_SIZE = 20, 40
DEFAULT_HOST = "127.0.0.1"
PORT_MAX = 0xFFFF
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
class NamespaceConfig:
    """A backing file. ``size`` (bytes) and ``block_size`` describe one that is yet to be made.

    ``where`` is what an error about it begins with.
    """

    path: Path
    nsid: int = 1
    size: int | None = None
    block_size: int | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class SubsystemConfig:
    """``nqn`` empty: made from the UUID of the first namespace. ``allowed_hosts`` None: any host."""

    namespaces: tuple[NamespaceConfig, ...]
    nqn: str = ""
    serial: str = ""
    model: str = "nvmeof"
    allowed_hosts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TargetConfig:
    """Everything that is served, and where."""

    subsystems: tuple[SubsystemConfig, ...]
    listeners: tuple[ListenerConfig, ...] = (ListenerConfig(),)


# --- values, from flags and from files --------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Bytes from "4096", "512K", "1G", "2TiB"; powers of 1024. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    size = int(match[1]) << _SHIFTS[(match[2] or "").upper()] if match and len(match[1]) <= 20 else 0
    if not size:
        raise UsageError(f"got {_quoted(text)}, wanted bytes or a number with K, M, G, T, above 0")
    return size


def parse_block_size(text: str | int) -> int:
    """Raises UsageError."""
    for size in VOLUME_BLOCK_SIZES:
        if text in (size, str(size)):
            return size
    raise UsageError(f"got {_quoted(text)}, wanted {' or '.join(map(str, VOLUME_BLOCK_SIZES))}")


def parse_address(text: str, default_port: int | None = PORT_IO) -> tuple[str, int]:
    """Host and port of "HOST:PORT", "[IPV6]:PORT", or HOST alone if there is a default port. Raises UsageError."""
    wanted = "HOST:PORT or [IPV6]:PORT" + ("" if default_port is None else f" (port {default_port} if left out)")
    match = _ADDRESS.fullmatch(text)
    host = (match["v6"] if match["name"] is None else match["name"]) if match else ""
    if not match or not host or re.search(r"[\s/]", host) or (match["v6"] is not None and ":" not in host):
        raise UsageError(f"got {_quoted(text)}, wanted {wanted}")
    if match["port"] is None:
        if default_port is None:
            raise UsageError(f"got {_quoted(text)}, wanted {wanted}")
        return host, default_port
    if int(match["port"]) > PORT_MAX:
        raise UsageError(f"got {_quoted(text)}, wanted a port from 0 to {PORT_MAX}")
    return host, int(match["port"])


def parse_advertised(text: str) -> tuple[str, int]:
    """As :func:`parse_address`, but an address a host can be sent to: numeric and with a port. Raises UsageError."""
    host, port = parse_address(text, default_port=None)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(f"got {_quoted(text)}, wanted a numeric address: the discovery log has no names") from None
    if address.is_unspecified or not port:
        raise UsageError(f"got {_quoted(text)}, wanted the address and the port that hosts connect to")
    return host, port


def parse_nqn(text: str) -> str:
    """A name to serve or to allow. Raises UsageError."""
    check_nqn(text)
    if text == DISCOVERY_NQN:
        raise UsageError(f"got {_quoted(text)}, wanted another NQN: the discovery service has this one")
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
    return _target(_Table(path, "", content))


class _Table:
    """One table of the file; every getter raises ConfigError with the key's path."""

    def __init__(self, file: Path, place: str, content: dict[str, Any]) -> None:
        self.file = file
        self.place = place
        self._content = content

    def only(self, *known: str) -> None:
        """Refuse keys that nobody reads."""
        for key in self._content:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"wanted one of {', '.join(known)}"
                raise self.error(key, f"unknown key; {hint}")

    def error(self, key: str, message: str) -> ConfigError:
        return ConfigError(f"{self.where(key)}: {message}")

    def where(self, key: str = "") -> str:
        return f"{self.file}: {'.'.join(filter(None, (self.place, key)))}"

    def has(self, key: str) -> bool:
        return key in self._content

    def text(self, key: str, parse: Callable[[str], T], default: T) -> T:
        return self._get(key, str, "a string", parse, default)

    def flag(self, key: str) -> bool:
        return self._get(key, bool, "true or false", bool, False)

    def size(self, key: str) -> int | None:
        return self._get(key, (str, int), "bytes or a number with K, M, G, T", lambda got: parse_size(str(got)), None)

    def block_size(self, key: str) -> int | None:
        return self._get(key, int, "a whole number", parse_block_size, None)

    def number(self, key: str, low: int, high: int) -> int | None:
        def parse(got: int) -> int:
            if not low <= got <= high:
                raise UsageError(f"got {got}, wanted {low} to {high}")
            return got

        return self._get(key, int, "a whole number", parse, None)

    def texts(self, key: str, parse: Callable[[str], str]) -> tuple[str, ...] | None:
        if not self.has(key):
            return None
        found = self._content[key]
        if not isinstance(found, list) or not found:
            raise self.error(key, f"got {_quoted(found)}, wanted a list of strings that is not empty")
        items = _Table(self.file, self.place, {f"{key}[{index}]": item for index, item in enumerate(found)})
        return tuple(items.text(each, parse, "") for each in items._content)

    def tables(self, key: str) -> list[_Table]:
        """The tables under ``[[key]]``."""
        found = self._content.get(key, [])
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise self.error(key, f"got {_quoted(found)}, wanted tables, each under [[{self._full(key)}]]")
        return [_Table(self.file, f"{self._full(key)}[{index}]", each) for index, each in enumerate(found)]

    def _full(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def _get(
        self, key: str, kind: type | tuple[type, ...], wanted: str, parse: Callable[[Any], T], default: T
    ) -> T:  # fmt: skip
        if not self.has(key):
            return default
        got = self._content[key]
        if not isinstance(got, kind) or (isinstance(got, bool) and kind is not bool):
            raise self.error(key, f"got {_quoted(got)}, wanted {wanted}")
        try:
            return parse(got)
        except UsageError as error:
            raise self.error(key, str(error)) from error


def _target(top: _Table) -> TargetConfig:
    top.only("congestion", "listener", "subsystem")
    congestion = top.text("congestion", str, None)
    listeners = [_listener(table, congestion) for table in top.tables("listener")]
    tables = top.tables("subsystem")
    if not tables:
        raise top.error("subsystem", "got none, wanted at least one [[subsystem]]")
    subsystems = [_subsystem(table) for table in tables]
    _refuse_twice(((table.where("nqn"), each.nqn) for table, each in zip(tables, subsystems, strict=True) if each.nqn))
    spaces = [space for each in subsystems for space in each.namespaces]
    _refuse_twice((f"{space.where}.path", os.path.realpath(space.path)) for space in spaces)
    fixed = [(index, each) for index, each in enumerate(listeners) if each.port]
    _refuse_twice((top.where(f"listener[{index}].address"), _address(each.host, each.port)) for index, each in fixed)
    ports = Counter(each.port for _, each in fixed)
    _refuse_twice(
        (top.where(f"listener[{index}].address"), _address(_resolved(each.host), each.port))
        for index, each in fixed
        if ports[each.port] > 1
    )
    default = ListenerConfig(congestion=congestion, where=top.where("congestion"))
    return TargetConfig(tuple(subsystems), tuple(listeners) or (default,))


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _resolved(host: str) -> str:
    """The address a listener would be bound to, in its one spelling; ``host`` itself where there is no telling."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return host
    return str(found[0][4][0])


def _listener(table: _Table, congestion: str | None) -> ListenerConfig:
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


def _subsystem(table: _Table) -> SubsystemConfig:
    table.only("nqn", "serial", "model", "allowed_hosts", "namespace")
    spaces = table.tables("namespace")
    if not spaces:
        raise table.error("namespace", "got none, wanted at least one [[subsystem.namespace]]")
    for each in spaces:
        each.only("path", "size", "block_size", "nsid")
    return SubsystemConfig(
        namespaces=tuple(map(_namespace, spaces, _nsids(spaces))),
        nqn=table.text("nqn", parse_nqn, ""),
        serial=table.text("serial", lambda text: parse_ascii(text, SERIAL_SIZE), ""),
        model=table.text("model", lambda text: parse_ascii(text, MODEL_SIZE), SubsystemConfig.model),
        allowed_hosts=table.texts("allowed_hosts", parse_nqn),
    )


def _nsids(tables: Sequence[_Table]) -> list[int]:
    """The given NSIDs; those left out get the lowest that are free."""
    given = [table.number("nsid", 1, NAMESPACES_MAX) for table in tables]
    _refuse_twice((table.where("nsid"), str(nsid)) for table, nsid in zip(tables, given, strict=True) if nsid)
    free = (nsid for nsid in range(1, NAMESPACES_MAX + 1) if nsid not in given)
    try:
        return [next(free) if nsid is None else nsid for nsid in given]
    except StopIteration:
        raise tables[-1].error("nsid", f"got {len(tables)} namespaces, wanted at most {NAMESPACES_MAX}") from None


def _namespace(table: _Table, nsid: int) -> NamespaceConfig:
    if not table.has("path"):
        raise table.error("path", "is missing, wanted a file name")
    name = table.text("path", str, "")
    if not name or "\0" in name:
        raise table.error("path", f"got {_quoted(name)}, wanted a file name")
    size, block_size = table.size("size"), table.block_size("block_size")
    if size and size % (block_size or min(VOLUME_BLOCK_SIZES)):
        raise table.error("size", f"got {size} bytes, wanted a multiple of {block_size or min(VOLUME_BLOCK_SIZES)}")
    return NamespaceConfig(table.file.parent / name, nsid, size, block_size, table.where())


def _refuse_twice(items: Iterable[tuple[str, str]]) -> None:
    """(where, value) pairs whose values must differ."""
    seen: dict[str, str] = {}
    for where, value in items:
        if value in seen:
            other = seen[value].partition(": ")[2]
            raise ConfigError(f"{where}: got {_quoted(value)}, which is {other} already")
        seen[value] = where


def _quoted(value: object) -> str:
    """A value as TOML writes it, near enough."""
    return json.dumps(value, ensure_ascii=False, default=str)
