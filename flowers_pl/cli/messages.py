"""What the program says on the screen, and of what its libraries say."""

from __future__ import annotations

import logging
import warnings

from lightning.fabric.strategies.launchers import subprocess_script as launcher
from lightning.pytorch.callbacks import model_summary
from lightning.pytorch.profilers import profiler
from lightning.pytorch.utilities import rank_zero_only

from flowers_pl.runs.progress import AboveBars


def quieten() -> None:
    """Say what this program says, and of what Lightning says only what its user can act on."""
    logging.basicConfig(format="%(message)s", handlers=[AboveBars()])
    first = getattr(rank_zero_only, "rank", 0) == 0
    logging.getLogger("flowers_pl").setLevel(logging.INFO if first else logging.ERROR)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # They tell that a launched process has died, and what --trainer.profiler and a model summary found.
    for module in (launcher, profiler, model_summary):
        logging.getLogger(module.__name__).setLevel(logging.INFO)
    for message in (
        r".*does not have many workers.*",
        r".*isinstance\(treespec, LeafSpec\).* is deprecated.*",
        r".*module\(s\) in eval mode at the start of training.*",
        r".*It is recommended to use .*sync_dist=True.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*is smaller than the logging interval.*",
        r".*ended before the epoch ended and your dataloader is not resumable.*",
        r"The ``compute`` method of metric .* was called before the ``update`` method.*",
    ):
        warnings.filterwarnings("ignore", message)
