"""The notebook's job in Keras on TensorFlow, for `versus_keras.py`: answers tasks, one a line, until its input ends.

TensorFlow and PyTorch abort in one process, so it needs a Python of its own, with tensorflow, scipy and pillow.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = str(int(json.loads(sys.argv[1])["onednn"]))  # read as TensorFlow is imported

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.src.legacy.preprocessing.image import ImageDataGenerator
from tensorflow.python.util import _pywrap_util_port

warnings.filterwarnings("ignore")


class Tasks:
    """As `histo_pl.benchmark.tasks.Tasks`."""

    def __init__(self, root: str, image_size: int, batch_size: int, policy: str = "float32", **_: object) -> None:
        keras.mixed_precision.set_global_policy(policy)
        self.size, self.batch_size = image_size, batch_size
        generator = ImageDataGenerator(
            rescale=1 / 255,
            rotation_range=20,
            shear_range=0.2,
            zoom_range=0.2,
            horizontal_flip=True,
            validation_split=0.2,
        )
        self.tiles = generator.flow_from_directory(
            f"{root}/train",
            target_size=(image_size, image_size),
            batch_size=batch_size,
            class_mode="binary",
            subset="training",
        )
        self.model = build(image_size)
        rng = np.random.default_rng(0)
        self.images = tf.constant(rng.random((batch_size, image_size, image_size, 3), dtype="float32"))
        self.labels = tf.constant(rng.integers(0, 2, batch_size).astype("float32"))

    def input(self, batches: int) -> dict[str, float]:
        """Read and augment batches."""
        return self.timed(lambda: [next(self.tiles) for _ in range(batches)], batches)

    def step(self, steps: int) -> dict[str, float]:
        """Train on one batch over and over."""
        return self.timed(lambda: [self.model.train_on_batch(self.images, self.labels) for _ in range(steps)], steps)

    def epoch(self) -> dict[str, float]:
        """Train an epoch."""
        return self.timed(lambda: self.model.fit(self.tiles, epochs=1, verbose=0), self.tiles.n / self.batch_size)

    def timed(self, work: Callable[[], object], batches: float) -> dict[str, float]:
        """Seconds a tile."""
        started = time.perf_counter()
        work()
        return {"seconds": (time.perf_counter() - started) / batches / self.batch_size}


def build(size: int) -> keras.Model:
    """Build the notebook's network, compiled as it compiles it."""
    model = keras.Sequential(
        [
            keras.Input((size, size, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(128, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(256, activation="sigmoid"),
            layers.Dense(1, activation="sigmoid", dtype="float32"),  # as Keras advises for mixed precision
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return model


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    tasks = Tasks(**json.loads(sys.argv[1]))
    versions = {
        "versions": f"Keras {keras.__version__}, TensorFlow {tf.__version__}",
        "onednn": _pywrap_util_port.IsMklEnabled(),
    }
    for line in sys.stdin:
        request = json.loads(line)
        figures = getattr(tasks, request.pop("task"))(**request)
        print(json.dumps(figures | versions), file=answers, flush=True)
