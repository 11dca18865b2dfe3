"""The table of transitions against the PDU directions of the specification."""

from __future__ import annotations

import pytest

from nvmeof.protocol.states import RECEIVE, SEND, TRANSITIONS, Role, State, receivable
from nvmeof.spec.pdu import PduType

TO_CONTROLLER = {PduType.ICREQ, PduType.H2C_TERM_REQ, PduType.CAPSULE_CMD, PduType.H2C_DATA}


def test_each_type_goes_one_way() -> None:
    assert receivable(Role.CONTROLLER) == TO_CONTROLLER
    assert receivable(Role.HOST) == set(PduType) - TO_CONTROLLER


@pytest.mark.parametrize("role", list(Role))
def test_what_one_role_sends_the_other_may_receive(role: Role) -> None:
    other = Role.HOST if role is Role.CONTROLLER else Role.CONTROLLER
    sent = {kind for events in TRANSITIONS[role].values() for way, kind in events if way == SEND}
    assert sent == receivable(other)


@pytest.mark.parametrize("role", list(Role))
def test_nothing_is_exchanged_once_terminating_or_closed(role: Role) -> None:
    assert not TRANSITIONS[role][State.TERMINATING]
    assert not TRANSITIONS[role][State.CLOSED]


@pytest.mark.parametrize("role", list(Role))
def test_every_state_that_receives_accepts_a_term_req(role: Role) -> None:
    term = PduType.H2C_TERM_REQ if role is Role.CONTROLLER else PduType.C2H_TERM_REQ
    for events in TRANSITIONS[role].values():
        if any(way == RECEIVE for way, _ in events):
            assert events[RECEIVE, term] is State.CLOSED
