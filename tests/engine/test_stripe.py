"""Stripes: written whole, read back whole, with any m strips missing, bad, or another stripe's."""

from __future__ import annotations

import errno
from itertools import combinations
from random import Random

import pytest
import xxhash

from nvmeof.engine.disk import Disk
from nvmeof.engine.layout import Geometry, decode_strip, encode_strip
from nvmeof.engine.parity import Parity
from nvmeof.engine.segments import StripePlace
from nvmeof.engine.stripe import (
    Parities,
    Stripe,
    is_strip_of,
    new_memory,
    read_stripe,
    strip_bytes,
    write_stripe,
)
from nvmeof.testing.virtual_disk import VirtualDisk

from .pools import flip, image, put

SEGMENT = 128 << 10
SEQUENCE = (3 << 40) + 5


def geometry(data: int = 2, parity: int = 2) -> Geometry:
    return Geometry(b"poolpoolpoolpool", data, parity, 0, SEGMENT, 64 << 10, 4, (256 << 10) + 4 * SEGMENT, 0)


def place_for(data: int, pages: int) -> StripePlace:
    return StripePlace(2, 3, SEQUENCE, 7, pages, 600, data * (pages * 64 - 1))


class Made:
    """A stripe of ``used`` units of noise at page 7 of segment 2, on new disks."""

    def __init__(self, data: int = 2, parity: int = 2, used: int = 300, lost: tuple[int, ...] = ()) -> None:
        self.geometry = geometry(data, parity)
        self.stripe = Stripe(new_memory(self.geometry))
        self.stripe.begin(self.geometry, sequence=SEQUENCE, segment=2, next_segment=1, page=7, first=600)
        self.stripe.flushed = 77
        noise = Random(used).randbytes(len(self.stripe.buffer))
        self.stripe.buffer[:] = noise
        self.stripe.used = used
        self.pages = self.stripe.cut(self.geometry)
        self.stream = noise[: used * 64].ljust(data * (self.pages * 64 - 1) * 64, b"\0")
        self.disks: list[VirtualDisk] = [VirtualDisk(self.geometry.member_bytes) for _ in range(data + parity)]
        self.place = place_for(data, self.pages)
        held: list[Disk | None] = [None if role in lost else disk for role, disk in enumerate(self.disks)]
        self.failed = write_stripe(
            self.geometry, Parity(data, parity), self.stripe, self.pages, held, Parities.new(self.geometry)
        )

    def role(self, index: int) -> int:
        return (index + SEQUENCE) % self.geometry.width

    @property
    def offset(self) -> int:
        return (128 << 10) + 2 * SEGMENT + 7 * 4096

    def read(self, missing: tuple[int, ...] = ()) -> tuple[list[int], bytes | None]:
        """Strip indices that are bad, and the stream if it can be had."""
        disks: list[Disk | None] = list(self.disks)
        for index in missing:
            disks[self.role(index)] = None
        content = read_stripe(self.geometry, self.place, disks)
        if len(content.bad) > self.geometry.parity:
            return content.bad, None
        data, parity = self.geometry.data, self.geometry.parity
        return content.bad, b"".join(map(bytes, Parity(data, parity).recover(content.payloads)[:data]))


@pytest.mark.parametrize(("data", "parity"), [(1, 0), (3, 0), (2, 1), (2, 2), (5, 2), (16, 2)])
@pytest.mark.parametrize("used", [1, 62, 63, 126, 127, 500])
def test_a_stripe_is_on_its_members_as_the_format_says(data: int, parity: int, used: int) -> None:
    made = Made(data, parity, used)
    assert not made.failed
    assert made.pages == -(-(-(-used // data) + 1) // 64), "as few pages as hold it"
    size = made.pages * 4096 - 64
    p, q = bytearray(size), bytearray(size)
    for index in range(data):
        payload = made.stream[index * size : (index + 1) * size]
        check_strip(made, index, payload)
        p = bytearray(a ^ b for a, b in zip(p, payload, strict=True))
        q = bytearray(a ^ b for a, b in zip(q, times(index, payload), strict=True))
    for index, payload in list(enumerate((bytes(p), bytes(q)), data))[:parity]:
        check_strip(made, index, payload)


def times(index: int, payload: bytes) -> bytes:
    """``2**index`` times each byte, in GF(2**8) with polynomial 11Dh, bit by bit."""
    table = []
    for value in range(256):
        product = value
        for _ in range(index):
            product = product << 1 ^ (0x11D if product & 0x80 else 0)
        table.append(product)
    return payload.translate(bytes(table))


def check_strip(made: Made, index: int, payload: bytes) -> None:
    """Header and payload on media, byte by byte (FORMAT.md, strip); nothing else is on that member."""
    body = b"STRP" + bytes([index, made.geometry.data, made.geometry.parity, 0]) + b"poolpool"
    for value, width in (
        (SEQUENCE, 8), (2, 4), (7, 4), (made.pages, 4), (1, 4), (xxhash.xxh3_64_intdigest(payload), 8),
        (made.stripe.used, 4), (77, 4),
    ):  # fmt: skip
        body += value.to_bytes(width, "little")
    strip = xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") + body + payload
    content = image(made.disks[made.role(index)])
    assert content[made.offset : made.offset + len(strip)] == strip
    assert not any(content[: made.offset])
    assert not any(content[made.offset + len(strip) :])


@pytest.mark.parametrize(("data", "parity"), [(2, 2), (4, 2), (3, 1), (2, 0), (16, 2)])
def test_read_back_with_every_choice_of_strips_missing(data: int, parity: int) -> None:
    made = Made(data, parity, 200)
    for count in range(parity + 1):
        for missing in combinations(range(data + parity), count):
            assert made.read(missing) == ([*missing], made.stream)
    beyond = tuple(range(parity + 1))
    assert made.read(beyond) == ([*beyond], None)


@pytest.mark.parametrize("pair", list(combinations(range(4), 2)))
def test_written_with_every_pair_of_members_gone(pair: tuple[int, int]) -> None:
    made = Made(2, 2, 300, lost=tuple(made_role(index) for index in pair))
    assert not made.failed
    assert made.read() == ([*pair], made.stream)


def made_role(index: int) -> int:
    return (index + SEQUENCE) % 4


@pytest.mark.parametrize("pair", list(combinations(range(4), 2)))
def test_every_pair_of_strips_damaged_anywhere(pair: tuple[int, int]) -> None:
    for at in (0, 9, 33, 63, 64, 5000, 12287):
        made = Made(2, 2, 300)
        for index in pair:
            flip(made.disks[made.role(index)], made.offset + at, 0x10)
        assert made.read() == ([*pair], made.stream)


def test_every_flipped_bit_of_a_strip_is_found() -> None:
    made = Made(2, 2, 60)
    disk = made.disks[made.role(1)]
    good = image(disk)
    for at in [*range(64), *range(64, 4096, 61)]:
        for bit in range(8):
            flip(disk, made.offset + at, 1 << bit)
            assert made.read()[0] == [1], f"bit {bit} of byte {at}"
            flip(disk, made.offset + at, 1 << bit)
    assert image(disk) == good


def test_a_strip_that_cannot_be_read_is_bad_and_absent() -> None:
    made = Made()
    made.disks[made.role(2)].fail("read")
    content = read_stripe(made.geometry, made.place, made.disks)
    assert content.bad == [2]
    assert content.present[2] is None
    flip(made.disks[made.role(0)], made.offset + 100)
    content = read_stripe(made.geometry, made.place, made.disks)
    assert content.bad == [0]
    assert content.payloads[0] is None
    damaged = content.present[0]
    assert damaged is not None, "what can be read of a bad strip is kept"
    assert bytes(damaged) != made.stream[: len(damaged)]
    assert (content.used, content.next_segment, content.flushed) == (300, 1, 77)


@pytest.mark.parametrize(
    "change",
    [
        {"index": 3}, {"data": 3}, {"parity": 1}, {"tag": 5}, {"sequence": SEQUENCE - 4}, {"sequence": SEQUENCE + 4},
        {"segment": 1}, {"page": 6}, {"pages": 2},
    ],
    ids=str,
)  # fmt: skip
def test_another_strip_in_its_place_counts_as_missing(change: dict[str, int]) -> None:
    """Stale, misdirected, another pool's: whole, and yet not the one."""
    made = Made()
    content = read_stripe(made.geometry, made.place, made.disks)
    payload = content.payloads[1]
    assert payload is not None
    strip = strip_bytes(made.geometry, made.place, 1, payload, content)
    disk = made.disks[made.role(1)]
    assert image(disk)[made.offset : made.offset + len(strip)] == strip
    header = decode_strip(strip[:64])
    assert header is not None
    assert is_strip_of(header, made.geometry, made.place, 1)
    put(disk, made.offset, encode_strip(header._replace(**change)))
    assert made.read() == ([1], made.stream)


def test_what_is_put_back_is_what_was_there() -> None:
    made = Made(3, 2, 500)
    before = [image(disk) for disk in made.disks]
    for index in range(5):
        disk = made.disks[made.role(index)]
        put(disk, made.offset, bytes(made.pages * 4096))
        content = read_stripe(made.geometry, made.place, made.disks)
        payloads = Parity(3, 2).recover(content.payloads)
        put(disk, made.offset, strip_bytes(made.geometry, made.place, index, memoryview(payloads[index]), content))
    assert [image(disk) for disk in made.disks] == before


def test_members_that_fail_are_named_and_the_others_written() -> None:
    made = Made()
    for role, code in ((0, errno.EIO), (3, errno.ENOSPC)):
        made.disks[role].fail("write", code=code)
    failed = write_stripe(
        made.geometry, Parity(2, 2), made.stripe, made.pages, made.disks, Parities.new(made.geometry)
    )  # fmt: skip
    assert sorted((role, error.errno) for role, error in failed) == [(0, errno.EIO), (3, errno.ENOSPC)]
    assert made.read()[1] == made.stream


def test_cutting_zeroes_what_is_not_used() -> None:
    """Memory is used again: nothing of an older stripe goes to media."""
    made = Made(2, 2, 100)
    assert made.pages == 1
    made.stripe.buffer[:] = b"\xff" * len(made.stripe.buffer)
    made.stripe.begin(made.geometry, sequence=SEQUENCE + 4, segment=2, next_segment=1, page=7, first=600)
    assert (made.stripe.used, made.stripe.room, made.stripe.pages_max) == (0, 2 * (16 * 64 - 1), 16)
    made.stripe.used = 64
    assert made.stripe.cut(made.geometry) == 1
    assert bytes(made.stripe.buffer[: 64 * 64]) == b"\xff" * 64 * 64
    assert not any(made.stripe.buffer[64 * 64 : 2 * 63 * 64])


@pytest.mark.parametrize(("page", "room"), [(0, 16), (16, 16), (17, 15), (31, 1)])
def test_room_ends_with_the_segment(page: int, room: int) -> None:
    """Strips of 64 KiB at most, segments of 32 pages."""
    stripe = Stripe(new_memory(geometry()))
    stripe.begin(geometry(), sequence=1, segment=0, next_segment=1, page=page, first=0)
    assert (stripe.pages_max, stripe.room) == (room, 2 * (room * 64 - 1))
