"""The settings of a run, in config.yaml."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from flowers_pl.core.files import replacing


class RunSettings(L.Callback):
    """Writes `config.yaml` once training begins, whole or not at all.

    Before that a resume may still be refused, and must not leave the run with settings that it was not
    trained with.

    Args:
        file: where it goes.
        settings: all of them, as YAML.
    """

    def __init__(self, file: Path, settings: str) -> None:
        self.file, self.settings = file, settings
        self._written = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file of a run that was resumed with nothing left to train: Lightning skips its hooks."""
        if not self._written and trainer.global_step:
            self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, on one rank."""
        self._written = True
        if trainer.is_global_zero:
            with replacing(self.file) as unfinished:
                unfinished.write_text(self.settings, encoding="utf-8")
