"""Names of what a run leaves in its folder, `checkpoints/<run>/`."""

from pathlib import Path

RUNS = Path("checkpoints")
BEST, LAST = "best.ckpt", "last.ckpt"
CONFIG = "config.yaml"
OWNER = "owner.json"  # while a process is training there
SPLIT, LEFT_OUT, METRICS = "split.csv", "left_out.csv", "metrics.csv"
PREDICTIONS = "predictions.csv"  # of `predict` and of `test`
TEST_JSON, TEST_TEXT = "test.json", "test.txt"
PLOTS = "plots"
CURVES = f"{PLOTS}/training_curves.png"
CARD = "MODEL_CARD.md"
NEW_CARD = "MODEL_CARD.new.md"  # beside a card that a person has changed
EXPORTS = "exports.json"  # what was exported from a checkpoint, and how well it agrees

KEY = "flowers_pl"  # of this project's own part of a checkpoint
