"""The packer finds what there is to gain, and gives up at once where there is nothing."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.codec import packer as module
from nvmeof.codec.compression import Codec, CodecError, compress
from nvmeof.codec.packer import Packer, unpack
from nvmeof.codec.planes import split_planes
from nvmeof.errors import UsageError
from tests.codec.samples import RECORD_BYTES, SAMPLES, bf16, fp32, noise, text, zeros

CODECS = ["auto", "zstd", "lz4", "deflate", "none"]
LENGTHS = [4096, 16384, RECORD_BYTES]

EXPECTED: dict[str, tuple[int, float] | None] = {
    "noise": None,
    "zeros": (0, 200.0),
    "text": (0, 1.6),
    "bf16": (2, 1.42),
    "fp16": (2, 1.14),
    "fp32": (4, 1.16),
    "fp64": (8, 1.09),
    "tokens": (4, 1.95),
    "base64": (0, 1.30),
}
"""Plane width and least ratio with the automatic choice."""


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_automatic_choice(name: str, length: int) -> None:
    packed = Packer().pack(memoryview(SAMPLES[name](length)))
    expected = EXPECTED[name]
    if expected is None:
        assert packed is None
    else:
        assert packed is not None
        codec, width, payload = packed
        assert (codec, width) == (Codec.ZSTD, expected[0])
        assert length / len(payload) > expected[1]


@pytest.mark.parametrize("name", list(SAMPLES))
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("planes", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("length", [96, 512, 768, 4096, RECORD_BYTES])
def test_round_trip_and_least_gain(codec: str, planes: int, name: str, length: int) -> None:
    data = SAMPLES[name](length)
    packed = Packer(codec, 1, planes).pack(memoryview(data))
    if packed is None:
        return
    number, width, payload = packed
    assert unpack(number, width, payload, length) == data
    assert len(payload) <= length - max(length // 16, 64)
    assert width in ((0, 2, 4, 8) if planes == 0 else (0,) if planes == 1 else (planes,))
    assert number == {"auto": 1, "zstd": 1, "lz4": 2, "deflate": 3}[codec]


@pytest.mark.parametrize("codec", CODECS)
def test_noise_is_never_worth_it(codec: str) -> None:
    """Of 500 samples of noise the probe may mistake one."""
    packer = Packer(codec)
    worth = [length for length in (4096, RECORD_BYTES) for seed in range(250) if packer.worth(noise(length, seed))]
    assert len(worth) <= 1


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "noise"])
@pytest.mark.parametrize("length", LENGTHS)
def test_everything_else_is_worth_it(name: str, length: int) -> None:
    data = SAMPLES[name](length)
    assert Packer().worth(data)
    assert Packer().worth(memoryview(bytearray(data)))
    assert not Packer("none").worth(data)


def test_noise_costs_no_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> bytes:
        raise AssertionError("compressed")

    monkeypatch.setattr(module, "compress", refuse)
    monkeypatch.setattr(module, "compress_planes", refuse)
    for codec in CODECS:
        assert Packer(codec).pack(noise(RECORD_BYTES)) is None
    with pytest.raises(AssertionError, match="compressed"):
        Packer().pack(text())


def test_the_sample_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def count(data: bytes, **_: Any) -> bytes:
        sizes.append(len(data))
        return bytes(2000)

    monkeypatch.setattr(module, "lz4_compress", count)
    assert not Packer().worth(noise(RECORD_BYTES))
    assert sizes == [module.SAMPLE_BYTES]


@pytest.mark.parametrize("kind", ["zeros", "text", "bf16", "fp32"])
@pytest.mark.parametrize("place", [0, RECORD_BYTES // 4, RECORD_BYTES // 2])
def test_a_compressible_half_is_seen(kind: str, place: int) -> None:
    half = RECORD_BYTES // 2
    assert Packer().worth(noise()[:place] + SAMPLES[kind](half) + noise()[place + half :])


@pytest.mark.parametrize("place", [0, RECORD_BYTES // 4, RECORD_BYTES // 2, RECORD_BYTES - 4096])
def test_a_few_zeros_where_the_sample_looks_are_seen(place: int) -> None:
    assert Packer().worth(noise()[:place] + zeros(4096) + noise()[place + 4096 :])


def test_a_gain_too_small_is_stored_raw() -> None:
    """Three quarters of a sixteenth are zeros, where the sample sees them."""
    data = bytearray(noise())
    data[:6144] = bytes(6144)
    packer = Packer()
    assert packer.worth(bytes(data))
    assert packer.pack(bytes(data)) is None
    data[:10240] = bytes(10240)
    assert packer.pack(bytes(data)) is not None


def test_a_gain_of_less_than_a_unit_is_stored_raw() -> None:
    assert Packer().pack(bytes(64)) is None
    assert Packer().pack(b"") is None
    assert Packer().pack(bytes(96)) is not None


def test_lz4_leaves_weights_alone() -> None:
    assert Packer("lz4").pack(fp32()) is None
    assert Packer("lz4").pack(bf16()) is None


def test_levels_reach_the_codec() -> None:
    for codec, low, high in (("zstd", 1, 19), ("lz4", 1, 12), ("deflate", 1, 9)):
        quick, slow = Packer(codec, low).pack(text(8192)), Packer(codec, high).pack(text(8192))
        assert quick is not None
        assert slow is not None
        assert len(slow[2]) < len(quick[2])


def test_planes_are_left_out_where_they_do_not_fit() -> None:
    data = zeros(1001)
    packed = Packer(planes=8).pack(data)
    assert packed is not None
    assert packed[1] == 0
    assert unpack(*packed, 1001) == data


@given(start=st.integers(0, 7), length=st.integers(0, 20000), seed=st.integers(0, 20))
def test_any_length_and_mixture(start: int, length: int, seed: int) -> None:
    random = Random(seed)
    pieces = [noise(4096, seed), text(4096), bf16(4096), zeros(4096), fp32(4096)]
    data = b"".join(random.choices(pieces, k=6))[start : start + length]
    packed = Packer().pack(memoryview(data))
    assert packed is None or unpack(*packed, len(data)) == data


@pytest.mark.parametrize(
    ("skewed", "width"),
    [
        ("01010101", 2), ("00010001", 4), ("00110011", 4), ("01110111", 4), ("00000001", 8), ("00000011", 8),
        ("00001111", 8), ("00011111", 8), ("01111111", 8), ("11111111", 1),
    ],
)  # fmt: skip
def test_the_width_at_which_skewed_bytes_come_back(skewed: str, width: int) -> None:
    """A 1 is a byte of few values, in a word of 8 bytes, the lowest first."""
    random = Random(5)
    words = (random.randrange(4) if place == "1" else random.randrange(256) for _ in range(96) for place in skewed)
    assert module.plane_width(bytes(words)) == width


@pytest.mark.parametrize("planes", [-1, 3, 16])
def test_other_widths_are_refused(planes: int) -> None:
    with pytest.raises(UsageError, match="plane width"):
        Packer(planes=planes)


@pytest.mark.parametrize(("codec", "level"), [("brotli", 1), ("zstd", 99), ("auto", 0)])
def test_other_codecs_are_refused(codec: str, level: int) -> None:
    with pytest.raises(UsageError):
        Packer(codec, level)


@pytest.mark.parametrize(("width", "raw_bytes"), [(3, 4096), (16, 4096), (255, 4096), (8, 4092), (2, 4095)])
def test_unpack_refuses_widths(width: int, raw_bytes: int) -> None:
    payload = compress(Codec.ZSTD, 1, bytes(raw_bytes))
    with pytest.raises(CodecError):
        unpack(Codec.ZSTD, width, payload, raw_bytes)


def test_width_1_is_no_planes() -> None:
    data = text(4096)
    assert unpack(Codec.ZSTD, 1, compress(Codec.ZSTD, 1, data), 4096) == data
    assert unpack(Codec.ZSTD, 2, compress(Codec.ZSTD, 1, split_planes(data, 2)), 4096) == data
