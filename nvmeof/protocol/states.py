"""Every transition of an NVMe/TCP connection, for both roles, in one table.

NVMe/TCP Transport Specification 1.0, sections 3.2 and 3.5. An event that is not listed for the current state is a
PDU Sequence Error of whoever sent the PDU.
"""

from __future__ import annotations

from enum import Enum, auto

from nvmeof.spec.pdu import PduType


class Role(Enum):
    CONTROLLER = auto()
    HOST = auto()


class State(Enum):
    NEW = auto()
    """Nothing was exchanged. The host speaks first."""
    IC_SENT = auto()
    """Host only: ICReq is out; woken by ICResp."""
    READY = auto()
    """Capsules and data flow."""
    TERMINATING = auto()
    """A TermReq went out; woken by the peer's close or by the time limit. Input is discarded."""
    CLOSED = auto()
    """Over. Nothing is sent or received."""


Event = tuple[str, PduType]
SEND, RECEIVE = "send", "receive"

TRANSITIONS: dict[Role, dict[State, dict[Event, State]]] = {
    Role.CONTROLLER: {
        State.NEW: {
            (RECEIVE, PduType.ICREQ): State.NEW,
            (SEND, PduType.ICRESP): State.READY,
            (RECEIVE, PduType.H2C_TERM_REQ): State.CLOSED,
            (SEND, PduType.C2H_TERM_REQ): State.TERMINATING,
        },
        State.READY: {
            (RECEIVE, PduType.CAPSULE_CMD): State.READY,
            (RECEIVE, PduType.H2C_DATA): State.READY,
            (SEND, PduType.CAPSULE_RESP): State.READY,
            (SEND, PduType.C2H_DATA): State.READY,
            (SEND, PduType.R2T): State.READY,
            (RECEIVE, PduType.H2C_TERM_REQ): State.CLOSED,
            (SEND, PduType.C2H_TERM_REQ): State.TERMINATING,
        },
        State.TERMINATING: {},
        State.CLOSED: {},
    },
    Role.HOST: {
        State.NEW: {(SEND, PduType.ICREQ): State.IC_SENT},
        State.IC_SENT: {
            (RECEIVE, PduType.ICRESP): State.READY,
            (RECEIVE, PduType.C2H_TERM_REQ): State.CLOSED,
            (SEND, PduType.H2C_TERM_REQ): State.TERMINATING,
        },
        State.READY: {
            (SEND, PduType.CAPSULE_CMD): State.READY,
            (SEND, PduType.H2C_DATA): State.READY,
            (RECEIVE, PduType.CAPSULE_RESP): State.READY,
            (RECEIVE, PduType.C2H_DATA): State.READY,
            (RECEIVE, PduType.R2T): State.READY,
            (RECEIVE, PduType.C2H_TERM_REQ): State.CLOSED,
            (SEND, PduType.H2C_TERM_REQ): State.TERMINATING,
        },
        State.TERMINATING: {},
        State.CLOSED: {},
    },
}


def receivable(role: Role, state: State | None = None) -> frozenset[PduType]:
    """PDU types that ``role`` may receive in ``state``, or in any state."""
    table = TRANSITIONS[role]
    states = table.values() if state is None else [table[state]]
    return frozenset(pdu_type for events in states for direction, pdu_type in events if direction == RECEIVE)
