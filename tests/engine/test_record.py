"""One record: codec, cipher, checksum; what comes back is what was sealed, or BadRecordError."""

from __future__ import annotations

from random import Random
from struct import pack

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.codec.packer import Packer
from nvmeof.engine.layout import Kind, RecordFlag, RecordHeader, encode_record_header
from nvmeof.engine.record import (
    BadRecordError,
    Expected,
    Sealed,
    Sealer,
    check,
    content_of,
    open_into,
    raw_bytes,
    seal_metadata,
)
from nvmeof.keys.cipher import DataKey

KEY_BYTES = bytes(range(64))
KEY = DataKey(KEY_BYTES)
OTHER = DataKey(bytes(range(64, 128)))
EXPECTED = Expected(Kind.DATA, 7, 1000, 40)
RANDOM = Random(3)
NOISE = RANDOM.randbytes(131072)
TEXT = (b"all work and no play makes Jack a dull boy. " * 3000)[:131072]
WEIGHTS = b"".join(bytes([RANDOM.randrange(256), 0x3F]) for _ in range(65536))


def record_of(sealed: Sealed, *, first: int = 40, count: int = 1, number: int = 5, **other: int) -> bytes:
    """A whole record, as the log would put it down."""
    fields = {"kind": int(Kind.DATA), "namespace": 7, "sequence": 1000, "moved_from": 0, "count_high": 0} | other
    header = RecordHeader(
        codec=sealed.codec, planes=sealed.planes, flags=sealed.flags, key_id=sealed.key_id, count=count, first=first,
        length=sealed.length, write_sequence=number, **fields,
    )  # fmt: skip
    buffer = bytearray(64) + bytearray(sealed.payload)
    encode_record_header(buffer, 0, header)
    return bytes(buffer)


def sealer(codec: str = "auto", planes: int = 0, key: DataKey | None = None, level: int = 1) -> Sealer:
    return Sealer(Packer(codec, level, planes), 9 if key else 0, key)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("content", [NOISE, TEXT, WEIGHTS, bytes(131072)], ids=["noise", "text", "weights", "zeros"])
@pytest.mark.parametrize(
    ("codec", "planes"), [("none", 0), ("auto", 0), ("zstd", 0), ("zstd", 2), ("zstd", 8), ("lz4", 0), ("deflate", 4)]
)
def test_round_trip(codec: str, planes: int, content: bytes, key: DataKey | None) -> None:
    for count in (1, 2, 31, 32):
        data = content[: count * 4096]
        sealed = sealer(codec, planes, key).seal(memoryview(data), 40, 5)
        record = record_of(sealed, count=count)
        header = check(record, EXPECTED)
        assert raw_bytes(header) == len(data)
        assert content_of(record, header, key) == data
        out = bytearray(len(data))
        open_into(memoryview(record), header, key, memoryview(out))
        assert out == data
        assert len(sealed.payload) == max(16, sealed.length) <= len(data)
        assert bool(sealed.flags & RecordFlag.ENCRYPTED) == (key is not None)


@given(st.binary(min_size=0, max_size=200), st.integers(1, 32), st.booleans())
def test_round_trip_of_anything(piece: bytes, count: int, encrypted: bool) -> None:
    data = (piece * (4096 * count // max(1, len(piece)) + 1))[: 4096 * count].ljust(4096 * count, b"\0")
    key = KEY if encrypted else None
    record = record_of(sealer("auto", 0, key).seal(memoryview(data), 40, 5), count=count)
    assert content_of(record, check(record, EXPECTED), key) == data


def test_encryption_is_one_xts_data_unit_with_block_and_write_sequence_as_tweak() -> None:
    """FORMAT.md, record; against the cipher used directly."""
    data = NOISE[:8192]
    sealed = sealer("none", 0, KEY).seal(memoryview(data), 0x1234, (7 << 40) + 3)
    encryptor = Cipher(algorithms.AES(KEY_BYTES), modes.XTS(pack("<QQ", 0x1234, (7 << 40) + 3))).encryptor()
    assert bytes(sealed.payload) == encryptor.update(data) + encryptor.finalize()
    assert (sealed.codec, sealed.length, sealed.key_id, sealed.flags) == (0, 8192, 9, 1)


def test_data_is_compressed_before_it_is_encrypted() -> None:
    sealed = sealer("zstd", 0, KEY).seal(memoryview(TEXT[:8192]), 1, 2)
    decryptor = Cipher(algorithms.AES(KEY_BYTES), modes.XTS(pack("<QQ", 1, 2))).decryptor()
    plain = decryptor.update(bytes(sealed.payload))
    assert zstandard.ZstdDecompressor().decompress(plain[: sealed.length], 8192) == TEXT[:8192]
    assert sealed.length < 8192 // 10


def test_a_short_payload_is_padded_with_zeros_to_16_bytes() -> None:
    """XTS wants 16; the padding is encrypted with the rest."""
    short = next(
        sealed
        for codec in ("deflate", "lz4", "zstd")
        if (sealed := sealer(codec).seal(memoryview(bytes(4096)), 40, 5)).length < 24
    )
    assert len(short.payload) == max(16, short.length)
    metadata = seal_metadata(b"abc")
    assert (metadata.codec, metadata.length, metadata.payload) == (0, 3, b"abc" + bytes(13))
    record = record_of(metadata, kind=Kind.ROOT, first=0, count=3, namespace=0)
    header = check(record, Expected(Kind.ROOT, 0, 1000, 0))
    assert content_of(record, header) == b"abc"


@pytest.mark.parametrize("content", [b"x", b"abc" * 5, bytes(4096), NOISE[:4096], TEXT[:32768]])
def test_metadata_round_trip(content: bytes) -> None:
    sealed = seal_metadata(content)
    assert (sealed.flags, sealed.key_id, sealed.planes) == (0, 0, 0)
    record = record_of(sealed, kind=Kind.MAP_TABLE, first=3, count=len(content), namespace=7)
    header = check(record, Expected(Kind.MAP_TABLE, 7, 1000, 3))
    assert raw_bytes(header) == len(content)
    assert content_of(record, header) == content
    if content == bytes(4096):
        assert sealed.codec == 1
        assert zstandard.ZstdDecompressor().decompress(sealed.payload[: sealed.length], 4096) == content


RECORD = record_of(sealer("none", 0, None).seal(memoryview(NOISE[:8192]), 40, 5), count=2)


def test_every_flipped_bit_of_a_record_is_found() -> None:
    record = bytearray(record_of(sealer("zstd", 0, KEY).seal(memoryview(TEXT[:4096]), 40, 5)))
    assert len(record) < 300
    for at in range(len(record)):
        for bit in range(8):
            record[at] ^= 1 << bit
            with pytest.raises(BadRecordError):
                check(record, EXPECTED)
            record[at] ^= 1 << bit
    check(record, EXPECTED)


def test_more_bytes_behind_a_record_do_not_matter() -> None:
    assert check(RECORD + b"next", EXPECTED) == check(memoryview(RECORD), EXPECTED)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (EXPECTED._replace(kind=Kind.MAP_PAGE), "stale or misdirected"),
        (EXPECTED._replace(namespace=8), "stale or misdirected"),
        (EXPECTED._replace(sequence=1001), "stale or misdirected"),
        (EXPECTED._replace(block=39), "stale or misdirected"),
        (EXPECTED._replace(block=42), "stale or misdirected"),
    ],
)
def test_a_whole_record_that_is_another_one(expected: Expected, message: str) -> None:
    """I4: checksum, kind, namespace, block, stripe sequence."""
    assert check(RECORD, EXPECTED._replace(block=41)).count == 2
    with pytest.raises(BadRecordError, match=message):
        check(RECORD, expected)


def test_metadata_must_have_the_number_wanted() -> None:
    record = record_of(seal_metadata(bytes(4096)), kind=Kind.MAP_PAGE, first=3, count=4096)
    check(record, Expected(Kind.MAP_PAGE, 7, 1000, 3))
    with pytest.raises(BadRecordError, match="misdirected"):
        check(record, Expected(Kind.MAP_PAGE, 7, 1000, 4))


@pytest.mark.parametrize("length", [0, 8, 63])
def test_less_than_a_header(length: int) -> None:
    with pytest.raises(BadRecordError, match="shorter than a header"):
        check(RECORD[:length], EXPECTED)


def test_what_is_no_record() -> None:
    with pytest.raises(BadRecordError, match="no record"):
        check(bytes(4096), EXPECTED)
    with pytest.raises(BadRecordError, match="no record"):
        check(RECORD[:-64], EXPECTED)


def test_a_record_of_more_than_32_blocks_is_refused() -> None:
    """No writer makes one: an index has five bits."""
    for count, good in ((32, True), (33, False)):
        record = record_of(sealer("zstd").seal(memoryview(bytes(4096)), 40, 5), count=count)
        if good:
            check(record, EXPECTED)
        else:
            with pytest.raises(BadRecordError):
                check(record, EXPECTED)


def test_without_its_key_a_record_says_so() -> None:
    record = record_of(sealer("none", 0, KEY).seal(memoryview(NOISE[:4096]), 40, 5))
    header = check(record, EXPECTED)
    with pytest.raises(BadRecordError, match="encrypted with key 9, which there is not"):
        content_of(record, header)
    assert content_of(record, header, OTHER) != NOISE[:4096]
    assert content_of(record, header, KEY) == NOISE[:4096]


def test_the_wrong_key_or_tweak_does_not_give_the_data() -> None:
    sealed = sealer("zstd", 0, KEY).seal(memoryview(TEXT[:4096]), 40, 5)
    for record, key in ((record_of(sealed), OTHER), (record_of(sealed, number=6), KEY)):
        header = check(record, EXPECTED)
        with pytest.raises(BadRecordError, match="does not decompress"):
            content_of(record, header, key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": 9}, "does not decompress"),
        ({"codec": 2}, "does not decompress"),
        ({"codec": 0}, "has another length"),
        ({"planes": 3}, "does not decompress"),
        ({"length": 17}, "does not decompress"),
    ],
)
def test_a_header_that_lies_about_its_payload(change: dict[str, int], message: str) -> None:
    """Its checksum is right, so somebody made it so: BadRecordError and nothing else."""
    sealed = sealer("zstd").seal(memoryview(TEXT[:4096]), 40, 5)
    codec, planes, length = (change.get(name, getattr(sealed, name)) for name in ("codec", "planes", "length"))
    payload = bytes(sealed.payload)[:length]
    record = record_of(Sealed(codec, planes, 0, 0, length, payload))
    with pytest.raises(BadRecordError, match=message):
        content_of(record, check(record, EXPECTED))


def test_a_record_that_decodes_to_more_or_less_than_it_claims() -> None:
    for claimed in (1, 3):
        record = record_of(sealer("zstd").seal(memoryview(TEXT[:8192]), 40, 5), count=claimed)
        with pytest.raises(BadRecordError, match="does not decompress"):
            content_of(record, check(record, EXPECTED))


def test_an_impossible_length_takes_no_memory() -> None:
    record = record_of(seal_metadata(b"x" * 100), kind=Kind.ROOT, first=0, count=0xFFFFFFFF, namespace=0)
    header = check(record, Expected(Kind.ROOT, 0, 1000, 0))
    with pytest.raises(BadRecordError, match="impossible length"):
        content_of(record, header)


def test_what_does_not_compress_is_kept_as_it_is() -> None:
    for codec in ("auto", "zstd", "lz4", "deflate"):
        sealed = sealer(codec).seal(memoryview(NOISE[:4096]), 0, 1)
        assert (sealed.codec, bytes(sealed.payload)) == (0, NOISE[:4096])
    data = memoryview(NOISE[:4096])
    assert sealer("none").pack(data) == (0, 0, data)
