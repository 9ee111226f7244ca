"""The final model as one file: written, checked, loaded and described.

Comes in: a trained model. Goes out: `.pt2` and `.onnx` files and a model card.
Must not know: the command line.
"""
