"""Describe the stage that training is in, which every checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass

from flowers_pl.network.mobilenet import TopLayers


@dataclass
class Stage:
    """The stage that training is in.

    Args:
        number: 1 while the backbone is frozen, 2 once its top layers are trained.
        layers: number of layers of the backbone that are trained, as Keras counts them, or "all".
        first_epoch: the epoch in which the stage began.
        last: whether no other stage follows.
        ended: whether it is over: by its number of epochs or by early stopping.
        epochs: how many epochs it has at most; 0 where no callback has said so.
        chooses: whether the validation loss chooses its epoch, and may end it early.
    """

    number: int = 1
    layers: TopLayers = 0
    first_epoch: int = 0
    last: bool = True
    ended: bool = False
    epochs: int = 0
    chooses: bool = True

    def epochs_left(self, epoch: int) -> int:
        """Return how many epochs of the stage are left when an epoch of the run begins, that one included.

        >>> Stage(2, 30, first_epoch=10, epochs=8).epochs_left(16)
        2
        """
        return self.first_epoch + self.epochs - epoch

    @property
    def chosen(self) -> str:
        """Say what validation had to do with the checkpoint of a run, in words that can end a sentence."""
        return f"this side {'chose' if self.chooses else 'did not choose'} the checkpoint"

    def kept(self, epoch: int) -> str:
        """Name the epoch that a run has kept, as a heading of its figures.

        >>> Stage(2, 30).kept(7)
        'Best epoch: 8. On the validation side, which chose it'
        """
        if self.chooses:
            return f"Best epoch: {epoch + 1}. On the validation side, which chose it"
        return f"Last epoch, which is kept: {epoch + 1}. On the validation side, which did not choose it"
