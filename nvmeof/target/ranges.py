"""The ranges of a Dataset Management command (NVM Command Set 1.0, section 3.2.3), as (first block, blocks)."""

from __future__ import annotations

from nvmeof.spec.command import UNPACK_DATASET_RANGES


def decode_ranges(view: memoryview) -> list[tuple[int, int]]:
    """Those that are not empty, in the host's order."""
    return [(slba, blocks) for _, blocks, slba in UNPACK_DATASET_RANGES(view) if blocks]


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same blocks in ascending ranges that neither overlap nor touch.

    A command may name the whole namespace 256 times; that is the work of once.
    """
    result: list[tuple[int, int]] = []
    for first, blocks in sorted(ranges):
        if result and first <= sum(result[-1]):
            start, length = result[-1]
            result[-1] = (start, max(length, first + blocks - start))
        else:
            result.append((first, blocks))
    return result
