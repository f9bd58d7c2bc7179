"""Evaluation of a checkpoint on a folder of tiles."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from histo_pl.data import HistologyDataModule
from histo_pl.data.check import describe_counts
from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Decision
from histo_pl.evaluation.cases import CaseRule, by_case
from histo_pl.evaluation.explained import Explained, explain_predictions
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
from histo_pl.evaluation.seen import KEEP, SKIP, find_seen
from histo_pl.inference import Predictor
from histo_pl.models.checkpoint import CANNOT_TELL, UNCALIBRATED_TTA, UNFINISHED, TrainedModel
from histo_pl.models.ensemble import load_original
from histo_pl.models.evidence import method_for
from histo_pl.models.scale import describe_other_scale
from histo_pl.storage import new_folder, refuse_results

log = logging.getLogger(__name__)


def evaluate(
    checkpoint: str | Path,
    root: str | Path | None,
    *,
    split: str = "all",
    device: str = "auto",
    tta: bool = False,
    seen_cases: str = KEEP,
    explain: str | bool = False,
    run_dir: str | Path | None = None,
    settings: str = "",
    open_data: Callable[..., HistologyDataModule] = HistologyDataModule,
    **data_options: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Test a checkpoint on a folder of tiles, and write the evaluation's folder.

    Tiles that had a part in the checkpoint's training are found by their content and counted apart; other tiles of its
    patients are found by their case.

    Args:
        checkpoint: A best.ckpt, a run's folder, or `latest`.
        root: The folder of tiles, or a zip file of it.
        split: `all`: every tile; `test`: the test tiles of the folder, of `split_file`, or of a split drawn by `seed`.
        device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: a GPU if there is one.
        tta: Average the logits of a tile's eight views (test-time augmentation).
        seen_cases: `keep` tiles of cases that had a part in the training, or `skip` them.
        explain: Show evidence maps of the worst mistakes in the report: see `evidence.method_for`; False: none.
        run_dir: The folder to write; None: evaluations/DAY/TIME.
        settings: The configuration as YAML, for the report.
        open_data: Makes the data module.
        **data_options: Further arguments of the data module, such as `group_regex`.

    Returns:
        The contents of results.json.

    Raises:
        UserError: The checkpoint, the data or an argument is not as expected.
    """
    _check(split, seen_cases, run_dir)
    file, model = load_original(checkpoint)
    data = _set_up(model, split, lambda **options: open_data(root, **(options | data_options)))
    _announce(file, model, data, tta)
    folder = Path(os.path.relpath(run_dir or new_folder("evaluations/%Y-%m-%d/%H-%M-%S")))
    predictor = Predictor(model, device, tta=tta)
    method_for(predictor.network, explain)
    chosen = predictor.model
    decision = Decision(chosen.temperature, chosen.threshold, chosen.rule, chosen.refer)
    logits, novelty = _ask(predictor, data)
    tested = predictions_of(data, "test", logits, decision, novelty)
    seen_tiles = find_seen(model, data.hashes, tested)
    unseen = tested.take(seen_tiles.unseen(seen_cases))
    seen = seen_tiles.summary(tested, seen_cases)
    rule = CaseRule(**model.case_rule)
    explained = explain_predictions(predictor.network, unseen, data.root, model.image_size, model.resize, explain)
    results = _results(unseen, decision, rule, model) | {
        "seen": seen,
        "warnings": [
            *_doubts(predictor),
            *filter(None, (describe_other_scale(model, data.median_mpp), seen["note"], seen["case_note"])),
            *data.leak_warnings(),
        ],
        "data": data.summary() | {"root": str(data.root)},
        "checkpoint": {"file": str(file), "trained_on": model.trained_on, "tta": tta},
        "folder": str(folder),
        "evidence": dict(explained.check) or None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    data.checked.write_skipped(folder / "skipped.csv")
    write_predictions(folder / "predictions.csv", data, {"test": tested}, decision, model.training_hashes)
    write_results(folder, results)
    write_report(folder, _report(data, model, unseen, rule, results, settings, explained))
    _log(results, partly_seen=len(unseen) < len(tested))
    return results


def _check(split: str, seen_cases: str, run_dir: str | Path | None) -> None:
    if split not in ("test", "all"):
        raise UserError(f"split is not as expected. Expected test or all. Received: {split}")
    if seen_cases not in (KEEP, SKIP):
        raise UserError(f"seen_cases is not as expected. Expected {KEEP} or {SKIP}. Received: {seen_cases}")
    if run_dir is not None:
        refuse_results(Path(run_dir), ("results.json", "predictions.csv", "report.html"), "run_dir")


def _set_up(model: TrainedModel, split: str, open_data: Callable[..., HistologyDataModule]) -> HistologyDataModule:
    data = open_data(image_size=model.image_size, resize=model.resize, test_all=split == "all")
    data.setup()
    if not data.has_test:
        raise UserError(f"This folder has train and val, and no test. Expected split=all. Received: split={split}")
    return data


def _announce(file: Path, model: TrainedModel, data: HistologyDataModule, tta: bool) -> None:
    log.info("Checkpoint: %s, trained on: %s", file, model.trained_on)
    if tta:
        log.info("Each answer is the mean of a tile's eight views (tta).")
    log.info("Data: %s, %s; malignant is %s.", data.name, data.root, data.positive_class)
    for note in describe_counts(data.checked.counts(), len(data.tiles)):
        log.info("  %s", note)


def _doubts(predictor: Predictor) -> list[str]:
    model = predictor.model
    unfinished = [] if model.finished else [f"The checkpoint is {UNFINISHED}."]
    found = [*unfinished, *([UNCALIBRATED_TTA] if predictor.tta and not model.decision_tta else [])]
    return found if predictor.tells_novelty else [*found, CANNOT_TELL]


def _ask(predictor: Predictor, data: HistologyDataModule) -> tuple[dict[str, float], dict[str, float]]:
    """Return the logit and, where the model can tell, the novelty of each test tile by its path."""
    logits: dict[str, float] = {}
    novelty: dict[str, float] = {}
    for batch in tqdm(data.test_dataloader(), desc="Evaluating", unit="batch"):
        answers = predictor.answers(batch["image"])
        logits |= zip(batch["path"], answers.logits.tolist(), strict=True)
        if answers.novelty is not None:
            novelty |= zip(batch["path"], answers.novelty.tolist(), strict=True)
    return logits, novelty


def _results(unseen: Predictions, decision: Decision, rule: CaseRule, model: TrainedModel) -> dict[str, Any]:
    results = compute_results(unseen, decision, rule)
    if model.novelty is not None and results["novelty"]:
        results["novelty"] |= model.novelty.describe_limit()
    return results


def _report(
    data: HistologyDataModule,
    model: TrainedModel,
    unseen: Predictions,
    rule: CaseRule,
    results: dict[str, Any],
    settings: str,
    explained: Explained,
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
        novelty={"tested": unseen.novelty} if results["novelty"] else {},
        maps=explained.maps,
        map_notes=explained.lines,
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
