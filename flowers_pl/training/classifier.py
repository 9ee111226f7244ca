"""FlowerClassifier, the LightningModule: thin around `mobilenet.FlowerNet`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import BEST, KEY
from flowers_pl.data.batches import Batch, CachedPhotos, Prediction
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.decoding import UnreadablePhoto, load_photo
from flowers_pl.data.sampling import even_sample
from flowers_pl.network.fast_frozen import FrozenPart
from flowers_pl.network.fast_trained import TrainedPart
from flowers_pl.network.features import pooled_features
from flowers_pl.network.mobilenet import IMAGENET_MEAN, IMAGENET_STD, FlowerNet, TopLayers, start_from_nothing
from flowers_pl.network.novelty import TRAINING, Unlike
from flowers_pl.network.weights import load_weights
from flowers_pl.training import checkpoint_files
from flowers_pl.training.checkpoint_callback import RunCheckpoints
from flowers_pl.training.metrics import Scores

log = logging.getLogger(__name__)
JUDGED = ("train", "val", "test")
COMPUTED_IN = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "64-true": torch.float64}
MEASURED = 256  # photos that batch-norm statistics are measured on, with weights: null


@dataclass
class Stage:
    """Where training stands.

    Args:
        number: 1 while the backbone is frozen, 2 once its top layers are trained.
        layers: how many layers of the backbone are trained, as Keras counts them, or "all".
        first_epoch: the epoch in which the stage began.
        last: whether no other stage follows.
        ended: whether it is over: by its number of epochs or by early stopping.
    """

    number: int = 1
    layers: TopLayers = 0
    first_epoch: int = 0
    last: bool = True
    ended: bool = False


class FlowerClassifier(L.LightningModule):
    """MobileNetV2 with a new head, trained in stages.

    The network is built once the classes are known: from the data in `fit`, from the checkpoint elsewhere.

    Args:
        weights: what the backbone starts from: the name of torchvision weights (downloaded by torchvision), a
            path to a state_dict, or null for none.
        dropout: share of the pooled features dropped in training.
        head_lr: Adam's learning rate in stage 1, where the head alone is trained.
        top_lr: Adam's learning rate in stage 2, for the head and the top layers.
        seed: of the head's first weights.
        label_smoothing: this share of each training label is spread over all classes (Szegedy et al. 2016);
            what is reported and stopped on stays the plain loss.
    """

    network: FlowerNet

    def __init__(
        self,
        weights: str | None = "IMAGENET1K_V1",
        dropout: float = 0.3,
        head_lr: float = 1e-3,
        top_lr: float = 1e-4,
        seed: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not 0 <= dropout < 1:
            raise FlowersError(f"--model.dropout must be at least 0 and less than 1, not {dropout}.")
        if min(head_lr, top_lr) <= 0:
            raise FlowersError(
                f"--model.head_lr and --model.top_lr must be more than 0, not {head_lr} and {top_lr}."
            )
        if not 0 <= label_smoothing < 1:
            raise FlowersError(
                f"--model.label_smoothing must be at least 0 and less than 1, not {label_smoothing}."
            )
        self.label_smoothing = label_smoothing
        self.weights, self.dropout, self.head_lr, self.top_lr, self.seed = (
            weights,
            dropout,
            head_lr,
            top_lr,
            seed,
        )
        self.stage = Stage()
        self.classes: list[str] = []
        self.image_size = 0
        self.tested: list[Prediction] = []
        self.frozen: FrozenPart | None = None
        self.unlike: Unlike | None = None
        self._restored = False

    # ---------------------------------------------------------------- the network

    def build(
        self,
        classes: list[str],
        image_size: int,
        mean: Iterable[float] = IMAGENET_MEAN,
        std: Iterable[float] = IMAGENET_STD,
    ) -> None:
        """Build the network, all frozen but the head; its first weights are a function of `seed`."""
        self.classes, self.image_size = list(classes), image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = FlowerNet(len(classes), self.dropout, mean, std)
        self.network.train_top_layers(self.stage.layers)
        self.scores = nn.ModuleDict({f"{side}_scores": Scores(side, len(classes)) for side in JUDGED})

    def scores_of(self, side: str) -> Scores:
        """What is measured on a side: 'train', 'val' or 'test'."""
        return cast(Scores, self.scores[f"{side}_scores"])

    @property
    def _data(self) -> Any:
        """The Trainer's datamodule, which its annotations do not know; None where there is none."""
        return getattr(self.trainer, "datamodule", None)

    def enter_stage(self, stage: Stage) -> None:
        """Freeze and unfreeze as the stage says; the caller sees to the optimizer."""
        self.stage, self.frozen = stage, None
        if self.classes:
            self.network.train_top_layers(stage.layers)

    def setup(self, stage: str) -> None:
        """Build the network for the classes of the data, where no checkpoint has built it."""
        if not self.classes:
            self.build(self._data.classes, self._data.image_size)

    def on_fit_start(self) -> None:
        """Read the starting weights, on one rank, and hand them to the others; not where a checkpoint is
        resumed."""
        self.unlike = None  # of weights that will change
        if self._restored:
            return
        if self.trainer.is_global_zero:
            self._start()
        state = self.trainer.strategy.broadcast(self.network.state_dict())
        self.network.load_state_dict(state)
        self.frozen = None

    def _start(self) -> None:
        if self.weights is not None:
            load_weights(self.network.backbone, self.weights)
            return
        photos = self._data.train_photos
        measured = min(MEASURED, len(photos))
        log.info(
            "No weights: batch-norm statistics are measured on %d training photos, then frozen.", measured
        )
        generator = torch.Generator().manual_seed(self.seed)
        sample = torch.randperm(len(photos), generator=generator)[:MEASURED].sort().values
        start_from_nothing(self.network, photos.read(sample.numpy()).to(self.device))

    # ---------------------------------------------------------------- the fast way

    def part_network(self) -> None:
        """Part the network into what is frozen and what is trained now, for the data module to compute the
        first ahead; a model that is judged is frozen as a whole."""
        dtype = COMPUTED_IN.get(str(self.trainer.precision))
        judged = self.trainer.state.fn != TrainerFn.FITTING
        if dtype is None:
            self.frozen = None
        elif self.frozen is None or judged:
            self.frozen = FrozenPart(self.network, dtype, self.image_size, whole=judged)
            self._trained = TrainedPart(self.network, self.frozen)

    def on_train_epoch_start(self) -> None:
        """A callback may have begun another stage; or a run is resumed inside an epoch."""
        self.part_network()

    on_train_start = on_validation_epoch_start = on_predict_epoch_start = on_train_epoch_start

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in `nn.Module`; what was computed from other weights is forgotten."""
        self.frozen = None
        return super().load_state_dict(*args, **kwargs)

    def _logits(self, batch: Batch) -> Tensor:
        """Logits of a batch whose frozen part is computed, or not."""
        if batch.features is None:
            return self(batch.photos, batch.keys)  # type: ignore[no-any-return]
        return self._trained(batch.features, batch.keys)

    # ---------------------------------------------------------------- training

    def forward(self, photos: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits, float (N, classes), of photos, (N, 3, size, size), RGB, values 0 to 255, uint8 or float."""
        return self.network(photos, keys)

    def _shared_step(self, batch: Batch, side: str) -> Tensor:
        """The logits. What is measured is the plain loss, in training too, whatever is trained on."""
        logits = self._logits(batch)
        self.scores_of(side).update(logits.detach(), batch.labels)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss whose gradient, averaged over the ranks as DDP does, is that of the (weighted) mean over
        the whole batch."""
        losses = F.cross_entropy(
            self._shared_step(batch, "train"),
            batch.labels,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        weighted = losses if batch.weights is None else losses * batch.weights.to(losses.dtype)
        return weighted.sum() * (self.trainer.world_size / batch.total)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Judge photos of the validation side; gives their logits to callbacks."""
        return self._shared_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Judge photos of the test folder, or of the validation side."""
        logits = self._shared_step(batch, "test")
        self.tested.append(Prediction(batch.rows, logits.softmax(1), batch.unreadable))

    def on_test_epoch_start(self) -> None:
        """Forget the predictions of a test before this one."""
        self.tested = []
        self.part_network()

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """Probabilities of a batch's photos, and how unlike the training photos they are."""
        features = self.network.features(batch.photos) if batch.features is None else batch.features
        unlike = None if self.unlike is None else self.unlike(features)
        return Prediction(batch.rows, self.network.head(features).softmax(1), batch.unreadable, unlike)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch, its training too: a checkpoint is saved next, and a run resumed from it goes on
        after this."""
        self._log_training()
        self._log_scores("val")

    def on_train_epoch_end(self) -> None:
        """Log the training of an epoch that was not validated."""
        self._log_training()

    def _log_training(self) -> None:
        if not self.scores_of("train").begun:
            return
        self._log_scores("train")
        self.log("stage", float(self.stage.number))
        for group in self.trainer.optimizers[0].param_groups:
            self.log(f"lr_{group['name']}", group["lr"])

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, side: str) -> None:
        """Log and reset; a finished model that is judged is no point of a training curve, so the loggers do
        not get that."""
        curve = self.trainer.state.fn == TrainerFn.FITTING and bool(self.trainer.loggers)
        scores, shown = self.scores_of(side), (f"{side}_loss", f"{side}_accuracy")
        for name, value in scores.compute().items():
            self.log(name, value, logger=curve, prog_bar=name in shown)
        scores.reset()

    def on_train_end(self) -> None:
        """Fit what tells unknown pictures, with the best weights, and keep it in their checkpoint."""
        saved = [one for one in self.trainer.checkpoint_callbacks if isinstance(one, RunCheckpoints)]
        if not saved or saved[0].best_epoch < 0 or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        file = saved[0].path(self.trainer, BEST)
        fitted = self.fit_unlike(self._data).state() if self.trainer.is_global_zero else None
        fitted = self.trainer.strategy.broadcast(fitted)
        self.unlike = Unlike.from_state(fitted)
        if self.trainer.is_global_zero:
            checkpoint_files.add_to_checkpoint(file, {"unlike": fitted})

    def fit_unlike(self, data: FlowersDataModule) -> Unlike:
        """Fit `unlike` on photos of the training side and, its limit, on those of the validation side.

        Args:
            data: set up for `fit`.
        """
        training, held_out = (
            self._features(photos, even_sample(photos.labels, most))
            for photos, most in ((data.train_photos, TRAINING), (data.val_photos, 2 * TRAINING))
        )
        self.unlike = Unlike.fit(training, held_out)
        return self.unlike

    def _features(self, photos: CachedPhotos, places: np.ndarray) -> Tensor:
        """Pooled features, float32 (N, C), of photos that are not augmented, computed as in `predict`."""
        precision = str(self.trainer.precision) if self._trainer is not None else "32-true"
        dtype = COMPUTED_IN.get(precision, torch.float32)
        whole = FrozenPart(self.network, dtype, self.image_size, whole=True)
        return pooled_features(whole, lambda part: photos.read(part).to(self.device), places)

    @property
    def learning_rate(self) -> float:
        """Adam's rate in this stage."""
        return self.head_lr if self.stage.number == 1 else self.top_lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for what this stage trains; head and top layers are groups of their own."""
        parts = {"head": self.network.head, "top": self.network.backbone}
        groups = [
            {"name": name, "params": [weight for weight in part.parameters() if weight.requires_grad]}
            for name, part in parts.items()
        ]
        clipped = self.trainer.gradient_clip_val is not None  # which Lightning refuses with the fused Adam
        return torch.optim.Adam(
            [group for group in groups if group["params"]], lr=self.learning_rate, fused=not clipped
        )

    # ---------------------------------------------------------------- one photo

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FlowerClassifier:
        """A trained model from a checkpoint, in evaluation mode; needs neither photos nor weights, and
        executes nothing.

        Raises:
            FlowersError: there is no such file, or it is not a checkpoint of this project.
        """
        checkpoint = checkpoint_files.read_checkpoint(path)
        try:
            model = cls(**checkpoint["hyper_parameters"])
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise FlowersError(
                f"--ckpt_path: {str(path)!r} was written by another version of flowers_pl, or changed"
                f" since ({error});"
                " use the version that wrote it."
            ) from error
        return model.eval()

    @torch.inference_mode()
    def classify(self, path: str | os.PathLike[str]) -> dict[str, float]:
        """The probability of each class for one photo, the likeliest first.

        Raises:
            FlowersError: the photo cannot be read.
        """
        probabilities = self.eval()(self._photo(path)).softmax(1)[0].tolist()
        return dict(sorted(zip(self.classes, probabilities, strict=True), key=lambda item: -item[1]))

    @torch.inference_mode()
    def unlikeness(self, path: str | os.PathLike[str]) -> float | None:
        """How unlike the training photos one photo is: above 1 it is probably of none of the classes.

        None where the checkpoint cannot tell: only the `best.ckpt` of a run that has ended can.

        Raises:
            FlowersError: the photo cannot be read.
        """
        photo = self._photo(path)
        return None if self.unlike is None else float(self.unlike(self.eval().network.features(photo))[0])

    def _photo(self, path: str | os.PathLike[str]) -> Tensor:
        """One photo as a batch, uint8 (1, 3, size, size)."""
        try:
            return load_photo(path, self.image_size)[None].to(self.device)
        except UnreadablePhoto as reason:
            raise FlowersError(f"{str(path)!r} cannot be read: {reason}.") from reason

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put all that the model needs beside its weights under a key of our own, in plain types."""
        checkpoint[KEY] = {
            "version": 1,
            "classes": self.classes,
            "image_size": self.image_size,
            "mean": self.network.mean.flatten().tolist(),
            "std": self.network.std.flatten().tolist(),
            "stage": asdict(self.stage),
            "precision": str(self.trainer.precision),
            "data": self._data.settings() if self._data else {},
            "unlike": self.unlike.state() if self.unlike else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network that the checkpoint is for, and enter the stage that it was saved in.

        Raises:
            FlowersError: the data have other classes or another image size.
        """
        ours = checkpoint[KEY]
        for name, mine, option in (
            ("classes", self.classes, "--data.root"),
            ("image_size", self.image_size, "--data.image_size"),
        ):
            if self.classes and mine != ours[name]:
                raise FlowersError(
                    f"{option}: the checkpoint was trained with {name} {ours[name]}, here it would be {mine};"
                    " resume with what it was trained with, or start a new run."
                )
        if not self.classes:
            self.build(ours["classes"], ours["image_size"], ours["mean"], ours["std"])
        self.unlike = Unlike.from_state(ours.get("unlike"))
        self.enter_stage(Stage(**ours["stage"] | {"ended": False}))  # the stage callbacks see to that
        self._restored = True
