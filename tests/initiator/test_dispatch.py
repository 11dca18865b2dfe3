"""Batches over queues without sockets: order, turns, failure, cancellation, the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from nvmeof.errors import ConnectionLost, StatusError, TransportError
from nvmeof.initiator.dispatch import Batch, Command, Dispatcher, status_error
from nvmeof.protocol.host_queue import HostQueue
from nvmeof.protocol.host_request import Request
from nvmeof.transport.buffers import BufferPool
from tests.protocol.wire import Wire
from tests.protocol.wire_controller import capsule_resp, icresp


class Line:
    """A ready queue; ``answer`` completes a command as the controller and the connection together would."""

    def __init__(self, dispatcher: Dispatcher, capacity: int) -> None:
        self.queue = HostQueue(BufferPool(), 0.0)
        self._feed(icresp())
        self.queue.capacity = capacity
        self._dispatcher = dispatcher
        dispatcher.queues.append(self.queue)

    @property
    def opcodes(self) -> list[int]:
        return [request.opcode for request in self.queue.requests.values()]

    def answer(self, opcode: int, status: int = 0, dw0: int = 0) -> None:
        cid = next(cid for cid, request in self.queue.requests.items() if request.opcode == opcode)
        self._feed(capsule_resp(Wire(), cid, status, dw0))
        completed, self.queue.completed = self.queue.completed, []
        for request in completed:
            request.token.completed(request)
        self._dispatcher.feed()

    def _feed(self, data: bytes) -> None:
        self.queue.take_output()
        self.queue.drained()
        self.queue.get_buffer()[: len(data)] = data
        self.queue.received(len(data), 0.0)


def commands(*opcodes: int) -> Iterator[Command]:
    return (Command(opcode) for opcode in opcodes)


async def result_of(batch: Batch) -> Request | None:
    return await batch


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_one() -> None:
    dispatcher = Dispatcher(30.0)
    line = Line(dispatcher, 4)
    task = asyncio.create_task(dispatcher.run_one(Command(7)))
    await settle()
    assert line.opcodes == [7]
    line.answer(7, dw0=9)
    assert (await task).dw0 == 9


async def test_a_batch_is_pipelined_and_ends_with_its_last() -> None:
    dispatcher = Dispatcher(30.0)
    line = Line(dispatcher, 3)
    task = asyncio.create_task(result_of(dispatcher.start(commands(1, 2, 3, 4, 5))))
    await settle()
    assert line.opcodes == [1, 2, 3]
    line.answer(2)
    assert line.opcodes == [1, 3, 4]
    for opcode in (4, 1, 5):
        line.answer(opcode)
    await settle()
    assert not task.done()
    line.answer(3)
    last = await task
    assert last is not None
    assert last.opcode == 3


async def test_an_empty_batch() -> None:
    dispatcher = Dispatcher(30.0)
    Line(dispatcher, 1)
    assert await dispatcher.start(commands()) is None


async def test_batches_take_turns() -> None:
    dispatcher = Dispatcher(30.0)
    line = Line(dispatcher, 2)
    tasks = [asyncio.create_task(result_of(dispatcher.start(commands(*opcodes))))
             for opcodes in ((10, 11, 12, 13), (20, 21))]  # fmt: skip
    tasks.append(asyncio.create_task(result_of(dispatcher.start_one(Command(30)))))
    await settle()
    order = []
    while line.opcodes:
        order.append(line.opcodes[0])
        line.answer(line.opcodes[0])
    await asyncio.gather(*tasks)
    assert order == [10, 11, 12, 20, 30, 13, 21]


async def test_one_waits_behind_what_waits() -> None:
    dispatcher = Dispatcher(30.0)
    line = Line(dispatcher, 1)
    first = dispatcher.start(commands(1, 2))
    second = dispatcher.start_one(Command(3))
    for opcode in (1, 2, 3):
        line.answer(opcode)
    await first
    assert (await second) is not None


async def test_the_emptiest_queue_is_chosen() -> None:
    dispatcher = Dispatcher(30.0)
    lines = [Line(dispatcher, 3) for _ in range(3)]
    batches = [dispatcher.start_one(Command(opcode)) for opcode in range(1, 11)]
    assert [line.opcodes for line in lines] == [[1, 4, 7], [2, 5, 8], [3, 6, 9]]
    lines[1].answer(5)
    assert lines[1].opcodes == [2, 8, 10]
    for line in lines:
        for opcode in line.opcodes:
            line.answer(opcode)
    await asyncio.gather(*map(result_of, batches))


async def test_reserved_slots_stay_free() -> None:
    dispatcher = Dispatcher(30.0, reserved=1)
    line = Line(dispatcher, 2)
    batches = [dispatcher.start_one(Command(opcode)) for opcode in (1, 2)]
    assert line.opcodes == [1]
    line.answer(1)
    line.answer(2)
    await asyncio.gather(*map(result_of, batches))


async def test_failure_stops_the_batch_and_waits_for_the_rest() -> None:
    dispatcher = Dispatcher(30.0)
    line = Line(dispatcher, 3)
    batch = dispatcher.start(commands(1, 2, 3, 4, 5), "reading {} of {}", "this", 5)
    line.answer(2, status=0x4080, dw0=77)
    assert line.opcodes == [1, 3]
    line.answer(3, status=0x281)
    assert not batch.future.done()
    line.answer(1)
    with pytest.raises(StatusError, match=r"^reading this of 5: LBA Out of Range \(SCT 0x0, SC 0x80, DNR\)$") as caught:
        await batch
    error = caught.value
    assert (error.status_code_type, error.status_code, error.dnr, error.result) == (0, 0x80, True, 77)
    assert error.name == "LBA Out of Range"


async def test_more_and_retry_delay_alone_are_no_failure() -> None:
    dispatcher = Dispatcher(30.0)
    line = Line(dispatcher, 1)
    batch = dispatcher.start_one(Command(1))
    line.answer(1, status=0x7800)
    assert (await batch) is not None


async def test_the_failure_of_the_last_command() -> None:
    dispatcher = Dispatcher(30.0)
    line = Line(dispatcher, 8)
    batch = dispatcher.start(commands(1, 2), "both")
    line.answer(1)
    line.answer(2, status=6)
    with pytest.raises(StatusError, match="both: Internal Error"):
        await batch


async def test_cancelled_in_flight() -> None:
    dispatcher = Dispatcher(30.0)
    line = Line(dispatcher, 2)
    buffers = [bytearray(512) for _ in range(4)]
    reads = (Command(opcode, data_in=memoryview(buffer)) for opcode, buffer in enumerate(buffers))
    task = asyncio.create_task(result_of(dispatcher.start(reads)))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for buffer in buffers:
        buffer.clear()
    assert line.opcodes == [0, 1]
    line.answer(0, status=6)
    line.answer(1, status=6)
    assert line.opcodes == []


async def test_cancelled_while_waiting() -> None:
    dispatcher = Dispatcher(30.0)
    line = Line(dispatcher, 1)
    first = dispatcher.start_one(Command(1))
    task = asyncio.create_task(dispatcher.run_one(Command(2)))
    third = dispatcher.start_one(Command(3))
    await settle()
    task.cancel()
    await settle()
    line.answer(1)
    assert line.opcodes == [3]
    line.answer(3)
    await asyncio.gather(result_of(first), result_of(third))


async def test_lost_in_flight_and_while_waiting() -> None:
    dispatcher = Dispatcher(30.0)
    line = Line(dispatcher, 1)
    batches = [dispatcher.start(commands(1, 2)), dispatcher.start_one(Command(3)), dispatcher.start(commands(4))]
    for request in line.queue.take_unfinished():
        request.token.lost("the cable")
    dispatcher.close("the cable")
    for batch in batches:
        with pytest.raises(ConnectionLost, match="the cable"):
            await batch
    dispatcher.feed()
    assert line.opcodes == []


async def test_nothing_is_sent_after_the_end() -> None:
    dispatcher = Dispatcher(30.0)
    Line(dispatcher, 1)
    dispatcher.close("first")
    dispatcher.close("second")
    with pytest.raises(TransportError, match="not sent: first") as caught:
        dispatcher.start_one(Command(1))
    assert not isinstance(caught.value, ConnectionLost)
    with pytest.raises(TransportError, match="not sent: first"):
        dispatcher.start(commands(1))


def test_fabrics_status_has_its_own_names() -> None:
    request = Request(0, None, 0x7F, None, None, 0.0)
    request.status = 0x4182
    assert str(status_error(request, "Connect")) == "Connect: Connect Invalid Parameters (SCT 0x1, SC 0x82, DNR)"
