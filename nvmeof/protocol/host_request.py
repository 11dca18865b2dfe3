"""A command in flight at the host's end of a connection."""

from __future__ import annotations

from typing import Any


class Request:
    """One command: what it needs while in flight, and its completion afterwards.

    ``status`` is the 15-bit status value; ``received`` counts the bytes of read data that came, in ``data_in``. What
    stands in the class is what most commands never change: setting it for each costs as much as all the rest.
    """

    received = 0
    asked = 0
    """Bytes of write data sent or on their way."""
    corrupt = False
    ended = False
    """C2HData with LAST came."""
    partial = False
    """Success with less read data than was asked for is acceptable."""
    r2ts = 0
    r2t_round = -1
    status = 0
    dw0 = 0
    dw1 = 0

    def __init__(
        self,
        cid: int,
        token: Any,
        opcode: int,
        data_out: memoryview | None,
        data_in: memoryview | None,
        deadline: float,
    ) -> None:
        self.cid = cid
        self.token = token
        self.opcode = opcode
        self.data_out = data_out
        self.data_in = data_in
        self.out_length = len(data_out) if data_out is not None else 0
        self.in_length = len(data_in) if data_in is not None else 0
        self.deadline = deadline
