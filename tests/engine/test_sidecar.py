"""The sidecar: what is written is read back, and anything else is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest

from nvmeof.engine.sidecar import Identity, load_identity, sidecar_path, store_identity
from nvmeof.errors import UsageError

IDENTITY = Identity(UUID("0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77"), 4096, 1 << 30)
FIELDS = {
    "format": "nvmeof plain volume",
    "version": 1,
    "uuid": "0191d5c8-4a7e-7c3a-9b0e-2f6d3c1a5b77",
    "block_size": 4096,
    "size": 1 << 30,
}


def test_reads_back_what_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "disk.img.nvmeof"
    assert load_identity(path) is None
    store_identity(path, IDENTITY)
    assert load_identity(path) == IDENTITY
    store_identity(path, IDENTITY._replace(size=4096))
    assert load_identity(path) == IDENTITY._replace(size=4096)


def test_version_1_is_understood_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "disk.img.nvmeof"
    path.write_text(json.dumps(FIELDS | {"a later release": "may add keys"}))
    assert load_identity(path) == IDENTITY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something else"}, '"format" is not "nvmeof plain volume"'),
        ({"version": 2}, "is version 2; this release understands up to version 1"),
        ({"version": "1"}, "\"version\" is '1', want a whole number"),
        ({"version": True}, '"version" is True'),
        ({"version": 0}, '"version" is 0'),
        ({"uuid": "not one"}, "\"uuid\" is 'not one', want a UUID"),
        ({"uuid": None}, '"uuid" is None'),
        ({"uuid": 5}, '"uuid" is 5'),
        ({"block_size": 1024}, '"block_size" is 1024, want one of (512, 4096)'),
        ({"block_size": [512]}, '"block_size" is [512]'),
        ({"block_size": 4096.0}, '"block_size" is 4096.0'),
        ({"size": 4097}, '"size" is 4097, want a multiple of 4096'),
        ({"size": 0}, '"size" is 0'),
        ({"size": None}, '"size" is None'),
    ],
)
def test_refuses_wrong_fields(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "disk.img.nvmeof"
    path.write_text(json.dumps(FIELDS | change))
    with pytest.raises(UsageError) as caught:
        load_identity(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", FIELDS)
def test_refuses_missing_fields(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "disk.img.nvmeof"
    path.write_text(json.dumps({key: value for key, value in FIELDS.items() if key != missing}))
    with pytest.raises(UsageError, match=f'damaged: "{missing}"'):
        load_identity(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"1", b"[" * 4000, b'"' + b"x" * 90])
def test_refuses_what_is_not_a_sidecar(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "disk.img.nvmeof"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged: .*; restore it, or delete it"):
        load_identity(path)


def test_a_flipped_bit_raises_nothing_but_usage_errors(tmp_path: Path) -> None:
    path = tmp_path / "disk.img.nvmeof"
    store_identity(path, IDENTITY)
    good = path.read_bytes()
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            identity = load_identity(path)
        except UsageError:
            continue
        assert isinstance(identity, Identity)


def test_refuses_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    large = tmp_path / "large.nvmeof"
    large.write_bytes(b" " * 5000)
    with pytest.raises(UsageError, match="larger than 4096 bytes"):
        load_identity(large)
    with pytest.raises(UsageError, match="Is a directory"):
        load_identity(tmp_path)
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        store_identity(tmp_path / "nowhere" / "disk.nvmeof", IDENTITY)


def test_belongs_to_the_file_not_to_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk.img")
    assert sidecar_path(tmp_path / "link") == sidecar_path(tmp_path / "disk.img") == tmp_path / "disk.img.nvmeof"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("loop", "zero\0byte"):
        with pytest.raises(UsageError, match="not a usable file name"):
            sidecar_path(tmp_path / name)
