"""Who this host is: its NQN and its 128-bit identifier."""

from __future__ import annotations

import uuid
from functools import cache
from pathlib import Path

from nvmeof.errors import UsageError
from nvmeof.spec.fabrics import UUID_NQN_PREFIX, check_foreign_nqn

HOSTNQN_FILE = Path("/etc/nvme/hostnqn")
HOSTID_FILE = Path("/etc/nvme/hostid")


@cache
def default_identity() -> tuple[str, bytes]:
    """Host NQN and host identifier of this machine, or random ones that stay the same for the life of the process.

    ``/etc/nvme/hostnqn`` and ``/etc/nvme/hostid`` are what nvme-cli keeps. Without the second, the UUID in the NQN
    serves, so that one host does not show up under two identifiers.
    """
    nqn, hostid = _read_nqn(HOSTNQN_FILE), _read_uuid(HOSTID_FILE)
    if nqn is None:
        nqn = UUID_NQN_PREFIX + str(hostid or uuid.uuid4())
    if hostid is None:
        try:
            hostid = uuid.UUID(nqn.removeprefix(UUID_NQN_PREFIX)) if nqn.startswith(UUID_NQN_PREFIX) else uuid.uuid4()
        except ValueError:
            hostid = uuid.uuid4()
    return nqn, hostid.bytes


def host_id_bytes(value: str | bytes | uuid.UUID) -> bytes:
    """The 16 bytes of a host identifier. Raises UsageError for anything else, and for all zeroes."""
    if isinstance(value, str):
        try:
            value = uuid.UUID(value)
        except ValueError:
            raise UsageError(f"host_id: got {value!r}, wanted a UUID") from None
    if not isinstance(value, uuid.UUID | bytes):
        raise UsageError(f"host_id: got {value!r}, wanted a UUID or 16 bytes")
    data = value.bytes if isinstance(value, uuid.UUID) else value
    if len(data) != 16 or not any(data):
        raise UsageError(f"host_id: got {data.hex() or 'nothing'}, wanted a UUID or 16 bytes, not all zero")
    return data


def _read_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _read_nqn(path: Path) -> str | None:
    text = _read_line(path)
    try:
        if text is not None:
            check_foreign_nqn(text)
    except UsageError:
        return None
    return text


def _read_uuid(path: Path) -> uuid.UUID | None:
    try:
        text = _read_line(path)
        return None if text is None else uuid.UUID(text)
    except ValueError:
        return None
