"""evaluate.py, cross-validation and what training tells of leaks, on tiny drawn tiles."""

import csv
import json
import logging
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histo_pl.errors import UserError
from histo_pl.evaluation.run import evaluate as evaluate_checkpoint
from histo_pl.evaluation.summarize import summarize
from histo_pl.images import KERAS_RESIZE
from histo_pl.inference import Predictor
from histo_pl.models.ensemble import load_model
from tests.conftest import ROOT, TINY, TINY_DEMO, compose_config, draw_image, evaluate, train

Run = Callable[..., dict[str, Any]]


def run_evaluation(folder: Path, *options: str) -> dict[str, Any]:
    return evaluate(compose_config("evaluate", *options, "data.num_workers=0", f"run_dir={folder}"))


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_python_may_choose_what_the_checkpoint_decides(
    trained: Path, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    tiles = make_folder({"benign": 4, "malignant": 4})
    options = {"num_workers": 0, "run_dir": tmp_path / "own"}
    chosen = evaluate_checkpoint(trained, tiles, resize=KERAS_RESIZE, **options)
    assert chosen["test"]["tiles"] == 8


def test_the_test_set_of_the_training_gives_the_trainings_results(
    trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    options = ("data=demo", *TINY_DEMO, "data.image_size=32", f"data.root={demo_root}")
    found = run_evaluation(tmp_path, f"ckpt={trained}", *options)
    results = json.loads((trained / "results.json").read_text())
    assert found["seen"]["test"] is None
    for name, value in results["test"].items():
        assert found["test"][name] == (value if not isinstance(value, float) else pytest.approx(value, abs=1e-6))
    written = {file.name for file in tmp_path.iterdir()}
    assert {"report.html", "results.json", "predictions.csv", "roc.png", "confusion.png"} <= written


def test_tiles_of_the_training_are_found_by_content_and_counted_apart(
    trained: Path, demo_root: Path, tmp_path: Path
) -> None:
    """All files under other names: the training's 16 of 24 are recognised, the 8 others are the result."""
    parts = Counter(row["split"] for row in rows_of(trained / "split.csv"))
    drawn = json.loads((trained / "results.json").read_text())["data"]["root"]
    for number, tile in enumerate(sorted(Path(drawn).rglob("*.png"))):
        copy = tmp_path / "tiles" / tile.parent.name / f"renamed{number}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tile, copy)
    found = run_evaluation(tmp_path / "out", f"ckpt={trained}", f"data.root={tmp_path / 'tiles'}", "split=all")
    assert (found["seen"]["train"], found["seen"]["val"]) == (parts["train"], parts["val"])
    assert found["seen"]["test"]["tiles"] == parts["train"] + parts["val"]
    assert found["test"]["tiles"] == parts["test"]
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert Counter(row["seen"] for row in rows) == {"train": parts["train"], "val": parts["val"], "": parts["test"]}
    assert "left out of the figures" in (tmp_path / "out" / "report.html").read_text()


def test_a_split_that_is_none_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split is not as expected"):
        run_evaluation(tmp_path, f"ckpt={trained}", "data.root=x", "split=val")


def test_program_evaluates_and_tells_a_mistake_in_one_line(trained: Path, tmp_path: Path) -> None:
    for number in range(4):
        draw_image(tmp_path / "My tiles, (v2)" / ("benign", "malignant")[number % 2] / f"{number}.png", number)
    command = [sys.executable, str(ROOT / "evaluate.py"), f"ckpt={trained}", "data=folder", "split=all"]
    for root, code in (("My tiles, (v2)", 0), ("nowhere", 1)):
        done = subprocess.run(
            [*command, f"data.root={root}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    assert len(list(tmp_path.glob("evaluations/*/*/report.html"))) == 1


def test_threshold_temperature_and_band_are_kept_and_used(run_training: Run, tmp_path: Path) -> None:
    options = ("calibration.threshold=sensitivity", "calibration.refer_error_rate=0.1", "trainer.max_epochs=3")
    results = run_training(*options)
    model = load_model(tmp_path / "run" / "best.ckpt")
    decision = results["decision"]
    assert (model.threshold, model.temperature) == (decision["threshold"], decision["temperature"])
    assert list(model.refer or ()) == list(decision["refer"])
    assert model.temperature != 1.0
    rows = rows_of(tmp_path / "run" / "predictions.csv")
    val = [row for row in rows if row["split"] == "val" and row["malignant"] == "1"]
    assert np.mean([float(row["probability"]) > model.threshold for row in val]) >= 0.95
    root = Path(results["data"]["root"])
    for answer, row in zip(Predictor(model, "cpu").predict([root / row["path"] for row in rows]), rows, strict=True):
        assert answer.probability == pytest.approx(float(row["probability"]), abs=1e-5)
        assert answer.label == row["predicted"]


def test_the_default_training_says_how_many_test_tiles_are_copies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "tiles"
    for part, count in (("train", 10), ("test", 4)):
        for kind in ("benign", "malignant"):
            for number in range(count):
                draw_image(root / part / kind / f"{number}.png", 1000 * len(part) + 100 * len(kind) + number)
    for number in range(3):
        shutil.copyfile(root / "train" / "benign" / f"{number}.png", root / "test" / "benign" / f"copy{number}.png")
    config = compose_config("train", "data=folder", *TINY, f"data.root={root}", f"run_dir={tmp_path / 'run'}")
    with caplog.at_level(logging.WARNING, "histo_pl"):
        results = train(config)
    assert "3 of the 11 test tiles are exact copies of training or validation tiles" in caplog.text
    assert results["warnings"][0] in (tmp_path / "run" / "report.html").read_text()


def test_a_test_set_that_trained_the_first_weights_is_told(run_training: Run, trained: Path) -> None:
    results = run_training(f"model.weights={trained / 'best.ckpt'}", "seed=3")
    assert "had a part in the training of the weights that this run starts from" in results["warnings"][0]


def test_program_cross_validates_and_summarizes_in_one_command(tmp_path: Path, demo_root: Path) -> None:
    options = [option for option in TINY if option != "data.image_size=32"]
    command = [sys.executable, str(ROOT / "train.py"), "experiment=crossval", *options, "data.image_size=32"]
    done = subprocess.run(
        [*command, *TINY_DEMO, f"data.root={demo_root}", "data.folds=3", "hydra.sweeper.params={data.fold:'0,1,2'}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("multirun/*/*/summary.json")
    summary = json.loads(file.read_text())
    assert summary["runs"] == ["0", "1", "2"]
    pooled = summary["pooled"]
    assert (pooled["test"]["tiles"], pooled["test_by_case"]["tiles"]) == (24, 12)
    tested = [row["path"] for run in "012" for row in rows_of(file.parent / run / "predictions.csv")]
    assert len(set(tested)) == 24
    assert pooled["colour_only"]["tiles"] == 24
    values = summary["metrics"]["accuracy"]["values"]
    assert summary["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert "All folds' test tiles together" in done.stdout
    assert file.with_name("summary.png").is_file()


def test_runs_that_are_no_folds_are_not_pooled(trained: Path, tmp_path: Path) -> None:
    for name in "01":
        shutil.copytree(trained, tmp_path / name, ignore=shutil.ignore_patterns("*.ckpt"))
    assert "All folds" not in summarize(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["pooled"] is None
    with pytest.raises(UserError, match="nothing to summarize"):
        summarize(tmp_path / "0")


def test_a_summary_names_the_folds_without_a_result(trained: Path, tmp_path: Path) -> None:
    for fold in (0, 2):
        shutil.copytree(trained, tmp_path / str(fold), ignore=shutil.ignore_patterns("*.ckpt"))
        file = tmp_path / str(fold) / "results.json"
        results = json.loads(file.read_text())
        results["data"]["fold"] = [fold, 4]
        file.write_text(json.dumps(results))
    assert "Without a result: data.fold=1, 3." in summarize(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["missing_folds"], summary["pooled"]) == ([1, 3], None)


def test_what_a_reader_could_overlook_is_said(run_training: Run, tmp_path: Path) -> None:
    """A network that calls every tile malignant has an accuracy all the same."""
    results = run_training("calibration.threshold=0", "calibration.refer_error_rate=0")
    assert results["test"]["specificity"] == 0
    assert "Every tile was called malignant" in (tmp_path / "run" / "report.html").read_text()
