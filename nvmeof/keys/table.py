"""The key table of FORMAT.md: the data keys of a pool, wrapped by the key-encryption key (KEK) with AES key wrap.

A table that was decoded is locked: ``unlock`` it before asking for keys. One thread at a time.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from typing import cast

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from xxhash import xxh3_64_intdigest

from nvmeof.errors import UsageError
from nvmeof.keys.cipher import DATA_KEY_BYTES, DataKey
from nvmeof.keys.sources import KeySource, check_kdf

TABLE_BYTES_MAX = 32 << 10
TABLE_MAGIC = b"NVMEOFKT"
_HEADER = struct.Struct("<8sIIQQ")
"""Magic, length of the body, zero, generation, XXH3-64 of the body with the generation as seed."""

KEYS_MAX = 288
"""256 namespaces, and some whose key is being replaced: 107 bytes each at most, so 303 would fit."""

KEY_ID_MAX = 0xFFFF
"""Key ids are u16 in a record's header; 0 is "not encrypted"."""

WRAP_OVERHEAD_BYTES = 8
CHECK_VALUE = b"nvmeof key check"
_CHECK_WRAPPED_BYTES = len(CHECK_VALUE) + WRAP_OVERHEAD_BYTES

POOL_BYTES = 16
EXPORT_FORMAT = "nvmeof-key-table-1"

Buffer = bytes | bytearray | memoryview


class KeyTable:
    """Wrapped data keys by id, how the KEK is derived, and a known value that tells a wrong KEK from damage."""

    def __init__(self, kdf: Mapping[str, object], check: bytes, wrapped: Mapping[int, bytes]) -> None:
        self._kdf = dict(kdf)
        self._check = check
        self._wrapped = dict(wrapped)
        self._kek: bytes | None = None
        self._keys: dict[int, DataKey] = {}

    def __repr__(self) -> str:
        return f"<KeyTable of {len(self._wrapped)} keys{', locked' if self._kek is None else ''}>"

    @classmethod
    def new(cls, source: KeySource) -> KeyTable:
        """A table without keys, unlocked, that ``source`` will open. May block for seconds."""
        kdf = source.new_kdf()
        kek = source.kek(kdf)
        table = cls(kdf, aes_key_wrap(kek, CHECK_VALUE), {})
        table._kek = kek
        return table

    @property
    def locked(self) -> bool:
        """Whether ``unlock`` is needed."""
        return self._kek is None

    @property
    def key_ids(self) -> tuple[int, ...]:
        """Ids of the keys it holds, in order."""
        return tuple(sorted(self._wrapped))

    def unlock(self, source: KeySource) -> None:
        """Unwrap every key. UsageError, naming the source, for a wrong one: still locked. May block for seconds."""
        kek = source.kek(self._kdf)
        if _unwrap(kek, self._check) != CHECK_VALUE:
            raise UsageError(f"wrong key: the {source.kind} does not open this pool")
        keys = {}
        for key_id, wrapped in self._wrapped.items():
            raw = _unwrap(kek, wrapped)
            if raw is None:
                raise UsageError(
                    f"key {key_id} of the key table is damaged, the others are not; restore an export of it"
                )
            keys[key_id] = DataKey(raw)
        self._kek, self._keys = kek, keys

    def key(self, key_id: int) -> DataKey:
        """The key with that id. UsageError when there is none: it was destroyed, or is of another pool."""
        self._opened()
        found = self._keys.get(key_id)
        if found is None:
            raise UsageError(f"there is no key {key_id} in the key table: it was destroyed")
        return found

    def add(self, key_id: int, data_key: bytes) -> None:
        """Take in the 64 bytes of a data key under an id that is free: 1..65535. UsageError when that cannot be."""
        kek = self._opened()
        if not 1 <= key_id <= KEY_ID_MAX:
            raise UsageError(f"key id {key_id}: 1 to {KEY_ID_MAX} will do")
        if key_id in self._wrapped:
            raise UsageError(f"key {key_id} exists already")
        if len(self._wrapped) >= KEYS_MAX:
            raise UsageError(f"the key table is full: {KEYS_MAX} keys")
        self._keys[key_id] = DataKey(data_key)
        self._wrapped[key_id] = aes_key_wrap(kek, data_key)

    def remove(self, key_id: int) -> None:
        """Forget a key; works on a locked table. It is destroyed when no medium holds an older table."""
        if key_id not in self._wrapped:
            raise UsageError(f"there is no key {key_id} in the key table")
        del self._wrapped[key_id]
        self._keys.pop(key_id, None)

    def rewrap(self, new_source: KeySource) -> KeyTable:
        """The same data keys under another KEK, or the same passphrase with a new salt. May block for seconds."""
        kek = self._opened()
        table = KeyTable.new(new_source)
        for key_id, wrapped in self._wrapped.items():
            raw = _unwrap(kek, wrapped)
            assert raw is not None, "unlock has unwrapped it"
            table.add(key_id, raw)
        return table

    def encode(self, generation: int) -> bytes:
        """As it stands on media: at most 32 KiB, not padded. ``generation``: one more than the newest on any member."""
        body = json.dumps(self._as_json(), separators=(",", ":")).encode()
        assert _HEADER.size + len(body) <= TABLE_BYTES_MAX
        return _HEADER.pack(TABLE_MAGIC, len(body), 0, generation, xxh3_64_intdigest(body, generation)) + body

    @classmethod
    def decode(cls, data: Buffer) -> tuple[int, KeyTable] | None:
        """Generation and table, locked, from the front of ``data``; None when it does not verify or makes no sense."""
        if len(data) < _HEADER.size:
            return None
        magic, length, zero, generation, checksum = _HEADER.unpack_from(data)
        end = _HEADER.size + length
        if magic != TABLE_MAGIC or zero or end > min(len(data), TABLE_BYTES_MAX):
            return None
        body = bytes(data[_HEADER.size : end])
        if xxh3_64_intdigest(body, generation) != checksum:
            return None
        table = cls._from_json(_parse(body))
        return None if table is None else (generation, table)

    def export(self, pool: bytes) -> bytes:
        """JSON text for a backup: everything but the KEK. ``pool`` is the pool's UUID, 16 bytes."""
        assert len(pool) == POOL_BYTES
        table = self._as_json()
        content = {"format": EXPORT_FORMAT, "pool": pool.hex(), "checksum": _export_checksum(pool, table), **table}
        return json.dumps(content, indent=2).encode() + b"\n"

    @classmethod
    def from_export(cls, text: Buffer) -> tuple[bytes, KeyTable]:
        """Pool UUID and table, locked, out of what ``export`` gave. UsageError for anything else."""
        content = _parse(bytes(text))
        if not isinstance(content, dict) or content.get("format") != EXPORT_FORMAT:
            raise UsageError(f"this is no exported key table: its format is not {EXPORT_FORMAT}")
        pool_text, checksum = content.get("pool"), content.get("checksum")
        table = cls._from_json({name: content.get(name) for name in ("kdf", "check", "keys")})
        pool = _decoded(pool_text, POOL_BYTES, hexadecimal=True)
        if table is None or pool is None or checksum != _export_checksum(pool, table._as_json()):
            raise UsageError("the exported key table is damaged: take another copy of it")
        return pool, table

    def _opened(self) -> bytes:
        if self._kek is None:
            raise UsageError("the key table is locked: give the pool's key first")
        return self._kek

    def _as_json(self) -> dict[str, object]:
        keys = {str(key_id): _encoded(self._wrapped[key_id]) for key_id in sorted(self._wrapped)}
        return {"kdf": self._kdf, "check": _encoded(self._check), "keys": keys}

    @classmethod
    def _from_json(cls, content: object) -> KeyTable | None:
        """None for whatever :meth:`_as_json` would not have made."""
        if not isinstance(content, dict) or set(content) != {"kdf", "check", "keys"}:
            return None
        kdf, keys = content["kdf"], content["keys"]
        check = _decoded(content["check"], _CHECK_WRAPPED_BYTES)
        if not isinstance(kdf, dict) or not isinstance(keys, dict) or check is None or len(keys) > KEYS_MAX:
            return None
        try:
            check_kdf(cast("dict[str, object]", kdf))
        except UsageError:
            return None
        wrapped: dict[int, bytes] = {}
        for name, text in keys.items():
            value = _decoded(text, DATA_KEY_BYTES + WRAP_OVERHEAD_BYTES)
            key_id = _key_id(name)
            if value is None or key_id is None:
                return None
            wrapped[key_id] = value
        return cls(kdf, check, wrapped)


def _unwrap(kek: bytes, wrapped: bytes) -> bytes | None:
    try:
        return aes_key_unwrap(kek, wrapped)
    except InvalidUnwrap:
        return None


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _decoded(text: object, length: int, *, hexadecimal: bool = False) -> bytes | None:
    """``length`` bytes out of base64 or hexadecimal text; None when it is not just that."""
    if not isinstance(text, str):
        return None
    try:
        value = bytes.fromhex(text) if hexadecimal else base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return value if len(value) == length else None


def _key_id(name: object) -> int | None:
    """A key id out of its decimal digits, written in the one way that we write it."""
    if not isinstance(name, str) or not 1 <= len(name) <= 5 or not name.isascii() or not name.isdigit():
        return None
    value = int(name)
    return value if 1 <= value <= KEY_ID_MAX and str(value) == name else None


def _parse(text: bytes) -> object:
    """JSON, or None for what is not: not UTF-8, nested by the thousand, ..."""
    try:
        return cast("object", json.loads(text))
    except (ValueError, RecursionError):
        return None


def _export_checksum(pool: bytes, table: Mapping[str, object]) -> str:
    """Tells a typing error from a wrong key; AES key wrap has integrity of its own."""
    return f"{xxh3_64_intdigest(pool + json.dumps(table, sort_keys=True).encode()):016x}"
