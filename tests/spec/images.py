"""Write structures down by hand, so that the expected bytes do not come from the code under test."""

from __future__ import annotations


def image(size: int, parts: dict[int, str]) -> bytes:
    """``size`` zero bytes with hexadecimal ``parts`` at their offsets."""
    data = bytearray(size)
    for offset, text in parts.items():
        part = bytes.fromhex(text)
        assert offset + len(part) <= size
        assert not any(data[offset : offset + len(part)]), f"two parts overlap at {offset}"
        data[offset : offset + len(part)] = part
    return bytes(data)


def offsets_of(fields: str) -> dict[str, int]:
    """Offsets of the named fields in ``"name:size name:size ..."``; a field named ``-`` is reserved space."""
    offsets: dict[str, int] = {}
    position = 0
    for field in fields.split():
        name, size = field.split(":")
        if name != "-":
            assert name not in offsets
            offsets[name] = position
        position += int(size)
    return offsets | {"": position}


def assert_same_offsets(ours: dict[str, int], size: int, fields: str) -> None:
    """``fields`` as another implementation lays them out: every one must be in ``ours`` at the same place."""
    theirs = offsets_of(fields)
    assert theirs.pop("") == size
    assert {name: ours.get(name) for name in theirs} == theirs
