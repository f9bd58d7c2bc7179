"""From a checkpoint file to a network that is ready to answer."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from histo_pl.errors import UserError
from histo_pl.images import RESIZE
from histo_pl.models import build_network

LATEST = "latest"
RUN_FOLDERS = ("outputs", "multirun")

_NO_CHECKPOINT = (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError)


@dataclass(frozen=True)
class TrainedModel:
    """A network and what it takes to read its answers.

    Attributes:
        network: uint8 (B, 3, image_size, image_size) to logits (B,), in evaluation mode.
        image_size: Side of its input in pixels.
        threshold: A probability above it means malignant, in [0, 1].
        temperature: Divides the logits before the sigmoid.
        data: What trained it (`HistologyDataModule.facts`).
    """

    network: nn.Module
    image_size: int
    threshold: float
    temperature: float
    data: dict[str, Any]

    @property
    def trained_on(self) -> str:
        """The training data's name, as every prediction says it."""
        return self.data["name"]


def load_model(path: str | Path) -> TrainedModel:
    """Load a `best.ckpt` or `last.ckpt` of histo_pl, without running any code that it may hold.

    Args:
        path: The file.

    Returns:
        The model, on the CPU.

    Raises:
        UserError: There is no such file, it is no checkpoint, or not one of histo_pl.
    """
    contents = _read(Path(path))
    facts, weights = contents.get("hyper_parameters"), contents.get("state_dict")
    if not isinstance(facts, dict) or not {"network", "data", "resize"} <= facts.keys() or not weights:
        raise UserError(f"This checkpoint was not made by histo_pl. Expected a best.ckpt. Received: {path}")
    if facts["resize"] != RESIZE:
        raise UserError(
            f"This checkpoint resizes images in a way that this version does not know. "
            f"Expected {RESIZE}. Received: {facts['resize']} in {path}"
        )
    with torch.device("meta"):  # the weights are in the file: drawing 126 million others first takes a second
        network = build_network(facts["network"])
    prefix = "network."
    state = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    network.load_state_dict(state, assign=True)
    return TrainedModel(
        network=network.eval().requires_grad_(False),
        image_size=facts["image_size"],
        threshold=facts["threshold"],
        temperature=facts["temperature"],
        data=facts["data"],
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"There is no such checkpoint. Expected a file such as outputs/.../best.ckpt, or latest for the "
            f"newest run here. Received: {path}"
        )
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _NO_CHECKPOINT as error:
        raise UserError(f"This file is no checkpoint. Expected a best.ckpt. Received: {path}") from error
    return contents if isinstance(contents, dict) else {}


def find_checkpoint(name: str | None) -> Path:
    """Turn what the user typed into a checkpoint's path.

    Args:
        name: A file, a run's folder, or `latest` for the newest `best.ckpt` below outputs and multirun.

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
    return max(runs, key=_started)


def _started(checkpoint: Path) -> float:
    """When a run began: a resumed run's best.ckpt may be as old as the run that it goes on with."""
    config = checkpoint.with_name("config.yaml")
    return (config if config.exists() else checkpoint).stat().st_mtime
