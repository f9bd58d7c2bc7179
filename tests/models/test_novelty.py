"""Novelty: what is unlike the training tiles is refused, and the share of false alarms is the one asked for."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from histo_pl.errors import UserError
from histo_pl.evaluation.run import evaluate
from histo_pl.inference import Predictor
from histo_pl.inference.run import predict
from histo_pl.models.checkpoint import load_checkpoint, save_model
from histo_pl.models.novelty import Novelty, NoveltyRule, conformal_limit, shrunk_covariance
from histo_pl.models.texture import describe_texture
from tests.conftest import draw_image

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"
Run = Callable[..., dict[str, Any]]


def draw(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.tensor(generator.normal(size=(count, width)) @ generator.normal(size=(width, width)) + 3)


@pytest.mark.parametrize(("count", "width"), [(200, 5), (20, 60), (7, 7)])
def test_the_covariance_is_scikit_learns(count: int, width: int) -> None:
    features = draw(count, width)
    peer = LedoitWolf().fit(features.numpy()).covariance_
    assert shrunk_covariance(features - features.mean(0)).numpy() == pytest.approx(peer, rel=1e-9)


def test_the_distance_is_scipys() -> None:
    features = draw(300, 6)
    novelty = Novelty.fit(features)
    standard = (features - features.mean(0)) / features.std(0)
    inverse = np.linalg.inv(LedoitWolf().fit(standard.numpy()).covariance_)
    peer = [mahalanobis(one, np.zeros(6), inverse) for one in standard[:20].numpy()]
    assert novelty.distance(features[:20]).numpy() == pytest.approx(peer, rel=1e-4)


def test_a_new_tile_exceeds_the_limit_as_often_as_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(2000, 120, generator=generator)
    exceeded = [one[-1] > conformal_limit(one[:-1], 0.05) for one in seen]
    assert np.mean(exceeded) == pytest.approx(0.05, abs=0.015)
    assert conformal_limit(seen[0, :5], 0.05) == pytest.approx(float(seen[0, :5].max()), rel=1e-4)
    assert Novelty.fit(draw(9, 2)).with_limit(seen[0, :98], 0.01).is_guaranteed is False
    assert Novelty.fit(draw(9, 2)).with_limit(seen[0, :99], 0.01).is_guaranteed is True


def test_the_distance_is_that_of_float32_under_mixed_precision() -> None:
    novelty, features = Novelty.fit(draw(50, 6)), draw(9, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = novelty.distance(features)
    assert torch.equal(found, novelty.distance(features))


def test_a_training_in_bfloat16_judges_novelty_as_predict_does(run_training: Run) -> None:
    results = run_training("trainer.precision=bf16-mixed", "data.tiles_per_case=6")
    assert results["novelty"]["limit"] > 0
    with Path(results["run"]["folder"], "predictions.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    model = load_checkpoint(results["run"]["checkpoint"])
    root = Path(results["data"]["root"])
    answers = Predictor(model).predict([root / row["path"] for row in rows])
    for row, found in zip(rows, answers, strict=True):
        assert found.novelty == pytest.approx(float(row["novelty"]), rel=1e-3)
        assert found.probability == pytest.approx(float(row["probability"]), abs=0.02)


def test_features_without_any_spread_do_not_break_it() -> None:
    features = draw(50, 4).clone()
    features[:, 2] = 7
    novelty = Novelty.fit(features)
    assert novelty.distance(features).isfinite().all()
    assert Novelty.fit(torch.ones(5, 3)).distance(torch.ones(2, 3)).isfinite().all()
    with pytest.raises(ValueError, match="not finite"):
        Novelty.fit(torch.full((3, 2), torch.nan))


@pytest.mark.parametrize("share", [0, 1, -0.1, "few", True])
def test_a_share_out_of_range_is_refused(share: Any) -> None:
    with pytest.raises(UserError, match=r"novelty\.false_alarm is out of range"):
        NoveltyRule(share)


@pytest.mark.parametrize("side", [22, 128, 224, 512])
def test_texture_is_finite_and_the_same_for_a_turned_tile(side: int) -> None:
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    found = describe_texture(images)
    assert found.shape == (2, 20 if side == 22 else 32) and found.isfinite().all()
    if side == 128:
        assert torch.allclose(found, describe_texture(images.rot90(1, (2, 3))), atol=1e-3)
    for value in (0, 128, 255):
        assert describe_texture(torch.full_like(images, value)).isfinite().all()


@pytest.mark.parametrize("side", [50, 97, 255, 512, 600, 770])
def test_texture_begins_with_what_numpy_finds_in_double_precision(side: int) -> None:
    images = (draw(2 * 3 * side, side).reshape(2, 3, side, side) * 40 + 128).clamp(0, 255).to(torch.uint8)
    factor = -(-side // 256)
    kept = side // factor
    squares = images.numpy()[..., : kept * factor, : kept * factor].astype(np.float64)
    pixels = squares.reshape(2, 3, kept, factor, kept, factor).mean((3, 5))
    saturation = (pixels.max(1) - pixels.min(1)).reshape(2, -1) / 255
    density = -np.log10((pixels + 1) / 256)
    correlations = [np.corrcoef(one.reshape(3, -1)) for one in density]
    expected = np.column_stack(
        [
            np.log(0.01 + np.stack((saturation.mean(1), saturation.std(1, ddof=1)), 1)),
            np.log(0.02 + density.mean((2, 3))),
            [np.arctanh([found[0, 1], found[0, 2], found[1, 2]]) for found in correlations],
        ]
    )
    np.testing.assert_allclose(describe_texture(images).numpy()[:, :8], expected, atol=2e-4)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(describe_texture(images).numpy()[:, :8], expected, atol=2e-4)


@pytest.mark.parametrize("recipe", [(), ("experiment=linear_probe",)])
def test_odd_pictures_are_refused_before_anything_else(
    run_training: Run, recipe: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run_training(*recipe, "data.tiles_per_case=6", "calibration.refer_error_rate=0.001")
    folder = Path(results["run"]["folder"])
    (tmp_path / "odd").mkdir()
    for name, colour in (("black", (0, 0, 0)), ("blue", (20, 20, 230)), ("green", (60, 180, 40))):
        Image.new("RGB", (48, 48), colour).save(tmp_path / "odd" / f"{name}.png")
    draw_image(tmp_path / "odd" / "noise.png", size=(48, 48))
    assert predict(str(folder), str(tmp_path / "odd"), str(tmp_path / "odd.csv")) == 0
    assert "novelty" in capsys.readouterr().out
    with (tmp_path / "odd.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == ["Unlike training: refer"] * 4
    assert all(float(row["novelty"]) > 1 and 0 <= float(row["probability"]) <= 1 for row in rows)
    with (folder / "predictions.csv").open() as stream:
        known = [row for row in csv.DictReader(stream) if row["split"] == "val"]
    assert all(float(row["novelty"]) <= 1 for row in known)  # the limit is their greatest distance: they are few
    assert results["novelty"]["is_guaranteed"] is False


def test_the_checkpoint_keeps_it_and_views_do_not_change_it(trained: Path, tmp_path: Path) -> None:
    model = load_checkpoint(trained)
    save_model(model, tmp_path / "copy.ckpt")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    answers = [
        Predictor(load_checkpoint(file), "cpu", tta=tta).answers(images).novelty
        for file, tta in ((trained, False), (tmp_path / "copy.ckpt", False), (trained, True))
    ]
    assert answers[0] is not None
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_without_novelty_every_tile_is_answered(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run_training("novelty=false")
    assert results["novelty"] is None
    tile = draw_image(tmp_path / "tile.png", size=(32, 32))
    predict(results["run"]["folder"], str(tile))
    captured = capsys.readouterr()
    assert "cannot tell tiles unlike" in captured.err and "  novelty" not in captured.out


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("*_best.ckpt")), ids=lambda file: file.stem)
def test_an_old_checkpoint_predicts_and_says_that_it_cannot_tell(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(str(file), str(draw_image(tmp_path / "tile.png", size=(32, 32)))) == 0
    captured = capsys.readouterr()
    assert "cannot tell tiles unlike" in captured.err


def test_an_evaluation_counts_the_refused_and_gives_the_others_results(trained: Path, tmp_path: Path) -> None:
    model = load_checkpoint(trained)
    assert model.novelty is not None
    with (trained / "predictions.csv").open() as stream:
        novelty = [float(row["novelty"]) for row in csv.DictReader(stream) if row["split"] == "test"]
    middle = torch.tensor([np.median(novelty) * model.novelty.limit])
    strict = replace(model, novelty=model.novelty.with_limit(middle, 0.5))
    save_model(strict, tmp_path / "strict.ckpt")
    root = json.loads((trained / "results.json").read_text())["data"]["root"]
    results = evaluate(tmp_path / "strict.ckpt", root, run_dir=tmp_path / "run", group_regex="(case\\d+)")
    with (tmp_path / "run" / "predictions.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if not row["seen"]]
    refused = [row for row in rows if float(row["novelty"]) > 1]
    assert 0 < len(refused) < len(rows)
    assert {row["predicted"] for row in refused} == {"Unlike training: refer"}
    assert results["novelty"]["refused"] == len(refused)
    assert results["novelty"]["answered"]["tiles"] == len(rows) - len(refused)
    assert "those unlike the training" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "novelty.png").exists()


def test_most_folds_decide(trained: Path) -> None:
    from histo_pl.models.ensemble import FoldEnsemble

    model = load_checkpoint(trained)
    assert model.novelty is not None
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    own = Predictor(model, "cpu").answers(images).novelty
    assert own is not None
    near, far = (model.novelty.with_limit(torch.tensor([limit]), 0.5) for limit in (1e6, 1e-3))
    for novelties, refused in (((near, far, near), False), ((far, near, far), True), ((near, far), False)):
        folds = FoldEnsemble([model.network] * len(novelties), [1.0] * len(novelties), novelties)
        found = folds.answers_of_folds(images)[1]
        assert found is not None and bool((found > 1).all()) is refused
