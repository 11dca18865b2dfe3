"""The error information log: newest first, bounded, counting on."""

from __future__ import annotations

import struct

from nvmeof.limits import ERROR_LOG_ENTRIES
from nvmeof.target.errorlog import ErrorLog

ENTRY = struct.Struct("<QHHHHQIBB")


def test_an_entry_is_laid_out_as_in_figure_206() -> None:
    log = ErrorLog()
    log.add(qid=3, cid=0x1234, status=0x4080, nsid=7, lba=1 << 40, location=0x0228)
    assert ENTRY.unpack_from(log.encode()) == (1, 3, 0x1234, 0x8100, 0x0228, 1 << 40, 7, 0, 3)
    assert not any(log.encode()[64:])


def test_newest_first_and_no_more_than_the_bound() -> None:
    log = ErrorLog()
    for cid in range(ERROR_LOG_ENTRIES + 5):
        log.add(0, cid, 0x4001, 0, 0, 0xFFFF)
    page = log.encode()
    assert len(page) == 64 * ERROR_LOG_ENTRIES
    entries = [ENTRY.unpack_from(page, at)[:3] for at in range(0, len(page), 64)]
    assert entries[0] == (ERROR_LOG_ENTRIES + 5, 0, ERROR_LOG_ENTRIES + 4)
    assert entries[-1] == (6, 0, 5)
    assert log.count == ERROR_LOG_ENTRIES + 5
