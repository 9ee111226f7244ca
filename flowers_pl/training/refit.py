"""What a refit takes from the run that it repeats on all photos, as its checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Refit:
    """A run's decisions, for a training without a validation side.

    Args:
        run: the run's name.
        sha256: of its best.ckpt.
        head_epochs: how many epochs of stage 1 it kept.
        top_epochs: how many of stage 2; 0 where its best epoch is one of stage 1.
        limit: of its novelty score; None where it has none.
        temperature: `Temperature.state` of its temperature; None where it has none.
        flip_test: whether that is for the mean logits of photos and their mirror images.
        results: how it was evaluated, for the model card; None where that is not known.
    """

    run: str
    sha256: str
    head_epochs: int
    top_epochs: int
    limit: float | None = None
    temperature: Mapping[str, Any] | None = None
    flip_test: bool = False
    results: Mapping[str, Any] | None = None

    def epochs(self, stage: int) -> int:
        """Return how many epochs a stage, 1 or 2, is to have.

        >>> Refit("strong", "", head_epochs=4, top_epochs=9).epochs(2)
        9
        """
        return self.head_epochs if stage == 1 else self.top_epochs

    def state(self) -> dict[str, Any]:
        """Return the fields in plain types, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> Refit | None:
        """Rebuild what `state` returned; None if the checkpoint is not that of a refit.

        Raises:
            TypeError: it is something else.
        """
        return None if state is None else cls(**state)
