"""How good a model is: predictions, metrics with intervals, calibration, figures.

Comes in: probabilities and labels. Goes out: tables, numbers and matplotlib figures.
Must not know: where a run's files lie.
"""
