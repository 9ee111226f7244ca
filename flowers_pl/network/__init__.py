"""MobileNetV2 and faster ways to compute it, in plain torch.

In: batches of pixels. Out: logits, pooled features, novelty scores.
Must not know: Lightning, files of a run, the command line.
"""
