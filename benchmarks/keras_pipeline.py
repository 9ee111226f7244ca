"""Time the original notebook's training in Keras: its model, augmentation, batches, optimizers and epochs.

It needs an environment of its own with tensorflow-cpu, scipy and pillow. The backbone starts from random
values, which changes no timing and needs no download. Like the notebook it changes no brightness, which
the recipe here does. Prints one JSON line.
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # type: ignore[import-not-found]

WARM = 5  # steps of a stage before its clock starts


class Clock(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Count seconds and photos of the training steps, without validation."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch, self.seconds, self.photos, self.steps = batch, 0.0, 0, 0

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        if batch == 0 or self.steps == WARM:
            self.start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.steps += 1
        if self.steps > WARM:
            now = time.perf_counter()
            self.seconds, self.start = self.seconds + now - self.start, now
            self.photos += self.batch


def main() -> None:
    """Train both stages and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos")
    parser.add_argument("--epochs", type=int, default=10, help="of each stage")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    begun = time.perf_counter()
    pictures = tf.keras.preprocessing.image.ImageDataGenerator(
        rescale=1 / 255, validation_split=0.2, rotation_range=25, width_shift_range=0.1,
        height_shift_range=0.1, zoom_range=0.15, horizontal_flip=True, fill_mode="nearest",
    )  # fmt: skip
    flows = [
        pictures.flow_from_directory(
            args.photos, target_size=(args.size, args.size), batch_size=args.batch, subset=subset,
            shuffle=subset == "training",
        )
        for subset in ("training", "validation")
    ]  # fmt: skip
    base = tf.keras.applications.MobileNetV2(
        input_shape=(args.size, args.size, 3), include_top=False, weights=None
    )
    inputs = tf.keras.Input((args.size, args.size, 3))
    pooled = tf.keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    probabilities = tf.keras.layers.Dense(flows[0].num_classes, activation="softmax")(
        tf.keras.layers.Dropout(0.3)(pooled)
    )
    model = tf.keras.Model(inputs, probabilities)
    found: dict[str, float] = {}
    for stage, frozen, rate in ((1, len(base.layers), 1e-3), (2, len(base.layers) - 30, 1e-4)):
        base.trainable = True
        for layer in base.layers[:frozen]:
            layer.trainable = False
        model.compile(tf.keras.optimizers.Adam(rate), "categorical_crossentropy", metrics=["accuracy"])
        clock = Clock(args.batch)
        model.fit(flows[0], validation_data=flows[1], epochs=args.epochs, callbacks=[clock], verbose=0)
        found[f"stage_{stage}"] = clock.photos / clock.seconds
    print(json.dumps(found | {"seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
