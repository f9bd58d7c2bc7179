"""One model of all folds of a cross-validation: the mean of their calibrated probabilities."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from histo_pl.errors import UserError
from histo_pl.models.backbones import EncoderWithHead
from histo_pl.models.checkpoint import (
    TrainedModel,
    files_of_checkpoint,
    find_checkpoint,
    is_cross_validation,
    load_checkpoint,
)
from histo_pl.models.contents import refuse_exported
from histo_pl.models.exported import is_exported, load_exported
from histo_pl.models.novelty import Novelty, answer, features_of, logits_of
from histo_pl.probability import to_probability

LEAST = 1e-12  # of a mean probability, whose logit is finite
ALIKE = ("image_size", "resize", "model_config")  # attributes that all folds' models share


class FoldEnsemble(nn.Module):
    """Several networks whose calibrated probabilities are averaged.

    Where they share a frozen encoder, as linear probes do, it runs once.

    Args:
        networks: K networks, uint8 (B, 3, S, S) to logits (B,).
        temperatures: The divisor of each one's logits.
        novelties: The model of each one's training tiles; empty: not known.
    """

    def __init__(
        self, networks: Sequence[nn.Module], temperatures: Sequence[float], novelties: Sequence[Novelty] = ()
    ) -> None:
        super().__init__()
        self.novelties = nn.ModuleList(novelties)
        self.networks = nn.ModuleList(networks)
        self.temperatures = list(temperatures)
        self.shares_encoder = _share_encoder(networks)
        self.tells_novelty = bool(novelties)

    def answers_of_folds(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute each network's logits, divided by its temperature, and the novelty that most of them exceed.

        Args:
            images: uint8 of shape (B, 3, S, S).

        Returns:
            float64 of shape (K, B); and the median novelty, of an even K the lower one, of shape (B,), which is above 1
            if for most folds it is; None where it is not known.
        """
        temperatures = torch.tensor(self.temperatures, dtype=torch.float64, device=images.device)
        answers = self._answers(images)
        logits = torch.stack([logits for logits, _ in answers]).double() / temperatures[:, None]
        novelties = [novelty for _, novelty in answers if novelty is not None]
        if not novelties:
            return logits, None
        ordered = torch.stack(novelties).sort(0).values  # median() has no deterministic kernel on a GPU
        return logits, ordered[(len(novelties) - 1) // 2]

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of the mean probabilities.

        Args:
            images: uint8 of shape (B, 3, S, S).

        Returns:
            float64 of shape (B,).
        """
        return join_folds(self.answers_of_folds(images)[0])

    def _answers(self, images: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        folds: list[Any] = list(zip(self.networks, self.novelties or [None] * len(self.networks), strict=True))
        if not self.shares_encoder:
            return [answer(network, novelty, images) for network, novelty in folds]
        features = features_of(folds[0][0], images)
        return [(logits_of(network, images, features), novelty and novelty(features)) for network, novelty in folds]


def join_folds(logits: Tensor) -> Tensor:
    """Return the logit of the mean probability.

    Args:
        logits: Of shape (K, B), calibrated.

    Returns:
        Of shape (B,).
    """
    mean = to_probability(logits).mean(0).clamp(LEAST, 1 - LEAST)
    return (mean / (1 - mean)).log()  # not torch.logit: ONNX would name it as the output of an exported model


def _share_encoder(networks: Sequence[nn.Module]) -> bool:
    backbones: list[Any] = [network.get_submodule("backbone") for network in networks]
    if not all(isinstance(backbone, EncoderWithHead) for backbone in backbones):
        return False
    first, *others = (backbone.encoder.state_dict() for backbone in backbones)
    return all(torch.equal(weight, other[name]) for other in others for name, weight in first.items())


def load_model(path: str | Path) -> TrainedModel:
    """Load a checkpoint, all folds' checkpoints of a cross-validation as one model, or an exported model.

    Args:
        path: A `best.ckpt` or `last.ckpt`, a run's folder, `latest`, the folder of a cross-validation, such as
            `multirun/DAY/TIME`, or a `.onnx` or `.pt2` of `python -m histo_pl export`.

    Returns:
        The model, on the CPU.

    Raises:
        UserError: There is no such file, it is no checkpoint of histo_pl, or the folds do not belong together.
    """
    folder = Path(path)
    if is_exported(path):
        return load_exported(path)
    return load_folds(folder) if is_cross_validation(folder) else load_checkpoint(path)


def load_original(checkpoint: str | Path) -> tuple[Path, TrainedModel]:
    """Find and load a checkpoint for what an exported model does not allow.

    Args:
        checkpoint: As for `load_model`.

    Returns:
        The file, or the folder of a cross-validation, and its model.

    Raises:
        UserError: As `load_model`; or it is an exported model.
    """
    path = find_checkpoint(str(checkpoint))
    refuse_exported(path)
    return path, load_model(path)


def load_folds(folder: Path) -> TrainedModel:
    """Load all folds' models of a cross-validation as one.

    Its probability is the mean of the folds' calibrated ones; its threshold, and its band if all have one, are the
    means of theirs. Every tile and case that had a part in any of them counts as seen.

    Args:
        folder: The folder of the folds' folders.

    Returns:
        The model; its temperature is 1.

    Raises:
        UserError: A fold is missing, unfinished, or differs from the others in size, class or network.
    """
    models = models_of_folds(folder)
    first = models[0]
    bands = [model.refer for model in models if model.refer is not None]
    novelties = [model.novelty for model in models if model.novelty is not None]
    count = len(models)
    return replace(
        first,
        network=FoldEnsemble(
            [model.network for model in models],
            [model.temperature for model in models],
            novelties if len(novelties) == count else (),
        ).eval(),
        novelty=None,
        model_config={"name": f"the mean of {count} folds", **{f"of_{k}": v for k, v in first.model_config.items()}},
        threshold=sum(model.threshold for model in models) / count,
        temperature=1.0,
        rule=f"the mean of {count} folds",
        refer=(sum(low for low, _ in bands) / count, sum(high for _, high in bands) / count)
        if len(bands) == count
        else None,
        decision_tta={},
        data={**first.data, "name": f"{first.data['name']}, {count} folds", "fold": None, "parts": None, "split": None},
        training_hashes={tile: split for model in models for tile, split in model.training_hashes.items()},
        training_cases=[cases for model in models for cases in model.training_cases],
    )


def models_of_folds(folder: Path) -> list[TrainedModel]:
    """Load the models of all folds of a cross-validation, each by itself.

    Args:
        folder: The folder of the folds' folders.

    Returns:
        At least two.

    Raises:
        UserError: A fold is missing, unfinished, or differs from the others in size, class or network.
    """
    files = list(files_of_checkpoint(folder).values())
    models = [load_checkpoint(file) for file in files]
    _check_folds(folder, files, models)
    return models


def _check_folds(folder: Path, files: Sequence[Path], models: Sequence[TrainedModel]) -> None:
    problems = [f"{file.parent.name} is not finished" for file, m in zip(files, models, strict=True) if not m.finished]
    folds = [model.data.get("fold") for model in models]
    problems += [f"{file.parent.name} is no fold" for file, fold in zip(files, folds, strict=True) if fold is None]
    known = [fold for fold in folds if fold is not None]
    if known and sorted(known) != [[number, known[0][1]] for number in range(known[0][1])]:
        problems.append(f"there are {sorted(number for number, _ in known)} of {known[0][1]} folds")
    for model, file in zip(models, files, strict=True):
        classes = [model.data[name] == models[0].data[name] for name in ("name", "positive_class", "negative_class")]
        if not all(classes) or any(getattr(model, name) != getattr(models[0], name) for name in ALIKE):
            problems.append(f"{file.parent.name} has another network, size, data or class than {files[0].parent.name}")
    if problems:
        raise UserError(
            f"These runs are not the folds of one cross-validation. Expected all of them, finished and alike, as "
            f"experiment=crossval writes them. Received: {folder}, where {'; '.join(problems)}"
        )
