"""Answers of a trained network about the tiles of a data module, which all choices and results are made of."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from histo_pl.data import HistologyDataModule
from histo_pl.data.tile import Split, Tile
from histo_pl.models.novelty import SAMPLE, Novelty, answer, features_of
from histo_pl.models.views import mean_over_views
from histo_pl.training.features import Features
from histo_pl.training.module import TileClassifier

log = logging.getLogger(__name__)

ByPath = Mapping[str, float]  # a number of each tile, by its path


@dataclass(frozen=True)
class Answers:
    """Answers about the tiles of the splits.

    Attributes:
        logits: Of validation and, where there is one, test.
        novelty: The model of the training tiles, its limit yet to be chosen; None: not wanted, or not possible.
        distances: By that model: of a sample of the training, of validation and test; empty without it.
    """

    logits: Mapping[Split, ByPath]
    novelty: Novelty | None
    distances: Mapping[Split, ByPath]


def answers_of_network(
    trainer: L.Trainer, classifier: TileClassifier, data: HistologyDataModule, checkpoint: str, *, wants_novelty: bool
) -> Answers:
    """Ask the best weights, on all devices together.

    Args:
        trainer: After the training.
        classifier: The trained model, which then has the best weights.
        data: Set up.
        checkpoint: The file of the best weights.
        wants_novelty: Fit a model of the training tiles too.

    Returns:
        The answers.
    """
    novelty, sample, weights = None, {}, checkpoint
    if wants_novelty:
        (sample,) = _ask(trainer, classifier, [data.plain_dataloader(_sample(data))], weights, _features(classifier))
        novelty, weights = _fit(_stack(sample)), None
    loaders = [data.plain_dataloader(data.tiles_of(split)) for split in _asked(data)]
    rows = _ask(trainer, classifier, loaders, weights, _logits_and_distances(classifier, novelty))
    return _collect(novelty, sample, dict(zip(_asked(data), rows, strict=True)))


def answers_of_features(
    features: Features, data: HistologyDataModule, classifier: TileClassifier, *, wants_novelty: bool
) -> Answers:
    """Make the same answers of a frozen encoder's features.

    Args:
        features: Of all tiles.
        data: Set up.
        classifier: With a fitted head.
        wants_novelty: Fit a model of the training tiles too.

    Returns:
        The answers.
    """

    def plain_views(tiles: Sequence[Tile]) -> dict[str, Tensor]:
        return {tile.path: features.by_path[tile.path][0] for tile in tiles}

    sample = plain_views(_sample(data))
    novelty = _fit(_stack(sample)) if wants_novelty else None
    rows: dict[Split, dict[str, Tensor]] = {}
    for split in _asked(data):
        views = plain_views(data.tiles_of(split))
        with torch.inference_mode():
            columns = [classifier.network.backbone.classify(_stack(views))]
        columns += [] if novelty is None else [novelty.distance(_stack(views))]
        rows[split] = dict(zip(views, torch.stack(columns, 1), strict=True))
    return _collect(novelty, sample, rows)


def logits_of_views(trainer: L.Trainer, classifier: TileClassifier, data: HistologyDataModule) -> ByPath:
    """Compute the mean logit of eight views of each validation tile.

    Args:
        trainer: After the training.
        classifier: With the best weights.
        data: Set up.
    """

    def ask(images: Tensor) -> Tensor:
        return mean_over_views(lambda view: classifier(view).float(), images)[:, None]

    (rows,) = _ask(trainer, classifier, [data.plain_dataloader(data.tiles_of("val"))], None, ask)
    return _column(rows, 0)


def _collect(
    novelty: Novelty | None, sample: Mapping[str, Tensor], rows: Mapping[Split, Mapping[str, Tensor]]
) -> Answers:
    """Sort rows of a logit and, with novelty, a distance; the sample has features."""
    logits: dict[Split, ByPath] = {split: _column(of_split, 0) for split, of_split in rows.items()}
    if novelty is None:
        return Answers(logits, None, {})
    of_sample = novelty.cpu().distance(_stack(sample)).tolist()
    distances: dict[Split, ByPath] = {split: _column(of_split, 1) for split, of_split in rows.items()}
    distances["train"] = dict(zip(sample, of_sample, strict=True))
    return Answers(logits, novelty, distances)


def _asked(data: HistologyDataModule) -> tuple[Split, ...]:
    return ("val", "test") if data.has_test else ("val",)


def _sample(data: HistologyDataModule) -> list[Tile]:
    """List training tiles to fit novelty on; the order of a split is by a hash, so its beginning is a random sample."""
    return data.tiles_of("train")[:SAMPLE]


def _features(classifier: TileClassifier) -> Callable[[Tensor], Tensor]:
    return lambda images: features_of(classifier.network, images)


def _logits_and_distances(classifier: TileClassifier, novelty: Novelty | None) -> Callable[[Tensor], Tensor]:
    def ask(images: Tensor) -> Tensor:
        logits, distances = answer(classifier.network, novelty and novelty.to(images.device), images)
        return torch.stack([logits, *([] if distances is None else [distances])], 1)  # the limit is 1 as yet

    return ask


def _fit(features: Tensor) -> Novelty | None:
    try:
        return Novelty.fit(features)
    except (ValueError, RuntimeError) as error:
        log.warning("Novelty cannot be judged by this model: %s.", " ".join(str(error).split())[:200])
        return None


def _stack(rows: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(rows.values()))


def _column(rows: Mapping[str, Tensor], index: int) -> ByPath:
    return dict(zip(rows, _stack(rows)[:, index].tolist(), strict=True))


def _ask(
    trainer: L.Trainer,
    classifier: TileClassifier,
    loaders: Sequence[DataLoader[Any]],
    checkpoint: str | None,
    question: Callable[[Tensor], Tensor],
) -> list[dict[str, Tensor]]:
    """Answer a question, from (B, 3, S, S) to (B, k), about the tiles of loaders: rows of shape (k,) by path."""
    classifier.question = question
    answers: Any = trainer.predict(classifier, list(loaders), ckpt_path=checkpoint, weights_only=True)
    of_loaders = answers if len(loaders) > 1 else [answers]  # Lightning's, of one loader
    return [
        _gather({path: row for paths, rows in batches for path, row in zip(paths, rows, strict=True)})
        for batches in of_loaders
    ]


def _gather(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the rows of this process and of all others, in an order that does not depend on their number."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        shares: list[Any] = [None] * torch.distributed.get_world_size()
        own = (list(rows), _stack(rows) if rows else ())  # one tensor: a row alone is sent with the whole of its batch
        torch.distributed.all_gather_object(shares, own)
        rows = {path: row for paths, of_paths in shares for path, row in zip(paths, of_paths, strict=True)}
    return dict(sorted(rows.items()))
