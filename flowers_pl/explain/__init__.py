"""Where a model looks: class activation maps, overlays, and how far to trust them.

Comes in: a model and photos. Goes out: heat maps, figures and faithfulness scores.
Must not know: where a run's files lie.
"""
