"""Robustness of a checkpoint: its results on altered tiles, and on tiles of each scanner or site."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from histo_pl.data import HistologyDataModule
from histo_pl.errors import UserError
from histo_pl.evaluation import plots
from histo_pl.evaluation.calibration import Decision
from histo_pl.evaluation.metrics import NAMES
from histo_pl.evaluation.predictions import Predictions, format_estimate
from histo_pl.evaluation.results import predictions_of
from histo_pl.evaluation.seen import seen_paths
from histo_pl.evaluation.shifts import Shift, shifts
from histo_pl.inference import Predictor
from histo_pl.models.checkpoint import (
    CANNOT_TELL,
    SYNTHETIC,
    TrainedModel,
    find_checkpoint,
    is_cross_validation,
    load_checkpoint,
)
from histo_pl.models.ensemble import models_of_folds
from histo_pl.probability import to_probability
from histo_pl.storage import atomic_write_text, new_folder, refuse_results

PLAIN = Shift("as they are", 0.0, lambda images: images)
FILES = ("robustness.csv", "robustness.png", "columns.csv")
SHOWN = ("auroc", "balanced_accuracy", "sensitivity", "specificity")
OF_SHIFTS = SHOWN[:2]
MAX_VALUES = 20  # of a column that are printed


@dataclass(frozen=True)
class Row:
    """The result of one alteration, or of the tiles with one value of a column.

    Attributes:
        kind: The alteration, or the column.
        strength: Its strength, or the value.
        summary: As `Predictions.summary` returns it.
        refused: Share of the tiles unlike those of the training, in [0, 1]; None where unknown.
    """

    kind: str
    strength: str
    summary: Mapping[str, Any]
    refused: float | None

    @classmethod
    def of(cls, kind: str, strength: str, predictions: Predictions) -> "Row":
        """Summarize predictions."""
        return cls(kind, strength, predictions.summary(), predictions.share_refused)


def robustness(
    checkpoint: str | Path,
    root: str | Path,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    **data_options: Any,  # noqa: ANN401
) -> str:
    """Ask a checkpoint about altered tiles, and write a table, a picture, and the results by column.

    Of the tiles those are taken that had no part in its training. Of a cross-validation each tile is answered by the
    mean of those folds' models that have not seen it.

    Args:
        checkpoint: A best.ckpt, a run's or a cross-validation's folder, or `latest`.
        root: The folder of labelled tiles, or a zip file of it.
        out: The folder to write; None: robustness/DAY/TIME.
        device: See `Predictor`.
        **data_options: Further arguments of the data module, such as `columns`.

    Returns:
        The tables, for people.

    Raises:
        UserError: The checkpoint or the data is not as expected, or every tile had a part in the training.
    """
    if out is not None:
        refuse_results(Path(out), FILES, "--out")
    predictors = _load(checkpoint, device)
    first = predictors[0].model
    data = HistologyDataModule(root, image_size=first.image_size, resize=first.resize, test_all=True, **data_options)
    data.setup()
    answers = dict(_ask_all(predictors, data))
    rows = [Row.of(shift.kind, f"{shift.strength:g}", found) for shift, found in answers.items()]
    of_columns = list(_by_column(answers[PLAIN], data))
    folder = Path(os.path.relpath(out or new_folder("robustness/%Y-%m-%d/%H-%M-%S")))
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / FILES[0], rows, ("kind", "strength"))
    plots.save({"robustness": plots.plot_robustness(_curves(rows))}, folder)
    if of_columns:
        _write(folder / FILES[2], of_columns, ("column", "value"))
    return "\n".join(_describe(first, data, rows, of_columns, folder))


def _load(checkpoint: str | Path, device: str) -> list[Predictor]:
    """Load the one model, or those of all folds."""
    file = find_checkpoint(str(checkpoint))
    models = models_of_folds(file) if is_cross_validation(file) else [load_checkpoint(file)]
    return [Predictor(model, device) for model in models]


def _ask_all(predictors: Sequence[Predictor], data: HistologyDataModule) -> Iterator[tuple[Shift, Predictions]]:
    """Answer for the unseen tiles, plain and under every shift."""
    seen = [seen_paths(predictor.model, data) for predictor in predictors]
    tiles = [tile for tile in data.tiles_of("test") if any(tile.path not in paths for paths in seen)]
    if not tiles:
        raise UserError(
            "Every tile, or its patient, had a part in the checkpoint's training. Expected tiles that it has not seen, "
            f"such as those of its test. Received: {data.root}"
        )
    by_shift: dict[Shift, list[tuple[Tensor, Tensor]]] = {shift: [] for shift in (PLAIN, *shifts())}
    thresholds: dict[str, float] = {}
    for batch in tqdm(data.plain_dataloader(tiles), desc="Altering", unit="batch"):
        unseen = torch.tensor([[path not in paths for path in batch["path"]] for paths in seen])
        mean = unseen.double().T @ torch.tensor([p.model.threshold for p in predictors]).double() / unseen.sum(0)
        thresholds |= zip(batch["path"], mean.tolist(), strict=True)
        for shift, found in by_shift.items():
            found.append(_mean_answer(predictors, shift.change(batch["image"]), unseen))
    for shift, found in by_shift.items():
        logits, novelty = (
            dict(zip(thresholds, torch.cat(part).tolist(), strict=True)) for part in zip(*found, strict=True)
        )
        predictions = predictions_of(data, "test", logits, Decision(), novelty)
        threshold = np.array([thresholds[path] for path in predictions.path.tolist()])
        yield shift, replace(predictions, threshold=threshold)


def _mean_answer(predictors: Sequence[Predictor], images: Tensor, unseen: Tensor) -> tuple[Tensor, Tensor]:
    """Average the models that have not seen a tile.

    Args:
        predictors: K models.
        images: uint8 (B, 3, S, S).
        unseen: bool (K, B); every tile is unseen by one at least.

    Returns:
        The logit of the mean probability, and the median novelty, NaN where unknown, float64 of shape (B,) each.
    """
    logits = torch.full(unseen.shape, torch.nan, dtype=torch.float64)
    novelty = logits.clone()
    for row, predictor in enumerate(predictors):
        if unseen[row].any():
            answers = predictor.answers(images[unseen[row]])
            logits[row, unseen[row]] = answers.logits.double() / predictor.model.temperature
            if answers.novelty is not None:
                novelty[row, unseen[row]] = answers.novelty.double()
    return torch.logit(to_probability(logits).nanmean(0), eps=1e-12), novelty.nanmedian(0).values


def _by_column(predictions: Predictions, data: HistologyDataModule) -> Iterator[Row]:
    for name, values in data.values_of_columns(predictions.path.tolist()).items():
        array: NDArray[np.str_] = np.asarray(values)
        for value in sorted(set(values)):
            yield Row.of(name, value or "(none)", predictions.take(array == value))


def _write(file: Path, rows: Sequence[Row], header: tuple[str, str]) -> None:
    ends = [f"{name}_{end}" for name in SHOWN for end in ("low", "high")]
    with atomic_write_text(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*header, "tiles", "malignant", "cases", *SHOWN, "refused", *ends])
        for row in rows:
            found = row.summary
            numbers = [found[name] for name in ("tiles", "malignant", "cases", *SHOWN)]
            intervals = [end for name in SHOWN for end in found["intervals"][name] or (None, None)]
            cells = [*numbers, row.refused, *intervals]
            writer.writerow([row.kind, row.strength, *("" if cell is None else cell for cell in cells)])


def _curves(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Collect the values of each kind from none to the strongest, for the picture."""
    plain, *altered = rows

    def values(row: Row) -> list[float]:
        found = [row.summary["auroc"], row.summary["balanced_accuracy"], row.refused]
        return [np.nan if one is None else float(one) for one in found]

    curves: dict[str, list[list[float]]] = {}
    for row in altered:
        curves.setdefault(row.kind, [values(plain)]).append(values(row))
    names = ("AUROC", "balanced accuracy", *([] if plain.refused is None else ["share refused"]))
    return {name: {kind: [one[n] for one in of] for kind, of in curves.items()} for n, name in enumerate(names)}


def _describe(
    model: TrainedModel, data: HistologyDataModule, rows: Sequence[Row], of_columns: Sequence[Row], folder: Path
) -> list[str]:
    tiles = rows[0].summary
    lines = [
        f"{model.trained_on}, on {data.name}: {tiles['tiles']} tiles that had no part in the training",
        _header("", OF_SHIFTS),
        *(_line(f"{row.kind} {row.strength}" if row.kind != PLAIN.kind else row.kind, row, OF_SHIFTS) for row in rows),
    ]
    for name in dict.fromkeys(row.kind for row in of_columns):
        lines += ["", _header(f"by {name}", SHOWN)]
        of_name = [row for row in of_columns if row.kind == name]
        lines += [_line(row.strength, row, SHOWN) for row in of_name[:MAX_VALUES]]
        lines += [f"  and {len(of_name) - MAX_VALUES} more in {FILES[2]}"] if len(of_name) > MAX_VALUES else []
    lines.append(f"In brackets: 95% intervals over the {tiles['units']} {tiles['intervals_over']}.")
    lines += [] if data.has_cases else ["The cases are unknown (data.group_regex): these intervals are too narrow."]
    lines += [] if model.novelty is not None else [CANNOT_TELL]
    lines += [SYNTHETIC] if model.data["synthetic"] else []
    return [*lines, f"Written: {folder}"]


def _header(title: str, metrics: Sequence[str]) -> str:
    return f"  {title:26} tiles  " + " ".join(f"{NAMES[metric]:23}" for metric in metrics) + " refused"


def _line(name: str, row: Row, metrics: Sequence[str]) -> str:
    cells = (f"{format_estimate(row.summary, metric) or 'undefined':23}" for metric in metrics)
    refused = "" if row.refused is None else f"{row.refused:.1%}"
    return f"  {name:26} {row.summary['tiles']:5}  " + " ".join(cells) + f" {refused:>7}"
