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
from histo_pl.evaluation.cases import CaseRule, by_case, explain_cases, summarize_cases
from histo_pl.evaluation.color_baseline import colour_only
from histo_pl.evaluation.levels import Levels
from histo_pl.evaluation.metrics import NAMES
from histo_pl.evaluation.predictions import Predictions, format_estimate, referral
from histo_pl.evaluation.report import Report, figures
from histo_pl.probability import label_of
from histo_pl.storage import atomic_write_text

log = logging.getLogger(__name__)

COLUMNS = ("path", "class", "case", "group", "split", "seen", "malignant")
ANSWERS = ("probability", "threshold", "predicted", "novelty")  # columns after them


def predictions_of(
    data: HistologyDataModule,
    split: Split,
    logits: Mapping[str, float],
    decision: Decision,
    novelty: Mapping[str, float] | None = None,
) -> Predictions:
    """Put a split's probabilities beside its labels.

    Args:
        data: The tiles, set up.
        split: train, val or test.
        logits: By the tile's path; tiles without one are left out.
        decision: Turns logits into probabilities.
        novelty: By the tile's path, in units of its limit; None: unknown.

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
        group=np.array([tile.group for tile in tiles], np.str_),
        malignant=np.array([tile.class_name == data.positive_class for tile in tiles], bool),
        probability=decision.probabilities(np.array([logits[tile.path] for tile in tiles], np.float64)),
        threshold=np.full(len(tiles), decision.threshold),
        novelty=np.array([(novelty or {}).get(tile.path, np.nan) for tile in tiles], np.float64),
    )


def compute_results(
    predictions: Predictions, decision: Decision, rule: CaseRule, split: Split = "test"
) -> dict[str, Any]:
    """Compute the results on tested tiles.

    Args:
        predictions: The tiles.
        decision: The temperature, threshold and band of their labels.
        rule: The truth and the score of a case.
        split: The split of these tiles: `val` where there is no test.

    Returns:
        `test` and `test_by_case`, None where there is no such result; `validation_only` and `validation_only_by_case`
        where there is no test; `case_level`, `decision`, `refer` (None without a band) and `novelty` (None if unknown).
    """
    tiles, cases = predictions.summary(), summarize_cases(by_case(predictions, rule), rule)
    levels = {"test": tiles, "test_by_case": cases}
    if split != "test":
        levels = dict.fromkeys(levels) | {"validation_only": tiles, "validation_only_by_case": cases}
    return {
        **levels,
        "novelty": summarize_novelty(predictions, rule),
        "case_level": asdict(rule) | {"title": rule.title, "note": explain_cases(predictions, rule)},
        "decision": asdict(decision),
        "refer": None if decision.refer is None else referral(predictions, decision.refer),
    }


def summarize_novelty(predictions: Predictions, rule: CaseRule) -> dict[str, Any] | None:
    """Describe the tiles unlike those of the training, and the results without them.

    Args:
        predictions: The tiles.
        rule: The truth and the score of a case.

    Returns:
        refused, tiles and share; `answered` and `answered_by_case`: the results of the others, None where there are
        none; None where the novelty is unknown.
    """
    if predictions.share_refused is None:
        return None
    answered = predictions.take(~predictions.refused)
    return {
        "refused": int(predictions.refused.sum()),
        "tiles": len(predictions),
        "share": predictions.share_refused,
        "answered": answered.summary() if len(answered) else None,
        "answered_by_case": summarize_cases(by_case(answered, rule), rule) if len(answered) else None,
    }


def describe_refused(novelty: Mapping[str, Any]) -> str:
    """Say how many tiles are unlike those of the training, and what the others' results are.

    Args:
        novelty: As `summarize_novelty` returns it.
    """
    told = f"Unlike training: {novelty['refused']} of {novelty['tiles']} tiles ({novelty['share']:.1%}) refused"
    answered = novelty["answered"]
    if novelty["refused"] and answered:
        figures = (format_estimate(answered, name) or "undefined" for name in ("auroc", "balanced_accuracy"))
        told += "; AUROC {}, balanced accuracy {} of the others".format(*figures)
    if not novelty.get("is_guaranteed", True):
        told += (
            f". The limit, chosen on {novelty['validated']} tiles, does not guarantee a share of "
            f"{novelty['false_alarm']:.1%}: that takes {math.ceil(1 / novelty['false_alarm']) - 1}"
        )
    return f"{told}."


def predict_from_color(data: HistologyDataModule, predictions: Mapping[Split, Predictions]) -> dict[Split, Predictions]:
    """Predict tiles from colour alone, learnt from the training tiles.

    Args:
        data: The tiles, set up.
        predictions: The predictions of each split.

    Returns:
        The same tiles with the baseline's probabilities, and a threshold of 0.5.
    """
    training = [tile for tile in data.tiles if data.split_of[tile.path] == "train"]
    malignant = np.array([tile.class_name == data.positive_class for tile in training])
    known = data.colours_of([tile.path for tile in training])
    return {
        split: tiles.with_probability(colour_only(known, malignant, data.colours_of(tiles.path.tolist())), 0.5)
        for split, tiles in predictions.items()
    }


def write_predictions(
    file: Path,
    data: HistologyDataModule,
    predictions: Mapping[Split, Predictions],
    decision: Decision,
    training_hashes: Mapping[str, str],
    baseline: Mapping[Split, Predictions] | None = None,
) -> None:
    """Write every prediction as CSV.

    Args:
        file: The file to write.
        data: The tiles, set up.
        predictions: The predictions of each split.
        decision: The temperature, threshold and band of their labels.
        training_hashes: See `TrainedModel.training_hashes`; the column `seen` holds the split of its training that a
            tile was in.
        baseline: The baseline from colour on the same tiles, for the column `colour_only`; None: no such column.
    """
    classes = {tile.path: tile.class_name for tile in data.tiles}
    header = [*COLUMNS, *ANSWERS, *data.columns, *(["colour_only"] if baseline else [])]
    with atomic_write_text(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for split, predicted in predictions.items():
            paths = predicted.path.tolist()
            columns = data.values_of_columns(paths)
            for index, path in enumerate(paths):
                probability = float(predicted.probability[index])
                row = [path, classes[path], predicted.case[index], predicted.group[index], split]
                row += [training_hashes.get(data.hashes[path], "")]
                row += [int(predicted.malignant[index]), probability, float(predicted.threshold[index])]
                novelty = float(predicted.novelty[index])
                row += [label_of(probability, decision.threshold, decision.refer, novelty)]
                row += ["" if math.isnan(novelty) else novelty]
                row += [values[index] for values in columns.values()]
                writer.writerow([*row, *([float(baseline[split].probability[index])] if baseline else [])])


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write results.json, with the `caveats` that the report names too.

    Args:
        folder: The run's or the evaluation's.
        results: Plain values.
    """
    contents = {**results, "caveats": caveats(results)}
    with atomic_write_text(folder / "results.json") as stream:
        stream.write(json.dumps(without_nan(contents), indent=2) + "\n")


def write_report(folder: Path, report: Report) -> None:
    """Write report.html and the pictures.

    Args:
        folder: The run's or the evaluation's.
        report: Its results are those of results.json.
    """
    tiles = report.levels.tiles
    cells = tiles["confusion"]
    matrix = [[cells["tn"], cells["fp"]], [cells["fn"], cells["tp"]]]
    drawn = figures(report.predictions, report.cases, report.novelty)
    plots.save(drawn | {"confusion": plots.plot_confusion(matrix, f"{tiles['tiles']} tiles")}, folder)
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
    levels, decision, refer = Levels.of(results), results["decision"], results["refer"]
    cells, found = levels.tiles["confusion"], []
    if results["test"] is None:
        found.append(
            "There is no test: the figures are those of the validation tiles, on which the best epoch, the temperature "
            "and the threshold were chosen, and optimistically biased."
        )
    for name, called in (("benign", cells["tn"] + cells["fn"]), ("malignant", cells["fp"] + cells["tp"])):
        if called == levels.tiles["tiles"]:
            found.append(f"Every tile was called {name}: the accuracy is no more than that class's share of the tiles.")
    if any(math.isclose(decision["temperature"], end, rel_tol=1e-6) for end in TEMPERATURES):
        found.append(
            f"The temperature is at its limit ({decision['temperature']:g}): the validation tiles do not calibrate it."
        )
    if refer and not refer["answered"]:
        found.append("No band of uncertainty keeps the error rate on the validation tiles: every answer is referred.")
    mixed = results["data"].get("mixed_cases")
    if results["case_level"]["note"]:
        found.append(results["case_level"]["note"])
    elif mixed:
        found.append(f"Cases with tiles of both classes: {mixed}, none of them among the tested ones.")
    if results["data"]["synthetic"]:
        found.append("These tiles were drawn by a program: the figures say nothing of real tissue.")
    return found


def log_results(results: Mapping[str, Any]) -> None:
    """Print every metric with its interval, of tiles and of cases.

    Args:
        results: As `compute_results` returns them, with `colour_only` where it is known.
    """
    levels = Levels.of(results)
    tiles, cases = levels.tiles, levels.cases
    title = f"{cases['tiles']} cases ({results['case_level']['title']})" if cases else ""
    log.info("  %-18s %-24s %s", "", f"{tiles['tiles']} tiles", title)
    for name, metric in NAMES.items():
        by_tile = format_estimate(tiles, name) or "undefined"
        of_cases = (format_estimate(cases, name) or "undefined") if cases else ""
        log.info("  %-18s %-24s %s", metric, by_tile, of_cases)
    log.info(
        "In brackets: 95%% intervals over the %d %s; none with fewer than 3 of a class that the metric rests on, or if "
        "all are alike.",
        tiles["units"],
        tiles["intervals_over"],
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
    if results["novelty"]:
        log.info("%s", describe_refused(results["novelty"]))
