"""Options are checked before anything is sent; who this host is stays the same for the life of the process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmeof.errors import UsageError
from nvmeof.initiator import identity
from nvmeof.initiator.identity import default_identity
from nvmeof.initiator.options import Options

UUID = "11111111-2222-3333-4444-555555555555"
UUID_NQN = f"nqn.2014-08.org.nvmexpress:uuid:{UUID}"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Where /etc/nvme/hostnqn and /etc/nvme/hostid are looked for."""
    nqn, hostid = tmp_path / "hostnqn", tmp_path / "hostid"
    monkeypatch.setattr(identity, "HOSTNQN_FILE", nqn)
    monkeypatch.setattr(identity, "HOSTID_FILE", hostid)
    default_identity.cache_clear()
    yield nqn, hostid
    default_identity.cache_clear()


def test_defaults() -> None:
    options = Options.check()
    assert (options.io_queues, options.queue_depth, options.keep_alive) == (1, 128, 15.0)
    assert (options.host_nqn, options.host_id) == default_identity()


def test_given() -> None:
    options = Options.check(host_nqn="nqn.2026-11.org:h", host_id=UUID, io_queues=0, keep_alive=0.0, congestion="reno")
    assert (options.host_nqn, options.host_id) == ("nqn.2026-11.org:h", uuid.UUID(UUID).bytes)
    assert Options.check(host_id=uuid.UUID(UUID)).host_id == options.host_id
    assert Options.check(host_id=options.host_id).host_id == options.host_id
    assert Options.check(host_nqn=None, host_id=None) == Options.check()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"io_queues": -1}, "io_queues: got -1, wanted 0 to"),
        ({"io_queues": 129}, "io_queues: got 129"),
        ({"io_queues": 1.5}, "io_queues: got 1.5"),
        ({"queue_depth": 0}, "queue_depth: got 0, wanted 1 to"),
        ({"queue_depth": 1025}, "queue_depth: got 1025"),
        ({"keep_alive": 0.1}, "keep_alive: got 0.1, wanted 0.5 to"),
        ({"keep_alive": float("nan")}, "keep_alive: got nan"),
        ({"connect_timeout": 0}, "connect_timeout: got 0, wanted more than 0"),
        ({"connect_timeout": -1}, "connect_timeout"),
        ({"io_timeout": float("inf")}, "io_timeout: got inf"),
        ({"io_timeout": "1"}, "io_timeout: got '1'"),
        ({"host_nqn": "x" * 224}, "NQN: got 224 bytes"),
        ({"host_id": "x"}, "host_id: got 'x', wanted a UUID"),
        ({"host_id": b"123"}, "host_id: got 313233"),
        ({"host_id": bytes(16)}, "not all zero"),
        ({"host_id": 5}, "host_id: got 5, wanted a UUID"),
        ({"host_nqn": 5}, "host_nqn: got 5, wanted an NQN"),
        ({"host_nqn": ""}, "NQN: got 0 bytes"),
        ({"keep_alive": None}, "keep_alive: got None, wanted seconds"),
        ({"keep_alive": False}, "keep_alive: got False"),
        ({"io_timeout": True}, "io_timeout: got True"),
        ({"io_queues": True}, "io_queues: got True, wanted 0 to"),
        ({"header_digest": "no"}, "header_digest: got 'no', wanted True or False"),
        ({"data_digest": 1}, "data_digest: got 1"),
        ({"congestion": 5}, "congestion: got 5"),
    ],
)
def test_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match="got") as caught:
        Options.check(**given)
    assert text in str(caught.value)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="depth"):
        Options.check(depth=1)  # type: ignore[call-arg]


def test_random_identity_without_files(files: tuple[Path, Path]) -> None:
    nqn, hostid = default_identity()
    assert nqn == f"nqn.2014-08.org.nvmexpress:uuid:{uuid.UUID(bytes=hostid)}"
    assert default_identity() == (nqn, hostid)


def test_identity_of_the_machine(files: tuple[Path, Path]) -> None:
    files[0].write_text(f"{UUID_NQN}\n")
    assert default_identity() == (UUID_NQN, uuid.UUID(UUID).bytes)
    default_identity.cache_clear()
    files[1].write_text("22222222-2222-3333-4444-555555555555\n")
    assert default_identity() == (UUID_NQN, uuid.UUID("22222222-2222-3333-4444-555555555555").bytes)


def test_host_identifier_alone(files: tuple[Path, Path]) -> None:
    files[1].write_text(UUID)
    assert default_identity() == (UUID_NQN, uuid.UUID(UUID).bytes)


@pytest.mark.parametrize("name", ["nqn.2026-11.org.example:host", "nqn.2014-08.org.nvmexpress:uuid:not-one"])
def test_names_without_a_uuid(files: tuple[Path, Path], name: str) -> None:
    files[0].write_text(name)
    nqn, hostid = default_identity()
    assert nqn == name
    assert any(hostid)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"x" * 300, b"a\0b"])
def test_useless_files_are_ignored(files: tuple[Path, Path], content: bytes) -> None:
    files[0].write_bytes(content)
    files[1].write_bytes(content)
    nqn, hostid = default_identity()
    assert nqn == f"nqn.2014-08.org.nvmexpress:uuid:{uuid.UUID(bytes=hostid)}"
