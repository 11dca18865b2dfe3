"""What every volume must do, whatever it is made of.

A check is a coroutine function that raises AssertionError; it takes a function that opens the volume under test. Called
again after a close, that must open the same volume again; each check wants a new one, of at least ``SIZE_MIN`` bytes::

    @pytest.mark.parametrize("check", VOLUME_CHECKS, ids=lambda check: check.__name__)
    async def test_conformance(check, tmp_path):
        await check(lambda: FileVolume.open(tmp_path / "disk.img", SIZE_MIN))
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from nvmeof.engine.volume import Volume
from nvmeof.errors import NvmeofError, ReadFault, UsageError, WriteFault

SIZE_MIN = 8 << 20
SEED = 20240601

OpenVolume = Callable[[], Awaitable[Volume]]


async def read_volume(volume: Volume, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset``, the way the target reads: at once, or else waiting. Raises VolumeError."""
    buffer = bytearray(length)
    with memoryview(buffer) as view:
        if not volume.read_now(offset, view):
            await volume.read(offset, view)
    return bytes(buffer)


async def write_volume(volume: Volume, offset: int, data: bytes | bytearray) -> None:
    """``data`` at ``offset``, the way the target writes: at once, or else waiting. Raises VolumeError."""
    with memoryview(data) as view:
        if not volume.write_now(offset, view):
            await volume.write(offset, view)


async def volume_begins_as_zeros(open_volume: OpenVolume) -> None:
    """A new volume is healthy, reads as zeros from end to end, and has a geometry."""
    volume = await open_volume()
    assert volume.block_size in (512, 4096)
    assert volume.size >= SIZE_MIN, "the volume is too small for these checks"
    assert volume.size % volume.block_size == 0
    assert 0 <= volume.allocated <= volume.size
    health = volume.health
    assert (health.read_only, health.degraded, health.reason, health.media_errors) == (False, False, "", 0)
    for offset in (0, volume.size // 2 & -4096, volume.size - volume.block_size):
        assert await read_volume(volume, offset, volume.block_size) == bytes(volume.block_size), f"not zero at {offset}"
    await volume.close()


async def volume_keeps_blocks(open_volume: OpenVolume) -> None:
    """Both ways of writing are seen by both ways of reading; first block, last block, whole MDTS, neighbours kept."""
    volume = await open_volume()
    block = volume.block_size
    random = Random(SEED)
    last = volume.size - block
    for offset, length in ((block, block), (0, block), (last, block), (4 << 20, 1 << 20), (block, 65536)):
        low, high = max(0, offset - block), min(volume.size, offset + length + block)
        before = await read_volume(volume, low, high - low)
        for waiting in (False, True):
            data = random.randbytes(length)
            if waiting:
                await volume.write(offset, memoryview(data))
            else:
                await write_volume(volume, offset, data)
            expected = before[: offset - low] + data + before[offset + length - low :]
            waited = bytearray(high - low)
            await volume.read(low, memoryview(waited))
            assert waited == expected, f"read after a write of {length} at {offset}"
            assert await read_volume(volume, low, high - low) == expected, f"read_now after {length} at {offset}"
    await volume.close()


async def volume_takes_a_copy(open_volume: OpenVolume) -> None:
    """What a returned write was given may change at once; a read never writes outside its view."""
    volume = await open_volume()
    block = volume.block_size
    data = bytearray(b"w" * block)
    await write_volume(volume, 0, data)
    data[:] = b"x" * block
    await volume.write(block, memoryview(data))
    data[:] = b"y" * block
    assert await read_volume(volume, 0, 2 * block) == b"w" * block + b"x" * block
    buffer = bytearray(b"-" * 3 * block)
    await volume.read(0, memoryview(buffer)[block : 2 * block])
    assert buffer == b"-" * block + b"w" * block + b"-" * block
    await volume.close()


async def volume_zeroes(open_volume: OpenVolume) -> None:
    """Write Zeroes and Deallocate make exactly their ranges zeros, and can be written again."""
    volume = await open_volume()
    block = volume.block_size
    length = 2 << 20
    data = Random(SEED).randbytes(length)
    cases: tuple[list[tuple[int, int]], ...] = (
        [(0, block)],
        [(block, 3 * block)],
        [(0, length)],
        [],
        [(0, 0)],
        [(block, block), (9 * block, block)],
        [(4 * block, 4 * block), (0, block), (6 * block, 4 * block)],
    )
    for ranges in cases:
        for way in ("zeroes", "zeroes, deallocate", "deallocate"):
            await write_volume(volume, 0, data)
            if way == "deallocate":
                await volume.deallocate(ranges)
            else:
                for offset, count in ranges:
                    await volume.write_zeroes(offset, count, deallocate="deallocate" in way)
            expected = bytearray(data)
            for offset, count in ranges:
                expected[offset : offset + count] = bytes(count)
            assert await read_volume(volume, 0, length) == expected, f"{way} of {ranges}"
    await write_volume(volume, 0, data)
    assert await read_volume(volume, 0, length) == data
    await volume.close()


async def volume_gives_space_back(open_volume: OpenVolume) -> None:
    """``allocated`` grows with what is written, once flushed, and falls when most of it is deallocated."""
    volume = await open_volume()
    empty = volume.allocated
    await write_volume(volume, 0, Random(SEED).randbytes(4 << 20))
    await volume.flush()
    full = volume.allocated
    assert empty < full <= volume.size, f"{empty} bytes empty, {full} with 4 MiB"
    await volume.deallocate([(0, 4 << 20)])
    await volume.flush()
    assert volume.allocated <= full, f"{volume.allocated} after deallocate, {full} before"
    await volume.close()


async def volume_survives_reopening(open_volume: OpenVolume) -> None:
    """Data, zeros, size, block size and UUID are the same for the next opener."""
    volume = await open_volume()
    identity = (volume.uuid, volume.block_size, volume.size)
    data = Random(SEED).randbytes(1 << 20)
    await write_volume(volume, 0, data)
    await volume.deallocate([(65536, 65536)])
    await volume.close()
    volume = await open_volume()
    assert (volume.uuid, volume.block_size, volume.size) == identity
    assert await read_volume(volume, 0, len(data)) == data[:65536] + bytes(65536) + data[131072:]
    await volume.close()


async def volume_verifies(open_volume: OpenVolume) -> None:
    """Verify finds nothing wrong with what was written, flushed, deallocated or never touched, and changes nothing."""
    volume = await open_volume()
    block = volume.block_size
    data = Random(SEED).randbytes(1 << 20)
    await write_volume(volume, 0, data)
    await volume.verify(0, len(data))
    await volume.flush()
    await volume.deallocate([(65536, 65536)])
    last = volume.size - block
    for offset, length in ((0, block), (block, 3 * block), (0, SIZE_MIN), (last, block)):
        await volume.verify(offset, length)
    await asyncio.gather(
        volume.verify(0, 4 << 20), write_volume(volume, 2 << 20, data), volume.verify(2 << 20, 1 << 20)
    )
    expected = data[:65536] + bytes(65536) + data[131072:]
    assert await read_volume(volume, 0, 3 << 20) == expected + bytes(1 << 20) + data, "verify changed what is read"
    await volume.close()


async def volume_marks_uncorrectable(open_volume: OpenVolume) -> None:
    """If it can: marked blocks fail reads and verify, neighbours do not; a write, and only that, brings them back."""
    volume = await open_volume()
    block = volume.block_size
    if not volume.can_mark_uncorrectable:
        try:
            await volume.write_uncorrectable(0, block)
        except UsageError:
            await volume.close()
            return
        raise AssertionError("it says that it cannot, and does")
    granule = volume.uncorrectable_granule
    assert granule > 0, "no granule"
    assert granule % block == 0, "the granule is not whole blocks"
    data = Random(SEED).randbytes(8 * granule)
    await write_volume(volume, 0, data)
    await volume.write_uncorrectable(2 * granule, 3 * granule)
    await volume.flush()
    await volume.close()
    volume = await open_volume()
    bad = {2, 3, 4}
    for cleared in (None, *sorted(bad)):
        if cleared is not None:
            await write_volume(volume, cleared * granule, data[:granule])
            data = data[: cleared * granule] + data[:granule] + data[(cleared + 1) * granule :]
            bad.discard(cleared)
        for number in range(8):
            offset = number * granule
            expected = None if number in bad else data[offset : offset + granule]
            assert await _read_or_none(volume, offset, granule) == expected, f"granule {number}, bad are {bad}"
            assert await _verifies(volume, offset, granule) == (number not in bad), f"verify: granule {number} of {bad}"
    assert await read_volume(volume, 0, 8 * granule) == data
    await volume.close()


async def _read_or_none(volume: Volume, offset: int, length: int) -> bytes | None:
    try:
        return await read_volume(volume, offset, length)
    except ReadFault:
        return None


async def _verifies(volume: Volume, offset: int, length: int) -> bool:
    try:
        await volume.verify(offset, length)
    except ReadFault:
        return False
    return True


async def volume_names_its_incarnation(open_volume: OpenVolume) -> None:
    """16 bytes, the same for as long as it is open, whatever is done; new after acknowledged writes may be lost.

    After a clean close either is allowed, so nothing is asked of it here.
    """
    volume = await open_volume()
    incarnation = volume.incarnation
    assert isinstance(incarnation, bytes)
    assert len(incarnation) == 16
    assert any(incarnation), "the incarnation is all zeroes"
    assert incarnation != volume.uuid.bytes, "the incarnation is the UUID"
    await write_volume(volume, 0, bytes(volume.block_size))
    await volume.flush()
    await volume.deallocate([(0, volume.block_size)])
    assert volume.incarnation == incarnation, "the incarnation changed without a loss"
    await volume.close()
    assert volume.incarnation == incarnation, "the incarnation changed at close"


async def volume_flushes_together(open_volume: OpenVolume) -> None:
    """Any number of flushes at once, among writes, all return; one that nobody waits for any more harms none."""
    volume = await open_volume()
    block = volume.block_size

    async def write_and_flush(number: int) -> None:
        await write_volume(volume, number * block, bytes([number]) * block)
        await volume.flush()

    abandoned = asyncio.create_task(volume.flush())
    tasks = [asyncio.create_task(write_and_flush(number)) for number in range(100)]
    await asyncio.sleep(0)
    abandoned.cancel()
    await asyncio.gather(*tasks)
    await asyncio.gather(abandoned, return_exceptions=True)
    await volume.flush()
    expected = b"".join(bytes([number]) * block for number in range(100))
    assert await read_volume(volume, 0, 100 * block) == expected
    await volume.close()


async def volume_does_much_at_once(open_volume: OpenVolume) -> None:
    """64 tasks on ranges of their own, every operation mixed, each against its own model."""
    volume = await open_volume()
    block = volume.block_size
    share = SIZE_MIN // 64

    async def work(number: int) -> None:
        random = Random(SEED + number)
        base = number * share
        model = bytearray(share)
        for step in range(25):
            count = random.randrange(1, share // block + 1) * block
            at = random.randrange((share - count) // block + 1) * block
            choice = random.randrange(6)
            if choice < 2:
                data = random.randbytes(count)
                model[at : at + count] = data
                if choice:
                    await volume.write(base + at, memoryview(data))
                else:
                    await write_volume(volume, base + at, data)
            elif choice == 2:
                model[at : at + count] = bytes(count)
                await volume.write_zeroes(base + at, count, deallocate=random.random() < 0.5)
            elif choice == 3:
                model[at : at + count] = bytes(count)
                await volume.deallocate([(base + at, count)])
            elif choice == 4 and random.random() < 0.2:
                await volume.flush()
            got = await read_volume(volume, base + at, count)
            assert got == model[at : at + count], f"task {number}, step {step}, {at}+{count} (seed {SEED})"
            await asyncio.sleep(0)

    await asyncio.gather(*(work(number) for number in range(64)))
    await volume.close()


async def volume_blocks_are_whole(open_volume: OpenVolume) -> None:
    """Overlapping writes and reads in flight: a block is always one of the writes whole, or zeros whole."""
    volume = await open_volume()
    block = volume.block_size
    blocks = 64
    length = blocks * block

    def check(buffer: bytes | bytearray) -> None:
        for number in range(blocks):
            part = buffer[number * block : (number + 1) * block]
            assert part == part[:1] * block, f"block {number} is a mixture"

    async def write(number: int) -> None:
        for _ in range(15):
            data = bytes([number]) * length
            if number % 2:
                await volume.write(0, memoryview(data))
            else:
                await write_volume(volume, 0, data)
            await asyncio.sleep(0)

    async def clear() -> None:
        for step in range(10):
            await volume.write_zeroes(0, length, deallocate=bool(step % 2))

    async def read(number: int) -> None:
        buffer = bytearray(length)
        for _ in range(30):
            if number % 2:
                await volume.read(0, memoryview(buffer))
                check(buffer)
            else:
                check(await read_volume(volume, 0, length))
            await asyncio.sleep(0)

    await asyncio.gather(clear(), *(write(number) for number in range(1, 9)), *(read(number) for number in range(8)))
    await volume.close()


async def volume_leaves_cancelled_buffers_alone(open_volume: OpenVolume) -> None:
    """Once a cancelled operation has returned its buffer is the caller's, and the volume works on."""
    volume = await open_volume()
    length = 1 << 20
    await write_volume(volume, 0, b"\x55" * length)
    for turns in range(6):
        buffer = bytearray(length)
        target = bytearray(b"\xaa" * length)
        tasks = [
            asyncio.create_task(volume.read(0, memoryview(buffer))),
            asyncio.create_task(volume.write(2 << 20, memoryview(target))),
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        buffer[:] = b"\xee" * length
        target[:] = b"\xdd" * length
        await asyncio.sleep(0.005)
        assert buffer == b"\xee" * length, f"a cancelled read wrote later ({turns} turns)"
        written = await read_volume(volume, 2 << 20, length)
        assert written.count(b"\xdd") == 0, f"a cancelled write read its buffer later ({turns} turns)"
    await write_volume(volume, 0, b"\x66" * 4096)
    await volume.flush()
    assert not volume.health.read_only
    await volume.close()


async def volume_follows_a_model(open_volume: OpenVolume) -> None:
    """300 operations, one after another, reopening now and then, against an array."""
    volume = await open_volume()
    block = volume.block_size
    random = Random(SEED)
    model = bytearray(SIZE_MIN)
    for step in range(300):
        count = random.choice((1, 1, 2, 8, 64, 256)) * block
        offset = random.randrange((SIZE_MIN - count) // block + 1) * block
        choice = random.randrange(10)
        if choice < 5:
            data = random.randbytes(count)
            await write_volume(volume, offset, data)
            model[offset : offset + count] = data
        elif choice < 7:
            await volume.write_zeroes(offset, count, deallocate=choice == 5)
            model[offset : offset + count] = bytes(count)
        elif choice == 7:
            await volume.deallocate([(offset, count)])
            model[offset : offset + count] = bytes(count)
        elif choice == 8 and random.random() < 0.3:
            await volume.close()
            volume = await open_volume()
        got = await read_volume(volume, offset, count)
        assert got == model[offset : offset + count], f"step {step}, {offset}+{count} (seed {SEED})"
    assert await read_volume(volume, 0, SIZE_MIN) == model, f"at the end (seed {SEED})"
    await volume.close()


async def volume_closes(open_volume: OpenVolume) -> None:
    """Close waits for what is in flight; afterwards everything is refused; closing again is nothing."""
    volume = await open_volume()
    block = volume.block_size
    data = bytes([7]) * (1 << 20)
    tasks = [asyncio.create_task(volume.write(offset << 20, memoryview(data))) for offset in range(4)]
    await asyncio.sleep(0)
    await asyncio.gather(volume.close(), volume.close())
    await asyncio.gather(*tasks)
    await volume.close()
    view = memoryview(bytearray(block))
    assert not volume.read_now(0, view), "read_now answered after close"
    refusals: tuple[tuple[type[NvmeofError], Callable[[], Awaitable[None]]], ...] = (
        (ReadFault, lambda: volume.read(0, view)),
        (WriteFault, lambda: write_volume(volume, 0, bytes(block))),
        (WriteFault, lambda: volume.write(0, view)),
        (WriteFault, volume.flush),
        (WriteFault, lambda: volume.write_zeroes(0, block, deallocate=False)),
        (WriteFault, lambda: volume.deallocate([(0, block)])),
    )
    for number, (error, operation) in enumerate(refusals):
        try:
            await operation()
        except error:
            continue
        raise AssertionError(f"operation {number} works on a closed volume")
    volume = await open_volume()
    assert await read_volume(volume, 3 << 20, 1 << 20) == data
    await volume.close()


VOLUME_CHECKS: tuple[Callable[[OpenVolume], Awaitable[None]], ...] = (
    volume_begins_as_zeros,
    volume_keeps_blocks,
    volume_takes_a_copy,
    volume_zeroes,
    volume_gives_space_back,
    volume_survives_reopening,
    volume_verifies,
    volume_marks_uncorrectable,
    volume_names_its_incarnation,
    volume_flushes_together,
    volume_does_much_at_once,
    volume_blocks_are_whole,
    volume_leaves_cancelled_buffers_alone,
    volume_follows_a_model,
    volume_closes,
)
