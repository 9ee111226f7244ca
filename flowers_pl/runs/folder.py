"""The folder of a run: what lies in it for others to take, and the pictures that go there."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import read_csv
from flowers_pl.core.names import CURVES, KEY, METRICS, PLOTS, PREDICTIONS, RUNS, SPLIT, TEST_JSON
from flowers_pl.core.text import printable
from flowers_pl.data.batches import Prediction
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.decoding import UnreadablePhoto, read_photo, resize_photo
from flowers_pl.data.folder import Photo
from flowers_pl.data.split import Placed
from flowers_pl.evaluation import figures
from flowers_pl.evaluation.predictions import prediction_rows, write_predictions
from flowers_pl.evaluation.report import Report, evaluate
from flowers_pl.runs.tables import read_table
from flowers_pl.training.checkpoint_files import read_checkpoint

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- facts


def settings_of(ckpt: Path, ours: dict[str, Any] | None = None) -> dict[str, Any]:
    """The data settings that a checkpoint was trained with, and the very split, where it still lies beside
    it; that names the photos, so no list of others to leave out is needed.

    Args:
        ckpt: the checkpoint.
        ours: our own part of it, where it has been read already.
    """
    data = dict((ours or read_checkpoint(ckpt)[KEY])["data"])
    split = ckpt.parent / SPLIT
    return data | ({"split": str(split), "exclude": None} if split.is_file() else {})


def placed_of(ckpt: Path) -> list[Placed]:
    """The split of a run."""
    file = ckpt.parent / SPLIT
    if not file.is_file():
        raise FlowersError(
            f"{str(file)!r} is missing, so the validation photos are not known; give --images."
        )
    return [Placed(**row) for row in rows_of(file)]


def rows_of(file: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, as dicts; none where there is no file."""
    return read_csv(file) if file.is_file() else []


def readable_photos(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Paths and photos at their own sizes; one that cannot be read any more is named and passed over."""
    for path in paths:
        try:
            photo = read_photo(root / path)
        except UnreadablePhoto as reason:
            log.warning("Left out: %s (%s).", printable(path), reason)
            continue
        yield path, photo


def unused(name: str) -> str:
    """A name like this one that no run has: two may start in one second."""
    names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    return next(one for one in names if not (RUNS / one).exists())


# ---------------------------------------------------------------- pictures


def save(figure: Figure, file: Path) -> None:
    """Write a picture, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def show_pictures(folder: Path) -> None:
    """Let TensorBoard show the PNG files of a folder, as they are now: as a run of the folder's name."""
    from torch.utils.tensorboard import SummaryWriter  # takes half a second

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as board:
        for file in sorted(folder.glob("*.png")):
            with Image.open(file) as picture:
                board.add_image(file.stem, np.asarray(picture.convert("RGB")), dataformats="HWC")


def draw_curves(run: Path, best_epoch: int) -> None:
    """`plots/training_curves.png` of a run, from its metrics.csv."""
    save(figures.training_curves(read_table(run / METRICS), best_epoch), run / CURVES)
    show_pictures(run / PLOTS)


def write_report(
    run: Path, ckpt: Path, data: FlowersDataModule, classes: list[str], tested: Sequence[Prediction]
) -> Report:
    """What `test` leaves in a run's folder: predictions.csv, test.json, test.txt and plots.

    Args:
        run: the folder.
        ckpt: what was judged.
        data: what it was judged on.
        classes: the model's.
        tested: what it predicted.
    """
    rows = prediction_rows(tested, [photo.path for photo in data.reported_photos], classes)
    for row in rows:
        if row.error:
            log.warning("Left out: %s (%s).", printable(row.path), row.error)
    judged = [(photo, row) for photo, row in zip(data.reported_photos, rows, strict=True) if not row.error]
    own = data.test_root is not None
    report = evaluate(
        np.array([row.probabilities for _, row in judged]),
        np.array([classes.index(photo.label) for photo, _ in judged]),
        classes,
        judged=f"photos of {data.test_root}" if own else f"validation {data.kind}",
        chose_checkpoint=not own,
        kind="photos" if own else data.kind,
    )
    write_predictions(run / PREDICTIONS, rows, classes)
    what = {"checkpoint": str(ckpt), "step": read_checkpoint(ckpt)["global_step"]}
    (run / TEST_JSON).write_text(json.dumps(what | report.as_dict(), indent=2))
    (run / "test.txt").write_text(report.text() + "\n")
    mistakes = [
        (photo, row.label, max(row.probabilities)) for photo, row in judged if photo.label != row.label
    ]
    mistakes.sort(key=lambda mistake: -mistake[2])
    _draw_report(run, report, Path(data.test_root or data.root), mistakes)
    return report


def _draw_report(run: Path, report: Report, root: Path, mistakes: Sequence[tuple[Photo, str, float]]) -> None:
    """The pictures of a report.

    Args:
        run: where they go, into `plots`.
        report: the numbers.
        root: of the photos.
        mistakes: photo, predicted class and its probability, the most confident first.
    """
    matrix = figures.confusion_matrix(report.confusion, report.classes, report.kind)
    save(matrix, run / PLOTS / "confusion_matrix.png")
    save(figures.reliability_diagram(report), run / PLOTS / "reliability.png")
    mistake_of = {mistake[0].path: mistake for mistake in mistakes}
    pictures = dict(itertools.islice(readable_photos(root, mistake_of), 16))
    pictured = [mistake_of[path] for path in pictures]
    figure = figures.misclassified(
        [resize_photo(picture, 160).permute(1, 2, 0).numpy() for picture in pictures.values()],
        [photo.label for photo, _, _ in pictured],
        [label for _, label, _ in pictured],
        [share for _, _, share in pictured],
        [photo.path for photo, _, _ in pictured],
        total=len(mistakes),
        kind=report.kind,
    )
    save(figure, run / PLOTS / "misclassified.png")
    show_pictures(run / PLOTS)
