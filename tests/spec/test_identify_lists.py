"""Lists of Identify: NVMe Base 2.0 section 5.17.2, descriptors in figure 277."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import LocalProtocolError
from nvmeof.spec.identify_lists import (
    CONTROLLER_LIST_MAX,
    NAMESPACE_LIST_MAX,
    NamespaceIdentifiers,
    decode_command_set_combinations,
    decode_controller_list,
    decode_namespace_list,
    encode_command_set_combinations,
    encode_controller_list,
    encode_namespace_list,
)

from .images import image

EUI64 = bytes(range(8))
NGUID = bytes(range(16, 32))
UUID = bytes(range(32, 48))
IDENTIFIERS = NamespaceIdentifiers(eui64=EUI64, nguid=NGUID, uuid=UUID, csi=0)
DESCRIPTORS = image(
    4096,
    {
        0: "01 08 00 00" + EUI64.hex(),
        12: "02 10 00 00" + NGUID.hex(),
        32: "03 10 00 00" + UUID.hex(),
        52: "04 01 00 00 00",
    },
)


def test_descriptors() -> None:
    assert IDENTIFIERS.encode() == DESCRIPTORS
    assert NamespaceIdentifiers.decode(DESCRIPTORS) == IDENTIFIERS


def test_absent_descriptors() -> None:
    assert NamespaceIdentifiers().encode() == bytes(4096)
    assert NamespaceIdentifiers.decode(bytes(4096)) == NamespaceIdentifiers()
    assert NamespaceIdentifiers(uuid=UUID).encode() == image(4096, {0: "03 10 00 00" + UUID.hex()})


def test_unknown_descriptors_are_skipped_and_the_first_of_a_kind_counts() -> None:
    data = image(4096, {0: "09 02 00 00 ff ff", 6: "04 01 00 00 02", 11: "04 01 00 00 00"})
    assert NamespaceIdentifiers.decode(data) == NamespaceIdentifiers(csi=2)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bytes.fromhex("03 08 00 00") + bytes(8), "type 3: got 8 bytes, wanted 16"),
        (bytes.fromhex("04 02 00 00 00 00"), "type 4: got 2 bytes, wanted 1"),
        (bytes.fromhex("03 10 00 00") + bytes(15), "descriptor at 0: 16 bytes run over the end"),
    ],
)
def test_bad_descriptors(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        NamespaceIdentifiers.decode(data)


@pytest.mark.parametrize("identifiers", [NamespaceIdentifiers(eui64=b"x"), NamespaceIdentifiers(uuid=bytes(17))])
def test_identifiers_of_the_wrong_size_are_our_own_error(identifiers: NamespaceIdentifiers) -> None:
    with pytest.raises(LocalProtocolError, match="wanted"):
        identifiers.encode()


@given(st.binary(max_size=4096))
def test_any_descriptors_decode_or_are_a_value_error(data: bytes) -> None:
    try:
        NamespaceIdentifiers.decode(data)
    except ValueError:
        pass


def test_namespace_list() -> None:
    wire = image(4096, {0: "01 00 00 00  02 01 00 00  fd ff ff ff"})
    assert encode_namespace_list([1, 0x102, 0xFFFFFFFD]) == wire
    assert decode_namespace_list(wire) == [1, 0x102, 0xFFFFFFFD]
    assert decode_namespace_list(bytes(4096)) == []


def test_full_namespace_list() -> None:
    full = list(range(1, NAMESPACE_LIST_MAX + 1))
    assert decode_namespace_list(encode_namespace_list(full)) == full
    with pytest.raises(LocalProtocolError, match="got 1025 entries"):
        encode_namespace_list([*full, 5000])


@pytest.mark.parametrize("nsids", [[0], [2, 1], [1, 1]])
def test_namespace_list_is_ascending(nsids: list[int]) -> None:
    with pytest.raises(LocalProtocolError, match="wanted ascending"):
        encode_namespace_list(nsids)


def test_controller_list() -> None:
    wire = image(4096, {0: "03 00  00 00  01 00  ef ff"})
    assert encode_controller_list([0, 1, 0xFFEF]) == wire
    assert decode_controller_list(wire) == [0, 1, 0xFFEF]
    assert decode_controller_list(bytes(4096)) == []


def test_full_controller_list() -> None:
    full = list(range(1, CONTROLLER_LIST_MAX + 1))
    encoded = encode_controller_list(full)
    assert len(encoded) == 4096
    assert decode_controller_list(encoded) == full
    with pytest.raises(LocalProtocolError, match="got 2048 entries"):
        encode_controller_list([*full, 5000])


def test_bad_controller_lists() -> None:
    with pytest.raises(LocalProtocolError, match="wanted ascending"):
        encode_controller_list([3, 3])
    with pytest.raises(ValueError, match="count of 2048"):
        decode_controller_list(image(4096, {0: "00 08"}))


def test_command_set_combinations() -> None:
    wire = image(4096, {0: "01 00 00 00 00 00 00 00  05 00 00 00 00 00 00 00"})
    assert encode_command_set_combinations([0b1, 0b101]) == wire
    assert decode_command_set_combinations(wire) == [0b1, 0b101]
    with pytest.raises(LocalProtocolError, match="at most 512"):
        encode_command_set_combinations([1] * 513)


@pytest.mark.parametrize(
    "decode", [decode_namespace_list, decode_controller_list, decode_command_set_combinations], ids=lambda f: f.__name__
)
def test_short_lists(decode: object) -> None:
    assert callable(decode)
    with pytest.raises(ValueError, match="needs 4096 bytes, got 4095"):
        decode(bytes(4095))


@given(st.sets(st.integers(1, 0xFFFFFFFF), max_size=50).map(sorted))
def test_namespace_list_round_trip(nsids: list[int]) -> None:
    assert decode_namespace_list(encode_namespace_list(nsids)) == nsids


@given(st.sets(st.integers(0, 0xFFFF), max_size=50).map(sorted))
def test_controller_list_round_trip(cntlids: list[int]) -> None:
    assert decode_controller_list(encode_controller_list(cntlids)) == cntlids
