"""The limit of open files, and what a target says when it is reached."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource

import pytest

from nvmeof.cli.descriptors import SPARE, ExhaustionHandler, raise_limit
from nvmeof.limits import CONNECTIONS_MAX

WANTED = CONNECTIONS_MAX + SPARE


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[soft, hard] as the system would have them."""
    pair = [1024, 1 << 20]
    monkeypatch.setattr(resource, "getrlimit", lambda what: tuple(pair))
    monkeypatch.setattr(resource, "setrlimit", lambda what, new: pair.__setitem__(slice(None), list(new)))
    return pair


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [(1024, 1 << 20, WANTED), (WANTED, 1 << 20, WANTED), (1 << 19, 1 << 20, 1 << 19), (1024, -1, WANTED), (-1, -1, -1)],
)
def test_the_limit_is_raised_as_far_as_needed(
    limits: list[int], soft: int, hard: int, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    limits[:] = [soft, hard]
    assert raise_limit() == expected
    assert limits == [expected, hard]
    assert not caplog.records


def test_a_low_hard_limit_is_said(limits: list[int], caplog: pytest.LogCaptureFixture) -> None:
    limits[:] = [1024, 2048]
    assert raise_limit() == 2048
    assert "room for about 1792 connections" in caplog.text


async def test_exhaustion_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    loop, handler = asyncio.get_running_loop(), ExhaustionHandler()
    for _ in range(100):
        handler(loop, {"message": "socket.accept() out of system resource", "exception": OSError(errno.EMFILE, "no")})
    assert len(caplog.records) == 1


async def test_anything_else_is_still_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "asyncio"):
        ExhaustionHandler()(asyncio.get_running_loop(), {"message": "odd", "exception": ValueError("odd")})
    assert "odd" in caplog.text
