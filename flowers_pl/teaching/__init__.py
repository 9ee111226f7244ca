"""Teachers: better networks, each photo judged by one that never saw it, whose answers become soft labels.

Comes in: the photos of the data module, and the name of a network. Goes out: the table that
`--data.soft_labels` takes, with the accuracy that it was made with.
Must not know: how a run trains its own network, and how options are parsed.
"""
