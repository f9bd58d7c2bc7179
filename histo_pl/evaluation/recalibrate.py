"""Recalibration of a checkpoint on a few labelled tiles of another laboratory."""

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from histo_pl.data import HistologyDataModule
from histo_pl.data.hashing import CaseHashes
from histo_pl.data.tile import Tile
from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Decision, sigmoid
from histo_pl.evaluation.metrics import NAMES
from histo_pl.evaluation.platt import Shift, cross_validate, fit_shift, move_band
from histo_pl.evaluation.predictions import Predictions, format_estimate
from histo_pl.evaluation.results import predictions_of
from histo_pl.evaluation.seen import seen_paths
from histo_pl.hardware import full_precision
from histo_pl.inference import Predictor
from histo_pl.models.checkpoint import SYNTHETIC, TrainedModel, is_cross_validation, load_checkpoint, save_model
from histo_pl.models.novelty import Novelty, features_of, logits_of

LEAST_TILES = 3  # of each class
CENTER_WEIGHT = 10  # tiles at which their mean counts as much as the old centre of novelty
EXPECTED = ("balanced_accuracy", "sensitivity", "specificity", "log_loss", "brier")
HALVES = 20  # random halves of the cases, to see what more of them bring
LEAST_GROUPS = 3  # cases of a class, or tiles where cases are unknown, that can be halved after one is left out
WORTH = 0.02  # of the log loss: a smaller gain from twice the tiles is not worth labelling them


@dataclass(frozen=True)
class Labelled:
    """Labelled tiles of the new laboratory, as the model sees them.

    Attributes:
        tiles: N tiles that had no part in the training.
        logits: Divided by the temperature, of shape (N,).
        features: What novelty is judged by, of shape (N, width).
        predictions: By the model as it is.
        left_out: Number of tiles that had a part in the training, themselves or others of their patient.
    """

    tiles: list[Tile]
    logits: NDArray[np.float64]
    features: Tensor
    predictions: Predictions
    left_out: int


def recalibrate(checkpoint: str | Path, out: str | Path, root: str | Path, **data_options: Any) -> str:  # noqa: ANN401
    """Fit a checkpoint's probabilities, threshold and limit of novelty to another laboratory, and write a new one.

    Args:
        checkpoint: A best.ckpt, a run's folder, or `latest`.
        out: The file to write, which must not exist.
        root: Its folder of labelled tiles.
        **data_options: Further arguments of the data module, such as `group_regex`.

    Returns:
        What to expect there, for people.

    Raises:
        UserError: The checkpoint, the data or the file is not as expected, or a class has fewer than three tiles.
    """
    out = Path(out)
    _check_files(Path(checkpoint), out)
    model = load_checkpoint(checkpoint)
    data = HistologyDataModule(root, image_size=model.image_size, resize=model.resize, test_all=True, **data_options)
    data.setup()
    labelled = _look(model, data)
    malignant = labelled.predictions.malignant

    def fit(chosen: NDArray[np.bool_]) -> Shift:
        return fit_shift(labelled.logits[chosen], malignant[chosen], model.threshold, model.rule)

    shift = fit(np.ones(len(malignant), bool))
    tiles, warning = _independent(labelled.tiles, malignant)
    moved, thresholds = cross_validate(tiles, malignant, fit, labelled.logits)
    after = replace(labelled.predictions, probability=sigmoid(moved), threshold=thresholds)
    novelty = model.novelty and recenter(model.novelty, labelled.features)
    summary = {"before": labelled.predictions.summary(), "after": after.summary()}
    facts = {"name": data.name, "slope": shift.slope, "offset": shift.offset, **summary}
    new = _recalibrated(model, data, labelled, shift, novelty, facts)
    save_model(new, out)
    return "\n".join(
        [
            *_describe(model, new, facts, labelled.left_out),
            *([warning] if warning else []),
            _describe_gain(tiles, labelled.logits, malignant, fit, _log_loss(moved, malignant)),
            *_describe_novelty(model.novelty, novelty, labelled.features),
            *([SYNTHETIC] if model.data["synthetic"] else []),
            f"Written: {os.path.relpath(out)}. To use it: python predict.py ckpt={shlex.quote(os.path.relpath(out))} "
            f"img=FOLDER",
        ]
    )


def _check_files(checkpoint: Path, out: Path) -> None:
    if is_cross_validation(checkpoint):
        raise UserError(
            f"The models of a cross-validation are recalibrated one by one. Expected a best.ckpt. "
            f"Received: {checkpoint}"
        )
    if out.suffix != ".ckpt":
        raise UserError(f"The file to write is a checkpoint. Expected a name that ends in .ckpt. Received: {out}")
    if os.path.lexists(out):
        raise UserError(f"The file to write exists already. Expected a new name. Received: {out}")
    if not out.parent.is_dir():
        raise UserError(f"The folder of the file to write does not exist. Expected one that does. Received: {out}")


@torch.inference_mode()
def _look(model: TrainedModel, data: HistologyDataModule) -> Labelled:
    """Compute logits and features of all labelled tiles that had no part in the training."""
    seen = seen_paths(model, data)
    tiles = {tile.path: tile for tile in data.tiles if tile.path not in seen}
    _check_counts(list(tiles.values()), len(seen), data)
    predictor = Predictor(model)
    logits: dict[str, float] = {}
    features: dict[str, Tensor] = {}
    for batch in tqdm(data.plain_dataloader(list(tiles.values())), desc="Looking", unit="batch"):
        images = batch["image"].to(predictor.device)
        with full_precision():
            of_batch = features_of(predictor.network, images)
            logits |= zip(batch["path"], logits_of(predictor.network, images, of_batch).tolist(), strict=True)
        features |= zip(batch["path"], of_batch.cpu(), strict=True)
    model.network.cpu()
    if model.novelty is not None:
        model.novelty.cpu()
    decision = Decision(model.temperature, model.threshold, model.rule, model.refer)
    predictions = predictions_of(data, "test", logits, decision)
    paths = predictions.path.tolist()
    calibrated = np.array([logits[path] for path in paths]) / model.temperature
    if not np.isfinite(calibrated).all():
        raise UserError("The model's answers are no numbers: its weights have diverged. Expected another checkpoint.")
    rows = torch.stack([features[path] for path in paths])
    return Labelled([tiles[path] for path in paths], calibrated, rows, predictions, len(seen))


def _check_counts(tiles: list[Tile], seen: int, data: HistologyDataModule) -> None:
    malignant = sum(tile.class_name == data.positive_class for tile in tiles)
    benign = len(tiles) - malignant
    if min(malignant, benign) < LEAST_TILES:
        but = f" that had no part in the training, nor their patients ({seen} had)" if seen else ""
        raise UserError(
            f"Too few labelled tiles to fit a model to. Expected at least {LEAST_TILES} of each class{but}. "
            f"Received: {malignant} malignant and {benign} benign in {data.root}"
        )


def _independent(tiles: list[Tile], malignant: NDArray[np.bool_]) -> tuple[list[Tile], str | None]:
    """Return the tiles with the groups of the cross-validation, and a warning where these are the tiles themselves."""
    groups = np.array([tile.group for tile in tiles])
    if min(len(np.unique(groups[chosen])) for chosen in (malignant, ~malignant)) > 1:
        known = all(tile.case for tile in tiles)
        return tiles, None if known else "The cases are unknown (data.group_regex): expect less than these figures say."
    return (
        [replace(tile, case="", joined_group="") for tile in tiles],
        "A class has a single case: the figures after are of tiles whose case had a part, and too good.",
    )


def recenter(novelty: Novelty, features: Tensor) -> Novelty:
    """Move the centre of novelty towards tiles of another laboratory, and let the limit hold for these too.

    The distance of each tile is taken to a centre that was moved without it. The limit never sinks.

    Args:
        novelty: The model of the training tiles.
        features: Of the new tiles, of shape (N, width), N at least 2.

    Returns:
        The new model; `validated` counts the new tiles if the limit rises.
    """
    features, count = features.float(), len(features)
    others = (features.sum(0) - features) / (count - 1)
    weight = (count - 1) / (count - 1 + CENTER_WEIGHT)
    centers = novelty.center + weight * (others - novelty.center)
    distances = novelty.distance(features - centers + novelty.center)
    own = novelty.with_limit(distances, novelty.false_alarm)
    limit, chosen_on = max((own.limit, count), (novelty.limit, novelty.validated))
    full = count / (count + CENTER_WEIGHT)
    center = novelty.center + full * (features.mean(0) - novelty.center)
    return Novelty(center, novelty.whitening, limit, novelty.false_alarm, chosen_on)


def _recalibrated(
    model: TrainedModel,
    data: HistologyDataModule,
    labelled: Labelled,
    shift: Shift,
    novelty: Novelty | None,
    facts: Mapping[str, Any],
) -> TrainedModel:
    """Put the slope into the temperature and the offset into the last layer's bias, so that nothing else must know."""
    temperature = model.temperature / shift.slope
    add_to_logits(model.network, shift.offset * temperature)
    known = model.training_cases
    if data.has_cases:
        cases = CaseHashes.of({tile.case: "val" for tile in labelled.tiles}, data.summary()["split"])
        known = [*known, asdict(cases)]
    hashes = {data.hashes[tile.path]: "val" for tile in labelled.tiles}
    return replace(
        model,
        temperature=temperature,
        threshold=shift.threshold,
        rule=f"{model.rule}; moved to {data.name}",
        refer=move_band(model.refer, model.threshold, shift.threshold),
        decision_tta={},
        novelty=novelty,
        training_hashes=model.training_hashes | hashes,
        training_cases=known,
        data=model.data | {"recalibrated_on": [*model.data.get("recalibrated_on", []), dict(facts)]},
    )


def add_to_logits(network: nn.Module, amount: float) -> None:
    """Add a number to all logits of a network, by the bias of its last layer."""
    *_, last = (module for module in network.modules() if isinstance(module, nn.Linear) and module.out_features == 1)
    with torch.no_grad():
        last.bias.add_(amount)


def _describe(model: TrainedModel, new: TrainedModel, facts: Mapping[str, Any], left_out: int) -> list[str]:
    before, after = facts["before"], facts["after"]
    cases = "" if after["cases"] is None else f", {after['cases']} cases"
    without = f"; {left_out} left out, as they or their patients trained it" if left_out else ""
    lines = [
        f"{model.trained_on}, on {facts['name']}: "
        f"{after['tiles']} tiles, {after['malignant']} malignant{cases}{without}",
        f"Slope {facts['slope']:.3f} and offset {facts['offset']:+.3f} of the logit; malignant above "
        f"{new.threshold:.4g}, before {model.threshold:.4g} ({model.rule}).",
    ]
    if model.refer and new.refer:
        (low, high), (old_low, old_high) = new.refer, model.refer
        lines.append(f"Uncertain from {low:.4g} to {high:.4g}, before {old_low:.4g} to {old_high:.4g}.")
    lines += ["", f"  {'':18} {'before':24} after, cross-validated"]
    lines += [
        f"  {NAMES[name]:18} {format_estimate(before, name) or 'undefined':24} "
        f"{format_estimate(after, name) or 'undefined'}"
        for name in EXPECTED
    ]
    share, area = after["malignant"] / after["tiles"], format_estimate(before, "auroc") or "undefined"
    gain = (before["log_loss"] or 0) - (after["log_loss"] or 0)
    return [
        *lines,
        f"In brackets: 95% intervals over the {after['units']} {after['intervals_over']}; four times as many "
        f"{after['intervals_over']} would halve them. AUROC {area}, before and after: a shift changes no ranking.",
        *([] if gain > 0 else ["Nothing is gained: the checkpoint as it is does no worse on these tiles."]),
        f"The probabilities hold where {share:.0%} of the tiles are malignant, as here.",
    ]


def _describe_gain(
    tiles: list[Tile],
    logits: NDArray[np.float64],
    malignant: NDArray[np.bool_],
    fit: Callable[[NDArray[np.bool_]], Shift],
    most: float,
) -> str:
    """Compare a cross-validation's log loss, `most`, with that of fits which see half of the cases of each class."""
    groups = np.array([tile.group for tile in tiles])
    fewest = min(len(np.unique(groups[chosen])) for chosen in (malignant, ~malignant))
    if fewest < LEAST_GROUPS:
        return f"The fit: a class with {fewest} cases is too few to measure what more labels would bring."
    generator = np.random.default_rng(0)

    def fit_half(chosen: NDArray[np.bool_]) -> Shift:
        kept = [
            name
            for of_class in (malignant, ~malignant)
            for name in _half(np.unique(groups[chosen & of_class]), generator)
        ]
        return fit(chosen & np.isin(groups, kept))

    repeated = (cross_validate(tiles, malignant, fit_half, logits)[0] for _ in range(HALVES))
    half = float(np.mean([_log_loss(moved, malignant) for moved in repeated]))
    told = "more labels would still improve it" if (half - most) / half > WORTH else "more would hardly change it"
    return f"The fit: a log loss of {half:.3f} from half as many cases, {most:.3f} from all; {told}."


def _log_loss(logits: NDArray[np.float64], malignant: NDArray[np.bool_]) -> float:
    return float(np.logaddexp(0, np.where(malignant, -logits, logits)).mean())


def _half(names: NDArray[np.str_], generator: np.random.Generator) -> NDArray[np.str_]:
    return generator.permutation(names)[: (len(names) + 1) // 2]


def _describe_novelty(old: Novelty | None, new: Novelty | None, features: Tensor) -> list[str]:
    if old is None or new is None:
        return ["The checkpoint cannot tell tiles unlike those of its training, and the new one cannot either."]
    before, after = (float((one.cpu()(features) > 1).float().mean()) for one in (old, new))
    least = "" if new.is_guaranteed else f"; a share of {new.false_alarm:.1%} is not guaranteed by so few tiles"
    raised = new.limit / old.limit - 1
    cost = f" Its limit is {raised:.0%} higher, so that it refuses odd pictures less often." if raised > 0 else ""
    return [f"Unlike training: {before:.1%} of these tiles before, {after:.1%} now{least}.{cost}"]
