"""Conversion of Keras models to checkpoints and back."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from histo_pl.errors import UserError, WriteError
from histo_pl.images import KERAS_RESIZE, RESIZES
from histo_pl.interop.keras_hdf5 import KerasNetwork, read_keras, write_keras
from histo_pl.models.checkpoint import TrainedModel, load_checkpoint, network_of, save_model
from histo_pl.models.contents import KERAS_SUFFIXES
from histo_pl.storage import atomic_write

CHECKPOINT, HDF5 = ".ckpt", (".h5", ".hdf5")
# Of files of older versions, which lack them.
ABSENT: dict[str, Any] = {"training_hashes": {}, "training_cases": [], "case_rule": {}, "decision_tta": {}}
NOTED = (  # of a TrainedModel, not of Keras
    "resize",
    "threshold",
    "rule",
    "refer",
    "data",
    "training_hashes",
    "training_cases",
    "case_rule",
    "decision_tta",
)
ASSUMED = """\
Weights alone do not say how they are used. Taken for the notebook's network: no padding, 2x2 max-pooling, ReLU after
each convolution, that activation after the dense layer (--dense-activation), a sigmoid at the end. Check a few tiles.
"""


def convert(
    source: Path,
    target: Path,
    *,
    image_size: int | None = None,
    dense_activation: str | None = None,
    malignant: int | None = None,
) -> str:
    """Convert a Keras model to a checkpoint, or a checkpoint to a Keras model, by the files' suffixes.

    Args:
        source: An `.h5` or `.keras` file, or a `.ckpt`.
        target: The file to write; `.ckpt`, or `.h5`. What exists is not overwritten.
        image_size: Side of the network's input in pixels, for a file of weights alone.
        dense_activation: sigmoid or relu, for a file of weights alone; None: the notebook's sigmoid.
        malignant: Keras's index of the malignant class, 0 or 1; None: the notebook's 1.

    Returns:
        The written file and the next commands, for a person.

    Raises:
        UserError: The files are not as expected.
    """
    suffixes = source.suffix.lower(), target.suffix.lower()
    if os.path.exists(target):  # noqa: PTH110  (Path.exists fails on a name that is too long)
        raise UserError(f"The file to write exists already. Expected a new name. Received: {target}")
    if suffixes[0] in KERAS_SUFFIXES and suffixes[1] == CHECKPOINT:
        network = read_keras(source, image_size, dense_activation)
        return _to_checkpoint(network, source, target, 1 if malignant is None else malignant)
    if suffixes[0] == CHECKPOINT and suffixes[1] in HDF5 and ".weights" not in target.suffixes[-2:]:
        if {image_size, dense_activation, malignant} != {None}:
            raise UserError(
                f"A checkpoint knows its image size, activation and classes. Expected no options. "
                f"Received: {source} to {target} with an option"
            )
        return _to_keras(source, target)
    raise UserError(
        f"These files cannot be converted. Expected .h5 or .keras to .ckpt, or .ckpt to .h5 (not .weights.h5: a whole "
        f"model is written), which Keras 2 and 3 both read. Received: {source} to {target}"
    )


def _to_checkpoint(keras: KerasNetwork, source: Path, target: Path, malignant: int) -> str:
    model_config, state = keras.model_config, keras.state
    if malignant == 0:  # the sigmoid means the other class
        for name in ("dense_1.weight", "dense_1.bias"):
            state[name] = -state[name]
    model = TrainedModel(
        network=network_of(model_config, {f"backbone.{name}": weight for name, weight in state.items()}),
        model_config=model_config,
        image_size=model_config["image_size"],
        temperature=1.0,
        **(_unknown_training(source) if keras.note is None else _noted_training(source, keras.note)),
    )
    with _written(target) as file:
        save_model(model, file)
    ckpt = shlex.quote(str(target))
    return (
        f"Wrote {target}: {_described(model)}\n"
        f"{ASSUMED if keras.weights_alone else ''}"
        f"Malignant is Keras's class {malignant}"
        f"{', as in the notebook (breast_benign 0, breast_malignant 1)' if malignant else ''}.\n\n"
        f"  python predict.py ckpt={ckpt} img=TILE\n"
        f"  python train.py model.weights={ckpt} {_unlike_the_default(model_config)}data=folder data.root=TILES"
    )


def _unlike_the_default(model_config: dict[str, Any]) -> str:
    defaults = {"dense_units": 256, "dense_activation": "sigmoid"}
    model = [f"model.{key}={model_config[key]} " for key, value in defaults.items() if model_config[key] != value]
    return "".join(model) + f"data.image_size={model_config['image_size']} "


def _to_keras(source: Path, target: Path) -> str:
    model = load_checkpoint(source)
    if model.model_config["name"] != "keras_cnn":
        raise UserError(f"Only keras_cnn is a Keras model. Received: {model.model_config['name']} in {source}")
    if model.model_config.get("stain"):
        raise UserError(f"Keras has no such stain normalisation. Received: {model.model_config['stain']} in {source}")
    backbone: nn.Module = model.network.get_submodule("backbone")
    state = backbone.state_dict()
    for name in ("dense_1.weight", "dense_1.bias"):
        state[name] = state[name] / model.temperature  # Keras's sigmoid has none
    with _written(target) as file:
        write_keras(file, model.model_config, state, {key: getattr(model, key) for key in NOTED})
    return (
        f"Wrote {target}: {_described(model)}\n"
        f"keras.models.load_model reads it. Feed it RGB / 255 of shape (B, {model.image_size}, {model.image_size}, 3), "
        f"resized as in training ({model.resize}); above {model.threshold:g} is malignant."
    )


def _described(model: TrainedModel) -> str:
    parameters = sum(weight.numel() for weight in model.network.state_dict().values())
    units = model.network.get_parameter("backbone.dense.bias").numel()
    return (
        f"the notebook's network for images of {model.image_size} pixels, dense layer of {units} "
        f"with {model.model_config.get('dense_activation', 'sigmoid')}, {parameters:,} parameters."
    )


def _unknown_training(source: Path) -> dict[str, Any]:
    """Make the metadata of a training as far as Keras's file tells it: nothing but a name."""
    data = {
        "name": f"a Keras model, {source.name}",
        "synthetic": False,
        "negative_class": "benign",
        "positive_class": "malignant",
        "parts": None,
        "split": None,
        "fold": None,
    }
    return {
        "resize": KERAS_RESIZE,
        "threshold": 0.5,
        "rule": "fixed",
        "refer": None,
        "data": data,
        **ABSENT,
    }


def _noted_training(source: Path, note: Any) -> dict[str, Any]:  # noqa: ANN401
    """Check the metadata that was noted when the file was written here, so that nothing is lost on the way back."""
    known = _unknown_training(source)
    if not isinstance(note, dict) or not isinstance(note.get("data"), dict):
        raise _changed_note(source)
    note = {**ABSENT, **note}
    if (
        note.keys() != known.keys()
        or note["resize"] not in tuple(RESIZES)
        or not isinstance(note["threshold"], int | float)
        or any(not isinstance(note[name], type(default)) for name, default in ABSENT.items())
        or not known["data"].keys() <= note["data"].keys()
    ):
        raise _changed_note(source)
    data = {key: value for key, value in note["data"].items() if key != "root"}  # a local path, in older files
    return note | {"refer": note["refer"] and tuple(note["refer"]), "data": data}


def _changed_note(source: Path) -> UserError:
    return UserError(
        f"What histo_pl noted in this file has been changed. Expected a file as written. Received: {source}"
    )


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """Yield a path to write to, and move the file to its name once it is whole."""
    if not target.parent.is_dir():
        raise UserError(f"The folder to write to does not exist. Expected one that does. Received: {target}")
    try:
        with atomic_write(target) as unfinished:
            yield unfinished
    except RuntimeError as error:  # HDF5's word for a full disk
        reason = " ".join(str(error).split())[:200]
        raise WriteError(
            f"A file cannot be written ({reason}). Expected a folder that can be written, on a disk with room. "
            f"Received: {target}"
        ) from error
