"""The notebook's network in real Keras 3, on the backend that conftest.py chooses."""

import warnings
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras
    from keras import layers

CONVOLUTIONS = ("first", "second", "third")


def notebook(size: int, activation: str = "sigmoid", units: int = 256, names: bool = False) -> keras.Sequential:
    """The notebook's network, compiled; its layers named by Keras, or oddly."""

    def named(name: str) -> dict[str, str]:
        return {"name": name} if names else {}

    model = keras.Sequential([keras.Input((size, size, 3))])
    for filters, name in zip((32, 64, 128), CONVOLUTIONS, strict=True):
        model.add(layers.Conv2D(filters, (3, 3), activation="relu", **named(name)))
        model.add(layers.MaxPooling2D((2, 2), **named(f"after {name}")))
    model.add(layers.Flatten(**named("a row")))
    model.add(layers.Dense(units, activation=activation, **named("zz hidden")))
    model.add(layers.Dense(1, activation="sigmoid", **named("answer")))
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def save(model: keras.Sequential, file: Path) -> Path:
    """Save a whole model, or weights alone where the name ends in .weights.h5."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (model.save_weights if file.name.endswith(".weights.h5") else model.save)(str(file))
    return file
