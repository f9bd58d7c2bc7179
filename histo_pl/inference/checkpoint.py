"""From a checkpoint file to a network that is ready to answer, and back."""

import logging
import pickle
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from histo_pl.errors import UserError
from histo_pl.images import RESIZES
from histo_pl.models import build_network
from histo_pl.models.network import FORMAT_VERSION
from histo_pl.storage import load_tensors, save_tensors

log = logging.getLogger(__name__)

LATEST = "latest"
RUN_FOLDERS = ("outputs", "multirun")
KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
LIGHTNING_VERSION = "2.6.0"  # whose checkpoints those are like that are written here: Lightning asks for it
UNFINISHED = "not finished: not calibrated, not tested"
PREFIX = "network."  # of the weights' names: Lightning calls them after TileClassifier's attribute

_NO_CHECKPOINT = (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError)


@dataclass(frozen=True)
class TrainedModel:
    """A network and what it takes to read its answers.

    Attributes:
        network: uint8 (B, 3, image_size, image_size) to logits (B,), in evaluation mode.
        spec: What `build_network` took to build it.
        image_size: Side of its input in pixels.
        resize: The algorithm that brings pictures to that size, one of `images.RESIZES`.
        threshold: A probability above it means malignant, in [0, 1].
        temperature: Divides the logits before the sigmoid.
        data: What trained it (`HistologyDataModule.facts`).
        rule: How the threshold was chosen, for people.
        refer: Two probabilities between which an answer is too uncertain; None: all are answered.
        seen: The part, train or val, of every tile that had a part in its training, by the hash of its file.
        finished: Whether its training ended, so that it is calibrated and tested.
    """

    network: nn.Module
    spec: dict[str, Any]
    image_size: int
    resize: str
    threshold: float
    temperature: float
    data: dict[str, Any]
    rule: str = "fixed"
    refer: tuple[float, float] | None = None
    seen: dict[str, str] = field(default_factory=dict)
    finished: bool = True

    @property
    def trained_on(self) -> str:
        """The training data's name, as every prediction says it, what it started from, and whether it ended."""
        name, before = self.data["name"], self.data.get("pretrained_on")
        started = name if before is None else f"{name}, starting from {before}"
        return started if self.finished else f"{started} ({UNFINISHED})"


def load_model(path: str | Path) -> TrainedModel:
    """Load a `best.ckpt` or `last.ckpt` of histo_pl, without running any code that it may hold.

    Args:
        path: The file.

    Returns:
        The model, on the CPU.

    Raises:
        UserError: There is no such file, it is no checkpoint, or not one of histo_pl.
    """
    contents = read_contents(Path(path))
    facts, weights = contents.get("hyper_parameters"), contents.get("state_dict")
    if not isinstance(facts, dict) or not {"network", "data", "resize", "seen"} <= facts.keys() or not weights:
        raise UserError(f"This checkpoint was not made by histo_pl. Expected a best.ckpt. Received: {path}")
    _check_version(facts, path)
    if facts["resize"] not in RESIZES:
        raise UserError(
            f"This checkpoint resizes images in a way that this version does not know. "
            f"Expected one of {', '.join(RESIZES)}. Received: {facts['resize']} in {path}"
        )
    state = {name.removeprefix(PREFIX): w for name, w in weights.items() if name.startswith(PREFIX)}
    return TrainedModel(
        network=network_of(facts["network"], state),
        spec=facts["network"],
        image_size=facts["image_size"],
        resize=facts["resize"],
        threshold=facts["threshold"],
        temperature=facts["temperature"],
        data=facts["data"],
        rule=facts["rule"],
        refer=facts["refer"] and tuple(facts["refer"]),
        seen=facts["seen"] or {},
        finished=_is_finished(contents),
    )


def _check_version(facts: Mapping[str, Any], path: str | Path) -> None:
    version = facts.get("format_version", 1)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"This checkpoint was made by a newer histo_pl. Expected a format of at most {FORMAT_VERSION}: update "
            f"histo_pl. Received: format {version} in {path}"
        )


def _is_finished(contents: Mapping[str, Any]) -> bool:
    """Tell whether the training ended; in version 1, which does not say it, only a last.ckpt has an optimiser."""
    return contents["hyper_parameters"].get("finished", not contents.get("optimizer_states"))


def network_of(spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Build a network around weights, without drawing others first (126 million take a second).

    Args:
        spec: What `build_network` takes.
        state: Its state dictionary; the tensors are taken as they are.

    Returns:
        The network, in evaluation mode, without gradients.
    """
    with torch.device("cpu" if spec["name"] == "timm" else "meta"):  # some of timm's buffers are in no state dictionary
        network = build_network(spec)
    network.load_state_dict(dict(state), assign=True)
    return network.eval().requires_grad_(False)


def save_model(model: TrainedModel, path: Path) -> None:
    """Write a checkpoint like a run's best.ckpt, without a run.

    Args:
        model: What `load_model` is to return.
        path: The file to write.
    """
    facts = {
        "network": model.spec,
        "image_size": model.image_size,
        "classes": [model.data["negative_class"], model.data["positive_class"]],
        "data": model.data,
        "resize": model.resize,
        "threshold": model.threshold,
        "temperature": model.temperature,
        "rule": model.rule,
        "refer": model.refer and list(model.refer),
        "seen": model.seen,
        "finished": model.finished,
        "format_version": FORMAT_VERSION,
    }
    weights = {PREFIX + name: weight for name, weight in model.network.state_dict().items()}
    contents = {"hyper_parameters": facts, "state_dict": weights, "pytorch-lightning_version": LIGHTNING_VERSION}
    save_tensors(contents, path)


def update_facts(path: Path, **facts: Any) -> None:  # noqa: ANN401
    """Write what was found out after training, such as the temperature, into a checkpoint.

    Args:
        path: The checkpoint; another name of the same file keeps the old content.
        **facts: Plain values, by the names of `TileClassifier`'s arguments.
    """
    contents = load_tensors(path)
    contents["hyper_parameters"].update(facts)
    save_tensors(contents, path)


def read_contents(path: Path) -> dict[str, Any]:
    """Read all that a checkpoint of PyTorch holds, without running any code that it may hold.

    Args:
        path: The file.

    Returns:
        Its contents, the tensors mapped from the file; empty if they are no dictionary.

    Raises:
        UserError: There is no such file, it is damaged, or no checkpoint.
    """
    if not path.is_file():
        raise UserError(
            f"There is no such checkpoint. Expected a file such as outputs/.../best.ckpt, or latest for the "
            f"newest run here. Received: {path}"
        )
    if path.suffix.lower() in KERAS_SUFFIXES:
        raise UserError(
            f"This is a Keras model. Make it a checkpoint first: python -m histo_pl convert "
            f"{shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.ckpt')))}. Received: {path}"
        )
    try:
        contents = load_tensors(path)
    except _NO_CHECKPOINT as error:
        if _is_cut(path):
            raise UserError(
                f"This checkpoint is damaged: its end is missing, as after a full disk or an interrupted copy. "
                f"Expected a whole best.ckpt. Fetch it again. Received: {path} with {path.stat().st_size} bytes"
            ) from error
        raise UserError(f"This file is no checkpoint. Expected a best.ckpt. Received: {path}") from error
    return contents if isinstance(contents, dict) else {}


def find_checkpoint(name: str | None) -> Path:
    """Turn what the user typed into a checkpoint's path.

    Args:
        name: A file, a run's folder, or `latest` for the newest run below outputs and multirun that has finished; a
            newer one that has not is named in a warning.

    Returns:
        The path; only for `latest` is it sure to exist.

    Raises:
        UserError: Nothing was typed, or there is no run yet.
    """
    if name is None:
        raise UserError(
            "The checkpoint is missing. Say it with ckpt=outputs/.../best.ckpt, or ckpt=latest for the newest "
            "run here. Received: nothing"
        )
    if name != LATEST:
        return Path(name, "best.ckpt") if Path(name).is_dir() else Path(name)
    runs = [file for folder in RUN_FOLDERS for file in Path(folder).glob("**/best.ckpt")]
    if not runs:
        raise UserError(
            f"There is no run yet. Expected a best.ckpt below {' or '.join(RUN_FOLDERS)}: train one with "
            f"python train.py, or name one with ckpt=PATH. Received: ckpt=latest"
        )
    unfinished = []
    for run in sorted(runs, key=_started, reverse=True):
        if _has_finished(run):
            for other in unfinished:
                log.warning("Passed over, as its training has not finished: %s", other)
            return run
        unfinished.append(run)
    raise UserError(
        f"No run here has finished. Expected a run that is calibrated and tested: go on with one by train.py "
        f"resume=FOLDER/last.ckpt, or name one by ckpt=PATH. Received: ckpt=latest with {unfinished[0]}"
    )


def _has_finished(checkpoint: Path) -> bool:
    try:
        contents = read_contents(checkpoint)
        return "hyper_parameters" in contents and _is_finished(contents)
    except UserError:
        return False


def _is_cut(path: Path) -> bool:
    """Whether a file begins as a checkpoint does, or not at all, and has no end: the list of a zip file's contents."""
    with path.open("rb") as stream:
        beginning = stream.read(4)
    return beginning in (b"", b"PK\x03\x04") and not zipfile.is_zipfile(path)


def _started(checkpoint: Path) -> float:
    """When a run began: a resumed run's best.ckpt may be as old as the run that it goes on with."""
    config = checkpoint.with_name("config.yaml")
    return (config if config.exists() else checkpoint).stat().st_mtime
