"""`teach`: soft labels of training photos, each by a better network that never saw the photo."""

from __future__ import annotations

import logging
import platform
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from jsonargparse import Namespace

from flowers_pl.cli.options import HELP, Options
from flowers_pl.cli.trainer import seed
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import SPLIT
from flowers_pl.core.paths import check_writable
from flowers_pl.core.signals import Stopped
from flowers_pl.core.system import best_precision
from flowers_pl.core.text import printable
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.packs.remote import is_address
from flowers_pl.teaching.loop import Recipe
from flowers_pl.teaching.networks import LITE, OWN, make_teacher, teacher_kind
from flowers_pl.teaching.out_of_fold import Lesson, check_name, check_table, teach, write_soft_labels

log = logging.getLogger(__name__)
AUGMENTATION = {
    "rotation": 0.0, "shift": 0.0, "zoom": 0.0, "crop": 0.35, "contrast": 0.2, "saturation": 0.2,
    "weak_epochs": 2,
}  # fmt: skip
RATE, RATE_WITHOUT_BATCH_NORM = 4e-4, 1e-4  # transformers and ConvNeXt want less


def run(args: list[str]) -> None:
    """Write a table of soft labels."""
    settings, options = _parse(args)
    _check(settings)
    seed(settings)
    kind = teacher_kind(settings.teacher)
    out = Path(settings.out or _default_out(settings))
    check_name(out)
    check_table(out, _photos(settings))
    check_writable(out.parent, "--out" if settings.out else "")
    data: FlowersDataModule = options.parser.instantiate(settings).data
    probe = make_teacher(kind, 2, data.image_size, settings.teacher_weights, 0)  # fails now or never
    data.prepare_data()
    data.setup("fit")
    lesson = Lesson.of(data, settings.all_photos)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    best = "32-true" if device.type == "cpu" and kind.name == LITE else best_precision(device.type)
    precision = settings.precision or best  # Lite2's depthwise kernels are slower in bfloat16 on a CPU
    rate = settings.learning_rate or (RATE if probe.has_batch_norm() else RATE_WITHOUT_BATCH_NORM)
    recipe = Recipe(
        settings.epochs, data.batch_size, rate, data.seed, data.image_size, data.augmentation, device,
        precision == "bf16-mixed", data.workers,
    )  # fmt: skip
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        judged = teach(
            lesson, kind, settings.teacher_weights, settings.folds, recipe, out.with_suffix(".folds")
        )
    except Stopped as stop:
        stop.advice = "start it again with the same command; folds that are finished are kept"
        raise
    write_soft_labels(out, lesson, judged, _facts(settings, precision, rate, device))
    log.info(
        "Cross-validated accuracy of %s on %d photos: %.4f. Soft labels: %s; give them to 'fit' as"
        " --data.soft_labels.",
        kind.name, len(lesson.placed), judged.accuracy, printable(str(out)),
    )  # fmt: skip


def _parse(args: list[str]) -> tuple[Namespace, Options]:
    """Parse the command line; the size of the photos is by default that of the teacher."""
    options = Options("teach")
    options.add_config()
    options.add("seed_everything", int, 0, "Seed of folds, order, augmentation, dropout and the new head.")
    options.add(
        "teacher", str, OWN,
        f"{OWN}, efficientnet_lite2, or a classification network of torchvision, such as efficientnet_v2_s.",
    )  # fmt: skip
    options.add(
        "teacher_weights", str | None, None,
        "File with the network's pretrained state_dict; default the published weights, which are downloaded.",
    )  # fmt: skip
    options.add("out", str | None, None, "The table to write; default soft_labels/<teacher>-<split>.csv.")
    options.parser.add_argument(
        "--all_photos",
        action="store_true",
        help="Take the photos to validate with, too: for a last training on all, which validates nothing.",
    )
    options.add("folds", int, 5, "Number of parts; each is judged by a network trained on the others.")
    options.add("epochs", int, 12, "Epochs of each network.")
    options.add(
        "learning_rate", float | None, None,
        "The largest one, of the layers below the head; default 4e-4, and 1e-4 for networks without batch"
        " norm.",
    )  # fmt: skip
    options.add(
        "precision", Literal["32-true", "bf16-mixed"] | None, None,
        "What to compute in; default bfloat16 where the hardware multiplies it.",
    )  # fmt: skip
    options.add_class("data", FlowersDataModule)
    options.parser.link_arguments("seed_everything", "data.seed")
    defaults: dict[str, Any] = {f"data.augmentation.{name}": value for name, value in AUGMENTATION.items()}
    options.parser.set_defaults(defaults | _sizes(teacher_kind(OWN).size))
    named = [one for one in args if one not in HELP and not one.startswith("--print_config")]
    options.parser.set_defaults(_sizes(teacher_kind(options.parse(named).teacher).size))
    options.parser.set_defaults(_sizes(options.parse(named).data.image_size))
    return options.parse(args), options


def _sizes(image_size: int) -> dict[str, Any]:
    """Return the defaults of the sizes of photos in pixels: 256 are kept for 224."""
    return {"data.image_size": image_size, "data.stored_size": image_size * 8 // 7}


def _check(settings: Namespace) -> None:
    """Refuse what could not work in the end.

    Raises:
        FlowersError: a setting is out of its range or has no meaning here.
    """
    if settings.epochs < 1:
        raise FlowersError(f"--epochs must be at least 1, not {settings.epochs}.")
    if settings.learning_rate is not None and not 0 < settings.learning_rate < 1:
        raise FlowersError(
            f"--learning_rate must be greater than 0 and less than 1, not {settings.learning_rate}."
        )
    if settings.data.soft_labels is not None or settings.data.balance != "none":
        option = "balance" if settings.data.soft_labels is None else "soft_labels"
        raise FlowersError(f"--data.{option}: a teacher is trained on the photos' own labels; leave it out.")
    weights = settings.teacher_weights
    if weights is not None and not Path(weights).is_file():
        raise FlowersError(
            f"--teacher_weights: there is no file {weights!r}; give a state_dict of {settings.teacher}."
        )


def _default_out(settings: Namespace) -> Path:
    split = settings.data.split
    side = f"split{settings.data.split_seed}" if split == "grouped" else Path(split).stem
    if side == Path(SPLIT).stem:  # that of a run
        side = Path(split).resolve().parent.name
    return Path("soft_labels", f"{settings.teacher}-{'all' if settings.all_photos else side}.csv")


def _photos(settings: Namespace) -> dict[str, Any]:
    """Return which teacher judges which photos, for the JSON file: a table of others is not replaced."""
    data = settings.data

    def found(path: str | None) -> str | None:
        return path and str(Path(path).resolve())

    return {
        "teacher": settings.teacher,
        "teacher_weights": found(settings.teacher_weights) or "published",
        "root": data.root if is_address(data.root) else found(data.root),
        "split": data.split if data.split in ("grouped", "notebook") else found(data.split),
        "split_seed": data.split_seed,
        "val_fraction": data.val_fraction,
        "exclude": found(data.exclude),
        "review": found(data.review),
        "all_photos": settings.all_photos,
    }


def _facts(settings: Namespace, precision: str, rate: float, device: torch.device) -> dict[str, Any]:
    """Return how the soft labels were made, for the JSON file."""
    data = settings.data
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        **_photos(settings),
        "folds": settings.folds,
        "epochs": settings.epochs,
        "image_size": data.image_size,
        "batch_size": data.batch_size,
        "learning_rate": rate,
        "seed": settings.seed_everything,
        "precision": precision,
        "device": named,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
