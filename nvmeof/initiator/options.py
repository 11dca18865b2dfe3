"""What a caller may choose about a connection."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TypedDict, Unpack

from nvmeof.errors import UsageError
from nvmeof.initiator.identity import default_identity, host_id_bytes
from nvmeof.limits import HOST_IO_QUEUES_MAX, HOST_QUEUE_DEPTH_MAX, HOST_TIMEOUT_SECONDS_MAX, KEEP_ALIVE_SECONDS_MIN
from nvmeof.spec.fabrics import check_foreign_nqn


class ConnectOptions(TypedDict, total=False):
    """Keyword arguments of ``connect``, ``open_namespace``, ``open`` and ``discover``; times in seconds.

    ``host_nqn``, ``host_id``: who we are; else from /etc/nvme, else random for the life of the process.
    ``io_queues`` (1): TCP connections for I/O, 0 for none; the controller may grant fewer.
    ``queue_depth`` (128): commands in flight on each of them; the controller may take fewer.
    ``header_digest``, ``data_digest`` (False): CRC32C. A controller that declines one is refused.
    ``keep_alive`` (15.0): how soon the controller may give us up; 0 for never.
    ``connect_timeout`` (10.0): until the controller is usable, not counting the time it asks for to become ready.
    ``io_timeout`` (30.0): a command without an answer for so long ends the association.
    ``congestion``: TCP congestion control algorithm, as the kernel names it.
    """

    host_nqn: str | None
    host_id: str | bytes | uuid.UUID | None
    io_queues: int
    queue_depth: int
    header_digest: bool
    data_digest: bool
    keep_alive: float
    connect_timeout: float
    io_timeout: float
    congestion: str | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that were checked, with the defaults filled in."""

    host_nqn: str
    host_id: bytes
    io_queues: int = 1
    queue_depth: int = 128
    header_digest: bool = False
    data_digest: bool = False
    keep_alive: float = 15.0
    connect_timeout: float = 10.0
    io_timeout: float = 30.0
    congestion: str | None = None

    @classmethod
    def check(cls, **given: Unpack[ConnectOptions]) -> Options:
        """Raises UsageError: which option, got, wanted."""
        default_nqn, default_id = default_identity()
        nqn, chosen_id = given.get("host_nqn"), given.get("host_id")
        if nqn is None:
            nqn = default_nqn
        _check_kind("host_nqn", nqn, str, "an NQN")
        check_foreign_nqn(nqn)
        options = cls(
            host_nqn=nqn,
            host_id=default_id if chosen_id is None else host_id_bytes(chosen_id),
            **{name: value for name, value in given.items() if name not in ("host_nqn", "host_id")},  # type: ignore[arg-type]
        )
        _check_integer("io_queues", options.io_queues, 0, HOST_IO_QUEUES_MAX)
        _check_integer("queue_depth", options.queue_depth, 1, HOST_QUEUE_DEPTH_MAX)
        for name in ("header_digest", "data_digest"):
            _check_kind(name, getattr(options, name), bool, "True or False")
        if options.congestion is not None:
            _check_kind("congestion", options.congestion, str, "the name of an algorithm")
        if options.keep_alive != 0 or isinstance(options.keep_alive, bool):
            _check_seconds("keep_alive", options.keep_alive, KEEP_ALIVE_SECONDS_MIN)
        _check_seconds("connect_timeout", options.connect_timeout, 0)
        _check_seconds("io_timeout", options.io_timeout, 0)
        return options


def _check_kind(name: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{name}: got {value!r}, wanted {wanted}")


def _check_integer(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{name}: got {value!r}, wanted {low} to {high}")


def _check_seconds(name: str, value: float, low: float) -> None:
    _check_kind(name, value, (int, float), "seconds")
    if not low <= value <= HOST_TIMEOUT_SECONDS_MAX or not value:
        wanted = f"{low} to" if low else "more than 0 and at most"
        raise UsageError(f"{name}: got {value!r}, wanted {wanted} {HOST_TIMEOUT_SECONDS_MAX} seconds")
