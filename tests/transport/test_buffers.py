"""Leases are whole, reused last in first out, and only so many are kept."""

from __future__ import annotations

from nvmeof.limits import SLAB_BYTES, SLABS_IDLE_MAX
from nvmeof.transport.buffers import BufferPool


def test_leases_are_distinct_and_writable() -> None:
    pool = BufferPool()
    first, second = pool.lease(), pool.lease()
    first[:] = b"\xff" * SLAB_BYTES
    assert not any(second)
    assert pool.leased == 2


def test_the_last_one_given_back_is_lent_first() -> None:
    pool = BufferPool()
    first, second = pool.lease(), pool.lease()
    pool.release(first)
    pool.release(second)
    assert pool.lease() is second
    assert pool.lease() is first


def test_no_more_than_so_many_are_kept() -> None:
    pool = BufferPool()
    slabs = [pool.lease() for _ in range(SLABS_IDLE_MAX + 1)]
    for slab in slabs:
        pool.release(slab)
    assert pool.leased == 0
    again = [pool.lease() for _ in range(SLABS_IDLE_MAX + 1)]
    assert sum(any(slab is old for old in slabs) for slab in again) == SLABS_IDLE_MAX
