"""Patients with tiles of both classes, as in Kaggle's IDC set: what is said of them, checked by plain loops."""

import csv
import math
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from histo_pl.errors import UserError
from tests.conftest import TINY, compose_config, draw_image, train

Rows = list[tuple[str, bool, float]]  # case, malignant, probability


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty patients, most of them with tiles of both classes; malignant ones are darker."""
    folder = tmp_path_factory.mktemp("idc")
    for patient in range(10253, 10283):
        for label in (0, 1) if patient % 3 else (0,):
            for number in range(4):
                name = f"{patient}_idx5_x{number}001_y1001_class{label}.png"
                draw_image(folder / str(patient) / str(label) / name, zlib.crc32(name.encode()))
    return folder


def run(root: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    data = ("data=folder", f"data.root={root}", "data.positive_class=1", "data.test_fraction=0.5")
    return train(compose_config("train", *data, *TINY, f"run_dir={folder}", *overrides))


def read_rows(folder: Path, split: str = "test") -> Rows:
    with (folder / "predictions.csv").open() as stream:
        return [
            (row["case"], row["malignant"] == "1", float(row["probability"]))
            for row in csv.DictReader(stream)
            if row["split"] == split
        ]


def auroc(rows: Rows) -> float:
    return float(roc_auc_score([malignant for _, malignant, _ in rows], [probability for *_, probability in rows]))


def jackknife_interval(rows: Rows) -> tuple[float, float]:
    """Leave out one patient at a time, among those of his kind; Student's t with Satterthwaite's degrees of freedom."""
    kinds: defaultdict[tuple[bool, ...], list[float]] = defaultdict(list)
    for patient in sorted({case for case, _, _ in rows}):
        kind = tuple(sorted({malignant for case, malignant, _ in rows if case == patient}))
        kinds[kind].append(auroc([row for row in rows if row[0] != patient]))
    variance = its_variance = 0.0
    for values in map(np.array, kinds.values()):
        count, squares = len(values), (values - values.mean()) ** 2
        assert count >= 3
        variance += (count - 1) / count * squares.sum()
        its_variance += (
            (count - 1) ** 2 / count * ((squares**2).mean() - squares.mean() ** 2 * (count - 3) / (count - 1))
        )
    of_class = [len({case for case, malignant, _ in rows if malignant == wanted}) for wanted in (True, False)]
    freedom = min(max(variance**2 / its_variance, 3), min(of_class) - 1)
    value = auroc(rows)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(variance) / (value * (1 - value))
    logit = math.log(value / (1 - value))
    return 1 / (1 + math.exp(reach - logit)), 1 / (1 + math.exp(-reach - logit))


def test_tiles_have_intervals_over_patients_and_no_case_level_is_invented(root: Path, tmp_path: Path) -> None:
    results = run(root, tmp_path / "run")
    rows = read_rows(tmp_path / "run")
    assert results["test"]["auroc"] == pytest.approx(auroc(rows))
    assert results["test"]["intervals"]["auroc"] == pytest.approx(jackknife_interval(rows), abs=1e-4)
    assert (results["test"]["intervals_over"], results["test"]["units"]) == ("cases", len({case for case, *_ in rows}))
    assert results["test_by_case"] is None
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Cases with tiles of both classes" in report
    assert "over cases" in report


def test_a_chosen_truth_and_score_give_a_case_level_and_say_so(root: Path, tmp_path: Path) -> None:
    results = run(root, tmp_path / "run", "case_truth=any", "case_score=max")
    cases: dict[str, dict[str, tuple[bool, float]]] = {}
    for split in ("val", "test"):
        of_case: defaultdict[str, list[tuple[bool, float]]] = defaultdict(list)
        for case, malignant, probability in read_rows(tmp_path / "run", split):
            of_case[case].append((malignant, probability))
        cases[split] = {
            case: (any(one for one, _ in tiles), max(one for _, one in tiles)) for case, tiles in of_case.items()
        }
    found, threshold = results["test_by_case"], results["case_level"]["threshold"]
    assert found["tiles"] == len(cases["test"])
    truth, score = zip(*cases["test"].values(), strict=True)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, score))
    assert found["confusion"]["tp"] == sum(one and value > threshold for one, value in cases["test"].values())
    assert found["confusion"]["fp"] == sum(not one and value > threshold for one, value in cases["test"].values())

    def youden(cut: float) -> float:
        called = {wanted: [v > cut for m, v in cases["val"].values() if m == wanted] for wanted in (True, False)}
        return float(np.mean(called[True]) - np.mean(called[False]))

    assert youden(threshold) == pytest.approx(max(youden(value - 1e-9) for _, value in cases["val"].values()))
    report = (tmp_path / "run" / "report.html").read_text()
    assert "cases (highest probability)" in report
    assert "case_truth=any" in report


def test_a_truth_without_validation_cases_of_both_kinds_is_refused_before_training(root: Path, tmp_path: Path) -> None:
    pure = ",".join(f"'{patient}/**'" for patient in range(10253, 10283) if patient % 3 == 0)
    with pytest.raises(UserError, match="some are malignant and some are not"):
        run(root, tmp_path / "run", f"data.exclude=[{pure}]", "case_truth=any", "case_score=share")
    assert not (tmp_path / "run").exists()
