"""Define FlowerClassifier, the LightningModule: how `FlowerModel` is trained, evaluated and logged."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.batches import Batch, Prediction
from flowers_pl.network.answers import final_logits, whole_backbone, with_mirror
from flowers_pl.network.fast_frozen import FrozenPart
from flowers_pl.network.fast_trained import TrainedPart
from flowers_pl.network.mobilenet import IMAGENET_MEAN, IMAGENET_STD, start_from_nothing
from flowers_pl.network.weights import load_weights
from flowers_pl.training.finite_loss import RequireFiniteLoss
from flowers_pl.training.metrics import SideMetrics
from flowers_pl.training.model import FlowerModel
from flowers_pl.training.optimizer import Rates, make_optimizer, parameter_groups, rates_of, set_rates
from flowers_pl.training.schedule import Schedule, follows_length, rate_factor

log = logging.getLogger(__name__)
SIDES = ("train", "val", "test")
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "64-true": torch.float64}
NUM_MEASURED = 256  # photos that batch-norm statistics are measured on, with weights: null


class FlowerClassifier(FlowerModel):
    """MobileNetV2 with a new head, trained in stages.

    The network is built once the classes are known: from the data in `fit`, from the checkpoint elsewhere.

    Args:
        weights: initial weights of the backbone: the name of torchvision weights (downloaded by torchvision),
            a path to a state_dict, or null for none.
        dropout: share of the pooled features dropped in training.
        head_lr: Adam's learning rate in stage 1, where the head alone is trained.
        top_lr: Adam's learning rate in stage 2, for the head and the top layers.
        seed: of the head's initial weights.
        label_smoothing: this share of each training label is spread over all classes (Szegedy et al. 2016);
            reports and early stopping use the plain loss.
        top_head_lr: the head's learning rate in stage 2; null for top_lr.
        layer_decay: in stage 2 the learning rate of every three blocks of the backbone is this times that of
            the three blocks above them (Howard and Ruder 2018).
        weight_decay: by AdamW (Loshchilov and Hutter 2019), in both stages, of matrices and convolution
            kernels only; 0 for Adam without it.
        warmup: share of each stage's steps in which the learning rates rise linearly.
        schedule: what the learning rates do after that: 'constant', or 'cosine' for a fall to zero over the
            whole of each stage. With 'cosine' both stages have all their epochs and the last one is kept:
            the validation loss neither chooses an epoch nor ends a stage.
        calibrate: when the run ends, fit a temperature to the validation side, which makes probabilities say
            how often the model is right; the checkpoint keeps it for all later uses.
        flip_test: judge a photo by the mean logits of itself and its mirror image: in all uses of the trained
            model, at twice the cost; not in validation while it is trained.

    >>> import torch
    >>> model = FlowerClassifier(weights=None)
    >>> model.build(["daisy", "rose"], image_size=64)
    >>> model(torch.zeros(3, 3, 64, 64, dtype=torch.uint8)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        weights: str | None = "IMAGENET1K_V1",
        dropout: float = 0.3,
        head_lr: float = 1e-3,
        top_lr: float = 1e-4,
        seed: int = 0,
        label_smoothing: float = 0.0,
        top_head_lr: float | None = None,
        layer_decay: float = 1.0,
        weight_decay: float = 0.0,
        warmup: float = 0.0,
        schedule: Schedule = "constant",
        calibrate: bool = False,
        flip_test: bool = False,
    ) -> None:
        super().__init__(dropout, seed, flip_test)
        self.save_hyperparameters()
        shares = {"dropout": dropout, "label_smoothing": label_smoothing, "warmup": warmup}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise FlowersError(f"--model.{name} must be at least 0 and less than 1, not {share}.")
        self.rates = Rates(head_lr, top_lr, top_head_lr, layer_decay, weight_decay)
        self.weights, self.label_smoothing, self.calibrate = weights, label_smoothing, calibrate
        self.warmup, self.schedule = warmup, schedule
        self.tested: list[Prediction] = []

    # ---------------------------------------------------------------- the network

    def build(
        self,
        classes: list[str],
        image_size: int,
        mean: Iterable[float] = IMAGENET_MEAN,
        std: Iterable[float] = IMAGENET_STD,
    ) -> None:
        """Build the network as `FlowerModel` does, and the metrics."""
        super().build(classes, image_size, mean, std)
        # "scores.val_scores.loss" and the like are keys in checkpoints that were saved inside an epoch.
        self.scores = nn.ModuleDict({f"{side}_scores": SideMetrics(side, len(classes)) for side in SIDES})

    def metrics_of(self, side: str) -> SideMetrics:
        """Return the metrics of a side: 'train', 'val' or 'test'."""
        return cast(SideMetrics, self.scores[f"{side}_scores"])

    def setup(self, stage: str) -> None:
        """Build the network for the classes of the data, unless a checkpoint has built it."""
        if not self.classes:
            self.build(self._data.classes, self._data.image_size)
        if self.trainer.precision == "64-true":
            self.double()  # Lightning does so later, when a checkpoint's weights have been rounded already

    def on_fit_start(self) -> None:
        """Initialise the network on one rank and send it to the others, unless a checkpoint is resumed."""
        self.novelty = self.temperature = None  # those of weights that will change
        if follows_length(self.hparams) and not self.stage.epochs:
            raise FlowersError(
                "--model.schedule and --model.warmup need the length of each stage; give the Trainer the"
                " callback UnfreezeTopLayers."
            )
        if self._restored:
            return
        if self.trainer.is_global_zero:
            self._initialise()
        here = {name: value.cpu() for name, value in self.network.state_dict().items()}  # not on rank 0's GPU
        state = self.trainer.strategy.broadcast(here)
        self.network.load_state_dict(state)
        self.frozen = None

    def _initialise(self) -> None:
        if self.weights is not None:
            load_weights(self.network.backbone, self.weights)
            return
        photos = self._data.train_photos
        num_photos = min(NUM_MEASURED, len(photos))
        log.info(
            "No weights: batch-norm statistics are measured on %d training photos, then frozen.",
            num_photos,
        )
        generator = torch.Generator().manual_seed(self.seed)
        sample = torch.randperm(len(photos), generator=generator)[:num_photos].sort().values
        start_from_nothing(self.network, photos.read(sample.numpy()).to(self.device))

    # ---------------------------------------------------------------- its fast parts

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Return the dtype that the fast parts compute in; None where the precision has no fast parts."""
        return DTYPES.get(str(self.trainer.precision))

    @property
    def _fitting(self) -> bool:
        """Return whether the model is being trained, rather than a trained one used."""
        return self.trainer.state.fn == TrainerFn.FITTING

    def split_network(self) -> None:
        """Split the network into a frozen part, which the data module prefetches, and a trained part.

        The whole backbone is frozen outside of `fit`.
        """
        evaluates = not self._fitting
        if self.compute_dtype is None:
            self.frozen = None
        elif self.frozen is None or evaluates:
            network, dtype, size = self.network, self.compute_dtype, self.image_size
            if evaluates:
                self.frozen = whole_backbone(network, dtype, size, self.flip_test)
            else:
                self.frozen = FrozenPart(network, dtype, size)
            self._trained = TrainedPart(self.network, self.frozen)

    def on_train_epoch_start(self) -> None:
        """Split the network: a callback may have begun another stage, or a run resumes inside an epoch."""
        self.split_network()

    on_train_start = on_validation_epoch_start = on_predict_epoch_start = on_train_epoch_start

    def _logits(self, batch: Batch) -> Tensor:
        """Compute the logits of a batch, with its frozen features or without; the final ones outside of
        `fit`."""
        fitting = self.training or self._fitting
        if batch.features is not None:
            logits = self._trained(batch.features, batch.keys)
        elif self.flip_test and not fitting:
            logits = with_mirror(self.network, batch.photos)
        else:
            logits = self(batch.photos, batch.keys)
        return logits if fitting else final_logits(logits, self.temperature)

    # ---------------------------------------------------------------- training

    def _shared_step(self, batch: Batch, side: str) -> Tensor:
        """Return logits and update the side's metrics, whose loss is the plain one in training too."""
        logits = self._logits(batch)
        self.metrics_of(side).update(logits.detach(), batch.labels)
        return logits

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rates of this step, which are a function of its number in the stage."""
        each = self.trainer.accumulate_grad_batches
        steps = math.ceil(self.trainer.num_training_batches / each)  # an epoch
        step = (self.current_epoch - self.stage.first_epoch) * steps + batch_idx // each
        factor = rate_factor(step, self.stage.epochs * steps, self.warmup, self.schedule)
        set_rates(self.trainer.optimizers[0], self._planned, factor)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return a loss whose gradient, averaged over the ranks by DDP, is that of the whole batch's mean."""
        logits, smoothing = self._shared_step(batch, "train"), self.label_smoothing
        targets = batch.labels if batch.targets is None else batch.targets.to(logits.dtype)
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        weighted = losses if batch.weights is None else losses * batch.weights.to(losses.dtype)
        return weighted.sum() * (self.trainer.world_size / batch.total)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Evaluate validation photos and return their logits to callbacks; a refit has no such photos."""
        return self._shared_step(batch, "val") if self.refit is None else batch.photos.new_empty(0)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate photos of the test folder, or of the validation side."""
        logits = self._shared_step(batch, "test")
        self.tested.append(Prediction(batch.rows, logits.softmax(1), batch.unreadable))

    def on_test_epoch_start(self) -> None:
        """Drop the predictions of an earlier test."""
        self.tested = []
        self.split_network()

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """Return the probabilities of a batch's photos and their novelty scores."""
        features, compute = batch.features, self.network.features
        if features is None:
            features = with_mirror(compute, batch.photos) if self.flip_test else compute(batch.photos)
        unlike, head = None, self.network.head
        with torch.autocast(features.device.type, enabled=False):  # as `test` and the temperature have it
            features = features.to(head.weight.dtype)
            probabilities = final_logits(head(features), self.temperature).softmax(1)
            if self.novelty is not None:
                unlike = self.novelty(features[:, 0] if self.flip_test else features)
        return Prediction(batch.rows, probabilities, batch.unreadable, unlike)

    def on_validation_epoch_end(self) -> None:
        """Log training and validation: a checkpoint is saved next, and a run resumed from it starts after."""
        self._log_training()
        if self.refit is None:
            self._log_metrics("val")

    def on_train_epoch_end(self) -> None:
        """Log the training of an epoch that was not validated."""
        self._log_training()

    def _log_training(self) -> None:
        if not self.metrics_of("train").updated:
            return
        self._log_metrics("train")
        self.log("stage", float(self.stage.number))
        for name, rate in rates_of(self.trainer.optimizers[0]).items():
            self.log(f"lr_{name}", rate)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self._log_metrics("test")

    def _log_metrics(self, side: str) -> None:
        """Log and reset a side's metrics; loggers get those of `fit` only, which make up its curves."""
        to_loggers = self._fitting and bool(self.trainer.loggers)
        metrics, on_bar = self.metrics_of(side), (f"{side}_loss", f"{side}_accuracy")
        for name, value in metrics.compute().items():
            self.log(name, value, logger=to_loggers, prog_bar=name in on_bar)
        metrics.reset()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """List what this stage trains in groups, with their rates before the schedule."""
        return parameter_groups(self.network, self.stage, self.rates)

    def configure_callbacks(self) -> list[L.Callback]:
        """Return callbacks that the Trainer gets besides its own."""
        return [RequireFiniteLoss()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of what this stage trains."""
        self._planned = self.parameter_groups()
        return make_optimizer(self._planned, self.trainer.gradient_clip_val is not None)
