"""What to do with the data of a record: which codec, which byte planes, or nothing at all.

Most of what a storage system is given does not compress (encrypted, already compressed, random), so that must cost
next to nothing: a probe looks at 768 bytes of the data. It asks two questions. Does lz4 find a match? And do the bytes
that are the highest of a little-endian number of 2, 4 or 8 bytes take few values, as the exponents of weights do?
Figures are for one core; tools/bench measures them.
"""

from __future__ import annotations

from lz4.block import compress as lz4_compress

from nvmeof.codec.compression import CODEC_NAMES, Codec, CodecError, check_codec, compress, compress_planes, decompress
from nvmeof.codec.planes import WIDTHS, join_planes, split_planes
from nvmeof.errors import UsageError

View = bytes | memoryview

SAMPLE_PIECE_BYTES = 192
"""The sample is four pieces of this length, from all over the data. 0.4 us to gather, 0.7 us to try lz4 on."""

SAMPLE_BYTES = 4 * SAMPLE_PIECE_BYTES

SAMPLE_GAIN_BYTES = 16
"""lz4 must save this much of the sample. Random data has a chance match of 4 bytes in one sample of 10,000."""

SKEWED_VALUES_MAX = 67
"""Of 96 bytes at the same place of a number this many or fewer are different: skewed. Random bytes have 80 on average
with a deviation of 2.9, exponents of normally distributed fp32 and bf16 weights some 10, of fp16 40. 1.2 us."""

SKEWED_VALUES_NOISE = 12
"""Counts of places that are alike differ by less; skewed and random ones of weights by 40 and more."""

LZ4_SKEWED_VALUES_MAX = 4
"""lz4 has no entropy coding: only planes that are all but constant (high bytes of small integers) are of use to it."""

TRIAL_PIECE_BYTES = 1024
"""Where both lz4 and planes find something, both ways are tried on four pieces of this length: some 20 us."""

TRIAL_GAIN_SHIFT = 5
"""Planes must make the trial smaller by 1/32: splitting and joining has its price too."""

GAIN_SHIFT = 4
GAIN_BYTES_MIN = 64
"""A payload that does not save 1/16 and one unit of the log (64 bytes) is stored raw: quicker to read, no larger."""


def sample_of(data: View, piece: int) -> bytes:
    """Four pieces of ``piece`` bytes (a multiple of 8), each from a multiple of 8: begin, quarter, middle, end."""
    length = len(data)
    if length <= 4 * piece:
        return bytes(data)
    step = length >> 2 & ~7
    last = length - piece & ~7
    return b"".join(
        (data[:piece], data[step : step + piece], data[2 * step : 2 * step + piece], data[last : last + piece])
    )


def plane_width(sample: bytes) -> int:
    """The width, 2, 4 or 8, at which skewed and random bytes take turns, or 1 when they do not.

    ``sample`` has SAMPLE_BYTES, and the highest byte of its 8 byte words is skewed.
    """

    limit = len(set(sample[7::8])) + SKEWED_VALUES_NOISE

    def skewed(place: int) -> bool:
        return len(set(sample[place::8])) <= limit

    second, third = skewed(6), skewed(5)
    if third and not second:
        return 2
    if third and skewed(4):
        return 1 if skewed(3) and skewed(0) else 8
    return 4 if skewed(3) else 8


class Packer:
    """Packs records of one namespace. Immutable: any thread may use it at any time.

    ``codec`` is auto (zstd), zstd, lz4, deflate or none, ``level`` the codec's; ``planes`` 0 lets the data decide, 1 is
    never, 2, 4 or 8 is always for data that is worth it. UsageError for anything else.
    """

    __slots__ = ("_codec", "_level", "_planes")

    def __init__(self, codec: str = "auto", level: int = 1, planes: int = 0) -> None:
        check_codec(codec, level)
        if planes not in (0, 1, *WIDTHS):
            raise UsageError(f"plane width {planes}: 0 (automatic), 1 (never), 2, 4 or 8 will do")
        self._codec = Codec.ZSTD if codec == "auto" else CODEC_NAMES[codec]
        self._level = level
        self._planes = planes

    def worth(self, data: View) -> bool:
        """Whether a codec may gain something: 3 us for random data of any length, 1.5 us where planes show at once."""
        if self._codec == Codec.NONE:
            return False
        if len(data) < SAMPLE_BYTES:
            return len(data) > GAIN_BYTES_MIN
        sample = sample_of(data, SAMPLE_PIECE_BYTES)
        values = len(set(sample[7::8]))
        limit = LZ4_SKEWED_VALUES_MAX if self._codec == Codec.LZ4 else SKEWED_VALUES_MAX
        return values <= limit or len(lz4_compress(sample, store_size=False)) <= SAMPLE_BYTES - SAMPLE_GAIN_BYTES

    def pack(self, data: View) -> tuple[Codec, int, bytes] | None:
        """Codec, plane width (0 when there are no planes) and payload of ``data``; None: store it raw."""
        if not self.worth(data):
            return None
        width = self._width(data)
        if width > 1:
            payload = compress_planes(self._codec, self._level, split_planes(data, width), width)
        else:
            payload = compress(self._codec, self._level, data)
        if len(payload) > len(data) - max(len(data) >> GAIN_SHIFT, GAIN_BYTES_MIN):
            return None
        return self._codec, width if width > 1 else 0, payload

    def _width(self, data: View) -> int:
        if self._planes:
            return self._planes if len(data) % self._planes == 0 else 1
        if len(data) < SAMPLE_BYTES or len(data) % 8:
            return 1
        sample = sample_of(data, SAMPLE_PIECE_BYTES)
        if len(set(sample[7::8])) > SKEWED_VALUES_MAX:
            return 1
        width = plane_width(sample)
        if width == 1 or (self._codec == Codec.ZSTD and len(lz4_compress(sample, store_size=False)) >= SAMPLE_BYTES):
            return width
        return width if self._planes_gain(sample_of(data, TRIAL_PIECE_BYTES), width) else 1

    def _planes_gain(self, sample: bytes, width: int) -> bool:
        plain = len(compress(self._codec, self._level, sample))
        split = len(compress_planes(self._codec, self._level, split_planes(sample, width), width))
        return split <= plain - (plain >> TRIAL_GAIN_SHIFT)


def unpack(codec: int, width: int, payload: bytes | bytearray | memoryview, raw_bytes: int) -> bytes:
    """Undo ``pack``. CodecError unless ``payload`` is exactly ``raw_bytes`` bytes of data in planes of ``width``."""
    if width > 1 and (width not in WIDTHS or raw_bytes % width):
        raise CodecError(f"plane width {width} of {raw_bytes} bytes cannot be")
    raw = decompress(codec, payload, raw_bytes)
    return join_planes(raw, width) if width > 1 else raw
