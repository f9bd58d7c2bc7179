"""All folds of a cross-validation as one model."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from histo_pl.errors import UserError
from histo_pl.evaluation.run import evaluate
from histo_pl.inference import Predictor
from histo_pl.inference.run import predict
from histo_pl.models.checkpoint import find_checkpoint, load_checkpoint, save_model
from histo_pl.models.ensemble import FoldEnsemble, load_model
from tests.conftest import TINY, TINY_DEMO, compose_config, draw_image, train

FOLDS = 3


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, demo_root: Path) -> Path:
    """A cross-validation of linear probes, which share their encoder."""
    folder = tmp_path_factory.mktemp("multirun")
    for fold in range(FOLDS):
        own = (f"data.folds={FOLDS}", f"data.fold={fold}", f"run_dir={folder / str(fold)}")
        store = f"embeddings.store.folder={folder / 'store'}"
        options = ("experiment=linear_probe", f"data.root={demo_root}", *TINY_DEMO, *TINY, store, *own)
        train(compose_config("train", *options))
    return folder


def test_the_answer_is_the_mean_of_the_calibrated_folds(folds: Path, tmp_path: Path) -> None:
    tiles = [draw_image(tmp_path / f"{number}.png", number, (32, 32)) for number in range(5)]
    single = [
        [float(answer.probability or 0) for answer in Predictor(load_checkpoint(file), "cpu").predict(tiles)]
        for file in sorted(folds.glob("*/best.ckpt"))
    ]
    model = load_model(folds)
    assert isinstance(model.network, FoldEnsemble) and model.network.shares_encoder
    answers = list(Predictor(model, "cpu").predict(tiles))
    assert [answer.probability for answer in answers] == pytest.approx(np.mean(single, 0), abs=1e-6)
    assert [answer.spread for answer in answers] == pytest.approx(np.std(single, 0), abs=1e-6)
    thresholds = [load_checkpoint(file).threshold for file in folds.glob("*/best.ckpt")]
    assert model.threshold == pytest.approx(np.mean(thresholds))


def test_a_shared_encoder_runs_once_and_changes_nothing(folds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = load_model(folds).network
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    runs: list[int] = []
    for one in network.networks:
        one.backbone.encoder.register_forward_hook(lambda *_: runs.append(1))
    with torch.inference_mode():
        together = network.answers_of_folds(images)[0]
        assert len(runs) == 1
        network.shares_encoder = False
        assert torch.allclose(together, network.answers_of_folds(images)[0])
    assert len(runs) == 1 + FOLDS


def test_predict_and_evaluate_take_the_folder(folds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tile = draw_image(tmp_path / "tile.png", size=(32, 32))
    assert predict(str(folds), str(tile), str(tmp_path / "out.csv")) == 0
    assert "spread" in capsys.readouterr().out
    with (tmp_path / "out.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert 0 <= float(row["spread"]) <= 0.5
    root = json.loads((folds / "0" / "results.json").read_text())["data"]["root"]
    results = evaluate(folds, root, run_dir=tmp_path / "run", group_regex="(case\\d+)")
    assert results["seen"]["train"] + results["seen"]["val"] == results["test"]["tiles"]  # every tile is in some fold
    assert "3 folds" in results["checkpoint"]["trained_on"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finished": False}, "0 is not finished"),
        ({"image_size": 48}, "another network, size, data or class"),
        ({"data": {"positive_class": "benign", "negative_class": "malignant"}}, "another network, size, data or class"),
        ({"data": {"fold": None}}, "0 is no fold"),
    ],
)
def test_folds_that_do_not_belong_together_are_one_error(
    folds: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(folds, tmp_path / "folds")
    file = tmp_path / "folds" / "0" / "best.ckpt"
    model = load_checkpoint(file)
    if "data" in change:
        change = {"data": {**model.data, **change["data"]}}
    save_model(replace(model, **change), file)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "folds")


def test_a_missing_fold_is_named(folds: Path, tmp_path: Path) -> None:
    shutil.copytree(folds / "0", tmp_path / "0")
    shutil.copytree(folds / "2", tmp_path / "2")
    with pytest.raises(UserError, match=r"there are \[0, 2\] of 3 folds"):
        load_model(find_checkpoint(str(tmp_path)))
