"""Every form of a URL, and a refusal that says what, got, wanted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import UsageError
from nvmeof.initiator.url import Url, is_url, parse_url

NQN = "nqn.2026-11.org.example:disk"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("nvme+tcp://host", Url("host", 4420)),
        ("nvme+tcp://host/", Url("host", 4420)),
        ("NVMe+TCP://host:1", Url("host", 1)),
        ("nvme+tcp://host:65535/", Url("host", 65535)),
        ("nvme+tcp://10.0.0.1:4420/" + NQN, Url("10.0.0.1", 4420, NQN)),
        (f"nvme+tcp://host/{NQN}/1", Url("host", 4420, NQN, 1)),
        (f"nvme+tcp://host/{NQN}/4294967294", Url("host", 4420, NQN, 4294967294)),
        ("nvme+tcp://[::1]/x", Url("::1", 4420, "x")),
        ("nvme+tcp://[fe80::1%25eth0]:8009", Url("fe80::1%eth0", 8009)),
        ("nvme+tcp://a-b.c_d.:7/nqn.2026-11.org%2Fa%3Fb%23c%25/2", Url("a-b.c_d.", 7, "nqn.2026-11.org/a?b#c%", 2)),
        ("nvme+tcp://host/nqn.caf%C3%A9", Url("host", 4420, "nqn.café")),
    ],
)
def test_accepted(text: str, url: Url) -> None:
    assert parse_url(text) == url
    assert parse_url(str(url)) == url


def test_default_port() -> None:
    assert parse_url("nvme+tcp://host", default_port=8009).port == 8009


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the scheme: got 'none'"),
        ("nvme-tcp://host", "the scheme: got 'nvme-tcp'"),
        ("http://host/x", "the scheme: got 'http'"),
        ("nvme+tcp:host", "the scheme: got 'nvme+tcp:ho', wanted nvme+tcp://"),
        ("nvme+tcp:/foo", "the scheme: got 'nvme+tcp:/f', wanted nvme+tcp://"),
        ("NVME+TCP:", "the scheme: got 'NVME+TCP:', wanted nvme+tcp://"),
        ("nvme+tcp://", "the host: got 'none'"),
        ("nvme+tcp:///x", "the host"),
        ("nvme+tcp://:4420/x", "the host"),
        ("nvme+tcp://ho st/x", "the host"),
        ("nvme+tcp://user@host/x", "no user name"),
        ("nvme+tcp://::1/x", "IPv6 address in brackets"),
        ("nvme+tcp://1:2:3/x", "IPv6 address in brackets"),
        ("nvme+tcp://[::1/x", "IPv6 address in brackets"),
        ("nvme+tcp://[::g]/x", "IPv6 address in brackets"),
        ("nvme+tcp://[host]/x", "IPv6 address in brackets"),
        ("nvme+tcp://[::1]4420/x", "the host"),
        ("nvme+tcp://host:/x", "the port: got 'none'"),
        ("nvme+tcp://host:0", "the port: got '0', wanted 1 to 65535"),
        ("nvme+tcp://host:65536", "the port"),
        ("nvme+tcp://host:-1", "the port"),
        ("nvme+tcp://host:1_0", "the port"),
        ("nvme+tcp://host:٤", "the port"),
        ("nvme+tcp://[::1]:x", "the port"),
        ("nvme+tcp://host/x?y", "a query"),
        ("nvme+tcp://host/x#y", "a fragment"),
        ("nvme+tcp://host#y", "a fragment"),
        ("nvme+tcp://host/x%", "an escape"),
        ("nvme+tcp://host/x%4", "an escape"),
        ("nvme+tcp://host/%FF", "UTF-8"),
        ("nvme+tcp://host/x%00", "NUL"),
        ("nvme+tcp://host//1", "NQN: got 0 bytes"),
        ("nvme+tcp://host/" + "x" * 224, "NQN: got 224 bytes"),
        ("nvme+tcp://host/x/", "the namespace: got 'none'"),
        ("nvme+tcp://host/x/0", "the namespace"),
        ("nvme+tcp://host/x/4294967295", "the namespace"),
        ("nvme+tcp://host/x/0x1", "the namespace"),
        ("nvme+tcp://host/x/-1", "the namespace"),
        ("nvme+tcp://host/x/1/2", "the path"),
    ],
)
def test_refused(text: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(text)
    assert what in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("nvme+tcp://host/x", True),
        ("NVME+TCP://host/x", True),
        ("nvme+tcp:/foo", True),
        ("nvme+tcp", False),
        ("/nvme+tcp:/x", False),
        ("host:4420", False),
        ("", False),
    ],
)
def test_what_is_meant_as_a_url(text: str, meant: bool) -> None:
    assert is_url(text) is meant


@given(st.text(max_size=60))
def test_nothing_else_escapes(text: str) -> None:
    for candidate in (text, "nvme+tcp://" + text, "nvme+tcp://h/" + text):
        try:
            url = parse_url(candidate)
        except UsageError:
            continue
        assert parse_url(str(url)) == url


@given(st.text(min_size=1, max_size=50).filter(lambda text: "\0" not in text), st.integers(1, 0xFFFF_FFFE))
def test_any_nqn_survives(nqn: str, nsid: int) -> None:
    try:
        nqn.encode()
    except UnicodeEncodeError:
        return
    url = Url("::1", 4420, nqn, nsid)
    assert parse_url(str(url)) == url
