from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import UsageError
from nvmeof.spec.fabrics import (
    DISCOVERY_NQN,
    NQN_BYTES_MAX,
    check_foreign_nqn,
    check_nqn,
    decode_nqn,
    encode_nqn,
)

PREFIX = "nqn.2024-01.io.example:"
UUID = "01234567-89ab-cdef-0123-456789ABCDEF"


@pytest.mark.parametrize(
    "nqn",
    [
        DISCOVERY_NQN,
        "nqn.2014-08.org.nvmexpress:uuid:" + UUID,
        "nqn.2014-08.org.nvmexpress:NVMf:uuid:" + UUID,
        "nqn.2014-08.com.example:nvme.host.sys.xyz",
        "nqn.2016-06.io.spdk:cnode1",
        "nqn.2024-12.local:x",
        "nqn.2024-01.io.example",
        "nqn.2024-01.io.ex-ample:a:b:c",
        "nqn.2024-01.io." + "a" * 63 + ":x",
        PREFIX + "speicher-für-modelle",
        PREFIX + "a" * (NQN_BYTES_MAX - len(PREFIX)),
    ],
)
def test_good_names(nqn: str) -> None:
    check_nqn(nqn)
    assert decode_nqn(encode_nqn(nqn)) == nqn


@pytest.mark.parametrize(
    ("nqn", "wanted"),
    [
        ("", "wanted 1 to 223"),
        (PREFIX + "a" * (NQN_BYTES_MAX + 1 - len(PREFIX)), "got 224 bytes"),
        (PREFIX + "ü" * 101, "got 225 bytes"),
        (PREFIX + "a\0b", "no NUL"),
        (PREFIX + "\ud800", "text that UTF-8 can hold"),
        (PREFIX + "a b", "no white space"),
        (PREFIX + "a\n", "no white space"),
        (PREFIX + "a\u2028", "no white space"),
        (PREFIX + "\x1b[0m", "no white space, control characters or slashes"),
        (PREFIX + "a/b", "slashes"),
        ("testnqn", r"wanted nqn\.yyyy-mm\.reverse\.domain:name"),
        ("NQN.2024-01.io.example:x", "wanted nqn"),
        ("iqn.2024-01.io.example:x", "wanted nqn"),
        ("nqn.2024-13.io.example:x", "wanted nqn"),
        ("nqn.2024-00.io.example:x", "wanted nqn"),
        ("nqn.24-01.io.example:x", "wanted nqn"),
        ("nqn.2024-01.:x", "wanted nqn"),
        ("nqn.2024-01.io..example:x", "wanted nqn"),
        ("nqn.2024-01.io.-example:x", "wanted nqn"),
        ("nqn.2024-01.io.example-:x", "wanted nqn"),
        ("nqn.2024-01.io.exa_mple:x", "wanted nqn"),
        ("nqn.2024-01.io." + "a" * 64 + ":x", "wanted nqn"),
        ("nqn.2024-01.io.example:", "wanted nqn"),
        ("nqn.\u0662024-01.io.example:x", "wanted nqn"),
        ("nqn.2014-08.org.nvmexpress:uuid:" + UUID[:-1], "wanted a UUID"),
        ("nqn.2014-08.org.nvmexpress:uuid:" + UUID + "0", "wanted a UUID"),
        ("nqn.2014-08.org.nvmexpress:uuid:" + UUID.replace("-", ""), "wanted a UUID"),
        ("nqn.2014-08.org.nvmexpress:uuid:", "wanted a UUID"),
    ],
)
def test_bad_names(nqn: str, wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted) as caught:
        check_nqn(nqn)
    assert str(caught.value).startswith("NQN: got ")


@pytest.mark.parametrize("nqn", ["testnqn", "blktests-subsystem-1", "a", "x" * NQN_BYTES_MAX, "with space/slash"])
def test_names_that_peers_chose_only_have_to_fit(nqn: str) -> None:
    check_foreign_nqn(nqn)
    assert decode_nqn(encode_nqn(nqn)) == nqn


def test_field_bytes() -> None:
    assert encode_nqn("nqn.2024-01.a") == b"nqn.2024-01.a" + bytes(243)
    assert decode_nqn(b"nqn.2024-01.a" + bytes(243)) == "nqn.2024-01.a"


def test_what_lies_behind_the_terminator_is_ignored() -> None:
    assert decode_nqn(b"nqn.2024-01.a\0junk\xff".ljust(256, b"x")) == "nqn.2024-01.a"


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (b"a" * 256, "no NUL within 224 bytes"),
        (b"a" * 224 + bytes(32), "no NUL within 224 bytes"),
        (b"a" * 255 + b"\0", "no NUL within 224 bytes"),
        (b"", "no NUL"),
        (bytes(256), "empty"),
        (b"nqn.\xff" + bytes(251), "codec can't decode"),
    ],
)
def test_bad_fields(field: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_nqn(field)


def test_the_longest_field() -> None:
    assert decode_nqn(b"a" * 223 + bytes(33)) == "a" * 223


@given(st.binary(min_size=256, max_size=256))
def test_any_field_decodes_or_is_a_value_error(field: bytes) -> None:
    try:
        text = decode_nqn(field)
    except ValueError:
        return
    check_foreign_nqn(text)
    assert field.startswith(text.encode() + b"\0")


@given(st.text(max_size=230))
def test_any_text_is_accepted_or_refused_alike(text: str) -> None:
    try:
        check_nqn(text)
    except UsageError:
        return
    assert decode_nqn(encode_nqn(text)) == text
