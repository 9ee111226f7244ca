"""The two-stage recipe as a LightningModule and its callbacks.

In: a data module and a network. Out: checkpoints that can be resumed exactly.
Must not know: reports, exports, the command line.
"""
