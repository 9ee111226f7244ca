"""What an audit reports on a folder of photos."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass, field, replace
from typing import Any

UNREADABLE, MISNAMED, UNLIKE = "unreadable", "wrongly named", "unlike any class"
PIXELS = ("too dark", "too bright", "nearly blank", "blurred")


@dataclass(frozen=True)
class Fault:
    """Something about one photo that its owner should know.

    Args:
        kind: one of the three above, "animated", "small", "elongated", or a kind of `quality.Appearance`.
        path: of the photo.
        detail: what was found, in words.
    """

    kind: str
    path: str
    detail: str


@dataclass(frozen=True)
class Duplicates:
    """Copies of one photo.

    Args:
        paths: of all of them.
        exact: whether all have the same pixels.
        classes: of all of them; more than one is a fault.
    """

    paths: list[str]
    exact: bool
    classes: list[str]


@dataclass(frozen=True)
class LookAlikes:
    """Two photos that seem to show the same flower.

    Args:
        paths: of the two.
        cosine: of their features.
    """

    paths: list[str]
    cosine: float


@dataclass(frozen=True)
class SuspectLabel:
    """A photo that is probably in the folder of the wrong class; see `labels.Suspect`."""

    path: str
    given: str
    likely: str
    given_probability: float
    likely_probability: float
    margin: float


@dataclass(frozen=True)
class LabelCheck:
    """What cross-validation says about the labels.

    Args:
        classes: those that were checked: each has at least `labels.FOLDS` different photos.
        photos: how many were checked.
        accuracy: share of them whose label the out-of-fold predictions agree with.
        confident_joint: photos by given (row) and confident class (column).
        estimated_joint: the same, scaled to all photos.
        estimated_wrong: how many labels are wrong, by that estimate.
        suspects: the worst first.
    """

    classes: list[str]
    photos: int
    accuracy: float
    confident_joint: list[list[int]]
    estimated_joint: list[list[float]]
    estimated_wrong: float
    suspects: list[SuspectLabel]


@dataclass(frozen=True)
class Asked:
    """A photo that a person is to decide on.

    Args:
        label: the class that its folder names.
        sha256: of its file.
        neighbours: paths of the most similar photos of its class and of another, by the class; empty where
            there is no network.
    """

    label: str
    sha256: str
    neighbours: dict[str, list[str]]


@dataclass
class Findings:
    """Everything that an audit found.

    Args:
        root: the folder.
        files: how many files each class folder has.
        readable: how many of them are photos.
        strays: files beside the class folders, which no command reads.
        formats: how many photos are of each format; likewise modes and EXIF orientations.
        widths: smallest, median and largest width of the upright photos, pixels; likewise heights.
        faults: of single photos.
        duplicates: exact and near ones.
        look_alikes: pairs that are not duplicates.
        straddling: for each split its groups of duplicates with photos on both sides.
        labels: None where they were not checked.
        unchecked: why not.
        reviewed: what an earlier review did to how many photos, see `Review.counts`.
        asked: what a person needs to know of each photo that they are to decide on, by its path.
    """

    root: str
    files: dict[str, int]
    readable: dict[str, int]
    strays: list[str]
    formats: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    orientations: dict[str, int] = field(default_factory=dict)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    duplicates: list[Duplicates] = field(default_factory=list)
    look_alikes: list[LookAlikes] = field(default_factory=list)
    straddling: dict[str, list[list[str]]] = field(default_factory=dict)
    labels: LabelCheck | None = None
    unchecked: str = ""
    reviewed: dict[str, int] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)

    def settle(self, decided: Container[str]) -> None:
        """Drop what a person has decided already: suspect labels, duplicates all of which are decided, and
        pictures that are poor or unlike any class."""
        self.faults = [
            fault for fault in self.faults if fault.path not in decided or fault.kind not in (UNLIKE, *PIXELS)
        ]
        self.duplicates = [
            copies for copies in self.duplicates if not all(path in decided for path in copies.paths)
        ]
        if self.labels is not None:
            open_ones = [suspect for suspect in self.labels.suspects if suspect.path not in decided]
            self.labels = replace(self.labels, suspects=open_ones)

    def in_question(self) -> list[str]:
        """Return the paths of the photos that a person is to decide on, each once."""
        suspects = self.labels.suspects if self.labels else []
        paths = [path for copies in self.duplicates for path in copies.paths]
        paths += [suspect.path for suspect in suspects]
        paths += [fault.path for fault in self.faults if fault.kind in (UNLIKE, *PIXELS)]
        return list(dict.fromkeys(paths))

    @property
    def imbalance(self) -> float:
        """Return the size of the largest class over that of the smallest; infinite where one has no photo."""
        counts = self.readable.values()
        return max(counts) / min(counts) if min(counts) else float("inf")

    def as_dict(self) -> dict[str, Any]:
        """Return what audit.json holds."""
        imbalance = self.imbalance if min(self.readable.values()) else None
        return asdict(self) | {"imbalance": imbalance}
