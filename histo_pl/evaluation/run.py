"""Evaluation of a checkpoint on a folder of tiles."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from histo_pl.data import HistologyDataModule
from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Decision
from histo_pl.evaluation.cases import CaseRule, by_case
from histo_pl.evaluation.predictions import Predictions, format_estimate
from histo_pl.evaluation.report import Report
from histo_pl.evaluation.results import (
    caveats,
    compute_results,
    log_results,
    predictions_of,
    write_predictions,
    write_report,
    write_results,
)
from histo_pl.inference import Predictor
from histo_pl.models.checkpoint import UNFINISHED, TrainedModel, find_checkpoint, load_model
from histo_pl.storage import new_folder, refuse_results

log = logging.getLogger(__name__)


def evaluate(
    checkpoint: str | Path,
    root: str | Path | None,
    *,
    split: str = "all",
    device: str = "auto",
    tta: bool = False,
    run_dir: str | Path | None = None,
    settings: str = "",
    open_data: Callable[..., HistologyDataModule] = HistologyDataModule,
    **data_options: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Test a checkpoint on a folder of tiles, and write the evaluation's folder.

    Tiles that had a part in the checkpoint's training are found by their content and counted apart.

    Args:
        checkpoint: A best.ckpt, a run's folder, or `latest`.
        root: The folder of tiles, or a zip file of it.
        split: `all`: every tile; `test`: the test tiles of the folder, of `split_file`, or of a split drawn by `seed`.
        device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: a GPU if there is one.
        tta: Average the logits of a tile's eight views (test-time augmentation).
        run_dir: The folder to write; None: evaluations/DAY/TIME.
        settings: The configuration as YAML, for the report.
        open_data: Makes the data module.
        **data_options: Further arguments of the data module, such as `group_regex`.

    Returns:
        The contents of results.json.

    Raises:
        UserError: The checkpoint, the data or an argument is not as expected.
    """
    if split not in ("test", "all"):
        raise UserError(f"split is not as expected. Expected test or all. Received: {split}")
    if run_dir is not None:
        refuse_results(Path(run_dir), ("results.json", "predictions.csv", "report.html"), "run_dir")
    file = find_checkpoint(str(checkpoint))
    model = load_model(file)
    options = {"image_size": model.image_size, "resize": model.resize, "test_all": split == "all"} | data_options
    data = open_data(root, **options)
    data.setup()
    if not data.has_test:
        raise UserError(f"This folder has train and val, and no test. Expected split=all. Received: split={split}")
    _announce(file, model, data, tta)
    folder = Path(os.path.relpath(run_dir or new_folder("evaluations/%Y-%m-%d/%H-%M-%S")))
    decision = Decision(model.temperature, model.threshold, model.rule, model.refer)
    tested = predictions_of(data, "test", _logits(Predictor(model, device, tta=tta), data), decision)
    trained_split = np.array([model.training_hashes.get(data.hashes[path], "") for path in tested.path])
    unseen = tested.take(trained_split == "") if (trained_split == "").any() else tested
    seen = _seen_tiles(model, tested, trained_split)
    rule = CaseRule(**model.case_rule)
    results = compute_results(unseen, decision, rule) | {
        "seen": seen,
        "warnings": [*_unfinished(model), seen["note"], *data.leak_warnings()],
        "data": data.summary() | {"root": str(data.root)},
        "checkpoint": {"file": str(file), "trained_on": model.trained_on, "tta": tta},
        "folder": str(folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", data, {"test": tested}, decision, model.training_hashes)
    write_results(folder, results)
    write_report(folder, _report(data, model, unseen, rule, results, settings))
    _log(results, partly_seen=len(unseen) < len(tested))
    return results


def _announce(file: Path, model: TrainedModel, data: HistologyDataModule, tta: bool) -> None:
    log.info("Checkpoint: %s, trained on: %s", file, model.trained_on)
    if tta:
        log.info("Each answer is the mean of a tile's eight views (tta).")
    log.info("Data: %s, %s; malignant is %s.", data.name, data.root, data.positive_class)


def _unfinished(model: TrainedModel) -> list[str]:
    return [] if model.finished else [f"The checkpoint is {UNFINISHED}."]


def _logits(predictor: Predictor, data: HistologyDataModule) -> dict[str, float]:
    logits: dict[str, float] = {}
    for batch in tqdm(data.test_dataloader(), desc="Evaluating", unit="batch"):
        logits |= zip(batch["path"], predictor.logits(batch["image"]).tolist(), strict=True)
    return logits


def _seen_tiles(model: TrainedModel, tested: Predictions, trained_split: NDArray[np.str_]) -> dict[str, Any]:
    """Count the tiles that had a part in the training, and compute their results apart."""
    counts = Counter(trained_split.tolist())
    known = counts["train"] + counts["val"]
    return {
        "note": _note_of_seen(model, counts),
        "train": counts["train"],
        "val": counts["val"],
        "test": tested.take(trained_split != "").summary() if known else None,
    }


def _note_of_seen(model: TrainedModel, counts: Counter[str]) -> str:
    known, total = counts["train"] + counts["val"], counts.total()
    if not model.training_hashes:
        return (
            "The checkpoint does not say which tiles trained it: if these are among them, the figures are "
            "optimistically biased."
        )
    if not known:
        return (
            f"None of the {total} files is one that trained or validated the checkpoint. (Re-saved copies, and other "
            f"tiles of its patients, cannot be recognised.)"
        )
    consequence = "they are left out of the figures"
    if known == total:
        consequence = "all figures are on these, and optimistically biased"
    return (
        f"{known} of the {total} tiles had a part in the checkpoint's training ({counts['train']} trained it, "
        f"{counts['val']} validated it): {consequence}."
    )


def _report(
    data: HistologyDataModule,
    model: TrainedModel,
    unseen: Predictions,
    rule: CaseRule,
    results: dict[str, Any],
    settings: str,
) -> Report:
    return Report(
        title=f"{data.name}: evaluation of a model trained on {model.trained_on}",
        results=results,
        predictions=unseen,
        cases=by_case(unseen, rule),
        root=data.root,
        columns=data.values_of_columns(unseen.path.tolist()),
        notes=[*results["warnings"], *caveats(results)],
        settings=settings,
    )


def _log(results: dict[str, Any], *, partly_seen: bool) -> None:
    for warning in results["warnings"]:
        log.info("%s", warning)
    log.info("")
    log_results(results)
    seen = results["seen"]["test"]
    if seen and partly_seen:
        log.info("On the %d tiles that had a part, alone: AUROC %s.", seen["tiles"], format_estimate(seen, "auroc"))
    for caveat in caveats(results):
        log.info("%s", caveat)
    log.info("Everything is in %s; look at report.html.", results["folder"])
