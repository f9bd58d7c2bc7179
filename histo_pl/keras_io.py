"""The notebook's network in Keras's files, read and written without Keras: h5py alone, and nothing in them is run.

Read: whole models (`.h5` of Keras 2 and 3, `.keras`) and weights alone (`.h5`, `.weights.h5`). Written: the `.h5` of
Keras 2, which Keras 3 reads too.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from itertools import zip_longest
from math import isqrt
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from histo_pl.errors import UserError
from histo_pl.models.keras_cnn import ACTIVATIONS, CHANNELS, MIN_IMAGE_SIZE, KerasCNN

if TYPE_CHECKING:
    import h5py

Layer = dict[str, Any]
Weights = tuple[str, "list[h5py.Dataset]"]  # a layer's name, its kernel and bias

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

NOTE = "histo_pl"  # the attribute that keeps what a Keras file has no place for
MAX_IMAGE_SIZE = 16_384  # beyond it the dense layer alone would take half a terabyte
MALFORMED = (  # what reading a damaged or hostile file ends in
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
ZIP = b"PK\x03\x04"  # how a zip file begins
FOLDERS = ("layers", "_layer_checkpoint_dependencies")  # of weights without layer_names: since Keras 2.13, and 2.12
WEIGHTED = ("conv2d", "conv2d_1", "conv2d_2", "dense", "dense_1")
HIDDEN, OUTPUT = "dense", "dense_1"


class KerasNetwork(NamedTuple):
    """The notebook's network as a Keras file holds it.

    Attributes:
        spec: What `build_network` takes.
        state: The state dictionary of its `KerasCNN`, float32.
        weights_alone: Whether the file has no description of the network: what its weights are for is assumed.
        note: What `write_keras` was given to note, parsed JSON; None if the file is not of its making.
    """

    spec: dict[str, Any]
    state: dict[str, Tensor]
    weights_alone: bool
    note: Any


class _UnexpectedFileError(Exception):
    """What a file holds is not what Keras writes; the message says what."""


def read_keras(path: Path, image_size: int | None = None, dense_activation: str | None = None) -> KerasNetwork:
    """Read the notebook's network from a Keras file.

    Args:
        path: A whole model (`.h5`, `.keras`), or weights alone (`.h5`).
        image_size: Side of the network's input in pixels. Weights alone do not say it; a whole model does.
        dense_activation: What follows the hidden dense layer, sigmoid or relu. Weights alone do not say it
            either; None: the notebook's sigmoid.

    Returns:
        The network.

    Raises:
        UserError: h5py is missing, the file is damaged, no Keras file or harmful, or another network.
    """
    require_h5py()
    if not os.path.isfile(path):  # noqa: PTH113  (Path.is_file fails on a name that is too long)
        raise UserError(f"There is no such Keras file. Expected an .h5 or .keras file. Received: {path}")
    if image_size is not None and not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(
            f"The image size is out of range. Expected {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels. "
            f"Received: {image_size}"
        )
    try:
        with _opened(path) as (model, weights):
            given = {"image_size": image_size, "dense_activation": dense_activation}
            spec = given if model is None else _check_model(model, given)
            note = weights.file.attrs.get(NOTE)
            return KerasNetwork(
                *_load(_layer_weights(weights), spec),
                weights_alone=model is None,
                note=None if note is None else json.loads(note),
            )
    except _UnexpectedFileError as error:
        raise UserError(f"{_printable(error)} Received: {path}") from error
    except MALFORMED as error:
        raise UserError(
            f"This file is damaged, or no Keras file ({_printable(error)}). Expected what Keras's model.save() or "
            f"save_weights() wrote. Received: {path}"
        ) from error


def _printable(error: Exception, longest: int = 400) -> str:
    """An error's text on one line: it may quote a stranger's file."""
    text = " ".join(str(error).split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= longest else f"{text[:longest]} ..."


def write_keras(path: Path, spec: Mapping[str, Any], state: Mapping[str, Tensor], note: Any = None) -> None:  # noqa: ANN401
    """Write the network as the `.h5` of a whole, compiled Keras 2 model, which Keras 3 reads too.

    Args:
        path: The file to write.
        spec: What `build_network` took, of the name keras_cnn.
        state: The state dictionary of its `KerasCNN`.
        note: Plain values to keep in the file, which Keras does not look at.

    Raises:
        UserError: h5py is missing.
    """
    arguments = signature(KerasCNN).bind(**{key: value for key, value in spec.items() if key != "name"})
    arguments.apply_defaults()
    layers = _architecture(**arguments.arguments)
    model = {"class_name": "Sequential", "config": {"name": "sequential", "layers": layers}}
    version = {"backend": "tensorflow", "keras_version": "2.15.0"}
    with require_h5py().File(path, "w") as file:
        file.attrs.update(version | {"model_config": json.dumps(model), "training_config": json.dumps(TRAINING)})
        file.attrs[NOTE] = json.dumps(note)
        group = file.create_group("model_weights")
        names = [layer["config"]["name"] for layer in layers]
        group.attrs.update(version | {"layer_names": np.array(names, dtype=bytes)})
        for name in names:
            _write_layer(group.create_group(name), name, state)


def _write_layer(group: "h5py.Group", name: str, state: Mapping[str, Tensor]) -> None:
    weights = {}
    if name in WEIGHTED:
        weight, bias = state[f"{_module(name)}.weight"], state[f"{_module(name)}.bias"]
        weights = {f"{name}/kernel:0": _to_keras(name, weight), f"{name}/bias:0": bias}
    group.attrs["weight_names"] = np.array(list(weights), dtype=bytes)
    for dataset, values in weights.items():
        group.create_dataset(dataset, data=values.numpy())


def require_h5py() -> Any:  # noqa: ANN401
    """Import h5py.

    Returns:
        The module.

    Raises:
        UserError: It is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "Keras files need h5py. Install it with pip install -e '.[keras]'. Received: no h5py"
        ) from error
    return h5py


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, "h5py.Group"]]:
    """Yield a model's description (None for weights alone) and the group that holds its weights."""
    h5py = require_h5py()
    if _is_zip(path):  # up to Keras 2.12 a .keras file is HDF5
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryFile() as unpacked:
            _check_archive(archive)
            with archive.open("model.weights.h5") as member:
                shutil.copyfileobj(member, unpacked)
            with h5py.File(unpacked, "r") as file:
                yield json.loads(archive.read("config.json")), file
    else:
        with h5py.File(path, "r") as file:
            model = file.attrs.get("model_config")
            yield (None, file) if model is None else (json.loads(model), _descend(file, "model_weights"))


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def _check_archive(archive: zipfile.ZipFile) -> None:
    """Refuse a zip that Keras did not write: its members are few, stored as they are, and stay in their folder."""
    members = archive.infolist()
    for member in members:
        place = PurePosixPath(member.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or ":" in member.filename:
            raise _UnexpectedFileError(
                f"This .keras file is harmful: its member {member.filename!r} would leave the folder that it is "
                f"unpacked in. Expected a file from a source that you trust."
            )
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise _UnexpectedFileError(
                f"The member {member.filename!r} of this .keras file is compressed or encrypted. "
                f"Expected members stored as they are, as Keras writes them."
            )
    names = [member.filename for member in members]
    for name in ("config.json", "model.weights.h5"):
        if names.count(name) != 1:
            raise _UnexpectedFileError(f"This .keras file holds {names.count(name)} members {name!r}. Expected one.")


def _descend(group: "h5py.Group", path: str) -> Any:  # noqa: ANN401
    """Follow hard links alone: any other kind may lead out of the file."""
    h5py = require_h5py()
    place: Any = group
    for name in path.split("/"):
        if not isinstance(place, h5py.Group) or not isinstance(place.get(name, getlink=True), h5py.HardLink):
            raise _UnexpectedFileError(
                f"This file has no {path!r} of its own in {group.name!r}. Expected what Keras's model.save() or "
                f"save_weights() wrote."
            )
        place = place[name]
    return place


def _architecture(image_size: int, dense_units: int, dense_activation: str) -> list[Layer]:
    """The notebook's layers as Keras describes them, the input first."""
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


def _check_model(model: Any, given: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Compare a model's description with the notebook's, layer by layer.

    Returns:
        Its `image_size` and `dense_activation`.
    """
    kind = _class_of(model) if isinstance(model, dict) else type(model).__name__
    if kind != "Sequential":
        raise _UnexpectedFileError(f"This is a {kind} model. Expected the notebook's network, a Sequential model.")
    config = model["config"] if isinstance(model["config"], dict) else {"layers": model["config"]}
    layers = config["layers"]
    size = _image_size(config)
    if _class_of(layers[0]) == "InputLayer":
        layers = layers[1:]
    hidden = next((layer["config"] for layer in layers if _class_of(layer) == "Dense"), {})
    units, activation = hidden.get("units", 256), hidden.get("activation")
    wanted = _architecture(size, units, activation if activation in tuple(ACTIVATIONS) else "sigmoid")
    for number, (layer, expected) in enumerate(zip_longest(layers, wanted[1:]), start=1):
        _check_layer(number, layer, expected)
    found = {"image_size": size, "dense_activation": activation}
    for key, value in given.items():
        if value not in (None, found[key]):
            raise _UnexpectedFileError(
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
        raise _UnexpectedFileError(
            f"The model's input has the shape {shape}. Expected [null, S, S, 3]: square RGB images."
        )
    if not isinstance(shape[1], int) or not MIN_IMAGE_SIZE <= shape[1] <= MAX_IMAGE_SIZE:
        raise _UnexpectedFileError(
            f"The model's image size is {shape[1]}. Expected {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels."
        )
    return shape[1]


def _check_layer(number: int, layer: Layer | None, expected: Layer | None) -> None:
    if expected is None:
        name = layer and layer["config"].get("name")
        raise _UnexpectedFileError(f"Layer {number} ({name}) is one too many. Expected the notebook's nine layers.")
    if layer is None:
        raise _UnexpectedFileError(f"Layer {number} is missing. Expected {expected['class_name']}, as in the notebook.")
    place = f"Layer {number} ({layer['config'].get('name')}) is not the notebook's"
    if _class_of(layer) != expected["class_name"]:
        raise _UnexpectedFileError(f"{place}: it is {_class_of(layer)}. Expected {expected['class_name']}.")
    for key, value in expected["config"].items():
        if key == "name" or (key in OPTIONAL and key not in layer["config"]):
            continue
        if layer["config"].get(key) != value:
            wanted = " or ".join(ACTIVATIONS) if key == "activation" and expected["config"]["name"] == HIDDEN else value
            raise _UnexpectedFileError(f"{place}: its {key} is {layer['config'].get(key)}. Expected {wanted}.")


def _layer_weights(group: "h5py.Group") -> list[Weights]:
    """List the layers that have weights, in the model's order, with their datasets."""
    if "layer_names" in group.attrs:
        return [
            (layer, [_descend(group, f"{layer}/{weight}") for weight in weights])
            for layer in _names(group, "layer_names")
            if (weights := _names(_descend(group, layer), "weight_names"))
        ]
    folder = next((name for name in FOLDERS if name in group), None)
    if folder is None:
        raise _UnexpectedFileError("This file holds no layers. Expected what Keras's save() or save_weights() wrote.")
    layers, found = _descend(group, folder), []
    for name in layers:
        variables = _descend(layers, f"{name}/vars")
        if len(variables):
            found.append((name, [_descend(variables, str(number)) for number in range(len(variables))]))
    return found


def _names(group: "h5py.Group", attribute: str) -> list[str]:
    names: Any = group.attrs[attribute]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _load(layers: Sequence[Weights], spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Copy the weights into PyTorch's layout, each checked against the network that it is to be part of."""
    place = WEIGHTED.index(HIDDEN)
    dense = layers[place][1][0] if len(layers) > place else None
    if spec["image_size"] is None:
        raise _UnexpectedFileError(f"This file has weights alone. Add --image-size PIXELS.{_possible_sizes(dense)}")
    arguments = {
        "image_size": spec["image_size"],
        "dense_units": spec.get("dense_units") or (dense.shape[-1] if dense is not None and dense.shape else 1),
        "dense_activation": spec["dense_activation"] or "sigmoid",
    }
    with torch.device("meta"):
        network = KerasCNN(**arguments)
    state = {}
    for (name, datasets), expected in zip(layers, WEIGHTED, strict=False):
        module: Any = network.get_submodule(_module(expected))
        shapes = [_keras_shape(module.weight), tuple(module.bias.shape)]
        if [dataset.shape for dataset in datasets] != shapes:
            hint = _possible_sizes(dense) if expected == HIDDEN else ""
            raise _UnexpectedFileError(
                f"Layer {name} is not the notebook's {expected}: its weights have the shapes "
                f"{[dataset.shape for dataset in datasets]}. Expected {shapes}.{hint}"
            )
        kernel, bias = (_read(dataset) for dataset in datasets)
        state[f"{_module(expected)}.weight"] = _to_torch(expected, kernel, module.weight.shape)
        state[f"{_module(expected)}.bias"] = bias
    if len(layers) != len(WEIGHTED):
        raise _UnexpectedFileError(
            f"This file has {len(layers)} layers with weights. Expected five: {', '.join(WEIGHTED)}."
        )
    return {"name": "keras_cnn", **arguments}, state


def _possible_sizes(dense: "h5py.Dataset | None") -> str:
    """Say which images a dense layer was made for: three times a 3x3 convolution and a halving lead to its inputs."""
    side = isqrt(dense.shape[0] // CHANNELS[-1]) if dense is not None and dense.shape else 0
    if dense is None or not side or dense.shape[0] != side * side * CHANNELS[-1]:
        return ""
    return (
        f" These weights fit --image-size {8 * side + 14} to {8 * side + 21}, if the network is the notebook's; "
        f"only the size that it had in Keras gives Keras's numbers."
    )


def _read(dataset: "h5py.Dataset") -> Tensor:
    """Read a dataset that lies in the file as it is: one that claims more than it holds could fill the memory."""
    whole = dataset.chunks is None and not dataset.external and not dataset.is_virtual
    if not whole or dataset.id.get_storage_size() != dataset.nbytes or dataset.dtype.kind != "f":
        raise _UnexpectedFileError(
            f"The weights {dataset.name} are not stored as Keras stores them. Expected floating-point numbers, "
            f"uncompressed and in this file."
        )
    values = torch.from_numpy(np.asarray(dataset[()], dtype=np.float32))
    if not torch.stack(torch.aminmax(values)).isfinite().all():  # without a copy of half a gigabyte
        raise _UnexpectedFileError(
            f"The weights {dataset.name} are not all finite: the training diverged. Expected a model that answers."
        )
    return values


def _module(name: str) -> str:
    """The module of `KerasCNN` that a Keras layer is."""
    return name if name.startswith("dense") else f"features.{name}"


def _to_torch(name: str, kernel: Tensor, shape: Sequence[int]) -> Tensor:
    return kernel.reshape(_hwio(name, shape)).permute(3, 2, 0, 1).reshape(*shape)


def _to_keras(name: str, weight: Tensor) -> Tensor:
    height, width, inputs, outputs = _hwio(name, weight.shape)
    kernel = weight.reshape(outputs, inputs, height, width).permute(2, 3, 1, 0)
    return kernel.reshape(_keras_shape(weight))


def _keras_shape(weight: Tensor) -> tuple[int, ...]:
    outputs, inputs, *sides = weight.shape
    return (*sides, inputs, outputs)


def _hwio(name: str, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Height, width, inputs and outputs of a PyTorch weight's kernel.

    Keras flattens a map as (H, W, C), PyTorch as (C, H, W): seen as a convolution that covers the whole map, the
    dense layer is turned as the others are.
    """
    outputs, inputs, *sides = shape
    if name == HIDDEN:
        side = isqrt(inputs // CHANNELS[-1])
        return side, side, CHANNELS[-1], outputs
    height, width = sides or (1, 1)
    return height, width, inputs, outputs
