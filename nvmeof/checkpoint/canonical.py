"""Canonical JSON, and reading untrusted JSON field by field (FORMAT.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeVar

from nvmeof.codec.hashes import DIGEST_BYTES
from nvmeof.errors import CorruptCheckpointError, UsageError

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Keys sorted, no spaces, ASCII; floats are not JSON here, so non-finite ones raise ValueError."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def decode(data: bytes | bytearray | memoryview, what: str) -> Fields:
    """Parse one JSON object. Raises CorruptCheckpointError, which names ``what``."""
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{what} is not JSON: {error}") from None
    return Fields(value, what)


class Fields:
    """A JSON object whose fields are taken with their type. Every misfit raises CorruptCheckpointError."""

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            raise CorruptCheckpointError(f"{what} is not a JSON object")
        self.value: Mapping[str, object] = value
        self.what = what

    def get(self, key: str, kind: type[T]) -> T:
        """The field ``key``, which must be of exactly the type ``kind`` (a bool is no int)."""
        value = self.value.get(key)
        if type(value) is not kind:
            raise CorruptCheckpointError(f"{self.what}: {key!r} is {value!r:.60}, wanted {kind.__name__}")
        return value

    def size(self, key: str) -> int:
        """A non-negative integer below 2**63."""
        value = self.get(key, int)
        if not 0 <= value < 1 << 63:
            raise CorruptCheckpointError(f"{self.what}: {key!r} is {value}, wanted 0 to 2**63 - 1")
        return value

    def one_of(self, key: str, *allowed: str) -> str:
        value = self.get(key, str)
        if value not in allowed:
            raise CorruptCheckpointError(f"{self.what}: {key!r} is {value!r:.60}, wanted {' or '.join(allowed)}")
        return value

    def digest(self, key: str) -> bytes:
        """A 32-byte digest in lower-case hex."""
        return parse_digest(self.get(key, str), f"{self.what}: {key!r}")

    def fields(self, key: str) -> Fields:
        return Fields(self.value.get(key), f"{self.what}: {key!r}")

    def objects(self, key: str) -> list[Fields]:
        """A list of objects."""
        return [Fields(value, f"{self.what}: {key}[{i}]") for i, value in enumerate(self.get(key, list))]

    def expect(self, format_name: str, version: int) -> None:
        """Check ``format`` and ``version``. A newer version raises UsageError: the data may be perfectly good."""
        if self.value.get("format") != format_name:
            raise CorruptCheckpointError(f"{self.what}: 'format' is not {format_name!r}")
        found = self.size("version")
        if found > version:
            raise UsageError(f"{self.what} has format version {found}; this program reads {version}: use a newer one")
        if found != version:
            raise CorruptCheckpointError(f"{self.what}: 'version' is {found}, wanted {version}")


def parse_digest(text: str, what: str) -> bytes:
    """32 bytes from lower-case hex. Raises CorruptCheckpointError."""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != DIGEST_BYTES or digest.hex() != text:
        raise CorruptCheckpointError(f"{what} is {text!r:.80}, wanted {DIGEST_BYTES * 2} lower-case hex digits")
    return digest
