"""P and Q of a stripe, and lost strips out of what is left (FORMAT.md, stripe): by ISA-L, or by numpy without it.

One core, 4 data strips of 258 KiB: P and Q in 16 us (66 GB/s) with ISA-L, of which 1.7 us go to addresses. tools/bench
measures this.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nvmeof.engine import isal
from nvmeof.engine.galois import Matrix, multiply, recovery

DATA_MAX = 16
PARITY_MAX = 2
ALIGNMENT = 64
"""Of addresses and lengths for ISA-L's P and Q: its widest stores are of 64 bytes and must not be torn."""

Strip = bytearray | memoryview
Bytes = NDArray[np.uint8]

_HIGH_BITS = np.uint64(0x8080808080808080)
_LOW_BITS = np.uint64(0xFEFEFEFEFEFEFEFE)
_REDUCTION = np.uint64(0x1D)
_ONE, _SEVEN = np.uint64(1), np.uint64(7)

_c_char_of = ctypes.c_char.from_buffer
_address_of = ctypes.addressof


class Parity:
    """Parity of stripes of ``data`` (1..16) and ``parity`` (0..2) strips. Immutable: any thread may use it at any time.

    ``accelerated`` False leaves ISA-L alone; the bytes are the same. Buffers are contiguous, and must be left alone by
    others until a call returns: ISA-L lets other threads run meanwhile.
    """

    def __init__(self, data: int, parity: int, *, accelerated: bool = True) -> None:
        assert 1 <= data <= DATA_MAX
        assert 0 <= parity <= PARITY_MAX
        self._data = data
        self._parity = parity
        self._isal = isal.load() if accelerated else None
        self._array = ctypes.c_void_p * (data + parity)
        self._vectors = data + parity
        self._generate: Callable[[int, int, object], int] | None = None
        if self._isal is not None and parity and data > 1:
            self._generate = self._isal.pq_gen if parity == 2 else self._isal.xor_gen

    @property
    def accelerated(self) -> bool:
        """Whether ISA-L is used."""
        return self._isal is not None

    def generate(self, payloads: Sequence[memoryview], out: Sequence[memoryview]) -> None:
        """Write P, then Q, of ``payloads`` into ``out``: ``parity`` writable buffers.

        Without a copy when all is writable and 64-byte aligned. ValueError unless lengths are equal, a multiple of 64.
        """
        length = self._common_length([*payloads, *out])
        if len(payloads) != self._data or len(out) != self._parity:
            raise ValueError(f"{len(payloads)} payloads and {len(out)} results for {self._data} + {self._parity}")
        if length % ALIGNMENT:
            raise ValueError(f"strips of {length} bytes: a multiple of {ALIGNMENT} is wanted")
        if self._generate is None or not length:
            _generate_by_numpy(payloads, out)
            return
        try:
            held = [_c_char_of(view) for view in (*payloads, *out)]
        except TypeError:
            self._generate_from_copies(payloads, out, length)
            return
        addresses = [_address_of(each) for each in held]
        together = 0
        for address in addresses:
            together |= address
        if together % ALIGNMENT:
            self._generate_from_copies(payloads, out, length)
        elif self._generate(self._vectors, length, self._array(*addresses)):
            raise AssertionError("ISA-L refuses what fulfils its conditions")

    def recover(self, strips: Sequence[Strip | None]) -> list[Strip]:
        """All ``data + parity`` payloads, those that are None rebuilt. ValueError when more are missing than can be.

        Nothing tells here whether what is given is right: verify the result.
        """
        if len(strips) != self._vectors:
            raise ValueError(f"{len(strips)} strips for {self._data} + {self._parity}")
        missing = tuple(index for index, strip in enumerate(strips) if strip is None)
        if len(missing) > self._parity:
            raise ValueError(f"{len(missing)} strips are missing, {self._parity} can be rebuilt")
        length = self._common_length([strip for strip in strips if strip is not None])
        rebuilt = [bytearray(length) for _ in missing]
        if missing and length:
            present, factors = recovery(self._data, self._parity, missing)
            sources = [
                np.frombuffer(strip, np.uint8) for strip in (strips[index] for index in present) if strip is not None
            ]
            targets = [np.frombuffer(strip, np.uint8) for strip in rebuilt]
            if self._isal is None:
                _multiply_by_numpy(factors, sources, targets)
            else:
                self._isal.multiply(
                    factors, [_place(each) for each in sources], [_place(each) for each in targets], length
                )
        results = iter(rebuilt)
        return [next(results) if strip is None else strip for strip in strips]

    @staticmethod
    def _common_length(buffers: Sequence[Strip]) -> int:
        lengths = set(map(len, buffers))
        if len(lengths) != 1:
            raise ValueError(f"strips of different lengths: {sorted(lengths)}")
        return lengths.pop()

    def _generate_from_copies(self, payloads: Sequence[memoryview], out: Sequence[memoryview], length: int) -> None:
        copies = _aligned(len(payloads) + len(out), length)
        for copy, payload in zip(copies, payloads, strict=False):
            copy[:] = payload
        self.generate(copies[: len(payloads)], copies[len(payloads) :])
        for target, copy in zip(out, copies[len(payloads) :], strict=True):
            target[:] = copy


def _generate_by_numpy(payloads: Sequence[memoryview], out: Sequence[memoryview]) -> None:
    """P is a sum; Q by Horner's rule, eight bytes at a time."""
    strips = [np.frombuffer(payload, np.uint64) for payload in payloads]
    if out:
        p = strips[0].copy()
        for strip in strips[1:]:
            p ^= strip
        out[0][:] = p.view(np.uint8).data
    if len(out) == PARITY_MAX:
        q = strips[-1].copy()
        for strip in strips[-2::-1]:
            carry = (q & _HIGH_BITS) >> _SEVEN
            q = ((q << _ONE) & _LOW_BITS) ^ (carry * _REDUCTION) ^ strip
        out[1][:] = q.view(np.uint8).data


def _multiply_by_numpy(factors: Matrix, sources: Sequence[Bytes], targets: Sequence[Bytes]) -> None:
    for row, target in zip(factors, targets, strict=True):
        for factor, source in zip(row, sources, strict=True):
            if factor:
                target ^= source if factor == 1 else _products(factor)[source]


@cache
def _products(factor: int) -> Bytes:
    """``factor`` times every byte."""
    return np.array([multiply(factor, value) for value in range(256)], np.uint8)


def _place(buffer: Bytes) -> int:
    return int(buffer.ctypes.data)


def _aligned(count: int, length: int) -> list[memoryview]:
    """New buffers at 64-byte boundaries; ``length`` is a multiple of 64."""
    memory = bytearray(count * length + ALIGNMENT)
    start = -_address_of(_c_char_of(memory)) % ALIGNMENT
    view = memoryview(memory)
    return [view[start + index * length : start + (index + 1) * length] for index in range(count)]
