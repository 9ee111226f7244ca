"""Near-duplicates: pictures whose perceptual hashes are near and whose thumbnails correlate."""

from __future__ import annotations

from itertools import chain

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from flowers_pl.data.hash_search import PAIRS, near_hashes

NEAR_CORRELATION = 0.93  # of the thumbnails
MANY = 256  # pairs of thumbnails from which on a matrix product is faster
SIDE = 2048  # thumbnails a side of such a product
ROWS = 2**14  # thumbnails that are copied together


def connected(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number the connected components of `count` nodes, given both ends of each edge: int64 (count,)."""
    edges = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(edges, directed=False)[1].astype(np.int64)


class NearPictures:
    """The groups of pictures that are near-duplicates of each other, by way of others too.

    Two pictures are near if their hashes differ in at most `hash_search.NEAR_BITS` bits and Pearson's
    correlation of their thumbnails is at least NEAR_CORRELATION. On 3,457 real photos all 22 pairs up to 6
    bits apart were true, recoloured copies among them; one of them correlates by less than 0.93 (0.895). On
    1,500 drawings 4 pairs are, all false, and correlate by 0.82 to 0.91.

    Args:
        phashes: uint64 (N,).
        thumbs: uint8 (M, 256); none is of one level only.
        rows: int64 (N,): which thumbnail is whose.
        groups: int64 (N,): the same, from 0 to N - 1, for pictures that are known to be in one group.
    """

    def __init__(self, phashes: np.ndarray, thumbs: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> None:
        self.thumbs, self.rows, self.groups = thumbs, rows, groups
        self.order = np.argsort(phashes, kind="stable")
        self.hashes, self.starts, self.counts = np.unique(
            phashes[self.order], return_index=True, return_counts=True
        )
        self.sums, squares = np.empty(len(rows)), np.empty(len(rows))
        for start in range(0, len(rows), ROWS):
            part = np.arange(start, min(start + ROWS, len(rows)))
            levels = self._levels(part)
            self.sums[part], squares[part] = levels.sum(1), np.einsum("np,np->n", levels, levels)
        self.norms = np.sqrt(256 * squares - self.sums**2)

    def search(self, fresh: np.ndarray) -> np.ndarray:
        """Find near pictures of which at least one is fresh, and join their groups.

        Args:
            fresh: bool (N,).

        Returns:
            int64 (N,): the groups.
        """
        fresh_hashes = np.logical_or.reduceat(fresh[self.order], self.starts)
        same = np.flatnonzero(fresh_hashes & (self.counts > 1))
        for first, second in chain([(same, same)], near_hashes(self.hashes, fresh_hashes)):
            sizes = self.counts[first] * self.counts[second]
            many = sizes >= MANY
            for pair in zip(first[many], second[many], strict=True):
                left, right = (self.order[self.starts[one] :][: self.counts[one]] for one in pair)
                self._compare_all(left[fresh[left]], right)
                self._compare_all(left[~fresh[left]], right[fresh[right]])
            first, second, sizes = first[~many], second[~many], sizes[~many]
            for part in np.split(
                np.arange(len(sizes)), np.flatnonzero(np.diff(np.cumsum(sizes) // PAIRS)) + 1
            ):
                left, right = self._pairs(first[part], second[part], sizes[part])
                self._compare(*(side[fresh[left] | fresh[right]] for side in (left, right)))
        return self.groups

    def _pairs(
        self, first: np.ndarray, second: np.ndarray, sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """List the pairs of pictures with these pairs of hashes."""
        number = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        first, second = np.repeat(first, sizes), np.repeat(second, sizes)
        row, column = np.divmod(number, self.counts[second])
        return self.order[self.starts[first] + row], self.order[self.starts[second] + column]

    def _compare(self, first: np.ndarray, second: np.ndarray) -> None:
        """Join those pairs whose thumbnails correlate, of those not in one group."""
        apart = self.groups[first] != self.groups[second]
        first, second = first[apart], second[apart]
        near = np.zeros(len(first), bool)
        for start in range(0, len(first), ROWS):
            part = slice(start, start + ROWS)
            products = np.einsum("np,np->n", self._levels(first[part]), self._levels(second[part]))
            near[part] = self._correlate(products, first[part], second[part])
        self._join(first[near], second[near])

    def _compare_all(self, left: np.ndarray, right: np.ndarray) -> None:
        """Join each of `left` with those of `right` whose thumbnails correlate."""
        for row in range(0, len(left), SIDE):
            first = left[row : row + SIDE]
            for column in range(0, len(right), SIDE):
                second = right[column : column + SIDE]
                apart = self.groups[first][:, None] != self.groups[second]
                if apart.any():
                    products = self._levels(first) @ self._levels(second).T
                    rows, columns = np.nonzero(self._correlate(products, first[:, None], second) & apart)
                    self._join(first[rows], second[columns])

    def _join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Make one group of the groups of each pair."""
        if len(first):
            self.groups = connected(len(self.groups), self.groups[first], self.groups[second])[self.groups]

    def _levels(self, pictures: np.ndarray) -> np.ndarray:
        """Return thumbnails in float32, in which sums of their products are exact: 256 * 255**2 < 2**24."""
        return self.thumbs[self.rows[pictures]].astype(np.float32)

    def _correlate(self, products: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Tell from the sums of products whether the correlation of each pair is large enough.

        All sums are exact, and 256 is 16**2, so that it is the same to the last bit.
        """
        found = 256 * products.astype(np.float64)
        found -= self.sums[first] * self.sums[second]
        found /= self.norms[first] * self.norms[second]
        return found >= NEAR_CORRELATION
