"""The command line: LightningCLI with the recipe in its defaults."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, cast

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from flowers_pl.cli.export import CHECKED, predict_exported, write_card, write_final
from flowers_pl.cli.messages import quieten
from flowers_pl.cli.options import OTHERS, FlowersOptions
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import check_writable
from flowers_pl.core.names import (
    BEST,
    CARD,
    CONFIG,
    CURVES,
    LAST,
    METRICS,
    PREDICTIONS,
    RUNS,
    SPLIT,
    TEST_JSON,
)
from flowers_pl.core.signals import Stopped, StopSignals, end_with_launcher, lost_contact
from flowers_pl.core.system import best_precision
from flowers_pl.core.text import plural
from flowers_pl.data.batches import Prediction
from flowers_pl.data.split import Placed
from flowers_pl.evaluation.predictions import prediction_rows, prediction_table, write_predictions
from flowers_pl.network.weights import check_weights
from flowers_pl.runs.folder import draw_curves, rows_of, unused, write_report
from flowers_pl.runs.progress import EpochLines, bars_for
from flowers_pl.runs.tables import DataFiles, EpochTable, Throughput
from flowers_pl.runs.tensorboard import LogPredictions
from flowers_pl.training.checkpoint_callback import RunCheckpoints
from flowers_pl.training.checkpoint_files import AtomicCheckpointIO, read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.resume import (
    epochs_after,
    finished,
    how_to_go_on,
    job_name,
    log_changes,
    remove_unbegun,
    restarted,
)

log = logging.getLogger("flowers_pl")
RUN_NAME = "FLOWERS_PL_RUN_NAME"  # hands the run's name on to the processes that Lightning starts
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: without the program's name; None for those of this process.

    Returns:
        The exit code: 0; 1 after an error that the user can fix, which is printed as one sentence; 143 after
        SIGTERM; 130 after Ctrl-C.

    >>> main(["export", "--ckpt_path", "no/such.ckpt"])  # also prints why
    1
    """
    quieten()
    launched = RUN_NAME in os.environ
    try:
        with StopSignals() as signals:
            FlowersCLI(sys.argv[1:] if args is None else list(args), signals)
    except FlowersError as error:
        print(f"flowers_pl: {error}", file=sys.stderr)
        return 1
    except MisconfigurationException as error:  # of the Trainer's settings, by Lightning
        said = " ".join(str(error).split())
        named = re.search(r"Trainer\((\w+)=", said)
        option = named[1] if named else "accelerator" if "accelerator" in said or "backend" in said else "…"
        print(f"flowers_pl: --trainer.{option}: {said} Give another, or leave it out.", file=sys.stderr)
        return 1
    except Stopped as stop:
        log.info("flowers_pl: %s", stop)
        return int(stop.code or 0)
    except OSError as error:
        if error.errno in FULL:
            print(f"flowers_pl: {error.strerror}; make room and start again.", file=sys.stderr)
        elif error.filename is not None:
            print(f"flowers_pl: {str(error.filename)!r}: {error.strerror}; see to it.", file=sys.stderr)
        else:
            raise
        return 1
    finally:
        if not launched:  # or what this process starts later would take it for its own
            os.environ.pop(RUN_NAME, None)
    return 0


class FlowersCLI(FlowersOptions):
    """fit, validate, test, predict, audit, explain and export."""

    def before_instantiate_classes(self) -> None:
        if self.subcommand in OTHERS:
            return
        trainer = self.config[self.subcommand].trainer
        if trainer.precision is None:  # what was trained exactly is judged exactly
            exact = self._trained_in == "32-true"
            trainer.precision = self._trained_in if exact else best_precision(trainer.accelerator)
        if self.subcommand == "fit":
            self._run = self._run_folder()
            if self._ckpt is None:
                check_weights(self.config.fit.model.weights)
            else:
                now = self._parser("fit").dump(self.config.fit, skip_unset=False)
                self._changed = log_changes(self._run / CONFIG, now)
        else:
            self.save_config_callback = None
            given, size = self.config[self.subcommand].data.image_size, self._trained_on.get("image_size")
            if size and given != size:
                raise FlowersError(
                    f"--data.image_size: {self._ckpt} sees {size} pixels a side, not {given}; leave it out."
                )
            judge_by = self._exported or self._ckpt
            assert judge_by is not None
            self._run = judge_by.parent
        self._check_writable()

    def _check_writable(self) -> None:
        """Refuse at once where nothing could be written in the end; only the first rank writes."""
        if getattr(rank_zero_only, "rank", 0) or self.subcommand == "validate":
            return
        out = self.config.predict.out if self.subcommand == "predict" else None
        if out and Path(out).is_dir():
            raise FlowersError(
                f"--out: {out!r} is a folder; name a file in it, {str(Path(out) / PREDICTIONS)!r} say."
            )
        check_writable(Path(out).parent if out else self._run, "--out" if out else "")

    def _run_folder(self) -> Path:
        if self._ckpt is not None:
            return self._ckpt.parent
        if "LOCAL_RANK" in os.environ and RUN_NAME in os.environ:
            end_with_launcher()
            return RUNS / os.environ[RUN_NAME]
        name = self.config.fit.run_name or job_name() or unused(time.strftime("%Y%m%d-%H%M%S"))
        if Path(name).name != name or name == "..":
            raise FlowersError(f"--run_name must be the name of a folder below {RUNS}, not {name!r}.")
        if (last := RUNS / name / LAST).exists():
            if not restarted():
                raise FlowersError(
                    f"--run_name: {str(RUNS / name)!r} exists already; give another name, or resume with"
                    f" --ckpt_path {last}."
                )
            read_checkpoint(last)
            self._ckpt = last
        os.environ[RUN_NAME] = name
        return RUNS / name

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        callbacks = given["callbacks"] or []
        kwargs["enable_progress_bar"], bars = bars_for(given["enable_progress_bar"], callbacks)
        kwargs["callbacks"] = [*callbacks, *bars]
        if self.subcommand != "fit":
            kwargs |= {"logger": False, "enable_checkpointing": False}
        elif not given["fast_dev_run"]:
            board = TensorBoardLogger(self._run.parent, self._run.name, version="", default_hp_metric=False)
            every = self.config.fit.save_every_n_steps
            kwargs |= {
                "default_root_dir": given["default_root_dir"] or str(self._run),
                "logger": [board, EpochTable(self._run / METRICS)],
                "callbacks": [
                    *kwargs["callbacks"],
                    EpochLines(),
                    Throughput(),
                    DataFiles(self._run),
                    LogPredictions(),
                    RunCheckpoints(str(self._run), every, self._signals),
                ],
                "plugins": [*(given["plugins"] or []), AtomicCheckpointIO()],
            }
        try:
            return super().instantiate_trainer(**kwargs)
        except ModuleNotFoundError as error:  # of an accelerator, a precision or a logger
            raise FlowersError(
                f"--trainer.…: what is asked for needs a package that is not here ({error})."
            ) from error

    # ---------------------------------------------------------------- subcommands

    def fit(self, model: FlowerClassifier, **kwargs: Any) -> None:
        """Train, then judge the validation side with the best weights."""
        if self._ckpt is not None and not self._changed and finished(self._ckpt) and self._is_concluded():
            log.info("This run is finished; all that it left lies in %s.", self._run)
            return
        try:
            self._fit(model)
        except Stopped as stop:
            stop.advice = how_to_go_on(self._run)
            raise
        except FlowersError:
            if self.trainer.is_global_zero and self._ckpt is None:
                remove_unbegun(self._run)
            raise
        except RuntimeError as error:
            if not lost_contact(error):
                raise
            raise FlowersError(
                f"Another process of this run has ended, so this one ends too; {how_to_go_on(self._run)}"
            ) from error

    def _fit(self, model: FlowerClassifier) -> None:
        self.datamodule.check_ranks(self.trainer.world_size)
        if self._ckpt is not None and (later := epochs_after(self._ckpt)):
            log.warning(
                "%s: %s of this run came after it and will be trained anew; %s goes on from the last.",
                self._ckpt, plural(later, "epoch"), self._run / LAST,
            )  # fmt: skip
        ckpt = None if self._ckpt is None else str(self._ckpt)
        self.trainer.fit(model, datamodule=self.datamodule, ckpt_path=ckpt, weights_only=True)
        best = next(
            (one for one in self.trainer.checkpoint_callbacks if isinstance(one, RunCheckpoints)), None
        )
        if best is None or best.best_epoch < 0:
            return
        metrics = self._judge(self.trainer.validate, model)
        _log_settings(self.trainer, self.config.fit.as_dict(), metrics)
        if self.trainer.is_global_zero:
            self._conclude(model, best.best_epoch, metrics)

    def _is_concluded(self) -> bool:
        """Whether `_conclude` has been here and got to its end."""
        final = {"torch": ["final.pt2", CARD], "onnx": ["final.onnx", CARD], "none": []}[
            self.config.fit.export
        ]
        return all((self._run / name).is_file() for name in [CURVES, *final])

    def _conclude(self, model: FlowerClassifier, best_epoch: int, metrics: dict[str, float]) -> None:
        """What a run ends with, on one rank: its curves, its final model, and a word on where all is."""
        draw_curves(self._run, best_epoch)
        if self.config.fit.export != "none":
            suffix = {"torch": ".pt2", "onnx": ".onnx"}[self.config.fit.export]
            final = self._run / f"final{suffix}"
            data = self.datamodule
            results = {
                "judged": f"validation {data.kind}; this side chose the checkpoint",
                "photos": len(data.judged),
            }
            results |= {name.partition("_")[2]: value for name, value in metrics.items()}
            write_final(model.cpu(), self._run / BEST, final, data, CHECKED, results=results)
        log.info("Best epoch: %d. On the validation side, which chose it:", best_epoch + 1)
        print(_lines(metrics))
        log.info("Everything of this run lies in %s; 'tensorboard --logdir %s' shows it.", self._run, RUNS)

    def validate(self, **kwargs: Any) -> None:
        """Judge the validation side."""
        metrics = self._judge(self.trainer.validate, self._load())
        data = self.datamodule
        print(f"{len(data.judged)} validation {data.kind}; this side chose the checkpoint.")
        print(_lines(metrics))

    def test(self, **kwargs: Any) -> None:
        """Judge the photos of --data.test_root, or else the validation side, and write a report."""
        assert self._ckpt is not None
        model = self._load()
        self._judge(self.trainer.test, model)
        report = write_report(self._run, self._ckpt, self.datamodule, model.classes, model.tested)
        if (self._run / CARD).is_file() and self._ckpt.name == BEST:
            write_card(self._run, self._ckpt, [Placed(**row) for row in rows_of(self._run / SPLIT)])
        print(report.text())
        log.info("Written to %s: test.txt, test.json, predictions.csv and plots.", self._run)

    def _judge(self, how: Any, model: FlowerClassifier) -> dict[str, float]:
        how(model, datamodule=self.datamodule, verbose=False)
        return {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def predict(self, **kwargs: Any) -> None:
        """Write predictions.csv and show its first rows."""
        if self._exported is not None:
            classes, found = predict_exported(self._exported, self.datamodule)
        else:
            model = self._load()
            classes = model.classes
            found = cast("list[Prediction]", self.trainer.predict(model, datamodule=self.datamodule))
        rows = prediction_rows(found, [photo.path for photo in self.datamodule.judged], classes)
        file, failed = self._predictions(), sum(bool(row.error) for row in rows)
        if self.config.predict.out is None and file.exists() and (self._run / TEST_JSON).exists():
            log.warning("%s is written anew; it may be that of 'test' (--out names another file).", file)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(file, rows, classes)
        print(*prediction_table(rows), sep="\n")
        if failed == len(rows):
            raise FlowersError(
                f"--data.predict_root: nothing in {self.datamodule.predict_root!r} can be read as a photo;"
                f" {file} says why."
            )
        unread = f", {plural(failed, 'file')} that cannot be read" if failed else ""
        log.info("%s%s: %s.", plural(len(rows) - failed, "prediction"), unread, file)

    def _predictions(self) -> Path:
        """Where `predict` writes its table."""
        return Path(self.config.predict.out or self._run / PREDICTIONS)

    def _load(self) -> FlowerClassifier:
        assert self._ckpt is not None
        log.info("Checkpoint: %s", self._ckpt)
        return FlowerClassifier.load(self._ckpt)


def _lines(metrics: dict[str, float]) -> str:
    """Metrics for the screen, a line each."""
    return "\n".join(f"  {name.partition('_')[2]:<10} {value:.4f}" for name, value in metrics.items())


def _log_settings(trainer: Trainer, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    """Give TensorBoard the run's settings beside its result."""
    chosen = {
        f"{group}.{name}": str(value)
        for group in ("model", "data", "unfreeze", "early_stopping", "average")
        for name, value in settings[group].items()
    }
    for board in trainer.loggers:
        board.log_hyperparams(chosen, {f"best/{name}": value for name, value in metrics.items()})
