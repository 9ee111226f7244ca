"""What an evaluated model leaves in the folder of its run: predictions, a report, and figures."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from flowers_pl.core.errors import reason_of
from flowers_pl.core.files import write_json
from flowers_pl.core.names import CURVES, KEY, METRICS, PLOTS, PREDICTIONS, TEST_JSON, TEST_TEXT
from flowers_pl.core.text import printable
from flowers_pl.data.batches import Prediction
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.decoding import resize_photo
from flowers_pl.data.folder import Photo
from flowers_pl.evaluation import figures
from flowers_pl.evaluation.predictions import prediction_rows, write_predictions
from flowers_pl.evaluation.report import Report, evaluate
from flowers_pl.network.answers import Temperature
from flowers_pl.runs.folder import readable_photos
from flowers_pl.runs.judgement import identity_of
from flowers_pl.runs.tables import read_table
from flowers_pl.runs.tensorboard import has_tensorboard
from flowers_pl.training.checkpoint_files import read_checkpoint

log = logging.getLogger(__name__)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure to a file, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def log_pictures(folder: Path) -> None:
    """Let TensorBoard show the PNG files of a folder, as they are now: as a run of the folder's name."""
    if not has_tensorboard(folder):
        return
    from torch.utils.tensorboard import SummaryWriter  # takes half a second

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for file in sorted(folder.glob("*.png")):
            try:
                with Image.open(file) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
            except (OSError, ValueError, Image.DecompressionBombError) as error:  # not one of ours
                log.warning("TensorBoard does not show %s: %s.", file, reason_of(error))
                continue
            writer.add_image(printable(file.stem), pixels, dataformats="HWC")


def draw_curves(run: Path, best_epoch: int, chosen: bool = True) -> None:
    """Draw `plots/training_curves.png` of a run from its metrics.csv.

    Args:
        run: the folder.
        best_epoch: the epoch that was kept.
        chosen: whether it was kept for its validation loss, and not because it was the last one.
    """
    save_figure(figures.training_curves(read_table(run / METRICS), best_epoch, chosen), run / CURVES)
    log_pictures(run / PLOTS)


def validation_images(data: FlowersDataModule) -> str:
    """Name the images that a run is validated on, in words that can follow a number."""
    return "validation images" + (", all of them drawings made by flowers_pl" if data.drawn else "")


def write_report(
    run: Path, ckpt: Path, data: FlowersDataModule, class_names: list[str], tested: Sequence[Prediction]
) -> Report:
    """Write predictions.csv, test.json, test.txt and plots to a run's folder.

    Args:
        run: the folder.
        ckpt: the checkpoint that was evaluated.
        data: the photos that it was evaluated on.
        class_names: the model's.
        tested: its predictions.
    """
    rows = prediction_rows(tested, [photo.path for photo in data.reported_photos], class_names)
    for row in rows:
        if row.error:
            log.warning("Left out: %s (%s).", printable(row.path), row.error)
    photo_of = {photo.path: photo for photo in data.reported_photos}  # the Trainer may have left some out
    readable = [(photo_of[row.path], row) for row in rows if not row.error]
    checkpoint = read_checkpoint(ckpt)
    temperature = Temperature.from_state(checkpoint[KEY].get("temperature"))
    report = evaluate(
        np.array([row.probabilities for _, row in readable]),
        np.array([class_names.index(photo.label) for photo, _ in readable]),
        class_names,
        evaluated_on=validation_images(data) if data.test_root is None else f"images of {data.test_root}",
        chose_checkpoint=data.test_root is None and checkpoint[KEY]["stage"].get("chooses", True),
        temperature=None if temperature is None else temperature.value,
        fitted_here=data.test_root is None,
    )
    write_predictions(run / PREDICTIONS, rows, class_names)
    origin = {"checkpoint": str(ckpt), **identity_of(checkpoint)}
    write_json(run / TEST_JSON, origin | report.as_dict())
    (run / TEST_TEXT).write_text(report.text() + "\n", encoding="utf-8")
    mistakes = [
        (photo, row.label, max(row.probabilities)) for photo, row in readable if photo.label != row.label
    ]
    mistakes.sort(key=lambda mistake: -mistake[2])
    _draw_report(run / PLOTS, report, Path(data.test_root or data.root), mistakes)
    return report


def _draw_report(
    plots: Path, report: Report, root: Path, mistakes: Sequence[tuple[Photo, str, float]]
) -> None:
    """Draw the figures of a report.

    Args:
        plots: the folder that they go to.
        report: the numbers.
        root: of the photos.
        mistakes: photo, predicted class and its probability, the most confident first.
    """
    save_figure(figures.confusion_matrix(report.confusion, report.classes), plots / "confusion_matrix.png")
    save_figure(figures.reliability_diagram(report), plots / "reliability.png")
    mistake_of = {mistake[0].path: mistake for mistake in mistakes}
    photos = itertools.islice(readable_photos(root, mistake_of), 16)
    pictures = {path: resize_photo(photo, 160) for path, photo in photos}
    shown = [mistake_of[path] for path in pictures]
    figure = figures.misclassified(
        [picture.permute(1, 2, 0).numpy() for picture in pictures.values()],
        [photo.label for photo, _, _ in shown],
        [label for _, label, _ in shown],
        [share for _, _, share in shown],
        [photo.path for photo, _, _ in shown],
        total=len(mistakes),
    )
    save_figure(figure, plots / "misclassified.png")
    log_pictures(plots)
