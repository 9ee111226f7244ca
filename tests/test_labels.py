"""labels.py: confident learning against examples worked by hand, and wrong labels that were planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_pl.audit.labels import (
    Suspect,
    calibrated_joint,
    confident_classes,
    confident_joint,
    deal_folds,
    find_suspects,
    predict_out_of_fold,
)
from flowers_pl.data.cache import decode_photos
from flowers_pl.data.duplicates import duplicate_groups
from flowers_pl.data.folder import list_photos
from flowers_pl.network.fast_frozen import FrozenPart
from flowers_pl.network.features import pooled_features
from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.network.weights import load_weights

# Six photos, three of each of two classes. Class 0's threshold is (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1's is
# (0.7 + 0.9 + 0.35) / 3 = 0.65.
PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.1, 0.9], [0.65, 0.35]])
LABELS = np.array([0, 0, 0, 1, 1, 1])


def test_the_confident_joint_of_an_example_worked_by_hand() -> None:
    confident = confident_classes(PROBABILITIES, LABELS)
    assert confident.tolist() == [0, 0, 1, 1, 1, 0]
    joint = confident_joint(confident, LABELS, 2)
    assert joint.tolist() == [[2, 1], [1, 2]]
    assert calibrated_joint(joint, LABELS).tolist() == pytest.approx(np.array([[2, 1], [1, 2]]))
    assert find_suspects(PROBABILITIES, LABELS) == [
        Suspect(2, 0, 1, 0.1, 0.9),
        Suspect(5, 1, 0, 0.35, 0.65),
    ]


def test_photos_below_every_threshold_count_for_no_class() -> None:
    probabilities = np.array([[0.9, 0.1], [0.55, 0.45], [0.1, 0.9], [0.45, 0.55]])
    labels = np.array([0, 0, 1, 1])  # thresholds: 0.725 and 0.725
    confident = confident_classes(probabilities, labels)
    assert confident.tolist() == [0, -1, 1, -1]
    joint = confident_joint(confident, labels, 2)
    assert joint.tolist() == [[1, 0], [0, 1]]
    assert calibrated_joint(joint, labels).tolist() == [[2, 0], [0, 2]]  # scaled to all photos


def test_of_several_classes_that_are_reached_the_likeliest_counts() -> None:
    # Thresholds 0.4, 0.4 and 0.2: the last photo reaches all of classes 1 and 2.
    probabilities = np.array(
        [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.2, 0.5, 0.3], [0.45, 0.45, 0.1], [0.35, 0.3, 0.35]]
    )
    labels = np.array([0, 1, 2, 2, 0])
    thresholds = [(0.4 + 0.35) / 2, 0.4, (0.3 + 0.1) / 2]
    expected = [
        max((c for c in range(3) if row[c] >= thresholds[c]), key=lambda c: row[c], default=-1)
        for row in probabilities
    ]
    assert confident_classes(probabilities, labels).tolist() == expected
    assert expected[2] == 1


def test_a_class_without_a_confident_photo_is_taken_to_be_right() -> None:
    joint = np.array([[0, 0], [1, 3]])
    assert calibrated_joint(joint, np.array([0, 0, 1, 1, 1, 1])).tolist() == [[2, 0], [1, 3]]


def test_folds_are_even_and_keep_duplicates_together() -> None:
    labels = np.repeat([0, 1, 2], [50, 23, 7])
    groups = np.arange(80)
    groups[[3, 4, 5, 60]] = 3  # three of class 0 and one of class 1
    groups[[73, 74]] = 73
    dealt = deal_folds(labels, groups)
    for group in np.unique(groups):
        assert len(set(dealt[groups == group])) == 1
    for label in range(3):
        counts = np.bincount(dealt[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 2
    assert dealt.tolist() == deal_folds(labels, groups).tolist()
    assert dealt.tolist() != deal_folds(labels, groups, seed=1).tolist()


def test_predictions_are_reproducible_and_follow_the_seed() -> None:
    features, _, given = blobs(wrong=10)
    first, again, other = (
        predict_out_of_fold(features, given, np.arange(400), 4, seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def blobs(wrong: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of 400 photos of four classes that overlap a little, their true labels, and the labels after
    `wrong` were changed."""
    generator = np.random.default_rng(seed)
    truth = np.arange(400) % 4
    centres = generator.normal(size=(4, 16))
    features = (centres[truth] * 1.2 + generator.normal(size=(400, 16))).astype(np.float32)
    given = truth.copy()
    changed = generator.choice(400, wrong, replace=False)
    given[changed] = (given[changed] + generator.integers(1, 4, wrong)) % 4
    return features, truth, given


def test_planted_wrong_labels_are_found_and_named_right() -> None:
    features, truth, given = blobs(wrong=40)
    probabilities = predict_out_of_fold(features, given, np.arange(400), 4)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    found = find_suspects(probabilities, given)
    planted = set(np.flatnonzero(given != truth).tolist())
    hits = [suspect for suspect in found if suspect.row in planted]
    assert len(hits) >= 0.6 * len(planted)
    assert len(hits) >= 0.95 * len(found)
    assert np.mean([suspect.likely == truth[suspect.row] for suspect in hits]) >= 0.95
    assert all(suspect.row in planted for suspect in found[:20])  # the worst come first
    assert [suspect.margin for suspect in found] == sorted(suspect.margin for suspect in found)
    estimated = calibrated_joint(confident_joint(confident_classes(probabilities, given), given, 4), given)
    assert 400 - np.trace(estimated) == pytest.approx(40, abs=8)


def test_a_duplicate_does_not_vouch_for_a_wrong_label() -> None:
    """Ten copies of one photo under a wrong class: parted, they would teach the models their own mistake."""
    features, _, given = blobs(wrong=0)
    copies = np.flatnonzero(given == 0)[:10]
    features[copies], given[copies] = features[copies[0]].copy(), 1
    groups = np.arange(400)
    together, apart = groups.copy(), groups
    together[copies] = copies[0]
    probabilities = {
        name: predict_out_of_fold(features, given, one, 4) for name, one in (("t", together), ("a", apart))
    }
    assert probabilities["t"][copies, 1].max() < probabilities["a"][copies, 1].min()
    assert set(copies.tolist()) <= {suspect.row for suspect in find_suspects(probabilities["t"], given)}


@pytest.mark.release
@pytest.mark.timeout(900)
def test_of_173_wrong_labels_among_real_photos_127_are_suspects_and_of_the_first_100_suspects_85_are_wrong(
    real_photos: Path, real_weights: Path
) -> None:
    decoded = decode_photos(real_photos, list_photos(real_photos), 160)
    network = FlowerNet(2).eval()
    load_weights(network.backbone, str(real_weights))
    features = pooled_features(
        FrozenPart(network, torch.float32, 160, whole=True),
        lambda rows: torch.from_numpy(decoded.pixels[rows]).permute(0, 3, 1, 2),
        decoded.rows,
    ).numpy()
    truth = np.unique([photo.label for photo in decoded.photos], return_inverse=True)[1]
    groups = duplicate_groups(decoded.digests, decoded.phashes, decoded.thumbs)
    for seed in range(2):
        generator = np.random.default_rng(seed)
        planted = generator.choice(len(truth), 173, replace=False)
        given = truth.copy()
        given[planted] = (given[planted] + generator.integers(1, 5, 173)) % 5
        probabilities = predict_out_of_fold(features, given, groups, 5)
        suspects = [suspect.row for suspect in find_suspects(probabilities, given)]
        assert len(set(suspects) & set(planted.tolist())) >= 127
        assert len(set(suspects[:100]) & set(planted.tolist())) >= 85
