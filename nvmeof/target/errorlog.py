"""The error information log of one controller (NVMe Base 2.0, section 5.16.1.2)."""

from __future__ import annotations

from collections import deque

from nvmeof.limits import ERROR_LOG_ENTRIES
from nvmeof.spec.fabrics import TransportType
from nvmeof.spec.logpage import ERROR_ENTRY, ERROR_ENTRY_SIZE, ErrorEntry


class ErrorLog:
    """The last ERROR_LOG_ENTRIES failed commands. ``count`` counts all of them since the controller was made."""

    def __init__(self) -> None:
        self.count = 0
        self._entries: deque[ErrorEntry] = deque(maxlen=ERROR_LOG_ENTRIES)

    def add(self, qid: int, cid: int, status: int, nsid: int, lba: int, location: int) -> None:
        """Enter a failed command. ``status`` is the 15-bit value, ``location`` the Parameter Error Location."""
        self.count += 1
        self._entries.appendleft(
            ErrorEntry(
                error_count=self.count,
                sqid=qid,
                cid=cid,
                status=status << 1,
                parameter_error=location,
                lba=lba,
                nsid=nsid,
                trtype=TransportType.TCP,
            )
        )

    def encode(self) -> bytes:
        """The log page, newest entry first; an error count of zero marks the entries that are not used."""
        entries = b"".join(map(ERROR_ENTRY.encode, self._entries))
        return entries.ljust(ERROR_LOG_ENTRIES * ERROR_ENTRY_SIZE, b"\0")
