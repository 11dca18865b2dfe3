"""The key table: what goes in comes out under the right key only, and nothing read from media can do harm."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from nvmeof.errors import UsageError
from nvmeof.keys.cipher import DataKey, new_data_key
from nvmeof.keys.sources import KeyFile, KeySource, Passphrase
from nvmeof.keys.table import KEYS_MAX, TABLE_BYTES_MAX, KeyTable

POOL = bytes(range(16))


def passphrase(text: str = "correct horse") -> Passphrase:
    return Passphrase(text, n=16)


def raw_key(seed: int) -> bytes:
    return Random(seed).randbytes(64)


def table_of(source: KeySource, key_ids: range) -> KeyTable:
    table = KeyTable.new(source)
    for key_id in key_ids:
        table.add(key_id, raw_key(key_id))
    return table


def is_key(key: DataKey, raw: bytes) -> bool:
    out, expected = bytearray(32), bytearray(32)
    key.encrypt_into(bytes(16), bytes(32), out)
    DataKey(raw).encrypt_into(bytes(16), bytes(32), expected)
    return out == expected


def reopened(data: bytes, source: KeySource) -> KeyTable:
    decoded = KeyTable.decode(data)
    assert decoded is not None
    decoded[1].unlock(source)
    return decoded[1]


def sealed(body: object, generation: int = 5) -> bytes:
    """A table that verifies, whatever is in it."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    header = b"NVMEOFKT" + len(text).to_bytes(4, "little") + bytes(4) + generation.to_bytes(8, "little")
    return header + xxh3_64_intdigest(text, generation).to_bytes(8, "little") + text


def body_of(data: bytes) -> dict[str, Any]:
    body = json.loads(data[32:])
    assert isinstance(body, dict)
    return body


def test_rfc_3394_vector() -> None:
    """Section 4.6: 256 bits of key data with a 256-bit KEK; the wrap that the table uses."""
    kek = bytes(range(32))
    data = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"
    assert aes_key_wrap(kek, data) == bytes.fromhex(wrapped)


def test_keys_are_wrapped_by_that_wrap(tmp_path: Path) -> None:
    source = KeyFile.create(tmp_path / "key")
    kek = source.kek({"name": "none"})
    body = body_of(table_of(source, range(1, 3)).encode(1))
    assert body["kdf"] == {"name": "none"}
    assert base64.b64decode(body["keys"]["2"]) == aes_key_wrap(kek, raw_key(2))
    assert base64.b64decode(body["check"]) == aes_key_wrap(kek, b"nvmeof key check")


def test_the_bytes_of_the_header() -> None:
    """FORMAT.md, key table."""
    data = table_of(passphrase(), range(1, 4)).encode(0x1122334455667788)
    assert data[:8] == b"NVMEOFKT"
    assert int.from_bytes(data[8:12], "little") == len(data) - 32
    assert data[12:16] == bytes(4)
    assert data[16:24] == bytes.fromhex("8877665544332211")
    assert data[24:32] == xxh3_64_intdigest(data[32:], 0x1122334455667788).to_bytes(8, "little")
    assert set(body_of(data)) == {"kdf", "check", "keys"}


@pytest.mark.parametrize("generation", [0, 1, 1 << 40, (1 << 64) - 1])
def test_round_trip(generation: int, tmp_path: Path) -> None:
    for source in (passphrase(), KeyFile.create(tmp_path / "key")):
        data = table_of(source, range(1, 6)).encode(generation)
        for padded in (data, data + bytes(TABLE_BYTES_MAX - len(data)), memoryview(bytearray(data + b"behind"))):
            decoded = KeyTable.decode(padded)
            assert decoded is not None
            assert decoded[0] == generation
            table = decoded[1]
            assert table.locked
            assert table.key_ids == (1, 2, 3, 4, 5)
            table.unlock(source)
            assert not table.locked
            assert all(is_key(table.key(key_id), raw_key(key_id)) for key_id in range(1, 6))
            assert table.encode(generation) == data


def test_a_full_table_fits() -> None:
    """256 namespaces with the longest ids, and those that are being replaced."""
    source = passphrase()
    table = table_of(source, range(0xFFFF - KEYS_MAX + 1, 0x10000))
    data = table.encode((1 << 64) - 1)
    assert KEYS_MAX >= 256
    assert len(data) <= TABLE_BYTES_MAX == 32 << 10
    assert len(reopened(data, source).key_ids) == KEYS_MAX
    with pytest.raises(UsageError, match="full"):
        table.add(1, raw_key(1))


def test_wrong_keys_are_told_from_damage(tmp_path: Path) -> None:
    right = table_of(passphrase(), range(1, 3))
    decoded = KeyTable.decode(right.encode(1))
    assert decoded is not None
    table = decoded[1]
    with pytest.raises(UsageError, match="wrong key: the passphrase does not open this pool"):
        table.unlock(passphrase("battery staple"))
    assert table.locked
    with pytest.raises(UsageError, match=r"wrong key.*locked with a passphrase"):
        table.unlock(KeyFile.create(tmp_path / "key"))
    table.unlock(passphrase())

    decoded = KeyTable.decode(table_of(KeyFile.create(tmp_path / "one"), range(1, 3)).encode(1))
    assert decoded is not None
    with pytest.raises(UsageError, match=r"wrong key: the key file .*/two does not open"):
        decoded[1].unlock(KeyFile.create(tmp_path / "two"))


def test_one_damaged_key_is_named() -> None:
    source = passphrase()
    body = body_of(table_of(source, range(1, 4)).encode(1))
    wrapped = bytearray(base64.b64decode(body["keys"]["2"]))
    wrapped[20] ^= 1
    body["keys"]["2"] = base64.b64encode(wrapped).decode()
    decoded = KeyTable.decode(sealed(body))
    assert decoded is not None
    with pytest.raises(UsageError, match="key 2 of the key table is damaged"):
        decoded[1].unlock(source)
    assert decoded[1].locked


def test_a_locked_table_gives_nothing() -> None:
    decoded = KeyTable.decode(table_of(passphrase(), range(1, 3)).encode(1))
    assert decoded is not None
    table = decoded[1]
    for refused in (lambda: table.key(1), lambda: table.add(9, raw_key(9)), lambda: table.rewrap(passphrase())):
        with pytest.raises(UsageError, match="locked"):
            refused()
    table.remove(1)
    assert table.key_ids == (2,)


def test_add_and_remove() -> None:
    source = passphrase()
    table = table_of(source, range(1, 3))
    for key_id in (-1, 0, 0x10000):
        with pytest.raises(UsageError, match="1 to 65535"):
            table.add(key_id, raw_key(1))
    with pytest.raises(UsageError, match="exists"):
        table.add(1, raw_key(3))
    with pytest.raises(UsageError, match="64 bytes"):
        table.add(3, bytes(32))
    assert table.key_ids == (1, 2)
    table.remove(1)
    with pytest.raises(UsageError, match="no key 1"):
        table.remove(1)
    with pytest.raises(UsageError, match="no key 1"):
        table.key(1)
    after = reopened(table.encode(2), source)
    assert after.key_ids == (2,)
    wrapped_one = body_of(table_of(source, range(1, 2)).encode(1))["keys"]["1"]
    assert wrapped_one.encode() not in table.encode(2)
    table.add(1, raw_key(7))
    assert is_key(table.key(1), raw_key(7))


def test_rewrap_keeps_the_data_keys(tmp_path: Path) -> None:
    old, new = passphrase(), KeyFile.create(tmp_path / "key")
    table = table_of(old, range(1, 5))
    before = table.encode(1)
    rotated = table.rewrap(new)
    assert table.encode(1) == before
    decoded = KeyTable.decode(rotated.encode(2))
    assert decoded is not None
    with pytest.raises(UsageError, match="wrong key"):
        decoded[1].unlock(old)
    after = reopened(rotated.encode(2), new)
    assert after.key_ids == (1, 2, 3, 4)
    assert all(is_key(after.key(key_id), raw_key(key_id)) for key_id in after.key_ids)
    assert not set(body_of(before)["keys"].values()) & set(body_of(rotated.encode(2))["keys"].values())


def test_rewrap_with_the_same_passphrase_takes_a_new_salt() -> None:
    table = table_of(passphrase(), range(1, 2))
    first, second = body_of(table.encode(1)), body_of(table.rewrap(passphrase()).encode(1))
    assert first["kdf"]["salt"] != second["kdf"]["salt"]
    assert first["keys"] != second["keys"]


def test_any_flipped_bit_is_seen() -> None:
    data = table_of(passphrase(), range(1, 3)).encode(3)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        assert KeyTable.decode(damaged) is None, bit


def test_any_cut_is_seen() -> None:
    data = table_of(passphrase(), range(1, 3)).encode(3)
    assert all(KeyTable.decode(data[:length]) is None for length in range(len(data)))
    assert KeyTable.decode(bytes(TABLE_BYTES_MAX)) is None


GOOD = body_of(table_of(passphrase(), range(1, 3)).encode(1))
WRAPPED = GOOD["keys"]["1"]
KDFS: list[object] = [
    None, [], "none", {}, {"name": "none", "n": 1}, {**GOOD["kdf"], "n": 1 << 40}, {**GOOD["kdf"], "p": 1e9},
]  # fmt: skip
NAMES = ["", "0", "01", "-1", "+1", "1 ", "65536", "1e3", "\u0663", "\u00b2", "a", "9" * 5000]
VALUES: list[object] = [None, 7, [], {}, "", WRAPPED[:-4], WRAPPED + "AAAA", "*" + WRAPPED, "\ud800"]
HOSTILE: list[object] = [
    b"", b"{", b"\xff\xfe", b"null", b"1" * 30000, b"[" * 30000, b'{"a":' * 6000, b"NaN", [], "text", 5, {},
    b'{"kdf":' + b"[" * 20000,
    {**GOOD, "more": 1},
    {name: GOOD[name] for name in ("kdf", "keys")},
    *({**GOOD, "kdf": kdf} for kdf in KDFS),
    *({**GOOD, "check": check} for check in (None, 5, "", "AAAA", "é" * 32, WRAPPED, "*" * 32)),
    *({**GOOD, "keys": keys} for keys in (None, [], [["1", WRAPPED]], "1")),
    *({**GOOD, "keys": {name: WRAPPED}} for name in NAMES),
    *({**GOOD, "keys": {"1": value}} for value in VALUES),
    {**GOOD, "keys": {str(index): "" for index in range(1, 3000)}},
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_hostile_bodies_are_no_tables(index: int) -> None:
    assert KeyTable.decode(sealed(GOOD)) is not None
    assert KeyTable.decode(sealed(HOSTILE[index])) is None


def test_more_keys_than_there_may_be() -> None:
    keys = {str(index): WRAPPED for index in range(1, KEYS_MAX + 1)}
    text = json.dumps({**GOOD, "keys": keys}, separators=(",", ":")).encode()
    assert KeyTable.decode(sealed(text)) is not None
    keys["60000"] = WRAPPED
    text = json.dumps({**GOOD, "keys": keys}, separators=(",", ":")).encode()
    assert len(text) + 32 <= TABLE_BYTES_MAX
    assert KeyTable.decode(sealed(text)) is None


def test_a_length_beyond_the_area_is_refused() -> None:
    text = json.dumps(GOOD).encode().ljust(TABLE_BYTES_MAX - 32)
    assert KeyTable.decode(sealed(text)) is not None
    assert KeyTable.decode(sealed(text + b" ")) is None
    cut = bytearray(sealed(GOOD))
    cut[8:12] = b"\xff\xff\xff\xff"
    assert KeyTable.decode(cut) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "n", "1", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(kdf=JSON, check=JSON, keys=JSON)
def test_any_json_is_a_table_or_none(kdf: object, check: object, keys: object) -> None:
    parts = [{"kdf": kdf}, {"check": check}, {"keys": keys}, {"kdf": kdf, "check": check, "keys": keys}]
    for part in parts:
        KeyTable.decode(sealed({**GOOD, **part}))


@given(st.binary(max_size=200))
def test_any_bytes_are_none(data: bytes) -> None:
    assert KeyTable.decode(data) is None
    with pytest.raises(UsageError):
        KeyTable.from_export(data)


def test_export_and_back() -> None:
    source = passphrase()
    table = table_of(source, range(1, 4))
    text = table.export(POOL)
    assert json.loads(text)["pool"] == POOL.hex()
    for raw in map(raw_key, range(1, 4)):
        assert base64.b64encode(raw) not in text
        assert raw.hex().encode() not in text
    pool, loaded = KeyTable.from_export(text)
    assert pool == POOL
    assert loaded.locked
    loaded.unlock(source)
    assert loaded.encode(9) == table.encode(9)
    assert KeyTable.from_export(json.dumps(json.loads(text), sort_keys=True).encode())[0] == POOL


@pytest.mark.parametrize("name", ["format", "pool", "checksum", "kdf", "check", "keys"])
def test_a_damaged_export_is_refused(name: str) -> None:
    content = json.loads(table_of(passphrase(), range(1, 3)).export(POOL))
    changes: list[object] = [None, 1, "x", {}, []]
    if name == "kdf":
        changes.append({**content["kdf"], "salt": "11" * 16})
    if name == "keys":
        changes += [{"1": content["keys"]["1"]}, {"1": content["keys"]["2"], "2": content["keys"]["1"]}]
    if name == "pool":
        changes.append("ff" * 16)
    for change in changes:
        with pytest.raises(UsageError, match=r"no exported key table|damaged"):
            KeyTable.from_export(json.dumps({**content, name: change}).encode())
    del content[name]
    with pytest.raises(UsageError):
        KeyTable.from_export(json.dumps(content).encode())


def test_nothing_is_shown() -> None:
    table = table_of(passphrase(), range(1, 3))
    decoded = KeyTable.decode(table.encode(1))
    assert decoded is not None
    assert repr(table) == "<KeyTable of 2 keys>"
    assert repr(decoded[1]) == "<KeyTable of 2 keys, locked>"


def test_a_new_data_key_fits() -> None:
    table = KeyTable.new(passphrase())
    key = new_data_key()
    table.add(1, key)
    assert is_key(table.key(1), key)
