"""Results of tested tiles: computed, logged, and written as tables, pictures and a report."""

import csv
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from histo_pl.data import HistologyDataModule
from histo_pl.data.tile import Split
from histo_pl.evaluation import plots
from histo_pl.evaluation.calibration import TEMPERATURES, Decision
from histo_pl.evaluation.color_baseline import colour_only, read_colours
from histo_pl.evaluation.metrics import NAMES
from histo_pl.evaluation.predictions import Predictions, format_estimate, referral
from histo_pl.evaluation.report import Report, figures
from histo_pl.probability import label_of
from histo_pl.storage import atomic_write_text

log = logging.getLogger(__name__)

COLUMNS = ("path", "class", "case", "split", "seen", "malignant", "probability", "threshold", "predicted")


def predictions_of(
    data: HistologyDataModule, split: Split, logits: Mapping[str, float], decision: Decision
) -> Predictions:
    """Put a split's probabilities beside its labels.

    Args:
        data: The tiles, set up.
        split: train, val or test.
        logits: By the tile's path; tiles without one are left out.
        decision: Turns logits into probabilities.

    Returns:
        The predictions, in the order of the paths.
    """
    tiles = sorted(
        (tile for tile in data.tiles if data.split_of[tile.path] == split and tile.path in logits),
        key=lambda tile: tile.path,
    )
    return Predictions(
        path=np.array([tile.path for tile in tiles], np.str_),
        case=np.array([tile.case for tile in tiles], np.str_),
        malignant=np.array([tile.class_name == data.positive_class for tile in tiles], bool),
        probability=decision.probabilities(np.array([logits[tile.path] for tile in tiles], np.float64)),
        threshold=np.full(len(tiles), decision.threshold),
    )


def compute_results(predictions: Predictions, decision: Decision) -> dict[str, Any]:
    """Compute the results on tested tiles.

    Args:
        predictions: The tiles.
        decision: The temperature, threshold and band of their labels.

    Returns:
        `test`, `test_by_case` (None where cases are unknown), `decision` and `refer` (None without a band).
    """
    return {
        "test": predictions.summary(),
        "test_by_case": predictions.summary_by_case(),
        "decision": asdict(decision),
        "refer": None if decision.refer is None else referral(predictions, decision.refer),
    }


def predict_from_color(data: HistologyDataModule, tested: Predictions) -> Predictions:
    """Predict the tested tiles from colour alone, learnt from the training tiles.

    Args:
        data: The tiles, set up.
        tested: The tested tiles.

    Returns:
        The same tiles with the baseline's probabilities, and a threshold of 0.5.
    """
    training = [tile for tile in data.tiles if data.split_of[tile.path] == "train"]
    malignant = np.array([tile.class_name == data.positive_class for tile in training])
    files = [data.root / path for path in (*(tile.path for tile in training), *tested.path.tolist())]
    colours = read_colours(files)
    known, asked = colours[: len(training)], colours[len(training) :]
    return tested.with_probability(colour_only(known, malignant, asked), 0.5)


def write_predictions(
    file: Path,
    data: HistologyDataModule,
    predictions: Mapping[Split, Predictions],
    decision: Decision,
    training_hashes: Mapping[str, str],
    baseline: Predictions | None = None,
) -> None:
    """Write every prediction as CSV.

    Args:
        file: The file to write.
        data: The tiles, set up.
        predictions: The predictions of each split.
        decision: The temperature, threshold and band of their labels.
        training_hashes: See `TrainedModel.training_hashes`; the column `seen` holds the split of its training that a
            tile was in.
        baseline: The baseline from colour on the tested tiles, for the column `colour_only`; None: no such column.
    """
    classes = {tile.path: tile.class_name for tile in data.tiles}
    header = [*COLUMNS, *data.columns, *(["colour_only"] if baseline else [])]
    from_color = dict(zip(baseline.path.tolist(), baseline.probability.tolist(), strict=True)) if baseline else {}
    with atomic_write_text(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for split, predicted in predictions.items():
            paths = predicted.path.tolist()
            columns = data.values_of_columns(paths)
            for index, path in enumerate(paths):
                probability = float(predicted.probability[index])
                row = [path, classes[path], predicted.case[index], split, training_hashes.get(data.hashes[path], "")]
                row += [int(predicted.malignant[index]), probability, float(predicted.threshold[index])]
                row += [label_of(probability, decision.threshold, decision.refer)]
                row += [values[index] for values in columns.values()]
                writer.writerow([*row, *([from_color.get(path, "")] if baseline else [])])


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write results.json.

    Args:
        folder: The run's or the evaluation's.
        results: Plain values.
    """
    with atomic_write_text(folder / "results.json") as stream:
        stream.write(json.dumps(without_nan(results), indent=2) + "\n")


def write_report(folder: Path, report: Report) -> None:
    """Write report.html and the pictures.

    Args:
        folder: The run's or the evaluation's.
        report: Its results are those of results.json.
    """
    test = report.results["test"]
    cells = test["confusion"]
    matrix = [[cells["tn"], cells["fp"]], [cells["fn"], cells["tp"]]]
    drawn = figures(report.predictions)
    plots.save(drawn | {"confusion": plots.plot_confusion(matrix, f"{test['tiles']} tiles")}, folder)
    report.write(folder / "report.html", drawn)


def without_nan(value: Any) -> Any:  # noqa: ANN401
    """Replace NaN and infinity, which JSON does not know, by None.

    Args:
        value: Plain values, nested.
    """
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def caveats(results: Mapping[str, Any]) -> list[str]:
    """List what a reader of the figures could overlook.

    Args:
        results: As `compute_results` returns them, with `data`.

    Returns:
        Sentences; empty if there is nothing.
    """
    cells, decision, refer = results["test"]["confusion"], results["decision"], results["refer"]
    found = []
    for name, called in (("benign", cells["tn"] + cells["fn"]), ("malignant", cells["fp"] + cells["tp"])):
        if called == results["test"]["tiles"]:
            found.append(f"Every tile was called {name}: the accuracy is no more than that class's share of the tiles.")
    if any(math.isclose(decision["temperature"], end, rel_tol=1e-6) for end in TEMPERATURES):
        found.append(
            f"The temperature is at its limit ({decision['temperature']:g}): the validation tiles do not calibrate it."
        )
    if refer and not refer["answered"]:
        found.append("No band of uncertainty keeps the error rate on the validation tiles: every answer is referred.")
    if results["data"]["synthetic"]:
        found.append("These tiles were drawn by a program: the figures say nothing of real tissue.")
    return found


def log_results(results: Mapping[str, Any]) -> None:
    """Print every metric with its interval, of tiles and of cases.

    Args:
        results: As `compute_results` returns them, with `colour_only` where it is known.
    """
    test, by_case = results["test"], results["test_by_case"]
    title = f"{by_case['tiles']} cases (mean probability)" if by_case else ""
    log.info("  %-18s %-24s %s", "", f"{test['tiles']} tiles", title)
    for name, metric in NAMES.items():
        by_tile = format_estimate(test, name) or "undefined"
        of_cases = (format_estimate(by_case, name) or "undefined") if by_case else ""
        log.info("  %-18s %-24s %s", metric, by_tile, of_cases)
    log.info(
        "In brackets: 95%% intervals over %s; none with fewer than 3 of a class, or if all are alike.",
        test["intervals_over"],
    )
    _log_decision(results)
    if results.get("colour_only"):
        log.info("From colour alone, without any shape: AUROC %s.", format_estimate(results["colour_only"], "auroc"))


def _log_decision(results: Mapping[str, Any]) -> None:
    decision, refer = results["decision"], results["refer"]
    log.info(
        "Malignant above %.4g (%s), temperature %.3g.", decision["threshold"], decision["rule"], decision["temperature"]
    )
    if refer:
        log.info(
            "Uncertain from %.3g to %.3g: %d of %d tiles referred, %d of the others wrong.",
            refer["low"],
            refer["high"],
            refer["referred"],
            refer["referred"] + refer["answered"],
            refer["wrong"],
        )
