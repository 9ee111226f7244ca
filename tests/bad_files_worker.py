"""Runs fit, test and predict on the folder "set", for test_bad_files.py; writes told.json.

Root reads everything, so the two capabilities that let it are given up first, and this program begins anew.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import sys
from pathlib import Path

DROPPED = "FLOWERS_PL_TEST_DROPPED"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2  # linux/prctl.h, linux/capability.h
QUICK = ["--data.workers", "0", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
FIT = [
    "fit", "--data.root", "set", "--data.image_size", "32", "--data.batch_size", "8", "--run_name", "bad",
    "--model.weights", "null", "--unfreeze.head_epochs", "2", "--unfreeze.top_epochs", "0",
    "--trainer.devices", "1",
]  # fmt: skip


def drop_privileges() -> None:
    """Begin this program anew without the right to read what permissions forbid."""
    if os.geteuid() or DROPPED in os.environ:
        return
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "a capability cannot be dropped")
    os.environ[DROPPED] = "1"
    os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    """All three commands, one after the other."""
    import torch

    from flowers_pl.cli import app as cli
    from flowers_pl.training.classifier import FlowerClassifier

    torch.set_num_threads(1)
    told: dict[str, object] = {"codes": (codes := {})}

    def disturb(self: FlowerClassifier) -> None:
        """After the first epoch one validation photo vanishes and another changes."""
        usual(self)
        if self.trainer.current_epoch == 1:
            paths = {photo.label: Path("set", photo.path) for photo in self._data.reported_photos}
            told["vanished"], told["changed"] = str(paths["daisy"]), str(paths["tulip"])
            paths["daisy"].unlink()
            paths["tulip"].write_bytes(b"changed")

    usual = FlowerClassifier.on_train_epoch_start
    FlowerClassifier.on_train_epoch_start = disturb  # type: ignore[method-assign]
    codes["fit"] = cli.main([*FIT, *QUICK])
    codes["test"] = cli.main(["test", "--data.test_root", "set", *QUICK])
    shutil.copy("checkpoints/bad/predictions.csv", "tested.csv")
    codes["predict"] = cli.main(["predict", "--data.predict_root", "set/rose", *QUICK])
    told["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path("told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    drop_privileges()
    main()
