"""Write a run's settings, `config.yaml`."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback

from flowers_pl.core.files import replacing


class RunSettings(SaveConfigCallback):
    """Writes `config.yaml` once training begins, whole or not at all.

    Lightning writes it before it has read the checkpoint, so that a refused resume would leave the run with
    settings that it was not trained with.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = trainer.log_dir  # read on all ranks: Lightning broadcasts it
        if trainer.is_global_zero and folder is not None:
            with replacing(Path(folder) / self.config_filename) as unfinished:
                self.parser.save(
                    self.config, str(unfinished), skip_unset=False, overwrite=True, multifile=False
                )
