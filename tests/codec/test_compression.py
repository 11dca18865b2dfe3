"""Every codec gives back what it was given, from any thread, and hostile payloads get nothing but CodecError."""

from __future__ import annotations

import threading
import tracemalloc
import zlib
from random import Random

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.codec.compression import (
    LEVELS,
    Codec,
    CodecError,
    check_codec,
    compress,
    compress_planes,
    decompress,
)
from nvmeof.codec.planes import split_planes
from nvmeof.errors import NvmeofError, UsageError
from tests.codec.samples import RECORD_BYTES, SAMPLES, bf16, noise, text

NAMED = {Codec.ZSTD: "zstd", Codec.LZ4: "lz4", Codec.DEFLATE: "deflate"}
CODECS = list(NAMED)


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("name", list(SAMPLES))
@pytest.mark.parametrize("length", [16, 4096, RECORD_BYTES])
def test_round_trip(codec: Codec, name: str, length: int) -> None:
    data = SAMPLES[name](length)
    for given_data in (data, memoryview(bytearray(data)), memoryview(data)):
        payload = compress(codec, 1, given_data)
        assert decompress(codec, payload, length) == data
    assert decompress(codec, memoryview(bytearray(payload)), length) == data


@pytest.mark.parametrize("codec", CODECS)
def test_every_level(codec: Codec) -> None:
    low, high = LEVELS[NAMED[codec]]
    data = text(8192)
    sizes = [len(compress(codec, level, data)) for level in range(low, high + 1)]
    assert sizes[-1] < sizes[0] < len(data)
    assert all(decompress(codec, compress(codec, level, data), 8192) == data for level in range(low, high + 1))


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("codec", list(Codec))
def test_planes_make_an_ordinary_payload(codec: Codec, width: int) -> None:
    planes = split_planes(bf16(4096), width)
    assert decompress(codec, compress_planes(codec, 1, planes, width), 4096) == planes


def test_each_plane_has_a_huffman_table_of_its_own() -> None:
    planes = split_planes(bf16(), 2)
    together, apart = len(compress(Codec.ZSTD, 1, planes)), len(compress_planes(Codec.ZSTD, 1, planes, 2))
    assert RECORD_BYTES / together < 1.3
    assert RECORD_BYTES / apart > 1.45


def test_planes_of_less_than_an_element() -> None:
    assert decompress(Codec.ZSTD, compress_planes(Codec.ZSTD, 1, b"abc", 8), 3) == b"abc"


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("wanted", [-1, 0, 1, 4095, 4097, RECORD_BYTES])
def test_another_length_is_refused(codec: Codec, wanted: int) -> None:
    for data in (text(4096), bytes(4096), noise(4096)):
        with pytest.raises(CodecError):
            decompress(codec, compress(codec, 1, data), wanted)


@pytest.mark.parametrize("codec", CODECS)
def test_cut_and_extended_payloads_are_refused(codec: Codec) -> None:
    payload = compress(codec, 1, text(4096))
    for length in range(len(payload)):
        with pytest.raises(CodecError):
            decompress(codec, payload[:length], 4096)
    for tail in (b"\0", b"x", payload):
        with pytest.raises(CodecError):
            decompress(codec, payload + tail, 4096)


def test_stored_bytes_are_counted() -> None:
    with pytest.raises(CodecError):
        decompress(Codec.NONE, b"abc", 4)
    with pytest.raises(CodecError):
        decompress(Codec.NONE, b"", 0)


@pytest.mark.parametrize("codec", [-1, 4, 255])
def test_an_unknown_codec_is_refused(codec: int) -> None:
    with pytest.raises(CodecError, match="not known"):
        decompress(codec, b"abc", 3)


@given(codec=st.sampled_from(CODECS), payload=st.binary(max_size=300), raw_bytes=st.integers(1, 5000))
def test_any_bytes_raise_nothing_else(codec: Codec, payload: bytes, raw_bytes: int) -> None:
    try:
        assert len(decompress(codec, payload, raw_bytes)) == raw_bytes
    except CodecError:
        pass


@pytest.mark.parametrize("codec", CODECS)
def test_flipped_bits_raise_nothing_else(codec: Codec) -> None:
    payload = compress(codec, 1, text(4096))
    random = Random(4)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(payload)
        damaged[random.randrange(len(payload))] ^= 1 << random.randrange(8)
        try:
            assert len(decompress(codec, damaged, 4096)) == 4096
        except CodecError:
            refused += 1
    assert refused


def bombs() -> list[tuple[Codec, bytes]]:
    """Payloads of at most 260 KiB that stand for 64 MiB; most of them do not say so."""
    bomb = bytes(64 << 20)
    stream = zstandard.ZstdCompressor(write_content_size=False)
    huge = zstandard.ZstdCompressor().compress(bomb)
    return [
        (Codec.ZSTD, huge),
        (Codec.ZSTD, stream.compress(bomb)),
        (Codec.ZSTD, huge[:5] + (4096).to_bytes(4, "little") + huge[9:]),
        (Codec.LZ4, lz4.block.compress(bomb, store_size=False)),
        (Codec.LZ4, lz4.block.compress(bomb, store_size=True)),
        (Codec.DEFLATE, zlib.compress(bomb, wbits=-15)),
        (Codec.DEFLATE, zlib.compress(bomb)),
    ]


def test_bombs_do_not_go_off() -> None:
    for codec, payload in bombs():
        tracemalloc.start()
        with pytest.raises(CodecError):
            decompress(codec, payload, 4096)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < (64 << 10) + 3 * len(payload), codec


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    """Single segment, content size of 2 bytes at 5: the frame says less, and more, than its blocks hold."""
    honest = compress(Codec.ZSTD, 1, text(4096))
    assert zstandard.frame_content_size(honest) == 4096
    assert honest[5:7] == (4096 - 256).to_bytes(2, "little")
    for lie in (2048, 4095, 4097, 60000):
        with pytest.raises(CodecError):
            decompress(Codec.ZSTD, honest[:5] + (lie - 256).to_bytes(2, "little") + honest[7:], lie)


def test_a_skippable_frame_is_refused() -> None:
    """RFC 8878, section 3.1.2."""
    with pytest.raises(CodecError):
        decompress(Codec.ZSTD, bytes.fromhex("502a4d1804000000") + bytes(4), 4)


def test_threads_share_nothing() -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        data = text(16384)[seed:] + bytes(seed)
        for _ in range(50):
            planes = compress_planes(Codec.ZSTD, 1, split_planes(data, 2), 2)
            if decompress(Codec.ZSTD, compress(Codec.ZSTD, 1 + seed % 3, data), 16384) != data:
                wrong.append(seed)
            if decompress(Codec.ZSTD, planes, 16384) != split_planes(data, 2):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_codec_error_is_one_of_ours() -> None:
    assert issubclass(CodecError, NvmeofError)
    assert issubclass(CodecError, ValueError)


@pytest.mark.parametrize(("name", "level"), [(name, level) for name, ends in LEVELS.items() for level in ends])
def test_levels_that_exist(name: str, level: int) -> None:
    check_codec(name, level)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("zstd", 0),
        ("zstd", 20),
        ("zstd", -1),
        ("lz4", 13),
        ("deflate", 10),
        ("none", 2),
        ("auto", 0),
        ("ZSTD", 1),
        ("", 1),
    ],
)
def test_levels_that_do_not(name: str, level: int) -> None:
    with pytest.raises(UsageError, match=r"levels|not known"):
        check_codec(name, level)


def test_numbers_on_media() -> None:
    assert {codec.name: int(codec) for codec in Codec} == {"NONE": 0, "ZSTD": 1, "LZ4": 2, "DEFLATE": 3}
