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
from math import isqrt
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from histo_pl.errors import UserError
from histo_pl.interop.keras_architecture import (
    HIDDEN,
    MAX_IMAGE_SIZE,
    TRAINING,
    UnexpectedFileError,
    check_model,
    keras_layers,
)
from histo_pl.models.keras_cnn import CHANNELS, MIN_IMAGE_SIZE, KerasCNN

if TYPE_CHECKING:
    import h5py

Weights = tuple[str, "list[h5py.Dataset]"]  # a layer's name, its kernel and bias

NOTE = "histo_pl"  # the dataset of metadata that Keras has no place for
MALFORMED = (  # errors from reading a damaged or hostile file
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
ZIP = b"PK\x03\x04"  # the first bytes of a zip file
FOLDERS = ("layers", "_layer_checkpoint_dependencies")  # of weights without layer_names: since Keras 2.13, and 2.12
WEIGHTED = ("conv2d", "conv2d_1", "conv2d_2", "dense", "dense_1")


class KerasNetwork(NamedTuple):
    """The notebook's network as a Keras file holds it.

    Attributes:
        model_config: The arguments of `build_network`.
        state: The state dictionary of its `KerasCNN`, float32.
        weights_alone: The file has no description of the network, which is assumed to be the notebook's.
        note: The note of `write_keras`, parsed JSON; None if the file has none.
    """

    model_config: dict[str, Any]
    state: dict[str, Tensor]
    weights_alone: bool
    note: Any


def read_keras(path: Path, image_size: int | None = None, dense_activation: str | None = None) -> KerasNetwork:
    """Read the notebook's network from a Keras file.

    Args:
        path: A whole model (`.h5`, `.keras`), or weights alone (`.h5`).
        image_size: Side of the network's input in pixels. Weights alone do not say it; a whole model does.
        dense_activation: Activation of the hidden dense layer, sigmoid or relu. Weights alone do not say it
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
            model_config = given if model is None else check_model(model, given)
            note = _read_note(weights.file)
            return KerasNetwork(
                *_load(_layer_weights(weights), model_config),
                weights_alone=model is None,
                note=note,
            )
    except UnexpectedFileError as error:
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


def write_keras(path: Path, model_config: Mapping[str, Any], state: Mapping[str, Tensor], note: Any = None) -> None:  # noqa: ANN401
    """Write the network as the `.h5` of a whole, compiled Keras 2 model, which Keras 3 reads too.

    Args:
        path: The file to write.
        model_config: The arguments of `build_network`, of the name keras_cnn.
        state: The state dictionary of its `KerasCNN`, float32 tensors.
        note: Plain values to keep in the file, which Keras does not look at.

    Raises:
        UserError: h5py is missing.
    """
    arguments = signature(KerasCNN).bind(**{key: value for key, value in model_config.items() if key != "name"})
    arguments.apply_defaults()
    layers = keras_layers(**arguments.arguments)
    model = {"class_name": "Sequential", "config": {"name": "sequential", "layers": layers}}
    version = {"backend": "tensorflow", "keras_version": "2.15.0"}
    with require_h5py().File(path, "w") as file:
        file.attrs.update(version | {"model_config": json.dumps(model), "training_config": json.dumps(TRAINING)})
        file[NOTE] = np.frombuffer(json.dumps(note).encode(), np.uint8)  # an attribute holds 64 KB at most
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
        member_path = PurePosixPath(member.filename.replace("\\", "/"))
        if member_path.is_absolute() or ".." in member_path.parts or ":" in member.filename:
            raise UnexpectedFileError(
                f"This .keras file is harmful: its member {member.filename!r} would leave the folder that it is "
                f"unpacked in. Expected a file from a source that you trust."
            )
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UnexpectedFileError(
                f"The member {member.filename!r} of this .keras file is compressed or encrypted. "
                f"Expected members stored as they are, as Keras writes them."
            )
    names = [member.filename for member in members]
    for name in ("config.json", "model.weights.h5"):
        if names.count(name) != 1:
            raise UnexpectedFileError(f"This .keras file holds {names.count(name)} members {name!r}. Expected one.")


def _descend(group: "h5py.Group", path: str) -> Any:  # noqa: ANN401
    """Follow hard links alone: any other kind may lead out of the file."""
    h5py = require_h5py()
    node: Any = group
    for name in path.split("/"):
        if not isinstance(node, h5py.Group) or not isinstance(node.get(name, getlink=True), h5py.HardLink):
            raise UnexpectedFileError(
                f"This file has no {path!r} of its own in {group.name!r}. Expected what Keras's model.save() or "
                f"save_weights() wrote."
            )
        node = node[name]
    return node


def _read_note(file: "h5py.File") -> Any:  # noqa: ANN401
    """Read the note that `write_keras` left: a dataset, or an attribute in older files; None if there is none."""
    attribute: Any = file.attrs.get(NOTE)
    if attribute is not None:
        return json.loads(attribute)
    if NOTE not in file:
        return None
    dataset = _descend(file, NOTE)
    if dataset.chunks is not None or dataset.id.get_storage_size() != dataset.nbytes or dataset.dtype != np.uint8:
        raise UnexpectedFileError("The note of histo_pl in this file is not stored as it was written.")
    return json.loads(np.asarray(dataset[()]).tobytes())


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
        raise UnexpectedFileError("This file holds no layers. Expected what Keras's save() or save_weights() wrote.")
    layers, found = _descend(group, folder), []
    for name in layers:
        variables = _descend(layers, f"{name}/vars")
        if len(variables):
            found.append((name, [_descend(variables, str(number)) for number in range(len(variables))]))
    return found


def _names(group: "h5py.Group", attribute: str) -> list[str]:
    names: Any = group.attrs[attribute]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _load(layers: Sequence[Weights], model_config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Copy the weights into PyTorch's layout, each checked against the network that it is to be part of."""
    hidden_index = WEIGHTED.index(HIDDEN)
    dense = layers[hidden_index][1][0] if len(layers) > hidden_index else None
    if model_config["image_size"] is None:
        raise UnexpectedFileError(f"This file has weights alone. Add --image-size PIXELS.{_possible_sizes(dense)}")
    arguments = {
        "image_size": model_config["image_size"],
        "dense_units": model_config.get("dense_units") or (dense.shape[-1] if dense is not None and dense.shape else 1),
        "dense_activation": model_config["dense_activation"] or "sigmoid",
    }
    with torch.device("meta"):
        network = KerasCNN(**arguments)
    state = {}
    for (name, datasets), expected in zip(layers, WEIGHTED, strict=False):
        module: Any = network.get_submodule(_module(expected))
        shapes = [_keras_shape(module.weight), tuple(module.bias.shape)]
        if [dataset.shape for dataset in datasets] != shapes:
            hint = _possible_sizes(dense) if expected == HIDDEN else ""
            raise UnexpectedFileError(
                f"Layer {name} is not the notebook's {expected}: its weights have the shapes "
                f"{[dataset.shape for dataset in datasets]}. Expected {shapes}.{hint}"
            )
        kernel, bias = (_read(dataset) for dataset in datasets)
        state[f"{_module(expected)}.weight"] = _to_torch(expected, kernel, module.weight.shape)
        state[f"{_module(expected)}.bias"] = bias
    if len(layers) != len(WEIGHTED):
        raise UnexpectedFileError(
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
        raise UnexpectedFileError(
            f"The weights {dataset.name} are not stored as Keras stores them. Expected floating-point numbers, "
            f"uncompressed and in this file."
        )
    values = torch.from_numpy(np.asarray(dataset[()], dtype=np.float32))
    if not torch.stack(torch.aminmax(values)).isfinite().all():  # without a copy of half a gigabyte
        raise UnexpectedFileError(
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
