"""Asynchronous events of one controller (NVMe Base 2.0, section 5.2).

An event is reported once; further ones with the same log page are kept back until the host has read that page without
Retain Asynchronous Event. Reading it also settles what was kept back, since the page told the host about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nvmeof.limits import ASYNC_EVENT_REQUESTS_MAX
from nvmeof.spec.command import AsyncEventType, LogPage, NoticeEvent, SmartEvent
from nvmeof.spec.identify import AsyncEventBit
from nvmeof.spec.logpage import ASYNC_EVENT, AsyncEvent, SmartWarning
from nvmeof.spec.status import DNR, Status
from nvmeof.target.command import CommandError
from nvmeof.target.logs import critical_warning

if TYPE_CHECKING:
    from nvmeof.target.features import Features
    from nvmeof.target.subsystem import Subsystem

_SMART_EVENTS = {
    SmartWarning.SPARE: SmartEvent.SPARE_BELOW_THRESHOLD,
    SmartWarning.TEMPERATURE: SmartEvent.TEMPERATURE_THRESHOLD,
    SmartWarning.RELIABILITY: SmartEvent.RELIABILITY,
    SmartWarning.READ_ONLY: SmartEvent.RELIABILITY,
}


def _unheard(cid: int, status: int, dw0: int) -> None:
    """Nobody takes completions: the queue is not there yet, or not any more."""


class AsyncEvents:
    """Holds Asynchronous Event Request commands by CID and what has happened but was not reported.

    ``complete(cid, status, dw0)`` is how the admin queue answers; it sets it.
    """

    def __init__(self, features: Features) -> None:
        self.complete: Callable[[int, int, int], None] = _unheard
        self.requests: list[int] = []
        """CIDs, in order of arrival."""
        self._features = features
        self._pending: list[AsyncEvent] = []
        self._masked: set[int] = set()
        self._warned = 0

    def request(self, cid: int) -> None:
        """An Asynchronous Event Request; it completes when there is something to say. Raises CommandError."""
        if len(self.requests) >= ASYNC_EVENT_REQUESTS_MAX:
            raise CommandError(Status.ASYNC_EVENT_LIMIT_EXCEEDED | DNR)
        self.requests.append(cid)
        self._report()

    def abort(self, cid: int) -> bool:
        """Complete a request with Command Abort Requested. False: there is none with that CID."""
        if cid not in self.requests:
            return False
        self.requests.remove(cid)
        self.complete(cid, Status.ABORT_REQUESTED, 0)
        return True

    def abort_all(self) -> None:
        """Controller reset: requests are aborted and shall not complete (section 5.2); events are forgotten."""
        self.requests.clear()
        self._pending.clear()
        self._masked.clear()
        self._warned = 0

    def lost(self) -> None:
        """The admin queue is gone."""
        self.complete = _unheard
        self.abort_all()

    # --- what happens -------------------------------------------------------------------------------------------------

    def namespace_changed(self) -> None:
        """A namespace came, went or changed; the Changed Namespace List says which."""
        if self._features.async_events & AsyncEventBit.NAMESPACE_ATTRIBUTE:
            self._raise(AsyncEventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogPage.CHANGED_NAMESPACES)

    def discovery_changed(self) -> None:
        """The Discovery log page differs from what it was."""
        if self._features.async_events & AsyncEventBit.DISCOVERY_LOG:
            self._raise(AsyncEventType.NOTICE, NoticeEvent.DISCOVERY_LOG_CHANGED, LogPage.DISCOVERY)

    def health_changed(self, warnings: int) -> None:
        """``warnings`` are the critical warnings that hold now; each is reported when it starts to.

        One that was switched off is as good as not there: it is reported when it is switched on and still holds
        (section 5.27.1.8).
        """
        warnings &= self._features.async_events & 0xFF
        for warning, event in _SMART_EVENTS.items():
            if warning & warnings & ~self._warned:
                self._raise(AsyncEventType.SMART, event, LogPage.SMART)
        self._warned = warnings

    def check(self, subsystem: Subsystem) -> None:
        """Look at the health of the volumes; called about once a second."""
        self.health_changed(critical_warning(subsystem))

    def cleared(self, log_page: int) -> None:
        """The host has read a log page without retaining its event."""
        self._masked.discard(log_page)
        self._pending = [event for event in self._pending if event.log_page != log_page]

    def _raise(self, event_type: int, info: int, log_page: int) -> None:
        event = AsyncEvent(event_type, info, log_page)
        if event not in self._pending:
            self._pending.append(event)
            self._report()

    def _report(self) -> None:
        for event in list(self._pending):
            if not self.requests:
                return
            if event.log_page not in self._masked:
                self._pending.remove(event)
                self._masked.add(event.log_page)
                self.complete(self.requests.pop(0), Status.SUCCESS, ASYNC_EVENT.encode(event))
