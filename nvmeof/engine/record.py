"""Sealing and opening one record (FORMAT.md, record): codec, cipher, checksum, in that order."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from nvmeof.codec.checksum import xxh3_64
from nvmeof.codec.compression import Codec, CodecError, compress, decompress
from nvmeof.codec.packer import Packer
from nvmeof.codec.planes import join_planes
from nvmeof.engine.layout import (
    PAGE,
    PAGE_SHIFT,
    RECORD,
    RECORD_MAGIC,
    STORED_MIN,
    UNIT,
    ByteView,
    Kind,
    RecordFlag,
    RecordHeader,
)
from nvmeof.keys.cipher import DataKey

TWEAK = Struct("<QQ").pack
ENCRYPTED, MOVED = int(RecordFlag.ENCRYPTED), int(RecordFlag.MOVED)
DATA = int(Kind.DATA)


class BadRecordError(Exception):
    """What was read is not the record that belongs there."""


class Sealed(NamedTuple):
    """A record but for its place: what is known before the stripe is. ``payload`` is padded to 16 bytes at least."""

    codec: int
    planes: int
    flags: int
    key_id: int
    length: int
    payload: ByteView


Packed = tuple[int, int, ByteView]
"""Codec, plane width, and what is left of the data after them."""


class Sealer:
    """Seals the data of one namespace. Safe in several threads at once."""

    def __init__(self, packer: Packer, key_id: int = 0, key: DataKey | None = None) -> None:
        self.packer = packer
        self.key_id = key_id
        self.key = key
        self.flags = ENCRYPTED if key is not None else 0

    def pack(self, data: memoryview) -> Packed:
        """Codec, plane width and what is left of ``data`` after them; ``data`` itself where nothing is gained."""
        packed = self.packer.pack(data)
        return (0, 0, data) if packed is None else packed

    def seal(self, data: memoryview, first: int, write_sequence: int) -> Sealed:
        """Compress and encrypt a record of ``len(data) / 4096`` blocks into new memory."""
        codec, planes, packed = self.pack(data)
        length = len(packed)
        if length < STORED_MIN:
            packed = bytes(packed) + bytes(STORED_MIN - length)
        if self.key is None:
            payload: ByteView = bytes(packed)
        else:
            payload = bytearray(len(packed))
            self.key.encrypt_into(TWEAK(first, write_sequence), packed, payload)
        return Sealed(codec, planes, self.flags, self.key_id, length, payload)


def seal_metadata(content: bytes) -> Sealed:
    """A record of metadata: zstd, not encrypted."""
    packed = compress(Codec.ZSTD, 1, content)
    codec = int(Codec.ZSTD)
    if len(packed) >= len(content):
        codec, packed = 0, content
    return Sealed(codec, 0, 0, 0, len(packed), packed + bytes(max(0, STORED_MIN - len(packed))))


class Expected(NamedTuple):
    """What the record at an address must say. ``block`` must be one of its blocks, or be its number in metadata."""

    kind: int
    namespace: int
    sequence: int
    block: int


def check(record: ByteView, expected: Expected) -> RecordHeader:
    """The header of ``record``, if it is whole and is the one wanted. Raises BadRecordError."""
    if len(record) < UNIT:
        raise BadRecordError("is shorter than a header")
    checksum, magic, *fields = RECORD.unpack_from(record)
    header = RecordHeader(*fields)
    stored = header.stored
    if magic != RECORD_MAGIC or not 0 < UNIT + stored <= len(record):
        raise BadRecordError("is no record")
    if xxh3_64(record[8 : UNIT + stored]) != checksum:
        raise BadRecordError("has a bad checksum")
    if header.sequence != expected.sequence or header.kind != expected.kind or header.namespace != expected.namespace:
        raise BadRecordError("is another record: stale or misdirected")
    if expected.kind == DATA:
        if not header.first <= expected.block < header.first + header.count or header.count > 32:
            raise BadRecordError("is another record: stale or misdirected")
    elif header.first != expected.block:
        raise BadRecordError("is another record: stale or misdirected")
    return header


def raw_bytes(header: RecordHeader) -> int:
    """Bytes of content."""
    return header.count << PAGE_SHIFT if header.kind == DATA else header.count


def open_into(record: ByteView, header: RecordHeader, key: DataKey | None, out: memoryview) -> None:
    """Decrypt and decompress a record that was checked; ``out`` is as long as its content. Raises BadRecordError."""
    stored = header.stored
    body = record[UNIT : UNIT + stored]
    if header.flags & ENCRYPTED:
        if key is None:
            raise BadRecordError(f"is encrypted with key {header.key_id}, which there is not")
        tweak = TWEAK(header.first, header.write_sequence)
        if not header.codec and stored == len(out):
            key.decrypt_into(tweak, body, out)
            return
        plain = bytearray(stored)
        key.decrypt_into(tweak, body, plain)
        body = plain
    if not header.codec:
        if header.length != len(out):
            raise BadRecordError("has another length")
        out[:] = body[: len(out)]
        return
    try:
        content = decompress(Codec(header.codec), bytes(body[: header.length]), len(out))
        out[:] = join_planes(content, header.planes) if header.planes > 1 else content
    except (CodecError, ValueError) as error:
        raise BadRecordError(f"does not decompress: {error}") from error


def content_of(record: ByteView, header: RecordHeader, key: DataKey | None = None) -> bytearray:
    """The whole content of a checked record. Raises BadRecordError."""
    size = raw_bytes(header)
    if size > 32 * PAGE * 8:
        raise BadRecordError("claims an impossible length")
    out = bytearray(size)
    with memoryview(out) as view:
        open_into(record, header, key, view)
    return out
