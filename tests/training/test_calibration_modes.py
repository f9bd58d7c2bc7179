"""Choices made on the validation tiles hold in every mode: weighted losses, and the mean of eight views."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histo_pl.errors import UserError
from histo_pl.inference import Predictor
from histo_pl.inference.run import predict
from histo_pl.models.ensemble import load_model
from tests.conftest import draw_image

Run = Callable[..., dict[str, Any]]


def test_the_rarer_class_is_made_up_for_once(run_training: Run) -> None:
    with pytest.raises(UserError, match="made up for twice"):
        run_training("pos_weight=balanced", "data.balanced=true")


def test_the_best_epoch_is_chosen_by_the_unweighted_loss(run_training: Run) -> None:
    """A weight of the training loss changes the weights that are learnt, and nothing of how they are judged."""
    results = run_training("pos_weight=5", folder="weighted")
    with (Path(results["run"]["folder"]) / "predictions.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "val"]
    temperature = results["decision"]["temperature"]
    malignant = np.array([row["malignant"] == "1" for row in rows])
    probability = np.array([float(row["probability"]) for row in rows])
    logit = temperature * np.log(probability / (1 - probability))
    loss = np.logaddexp(0, np.where(malignant, -logit, logit)).mean()
    assert results["validation"]["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("recipe", [(), ("experiment=linear_probe",)])
def test_eight_views_have_a_decision_of_their_own(run_training: Run, recipe: tuple[str, ...], tmp_path: Path) -> None:
    promised = ("calibration.threshold=sensitivity", "calibration.least_sensitivity=0.9", "calibration.tta=true")
    results = run_training(*recipe, *promised, "data.tiles_per_case=4", folder="run")
    folder = Path(results["run"]["folder"])
    decision = results["decision_tta"]
    assert decision["threshold"] != results["decision"]["threshold"]
    model = load_model(folder / "best.ckpt")
    root = results["data"]["root"]
    with (folder / "split.csv").open() as stream:
        validation = [Path(root, row["path"]) for row in csv.DictReader(stream) if row["split"] == "val"]
    answers = list(Predictor(model, "cpu", tta=True).predict(validation))
    malignant = [answer for answer in answers if "malignant" in answer.file]
    called = [answer.label == "Malignant" for answer in malignant]
    assert np.mean(called) >= 0.9
    assert {answer.label == "Malignant" for answer in answers if (answer.probability or 0) > decision["threshold"]} <= {
        True
    }
    single = next(iter(Predictor(model, "cpu").predict(validation[:1])))
    assert single.probability != answers[0].probability


def test_eight_views_without_a_decision_are_called_uncalibrated(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tile = draw_image(tmp_path / "tile.png")
    assert predict(str(trained / "best.ckpt"), str(tile), tta=True) == 0
    assert "tta=true is uncalibrated" in capsys.readouterr().err
    assert predict(str(trained / "best.ckpt"), str(tile)) == 0
    assert "uncalibrated" not in capsys.readouterr().err
