"""suspects.py: confident learning against examples worked by hand, and wrong labels that were planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from flowers_pl.audit.labels import (
    Suspect,
    calibrated_joint,
    confident_classes,
    confident_joint,
    find_suspects,
    fit_regression,
    folds,
    out_of_fold,
    predict_regression,
)

# Six photos, three of each of two classes. Class 0's threshold is (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1's is
# (0.7 + 0.9 + 0.35) / 3 = 0.65.
SHARES = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.1, 0.9], [0.65, 0.35]])
LABELS = np.array([0, 0, 0, 1, 1, 1])


def test_the_confident_joint_of_an_example_worked_by_hand() -> None:
    confident = confident_classes(SHARES, LABELS)
    assert confident.tolist() == [0, 0, 1, 1, 1, 0]
    joint = confident_joint(confident, LABELS, 2)
    assert joint.tolist() == [[2, 1], [1, 2]]
    assert calibrated_joint(joint, LABELS).tolist() == pytest.approx(np.array([[2, 1], [1, 2]]))
    assert find_suspects(SHARES, LABELS) == [
        Suspect(2, 0, 1, 0.1, 0.9),
        Suspect(5, 1, 0, 0.35, 0.65),
    ]


def test_photos_below_every_threshold_count_for_no_class() -> None:
    shares = np.array([[0.9, 0.1], [0.55, 0.45], [0.1, 0.9], [0.45, 0.55]])
    labels = np.array([0, 0, 1, 1])  # thresholds: 0.725 and 0.725
    confident = confident_classes(shares, labels)
    assert confident.tolist() == [0, -1, 1, -1]
    joint = confident_joint(confident, labels, 2)
    assert joint.tolist() == [[1, 0], [0, 1]]
    assert calibrated_joint(joint, labels).tolist() == [[2, 0], [0, 2]]  # scaled to all photos


def test_of_several_classes_that_are_reached_the_likeliest_counts() -> None:
    # Thresholds 0.4, 0.4 and 0.2: the last photo reaches all of classes 1 and 2.
    shares = np.array(
        [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.2, 0.5, 0.3], [0.45, 0.45, 0.1], [0.35, 0.3, 0.35]]
    )
    labels = np.array([0, 1, 2, 2, 0])
    thresholds = [(0.4 + 0.35) / 2, 0.4, (0.3 + 0.1) / 2]
    expected = [
        max((c for c in range(3) if row[c] >= thresholds[c]), key=lambda c: row[c], default=-1)
        for row in shares
    ]
    assert confident_classes(shares, labels).tolist() == expected
    assert expected[2] == 1


def test_a_class_without_a_confident_photo_is_taken_to_be_right() -> None:
    joint = np.array([[0, 0], [1, 3]])
    assert calibrated_joint(joint, np.array([0, 0, 1, 1, 1, 1])).tolist() == [[2, 0], [1, 3]]


def test_the_regression_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(120, 7))
    labels = generator.integers(0, 3, 120)
    ours = fit_regression(torch.from_numpy(features), torch.from_numpy(labels), 3, penalty=0.05)
    oracle = LogisticRegression(C=1 / (0.05 * 120), tol=1e-9, max_iter=1000).fit(features, labels)
    shares = predict_regression(torch.from_numpy(features), ours).numpy()
    np.testing.assert_allclose(shares, oracle.predict_proba(features), atol=1e-4)


def test_folds_are_even_and_keep_duplicates_together() -> None:
    labels = np.repeat([0, 1, 2], [50, 23, 7])
    groups = np.arange(80)
    groups[[3, 4, 5, 60]] = 3  # three of class 0 and one of class 1
    groups[[73, 74]] = 73
    dealt = folds(labels, groups, 5)
    for group in np.unique(groups):
        assert len(set(dealt[groups == group])) == 1
    for label in range(3):
        counts = np.bincount(dealt[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 2
    assert dealt.tolist() == folds(labels, groups, 5).tolist()
    assert dealt.tolist() != folds(labels, groups, 5, seed=1).tolist()


def blobs(wrong: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Features of 400 photos of four classes that overlap a little, their true labels, and the labels after
    `wrong` were changed."""
    generator = np.random.default_rng(seed)
    truth = np.arange(400) % 4
    centres = generator.normal(size=(4, 16))
    features = torch.from_numpy(centres[truth] * 1.2 + generator.normal(size=(400, 16))).float()
    given = truth.copy()
    changed = generator.choice(400, wrong, replace=False)
    given[changed] = (given[changed] + generator.integers(1, 4, wrong)) % 4
    return features, truth, given


def test_planted_wrong_labels_are_found_and_named_right() -> None:
    features, truth, given = blobs(wrong=40)
    shares = out_of_fold(features, given, np.arange(400), 4)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    found = find_suspects(shares, given)
    planted = set(np.flatnonzero(given != truth).tolist())
    hits = [one for one in found if one.photo in planted]
    assert len(hits) >= 0.6 * len(planted)
    assert len(hits) >= 0.95 * len(found)
    assert np.mean([one.likely == truth[one.photo] for one in hits]) >= 0.95
    assert all(one.photo in planted for one in found[:20])  # the worst come first
    assert [one.margin for one in found] == sorted(one.margin for one in found)
    estimated = calibrated_joint(confident_joint(confident_classes(shares, given), given, 4), given)
    assert 400 - np.trace(estimated) == pytest.approx(40, abs=8)


def test_a_duplicate_does_not_vouch_for_a_wrong_label() -> None:
    """Ten copies of one photo under a wrong class: parted, they would teach the models their own mistake."""
    features, _, given = blobs(wrong=0)
    copies = np.flatnonzero(given == 0)[:10]
    features[copies], given[copies] = features[copies[0]].clone(), 1
    groups = np.arange(400)
    together, apart = groups.copy(), groups
    together[copies] = copies[0]
    shares = {name: out_of_fold(features, given, one, 4) for name, one in (("t", together), ("a", apart))}
    assert shares["t"][copies, 1].max() < shares["a"][copies, 1].min()
    assert set(copies.tolist()) <= {one.photo for one in find_suspects(shares["t"], given)}
