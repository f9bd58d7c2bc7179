"""Summary of several runs in one table, with the pooled test tiles of a cross-validation."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from histo_pl.data.csv import read_table
from histo_pl.errors import UserError
from histo_pl.evaluation import plots
from histo_pl.evaluation.metrics import NAMES
from histo_pl.evaluation.predictions import Predictions, format_estimate
from histo_pl.storage import atomic_write_text

SHOWN = ("auroc", "average_precision", "balanced_accuracy", "sensitivity", "specificity")
NEEDED = ("path", "class", "case", "split", "malignant", "probability", "threshold")


def summarize(folder: Path) -> str:
    """Compare the runs below a folder, and pool their test tiles if each was tested once.

    Writes summary.json and summary.png into the folder.

    Args:
        folder: Such as `multirun/DAY/TIME`; every results.json below it is one run.

    Returns:
        A table for people.

    Raises:
        UserError: There are fewer than two runs.
    """
    files = sorted(folder.glob("**/results.json"), key=_number_of)
    if len(files) < 2:  # noqa: PLR2004
        raise UserError(
            f"There is nothing to summarize. Expected a folder with the folders of at least two runs, such as "
            f"multirun/DAY/TIME. Received: {folder} with {len(files)}"
        )
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    missing = _missing_folds(runs)
    summary = {
        "runs": [file.parent.relative_to(folder).as_posix() for file in files],
        "data": sorted({run["data"]["name"] for run in runs}),
        "metrics": {name: _spread([run["test"][name] for run in runs]) for name in NAMES},
        "missing_folds": missing,
        "pooled": _pool([file.with_name("predictions.csv") for file in files], runs),
    }
    with atomic_write_text(folder / "summary.json") as stream:
        stream.write(json.dumps(summary, indent=2) + "\n")
    plots.save({"summary": _picture(summary)}, folder)
    return _table(summary, folder)


def _number_of(file: Path) -> tuple[bool, int, str]:
    """Sort key: Hydra numbers its runs."""
    name = file.parent.name
    return (not name.isdigit(), int(name) if name.isdigit() else 0, str(file))


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.mean(known) if known else None,
        "standard_deviation": statistics.stdev(known) if len(known) > 1 else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
        "values": list(values),
    }


def _missing_folds(runs: Sequence[dict[str, Any]]) -> list[int]:
    """List the folds, from 0, without a result; empty where the runs are no folds."""
    folds = [run["data"].get("fold") for run in runs]
    if None in folds or len({count for _, count in folds}) != 1:
        return []
    return sorted(set(range(folds[0][1])) - {number for number, _ in folds})


def _pool(files: Sequence[Path], runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Join all runs' test tiles; None if they are not the folds of one cross-validation."""
    folds = [run["data"].get("fold") for run in runs]
    if None in folds or sorted(folds) != [[number, len(folds)] for number in range(len(folds))]:
        return None
    rows = [row for file in files for row in read_table(file, "predictions.csv", NEEDED) if row["split"] == "test"]
    if len({row["path"] for row in rows}) != len(rows):
        return None
    scores = _scores(rows, "probability", [float(row["threshold"]) for row in rows])
    pooled = {"test": scores.summary(), "test_by_case": scores.summary_by_case(), "colour_only": None}
    if all(row.get("colour_only") for row in rows):
        baseline = _scores(rows, "colour_only", [0.5] * len(rows))
        pooled |= {"colour_only": baseline.summary(), "colour_only_by_case": baseline.summary_by_case()}
    return pooled


def _scores(rows: Sequence[dict[str, str]], column: str, thresholds: Sequence[float]) -> Predictions:
    return Predictions(
        path=np.array([row["path"] for row in rows], np.str_),
        case=np.array([row["case"] for row in rows], np.str_),
        malignant=np.array([row["malignant"] == "1" for row in rows], bool),
        probability=np.array([float(row[column]) for row in rows]),
        threshold=np.array(thresholds),
    )


def _picture(summary: dict[str, Any]) -> Any:  # noqa: ANN401
    pooled = summary["pooled"]
    values = {NAMES[name]: summary["metrics"][name]["values"] for name in SHOWN}
    ends = {
        NAMES[name]: [None] * 3 if pooled is None else [pooled["test"][name], *_ends(pooled["test"], name)]
        for name in SHOWN
    }
    return plots.plot_folds(values, ends)


def _ends(level: dict[str, Any], name: str) -> list[float | None]:
    return level["intervals"][name] or [None, None]


def _table(summary: dict[str, Any], folder: Path) -> str:
    lines = [
        f"{len(summary['runs'])} runs on {', '.join(summary['data'])}: mean +- standard deviation, then every run",
        *(_line(title, summary["metrics"][name]) for name, title in NAMES.items()),
    ]
    if summary["missing_folds"]:
        missing = ", ".join(map(str, summary["missing_folds"]))
        lines += ["", f"Without a result: data.fold={missing}. Not every tile was tested, so the folds are not pooled."]
    pooled = summary["pooled"]
    if pooled:
        lines += ["", *_pooled_lines(pooled)]
    return "\n".join([*lines, "", f"Written: {folder / 'summary.json'} and summary.png"])


def _line(title: str, spread: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "   -" if value is None else f"{value:.3f}"

    values = " ".join(number(value) for value in spread["values"])
    return f"  {title:18} {number(spread['mean'])} +- {number(spread['standard_deviation'])}   {values}"


def _pooled_lines(pooled: dict[str, Any]) -> list[str]:
    levels = {"tiles": pooled["test"], "cases": pooled["test_by_case"]}
    if pooled["colour_only"]:
        levels |= {"colour alone, tiles": pooled["colour_only"], "colour alone, cases": pooled["colour_only_by_case"]}
    known = {name: level for name, level in levels.items() if level}
    test = pooled["test"]
    return [
        f"All folds' test tiles together, each tested once: {test['tiles']} tiles"
        + (f", {test['cases']} cases" if test["cases"] else "")
        + f"; 95% intervals over {test['intervals_over']}",
        f"  {'':18} " + " ".join(f"{name:24}" for name in known),
        *(
            f"  {title:18} " + " ".join(f"{format_estimate(level, name):24}" for level in known.values())
            for name, title in NAMES.items()
        ),
    ]
