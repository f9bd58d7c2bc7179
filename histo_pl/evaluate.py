"""What evaluate.py does, callable from Python: a checkpoint's results on any folder of tiles."""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from histo_pl.data import HistologyDataModule
from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Decision
from histo_pl.evaluation.report import Report, format_estimate
from histo_pl.evaluation.scores import Scores
from histo_pl.evidence import judge, log_results, remarks, score, write_predictions, write_results
from histo_pl.inference import Predictor, TrainedModel, find_checkpoint, load_model
from histo_pl.inference.checkpoint import UNFINISHED
from histo_pl.speed import keep_freed_memory
from histo_pl.storage import refuse_results

log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Test a checkpoint on a folder of tiles, and write the evaluation's folder.

    Tiles that had a part in the checkpoint's training are found by their content and counted apart.

    Args:
        config: As `conf/evaluate.yaml` composes it.

    Returns:
        The contents of results.json.

    Raises:
        UserError: The checkpoint, the data or the configuration are not as expected.
    """
    if config.split not in ("test", "all"):
        raise UserError(f"split is not as expected. Expected test or all. Received: {config.split}")
    folder = Path(os.path.relpath(config.run_dir))
    refuse_results(folder, ("results.json", "predictions.csv", "report.html"), "run_dir")
    if config.keep_freed_memory:
        keep_freed_memory()
    checkpoint = find_checkpoint(config.ckpt)
    model = load_model(checkpoint)
    test_all = config.split == "all"
    data: HistologyDataModule = instantiate(
        config.data, image_size=model.image_size, resize=model.resize, test_all=test_all
    )
    data.setup()
    log.info("Checkpoint: %s, trained on: %s", checkpoint, model.trained_on)
    if config.tta:
        log.info("Each answer is the mean of a tile's eight views (tta).")
    log.info("Data: %s, %s; malignant is %s.", data.name, data.root, data.positive_class)
    decision = Decision(model.temperature, model.threshold, model.rule, model.refer)
    tested = score(data, "test", _logits(Predictor(model, config.device, tta=config.tta), data), decision)
    part_seen = np.array([model.seen.get(data.hashes[path], "") for path in tested.path])
    fresh = tested.take(part_seen == "") if (part_seen == "").any() else tested
    seen = _seen(model, tested, part_seen)
    results = judge(fresh, decision) | {
        "seen": seen,
        "warnings": [*_unfinished(model), seen["note"], *data.leak_warnings()],
        "data": data.facts(),
        "checkpoint": {"file": str(checkpoint), "trained_on": model.trained_on, "tta": config.tta},
        "folder": os.path.relpath(config.run_dir),
    }
    _write(config, data, model, tested, fresh, results)
    _report(results)
    return results


def _unfinished(model: TrainedModel) -> list[str]:
    return [] if model.finished else [f"The checkpoint is {UNFINISHED}."]


def _logits(predictor: Predictor, data: HistologyDataModule) -> dict[str, float]:
    answers: dict[str, float] = {}
    for batch in tqdm(data.test_dataloader(), desc="Evaluating", unit="batch"):
        answers |= zip(batch["path"], predictor.logits(batch["image"]).tolist(), strict=True)
    return answers


def _seen(model: TrainedModel, tested: Scores, part_seen: np.ndarray) -> dict[str, Any]:
    """Count the tiles that had a part in the training, and their results apart."""
    counts, total = Counter(part_seen.tolist()), len(tested)
    known = counts["train"] + counts["val"]
    if not model.seen:
        note = "The checkpoint does not say which tiles trained it: if these are among them, the figures flatter."
    elif not known:
        note = (
            f"None of the {total} files is one that trained or validated the checkpoint. (Re-saved copies, and other "
            f"tiles of its patients, cannot be recognised.)"
        )
    else:
        apart = "all figures are on these, and flatter" if known == total else "they are left out of the figures"
        note = (
            f"{known} of the {total} tiles had a part in the checkpoint's training ({counts['train']} trained it, "
            f"{counts['val']} validated it): {apart}."
        )
    return {
        "note": note,
        "train": counts["train"],
        "val": counts["val"],
        "test": tested.take(part_seen != "").summary() if known else None,
    }


def _write(
    config: DictConfig,
    data: HistologyDataModule,
    model: TrainedModel,
    tested: Scores,
    fresh: Scores,
    results: dict[str, Any],
) -> None:
    folder = Path(os.path.relpath(config.run_dir))
    folder.mkdir(parents=True, exist_ok=True)
    decision = Decision(**results["decision"])
    write_predictions(folder / "predictions.csv", data, {"test": tested}, decision, model.seen, {})
    report = Report(
        title=f"{data.name}: evaluation of a model trained on {model.trained_on}",
        results=results,
        scores=fresh,
        root=data.root,
        columns=data.values_of_columns(fresh.path.tolist()),
        notes=[*results["warnings"], *remarks(results)],
        settings=OmegaConf.to_yaml(config),
    )
    write_results(folder, report)


def _report(results: dict[str, Any]) -> None:
    for warning in results["warnings"]:
        log.info("%s", warning)
    log.info("")
    log_results(results)
    seen = results["seen"]["test"]
    if seen and seen["tiles"] < results["test"]["tiles"] + seen["tiles"]:
        log.info("On the %d tiles that had a part, alone: AUROC %s.", seen["tiles"], format_estimate(seen, "auroc"))
    for note in remarks(results):
        log.info("%s", note)
    log.info("Everything is in %s; look at report.html.", results["folder"])
