"""Summary of several runs in one table, with the pooled test tiles of a cross-validation."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from histo_pl.errors import UserError
from histo_pl.evaluation import plots
from histo_pl.evaluation.cases import CaseRule, by_case, explain_cases, summarize_cases
from histo_pl.evaluation.metrics import NAMES
from histo_pl.evaluation.predictions import Predictions, format_estimate
from histo_pl.storage import atomic_write_text
from histo_pl.tables import read_table

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
    _check_tested(files, runs)
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


def _check_tested(files: Sequence[Path], runs: Sequence[dict[str, Any]]) -> None:
    untested = [file for file, run in zip(files, runs, strict=True) if run["test"] is None]
    if untested:
        raise UserError(
            f"A run has no test to summarize, as its folder has train and val alone. Expected runs with a test. "
            f"Received: {untested[0].parent}"
        )


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
    tested = [[row for row in read_table(file, "predictions.csv", NEEDED) if row["split"] == "test"] for file in files]
    if len({row["path"] for rows in tested for row in rows}) != sum(map(len, tested)):
        return None
    pooled = _pool_level(
        [_predictions(rows, "probability") for rows in tested], [_rule(run, "case_level") for run in runs]
    )
    levels = {"test": pooled[0], "test_by_case": pooled[1], "case_note": pooled[2], "colour_only": None}
    if all(row.get("colour_only") for rows in tested for row in rows):
        baseline = _pool_level(
            [_predictions(rows, "colour_only") for rows in tested],
            [_rule(run, "colour_only_case_rule") for run in runs],
        )
        levels |= {"colour_only": baseline[0], "colour_only_by_case": baseline[1]}
    return levels


def _pool_level(
    tested: Sequence[Predictions], rules: Sequence[CaseRule]
) -> tuple[dict[str, Any], dict[str, Any] | None, str | None]:
    """Summarize all folds' tiles and, each fold's called by its own rule, their cases; say what cases are."""
    pooled, first = Predictions.join(tested), replace(rules[0], threshold=None)
    if {rule.score for rule in rules} != {first.score}:
        return pooled.summary(), None, "The folds score their cases differently: there is no result by case."
    by_fold = [by_case(tiles, rule) for tiles, rule in zip(tested, rules, strict=True)]
    known = [cases for cases in by_fold if cases is not None]
    whole = Predictions.join(known) if len(known) == len(by_fold) else None
    return pooled.summary(), summarize_cases(whole, first), explain_cases(pooled, first)


def _rule(run: Mapping[str, Any], key: str) -> CaseRule:
    """Read a run's rule, which one of an earlier version lacks."""
    settings = run.get(key) or {}
    return CaseRule(**{name: settings[name] for name in ("truth", "score", "threshold") if name in settings})


def _predictions(rows: Sequence[dict[str, str]], column: str) -> Predictions:
    thresholds = [0.5 if column == "colour_only" else float(row["threshold"]) for row in rows]
    return Predictions(
        path=np.array([row["path"] for row in rows], np.str_),
        case=np.array([row["case"] for row in rows], np.str_),
        group=np.array([row.get("group") or row["case"] or row["path"] for row in rows], np.str_),
        malignant=np.array([row["malignant"] == "1" for row in rows], bool),
        probability=np.array([float(row[column]) for row in rows]),
        threshold=np.array(thresholds),
        novelty=np.array([float(row.get("novelty") or "nan") for row in rows]),
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
        + f"; 95% intervals over the {test['units']} {test['intervals_over']}",
        f"  {'':18} " + " ".join(f"{name:24}" for name in known),
        *(
            f"  {title:18} " + " ".join(f"{format_estimate(level, name):24}" for level in known.values())
            for name, title in NAMES.items()
        ),
        *([pooled["case_note"]] if pooled["case_note"] else []),
    ]
