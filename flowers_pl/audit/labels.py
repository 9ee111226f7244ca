"""Labels that are probably wrong: confident learning on predictions of models that never saw the photo.

The method is that of Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset
Labels", JAIR 70 (arXiv:1911.00068), written here from the paper. The model is a logistic regression on frozen
features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FOLDS = 5
PENALTY = 0.1
"""Weight decay of the regression, per photo, for standardised features. On 3,457 real photos and features of
MobileNetV2 the out-of-fold log loss was 0.496, 0.420, 0.372, 0.357 and 0.385 for 0.003, 0.01, 0.03, 0.1
and 0.3."""


class Suspect(NamedTuple):
    """A photo whose label is probably wrong.

    Args:
        row: of the photo.
        given: number of the class that its folder names.
        likely: number of the class that it probably belongs to.
        given_probability: out-of-fold probability of the given class.
        likely_probability: out-of-fold probability of the likely class.
    """

    row: int
    given: int
    likely: int
    given_probability: float
    likely_probability: float

    @property
    def margin(self) -> float:
        """Return how much likelier the given class is than the other: -1 to 1, lowest for the worst label."""
        return self.given_probability - self.likely_probability


def deal_folds(labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """Deal photos into `FOLDS` folds: each class evenly, each group of duplicates into one.

    With scikit-learn's StratifiedGroupKFold 125 and 126 instead of 127 and 127 of 173 labels that were made
    wrong are suspects (two draws on 3,457 real photos).

    Args:
        labels: int64 (N,), class numbers.
        groups: int64 (N,), see `duplicates.duplicate_groups`.
        seed: of the order in which groups of one size are dealt.

    Returns:
        int64 (N,): each photo's fold.
    """
    names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(sizes)[:-1])
    dealt = np.zeros((int(labels.max()) + 1, FOLDS), np.int64)
    fold_of = np.empty(len(labels), np.int64)
    for group in order:
        of_group = labels[members[group]]
        fewest = np.lexsort((dealt.sum(0), dealt[of_group].sum(0)))[0]
        fold_of[members[group]] = fewest
        np.add.at(dealt, (of_group, fewest), 1)
    return fold_of


def predict_out_of_fold(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int, seed: int = 0
) -> np.ndarray:
    """Predict each photo by a logistic regression that was fitted on the other folds.

    Args:
        features: float32 (N, D).
        labels: int64 (N,), 0 to `num_classes` - 1, of each at least two groups.
        groups: int64 (N,), duplicates that must stay in one fold.
        num_classes: how many classes there are.
        seed: of the folds.

    Returns:
        Probabilities, float64 (N, num_classes).
    """
    from sklearn.linear_model import LogisticRegression  # takes more than a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probabilities = np.zeros((len(labels), num_classes))
    fold_of = deal_folds(labels, groups, seed)
    for fold in np.unique(fold_of):
        fitted, held_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        regression = LogisticRegression(C=1 / (PENALTY * len(fitted)), max_iter=1000)
        model = make_pipeline(StandardScaler(), regression).fit(features[fitted], labels[fitted])
        probabilities[np.ix_(held_out, model.classes_)] = model.predict_proba(features[held_out])
    return probabilities


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the class that each photo confidently belongs to, or -1 where it belongs to none.

    A class's threshold is the mean probability that its own photos give it. A photo counts for the likeliest
    of the classes whose threshold it reaches (equation 1 of the paper, with its rule for collisions).

    Args:
        probabilities: out of fold, (N, K).
        labels: int64 (N,), the given classes; each of the K occurs.

    Returns:
        int64 (N,).
    """
    num_classes = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == label, label].mean() for label in range(num_classes)])
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(reached.max(1) >= 0, reached.argmax(1), -1)


def confident_joint(confident: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count photos by given class (row) and confident class (column).

    Returns:
        int64 (num_classes, num_classes).
    """
    joint = np.zeros((num_classes, num_classes), np.int64)
    sure = confident >= 0
    np.add.at(joint, (labels[sure], confident[sure]), 1)
    return joint


def calibrated_joint(joint: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Estimate how many photos of each given class (row) truly belong to each class (column).

    Rows are scaled to the number of photos of their class (equation 3 of the paper). The labels of a class
    none of whose photos is confident count as right.

    Returns:
        float64, of the joint's shape; sums to the number of photos.
    """
    counts = np.bincount(labels, minlength=len(joint))
    rows = np.where(joint.sum(1, keepdims=True) > 0, joint, np.eye(len(joint)))
    return rows / rows.sum(1, keepdims=True) * counts[:, None]


def find_suspects(probabilities: np.ndarray, labels: np.ndarray) -> list[Suspect]:
    """Return the photos off the diagonal of the confident joint, those with the lowest margin first.

    A photo that reaches another class's threshold but misses the higher one of its own is not suspect if its
    own class is the likelier.

    Args:
        probabilities: out of fold, (N, K).
        labels: int64 (N,), the given classes.
    """
    confident = confident_classes(probabilities, labels)
    rows = np.arange(len(labels))
    off_diagonal = (confident >= 0) & (probabilities[rows, confident] > probabilities[rows, labels])
    suspects = [
        Suspect(row, given, likely, float(probabilities[row, given]), float(probabilities[row, likely]))
        for row, given, likely in np.stack([rows, labels, confident], 1)[off_diagonal].tolist()
    ]
    return sorted(suspects, key=lambda suspect: (suspect.margin, suspect.row))
