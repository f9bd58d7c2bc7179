"""Robustness: alterations do what they say, and each tile is answered by models that have not seen it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from histo_pl.__main__ import main
from histo_pl.errors import UserError
from histo_pl.evaluation.robustness import robustness
from histo_pl.evaluation.run import evaluate
from histo_pl.evaluation.shifts import shifts
from tests.conftest import TINY, TINY_DEMO, compose_config, train


@pytest.mark.parametrize("kind", dict.fromkeys(shift.kind for shift in shifts()))
def test_an_alteration_grows_with_its_strength(kind: str) -> None:
    images = torch.randint(60, 200, (2, 3, 224, 224), dtype=torch.uint8)
    images = torch.nn.functional.avg_pool2d(images.float(), 3, 1, 1).to(torch.uint8)
    changed = [shift.change(images) for shift in shifts() if shift.kind == kind]
    assert all(found.shape == images.shape and found.dtype == torch.uint8 for found in changed)
    distances = [float((found.float() - images.float()).abs().mean()) for found in changed]
    assert distances[0] > 0
    assert distances == sorted(distances) or "magnification" in kind  # of smooth noise a zoom makes other noise


def test_the_plain_row_is_the_evaluation(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = json.loads((trained / "results.json").read_text())["data"]["root"]
    keys = [r"data.group_regex=(case\d+)", r"data.columns.half=case0\d([0-4])?", "data.num_workers=0"]
    main(["robustness", str(trained), root, *keys, "--out", "here", "--device", "cpu"])
    told = capsys.readouterr().out
    assert "JPEG quality 15" in told and "by half" in told
    results = evaluate(trained, root, run_dir=tmp_path / "evaluation", group_regex=r"(case\d+)", device="cpu")
    with (tmp_path / "here" / "robustness.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 1 + len(shifts())
    assert float(rows[0]["auroc"]) == pytest.approx(results["test"]["auroc"])
    assert float(rows[0]["balanced_accuracy"]) == pytest.approx(results["test"]["balanced_accuracy"])
    assert float(rows[0]["refused"]) == pytest.approx(results["novelty"]["share"])
    with (tmp_path / "here" / "columns.csv").open() as stream:
        assert sum(int(row["tiles"]) for row in csv.DictReader(stream)) == results["test"]["tiles"]
    assert (tmp_path / "here" / "robustness.png").stat().st_size > 0
    with pytest.raises(UserError, match="--out"):
        robustness(trained, root, out="here")


def test_each_tile_of_a_cross_validation_is_answered_by_the_fold_that_tests_it(tmp_path: Path, demo_root: Path) -> None:
    sweep, probabilities = tmp_path / "sweep", {}
    for fold in range(3):
        own = ("data.folds=3", f"data.fold={fold}", f"run_dir={sweep / str(fold)}")
        train(compose_config("train", *TINY, *TINY_DEMO, f"data.root={demo_root}", *own))
        with (sweep / str(fold) / "predictions.csv").open() as stream:
            rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
        probabilities |= {row["path"]: (row["malignant"] == "1", float(row["probability"])) for row in rows}
    root = json.loads((sweep / "0" / "results.json").read_text())["data"]["root"]
    robustness(sweep, root, out=tmp_path / "out", device="cpu", num_workers=0)
    with (tmp_path / "out" / "robustness.csv").open() as stream:
        plain = next(csv.DictReader(stream))
    truth, scores = np.array(list(probabilities.values())).T
    assert int(plain["tiles"]) == len(probabilities) == 24
    assert float(plain["auroc"]) == pytest.approx(roc_auc_score(truth, scores))


def test_a_model_is_not_asked_about_its_training(trained: Path, tmp_path: Path) -> None:
    with (trained / "split.csv").open() as stream:
        seen = [row["path"] for row in csv.DictReader(stream) if row["split"] == "train"]
    root = Path(json.loads((trained / "results.json").read_text())["data"]["root"])
    for path in seen:
        target = tmp_path / "seen" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((root / path).read_bytes())
    with pytest.raises(UserError, match="Every tile, or its patient, had a part"):
        robustness(trained, tmp_path / "seen", out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
