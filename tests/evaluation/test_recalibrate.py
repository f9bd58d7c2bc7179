"""Recalibration: a shift of the logits is found, few tiles do no harm, and the new checkpoint says what it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize

from histo_pl.__main__ import main
from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Calibration, read_rule, sigmoid
from histo_pl.evaluation.metrics import measure
from histo_pl.evaluation.platt import OFFSET_SCALE, SLOPE_DEVIATION, fit_shift, move_band
from histo_pl.evaluation.recalibrate import recalibrate
from histo_pl.inference import Predictor
from histo_pl.inference.run import predict
from histo_pl.models.checkpoint import load_checkpoint
from tests.conftest import draw_image


def simulate(count: int, seed: int, offset: float = -2.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits that would be calibrated, had they not been moved, and the truth."""
    generator = np.random.default_rng(seed)
    malignant = generator.random(count) < 0.5
    return generator.normal(np.where(malignant, 1.5, -1.5), 3**0.5) - offset, malignant


@pytest.mark.parametrize("count", [6, 40])
def test_slope_and_offset_are_those_of_scipys_minimum(count: int) -> None:
    logits, malignant = simulate(count, 3)

    def loss(at: np.ndarray) -> float:
        moved = np.exp(at[0]) * logits + at[1]
        prior = (at[0] / SLOPE_DEVIATION) ** 2 / 2 + np.log1p((at[1] / OFFSET_SCALE) ** 2)
        return float((np.logaddexp(0, moved) - malignant * moved).sum() + prior)

    found_at = [minimize(loss, np.array([0.0, offset]), method="BFGS").x for offset in np.linspace(-4, 4, 9)]
    peer = min(found_at, key=loss)
    found = fit_shift(logits, malignant, 0.5, "fixed")
    assert (np.log(found.slope), found.offset) == pytest.approx(peer, abs=1e-3)


def test_probabilities_become_true_and_six_labels_do_no_harm() -> None:
    for labels, greatest_ece in ((200, 0.05), (6, 1.0)):
        losses, eces = [], []
        for seed in range(50):
            logits, malignant = simulate(labels + 2000, seed)
            shift = fit_shift(logits[:labels], malignant[:labels], 0.5, "fixed")
            moved = [measure(sigmoid(one[labels:]), malignant[labels:], 0.5) for one in (logits, shift.logits(logits))]
            losses.append([values["log_loss"].item() for values in moved])
            eces.append(moved[1]["ece"].item())
        before, after = np.mean(losses, 0)
        assert after <= before
        assert np.mean(eces) <= greatest_ece


def test_the_decision_does_not_depend_on_how_many_of_each_class_were_labelled() -> None:
    logits, malignant = simulate(4000, 0)
    rare = malignant | (np.arange(4000) % 10 == 0)
    even, uneven = (fit_shift(logits[chosen], malignant[chosen], 0.5, "fixed") for chosen in (slice(None), rare))
    boundaries = [(np.log(s.threshold / (1 - s.threshold)) - s.offset) / s.slope for s in (even, uneven)]
    assert boundaries[0] == pytest.approx(boundaries[1], abs=0.3)
    assert even.threshold == pytest.approx(0.5, abs=0.02) and uneven.threshold > 0.8


@pytest.mark.parametrize("threshold", ["youden", "sensitivity", 0.3])
def test_a_rule_is_read_back_from_its_name(threshold: float | str) -> None:
    logits, malignant = simulate(60, 1)
    decision = Calibration(threshold=threshold, least_sensitivity=0.9).choose(logits, malignant)
    name, least = read_rule(decision.rule)
    assert name == (threshold if isinstance(threshold, str) else None)
    assert least == (0.9 if threshold == "sensitivity" else 0)


@pytest.fixture
def elsewhere(trained: Path, tmp_path: Path) -> Path:
    """The tiles of the demo, darker and redder: four patients of each class."""
    root = Path(json.loads((trained / "results.json").read_text())["data"]["root"])
    for number, file in enumerate(sorted(root.glob("*/*.png"))):
        pixels = np.asarray(Image.open(file).convert("RGB")) * np.array([0.9, 0.5, 0.6])
        target = tmp_path / "elsewhere" / file.parent.name / f"p{number % 4}_{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(target)
    return tmp_path / "elsewhere"


def test_a_band_of_uncertainty_moves_with_the_threshold() -> None:
    assert move_band((0.4, 0.6), 0.5, 0.5) == pytest.approx((0.4, 0.6))
    low, high = move_band((0.6, 0.85), 0.75, 0.6) or (0, 0)
    assert low < 0.6 < high
    assert np.log(high / (1 - high)) - np.log(low / (1 - low)) == pytest.approx(np.log(0.85 / 0.15) - np.log(0.6 / 0.4))
    assert move_band((0.0, 1.0), 0.5, 0.7) == (0.0, 1.0) and move_band(None, 0.5, 0.7) is None


def test_the_new_checkpoint_moves_the_logits_and_names_both_data_sets(
    trained: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "best.ckpt").read_bytes()
    out = tmp_path / "theirs.ckpt"
    keys = [r"data.group_regex=(p\d)_(?:case\d+)", "data.name=Elsewhere"]
    main(["recalibrate", str(trained), str(out), "--data", str(elsewhere), *keys])
    told = capsys.readouterr().out
    assert "cross-validated" in told and "balanced accuracy" in told and str(out.name) in told
    assert (trained / "best.ckpt").read_bytes() == before
    old, new = load_checkpoint(trained), load_checkpoint(out)
    (facts,) = new.data["recalibrated_on"]
    assert "recalibrated on Elsewhere" in new.trained_on and old.data["name"] in new.trained_on
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    was, now = (Predictor(model, "cpu").logits(images).double() / model.temperature for model in (old, new))
    assert torch.allclose(now, facts["slope"] * was + facts["offset"], atol=1e-4)
    assert len(new.training_hashes) > len(old.training_hashes) and len(new.training_cases) == 2
    assert old.novelty is not None and new.novelty is not None and new.novelty.limit >= old.novelty.limit
    answers = list(Predictor(new, "cpu").predict(str(elsewhere)))
    assert not [answer for answer in answers if answer.label == "Unlike training: refer"]
    predict(str(out), str(draw_image(tmp_path / "noise.png", size=(32, 32))), tta=True)
    captured = capsys.readouterr()
    assert "uncalibrated" in captured.err and "Unlike training" in captured.out


def test_a_checkpoint_can_be_recalibrated_again(trained: Path, elsewhere: Path, tmp_path: Path) -> None:
    recalibrate(trained, tmp_path / "once.ckpt", elsewhere, name="A")
    for file in elsewhere.glob("*/*.png"):
        Image.open(file).rotate(90).save(file)
    recalibrate(tmp_path / "once.ckpt", tmp_path / "twice.ckpt", elsewhere, name="B")
    assert load_checkpoint(tmp_path / "twice.ckpt").trained_on.endswith("recalibrated on A, recalibrated on B")


def test_mistakes_are_told_and_nothing_is_overwritten(
    trained: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "theirs.ckpt"
    with pytest.raises(UserError, match=r"ends in \.ckpt"):
        recalibrate(trained, tmp_path / "theirs.pt", elsewhere)
    with pytest.raises(UserError, match="does not exist"):
        recalibrate(trained, tmp_path / "nowhere" / "theirs.ckpt", elsewhere)
    out.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        recalibrate(trained, out, elsewhere)
    assert out.read_text() == "mine"
    out.unlink()
    for file in sorted(elsewhere.glob("malignant/*.png"))[2:]:
        file.unlink()
    with pytest.raises(UserError, match="Received: 2 malignant and"):
        recalibrate(trained, out, elsewhere)
    with pytest.raises(SystemExit) as stopped:
        main(["recalibrate", str(trained), str(out), "--data", str(elsewhere), str(tmp_path)])
    assert "one folder" in str(stopped.value.code)
    assert not out.exists()


def test_three_of_each_class_are_enough(trained: Path, elsewhere: Path, tmp_path: Path) -> None:
    for class_name in ("benign", "malignant"):
        for file in sorted(elsewhere.glob(f"{class_name}/*.png"))[3:]:
            file.unlink()
    told = recalibrate(trained, tmp_path / "theirs.ckpt", elsewhere)
    assert "of nan" not in told and "6 tiles, 3 malignant" in told
    told = recalibrate(trained, tmp_path / "by_case.ckpt", elsewhere, group_regex="(p[0-3])_")
    assert "of nan" not in told and "single case" in told


def test_tiles_of_patients_of_the_training_are_left_out(trained: Path, elsewhere: Path, tmp_path: Path) -> None:
    told = recalibrate(trained, tmp_path / "theirs.ckpt", elsewhere)
    with pytest.raises(UserError, match="nor their patients"):
        recalibrate(trained, tmp_path / "known.ckpt", elsewhere, group_regex=r"(case\d+)")
    assert "left out, as they" not in told


def test_tiles_of_the_training_are_left_out(trained: Path, tmp_path: Path) -> None:
    root = json.loads((trained / "results.json").read_text())["data"]["root"]
    with pytest.raises(UserError, match="had no part in the training"):
        recalibrate(trained, tmp_path / "theirs.ckpt", root)


def test_a_cross_validation_is_refused_by_name(trained: Path, elsewhere: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    (sweep / "0").mkdir(parents=True)
    (sweep / "0" / "best.ckpt").write_bytes((trained / "best.ckpt").read_bytes())
    with pytest.raises(UserError, match="one by one"):
        recalibrate(sweep, tmp_path / "theirs.ckpt", elsewhere)
