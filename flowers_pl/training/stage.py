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
