"""Identify data that is a list, 4096 bytes each: NVMe Base 2.0 section 5.17.2."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from nvmeof.errors import LocalProtocolError
from nvmeof.spec.identify import IDENTIFY_SIZE

NAMESPACE_LIST_MAX = 1024
CONTROLLER_LIST_MAX = 2047
COMMAND_SET_COMBINATIONS_MAX = 512


class NamespaceIdentifierType(IntEnum):
    """NIDT of a Namespace Identification Descriptor: Base 2.0 figure 277."""

    EUI64 = 1
    NGUID = 2
    UUID = 3
    CSI = 4


_IDENTIFIER_SIZES: dict[int, int] = {
    NamespaceIdentifierType.EUI64: 8,
    NamespaceIdentifierType.NGUID: 16,
    NamespaceIdentifierType.UUID: 16,
    NamespaceIdentifierType.CSI: 1,
}


class NamespaceIdentifiers(NamedTuple):
    """CNS 03h, Namespace Identification Descriptor list. Identifiers are big-endian bytes, empty when absent."""

    eui64: bytes = b""
    nguid: bytes = b""
    uuid: bytes = b""
    csi: int | None = None

    def encode(self) -> bytes:
        """4096 bytes: a descriptor for each identifier that is there, the rest zero.

        Raises LocalProtocolError when an identifier has the wrong size.
        """
        csi = b"" if self.csi is None else bytes([self.csi])
        parts = []
        for kind, value in zip(NamespaceIdentifierType, (self.eui64, self.nguid, self.uuid, csi), strict=True):
            if value:
                if len(value) != _IDENTIFIER_SIZES[kind]:
                    raise LocalProtocolError(f"{kind.name}: got {len(value)} bytes, wanted {_IDENTIFIER_SIZES[kind]}")
                parts.append(struct.pack("<BBH", kind, len(value), 0) + value)
        return b"".join(parts).ljust(IDENTIFY_SIZE, b"\0")

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> NamespaceIdentifiers:
        """A descriptor of length zero ends the list; types we do not know are skipped.

        Raises ValueError when a descriptor runs over the end or a type we know has the wrong length.
        """
        data = bytes(data)
        found: dict[int, bytes] = {}
        position = 0
        while position + 4 <= len(data):
            kind, size = data[position], data[position + 1]
            if size == 0:
                break
            value = data[position + 4 : position + 4 + size]
            if len(value) != size:
                raise ValueError(f"namespace descriptor at {position}: {size} bytes run over the end")
            if size != _IDENTIFIER_SIZES.get(kind, size):
                raise ValueError(
                    f"namespace descriptor type {kind}: got {size} bytes, wanted {_IDENTIFIER_SIZES[kind]}"
                )
            found.setdefault(kind, value)
            position += 4 + size
        csi = found.get(NamespaceIdentifierType.CSI)
        return cls(
            eui64=found.get(NamespaceIdentifierType.EUI64, b""),
            nguid=found.get(NamespaceIdentifierType.NGUID, b""),
            uuid=found.get(NamespaceIdentifierType.UUID, b""),
            csi=None if csi is None else csi[0],
        )


def encode_namespace_list(nsids: Iterable[int]) -> bytes:
    """CNS 02h, 07h and 10h, and the Changed Namespace List log: up to 1024 NSIDs in ascending order, zero filled.

    Raises LocalProtocolError when there are more, or when they are not ascending and above zero.
    """
    numbers = list(nsids)
    if len(numbers) > NAMESPACE_LIST_MAX:
        raise LocalProtocolError(f"namespace list: got {len(numbers)} entries, wanted at most {NAMESPACE_LIST_MAX}")
    if any(low >= high for low, high in zip([0, *numbers], numbers, strict=False)):
        raise LocalProtocolError(f"namespace list: got {numbers[:8]}, wanted ascending numbers above 0")
    return struct.pack(f"<{len(numbers)}I", *numbers).ljust(IDENTIFY_SIZE, b"\0")


def decode_namespace_list(data: bytes | bytearray | memoryview) -> list[int]:
    """NSIDs up to the first zero. Raises ValueError when ``data`` is shorter than 4096 bytes."""
    _require(data, "namespace list")
    numbers = struct.unpack_from(f"<{NAMESPACE_LIST_MAX}I", data)
    return list(numbers[: numbers.index(0)] if 0 in numbers else numbers)


def encode_controller_list(cntlids: Iterable[int]) -> bytes:
    """CNS 12h and 13h: Base 2.0 section 4.4.1. Up to 2047 controller identifiers in ascending order.

    Raises LocalProtocolError when there are more, or when they are not ascending.
    """
    numbers = list(cntlids)
    if len(numbers) > CONTROLLER_LIST_MAX:
        raise LocalProtocolError(f"controller list: got {len(numbers)} entries, wanted at most {CONTROLLER_LIST_MAX}")
    if any(low >= high for low, high in zip([-1, *numbers], numbers, strict=False)):
        raise LocalProtocolError(f"controller list: got {numbers[:8]}, wanted ascending numbers")
    return struct.pack(f"<{len(numbers) + 1}H", len(numbers), *numbers).ljust(IDENTIFY_SIZE, b"\0")


def decode_controller_list(data: bytes | bytearray | memoryview) -> list[int]:
    """Controller identifiers. Raises ValueError when ``data`` is too short or claims more than 2047."""
    _require(data, "controller list")
    (count,) = struct.unpack_from("<H", data)
    if count > CONTROLLER_LIST_MAX:
        raise ValueError(f"controller list: got a count of {count}, wanted at most {CONTROLLER_LIST_MAX}")
    return list(struct.unpack_from(f"<{count}H", data, 2))


def encode_command_set_combinations(vectors: Iterable[int]) -> bytes:
    """CNS 1Ch: up to 512 vectors of 64 bits, bit n for the command set whose CSI is n, zero filled."""
    numbers = list(vectors)
    if len(numbers) > COMMAND_SET_COMBINATIONS_MAX:
        raise LocalProtocolError(f"combinations: got {len(numbers)}, wanted at most {COMMAND_SET_COMBINATIONS_MAX}")
    return struct.pack(f"<{len(numbers)}Q", *numbers).ljust(IDENTIFY_SIZE, b"\0")


def decode_command_set_combinations(data: bytes | bytearray | memoryview) -> list[int]:
    """Vectors up to the first that is zero. Raises ValueError when ``data`` is shorter than 4096 bytes."""
    _require(data, "I/O command set combinations")
    numbers = struct.unpack_from(f"<{COMMAND_SET_COMBINATIONS_MAX}Q", data)
    return list(numbers[: numbers.index(0)] if 0 in numbers else numbers)


def _require(data: bytes | bytearray | memoryview, what: str) -> None:
    if len(data) < IDENTIFY_SIZE:
        raise ValueError(f"{what} needs {IDENTIFY_SIZE} bytes, got {len(data)}")
