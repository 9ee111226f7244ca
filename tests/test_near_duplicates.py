"""hash_search.py, near_duplicates.py, duplicates.py: the groups are those that comparing all pairs gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from flowers_pl.data import duplicates, hash_search, near_duplicates
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.duplicates import KEPT, duplicate_groups

Prints = tuple[list[str], np.ndarray, np.ndarray]


def correlation(thumb: np.ndarray, other: np.ndarray) -> float:
    """Compute Pearson's correlation of two thumbnails, which ignores brightness and contrast; 0 where one has
    no contrast at all."""
    first, second = (picture.astype(np.float64).ravel() - picture.mean() for picture in (thumb, other))
    norm = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / norm) if norm else 0.0


def by_all_pairs(digests: list[str], phashes: np.ndarray, thumbs: np.ndarray) -> list[int]:
    """What `duplicate_groups` returns, by looking at every pair."""
    groups = list(range(len(digests)))

    def first(photo: int) -> int:
        while groups[photo] != photo:
            photo = groups[photo]
        return photo

    for one in range(len(digests)):
        near = np.flatnonzero(np.bitwise_count(phashes[one + 1 :] ^ phashes[one]) <= 6) + one + 1
        for other in near.tolist():
            if first(one) != first(other) and correlation(thumbs[one], thumbs[other]) >= 0.93:
                groups[max(first(one), first(other))] = min(first(one), first(other))
    by_digest: dict[str, int] = {}
    for photo, digest in enumerate(digests):
        low, high = sorted((first(by_digest.setdefault(digest, photo)), first(photo)))
        groups[high] = low
    return [first(photo) for photo in range(len(digests))]


def flipped(rng: np.random.Generator, phashes: np.ndarray, bits: int) -> np.ndarray:
    """Flip 0 to `bits` bits of each hash, at random."""
    changed = phashes.copy()
    for number in range(bits):
        bit = np.uint64(1) << rng.integers(0, 64, len(phashes), dtype=np.uint64)
        changed ^= np.where(rng.integers(0, bits + 1, len(phashes)) > number, bit, np.uint64(0))
    return changed


def noisy(rng: np.random.Generator, thumbs: np.ndarray, noise: float) -> np.ndarray:
    return np.clip(thumbs + rng.normal(0, noise, thumbs.shape), 0, 255).astype(np.uint8)


def small_set(rng: np.random.Generator, count: int) -> Prints:
    """Crowded photos: few hashes and thumbnails, changed a little; some flat, some equal, some by digest."""
    hashes = rng.integers(0, 2**64, 4, dtype=np.uint64)[rng.integers(0, 4, count)]
    phashes = flipped(rng, hashes, int(rng.integers(0, 9)))
    pictures = rng.integers(0, 256, (3, 16, 16))[rng.integers(0, 3, count)]
    thumbs = noisy(rng, pictures, rng.uniform(1, 60))
    thumbs[rng.random(count) < 0.1] = 7
    copies, originals = rng.integers(0, count, (2, count // 5))
    phashes[copies], thumbs[copies] = phashes[originals], thumbs[originals]
    return [str(number) for number in rng.integers(0, 4 * count, count)], phashes, thumbs


def some(prints: Prints, rows: np.ndarray) -> Prints:
    digests, phashes, thumbs = prints
    return [digests[row] for row in rows], phashes[rows], thumbs[rows]


@pytest.fixture(params=["few", "sorted"])
def small_limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits at which a small set goes all the ways that a large one goes."""
    for module, names in (
        (hash_search, {"LONG": 3, "PAIRS": 20}),
        (near_duplicates, {"PAIRS": 20, "MANY": 9, "SIDE": 5, "ROWS": 7}),
    ):
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)
    if request.param == "sorted":
        monkeypatch.setattr(hash_search, "FEW", 0)
        monkeypatch.setattr(hash_search, "_sorting_pays_off", lambda hashes, num_bits: num_bits == 64)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("seed", range(6))
def test_groups_are_those_of_all_pairs_as_photos_come_and_go(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prints = small_set(rng, 60)
    in_groups = 0
    for size in (40, 60, 25, 0, 60, 59, 60):
        part = some(prints, np.sort(rng.permutation(60)[:size]))
        expected = by_all_pairs(*part)
        in_groups += size - len(set(expected))
        assert duplicate_groups(*part).tolist() == expected
        assert duplicate_groups(*part, tmp_path).tolist() == expected
        assert duplicate_groups(*part, tmp_path).tolist() == expected  # as kept
    assert in_groups > 20


def test_groups_of_20_000_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    count = 20_000
    phashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    thumbs = rng.integers(0, 256, (count, 16, 16), dtype=np.uint8)
    phashes[:6000] = phashes[:6000] >> np.uint64(24)  # share 24 bits
    phashes[6000:6200] = phashes[6000]
    thumbs[6000:6200] = noisy(rng, thumbs[6000:6001], 28)  # correlate by 0.93, more or less
    phashes[6200:6400] = flipped(rng, np.repeat(phashes[6200:6201], 200), 4)
    thumbs[6200:6400] = noisy(rng, thumbs[6200:6201], 28)
    phashes[-2000:] = flipped(rng, phashes[5000:7000], 8)
    thumbs[-2000:] = noisy(rng, thumbs[5000:7000], 10)
    digests = [str(photo) for photo in range(count)]
    expected = by_all_pairs(digests, phashes, thumbs)
    assert 15_000 < len(set(expected)) < 18_800
    assert duplicate_groups(digests, phashes, thumbs).tolist() == expected


@pytest.mark.parametrize("num_bits", [64, 40])
def test_each_near_pair_of_hashes_is_found_once(monkeypatch: pytest.MonkeyPatch, num_bits: int) -> None:
    monkeypatch.setattr(hash_search, "FEW", 0)
    monkeypatch.setattr(hash_search, "_sorting_pays_off", lambda hashes, num_bits: num_bits > 40)
    monkeypatch.setattr(hash_search, "LONG", 30)
    rng = np.random.default_rng(num_bits)
    centres = rng.integers(0, 2**num_bits, 60, dtype=np.uint64)
    hashes = np.unique(flipped(rng, np.repeat(centres, 5), 5))
    fresh = rng.random(len(hashes)) < 0.5
    apart = np.bitwise_count(hashes[:, None] ^ hashes)
    expected = {
        (one, other)
        for one, other in np.argwhere(np.triu(apart <= 6, 1)).tolist()
        if fresh[one] or fresh[other]
    }
    found = [
        (min(pair), max(pair))
        for first, second in hash_search.near_hashes(hashes, fresh)
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert len(found) == len(expected) > 100
    assert set(found) == expected


@pytest.mark.parametrize("count", [2, 40])
def test_correlations_of_0_93_are_told_as_the_pair_alone_tells_them(count: int) -> None:
    """A thumbnail and permutations of it that correlate by 0.93 but for what float64 rounds."""
    rng = np.random.default_rng(0)
    told = set()
    for swaps in range(7, 22):
        places = rng.permutation(256)
        thumb = np.full(256, 100)
        ups, downs, others = np.split(places, [25 * swaps // 7 * 2, 25 * swaps // 7 * 4])
        thumb[ups], thumb[downs] = 101, 99
        swapped = np.tile(thumb, (count, 1))
        for row in swapped[1:]:
            one, other = rng.permutation(ups)[:swaps], rng.permutation(others)[:swaps]
            row[one], row[other] = 100, 101
        thumbs = swapped.astype(np.uint8).reshape(count, 16, 16)
        digests, phashes = [str(photo) for photo in range(count)], np.zeros(count, np.uint64)
        found = [correlation(thumbs[0], other) for other in thumbs[1:]]
        told |= {one >= 0.93 for one in found if abs(one - 0.93) < 1e-12}
        assert duplicate_groups(digests, phashes, thumbs).tolist() == by_all_pairs(digests, phashes, thumbs)
    assert told == {True, False}


def test_a_flat_thumbnail_is_near_nothing_but_its_own_digest() -> None:
    thumbs = np.full((4, 16, 16), 7, np.uint8)
    thumbs[3, 0, 0] = 8
    assert duplicate_groups(["a", "b", "a", "c"], np.zeros(4, np.uint64), thumbs).tolist() == [0, 1, 0, 3]


def chain() -> Prints:
    """Three photos; the first and the last are near to the one between, and not to each other."""
    thumb = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return ["a", "b", "c"], np.array([0, 2**6 - 1, 2**12 - 1], np.uint64), np.stack([thumb] * 3)


def test_a_group_falls_apart_when_the_photo_that_held_it_together_goes(tmp_path: Path) -> None:
    assert duplicate_groups(*chain(), tmp_path).tolist() == [0, 0, 0]
    assert duplicate_groups(*some(chain(), np.array([0, 2])), tmp_path).tolist() == [0, 1]
    assert duplicate_groups(*chain(), tmp_path).tolist() == [0, 0, 0]


def test_only_what_is_new_or_has_lost_a_photo_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    search = hash_search.near_hashes

    def counting(hashes: np.ndarray, fresh: np.ndarray) -> object:
        compared.append(int(fresh.sum()))
        return search(hashes, fresh)

    monkeypatch.setattr(near_duplicates, "near_hashes", counting)
    rng = np.random.default_rng(0)
    prints = (
        [str(photo) for photo in range(50)],
        rng.integers(0, 2**64, 50, dtype=np.uint64),
        small_set(rng, 50)[2],
    )
    prints[1][:3], prints[2][:3] = chain()[1:]
    for rows in (range(49), range(49), range(50), [0, *range(2, 50)], range(3, 50)):
        duplicate_groups(*some(prints, np.array(rows)), tmp_path)
    flat = (prints[2].min((1, 2)) == 7) & (prints[2].max((1, 2)) == 7)
    assert not flat[[0, 1, 2, 49]].any()
    assert compared == [49 - flat.sum(), 1, 2]


@pytest.mark.parametrize("many", [1, 256])
@pytest.mark.parametrize("hashes", [[0, 0, 1], [1, 1, 0]])
def test_an_old_photo_is_compared_with_a_new_one_whose_hash_is_that_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int, hashes: list[int]
) -> None:
    monkeypatch.setattr(near_duplicates, "MANY", many)
    thumb = np.arange(256, dtype=np.uint8).reshape(16, 16)
    prints = ["a", "b", "c"], np.array(hashes, np.uint64), np.stack([thumb, thumb.T, thumb // 2])
    duplicate_groups(*some(prints, np.array([0])), tmp_path)
    assert duplicate_groups(*prints, tmp_path).tolist() == [0, 1, 0]


def flip(at: int, content: bytes) -> bytes:
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"S16", b"S99"),
        *(partial(flip, at) for at in range(0, 550, 40)),
    ],
)
def test_what_is_kept_and_damaged_is_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    duplicate_groups(*chain(), tmp_path)
    kept = (tmp_path / KEPT).read_bytes()
    (tmp_path / KEPT).write_bytes(damage(kept))
    assert duplicate_groups(*chain(), tmp_path).tolist() == [0, 0, 0]
    assert duplicates._load(tmp_path)[0].tolist() == sorted(duplicates._load(tmp_path)[0].tolist())
    assert len(duplicates._load(tmp_path)[0]) == 3


def test_groups_are_found_where_they_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / KEPT).mkdir()
    assert duplicate_groups(*chain(), tmp_path).tolist() == [0, 0, 0]
    assert duplicate_groups(*chain(), tmp_path / "gone").tolist() == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [KEPT]


def test_fit_keeps_the_groups_beside_the_photos(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def splits() -> object:
        data = FlowersDataModule(root=str(drawings), image_size=32, workers=0, cache_dir=str(tmp_path))
        data.setup("fit")
        return data

    splits()
    assert len(list(tmp_path.glob(f"*/{KEPT}"))) == 1
    monkeypatch.setattr(near_duplicates, "near_hashes", None)  # it is not called again
    splits()
