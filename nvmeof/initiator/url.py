"""``nvme+tcp://HOST[:PORT][/SUBNQN[/NSID]]``."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import quote, unquote

from nvmeof.errors import UsageError
from nvmeof.spec.command import NSID_ALL
from nvmeof.spec.fabrics import PORT_IO, check_foreign_nqn

SCHEME = "nvme+tcp://"
PREFIX = "nvme+tcp:"
FORM = "nvme+tcp://HOST[:PORT][/SUBNQN[/NSID]]"

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::(.*))?", re.DOTALL)
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


class Url(NamedTuple):
    """``host`` without brackets; ``subnqn`` and ``nsid`` are None when the URL names none."""

    host: str
    port: int
    subnqn: str | None = None
    nsid: int | None = None

    @property
    def address(self) -> str:
        """HOST:PORT, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        text = SCHEME + self.address.replace("%", "%25")
        if self.subnqn is not None:
            text += "/" + quote(self.subnqn, safe=":")
        return text if self.nsid is None else f"{text}/{self.nsid}"


def is_url(text: str) -> bool:
    """Whether ``text`` is meant as a URL of ours, well formed or not, and not as a file name."""
    return text[: len(PREFIX)].lower() == PREFIX


def parse_url(text: str, *, default_port: int = PORT_IO) -> Url:
    """The parts of ``text``, percent-decoded (a slash in an NQN is ``%2F``). Raises UsageError: what, got, wanted."""
    if text[: len(SCHEME)].lower() != SCHEME:
        if is_url(text):
            raise _refused(text, "the scheme", text[: len(SCHEME)], SCHEME)
        raise _refused(text, "the scheme", text.partition("://")[0] or "none", "nvme+tcp")
    authority, _, path = text[len(SCHEME) :].partition("/")
    for mark, what in (("?", "a query"), ("#", "a fragment")):
        if mark in authority or mark in path:
            raise _refused(text, what, mark, f"none; in an NQN write {mark} as {quote(mark)}")
    if "@" in authority:
        raise _refused(text, "the host", authority, "no user name")
    if _BAD_ESCAPE.search(authority + path):
        raise _refused(text, "an escape", path or authority, "% and two hexadecimal digits")
    host, port = _host_and_port(text, authority, default_port)
    if not path:
        return Url(host, port)
    parts = [_decoded(text, part) for part in path.split("/")]
    if len(parts) > 2:
        raise _refused(text, "the path", "/" + path, "/SUBNQN/NSID; in an NQN write / as %2F")
    try:
        check_foreign_nqn(parts[0])
    except UsageError as error:
        raise UsageError(f"URL {text!r}: {error}") from None
    return Url(host, port, parts[0], _nsid(text, parts[1]) if len(parts) == 2 else None)


def _host_and_port(text: str, authority: str, default_port: int) -> tuple[str, int]:
    bracketed = _BRACKETED.fullmatch(authority)
    if bracketed is not None:
        host, port = _decoded(text, bracketed[1]), bracketed[2]
        try:
            IPv6Address(host)
        except ValueError:
            raise _refused(text, "the host", f"[{host}]", "an IPv6 address in brackets") from None
    else:
        host, colon, digits = authority.partition(":")
        port = digits if colon else None
        if ":" in digits:
            raise _refused(text, "the host", authority, "an IPv6 address in brackets")
        if not _HOST.fullmatch(host):
            raise _refused(text, "the host", host or "none", "a name, an IPv4 address or an IPv6 address in brackets")
    if port is None:
        return host, default_port
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise _refused(text, "the port", port or "none", "1 to 65535")
    return host, int(port)


def _nsid(text: str, part: str) -> int:
    if not (part.isascii() and part.isdigit() and len(part) <= 10 and 1 <= int(part) < NSID_ALL):
        raise _refused(text, "the namespace", part or "none", f"a number from 1 to {NSID_ALL - 1}")
    return int(part)


def _decoded(text: str, part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise _refused(text, "an escape", part, "UTF-8") from None


def _refused(text: str, what: str, got: str, wanted: str) -> UsageError:
    return UsageError(f"URL {text!r}: {what}: got {got!r}, wanted {wanted} (the form is {FORM})")
