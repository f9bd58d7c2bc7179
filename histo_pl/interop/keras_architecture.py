"""The notebook's network as Keras describes it, and the check of a described model against it."""

from itertools import zip_longest
from typing import Any

from histo_pl.models.keras_cnn import ACTIVATIONS, CHANNELS, MIN_IMAGE_SIZE

Layer = dict[str, Any]

CHANNELS_LAST = {"data_format": "channels_last"}
CONVOLUTION = {
    "kernel_size": [3, 3],
    "strides": [1, 1],
    "padding": "valid",
    **CHANNELS_LAST,
    "dilation_rate": [1, 1],
    "groups": 1,
    "activation": "relu",
    "use_bias": True,
}
POOLING = {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid", **CHANNELS_LAST}
OPTIONAL = frozenset({"data_format", "dilation_rate", "groups"})  # left out by the Keras versions that knew no other

TRAINING = {  # the notebook's compile()
    "loss": "binary_crossentropy",
    "metrics": ["accuracy"],
    "weighted_metrics": None,
    "loss_weights": None,
    "optimizer_config": {"class_name": "Adam", "config": {"name": "Adam", "learning_rate": 1e-3, "epsilon": 1e-7}},
}

MAX_IMAGE_SIZE = 16_384  # beyond it the dense layer alone would take half a terabyte
HIDDEN, OUTPUT = "dense", "dense_1"


class UnexpectedFileError(Exception):
    """The contents of a file are not those that Keras writes; the message says which."""


def keras_layers(image_size: int, dense_units: int, dense_activation: str) -> list[Layer]:
    """Describe the notebook's layers as Keras does, the input first.

    Args:
        image_size: Side of the input in pixels.
        dense_units: Width of the hidden dense layer.
        dense_activation: Name of its activation.
    """
    layers: list[tuple[str, str, dict[str, Any]]] = [
        ("InputLayer", "input", {"batch_input_shape": [None, image_size, image_size, 3]})
    ]
    for suffix, filters in zip(("", "_1", "_2"), CHANNELS, strict=True):
        layers.append(("Conv2D", f"conv2d{suffix}", {"filters": filters, **CONVOLUTION}))
        layers.append(("MaxPooling2D", f"max_pooling2d{suffix}", POOLING))
    layers.append(("Flatten", "flatten", CHANNELS_LAST))
    layers.append(("Dense", HIDDEN, {"units": dense_units, "activation": dense_activation, "use_bias": True}))
    layers.append(("Dense", OUTPUT, {"units": 1, "activation": "sigmoid", "use_bias": True}))
    return [{"class_name": kind, "config": {"name": name, **config}} for kind, name, config in layers]


def check_model(model: Any, given: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Compare a model's description with the notebook's, layer by layer.

    Args:
        model: Keras's description, parsed JSON.
        given: `image_size` (pixels) and `dense_activation` as the user gave them, or None.

    Returns:
        Its `image_size`, `dense_activation` and `dense_units`.

    Raises:
        UnexpectedFileError: It is another network.
    """
    kind = _class_of(model) if isinstance(model, dict) else type(model).__name__
    if kind != "Sequential":
        raise UnexpectedFileError(f"This is a {kind} model. Expected the notebook's network, a Sequential model.")
    config = model["config"] if isinstance(model["config"], dict) else {"layers": model["config"]}
    layers = config["layers"]
    size = _image_size(config)
    if _class_of(layers[0]) == "InputLayer":
        layers = layers[1:]
    hidden = next((layer["config"] for layer in layers if _class_of(layer) == "Dense"), {})
    units, activation = hidden.get("units", 256), hidden.get("activation")
    wanted = keras_layers(size, units, activation if activation in tuple(ACTIVATIONS) else "sigmoid")
    for number, (layer, expected) in enumerate(zip_longest(layers, wanted[1:]), start=1):
        _check_layer(number, layer, expected)
    found = {"image_size": size, "dense_activation": activation}
    for key, value in given.items():
        if value not in (None, found[key]):
            raise UnexpectedFileError(
                f"The model's own {key} is {found[key]}, not {value}. Expected no --{key.replace('_', '-')}."
            )
    return found | {"dense_units": units}


def _class_of(described: dict[str, Any]) -> str:
    """A layer's class by the name it is registered under: `Dense` may be somebody's own."""
    return described.get("registered_name") or described["class_name"]


def _image_size(config: dict[str, Any]) -> int:
    """Read the side of the square input from the first layer, or from where Keras 3 keeps it without one."""
    first = config["layers"][0]["config"]
    shape = first.get("batch_input_shape") or first.get("batch_shape") or config.get("build_input_shape")
    if not isinstance(shape, list) or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:  # noqa: PLR2004
        raise UnexpectedFileError(
            f"The model's input has the shape {shape}. Expected [null, S, S, 3]: square RGB images."
        )
    if not isinstance(shape[1], int) or not MIN_IMAGE_SIZE <= shape[1] <= MAX_IMAGE_SIZE:
        raise UnexpectedFileError(
            f"The model's image size is {shape[1]}. Expected {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels."
        )
    return shape[1]


def _check_layer(number: int, layer: Layer | None, expected: Layer | None) -> None:
    if expected is None:
        name = layer and layer["config"].get("name")
        raise UnexpectedFileError(f"Layer {number} ({name}) is one too many. Expected the notebook's nine layers.")
    if layer is None:
        raise UnexpectedFileError(f"Layer {number} is missing. Expected {expected['class_name']}, as in the notebook.")
    subject = f"Layer {number} ({layer['config'].get('name')}) is not the notebook's"
    if _class_of(layer) != expected["class_name"]:
        raise UnexpectedFileError(f"{subject}: it is {_class_of(layer)}. Expected {expected['class_name']}.")
    for key, value in expected["config"].items():
        if key == "name" or (key in OPTIONAL and key not in layer["config"]):
            continue
        if layer["config"].get(key) != value:
            wanted = " or ".join(ACTIVATIONS) if key == "activation" and expected["config"]["name"] == HIDDEN else value
            raise UnexpectedFileError(f"{subject}: its {key} is {layer['config'].get(key)}. Expected {wanted}.")
