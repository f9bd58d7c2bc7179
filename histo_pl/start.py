"""What a training starts from: random weights, given weights, or a run that goes on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from histo_pl.data import HistologyDataModule
from histo_pl.data.splits import describe_difference
from histo_pl.data.table import read_table
from histo_pl.errors import UserError
from histo_pl.images import RESIZE
from histo_pl.inference import TrainedModel, find_checkpoint, load_model
from histo_pl.inference.checkpoint import PREFIX, read_contents
from histo_pl.models.weights import EMBEDDED, PRETRAINED, SOURCES, load_encoder
from histo_pl.storage import load_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        state: The weights to start from, by their names in the network: of all its layers, or of the encoder alone.
            None: random ones, or those that Lightning resumes.
        pretrained_on: What trained the first weights, if they were given.
        seen: The tiles that those weights were trained on, see `TrainedModel.seen`.
    """

    state: Mapping[str, Tensor] | None = None
    pretrained_on: str | None = None
    seen: Mapping[str, str] = field(default_factory=dict)


def find_start(
    *,
    weights: str | None,
    resume: str | None,
    spec: Mapping[str, Any],
    data: HistologyDataModule,
    source: str | None = None,
) -> Start:
    """Find what a training starts from, and refuse what would make its results untrue.

    Args:
        weights: A checkpoint of the same network to start from, what `load_encoder` takes, or None.
        resume: A last.ckpt to go on from, or None. It holds the weights, so `weights` is not read.
        spec: What builds the network.
        data: Set up.
        source: The architecture as it was named, see `load_encoder`.

    Returns:
        The start.

    Raises:
        UserError: A checkpoint is missing or no checkpoint, of another network, or of a run on other data or
            another split.
    """
    if resume is not None:
        return _start_of_run(resume, weights, spec, data)
    if weights is None:
        return Start()
    if not _is_checkpoint(weights, spec):
        state, title = load_encoder(spec, weights, source)
        _announce_encoder(title)
        return Start({f"backbone.encoder.{name}": weight for name, weight in state.items()}, title)
    model = load_model(find_checkpoint(weights))
    _check_same_network(weights, model.spec, spec)
    _announce(weights, model)
    return Start(model.network.state_dict(), model.trained_on, model.seen)


def _is_checkpoint(weights: str, spec: Mapping[str, Any]) -> bool:
    """Whether this names a checkpoint of histo_pl, rather than an encoder's weights; one that is not there does too."""
    if weights in (PRETRAINED, EMBEDDED) or weights.startswith(SOURCES) or weights.endswith(".safetensors"):
        return False
    if not Path(weights).is_file():
        return True
    try:
        contents = load_tensors(Path(weights))
    except Exception:  # who loads it tells what is wrong with it
        return spec["name"] == "keras_cnn"
    return isinstance(contents, dict) and "hyper_parameters" in contents


@rank_zero_only
def _announce_encoder(title: str) -> None:
    log.info("Starting from an encoder trained on: %s", title)


def _check_same_network(path: str, trained: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [key for key in sorted(trained.keys() | wanted.keys()) if trained.get(key) != wanted.get(key)]
    if differing:
        expected, received = (_overrides({key: spec.get(key) for key in differing}) for spec in (trained, wanted))
        raise UserError(
            f"The weights are those of another network. Expected {expected}, as they were trained with. "
            f"Received: {received} model.weights={path}"
        )


def _overrides(spec: Mapping[str, Any]) -> str:
    keys = {"name": "model", "image_size": "data.image_size"}
    return " ".join(f"{keys.get(key, f'model.{key}')}={value}" for key, value in spec.items())


@rank_zero_only
def _announce(path: str, model: TrainedModel) -> None:
    log.info("Starting from %s, trained on: %s", path, model.trained_on)
    if not model.seen:
        log.info("  Its training tiles are unknown: if this test set was among them, the test flatters.")
    if model.resize != RESIZE:
        log.info("  Its tiles were resized by %s, these are by %s:", model.resize, RESIZE)
        log.info("  on tiles that are not of the network's size its answers change with that.")


def _start_of_run(path: str, weights: str | None, spec: Mapping[str, Any], data: HistologyDataModule) -> Start:
    """Refuse to go on with a run whose test tiles this run would train on, with other tiles or another network."""
    run, facts = _read_run(path), data.facts()
    old_data, old_spec = run["data"], run["network"]
    if old_data["name"] != facts["name"] or old_spec != spec:
        raise UserError(
            f"The checkpoint is of a run on other data or with another network. Repeat that run's command line "
            f"and add resume=PATH to it. Received: data {facts['name']}, "
            f"network {spec}; expected data {old_data['name']}, network {old_spec}"
        )
    if old_data["split"] != facts["split"]:
        raise _another_split(path, data)
    trained = [tile for tile, part in data.parts.items() if part != "test"]
    changed = sorted(tile for tile in trained if data.hashes[tile] not in run["seen"])
    if changed:
        raise UserError(
            f"{len(changed)} of the {len(trained)} training and validation tiles are not those that the run to go on "
            f"with was trained on, such as {changed[0]}: their content has changed. Put the old files back, or start a "
            f"new run, from its weights if you like: model.weights={Path(path).with_name('best.ckpt')}. "
            f"Received: resume={path}"
        )
    origin = old_data.get("pretrained_on")
    if weights is not None and origin is None:
        raise UserError(
            f"The run to go on with did not start from given weights. Expected no model.weights. "
            f"Received: model.weights={weights} resume={path}"
        )
    if weights is not None:
        _announce_resumed_weights(path)
    return Start(state=run["state"], pretrained_on=origin, seen=run["seen"] if origin else {})


def _another_split(path: str, data: HistologyDataModule) -> UserError:
    """Tell whether the folder has changed or the split was drawn anew, as each is mended in its own way."""
    file = Path(path).with_name("split.csv")
    difference = ""
    if file.is_file():
        old = {row["path"] for row in read_table(file, "split.csv", ("path", "split"))}
        difference = describe_difference(old, data.parts.keys())
    if difference:
        return UserError(
            f"The folder of tiles has changed since the run to go on with: {difference}. Move new tiles out of it and "
            f"missing ones back, or start a new run, from its weights if you like: "
            f"model.weights={Path(path).with_name('best.ckpt')}. Received: resume={path}"
        )
    return UserError(
        f"The checkpoint was trained on another split of the tiles. Use its own: data.split_file={file}. "
        f"Received: resume={path}"
    )


@rank_zero_only
def _announce_resumed_weights(path: str) -> None:
    log.info("Going on with the weights in %s: model.weights is not read again.", path)


def _read_run(path: str) -> dict[str, Any]:
    """Read a last.ckpt's facts."""
    if not Path(path).is_file():
        raise UserError(f"There is no checkpoint to resume from. Expected a last.ckpt. Received: resume={path}")
    try:
        checkpoint = read_contents(Path(path))
        facts = checkpoint["hyper_parameters"]
        known = {name: facts[name] for name in ("data", "network", "seen")}
        weights = checkpoint["state_dict"].items()
        known["state"] = {name.removeprefix(PREFIX): w for name, w in weights if name.startswith(PREFIX)}
    except KeyError as error:
        raise UserError(f"This file is no checkpoint of histo_pl. Received: resume={path}") from error
    if not checkpoint.get("optimizer_states"):
        raise UserError(
            f"This checkpoint has weights alone and cannot be resumed. Expected last.ckpt. Received: resume={path}"
        )
    return known
