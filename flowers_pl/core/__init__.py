"""What every other package stands on: errors, files, text, signals, what the system offers.

Comes in: nothing of this project. Goes out: helpers that raise `FlowersError` or nothing.
Must not know: photos, networks, Lightning's training.
"""
