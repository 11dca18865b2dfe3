"""P and Q are those of RAID-6 as published, by either backend, and any two losses come back."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Iterator
from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.engine import isal, parity
from nvmeof.engine.galois import POWERS, Matrix, generator, inverse, inverted, multiply
from nvmeof.engine.parity import Parity

BACKENDS = [True, False]


@pytest.fixture(params=BACKENDS, ids=["isal", "numpy"])
def accelerated(request: pytest.FixtureRequest) -> bool:
    wanted = bool(request.param)
    if wanted and isal.load() is None:
        pytest.skip("no ISA-L")
    return wanted


def slow_multiply(a: int, b: int) -> int:
    """Shift and add modulo x^8 + x^4 + x^3 + x^2 + 1: the definition."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11D << (bit - 8)
    return product


def naive(payloads: list[bytes]) -> tuple[bytes, bytes]:
    """P = sum of D_i, Q = sum of 2^i D_i: H. P. Anvin, The mathematics of RAID-6, equations 1 and 2."""
    p, q = bytearray(len(payloads[0])), bytearray(len(payloads[0]))
    factor = 1
    for payload in payloads:
        for place, value in enumerate(payload):
            p[place] ^= value
            q[place] ^= slow_multiply(factor, value)
        factor = slow_multiply(factor, 2)
    return bytes(p), bytes(q)


def linux(payloads: list[bytes]) -> tuple[bytes, bytes]:
    """lib/raid6/int.uc of Linux, with the high bits of 8 bytes as its MASK and SHLBYTE have them."""
    ones, low, reduction = 0x0101010101010101, 0xFEFEFEFEFEFEFEFE, 0x1D
    p, q = bytearray(), bytearray()
    for place in range(0, len(payloads[0]), 8):
        words = [int.from_bytes(payload[place : place + 8], "little") for payload in payloads]
        wp = wq = words[-1]
        for word in words[-2::-1]:
            wp ^= word
            mask = (wq >> 7 & ones) * 0xFF
            wq = (wq << 1 & low) ^ (mask & ones * reduction) ^ word
        p += wp.to_bytes(8, "little")
        q += wq.to_bytes(8, "little")
    return bytes(p), bytes(q)


def aligned(data: bytes, shift: int = 0) -> memoryview:
    """A writable copy ``shift`` bytes behind a 64-byte boundary."""
    memory = bytearray(len(data) + 128 + shift)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % 64 + shift
    view = memoryview(memory)[start : start + len(data)]
    view[:] = data
    return view


def strips_of(data: int, length: int, seed: int = 1) -> list[bytes]:
    random = Random(seed)
    return [random.randbytes(length) for _ in range(data)]


def generated(coder: Parity, payloads: list[bytes], count: int, shift: int = 0) -> list[bytes]:
    out = [aligned(b"\xee" * len(payloads[0]), shift) for _ in range(count)]
    coder.generate([aligned(payload, shift) for payload in payloads], out)
    return [bytes(view) for view in out]


def test_isal_is_found_here() -> None:
    """pyeclib is a dependency: its wheel carries the library. Everything else would be an unnoticed factor of ten."""
    assert isal.load() is not None
    assert Parity(4, 2).accelerated
    assert not Parity(4, 2, accelerated=False).accelerated


def test_the_field() -> None:
    for a in range(256):
        for b in range(0, 256, 5):
            assert multiply(a, b) == slow_multiply(a, b)
    assert all(slow_multiply(a, inverse(a)) == 1 for a in range(1, 256))
    assert sorted(POWERS) == list(range(1, 256))
    assert POWERS[:9] == (1, 2, 4, 8, 16, 32, 64, 128, 0x1D)


@pytest.mark.parametrize("data", range(1, 17))
def test_p_and_q_by_definition(data: int, accelerated: bool) -> None:
    payloads = strips_of(data, 192)
    assert generated(Parity(data, 2, accelerated=accelerated), payloads, 2) == list(naive(payloads))
    assert generated(Parity(data, 1, accelerated=accelerated), payloads, 1) == [naive(payloads)[0]]
    assert generated(Parity(data, 0, accelerated=accelerated), payloads, 0) == []
    assert naive(payloads) == linux(payloads)


def test_p_and_q_worked_by_hand(accelerated: bool) -> None:
    """D0 = 01, D1 = 80, D2 = FF: P = 7E; Q = 01 + 2*80 + 4*FF = 01 + 1D + DB = C7."""
    assert slow_multiply(4, 0xFF) == 0xDB
    out = generated(Parity(3, 2, accelerated=accelerated), [b"\x01" * 64, b"\x80" * 64, b"\xff" * 64], 2)
    assert out == [b"\x7e" * 64, b"\xc7" * 64]


@pytest.mark.parametrize("length", [0, 64, 4096 - 64, 8192 - 64, 65536 - 64, 264 * 1024 - 64])
@pytest.mark.parametrize("count", [1, 2])
def test_both_backends_give_the_same_bytes(length: int, count: int) -> None:
    if isal.load() is None:
        pytest.skip("no ISA-L")
    for data in (1, 2, 4, 7, 16):
        payloads = strips_of(data, length, seed=data)
        fast, slow = (generated(Parity(data, count, accelerated=each), payloads, count) for each in BACKENDS)
        assert fast == slow
        if length <= 8192:
            assert fast == list(linux(payloads))[:count]


@pytest.mark.parametrize("shift", [1, 8, 16, 31, 32, 48])
@pytest.mark.parametrize("data", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2])
def test_memory_that_is_not_aligned(data: int, count: int, shift: int, accelerated: bool) -> None:
    payloads = strips_of(data, 960)
    expected = list(naive(payloads))[:count]
    coder = Parity(data, count, accelerated=accelerated)
    assert generated(coder, payloads, count, shift) == expected
    one_aside = [aligned(payload, shift if index == 0 else 0) for index, payload in enumerate(payloads)]
    out = [aligned(bytes(960)) for _ in range(count)]
    coder.generate(one_aside, out)
    assert [bytes(view) for view in out] == expected
    result_aside = [aligned(bytes(960), shift) for _ in range(count)]
    coder.generate([aligned(payload) for payload in payloads], result_aside)
    assert [bytes(view) for view in result_aside] == expected


@pytest.mark.parametrize("count", [1, 2])
def test_memory_that_is_read_only(count: int, accelerated: bool) -> None:
    payloads = strips_of(4, 960)
    out = [aligned(bytes(960)) for _ in range(count)]
    Parity(4, count, accelerated=accelerated).generate([memoryview(payload) for payload in payloads], out)
    assert [bytes(view) for view in out] == list(naive(payloads))[:count]


def test_nothing_but_the_result_is_written(accelerated: bool) -> None:
    payloads = strips_of(4, 192)
    for shift in (0, 32):
        views = [aligned(payload, shift) for payload in payloads]
        around = [aligned(b"\xaa" * 320, shift) for _ in range(2)]
        Parity(4, 2, accelerated=accelerated).generate(views, [view[64:256] for view in around])
        assert [bytes(view) for view in views] == payloads
        assert all(view[:64] == view[256:] == b"\xaa" * 64 for view in around)


def test_the_direct_path_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[memoryview]:
        raise AssertionError("copied")

    if isal.load() is None:
        pytest.skip("no ISA-L")
    monkeypatch.setattr(parity, "_aligned", refuse)
    monkeypatch.setattr(parity, "_generate_by_numpy", refuse)
    payloads = strips_of(4, 4032)
    assert generated(Parity(4, 2), payloads, 2) == list(linux(payloads))
    with pytest.raises(AssertionError, match="copied"):
        generated(Parity(4, 2), payloads, 2, shift=32)


@pytest.mark.parametrize(
    ("data", "count"), [(1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (4, 2), (5, 1), (10, 2), (16, 2)]
)
def test_every_loss_comes_back(data: int, count: int, accelerated: bool) -> None:
    payloads = strips_of(data, 128, seed=data)
    stripe = payloads + list(naive(payloads))[:count]
    coder = Parity(data, count, accelerated=accelerated)
    for lost_count in range(count + 1):
        for lost in combinations(range(data + count), lost_count):
            given_strips = [None if index in lost else memoryview(strip) for index, strip in enumerate(stripe)]
            complete = coder.recover(given_strips)
            assert [bytes(strip) for strip in complete] == stripe, lost
            assert all(complete[index] is given_strips[index] for index in range(data + count) if index not in lost)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 15, 33, 63, 65, 127, 4032, 100_001])
def test_recovery_of_any_length_and_alignment(length: int, accelerated: bool) -> None:
    payloads = strips_of(3, length)
    stripe = [*payloads, *linux([payload + bytes(-length % 8) for payload in payloads])]
    stripe = [strip[:length] for strip in stripe]
    coder = Parity(3, 2, accelerated=accelerated)
    for shift in (0, 1, 13, 32):
        views: list[bytearray | memoryview | None] = [aligned(strip, shift) for strip in stripe]
        views[0] = views[2] = None
        assert [bytes(strip) for strip in coder.recover(views)] == stripe
        assert [bytes(strip) for strip in coder.recover([*views[:3], bytearray(stripe[3]), views[4]])] == stripe


@pytest.mark.parametrize(("data", "count"), [(4, 0), (4, 1), (4, 2), (1, 2)])
def test_more_losses_than_parity(data: int, count: int, accelerated: bool) -> None:
    stripe: list[memoryview | bytearray | None] = [memoryview(bytes(64)) for _ in range(data + count)]
    for index in range(count + 1):
        stripe[index] = None
    with pytest.raises(ValueError, match=f"{count + 1} strips are missing, {count} can be rebuilt"):
        Parity(data, count, accelerated=accelerated).recover(stripe)


def test_what_cannot_be(accelerated: bool) -> None:
    coder = Parity(2, 2, accelerated=accelerated)
    good, short, odd = aligned(bytes(128)), aligned(bytes(64)), aligned(bytes(96))
    with pytest.raises(ValueError, match="different lengths"):
        coder.generate([good, short], [good, good])
    with pytest.raises(ValueError, match="different lengths"):
        coder.generate([good, good], [good, short])
    with pytest.raises(ValueError, match="multiple of 64"):
        coder.generate([odd, odd], [odd, odd])
    with pytest.raises(ValueError, match="1 payloads and 3 results"):
        coder.generate([good], [good, good, good])
    with pytest.raises(ValueError, match="3 strips for 2"):
        coder.recover([good, good, good])
    with pytest.raises(ValueError, match="different lengths"):
        coder.recover([good, short, None, None])
    for data, count in ((0, 1), (17, 2), (4, 3), (4, -1)):
        with pytest.raises(AssertionError):
            Parity(data, count)


@given(
    data=st.integers(1, 16),
    seed=st.integers(0, 1000),
    units=st.integers(1, 20),
    lost=st.sets(st.integers(0, 17), max_size=2),
)
def test_generate_and_recover_agree(data: int, seed: int, units: int, lost: set[int]) -> None:
    payloads = strips_of(data, 64 * units, seed)
    for each in BACKENDS:
        coder = Parity(data, 2, accelerated=each)
        stripe = payloads + generated(coder, payloads, 2)
        complete = coder.recover([None if index in lost else memoryview(strip) for index, strip in enumerate(stripe)])
        assert [bytes(strip) for strip in complete] == stripe


def test_every_pair_of_rows_that_may_be_left_is_regular() -> None:
    for data in (1, 2, 5, 16):
        rows = generator(data, 2)
        for lost in combinations(range(data + 2), 2):
            square = tuple(row for index, row in enumerate(rows) if index not in lost)
            solved = inverted(square)
            for i in range(data):
                for j in range(data):
                    value = 0
                    for index in range(data):
                        value ^= slow_multiply(square[i][index], solved[index][j])
                    assert value == (i == j)


class WrongLibrary:
    """ISA-L, but for one function that does something else."""

    def __init__(self, name: str) -> None:
        self._real = isal.load()
        self._name = name

    def pq_gen(self, vectors: int, length: int, array: object) -> int:
        assert self._real is not None
        return 1 if self._name == "pq_gen" else int(self._real.pq_gen(vectors, length, array))

    def xor_gen(self, vectors: int, length: int, array: object) -> int:
        assert self._real is not None
        return 0 if self._name == "xor_gen" else int(self._real.xor_gen(vectors, length, array))

    def multiply(self, factors: Matrix, sources: list[int], targets: list[int], length: int) -> None:
        assert self._real is not None
        wrong = ((1, 1), (1, 3)) if self._name == "multiply" else factors
        self._real.multiply(wrong, sources, targets, length)


@pytest.mark.parametrize("name", ["", "pq_gen", "xor_gen", "multiply"])
def test_a_library_that_is_wrong_is_found_out(name: str) -> None:
    if isal.load() is None:
        pytest.skip("no ISA-L")
    assert isal._works(WrongLibrary(name)) == (name == "")  # type: ignore[arg-type]


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    isal.load.cache_clear()
    monkeypatch.setattr(isal, "_candidates", lambda: iter(["/absent/libisal.so.2", "libc.so.6"]))
    yield
    isal.load.cache_clear()


@pytest.mark.usefixtures("no_library")
def test_without_a_library_numpy_does_it() -> None:
    assert isal.load() is None
    coder = Parity(4, 2)
    assert not coder.accelerated
    payloads = strips_of(4, 128)
    assert generated(coder, payloads, 2) == list(naive(payloads))


def test_a_library_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isal, "_works", lambda _: False)
    isal.load.cache_clear()
    try:
        assert isal.load() is None
    finally:
        isal.load.cache_clear()


def test_where_the_library_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside pyeclib's extension module too, where its metadata was stripped."""
    found = list(isal._candidates())
    assert found[-1] == isal.SYSTEM_LIBRARY

    def refuse(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.files", refuse)
    assert found[0] in list(isal._candidates())


def test_doubling_by_words_is_doubling_by_bytes() -> None:
    """Every byte value next to every neighbour that could carry into it."""
    first = np.repeat(np.arange(256, dtype=np.uint8), 256).tobytes()
    second = np.tile(np.arange(256, dtype=np.uint8), 256).tobytes()
    mixed = b"".join(bytes(pair) for pair in zip(first, second, strict=True))
    out = generated(Parity(2, 2, accelerated=False), [bytes(len(mixed)), mixed], 2)
    assert out[1] == bytes(slow_multiply(2, value) for value in mixed)
