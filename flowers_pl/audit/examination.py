"""A folder of photos -> what is wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowers_pl.audit.findings import (
    MISNAMED,
    UNLIKE,
    UNREADABLE,
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
    out_of_fold,
)
from flowers_pl.audit.quality import far_away, looks, neighbourhood
from flowers_pl.core.errors import FlowersError
from flowers_pl.data.cache import DecodedPhotos, decode_photos
from flowers_pl.data.decoding import UnreadablePhoto
from flowers_pl.data.duplicates import duplicate_groups
from flowers_pl.data.folder import Photo, list_class_files, split_folders
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
) -> Findings:
    """Look at everything; see `audit.audit` for the arguments.

    Args:
        network: its backbone gives the features; None for none, and then no labels are checked.

    Raises:
        FlowersError: there is no such folder, it holds no files, or the given split does not fit.
    """
    classes, photos = list_class_files(root)
    if not photos:
        raise FlowersError(
            f"--data.root: the class folders of {str(root)!r} are all empty; put photos there."
        )
    decoded = decode_photos(root, photos, image_size, cache_dir, workers)
    groups = duplicate_groups(decoded.digests, decoded.phashes, decoded.thumbs)
    found = Findings(
        str(root.resolve()),
        files=_count(classes, photos),
        readable=_count(classes, decoded.photos),
        strays=sorted(
            entry.name for entry in root.iterdir() if entry.is_file() and not entry.name.startswith(".")
        ),
    )
    found.faults += [Fault(UNREADABLE, entry.path, entry.reason) for entry in decoded.left_out]
    _read_headers(found, root, decoded.photos, image_size)
    _look(found, decoded)
    found.duplicates = _duplicates(decoded, groups)
    sides = split_folders(root)
    found.straddling = _straddling(decoded.photos, groups, split, val_fraction, split_seed, sides)
    _check_labels(found, decoded, groups, network, workers)
    return found


def _count(classes: Sequence[str], photos: Iterable[Photo]) -> dict[str, int]:
    counts = Counter(photo.label for photo in photos)
    return {label: counts[label] for label in classes}


def _read_headers(found: Findings, root: Path, photos: Sequence[Photo], image_size: int) -> None:
    headers: list[Header] = []
    for photo in photos:
        try:
            header = read_header(root / photo.path)
        except UnreadablePhoto as reason:
            found.faults.append(Fault(UNREADABLE, photo.path, str(reason)))
            continue
        headers.append(header)
        found.faults += [
            Fault(kind, photo.path, detail) for kind, detail in _header_faults(photo.path, header, image_size)
        ]
    found.formats, found.modes, found.orientations = (
        dict(Counter(str(getattr(header, what)) for header in headers).most_common())
        for what in ("format", "mode", "orientation")
    )
    found.widths, found.heights = (
        [int(np.quantile(sizes, share, method="nearest")) for share in (0, 0.5, 1)] if sizes else []
        for sizes in ([header.width for header in headers], [header.height for header in headers])
    )


def _header_faults(path: str, header: Header, image_size: int) -> list[tuple[str, str]]:
    short, long = sorted((header.width, header.height))
    size = f"{header.width}x{header.height} pixels"
    faults = [(MISNAMED, name_fault(path, header.format))]
    faults.append(("animated", "only its first frame counts" if header.animated else ""))
    faults.append(("small", f"has {size}, and is enlarged to {image_size}" if long < image_size else ""))
    faults.append(
        ("elongated", f"has {size}, and is squashed to a square" if long > ELONGATED * short else "")
    )
    return [(kind, detail) for kind, detail in faults if detail]


def _look(found: Findings, decoded: DecodedPhotos, batch: int = 64) -> None:
    for start in range(0, len(decoded.photos), batch):
        pixels = torch.from_numpy(decoded.pixels[decoded.rows[start : start + batch]]).permute(0, 3, 1, 2)
        for photo, look in zip(decoded.photos[start : start + batch], looks(pixels), strict=True):
            found.faults += [Fault(kind, photo.path, detail) for kind, detail in look.faults()]


def _members(groups: np.ndarray) -> list[list[int]]:
    """Rows of the groups that have more than one photo."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)
    return [rows for rows in members.values() if len(rows) > 1]


def _duplicates(decoded: DecodedPhotos, groups: np.ndarray) -> list[Duplicates]:
    found = [
        Duplicates(
            [decoded.photos[row].path for row in rows],
            len({decoded.digests[row] for row in rows}) == 1,
            sorted({decoded.photos[row].label for row in rows}),
        )
        for rows in _members(groups)
    ]
    return sorted(found, key=lambda one: (-len(one.classes), not one.exact, one.paths))


def _straddling(
    photos: list[Photo],
    groups: np.ndarray,
    split: str | None,
    val_fraction: float,
    split_seed: int,
    sides: Mapping[str, str],
) -> dict[str, list[list[str]]]:
    """The notebook's split, this program's, and a given one, by the groups that were found now."""
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
        splits[split] = _regrouped(read_split(Path(split), photos), photos, groups)
    return {name: list(straddling(placed).values()) for name, placed in splits.items()}


def _regrouped(placed: Sequence[Placed], photos: Sequence[Photo], groups: np.ndarray) -> list[Placed]:
    group_of = {photo.path: photos[group].path for photo, group in zip(photos, groups.tolist(), strict=True)}
    return [one._replace(group=group_of[one.path]) for one in placed]


def _check_labels(
    found: Findings,
    decoded: DecodedPhotos,
    groups: np.ndarray,
    network: FlowerNet | None,
    workers: int | None,
) -> None:
    """All that needs features: labels, pictures unlike any class, look-alikes."""
    if network is None or len(decoded.photos) < 2:
        found.unchecked = (
            "there are no weights (--model.weights null)" if network is None else "too few photos"
        )
        return
    frozen = FrozenPart(network, torch.float32, decoded.pixels.shape[1], whole=True)  # the same everywhere

    def read(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(decoded.pixels[rows]).permute(0, 3, 1, 2)

    features = pooled_features(frozen, read, decoded.rows, workers, shown=True)
    near = neighbourhood(features, groups)
    paths = [photo.path for photo in decoded.photos]
    found.faults += [
        Fault(UNLIKE, paths[row], f"is {near.distance[row]:.2f} away from the photos nearest to it")
        for row in far_away(near.distance)
    ]
    found.look_alikes = [LookAlikes([paths[one], paths[other]], cosine) for one, other, cosine in near.alike]
    labels = np.array([photo.label for photo in decoded.photos])
    found.labels = _cross_validate(features, labels, groups, paths)
    if found.labels is None:
        found.unchecked = f"fewer than two classes have {FOLDS} different photos"


def _cross_validate(
    features: Tensor, labels: np.ndarray, groups: np.ndarray, paths: Sequence[str]
) -> LabelCheck | None:
    """Judge the classes that can be: a fold may take a class's only photos away."""
    classes = [one for one in np.unique(labels) if len(np.unique(groups[labels == one])) >= FOLDS]
    if len(classes) < 2:
        return None
    judged = np.flatnonzero(np.isin(labels, classes))
    given = np.searchsorted(classes, labels[judged])
    shares = out_of_fold(features[judged], given, groups[judged], len(classes))
    joint = confident_joint(confident_classes(shares, given), given, len(classes))
    estimated = calibrated_joint(joint, given)
    return LabelCheck(
        classes=[str(one) for one in classes],
        photos=len(judged),
        accuracy=float((shares.argmax(1) == given).mean()),
        confident_joint=joint.tolist(),
        estimated_joint=estimated.round(2).tolist(),
        estimated_wrong=float(len(judged) - np.trace(estimated)),
        suspects=[
            SuspectLabel(
                paths[judged[one.photo]],
                str(classes[one.given]),
                str(classes[one.likely]),
                round(one.given_share, 4),
                round(one.likely_share, 4),
                round(one.margin, 4),
            )
            for one in find_suspects(shares, given)
        ],
    )
