"""MobileNetV2 and faster ways to compute it, in plain torch.

Comes in: batches of pixels. Goes out: logits, pooled features, novelty scores.
Must not know: Lightning, files of a run, the command line.
"""
