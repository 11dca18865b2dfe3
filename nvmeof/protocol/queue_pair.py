"""One NVMe/TCP connection without I/O: what both roles share.

The transport asks ``get_buffer`` where the next bytes go, reports them with ``received``, sends what ``take_output``
returns and says ``drained`` when none of it is referenced any more. ``tick`` is called about once a second.

Framing. PDUs arrive in one scratch buffer and are handled in place. A data PDU whose payload is not yet there makes
``get_buffer`` hand out the rest of the payload's own destination, so a large payload is copied by the kernel only.

Output. Headers and small payloads are packed into a leased slab; one wake-up's output is one buffer, sometimes two.
The transport must not reuse it before it is sent: uvloop keeps a memoryview until then. Hence ``drained``.

Errors. A peer's fault is raised as RemoteProtocolError anywhere below ``received`` and turned into a TermReq in
``_terminate``, the only place. Anything else that escapes ``received`` is a bug of ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

from nvmeof.errors import RemoteProtocolError
from nvmeof.limits import (
    HANDSHAKE_SECONDS,
    OUTPUT_BYTES_MAX,
    OUTPUT_SECONDS,
    PDU_SECONDS,
    SCRATCH_BYTES,
    TERMINATE_SECONDS,
)
from nvmeof.protocol.digest import CRC_OF_DIGESTED, PUT_DIGEST, READ_DIGEST, crc32c
from nvmeof.protocol.states import RECEIVE, SEND, TRANSITIONS, Role, State, receivable
from nvmeof.spec.pdu import (
    DATA_HLEN,
    DIGEST_SIZE,
    HEADER_SIZE,
    IC_SIZE,
    PDO_OFFSET,
    TERM_REQ,
    TERM_REQ_DATA_MAX,
    TERM_REQ_HLEN,
    UNPACK_DATA,
    UNPACK_HEADER,
    FatalErrorStatus,
    PduFlag,
    PduType,
    TermReq,
)

HDGST = int(PduFlag.HDGST)
DDGST = int(PduFlag.DDGST)
Handler = Callable[[int, int, int, int, int, int], int]
"""Handle the PDU at scratch offset ``start``: (start, available, flags, hlen, pdo, plen) -> bytes used, 0 = wait."""


class Leases(Protocol):
    """Where slabs come from (transport.buffers.BufferPool)."""

    def lease(self) -> memoryview: ...

    def release(self, slab: memoryview) -> None: ...


def aligned(size: int, alignment: int) -> int:
    """``size`` rounded up."""
    return -(-size // alignment) * alignment


class QueuePair(ABC):
    """Framing, digests, payload landing, output and time limits of one connection, either role."""

    # What a command touches: CPython 3.11 is slower at the attributes of an instance with more than 30 of them
    # (a 4 KiB read with all of these in slots: 0.84 us besides the volume and the socket, else 0.95).
    __slots__ = (
        "__dict__", "_flushed", "_handlers", "_receiving", "_scratch", "_slab", "_slab_size", "_used", "data_digest",
        "header_digest", "output_bytes", "state",
    )  # fmt: skip
    role: ClassVar[Role]
    term_req_sent: ClassVar[PduType]
    term_req_received: ClassVar[PduType]

    def __init__(self, leases: Leases, now: float) -> None:
        self.state = State.NEW
        self.failure: RemoteProtocolError | None = None
        """What the peer did wrong, once it did."""
        self.peer_failure: tuple[int, int, bytes] | None = None
        """What the peer says we did wrong: FES, FEI and the header it returned to us."""
        self.stalled = ""
        """Which time limit ended the connection, if one did."""
        self.header_digest = False
        self.data_digest = False
        self.output_bytes = 0
        """Bytes queued here and in the transport, plus ``held_bytes``; at OUTPUT_BYTES_MAX commands wait."""
        self.held_bytes = 0
        self.blocked = False
        """Commands wait in the scratch until output drains: stop reading, call ``resume`` after ``drained``."""
        self.notify: Callable[[], None] = lambda: None
        """Called when output appears outside ``received``; the transport sets it."""
        self.heard = now
        """When the last byte came."""
        self._leases = leases
        self._now = now
        self._scratch_lease = leases.lease()
        self._scratch = self._scratch_lease[:SCRATCH_BYTES]
        self._end = 0
        self._receiving = False
        self._handlers: dict[int, Handler] = {}
        self._landing: memoryview | None = None
        self._landed: memoryview | None = None
        self._slab = memoryview(b"")
        self._slab_size = 0
        self._used = 0
        self._flushed = 0
        self._output: list[memoryview] = []
        self._to_release: list[memoryview] = []
        self._sending: list[memoryview] = []
        self._state_deadline = now + HANDSHAKE_SECONDS
        self._pdu_deadline = 0.0
        self._output_deadline = 0.0
        self._set_state(State.NEW)

    # --- the transport's side ---------------------------------------------------------------------------------------

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; never empty unless ``blocked``."""
        if self._landing is not None:
            return self._landing
        return self._scratch[self._end :] if self._end else self._scratch

    def received(self, nbytes: int, now: float) -> None:
        """``nbytes`` were put into the buffer that ``get_buffer`` returned last."""
        self._now = self.heard = now
        if self.state is State.TERMINATING or self.state is State.CLOSED:
            return
        if self._landing is not None:
            if nbytes < len(self._landing):
                self._landing = self._landing[nbytes:]
                return
            self._landing = None
        else:
            self._end += nbytes
        self.resume()

    def resume(self) -> None:
        """Handle what lies in the scratch: after new bytes, and again once output has drained."""
        self.blocked = False
        self._receiving = True
        try:
            self._parse()
        except RemoteProtocolError as error:
            if self.state is not State.CLOSED:
                self._terminate(error)
        finally:
            self._receiving = False

    def take_output(self) -> list[memoryview]:
        """Buffers to send in order. They must stay untouched until ``drained``."""
        output = self._output
        if self._used > self._flushed:
            output.append(self._slab[self._flushed : self._used])
            self._flushed = self._used
        if not output:
            return output
        self._output = []
        if self._to_release:
            self._sending += self._to_release
            self._to_release.clear()
        if not self._output_deadline:
            self._output_deadline = self._now + OUTPUT_SECONDS
        return output

    def drained(self) -> None:
        """Nothing that ``take_output`` returned so far is referenced any more."""
        self._output_deadline = 0.0
        self.output_bytes = self.held_bytes + self._used - self._flushed + sum(map(len, self._output))
        if self._sending:
            for slab in self._sending:
                self._leases.release(slab)
            self._sending.clear()
        if self._slab_size and self._flushed == self._used and not self._output:
            self._leases.release(self._slab)
            self._slab_size = self._used = self._flushed = 0
            self._slab = memoryview(b"")

    def progressed(self, now: float) -> None:
        """The peer took some of the output."""
        self._now = now
        if self._output_deadline:
            self._output_deadline = now + OUTPUT_SECONDS

    def connection_lost(self) -> None:
        """The socket is gone. Gives back every lease."""
        self._set_state(State.CLOSED)
        self._abandon()
        self.take_output()
        self.drained()
        self._leases.release(self._scratch_lease)

    def tick(self, now: float) -> None:
        """Enforce the time limits. Afterwards ``state`` may be CLOSED, and ``stalled`` says why."""
        self._now = now
        if self._state_deadline and now > self._state_deadline:
            self._stall(f"no progress in state {self.state.name}")
        elif self._pdu_deadline and now > self._pdu_deadline:
            self._stall(f"a PDU was not completed within {PDU_SECONDS:.0f} s")
        elif self._output_deadline and now > self._output_deadline:
            self._stall(f"the peer took no output for {OUTPUT_SECONDS:.0f} s")

    def postpone(self, seconds: float) -> None:
        """Nobody looked at this connection for ``seconds``: they count against no time limit. Call before ``tick``."""
        if self._state_deadline:
            self._state_deadline += seconds
        if self._pdu_deadline:
            self._pdu_deadline += seconds
        if self._output_deadline:
            self._output_deadline += seconds

    def established(self) -> None:
        """The owner is satisfied (Connect succeeded): the handshake's time limit no longer applies."""
        self._state_deadline = 0.0

    def suspend_handshake(self) -> None:
        """It is the owner, not the peer, who takes time."""
        self._state_deadline = 0.0

    def resume_handshake(self, now: float) -> None:
        """The peer must connect within the time limit, from now."""
        self._state_deadline = now + HANDSHAKE_SECONDS

    # --- framing ----------------------------------------------------------------------------------------------------

    def _parse(self) -> None:
        start, end, scratch = 0, self._end, self._scratch
        if self._landed is not None:
            start = self._finish_landing()
            if self._landed is not None:
                return
        while end - start >= HEADER_SIZE:
            if self.output_bytes >= OUTPUT_BYTES_MAX and self._may_block(scratch[start]):
                self.blocked = True
                break
            pdu_type, flags, hlen, pdo, plen = UNPACK_HEADER(scratch, start)
            handler = self._handlers.get(pdu_type)
            if handler is None:
                if self.state is State.CLOSED:
                    break
                raise self._unexpected(pdu_type, start, end)
            try:
                consumed = handler(start, end - start, flags, hlen, pdo, plen)
            except RemoteProtocolError as error:
                error.header = error.header or self._header_bytes(start, end - start)
                raise
            if not consumed:
                break
            start += consumed
        self._keep(start, end)

    def _keep(self, start: int, end: int) -> None:
        """Move the incomplete PDU at ``start`` to the front and time it."""
        if self.state is State.CLOSED or self.state is State.TERMINATING:
            self._end = 0
            return
        remaining = end - start
        if start and remaining:
            self._scratch[:remaining] = self._scratch[start:end]
        self._end = remaining
        if self._landed is None and (not remaining or self.blocked):
            self._pdu_deadline = 0.0
        elif start or not self._pdu_deadline:
            self._pdu_deadline = self._now + PDU_SECONDS

    def _may_block(self, pdu_type: int) -> bool:
        """Whether this PDU may wait for output to drain. Data that was asked for may not: others wait for it."""
        return pdu_type == PduType.CAPSULE_CMD

    def _initialize_complete(self, name: str, start: int, available: int, hlen: int, plen: int) -> bool:
        """Check the lengths of an ICReq or ICResp. False: more bytes are needed."""
        if hlen != IC_SIZE:
            raise self._field_error(f"{name} HLEN {hlen}, must be {IC_SIZE}", 2, start, available)
        if plen != IC_SIZE:
            raise self._field_error(f"{name} PLEN {plen}, must be {IC_SIZE}", 4, start, available)
        return available >= IC_SIZE

    def _header_complete(self, start: int, available: int, flags: int, hlen: int) -> bool:
        """Verify the header digest when one is in use. False: more bytes are needed."""
        if not self.header_digest:
            return available >= hlen
        if available < hlen + DIGEST_SIZE:
            return False
        if crc32c(self._scratch[start : start + hlen + DIGEST_SIZE]) != CRC_OF_DIGESTED:
            received = READ_DIGEST(self._scratch, start + hlen)[0]
            raise RemoteProtocolError(
                f"header digest {received:#010x} does not match the header",
                fatal_error_status=FatalErrorStatus.HEADER_DIGEST_ERROR,
                fatal_error_information=received,
                header=self._header_bytes(start, hlen),
            )
        if not flags & HDGST:
            raise self._field_error("HDGSTF is clear though header digests are in use", 1, start, hlen)
        return True

    def _on_data(self, start: int, available: int, flags: int, hlen: int, pdo: int, plen: int) -> int:
        """H2CData or C2HData: the payload is delivered from the scratch if it is all there, and landed if not."""
        if hlen != DATA_HLEN:
            raise self._field_error(f"HLEN {hlen}, must be {DATA_HLEN}", 2, start, available)
        if not self._header_complete(start, available, flags, hlen):
            return 0
        cccid, ttag, datao, datal = UNPACK_DATA(self._scratch, start + HEADER_SIZE)
        digest_size = DIGEST_SIZE if self.data_digest else 0
        if bool(flags & DDGST) != self.data_digest:
            raise self._field_error("DDGSTF does not match what was negotiated", 1, start, hlen)
        self._check_pdo(start, hlen, pdo)
        if plen != pdo + datal + digest_size:
            raise self._field_error(f"PLEN {plen}, PDO {pdo} and DATAL {datal} disagree", 4, start, hlen)
        if available < pdo or (available < plen <= SCRATCH_BYTES // 2 and self._worth_waiting(ttag, datal)):
            return 0
        self._accept_data(start, flags, cccid, ttag, datao, datal)
        if available >= plen:
            view = self._scratch[start + pdo : start + pdo + datal]
            good = not digest_size or crc32c(view) == READ_DIGEST(self._scratch, start + pdo + datal)[0]
            self._data_in_scratch(view, good)
            return plen
        return pdo + self._start_landing(start + pdo, available - pdo, datal)

    def _start_landing(self, payload: int, have: int, length: int) -> int:
        self._landed = buffer = self._data_destination(length)
        have = min(have, length)
        buffer[:have] = self._scratch[payload : payload + have]
        if have < length:
            self._landing = buffer[have:]
        return have

    def _finish_landing(self) -> int:
        """The payload is complete; its digest, if any, comes through the scratch. Returns bytes used there."""
        assert self._landed is not None
        landed, used = self._landed, 0
        if self._landing is not None:
            return 0
        if self.data_digest:
            if self._end < DIGEST_SIZE:
                return 0
            used = DIGEST_SIZE
            good = crc32c(landed) == READ_DIGEST(self._scratch, 0)[0]
        else:
            good = True
        self._landed = None
        self._pdu_deadline = 0.0
        self._data_landed(landed, good)
        return used

    def _on_term_req(self, start: int, available: int, flags: int, hlen: int, pdo: int, plen: int) -> int:
        if hlen != TERM_REQ_HLEN or not TERM_REQ_HLEN <= plen <= TERM_REQ_HLEN + TERM_REQ_DATA_MAX:
            self._set_state(State.CLOSED)
            return available
        if available < plen:
            return 0
        term = TERM_REQ.decode(self._scratch, start)
        self.peer_failure = (term.fes, term.fei, bytes(self._scratch[start + hlen : start + plen]))
        self._transition(RECEIVE, self.term_req_received)
        self._abandon()
        return available

    def _check_pdo(self, start: int, hlen: int, pdo: int) -> None:
        header = hlen + (DIGEST_SIZE if self.header_digest else 0)
        if pdo < header or pdo % self._alignment_received():
            raise self._field_error(f"PDO {pdo} is before the data or not aligned", PDO_OFFSET, start, hlen)

    # --- output -----------------------------------------------------------------------------------------------------

    def _room(self, nbytes: int) -> int:
        """Offset in the slab with ``nbytes`` free behind it."""
        if self._used + nbytes > self._slab_size:
            self._next_slab()
        return self._used

    def _next_slab(self) -> None:
        if self._slab_size:
            self._close_segment()
            self._to_release.append(self._slab)
        self._slab = self._leases.lease()
        self._slab_size = len(self._slab)
        self._used = self._flushed = 0

    def _close_segment(self) -> None:
        if self._used > self._flushed:
            self._output.append(self._slab[self._flushed : self._used])
            self._flushed = self._used

    def _commit(self, nbytes: int) -> None:
        """The next ``nbytes`` of the slab are output."""
        self._used += nbytes
        self.output_bytes += nbytes
        if not self._receiving:
            self.notify()

    def _put_header_digest(self, offset: int, hlen: int) -> None:
        PUT_DIGEST(self._slab, offset + hlen, crc32c(self._slab[offset : offset + hlen]))

    def hold(self, nbytes: int) -> None:
        """The owner works on ``nbytes`` for this connection (negative: no longer)."""
        self.held_bytes += nbytes
        self.output_bytes += nbytes
        if nbytes < 0 and self.blocked:
            self.notify()

    def close(self) -> None:
        """No more input is handled. What was queued may still be sent."""
        self._set_state(State.CLOSED)
        self._abandon()

    # --- errors and states --------------------------------------------------------------------------------------------

    def _field_error(self, message: str, offset: int, start: int, size: int) -> RemoteProtocolError:
        """Invalid PDU Header Field; ``offset`` is the byte of the field in the header."""
        return RemoteProtocolError(
            message,
            fatal_error_status=FatalErrorStatus.INVALID_HEADER_FIELD,
            fatal_error_information=offset,
            header=self._header_bytes(start, size),
        )

    def _header_bytes(self, start: int, size: int) -> bytes:
        """The offending header as received: HLEN bytes, no more than arrived and than a TermReq can carry."""
        size = min(size, max(self._scratch[start + 2], HEADER_SIZE), TERM_REQ_DATA_MAX, SCRATCH_BYTES - start)
        return bytes(self._scratch[start : start + size])

    def _unexpected(self, pdu_type: int, start: int, end: int) -> RemoteProtocolError:
        if pdu_type not in receivable(self.role):
            return self._field_error(
                f"PDU type {pdu_type:#04x} is not one a {self.role.name.lower()} receives", 0, start, end - start
            )
        return RemoteProtocolError(
            f"{PduType(pdu_type).name} in state {self.state.name}",
            fatal_error_status=FatalErrorStatus.PDU_SEQUENCE_ERROR,
            header=self._header_bytes(start, end - start),
        )

    def _terminate(self, error: RemoteProtocolError) -> None:
        """The one place where a peer's fault becomes bytes: section 3.5.1, TermReq and then close."""
        self.failure = error
        self._abandon()
        header = error.header[:TERM_REQ_DATA_MAX]
        plen = TERM_REQ_HLEN + len(header)
        offset = self._room(plen)
        term = TermReq(
            self.term_req_sent,
            0,
            TERM_REQ_HLEN,
            0,
            plen,
            error.fatal_error_status,
            error.fatal_error_information & 0xFFFF_FFFF,
        )
        self._slab[offset : offset + plen] = TERM_REQ.encode(term) + header
        self._transition(SEND, self.term_req_sent)
        self._state_deadline = self._now + TERMINATE_SECONDS
        self._commit(plen)

    def _stall(self, why: str) -> None:
        self.stalled = why
        self._abandon()
        self._set_state(State.CLOSED)

    def _abandon(self) -> None:
        """Forget input in progress; subclasses give back what they hold."""
        self._landing = self._landed = None
        self._end = 0
        self._pdu_deadline = 0.0
        self.blocked = False

    def _transition(self, direction: str, pdu_type: PduType) -> None:
        self._set_state(TRANSITIONS[self.role][self.state][direction, pdu_type])

    def _set_state(self, state: State) -> None:
        self.state = state
        allowed = receivable(self.role, state)
        self._handlers = {int(kind): handler for kind, handler in self._all_handlers().items() if kind in allowed}

    # --- what a role adds ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _all_handlers(self) -> dict[PduType, Handler]:
        """Handler of every type this role can receive."""

    @abstractmethod
    def _alignment_received(self) -> int:
        """Bytes to which the data in PDUs sent to us is aligned (CPDA or HPDA)."""

    def _worth_waiting(self, ttag: int, datal: int) -> bool:
        """Whether a data PDU that fits into the scratch is better handled there once it is whole."""
        return False

    @abstractmethod
    def _accept_data(self, start: int, flags: int, cccid: int, ttag: int, datao: int, datal: int) -> None:
        """Check a data PDU against what was asked for and remember it. Called once a PDU."""

    @abstractmethod
    def _data_in_scratch(self, view: memoryview, good: bool) -> None:
        """The accepted payload, valid during the call. ``good`` is False after a data digest error."""

    @abstractmethod
    def _data_destination(self, length: int) -> memoryview:
        """``length`` bytes where the accepted payload shall land."""

    @abstractmethod
    def _data_landed(self, view: memoryview, good: bool) -> None:
        """The destination is full."""
