"""Outputs of a training run: what is logged before and after, the summary, and the files of its folder."""

import logging
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from histo_pl.data import HistologyDataModule
from histo_pl.data.check import describe_counts
from histo_pl.data.tile import SPLITS, Split
from histo_pl.evaluation import plots
from histo_pl.evaluation.cases import by_case
from histo_pl.evaluation.explained import Explained
from histo_pl.evaluation.levels import Levels
from histo_pl.evaluation.metrics import NAMES
from histo_pl.evaluation.report import Report
from histo_pl.evaluation.results import caveats, log_results, write_predictions, write_report, write_results
from histo_pl.training.assessment import Assessment
from histo_pl.training.callbacks import BestCheckpoint, CollapseWarning, History
from histo_pl.training.module import TileClassifier

log = logging.getLogger(__name__)

NAMES_OF_SPLITS: Mapping[Split, str] = {"train": "training", "val": "validation", "test": "test"}


@rank_zero_only
def announce_data(data: HistologyDataModule, findings: list[str]) -> None:
    """Log the data, the split, and warnings.

    Args:
        data: Set up.
        findings: Warnings, such as of copies on both sides of the split.
    """
    summary = data.summary()
    log.info("Data: %s, %s", summary["name"], data.root)
    log.info("Malignant is %s, benign is %s.", summary["positive_class"], summary["negative_class"])
    for split in SPLITS:
        counts = summary["parts"][split]
        cases = "" if counts["cases"] is None else f", {counts['cases']} cases"
        log.info("  %-5s %5d tiles, %d malignant%s", split, counts["tiles"], counts["malignant"], cases)
    if not data.has_cases:
        log.info("  The cases are unknown (data.group_regex): tiles of one patient may lie on both sides.")
    others = data.other_files()
    if others:
        log.info("  Left out, as they are no images of a class: %d files, such as %s", len(others), others[0])
    for note in describe_counts(summary["checked"], len(data.tiles)):
        log.info("  %s", note)
    for finding in findings:
        log.warning("Warning: %s", finding)


def run_summary(
    trainer: L.Trainer,
    classifier: TileClassifier,
    history: History,
    best: BestCheckpoint,
    data: HistologyDataModule,
) -> dict[str, Any]:
    """Summarize a run for results.json, its test aside.

    Args:
        trainer: After the training.
        classifier: The trained model.
        history: Metrics by epoch.
        best: The callback that kept the best weights.
        data: Set up.

    Returns:
        validation, epochs, collapsed, parameters, data and run, in plain values.
    """
    epoch = history.best(str(best.monitor), best.mode)
    folder = Path(os.path.relpath(str(best.dirpath)))
    return {
        "validation": {"epoch": int(epoch["epoch"]) + 1} | _metrics_of("val", epoch),
        "epochs": len(history.epochs),
        "collapsed": CollapseWarning.is_collapsed(epoch["val/spread"]),
        "parameters": sum(p.numel() for p in classifier.network.parameters()),
        "data": dict(classifier.hparams["data"]) | {"root": str(data.root)},
        "run": {
            "folder": str(folder),
            "checkpoint": str(folder / Path(best.best_model_path).name),
            "device": str(trainer.strategy.root_device),
            "precision": str(trainer.precision),
            "processes": trainer.world_size,
        },
    }


def _metrics_of(stage: str, metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Pick a stage's metrics; one that is undefined is None, as JSON knows no NaN."""
    values = {name.removeprefix(f"{stage}/"): float(metrics[name]) for name in metrics if name.startswith(f"{stage}/")}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def write_outputs(
    folder: Path,
    settings: str,
    data: HistologyDataModule,
    results: Mapping[str, Any],
    assessed: Assessment,
    history: History,
    explained: Explained,
) -> None:
    """Write the files of a run's folder: tables and results first, pictures and the report last.

    Args:
        folder: The run's.
        settings: The configuration as YAML.
        data: Set up.
        results: The contents of results.json.
        assessed: The assessment that the results are of.
        history: Metrics by epoch.
        explained: The evidence maps of the report.
    """
    name, levels = results["data"]["name"], Levels.of(results)
    shown = assessed.predictions[assessed.reported]
    write_predictions(folder / "predictions.csv", data, assessed.predictions, assessed.decision, {}, assessed.baseline)
    history.write(folder / "metrics.csv")
    write_results(folder, results)
    plots.save({"curves": plots.plot_curves(history.epochs, results["validation"]["epoch"] - 1, name)}, folder)
    report = Report(
        title=f"{name}: {levels.name.lower()} of a training run",
        results=results,
        predictions=shown,
        cases=by_case(shown, assessed.rule),
        root=data.root,
        columns=data.values_of_columns(shown.path.tolist()),
        notes=_notes(results),
        epochs=history.epochs,
        settings=settings,
        novelty={
            NAMES_OF_SPLITS[split]: np.array(list(assessed.novelty_by_split[split].values()))
            for split in SPLITS
            if split in assessed.novelty_by_split
        },
        maps=explained.maps,
        map_notes=explained.lines,
    )
    write_report(folder, report)


def log_to_loggers(trainer: L.Trainer, results: Mapping[str, Any]) -> None:
    """Give the test's metrics to the loggers; metrics.csv, one row an epoch, has no place for them.

    Args:
        trainer: Has the loggers.
        results: The contents of results.json.
    """
    levels = Levels.of(results)
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger):
            prefix = levels.name.lower()
            metrics = {f"{prefix}/{name}": levels.tiles[name] for name in NAMES if levels.tiles[name] is not None}
            logger.log_metrics(metrics, step=trainer.global_step)
            logger.save()


def log_summary(results: Mapping[str, Any], data: HistologyDataModule) -> None:
    """Log the results, the folder, and the command that predicts a tile.

    Args:
        results: The contents of results.json.
        data: Set up.
    """
    run = results["run"]
    log.info("")
    log.info("%s with the weights of epoch %d:", Levels.of(results).name, results["validation"]["epoch"])
    log_results(results)
    for note in _notes(results):
        log.info("%s", note)
    log.info("Everything is in %s (%.0f s); look at report.html. To ask for an opinion:", run["folder"], run["seconds"])
    tile = data.tiles_of("test" if data.has_test else "val")[0]
    log.info("")
    log.info("  python predict.py %s %s", _argument("ckpt", run["checkpoint"]), _argument("img", data.root / tile.path))


def _notes(results: Mapping[str, Any]) -> list[str]:
    """List what a reader must know before the figures."""
    notes = [*results["warnings"], *caveats(results)]
    if results["collapsed"]:
        notes.append("The network had collapsed: these figures are those of a constant.")
    return notes


def _argument(key: str, value: str | Path) -> str:
    return f"{key}={shlex.quote(str(value))}"
