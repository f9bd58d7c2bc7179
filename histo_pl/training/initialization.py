"""The initial weights of a training: random, given, or those of a run that is resumed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from histo_pl.data import HistologyDataModule
from histo_pl.data.splits import describe_difference
from histo_pl.errors import UserError
from histo_pl.images import RESIZE
from histo_pl.models.checkpoint import TrainedModel, find_checkpoint, load_checkpoint
from histo_pl.models.contents import network_state, read_contents, read_metadata
from histo_pl.models.pretrained import BUNDLED, PRETRAINED, SOURCES, load_encoder
from histo_pl.storage import load_tensors
from histo_pl.tables import read_table
from histo_pl.training.freezing import ALL

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A network, its initial weights, and its trainable parts.

    Attributes:
        config: The arguments of `build_network`, resolved.
        weights: A checkpoint of the same network to start from, a source of `load_encoder`, or None for random weights.
        architecture: The architecture as the user named it, see `load_encoder`.
        trainable: The trainable parts of the backbone, see `freeze_all_but`.
    """

    config: Mapping[str, Any]
    weights: str | None = None
    architecture: str | None = None
    trainable: str | Sequence[str] = ALL


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a training starts from.

    Attributes:
        state: Tensors by their names in the network: of all its layers, or of the encoder alone. None: random ones.
        pretrained_on: Name of the data that trained the first weights, if they were given.
        training_hashes: The tiles that those weights were trained on, see `TrainedModel.training_hashes`.
        training_cases: Their cases, see `TrainedModel.training_cases`.
        epochs: Number of epochs that a resumed run has trained.
    """

    state: Mapping[str, Tensor] | None = None
    pretrained_on: str | None = None
    training_hashes: Mapping[str, str] = field(default_factory=dict)
    training_cases: Sequence[Mapping[str, Any]] = ()
    epochs: int = 0


@dataclass(frozen=True)
class _InterruptedRun:
    path: Path
    epochs: int
    metadata: Mapping[str, Any]
    state: Mapping[str, Tensor]


def resolve_initial_weights(
    model: Model, data: HistologyDataModule, resume: str | None, *, needs_optimizer: bool
) -> InitialWeights:
    """Load the initial weights, and refuse those that would make the results untrue.

    Args:
        model: The network, and what to start it from.
        data: Set up.
        resume: A last.ckpt to go on from, or None. It holds the weights, so `model.weights` is not read.
        needs_optimizer: A resumed run goes on with the optimizer's state.

    Returns:
        The weights.

    Raises:
        UserError: A checkpoint is missing or no checkpoint, of another network, or of a run on other data or
            another split.
    """
    if resume is not None:
        return _resumed_weights(resume, model, data, needs_optimizer)
    if model.weights is None:
        return InitialWeights()
    if not _is_checkpoint(model.weights, model.config):
        state, title = load_encoder(model.config, model.weights, model.architecture)
        _announce_encoder(title)
        return InitialWeights({f"backbone.encoder.{name}": weight for name, weight in state.items()}, title)
    trained = load_checkpoint(find_checkpoint(model.weights))
    _check_same_network(model.weights, trained.model_config, model.config)
    _announce(model.weights, trained)
    return InitialWeights(
        trained.network.state_dict(), trained.trained_on, trained.training_hashes, trained.training_cases
    )


def _is_checkpoint(weights: str, model_config: Mapping[str, Any]) -> bool:
    """Tell a checkpoint of histo_pl from an encoder's weights; a file that does not exist counts as one."""
    if weights in (PRETRAINED, BUNDLED) or weights.startswith(SOURCES) or weights.endswith(".safetensors"):
        return False
    if not Path(weights).is_file():
        return True
    try:
        contents = load_tensors(Path(weights))
    except Exception:  # the loader says what is wrong with it
        return model_config["name"] == "keras_cnn"
    return isinstance(contents, dict) and "hyper_parameters" in contents


@rank_zero_only
def _announce_encoder(title: str) -> None:
    log.info("Starting from an encoder trained on: %s", title)


def _check_same_network(path: str, trained: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = _differing(trained, wanted)
    if differing:
        raise UserError(
            f"The weights are those of another network. Expected {differing[0]}, as they were trained with. "
            f"Received: {differing[1]} model.weights={path}"
        )


def _differing(expected: Mapping[str, Any], received: Mapping[str, Any]) -> tuple[str, str] | None:
    """Write the settings in which two models differ as overrides; None if they are the same."""
    names = {"name": "model", "image_size": "data.image_size", "data.name": "data.name"}
    keys = [key for key in sorted(expected.keys() | received.keys()) if expected.get(key) != received.get(key)]

    def overrides(model: Mapping[str, Any]) -> str:
        return " ".join(f"{names.get(key, f'model.{key}')}={model.get(key)}" for key in keys)

    return (overrides(expected), overrides(received)) if keys else None


@rank_zero_only
def _announce(path: str, model: TrainedModel) -> None:
    log.info("Starting from %s, trained on: %s", path, model.trained_on)
    if not model.training_hashes:
        log.info(
            "  Its training tiles are unknown: if this test set was among them, results are optimistically biased."
        )
    if model.resize != RESIZE:
        log.info("  Its tiles were resized by %s, these are by %s:", model.resize, RESIZE)
        log.info("  on tiles that are not of the network's size its answers change with that.")


def _resumed_weights(path: str, model: Model, data: HistologyDataModule, needs_optimizer: bool) -> InitialWeights:
    """Refuse to go on with a run whose test tiles this run would train on, with other tiles or another network."""
    run = _read_run(Path(path), needs_optimizer)
    old_data, summary = run.metadata["data"], data.summary()
    differing = _differing(
        {"data.name": old_data["name"], **run.metadata["network"]}, {"data.name": summary["name"], **model.config}
    )
    if differing:
        raise UserError(
            f"The checkpoint is of a run on other data or with another network. Repeat that run's command line and add "
            f"resume={path} to it. Expected {differing[0]}. Received: {differing[1]}"
        )
    if old_data["split"] != summary["split"]:
        raise _another_split(run.path, data)
    _check_contents(run, data)
    origin = old_data.get("pretrained_on")
    if model.weights is not None and origin is None:
        raise UserError(
            f"The run to go on with did not start from given weights. Expected no model.weights. "
            f"Received: model.weights={model.weights} resume={path}"
        )
    _announce_resume(path, model.weights)
    if origin is None:
        return InitialWeights(run.state, epochs=run.epochs)
    cases = run.metadata["training_cases"]
    earlier = cases[:-1] if data.has_cases else cases  # the last are those of the run itself
    return InitialWeights(run.state, origin, run.metadata["training_hashes"], earlier, run.epochs)


def _check_contents(run: _InterruptedRun, data: HistologyDataModule) -> None:
    trained = [tile for tile, split in data.split_of.items() if split != "test"]
    hashes, summary = run.metadata["training_hashes"], data.summary()
    changed = sorted(tile for tile in trained if hashes.get(data.hashes[tile]) != data.split_of[tile])
    known = run.metadata["data"].get("contents", summary["contents"])  # up to format 2 there was none
    differing = [split for split, contents in summary["contents"].items() if contents != known[split]]
    if changed:
        found = f"{len(changed)} of the {len(trained)} training and validation tiles are not those that the run to go "
        found += f"on with was trained on, such as {changed[0]}: their content has changed"
    elif differing:
        found = f"Tiles of {' and '.join(differing)} are not those of the run to go on with: they were exchanged, or "
        found += "their content has changed"
    else:
        return
    raise UserError(
        f"{found}. Put the old files back, or start a new run, from its weights if you like: "
        f"model.weights={run.path.with_name('best.ckpt')}. Received: resume={run.path}"
    )


def _another_split(path: Path, data: HistologyDataModule) -> UserError:
    """Tell a folder that has changed from a split that was drawn anew, as each has its own fix."""
    file = path.with_name("split.csv")
    difference = ""
    if file.is_file():
        old = {row["path"] for row in read_table(file, "split.csv", ("path", "split"))}
        difference = describe_difference(old, data.split_of.keys())
    if difference:
        return UserError(
            f"The folder of tiles has changed since the run to go on with: {difference}. Move new tiles out of it and "
            f"missing ones back, or start a new run, from its weights if you like: "
            f"model.weights={path.with_name('best.ckpt')}. Received: resume={path}"
        )
    return UserError(
        f"The checkpoint was trained on another split of the tiles. Use its own: data.split_file={file}. "
        f"Received: resume={path}"
    )


@rank_zero_only
def _announce_resume(path: str, weights: str | None) -> None:
    log.info("Going on with %s%s.", path, "" if weights is None else ": model.weights is not read again")


def _read_run(path: Path, needs_optimizer: bool) -> _InterruptedRun:
    if not path.is_file():
        raise UserError(
            f"There is no checkpoint to resume from. Expected a last.ckpt or a run's folder. Received: resume={path}"
        )
    contents = read_contents(path, "last.ckpt")
    metadata = read_metadata(contents, path)
    if needs_optimizer and not contents.get("optimizer_states"):
        raise UserError(
            f"This checkpoint has weights alone and cannot be resumed. Expected last.ckpt. Received: resume={path}"
        )
    return _InterruptedRun(path, contents.get("epoch", -1) + 1, metadata, network_state(contents))
