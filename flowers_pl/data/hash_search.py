"""Perceptual hashes that differ in few bits, found without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations, pairwise

import numpy as np

NEAR_BITS = 6  # of 64
AGREEING = 3  # chunks
FEW = 4096  # hashes that are compared with all others
LONG = 512  # hashes in a run
SAMPLE = 8192  # hashes that tell whether sorting pays off
PAIRS = 2**18  # that are yielded together

Pairs = tuple[np.ndarray, np.ndarray]


def near_hashes(hashes: np.ndarray, fresh: np.ndarray) -> Iterator[Pairs]:
    """Yield the pairs of hashes at most NEAR_BITS apart, each once, about PAIRS at a time.

    If the bits are cut into NEAR_BITS + AGREEING chunks, then two hashes that differ in at most NEAR_BITS of
    them agree in AGREEING chunks. So hashes are sorted by each choice of so many chunks, and compared only
    with those that agree in these (Manku, Jain and Das Sarma 2007, "Detecting near-duplicates for web
    crawling"). A million hashes that are spread evenly leave runs of one or two. Within a long run the search
    starts again with the other bits. Where sorting would not pay off, all pairs are compared, in blocks.

    Args:
        hashes: uint64 (N,), all different.
        fresh: bool (N,): pairs without one of these are left out.

    Yields:
        two int64 (P,): the rows of each pair.

    >>> [pair] = near_hashes(np.array([0, 2**40 - 1, 63], np.uint64), np.ones(3, bool))
    >>> sorted(np.concatenate(pair).tolist())
    [0, 2]
    """
    found: list[Pairs] = []
    count = 0
    for pairs in _near(hashes, fresh, 64):
        if len(pairs[0]):
            found.append(pairs)
            count += len(pairs[0])
        if count >= PAIRS:
            yield _joined(found)
            found, count = [], 0
    if count:
        yield _joined(found)


def _joined(found: list[Pairs]) -> Pairs:
    return np.concatenate([first for first, _ in found]), np.concatenate([second for _, second in found])


def _near(hashes: np.ndarray, fresh: np.ndarray, num_bits: int) -> Iterator[Pairs]:
    """Yield the near pairs of hashes that differ in their lowest `num_bits` bits at most."""
    if fresh.sum() <= FEW or not _sorting_pays_off(hashes, num_bits):
        yield from _near_of_all(hashes, fresh)
        return
    chunks = _cut(hashes, num_bits)
    for chosen in combinations(range(len(chunks)), AGREEING):
        others = [number for number in range(len(chunks)) if number not in chosen]
        earlier = [chunks[number][0] for number in others if number < chosen[-1]]
        bits_left = sum(chunks[number][1] for number in others)
        order, starts, lengths = _runs(_packed(chunks, chosen), fresh)
        for first, second in _near_in_runs(hashes[order], fresh[order], starts, lengths):
            first, second = order[first], order[second]
            yield _not_agreeing(earlier, first, second)
        for start in np.flatnonzero(lengths > LONG):
            rows = order[starts[start] : starts[start] + lengths[start]]
            for first, second in _near(_packed(chunks, others, rows), fresh[rows], bits_left):
                yield _not_agreeing(earlier, rows[first], rows[second])


def _not_agreeing(chunks: list[np.ndarray], first: np.ndarray, second: np.ndarray) -> Pairs:
    """Return the pairs that agree in none of some chunks: those that do were found by an earlier choice."""
    new = np.ones(len(first), bool)
    for chunk in chunks:
        new &= chunk[first] != chunk[second]
    return first[new], second[new]


def _cut(hashes: np.ndarray, num_bits: int) -> list[tuple[np.ndarray, int]]:
    """Cut hashes into chunks, each with its number of bits."""
    cuts = np.linspace(0, num_bits, NEAR_BITS + AGREEING + 1).astype(int).tolist()
    return [
        (hashes >> np.uint64(low) & np.uint64(2 ** (high - low) - 1), high - low)
        for low, high in pairwise(cuts)
    ]


def _packed(
    chunks: list[tuple[np.ndarray, int]], chosen: Iterable[int], rows: np.ndarray | slice = slice(None)
) -> np.ndarray:
    """Put chunks side by side: uint64."""
    key = np.zeros_like(chunks[0][0][rows])
    for number in chosen:
        chunk, width = chunks[number]
        key = key << np.uint64(width) | chunk[rows]
    return key


def _sorting_pays_off(hashes: np.ndarray, num_bits: int) -> bool:
    """Estimate, by a sample, whether all runs together have far fewer pairs than there are."""
    sample = hashes[:: -(-len(hashes) // SAMPLE)]
    chunks = _cut(sample, num_bits)
    pairs = 0
    for chosen in combinations(range(len(chunks)), AGREEING):
        pairs += int((np.unique_counts(_packed(chunks, chosen)).counts ** 2).sum())
    return 4 * pairs < len(sample) ** 2


def _runs(key: np.ndarray, fresh: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort by keys of 31 bits at most, fresh ones first: the order, and each run's start and length."""
    packed = np.sort((key << np.uint64(1) | ~fresh) << np.uint64(32) | np.arange(len(key), dtype=np.uint64))
    order = (packed & np.uint64(2**32 - 1)).astype(np.int64)
    key = packed >> np.uint64(33)
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return order, starts, np.diff(starts, append=len(key))


def _near_in_runs(
    hashes: np.ndarray, fresh: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> Iterator[Pairs]:
    """Yield the near pairs within runs of LONG at most: those one place apart, two, and so on."""
    room = np.repeat(np.where(lengths > LONG, 0, starts + lengths), lengths) - np.arange(1, len(hashes) + 1)
    left = np.flatnonzero((room > 0) & fresh)
    room = room[left]
    step = 1
    while len(left):
        near = left[np.bitwise_count(hashes[left] ^ hashes[left + step]) <= NEAR_BITS]
        if len(near):
            yield near, near + step
        left, room = left[room > step], room[room > step]
        step += 1


def _near_of_all(
    hashes: np.ndarray, fresh: np.ndarray, rows: int = 64, columns: int = 4096
) -> Iterator[Pairs]:
    """Compare all pairs, of blocks that fit the processor's cache."""
    order = np.argsort(~fresh, kind="stable")
    hashes = hashes[order]
    for row in range(0, int(fresh.sum()), rows):
        last = min(row + rows, int(fresh.sum()))
        for column in range(row, len(hashes), columns):
            apart = np.bitwise_count(hashes[row:last, None] ^ hashes[None, column : column + columns])
            if (near := apart <= NEAR_BITS).any():
                first, second = np.nonzero(near)
                first, second = first + row, second + column
                yield order[first[first < second]], order[second[first < second]]
