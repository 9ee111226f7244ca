"""What is wrong with a folder of photos: files, duplicates, labels, odd pictures.

Comes in: a folder and, for labels, a network. Goes out: `Findings`, as text, JSON and HTML.
Must not know: training.
"""
