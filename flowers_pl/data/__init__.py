"""From files on disk to batches: checked, de-duplicated, split, decoded, augmented.

Comes in: folders of photos and settings. Goes out: `Batch` objects in a reproducible order.
Must not know: which network is trained on them.
"""
