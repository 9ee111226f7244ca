"""Find what is wrong with a folder of photos: files, duplicates, labels, poor pictures.

Comes in: a folder and, for labels, a network. Goes out: `Findings`, as text, JSON and HTML.
Must not know: training.
"""
