"""The final model as one file: write it, open it, compare it with its checkpoint, describe it.

Comes in: a trained model. Goes out: `.pt2`, `.onnx` and `.pte` files, and the text of a model card.
Must not know: runs and the command line.
"""
