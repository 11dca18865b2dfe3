"""Asynchronous events: requests held and aborted, coalescing, masking until the log page is read, configuration."""

from __future__ import annotations

import pytest

from nvmeof.limits import ASYNC_EVENT_REQUESTS_MAX
from nvmeof.target.command import CommandError
from nvmeof.target.events import AsyncEvents
from nvmeof.target.features import Features

NAMESPACES_CHANGED, DISCOVERY_CHANGED = 0x04_00_02, 0x70_F0_02
UNRELIABLE, NO_SPARE = 0x02_00_01, 0x02_02_01
CHANGED_NAMESPACES, DISCOVERY, SMART = 0x04, 0x70, 0x02
SPARE, RELIABILITY, READ_ONLY = 1, 4, 8


class Heard:
    """Events whose completions are kept."""

    def __init__(self) -> None:
        self.features = Features(0)
        self.events = AsyncEvents(self.features)
        self.completions: list[tuple[int, int, int]] = []
        self.events.complete = lambda cid, status, dw0: self.completions.append((cid, status, dw0))

    def take(self) -> list[tuple[int, int, int]]:
        taken, self.completions = self.completions, []
        return taken


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_a_request_waits_for_an_event(heard: Heard) -> None:
    heard.events.request(9)
    assert not heard.take()
    heard.events.namespace_changed()
    assert heard.take() == [(9, 0, NAMESPACES_CHANGED)]
    assert not heard.events.requests


def test_an_event_waits_for_a_request_and_is_told_once(heard: Heard) -> None:
    heard.events.namespace_changed()
    heard.events.namespace_changed()
    heard.events.request(1)
    heard.events.request(2)
    assert heard.take() == [(1, 0, NAMESPACES_CHANGED)]


def test_the_same_kind_is_masked_until_its_page_is_read(heard: Heard) -> None:
    for cid in (1, 2, 3):
        heard.events.request(cid)
    heard.events.namespace_changed()
    heard.events.namespace_changed()
    assert heard.take() == [(1, 0, NAMESPACES_CHANGED)]
    heard.events.cleared(SMART)
    assert not heard.take()
    heard.events.cleared(CHANGED_NAMESPACES)
    assert not heard.take(), "the page has told the host about the second change"
    heard.events.namespace_changed()
    assert heard.take() == [(2, 0, NAMESPACES_CHANGED)]


def test_kinds_do_not_mask_each_other(heard: Heard) -> None:
    for cid in (1, 2, 3):
        heard.events.request(cid)
    heard.events.namespace_changed()
    heard.events.health_changed(RELIABILITY)
    heard.events.discovery_changed()
    assert heard.take() == [(1, 0, NAMESPACES_CHANGED), (2, 0, UNRELIABLE), (3, 0, DISCOVERY_CHANGED)]


def test_too_many_requests(heard: Heard) -> None:
    for cid in range(ASYNC_EVENT_REQUESTS_MAX):
        heard.events.request(cid)
    with pytest.raises(CommandError) as refused:
        heard.events.request(99)
    assert refused.value.status == 0x4105
    assert len(heard.events.requests) == ASYNC_EVENT_REQUESTS_MAX


def test_abort_completes_one_request(heard: Heard) -> None:
    heard.events.request(1)
    heard.events.request(2)
    assert heard.events.abort(1)
    assert not heard.events.abort(1)
    assert heard.take() == [(1, 0x07, 0)]
    heard.events.namespace_changed()
    assert heard.take() == [(2, 0, NAMESPACES_CHANGED)]


def test_a_reset_aborts_without_completions_and_forgets(heard: Heard) -> None:
    heard.events.request(1)
    heard.events.namespace_changed()
    heard.events.request(2)
    heard.events.health_changed(RELIABILITY)
    heard.take()
    heard.events.namespace_changed()
    heard.events.request(3)
    heard.events.abort_all()
    assert not heard.take()
    heard.events.request(4)
    assert not heard.take()
    heard.events.namespace_changed()
    assert heard.take() == [(4, 0, NAMESPACES_CHANGED)]


def test_a_lost_queue_hears_nothing(heard: Heard) -> None:
    heard.events.request(1)
    heard.events.lost()
    heard.events.namespace_changed()
    assert not heard.take()


@pytest.mark.parametrize(
    ("warnings", "told"),
    [(SPARE, [NO_SPARE]), (RELIABILITY, [UNRELIABLE]), (READ_ONLY, [UNRELIABLE]), (SPARE | READ_ONLY, [NO_SPARE])],
)
def test_a_health_warning_is_told_when_it_starts(heard: Heard, warnings: int, told: list[int]) -> None:
    heard.events.request(1)
    heard.events.request(2)
    heard.events.health_changed(warnings)
    heard.events.health_changed(warnings)
    assert [dw0 for _, _, dw0 in heard.take()] == told
    heard.events.cleared(SMART)
    heard.events.health_changed(warnings)
    assert not heard.take(), "it did not start again"
    heard.events.health_changed(0)
    heard.events.health_changed(warnings)
    assert len(heard.take()) == 1


def test_only_what_is_switched_on_is_told(heard: Heard) -> None:
    for cid in (1, 2, 3):
        heard.events.request(cid)
    heard.features.async_events = SPARE
    heard.events.namespace_changed()
    heard.events.discovery_changed()
    heard.events.health_changed(SPARE | RELIABILITY)
    assert heard.take() == [(1, 0, NO_SPARE)]
    heard.events.cleared(SMART)
    heard.features.async_events = SPARE | RELIABILITY
    heard.events.health_changed(SPARE | RELIABILITY)
    assert heard.take() == [(2, 0, UNRELIABLE)], "a condition that holds when its event is switched on is told then"
