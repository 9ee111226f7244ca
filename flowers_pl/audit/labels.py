"""Labels that are probably wrong: confident learning on predictions of models that never saw the photo.

The method is that of Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset
Labels", JAIR 70 (arXiv:1911.00068), written here from the paper. The model is a logistic regression on frozen
features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5
PENALTY = 0.1
"""Weight decay of the regression, per photo, for standardised features. On 3,457 real photos and features of
MobileNetV2 the out-of-fold log loss was 0.496, 0.420, 0.372, 0.357 and 0.385 for 0.003, 0.01, 0.03, 0.1
and 0.3."""


class Suspect(NamedTuple):
    """A photo whose label is probably wrong.

    Args:
        photo: its row.
        given: number of the class that it stands under.
        likely: number of the class that it probably belongs to.
        given_share: out-of-fold probability of the given class.
        likely_share: out-of-fold probability of the likely class.
    """

    photo: int
    given: int
    likely: int
    given_share: float
    likely_share: float

    @property
    def margin(self) -> float:
        """How much likelier the given class is than the other: -1 to 1, lowest for the worst label."""
        return self.given_share - self.likely_share


def folds(labels: np.ndarray, groups: np.ndarray, count: int = FOLDS, seed: int = 0) -> np.ndarray:
    """Deal photos into folds: each class evenly, each group of duplicates into one.

    Args:
        labels: int64 (N,), class numbers.
        groups: int64 (N,), see `duplicates.duplicate_groups`.
        count: how many folds.
        seed: of the order in which groups of one size are dealt.

    Returns:
        int64 (N,): each photo's fold.
    """
    names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(sizes)[:-1])
    dealt = np.zeros((int(labels.max()) + 1, count), np.int64)
    fold_of = np.empty(len(labels), np.int64)
    for group in order:
        of_group = labels[members[group]]
        fewest = np.lexsort((dealt.sum(0), dealt[of_group].sum(0)))[0]
        fold_of[members[group]] = fewest
        np.add.at(dealt, (of_group, fewest), 1)
    return fold_of


def out_of_fold(
    features: Tensor, labels: np.ndarray, groups: np.ndarray, classes: int, seed: int = 0
) -> np.ndarray:
    """Predict each photo by a regression that was fitted on the other folds.

    Args:
        features: float32 (N, D).
        labels: int64 (N,), 0 to `classes` - 1, of each at least two groups.
        groups: int64 (N,), duplicates that must not part.
        classes: how many classes.
        seed: of the folds.

    Returns:
        Probabilities, float64 (N, classes).
    """
    fold_of = torch.from_numpy(folds(labels, groups, seed=seed))
    targets = torch.from_numpy(labels)
    shares = torch.zeros(len(labels), classes)
    for fold in fold_of.unique():
        rest = fold_of != fold
        mean, deviation = features[rest].mean(0), features[rest].std(0).clamp_min(1e-6)
        weights = fit_regression((features[rest] - mean) / deviation, targets[rest], classes)
        shares[~rest] = predict_regression((features[~rest] - mean) / deviation, weights)
    return shares.double().numpy()


def fit_regression(features: Tensor, labels: Tensor, classes: int, penalty: float = PENALTY) -> Tensor:
    """Multinomial logistic regression by L-BFGS: mean log loss + `penalty` / 2 * |weights|^2, bias free.

    Args:
        features: float (N, D), standardised.
        labels: int64 (N,).
        classes: how many classes.
        penalty: more than 0.

    Returns:
        float (D + 1, classes): weights and, in the last row, bias.
    """
    weights = features.new_zeros(features.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weights[:-1] + weights[-1], labels)
        value = value + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]  # torch wants a closure of float and takes tensors
    return weights.detach()


def predict_regression(features: Tensor, weights: Tensor) -> Tensor:
    """Probabilities (N, classes) of standardised features (N, D) by weights of `fit_regression`."""
    return (features @ weights[:-1] + weights[-1]).softmax(1)


def confident_classes(shares: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class that each photo confidently belongs to, or -1 where it belongs to none.

    A class's threshold is the mean probability that its own photos give it. A photo counts for the likeliest
    of the classes whose threshold it reaches (equation 1 of the paper, with its rule for collisions).

    Args:
        shares: out-of-fold probabilities, (N, K).
        labels: int64 (N,), the given classes; each of the K occurs.

    Returns:
        int64 (N,).
    """
    thresholds = np.array([shares[labels == one, one].mean() for one in range(shares.shape[1])])
    reached = np.where(shares >= thresholds, shares, -1.0)
    return np.where(reached.max(1) >= 0, reached.argmax(1), -1)


def confident_joint(confident: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Count photos by given class (row) and confident class (column).

    Returns:
        int64 (classes, classes).
    """
    joint = np.zeros((classes, classes), np.int64)
    sure = confident >= 0
    np.add.at(joint, (labels[sure], confident[sure]), 1)
    return joint


def calibrated_joint(joint: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Estimate how many photos of each given class (row) truly belong to each class (column).

    Rows are scaled to the number of photos of their class (equation 3 of the paper); a class of which no
    photo is confident is taken to be right.

    Returns:
        float64, of the joint's shape; sums to the number of photos.
    """
    counts = np.bincount(labels, minlength=len(joint))
    rows = np.where(joint.sum(1, keepdims=True) > 0, joint, np.eye(len(joint)))
    return rows / rows.sum(1, keepdims=True) * counts[:, None]


def find_suspects(shares: np.ndarray, labels: np.ndarray) -> list[Suspect]:
    """The photos off the diagonal of the confident joint, those with the lowest margin first.

    A photo that reaches another class's threshold and misses the higher one of its own is none, if its own
    class is the likelier.

    Args:
        shares: out-of-fold probabilities, (N, K).
        labels: int64 (N,), the given classes.
    """
    confident = confident_classes(shares, labels)
    every = np.arange(len(labels))
    rows = np.flatnonzero((confident >= 0) & (shares[every, confident] > shares[every, labels])).tolist()
    found = [
        Suspect(row, given, likely, float(shares[row, given]), float(shares[row, likely]))
        for row, given, likely in zip(rows, labels[rows].tolist(), confident[rows].tolist(), strict=True)
    ]
    return sorted(found, key=lambda suspect: (suspect.margin, suspect.photo))
