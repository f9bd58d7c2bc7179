"""From tested tiles to what a run or an evaluation leaves behind: tables, pictures, results and the report."""

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
from histo_pl.data.splits import Part
from histo_pl.evaluation import plots
from histo_pl.evaluation.calibration import TEMPERATURES, Decision
from histo_pl.evaluation.colour import colour_only, read_colours
from histo_pl.evaluation.labels import label_of
from histo_pl.evaluation.measures import NAMES
from histo_pl.evaluation.report import Report, figures, format_estimate
from histo_pl.evaluation.scores import Scores, referral
from histo_pl.storage import replacing_text

log = logging.getLogger(__name__)

COLUMNS = ("path", "class", "case", "split", "seen", "malignant", "probability", "threshold", "predicted")


def score(data: HistologyDataModule, part: Part, logits: Mapping[str, float], decision: Decision) -> Scores:
    """Lay a part's answers beside the truth.

    Args:
        data: The tiles, set up.
        part: train, val or test.
        logits: By path, as the data's samples name it; tiles without one are left out.
        decision: What makes answers of logits.

    Returns:
        The scores, in the order of the paths below the data's root.
    """
    known = {Path(path).relative_to(data.root).as_posix(): logit for path, logit in logits.items()}
    tiles = sorted(
        (tile for tile in data.tiles if data.parts[tile.path] == part and tile.path in known),
        key=lambda tile: tile.path,
    )
    return Scores(
        path=np.array([tile.path for tile in tiles], np.str_),
        case=np.array([tile.case for tile in tiles], np.str_),
        malignant=np.array([tile.class_name == data.positive_class for tile in tiles], bool),
        probability=decision.probabilities(np.array([known[tile.path] for tile in tiles], np.float64)),
        threshold=np.full(len(tiles), decision.threshold),
    )


def judge(scores: Scores, decision: Decision) -> dict[str, Any]:
    """Describe the results on tested tiles.

    Args:
        scores: The tiles.
        decision: What made their answers.

    Returns:
        `test`, `test_by_case` (None where cases are unknown), `decision` and `refer` (None without a band).
    """
    return {
        "test": scores.summary(),
        "test_by_case": scores.summary_by_case(),
        "decision": asdict(decision),
        "refer": None if decision.refer is None else referral(scores, decision.refer),
    }


def colour_baseline(data: HistologyDataModule, tested: Scores) -> Scores:
    """Answer for the tested tiles from colour alone, learnt from the training tiles.

    Args:
        data: The tiles, set up.
        tested: The tested tiles.

    Returns:
        The same tiles with the baseline's probabilities, and a threshold of 0.5.
    """
    training = [tile for tile in data.tiles if data.parts[tile.path] == "train"]
    malignant = np.array([tile.class_name == data.positive_class for tile in training])
    files = [data.root / path for path in (*(tile.path for tile in training), *tested.path.tolist())]
    colours = read_colours(files)
    known, asked = colours[: len(training)], colours[len(training) :]
    return tested.with_probability(colour_only(known, malignant, asked), 0.5)


def write_predictions(
    file: Path,
    data: HistologyDataModule,
    scores: Mapping[Part, Scores],
    decision: Decision,
    seen: Mapping[str, str],
    further: Mapping[str, Mapping[str, object]],
) -> None:
    """Write every answer as CSV.

    Args:
        file: Where to write.
        data: The tiles, set up.
        scores: The answers of each part.
        decision: What made them.
        seen: See `TrainedModel.seen`; the column `seen` says which part of its training a tile was.
        further: More columns by name, each a value by path.
    """
    classes = {tile.path: tile.class_name for tile in data.tiles}
    with replacing_text(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*COLUMNS, *data.columns, *further))
        for part, ones in scores.items():
            columns = data.values_of_columns(ones.path.tolist())
            for index, path in enumerate(ones.path.tolist()):
                probability = float(ones.probability[index])
                row = (path, classes[path], ones.case[index], part, seen.get(data.hashes[path], ""))
                answer = (int(ones.malignant[index]), probability, float(ones.threshold[index]))
                label = label_of(probability, decision.threshold, decision.refer)
                values = (column[index] for column in columns.values())
                writer.writerow(
                    (*row, *answer, label, *values, *(ones_of.get(path, "") for ones_of in further.values()))
                )


def write_results(folder: Path, report: Report) -> None:
    """Write results.json, report.html and the pictures.

    Args:
        folder: Where to write.
        report: What to show; its results are those of results.json.
    """
    text = json.dumps(without_nan(report.results), indent=2)
    with replacing_text(folder / "results.json") as stream:
        stream.write(text + "\n")
    test = report.results["test"]
    cells = test["confusion"]
    matrix = [[cells["tn"], cells["fp"]], [cells["fn"], cells["tp"]]]
    drawn = figures(report.scores)
    plots.save(drawn | {"confusion": plots.plot_confusion(matrix, f"{test['tiles']} tiles")}, folder)
    report.write(folder / "report.html", drawn)


def without_nan(value: Any) -> Any:  # noqa: ANN401
    """Replace NaN and infinity, which JSON does not know, by None.

    Args:
        value: Plain values, nested.
    """
    if isinstance(value, Mapping):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Say what a reader of the figures could overlook.

    Args:
        results: What `judge` returns, and `data`.

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
        results: What `judge` returns, and `colour_only` where it is known.
    """
    test, by_case = results["test"], results["test_by_case"]
    log.info(
        "  %-18s %-24s %s",
        "",
        f"{test['tiles']} tiles",
        f"{by_case['tiles']} cases (mean probability)" if by_case else "",
    )
    for name, title in NAMES.items():
        by_tile = format_estimate(test, name) or "undefined"
        log.info("  %-18s %-24s %s", title, by_tile, (format_estimate(by_case, name) or "undefined") if by_case else "")
    log.info(
        "In brackets: 95%% intervals over %s; none with fewer than 3 of a class, or if all are alike.",
        test["intervals_over"],
    )
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
    if results.get("colour_only"):
        log.info("From colour alone, without any shape: AUROC %s.", format_estimate(results["colour_only"], "auroc"))
