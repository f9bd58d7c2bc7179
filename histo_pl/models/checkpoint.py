"""A trained model on disk: checkpoints found, loaded and written."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from histo_pl.errors import UserError
from histo_pl.images import RESIZES
from histo_pl.models.contents import PREFIX, is_finished, network_state, read_contents, read_metadata
from histo_pl.models.network import FORMAT_VERSION, build_network
from histo_pl.models.novelty import Novelty, novelty_from
from histo_pl.storage import hash_file, load_tensors, save_tensors

log = logging.getLogger(__name__)

LATEST = "latest"
RUN_FOLDERS = ("outputs", "multirun")
EXPORTED_FILES = ("model.onnx", "model.pt2")  # in the folder of an export
LIGHTNING_VERSION = "2.6.0"  # of the checkpoints whose structure is written here: Lightning asks for it
UNCALIBRATED_TTA = (
    "tta=true is uncalibrated: temperature, threshold and band were chosen on single views. A training with "
    "calibration.tta=true chooses them for the mean of eight."
)
CANNOT_TELL = (
    "This checkpoint cannot tell tiles unlike those of its training: it was made by an earlier version, converted from "
    "Keras, trained with novelty=false or where it could not be fitted, or its training is not finished."
)
SYNTHETIC = "Its training tiles were drawn by a program: it knows nothing of real tissue."
UNFINISHED = "not finished: not calibrated, not tested"
AS_THEY_ARE = (  # metadata that are attributes of `TrainedModel` too
    *("image_size", "resize", "threshold", "temperature", "data", "rule", "training_hashes"),
    *("decision_tta", "training_cases", "case_rule"),
)


@dataclass(frozen=True)
class TrainedModel:
    """A network with the metadata that its answers depend on.

    Attributes:
        network: uint8 (B, 3, image_size, image_size) to logits (B,), in evaluation mode.
        model_config: The arguments of `build_network`.
        image_size: Side of its input in pixels.
        resize: The algorithm that brings pictures to that size, one of `images.RESIZES`.
        threshold: A probability above it means malignant, in [0, 1].
        temperature: Divides the logits before the sigmoid.
        data: Summary of the training data (`HistologyDataModule.summary`): at least name, synthetic, negative_class
            and positive_class.
        rule: Name of the rule that chose the threshold, for people.
        refer: Two probabilities between which an answer is too uncertain; None: all are answered.
        decision_tta: temperature, threshold, rule and refer of the mean of eight views; empty: not chosen.
        training_hashes: The split, train or val, of every tile of its training, by the hash of its file.
        training_cases: The cases of its trainings, each with the arguments of `data.hashing.CaseHashes`.
        case_rule: The arguments of `evaluation.cases.CaseRule`; empty: the defaults.
        novelty: The model of its training tiles; None: it cannot tell a tile unlike them.
        finished: Its training ended, so that it is calibrated and tested.
    """

    network: nn.Module
    model_config: dict[str, Any]
    image_size: int
    resize: str
    threshold: float
    temperature: float
    data: dict[str, Any]
    rule: str = "fixed"
    refer: tuple[float, float] | None = None
    decision_tta: dict[str, Any] = field(default_factory=dict)
    training_hashes: dict[str, str] = field(default_factory=dict)
    training_cases: list[dict[str, Any]] = field(default_factory=list)
    case_rule: dict[str, Any] = field(default_factory=dict)
    novelty: Novelty | None = None
    finished: bool = True

    @property
    def trained_on(self) -> str:
        """Name of the training data as every prediction states it, with what came before and after it."""
        name, before = self.data["name"], self.data.get("pretrained_on")
        started = name if before is None else f"{name}, starting from {before}"
        started += "".join(f", recalibrated on {one['name']}" for one in self.data.get("recalibrated_on", ()))
        return started if self.finished else f"{started} ({UNFINISHED})"

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel of the training tiles' own files; None: unknown."""
        return self.data.get("mpp")

    @property
    def tile_size(self) -> tuple[int, int] | None:
        """Median width and height of the training tiles' own files in pixels; None of an older checkpoint."""
        size = self.data.get("tile_size")
        return size and (size[0], size[1])

    @property
    def tells_novelty(self) -> bool:
        """True if the model, or its folds, can tell a tile unlike those of the training."""
        return self.novelty is not None or bool(getattr(self.network, "tells_novelty", False))

    def of_views(self) -> "TrainedModel":
        """Return the model with what was chosen for the mean of eight views; itself where nothing was."""
        chosen = self.decision_tta
        return replace(self, **{**chosen, "refer": chosen["refer"] and tuple(chosen["refer"])}) if chosen else self


def load_checkpoint(path: str | Path) -> TrainedModel:
    """Load a `best.ckpt` or `last.ckpt` of histo_pl, without running any code that it may hold.

    Args:
        path: The file, a run's folder, or `latest`, see `find_checkpoint`.

    Returns:
        The model, on the CPU.

    Raises:
        UserError: There is no such file, it is no checkpoint, or not one of histo_pl.
    """
    path = find_checkpoint(str(path))
    contents = read_contents(path)
    metadata = read_metadata(contents, path)
    if metadata["resize"] not in RESIZES:
        raise UserError(
            f"This checkpoint resizes images in a way that this version does not know. "
            f"Expected one of {', '.join(RESIZES)}. Received: {metadata['resize']} in {path}"
        )
    return TrainedModel(
        network=_network_of(metadata["network"], network_state(contents), path),
        model_config=metadata["network"],
        refer=metadata["refer"] and tuple(metadata["refer"]),
        novelty=novelty_from(metadata["novelty"]),
        **{name: metadata[name] for name in AS_THEY_ARE},
        finished=is_finished(contents),
    )


def network_of(model_config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Build a network around weights, without drawing others first (126 million take a second).

    Args:
        model_config: The arguments of `build_network`.
        state: Its state dictionary; the tensors are taken as they are.

    Returns:
        The network, in evaluation mode, without gradients.

    Raises:
        RuntimeError: A tensor is missing, superfluous or of another shape.
    """
    is_timm = model_config["name"] == "timm"  # some of timm's buffers are in no state dictionary
    with torch.device("cpu" if is_timm else "meta"):
        network = build_network(model_config)
    network.load_state_dict(dict(state), assign=True)
    return network.eval().requires_grad_(False)


def _network_of(model_config: Mapping[str, Any], state: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    try:
        return network_of(model_config, state)
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"This checkpoint's weights do not fit its network ({' '.join(str(error).split())[:200]}). Expected a "
            f"best.ckpt as train.py writes it. Received: {path}"
        ) from error


def save_model(model: TrainedModel, path: Path) -> None:
    """Write a checkpoint like a run's best.ckpt, without a run.

    Args:
        model: The model that `load_checkpoint` is to return.
        path: The file to write.
    """
    metadata = {
        "network": model.model_config,
        **{name: getattr(model, name) for name in AS_THEY_ARE},
        "classes": [model.data["negative_class"], model.data["positive_class"]],
        "refer": model.refer and list(model.refer),
        "novelty": model.novelty and model.novelty.metadata(),
        "finished": model.finished,
        "format_version": FORMAT_VERSION,
    }
    weights = {PREFIX + name: weight for name, weight in model.network.state_dict().items()}
    save_checkpoint(metadata, weights, path)


def save_checkpoint(metadata: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a checkpoint of weights and metadata in Lightning's structure.

    Args:
        metadata: Plain values, by the names of `TileClassifier`'s arguments.
        weights: The state dictionary of a `TileClassifier`, tensors of any shape.
        path: The file to write.

    Raises:
        WriteError: The file cannot be written.
    """
    contents = {
        "hyper_parameters": dict(metadata),
        "state_dict": dict(weights),
        "pytorch-lightning_version": LIGHTNING_VERSION,
    }
    save_tensors(contents, path)


def update_metadata(path: Path, **changes: Any) -> None:  # noqa: ANN401
    """Write metadata that is known only after training, such as the temperature, into a checkpoint.

    Args:
        path: The checkpoint; another name of the same file keeps the old content.
        **changes: Plain values, by the names of `TileClassifier`'s arguments.
    """
    contents = load_tensors(path)
    contents["hyper_parameters"].update(changes)
    save_tensors(contents, path)


def find_checkpoint(name: str | None) -> Path:
    """Resolve a checkpoint's name to its path.

    Args:
        name: A file, a run's or an export's folder, the folder of a cross-validation, or `latest` for the newest run
            below outputs and multirun that has finished; a newer one that has not is named in a warning.

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
        folder = Path(name)
        exported = [folder / file for file in EXPORTED_FILES if (folder / file).is_file()]
        if exported:
            return exported[0]
        return folder / "best.ckpt" if folder.is_dir() and not is_cross_validation(folder) else folder
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
            _warn_of_fold(run)
            return run
        unfinished.append(run)
    raise UserError(
        f"No run here has finished. Expected a run that is calibrated and tested: go on with one by train.py "
        f"resume=FOLDER/last.ckpt, or name one by ckpt=PATH. Received: ckpt=latest with {unfinished[0]}"
    )


def is_cross_validation(folder: Path) -> bool:
    """Return whether a folder holds runs' folders, and is no run's itself."""
    return folder.is_dir() and not (folder / "best.ckpt").exists() and any(folder.glob("*/best.ckpt"))


def files_of_checkpoint(path: Path) -> dict[str, Path]:
    """Return the file of a model, or those of all folds of a cross-validation's folder, by short names."""
    if not is_cross_validation(path):
        return {path.name: path}
    return {file.relative_to(path).as_posix(): file for file in sorted(path.glob("*/best.ckpt"))}


def hashes_of_checkpoint(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each of a model's files, see `files_of_checkpoint`."""
    return {name: hash_file(file) for name, file in files_of_checkpoint(path).items()}


def _warn_of_fold(checkpoint: Path) -> None:
    """Say that a checkpoint is one of several of a cross-validation, none of which is the final model."""
    fold = read_contents(checkpoint)["hyper_parameters"]["data"].get("fold")
    if fold is not None:
        log.warning(
            "%s is the model of fold %d of %d of a cross-validation alone: it was trained on a part of the tiles. All "
            "folds answer as one with ckpt=%s.",
            checkpoint,
            fold[0],
            fold[1],
            checkpoint.parents[1],
        )


def _has_finished(checkpoint: Path) -> bool:
    try:
        contents = read_contents(checkpoint)
        return "hyper_parameters" in contents and is_finished(contents)
    except UserError:
        return False


def _started(checkpoint: Path) -> float:
    """Return the time at which a run began: a resumed run's best.ckpt may be as old as the run it goes on with."""
    config = checkpoint.with_name("config.yaml")
    return (config if config.exists() else checkpoint).stat().st_mtime
