"""What a run leaves in `checkpoints/<run>/`: tables, TensorBoard events, reports, pictures.

Comes in: what training, evaluation and export produce. Goes out: files of a run, and the facts read back.
Must not know: how options are parsed.
"""
