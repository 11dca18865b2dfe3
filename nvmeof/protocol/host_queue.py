"""The host's end of one connection: commands out, data and completions in.

``submit`` queues one command; what is finished lies in ``completed`` after ``received``, and what never will be comes
from ``take_unfinished`` once the connection is over. Read data lands in the caller's buffer, write data is sent from
it: both stay borrowed until the command is finished or ``forget`` was called.

Flow control. At most ``capacity`` commands are in flight, one less than the submission queue has entries. A command
that is finished has left the queue, so the queue cannot overflow and SQHD need not be followed. That matters: SPDK
sets SUCCESS, which carries no SQHD, whether flow control is off or not.

A completion that says success before all data has moved would mean wrong bytes, so it is the controller's protocol
error; ``partial`` allows it for read data, since a feature may have less data than the buffer that was offered.
"""

from __future__ import annotations

import struct
from typing import Any

from nvmeof.errors import LocalProtocolError, RemoteProtocolError
from nvmeof.limits import (
    ADMIN_IN_CAPSULE_BYTES,
    ALIGNMENT_DWORDS_MAX,
    BULK_BYTES_MIN,
    BULK_WINDOW_BYTES,
    HANDSHAKE_SECONDS,
    HOST_COPY_BYTES_MAX,
    MAXH2CDATA_BYTES_MIN,
)
from nvmeof.protocol.digest import PUT_DIGEST, crc32c
from nvmeof.protocol.host_request import Request
from nvmeof.protocol.queue_pair import DDGST, HDGST, Handler, Leases, QueuePair, aligned
from nvmeof.protocol.states import RECEIVE, SEND, Role, State
from nvmeof.spec.command import PSDT_SGL, SGL_DATA_BLOCK_OFFSET, SGL_TRANSPORT_DATA_BLOCK
from nvmeof.spec.pdu import (
    CAPSULE_CMD_HLEN,
    CAPSULE_RESP_HLEN,
    DATA_HLEN,
    DIGEST_DATA_BIT,
    DIGEST_HEADER_BIT,
    DIGEST_SIZE,
    HEADER_SIZE,
    IC_SIZE,
    INITIALIZE_CONNECTION,
    PACK_DATA_INTO,
    UNPACK_DATA,
    UNPACK_RESP,
    FatalErrorStatus,
    InitializeConnection,
    PduFlag,
    PduType,
)
from nvmeof.spec.status import CODE_MASK, Status

LAST = int(PduFlag.LAST)
SUCCESS = int(PduFlag.SUCCESS)
CAPSULE_CMD = int(PduType.CAPSULE_CMD)
H2C_DATA = int(PduType.H2C_DATA)
CID_MAX = 0xFFFE
"""FFFFh means no particular command in the error log."""

# A CapsuleCmd header and the submission queue entry behind it: type, flags, hlen, pdo, plen; opcode, flags, cid, nsid,
# cdw2, cdw3, sgl_address, sgl_length, sgl_id, cdw10 to cdw15. A test compares it with the layouts.
PACK_CAPSULE_INTO = struct.Struct("<BBBBIBBHIII8xQI3xB6I").pack_into


class HostQueue(QueuePair):
    """Sends ICReq at once; then ``submit`` while ``ready`` and ``len(requests) < capacity``.

    ``digest``s are what is asked for; what the controller agreed to stands in ``header_digest`` and ``data_digest``
    once ``ready``, and is never more. ``hpda`` (dwords, 0's based) is the alignment asked of C2HData; ``maxr2t``
    (0's based) how many R2Ts a command may have outstanding.
    """

    role = Role.HOST
    term_req_sent = PduType.H2C_TERM_REQ
    term_req_received = PduType.C2H_TERM_REQ

    def __init__(
        self,
        leases: Leases,
        now: float,
        *,
        header_digest: bool = False,
        data_digest: bool = False,
        hpda: int = 0,
        maxr2t: int = 0,
        handshake_seconds: float = HANDSHAKE_SECONDS,
    ) -> None:
        super().__init__(leases, now)
        self.capacity = 1
        """Commands that may be in flight: Connect alone until the owner knows better."""
        self.in_capsule_bytes = ADMIN_IN_CAPSULE_BYTES
        self.maxh2cdata = 0
        self.requests: dict[int, Request] = {}
        self.completed: list[Request] = []
        self.sqhd = 0
        """SQHD of the last response capsule; FFFFh in that of Connect says flow control is off."""
        self._asked_digest = header_digest * DIGEST_HEADER_BIT | data_digest * DIGEST_DATA_BIT
        self._hpda = hpda
        self._maxr2t = maxr2t
        self._next_cid = 0
        self._current: Request | None = None
        self._current_flags = 0
        self._bulk = 0
        self._plain = False
        """C2HData has neither digests nor padding."""
        self._round = 0
        self._capsule_flags = self._data_flags = 0
        self._capsule_size = self._capsule_pdo = CAPSULE_CMD_HLEN
        self._data_pdo = DATA_HLEN
        self._response_size = CAPSULE_RESP_HLEN
        self._state_deadline = now + handshake_seconds
        request = InitializeConnection(PduType.ICREQ, 0, IC_SIZE, 0, IC_SIZE, 0, hpda, self._asked_digest, maxr2t)
        offset = self._room(IC_SIZE)
        self._slab[offset : offset + IC_SIZE] = INITIALIZE_CONNECTION.encode(request)
        self._commit(IC_SIZE)
        self._transition(SEND, PduType.ICREQ)

    @property
    def ready(self) -> bool:
        return self.state is State.READY

    # --- what the owner calls -----------------------------------------------------------------------------------------

    def submit(
        self,
        token: Any,
        deadline: float,
        opcode: int,
        nsid: int,
        cdw10: int = 0,
        cdw11: int = 0,
        cdw12: int = 0,
        cdw13: int = 0,
        cdw14: int = 0,
        cdw15: int = 0,
        data_out: memoryview | None = None,
        data_in: memoryview | None = None,
        partial: bool = False,
        cdw2: int = 0,
        cdw3: int = 0,
    ) -> int:
        """Queue a command and return its CID. ``token`` comes back in the Request.

        ``data_out`` and ``data_in`` are flat views of bytes (not both, not empty). Without an answer ``tick`` ends the
        connection after ``deadline``. In a Fabrics command ``nsid`` holds FCTYPE.
        """
        requests = self.requests
        if self.state is not State.READY or len(requests) >= self.capacity:
            raise LocalProtocolError(f"submit in state {self.state.name}, {len(requests)} of {self.capacity} in flight")
        cid = self._next_cid
        while cid in requests:
            cid = cid + 1 if cid < CID_MAX else 0
        self._next_cid = cid + 1 if cid < CID_MAX else 0
        request = Request(cid, token, opcode, data_out, data_in, deadline)
        if partial:
            request.partial = True
        size, flags, pdo, sgl_id = self._capsule_size, self._capsule_flags, 0, SGL_TRANSPORT_DATA_BLOCK
        length = request.out_length or request.in_length
        if data_out is not None and length <= self.in_capsule_bytes:
            request.asked = length
            flags, pdo, sgl_id = self._data_flags, self._capsule_pdo, SGL_DATA_BLOCK_OFFSET
            size = pdo + length + (DIGEST_SIZE if self.data_digest else 0)
            offset = self._room(pdo + min(length, HOST_COPY_BYTES_MAX) + DIGEST_SIZE)
        else:
            offset = self._used
            if offset + size > self._slab_size:
                offset = self._room(size)
            if request.in_length >= BULK_BYTES_MIN:
                self._bulk += 1
        PACK_CAPSULE_INTO(
            self._slab, offset, CAPSULE_CMD, flags, CAPSULE_CMD_HLEN, pdo, size, opcode, PSDT_SGL, cid, nsid,
            cdw2, cdw3, 0, length, sgl_id, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15,
        )  # fmt: skip
        if self.header_digest:
            self._put_header_digest(offset, CAPSULE_CMD_HLEN)
        requests[cid] = request
        if pdo:
            assert data_out is not None
            self._put_payload(offset + self._capsule_size, offset + pdo, data_out)
        else:
            self._used = offset + size
        self.output_bytes += size
        if not self._receiving:
            self.notify()
        return cid

    def forget(self, token: Any) -> None:
        """The buffers of this token's commands are no longer ours to touch, though the commands are in flight.

        Read data that still comes is thrown away; write data not yet queued is sent from a copy. Write data that the
        transport already holds is not copied again.
        """
        for request in self.requests.values():
            if request.token is not token:
                continue
            if request.data_out is not None and request.asked < request.out_length:
                request.data_out = memoryview(bytes(request.data_out))
            if request.data_in is not None:
                request.data_in = memoryview(bytearray(request.in_length))
                if request is self._current and self._landed is not None:
                    self._redirect(request.data_in)

    def take_unfinished(self) -> list[Request]:
        """The commands in flight when the owner gives the connection up. Their buffers are no longer touched."""
        requests = list(self.requests.values())
        if self._current is not None and self._landed is not None:
            self._redirect(memoryview(bytearray(self._current.in_length)))
        self.requests.clear()
        return requests

    # --- the transport's side -----------------------------------------------------------------------------------------

    def get_buffer(self) -> memoryview:
        if self._landing is not None:
            return self._landing
        if self._bulk:
            return self._scratch[self._end : self._end + BULK_WINDOW_BYTES]
        return self._scratch[self._end :]

    def take_output(self) -> list[memoryview]:
        self._round += 1
        return super().take_output()

    def postpone(self, seconds: float) -> None:
        super().postpone(seconds)
        for request in self.requests.values():
            request.deadline += seconds

    def tick(self, now: float) -> None:
        super().tick(now)
        if self.state is not State.READY:
            return
        for request in self.requests.values():
            if now > request.deadline:
                self._stall(f"command {request.cid:#06x} (opcode {request.opcode:#04x}) was not answered in time")
                break

    # --- output -------------------------------------------------------------------------------------------------------

    def _put_payload(self, padding: int, position: int, view: memoryview) -> None:
        """Padding up to ``position`` in the slab, data and its digest. Large data is sent from where it lies."""
        slab, length = self._slab, len(view)
        if padding < position:
            slab[padding:position] = bytes(position - padding)
        if length <= HOST_COPY_BYTES_MAX:
            self._used = position + length
            slab[position : self._used] = view
        else:
            self._used = position
            self._close_segment()
            self._output.append(view)
        if self.data_digest:
            PUT_DIGEST(slab, self._used, crc32c(view))
            self._used += DIGEST_SIZE

    def _put_data(self, request: Request, ttag: int, length: int, flags: int) -> None:
        """One H2CData PDU with the next ``length`` bytes; a large payload is sent from where it lies."""
        data_out = request.data_out
        assert data_out is not None
        pdo, position = self._data_pdo, request.asked
        view = data_out[position : position + length]
        request.asked = position + length
        size = pdo + length + (DIGEST_SIZE if self.data_digest else 0)
        offset = self._room(pdo + min(length, HOST_COPY_BYTES_MAX) + DIGEST_SIZE)
        PACK_DATA_INTO(
            self._slab, offset, H2C_DATA, flags, DATA_HLEN, pdo, size, request.cid, ttag, position, length
        )  # fmt: skip
        header = DATA_HLEN
        if self.header_digest:
            self._put_header_digest(offset, DATA_HLEN)
            header += DIGEST_SIZE
        self._put_payload(offset + header, offset + pdo, view)
        self.output_bytes += size

    # --- input --------------------------------------------------------------------------------------------------------

    def _all_handlers(self) -> dict[PduType, Handler]:
        return {
            PduType.ICRESP: self._on_icresp,
            PduType.CAPSULE_RESP: self._on_response,
            PduType.C2H_DATA: self._on_data,
            PduType.R2T: self._on_r2t,
            PduType.C2H_TERM_REQ: self._on_term_req,
        }

    def _on_icresp(self, start: int, available: int, flags: int, hlen: int, pdo: int, plen: int) -> int:
        if not self._initialize_complete("ICResp", start, available, hlen, plen):
            return 0
        response = INITIALIZE_CONNECTION.decode(self._scratch, start)
        if response.pfv:
            raise RemoteProtocolError(
                f"ICResp has PDU format version {response.pfv}, 0 was asked for",
                fatal_error_status=FatalErrorStatus.UNSUPPORTED_PARAMETER,
                fatal_error_information=8,
                header=self._header_bytes(start, IC_SIZE),
            )
        if response.alignment > ALIGNMENT_DWORDS_MAX:
            raise self._field_error(f"CPDA {response.alignment}, at most {ALIGNMENT_DWORDS_MAX}", 10, start, IC_SIZE)
        digest = response.digest & (DIGEST_HEADER_BIT | DIGEST_DATA_BIT)
        if digest & ~self._asked_digest:
            raise self._field_error(
                f"digests {digest:#x} enabled, {self._asked_digest:#x} asked for", 11, start, IC_SIZE
            )
        if response.limit < MAXH2CDATA_BYTES_MIN or response.limit % 4:
            raise self._field_error(
                f"MAXH2CDATA {response.limit}, must be {MAXH2CDATA_BYTES_MIN} or more in dwords", 12, start, IC_SIZE
            )
        self._negotiated(digest, 4 * (response.alignment + 1))
        self.maxh2cdata = response.limit
        self._transition(RECEIVE, PduType.ICRESP)
        return IC_SIZE

    def _negotiated(self, digest: int, alignment: int) -> None:
        self.header_digest = bool(digest & DIGEST_HEADER_BIT)
        self.data_digest = bool(digest & DIGEST_DATA_BIT)
        header = DIGEST_SIZE if self.header_digest else 0
        self._capsule_flags = HDGST if header else 0
        self._data_flags = self._capsule_flags | (DDGST if self.data_digest else 0)
        self._capsule_size = CAPSULE_CMD_HLEN + header
        self._response_size = CAPSULE_RESP_HLEN + header
        self._capsule_pdo = aligned(self._capsule_size, alignment)
        self._data_pdo = aligned(DATA_HLEN + header, alignment)
        self._plain = not digest and not DATA_HLEN % self._alignment_received()

    def _on_response(self, start: int, available: int, flags: int, hlen: int, pdo: int, plen: int) -> int:
        if hlen != CAPSULE_RESP_HLEN:
            raise self._field_error(f"CapsuleResp HLEN {hlen}, must be {CAPSULE_RESP_HLEN}", 2, start, available)
        if plen != self._response_size:
            raise self._field_error(f"CapsuleResp PLEN {plen}, must be {self._response_size}", 4, start, available)
        if available < plen:
            return 0
        if self.header_digest:
            self._header_complete(start, available, flags, hlen)
        dw0, dw1, self.sqhd, _sqid, cid, status = UNPACK_RESP(self._scratch, start + HEADER_SIZE)
        request = self.requests.get(cid)
        if request is None:
            raise self._field_error(f"CapsuleResp for CID {cid:#06x}, which is not in flight", 20, start, hlen)
        self._finish(request, status >> 1, dw0, dw1, start)
        return plen

    def _finish(self, request: Request, status: int, dw0: int, dw1: int, start: int) -> None:
        """The command is over. Success with data still missing is the controller's fault, not a result."""
        if not status & CODE_MASK:
            missing = request.in_length - request.received
            unsent = request.r2ts and request.r2t_round == self._round
            if (missing and not request.partial) or unsent or request.asked != request.out_length:
                raise RemoteProtocolError(
                    f"command {request.cid:#06x} succeeded with {request.received} of {request.in_length} bytes read "
                    f"and {request.asked} of {request.out_length} asked for",
                    fatal_error_status=FatalErrorStatus.PDU_SEQUENCE_ERROR,
                    header=self._header_bytes(start, CAPSULE_RESP_HLEN),
                )
            if request.corrupt:
                status = Status.TRANSIENT_TRANSPORT_ERROR
        del self.requests[request.cid]
        if request.in_length >= BULK_BYTES_MIN:
            self._bulk -= 1
        if status:
            request.status = status
        request.dw0 = dw0
        request.dw1 = dw1
        self.completed.append(request)

    def _on_r2t(self, start: int, available: int, flags: int, hlen: int, pdo: int, plen: int) -> int:
        if hlen != DATA_HLEN:
            raise self._field_error(f"R2T HLEN {hlen}, must be {DATA_HLEN}", 2, start, available)
        size = DATA_HLEN + (DIGEST_SIZE if self.header_digest else 0)
        if plen != size:
            raise self._field_error(f"R2T PLEN {plen}, must be {size}", 4, start, available)
        if available < plen or not self._header_complete(start, available, flags, hlen):
            return 0
        cccid, ttag, r2to, r2tl = UNPACK_DATA(self._scratch, start + HEADER_SIZE)
        request = self.requests.get(cccid)
        if request is None or not request.out_length:
            raise self._field_error(f"R2T for CID {cccid:#06x}, which has no data to send", 8, start, hlen)
        if not r2tl:
            raise self._field_error("R2T for no data", 16, start, hlen)
        if r2to + r2tl > request.out_length:
            raise self._range_error(f"R2T {r2to}+{r2tl} of {request.out_length} bytes", 16, start)
        if r2to != request.asked:
            raise self._field_error(f"R2TO {r2to}, must be {request.asked}", 12, start, hlen)
        if request.r2t_round != self._round:
            request.r2t_round = self._round
            request.r2ts = 0
        request.r2ts += 1
        if request.r2ts > self._maxr2t + 1:
            raise RemoteProtocolError(
                f"R2T number {request.r2ts} at once for command {cccid:#06x}, MAXR2T is {self._maxr2t} (0's based)",
                fatal_error_status=FatalErrorStatus.R2T_LIMIT_EXCEEDED,
                header=self._header_bytes(start, hlen),
            )
        self._answer(request, ttag, r2tl)
        return plen

    def _answer(self, request: Request, ttag: int, length: int) -> None:
        while length > self.maxh2cdata:
            self._put_data(request, ttag, self.maxh2cdata, self._data_flags)
            length -= self.maxh2cdata
        self._put_data(request, ttag, length, self._data_flags | LAST)

    def _on_data(self, start: int, available: int, flags: int, hlen: int, pdo: int, plen: int) -> int:
        """The usual C2HData, one that brings all of a command and lies in the scratch, takes a short way."""
        if self._plain and available >= plen and pdo == DATA_HLEN == hlen and flags in (LAST | SUCCESS, LAST):
            cccid, _, datao, datal = UNPACK_DATA(self._scratch, start + HEADER_SIZE)
            request = self.requests.get(cccid)
            if (
                request is not None
                and request.data_in is not None
                and datal == request.in_length
                and plen == DATA_HLEN + datal
                and not request.received
                and not datao
            ):
                request.data_in[:] = self._scratch[start + DATA_HLEN : start + plen]
                request.received = datal
                request.ended = True
                if flags & SUCCESS:
                    self._finish(request, Status.SUCCESS, 0, 0, start)
                return plen
        return super()._on_data(start, available, flags, hlen, pdo, plen)

    def _accept_data(self, start: int, flags: int, cccid: int, ttag: int, datao: int, datal: int) -> None:
        request = self.requests.get(cccid)
        if request is None or not request.in_length:
            raise self._field_error(f"C2HData for CID {cccid:#06x}, which wants no data", 8, start, DATA_HLEN)
        if not datal:
            raise self._field_error("C2HData without data", 16, start, DATA_HLEN)
        if datao + datal > request.in_length:
            raise self._range_error(f"C2HData {datao}+{datal} of {request.in_length} bytes", 16, start)
        if datao != request.received:
            raise self._field_error(f"DATAO {datao}, must be {request.received}", 12, start, DATA_HLEN)
        if flags & SUCCESS and not flags & LAST:
            raise self._field_error("SUCCESS without LAST_PDU", 1, start, DATA_HLEN)
        if request.ended:
            raise RemoteProtocolError(
                f"C2HData for command {cccid:#06x} after the last",
                fatal_error_status=FatalErrorStatus.PDU_SEQUENCE_ERROR,
                header=self._header_bytes(start, DATA_HLEN),
            )
        if flags & SUCCESS and datao + datal < request.in_length and not request.partial:
            raise self._field_error(f"SUCCESS with {datao + datal} of {request.in_length} bytes", 1, start, DATA_HLEN)
        request.ended = bool(flags & LAST)
        self._current = request
        self._current_flags = flags

    def _data_in_scratch(self, view: memoryview, good: bool) -> None:
        self._data_destination(len(view))[:] = view
        self._data_landed(view, good)

    def _data_destination(self, length: int) -> memoryview:
        request = self._current
        assert request is not None
        assert request.data_in is not None
        return request.data_in[request.received : request.received + length]

    def _data_landed(self, view: memoryview, good: bool) -> None:
        request = self._current
        assert request is not None
        self._current = None
        request.received += len(view)
        if not good:
            request.corrupt = True
        if self._current_flags & SUCCESS:
            self._finish(request, Status.SUCCESS, 0, 0, 0)

    def _redirect(self, buffer: memoryview) -> None:
        """Let the payload that is landing go on in ``buffer``."""
        assert self._current is not None
        assert self._landed is not None
        start, length = self._current.received, len(self._landed)
        remaining = len(self._landing) if self._landing is not None else 0
        self._landed = buffer[start : start + length]
        self._landing = self._landed[length - remaining :] if remaining else None

    # --- errors and states --------------------------------------------------------------------------------------------

    def _alignment_received(self) -> int:
        return 4 * (self._hpda + 1)

    def _range_error(self, message: str, offset: int, start: int) -> RemoteProtocolError:
        return RemoteProtocolError(
            message,
            fatal_error_status=FatalErrorStatus.DATA_OUT_OF_RANGE,
            fatal_error_information=offset,
            header=self._header_bytes(start, DATA_HLEN),
        )

    def _abandon(self) -> None:
        super()._abandon()
        self._current = None
