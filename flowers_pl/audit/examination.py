"""The examination of a folder: from photos to findings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowers_pl.audit.findings import (
    MISNAMED,
    UNLIKE,
    UNREADABLE,
    Asked,
    Duplicates,
    Fault,
    Findings,
    LabelCheck,
    LookAlikes,
    SuspectLabel,
)
from flowers_pl.audit.headers import Header, name_fault, read_header
from flowers_pl.audit.labels import (
    FOLDS,
    calibrated_joint,
    confident_classes,
    confident_joint,
    find_suspects,
    predict_out_of_fold,
)
from flowers_pl.audit.quality import far_away, measure_appearance, nearest_of_classes, neighbourhood
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import sha256_of
from flowers_pl.data.cache import DecodedPhotos, decode_photos
from flowers_pl.data.decoding import UnreadablePhoto
from flowers_pl.data.duplicates import duplicate_groups
from flowers_pl.data.folder import Photo, list_class_files, split_folders
from flowers_pl.data.reviews import EXCLUDE, Review, mend, open_review
from flowers_pl.data.split import Placed, grouped_split, notebook_split, read_split, straddling
from flowers_pl.network.fast_frozen import FrozenPart
from flowers_pl.network.features import pooled_features
from flowers_pl.network.mobilenet import FlowerNet

ELONGATED = 2.5  # longer side over shorter: squashed to a square, such a photo is hard to recognise


def examine(
    root: Path,
    network: FlowerNet | None,
    image_size: int = 160,
    split: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    cache_dir: Path | None = None,
    workers: int | None = None,
    review: str | None = None,
) -> Findings:
    """Examine a folder of photos, as a review has mended it; see `cli.audit.audit` for the arguments.

    Args:
        network: its backbone computes the features; None to check no labels.

    Raises:
        FlowersError: there is no such folder, it holds no files, or the given split does not fit.
    """
    class_names, photos = list_class_files(root)
    if not photos:
        raise FlowersError(f"--data.root: the class folders of {str(root)!r} are all empty; add photos.")
    decoded = decode_photos(root, photos, image_size, cache_dir, workers)
    decided = open_review(review, root, photos, option="--review")
    readable = _count(class_names, decoded.photos)
    decoded, _ = mend(decoded, decided, "")
    groups = duplicate_groups(decoded.digests, decoded.phashes, decoded.thumbs, decoded.folder)
    findings = Findings(
        str(root.resolve()),
        files=_count(class_names, photos),
        readable=readable,
        reviewed=decided.counts,
        strays=sorted(
            entry.name for entry in root.iterdir() if entry.is_file() and not entry.name.startswith(".")
        ),
    )
    findings.faults += [Fault(UNREADABLE, photo.path, photo.reason) for photo in decoded.left_out]
    _examine_headers(findings, root, decoded.photos, image_size)
    _examine_pixels(findings, decoded)
    findings.duplicates = _duplicates(decoded, groups)
    findings.straddling = _straddling(
        decoded.photos, groups, split, val_fraction, split_seed, split_folders(root), decided
    )
    features = None
    if network is None:
        findings.unchecked = "there are no weights (--model.weights null, or no download)"
    elif len(decoded.photos) < 2:
        findings.unchecked = "there are too few photos"
    else:
        features = _features(decoded, network, workers)
        _examine_features(findings, decoded, groups, features)
    findings.settle(decided.used)
    asked = findings.in_question()
    near = {} if features is None else _neighbours(findings, asked, decoded, groups, features)
    label_of = {photo.path: photo.label for photo in photos}
    findings.asked = {
        path: Asked(label_of[path], digest, near.get(path, {}))
        for path, digest in ((path, sha256_of(root / path)) for path in asked)
        if digest  # else it cannot be opened any more
    }
    return findings


def _count(class_names: Sequence[str], photos: Iterable[Photo]) -> dict[str, int]:
    counts = Counter(photo.label for photo in photos)
    return {label: counts[label] for label in class_names}


def _examine_headers(findings: Findings, root: Path, photos: Sequence[Photo], image_size: int) -> None:
    headers: list[Header] = []
    for photo in photos:
        try:
            header = read_header(root / photo.path)
        except UnreadablePhoto as reason:
            findings.faults.append(Fault(UNREADABLE, photo.path, str(reason)))
            continue
        headers.append(header)
        findings.faults += _header_faults(photo.path, header, image_size)
    findings.formats = _frequencies(header.format for header in headers)
    findings.modes = _frequencies(header.mode for header in headers)
    findings.orientations = _frequencies(str(header.orientation) for header in headers)
    findings.widths = _range([header.width for header in headers])
    findings.heights = _range([header.height for header in headers])


def _frequencies(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _range(sizes: list[int]) -> list[int]:
    """Return the smallest, median and largest size."""
    return [int(np.quantile(sizes, share, method="nearest")) for share in (0, 0.5, 1)] if sizes else []


def _header_faults(path: str, header: Header, image_size: int) -> Iterator[Fault]:
    short, long = sorted((header.width, header.height))
    size = f"{header.width}x{header.height} pixels"
    if fault := name_fault(path, header.format):
        yield Fault(MISNAMED, path, fault)
    if header.animated:
        yield Fault("animated", path, "only its first frame counts")
    if long < image_size:
        yield Fault("small", path, f"has {size}, and is enlarged to {image_size}")
    if long > ELONGATED * short:
        yield Fault("elongated", path, f"has {size}, and is squashed to a square")


def _examine_pixels(findings: Findings, decoded: DecodedPhotos, batch: int = 64) -> None:
    for start in range(0, len(decoded.photos), batch):
        rows = slice(start, start + batch)
        appearances = measure_appearance(_pixels(decoded, decoded.rows[rows]))
        for photo, appearance in zip(decoded.photos[rows], appearances, strict=True):
            findings.faults += [Fault(kind, photo.path, detail) for kind, detail in appearance.faults()]


def _pixels(decoded: DecodedPhotos, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(decoded.pixels[rows]).permute(0, 3, 1, 2)


def _duplicates(decoded: DecodedPhotos, groups: np.ndarray) -> list[Duplicates]:
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)
    duplicates = [
        Duplicates(
            [decoded.photos[row].path for row in rows],
            len({decoded.digests[row] for row in rows}) == 1,
            sorted({decoded.photos[row].label for row in rows}),
        )
        for rows in members.values()
        if len(rows) > 1
    ]
    return sorted(duplicates, key=lambda copies: (-len(copies.classes), not copies.exact, copies.paths))


def _straddling(
    photos: list[Photo],
    groups: np.ndarray,
    split: str | None,
    val_fraction: float,
    split_seed: int,
    sides: Mapping[str, str],
    decided: Review,
) -> dict[str, list[list[str]]]:
    """Find what straddles the notebook's split, this program's and a given one, by the groups found here."""
    splits = {
        "notebook": notebook_split(photos, groups, val_fraction),
        "grouped": grouped_split(photos, groups, val_fraction, split_seed)[0],
    }
    if sides:  # the folders that are trained, validated and tested on
        splits["folders"] = [
            Placed(photo.path, photo.label, sides[photo.path.partition("/")[0]], photos[group].path)
            for photo, group in zip(photos, groups.tolist(), strict=True)
        ]
    if split is not None and split not in splits:
        group_of = {
            photo.path: photos[group].path for photo, group in zip(photos, groups.tolist(), strict=True)
        }
        splits[split] = [
            placed._replace(group=group_of[placed.path])
            for placed in read_split(Path(split), photos, decided.paths(EXCLUDE), decided.used, both=False)
        ]
    return {name: list(straddling(placed).values()) for name, placed in splits.items()}


def _features(decoded: DecodedPhotos, network: FlowerNet, workers: int | None) -> Tensor:
    size = decoded.pixels.shape[1]
    frozen = FrozenPart(network, torch.float32, size, whole=True)  # in float32 for equal results everywhere
    return pooled_features(frozen, lambda rows: _pixels(decoded, rows), decoded.rows, workers, shown=True)


def _examine_features(
    findings: Findings, decoded: DecodedPhotos, groups: np.ndarray, features: Tensor
) -> None:
    """Find look-alikes, photos unlike any class, and suspect labels."""
    paths = [photo.path for photo in decoded.photos]
    near = neighbourhood(features, groups)
    findings.faults += [
        Fault(UNLIKE, paths[row], f"is {near.distance[row]:.2f} away from its nearest neighbours")
        for row in far_away(near.distance)
    ]
    findings.look_alikes = [
        LookAlikes([paths[first], paths[second]], cosine) for first, second, cosine in near.alike
    ]
    labels = np.array([photo.label for photo in decoded.photos])
    findings.labels = _check_labels(features.numpy(), labels, groups, paths)
    if findings.labels is None:
        findings.unchecked = f"fewer than two classes have {FOLDS} different photos"


def _neighbours(
    findings: Findings, asked: Sequence[str], decoded: DecodedPhotos, groups: np.ndarray, features: Tensor
) -> dict[str, dict[str, list[str]]]:
    """Find the most similar photos of each photo in question: of its class and of the one that it may be."""
    row_of = {photo.path: row for row, photo in enumerate(decoded.photos)}
    suspects = (
        {suspect.path: suspect.likely for suspect in findings.labels.suspects} if findings.labels else {}
    )
    others = {
        path: label
        for copies in findings.duplicates
        for path in copies.paths
        for label in copies.classes
        if label != decoded.photos[row_of[path]].label
    } | suspects
    near = nearest_of_classes(
        features,
        groups,
        [photo.label for photo in decoded.photos],
        [row_of[path] for path in asked],
        [others.get(path) for path in asked],
        [row_of[path] for path in suspects],
    )
    return {
        path: {label: [decoded.photos[row].path for row in rows] for label, rows in found.items()}
        for path, found in zip(asked, near, strict=True)
    }


def _check_labels(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, paths: Sequence[str]
) -> LabelCheck | None:
    """Cross-validate the classes with photos enough that no fold takes all of them away."""
    class_names = [label for label in np.unique(labels) if len(np.unique(groups[labels == label])) >= FOLDS]
    if len(class_names) < 2:
        return None
    checked = np.flatnonzero(np.isin(labels, class_names))
    given = np.searchsorted(class_names, labels[checked])
    probabilities = predict_out_of_fold(features[checked], given, groups[checked], len(class_names))
    joint = confident_joint(confident_classes(probabilities, given), given, len(class_names))
    estimated = calibrated_joint(joint, given)
    return LabelCheck(
        classes=[str(label) for label in class_names],
        photos=len(checked),
        accuracy=float((probabilities.argmax(1) == given).mean()),
        confident_joint=joint.tolist(),
        estimated_joint=estimated.round(2).tolist(),
        estimated_wrong=float(len(checked) - np.trace(estimated)),
        suspects=[
            SuspectLabel(
                paths[checked[suspect.row]],
                str(class_names[suspect.given]),
                str(class_names[suspect.likely]),
                round(suspect.given_probability, 4),
                round(suspect.likely_probability, 4),
                round(suspect.margin, 4),
            )
            for suspect in find_suspects(probabilities, given)
        ],
    )
