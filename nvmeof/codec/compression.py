"""The codecs of FORMAT.md (record): bytes in, bytes out, from any thread.

Payloads come back from media or from a peer: whatever is in them, :func:`decompress` allocates no more than
``raw_bytes`` and raises nothing but :class:`CodecError`.
"""

from __future__ import annotations

import threading
import zlib
from enum import IntEnum

import lz4.block
import zstandard

from nvmeof.errors import NvmeofError, UsageError

Bytes = bytes | bytearray | memoryview


class Codec(IntEnum):
    """Numbers on media; never renumber."""

    NONE = 0
    ZSTD = 1
    LZ4 = 2
    DEFLATE = 3


class CodecError(NvmeofError, ValueError):
    """A payload does not decode to exactly what was promised."""


CODEC_NAMES: dict[str, Codec] = {"none": Codec.NONE, "zstd": Codec.ZSTD, "lz4": Codec.LZ4, "deflate": Codec.DEFLATE}
LEVELS: dict[str, tuple[int, int]] = {
    "auto": (1, 19),
    "none": (0, 1),
    "zstd": (1, 19),
    "lz4": (1, 12),
    "deflate": (1, 9),
}
"""Lowest and highest level by codec name. zstd beyond 19 takes memory by the 100 MiB and gains nothing on 128 KiB."""

LZ4_HIGH_COMPRESSION_LEVEL_MIN = 3
"""lz4 levels 1 and 2 are its fast mode, from here on its HC mode at that level, as in the lz4 tool."""

RAW_DEFLATE = -15
"""zlib's wbits for a stream without zlib header and trailer (RFC 1951): the record has a checksum of its own."""

PLANE_MIN_MATCH, PLANE_HASH_LOG = 7, 8
"""zstd on byte planes. Planes are skewed noise: nearly all of the gain is Huffman coding, short matches only hurt.
128 KiB of bf16 weights, width 2: 80 us and 1.49x; with the level's own parameters at level 1 134 us and 1.45x, at
level 6 1.2 ms and 1.42x. So the level does not matter for planes. tools/bench measures this."""


def check_codec(name: str, level: int) -> None:
    """Raise UsageError unless ``name`` is a codec, or ``auto``, and has that level."""
    if name not in LEVELS:
        raise UsageError(f"codec {name!r} is not known; there are {', '.join(LEVELS)}")
    low, high = LEVELS[name]
    if not low <= level <= high:
        raise UsageError(f"codec {name} has levels {low} to {high}, got {level}")


class _Contexts(threading.local):
    """zstd contexts must not be shared by threads, and making one costs more than a 4 KiB record."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.plane_compressor = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters.from_level(
                1, min_match=PLANE_MIN_MATCH, hash_log=PLANE_HASH_LOG, source_size=128 << 10
            )
        )
        self.decompressor = zstandard.ZstdDecompressor()

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        """This thread's compressor of ``level``."""
        found = self.compressors.get(level)
        if found is None:
            found = self.compressors[level] = zstandard.ZstdCompressor(level=level)
        return found


_contexts = _Contexts()


def compress(codec: Codec, level: int, data: Bytes) -> bytes:
    """``data`` by ``codec``, whether or not it became smaller."""
    if codec == Codec.ZSTD:
        return _contexts.compressor(level).compress(data)
    if codec == Codec.LZ4:
        if level < LZ4_HIGH_COMPRESSION_LEVEL_MIN:
            fast: bytes = lz4.block.compress(data, store_size=False)
            return fast
        high: bytes = lz4.block.compress(data, mode="high_compression", compression=level, store_size=False)
        return high
    if codec == Codec.DEFLATE:
        return zlib.compress(data, level, RAW_DEFLATE)
    return bytes(data)


def compress_planes(codec: Codec, level: int, planes: Bytes, width: int) -> bytes:
    """What ``split_planes`` made, by ``codec``: an ordinary payload, which :func:`decompress` takes.

    A zstd block has one Huffman table, and all planes of a record in one block share it: bf16 weights get 1.28x. Here
    each plane ends its block: 1.49x in the same frame, and mantissa planes become raw blocks at the speed of a copy.
    """
    view = memoryview(planes)
    length = len(view) // max(width, 1)
    if codec != Codec.ZSTD or width <= 1 or not length:
        return compress(codec, level, planes)
    assert length * width == len(view)
    stream = _contexts.plane_compressor.compressobj(size=len(view))
    parts: list[bytes] = []
    for start in range(0, len(view) - length, length):
        parts.append(stream.compress(view[start : start + length]))
        parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    parts.append(stream.compress(view[len(view) - length :]))
    parts.append(stream.flush())
    return b"".join(parts)


def decompress(codec: int, payload: Bytes, raw_bytes: int) -> bytes:
    """The ``raw_bytes`` bytes that ``payload`` stands for. CodecError for anything else, an unknown codec too."""
    if raw_bytes <= 0:
        raise CodecError(f"a payload of {raw_bytes} bytes cannot be")
    if codec == Codec.ZSTD:
        raw = _from_zstd(payload, raw_bytes)
    elif codec == Codec.LZ4:
        raw = _from_lz4(payload, raw_bytes)
    elif codec == Codec.DEFLATE:
        raw = _from_deflate(payload, raw_bytes)
    elif codec == Codec.NONE:
        if len(payload) != raw_bytes:
            raise CodecError(f"{len(payload)} bytes stored, {raw_bytes} wanted")
        return bytes(payload)
    else:
        raise CodecError(f"codec {codec} is not known")
    if len(raw) != raw_bytes:
        raise CodecError(f"{Codec(codec).name} payload holds {len(raw)} bytes, not {raw_bytes}")
    return raw


def _from_zstd(payload: Bytes, raw_bytes: int) -> bytes:
    try:
        promised = zstandard.frame_content_size(payload)
        if promised != raw_bytes:
            raise CodecError(f"zstd frame of {promised} bytes, {raw_bytes} wanted")
        return _contexts.decompressor.decompress(payload, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"zstd payload does not decode: {error}") from None


def _from_lz4(payload: Bytes, raw_bytes: int) -> bytes:
    try:
        raw: bytes = lz4.block.decompress(payload, uncompressed_size=raw_bytes)
    except lz4.block.LZ4BlockError as error:
        raise CodecError(f"lz4 payload does not decode: {error}") from None
    return raw


def _from_deflate(payload: Bytes, raw_bytes: int) -> bytes:
    """``max_length`` may stop in front of the end-of-block code: one more byte of room shows whether that is all."""
    stream = zlib.decompressobj(RAW_DEFLATE)
    try:
        raw = stream.decompress(payload, raw_bytes)
        more = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise CodecError(f"deflate payload does not decode: {error}") from None
    if more or not stream.eof or stream.unused_data:
        raise CodecError(f"deflate payload does not end with byte {raw_bytes}")
    return raw
