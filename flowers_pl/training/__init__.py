"""The two-stage recipe as a LightningModule and its callbacks.

Comes in: a data module and a network. Goes out: checkpoints that can be resumed exactly.
Must not know: reports, exports, the command line.
"""
