"""AES-256-XTS gives the bytes of IEEE 1619."""

from __future__ import annotations

import copy
import pickle
from random import Random

import pytest

from nvmeof.errors import UsageError
from nvmeof.keys.cipher import DataKey, new_data_key

KEY = bytes.fromhex(
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592"
)
PLAIN = bytes(range(256)) * 2
VECTOR_10 = (
    "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"
    "5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd"
    "5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0"
    "c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca"
    "2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0"
    "b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f"
    "93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec"
    "583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6ba02469a020a"
    "84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1"
    "505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae"
    "9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29"
    "a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac"
    "6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f"
    "645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed4385"
    "1ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa"
    "773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151"
)
VECTORS = {
    10: ("ff", VECTOR_10),
    11: (
        "ffff",
        "77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11"
        "e1d0225438e093242d6db274fde801d4cae06f2092c728b2478559df58e837c2",
    ),
    12: (
        "ffffff",
        "e387aaa58ba483afa7e8eb469778317ecf4cf573aa9d4eac23f2cdf914e4e200"
        "a8b490e42ee646802dc6ee2b471b278195d60918ececb44bf79966f83faba049",
    ),
    13: (
        "ffffffff",
        "bf53d2dade78e822a4d949a9bc6766b01b06a8ef70d26748c6a7fc36d80ae4c5"
        "520f7c4ab0ac8544424fa405162fef5a6b7f229498063618d39f0003cb5fb8d1",
    ),
    14: (
        "ffffffffff",
        "64497e5a831e4a932c09be3e5393376daa599548b816031d224bbf50a818ed23"
        "50eae7e96087c8a0db51ad290bd00c1ac1620857635bf246c176ab463be30b80",
    ),
}
"""IEEE 1619-2007, annex B, XTS-AES-256: data unit sequence number and ciphertext, of 11 to 14 its first 64 bytes."""


@pytest.mark.parametrize("number", list(VECTORS))
def test_ieee_1619_vectors(number: int) -> None:
    sequence, expected = VECTORS[number]
    tweak = bytes.fromhex(sequence).ljust(16, b"\0")
    sealed = bytearray(512)
    DataKey(KEY).encrypt_into(tweak, PLAIN, sealed)
    assert sealed.hex().startswith(expected)
    opened = bytearray(512)
    DataKey(KEY).decrypt_into(tweak, bytes(sealed), opened)
    assert opened == PLAIN


@pytest.mark.parametrize("length", [16, 17, 31, 4096, 4128, 128 << 10])
def test_round_trip_of_any_buffers(length: int) -> None:
    """Lengths that are no multiple of 16 take ciphertext stealing; a memoryview may be a part of something."""
    key = DataKey(new_data_key())
    data = Random(length).randbytes(length)
    around = bytearray(length + 20)
    sealed = memoryview(around)[10 : 10 + length]
    key.encrypt_into(bytes(16), memoryview(data), sealed)
    assert bytes(sealed) != data
    assert around[:10] + around[-10:] == bytes(20)
    opened = bytearray(length)
    key.decrypt_into(bytes(16), sealed, memoryview(opened))
    assert opened == data
    key.decrypt_into(bytes(16), sealed, sealed)
    assert bytes(sealed) == data


def test_tweak_and_key_both_matter() -> None:
    raw = new_data_key()
    changed = bytes([raw[0] ^ 1]) + raw[1:]
    changed_tweak_key = raw[:63] + bytes([raw[63] ^ 1])
    seen = set()
    for key, tweak in ((raw, 0), (raw, 1), (raw, 1 << 127), (changed, 0), (changed_tweak_key, 0)):
        out = bytearray(64)
        DataKey(key).encrypt_into(tweak.to_bytes(16, "little"), bytes(64), out)
        seen.add(bytes(out))
    assert len(seen) == 5


@pytest.mark.parametrize("length", [0, 32, 63, 65, 128])
def test_keys_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(UsageError, match=f"64 bytes, this one {length}"):
        DataKey(bytes(range(length)))


def test_equal_halves_are_refused() -> None:
    half = bytes(range(32))
    with pytest.raises(UsageError, match="equal"):
        DataKey(half * 2)


def test_new_keys_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({new_data_key() for _ in range(20)}) == 20
    results = iter([bytes(64), bytes(range(64))])
    monkeypatch.setattr("secrets.token_bytes", lambda length: next(results))
    assert new_data_key() == bytes(range(64))


@pytest.mark.parametrize("tweak", [b"", bytes(8), bytes(15), bytes(17)])
def test_a_tweak_has_16_bytes(tweak: bytes) -> None:
    with pytest.raises(ValueError, match="128"):
        DataKey(KEY).encrypt_into(tweak, bytes(16), bytearray(16))


def test_lengths_must_agree() -> None:
    for source, destination in ((16, 32), (32, 16), (8, 8)):
        for method in (DataKey(KEY).encrypt_into, DataKey(KEY).decrypt_into):
            with pytest.raises(AssertionError):
                method(bytes(16), bytes(source), bytearray(destination))


def test_a_key_shows_nothing() -> None:
    key = DataKey(KEY)
    assert repr(key) == str(key) == "<DataKey>"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(key)
