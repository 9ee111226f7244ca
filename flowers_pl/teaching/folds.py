"""Divide photos into parts of equal size, by class, with duplicates in one part."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.split import Placed


def fold_numbers(photos: Sequence[Placed], folds: int, seed: int) -> np.ndarray:
    """Give each photo the number of its fold.

    Groups of duplicates are dealt in the order of a hash of (seed, path of the group's first photo here),
    each to the fold that has the fewest photos of its class. So photos that are not in `photos`, those to
    validate with for example, have no influence.

    Args:
        photos: N of them.
        folds: how many.
        seed: of the order.

    Returns:
        int64 (N,), from 0 to folds - 1.

    Raises:
        FlowersError: there are fewer than two folds, or a class would be in one fold alone, so that the
            network that judges its photos would not know it.

    >>> names = [f"rose/{number}.jpg" for number in range(6)]
    >>> photos = [Placed(name, "rose", "train", name) for name in names[:5]]
    >>> copy = Placed(names[5], "rose", "train", names[0])
    >>> found = fold_numbers([*photos, copy], folds=2, seed=0)
    >>> np.bincount(found).tolist(), bool(found[0] == found[5])
    ([3, 3], True)
    """
    if folds < 2:
        raise FlowersError(f"--folds must be at least 2, not {folds}.")
    groups: dict[str, list[int]] = defaultdict(list)
    for index, photo in enumerate(photos):
        groups[photo.group].append(index)
    by_class: dict[str, list[list[int]]] = defaultdict(list)
    for members in groups.values():
        by_class[photos[members[0]].label].append(members)
    numbers = np.zeros(len(photos), np.int64)
    sizes = np.zeros(folds, np.int64)
    for label, of_class in sorted(by_class.items()):
        if len(of_class) < 2:
            raise FlowersError(
                f"--data.root: class {label!r} has a single photo to teach with (copies count as one), so no"
                " network that has not seen it knows the class; add photos or remove the class."
            )
        own = np.zeros(folds, np.int64)  # photos of the class
        for members in sorted(of_class, key=lambda group: _order(seed, photos[group[0]].path)):
            fold = min(range(folds), key=lambda number: (own[number], sizes[number], number))
            numbers[members] = fold
            own[fold] += len(members)
            sizes[fold] += len(members)
    return numbers


def _order(seed: int, path: str) -> bytes:
    return hashlib.sha256(f"fold {seed}:{path}".encode(errors="surrogateescape")).digest()
