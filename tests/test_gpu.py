"""Paths that a GPU alone takes, skipped without one; evaluation, folds and recalibration take it in their own tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from histo_pl.inference import Predictor
from histo_pl.models.ensemble import load_model
from tests.conftest import draw_image

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
Run = Callable[..., dict[str, Any]]
GPU = "trainer=gpu"


def losses(results: dict[str, Any]) -> list[float]:
    return [results["validation"]["loss"], results["test"]["log_loss"]]


@pytest.mark.parametrize("augment", ["keras", "none"])
def test_tiles_on_the_device_train_as_tiles_from_files(run_training: Run, augment: str) -> None:
    device = run_training(GPU, f"augment={augment}", "data.cache=device", folder="device")
    files = run_training(GPU, f"augment={augment}", "data.cache=none", folder="files")
    assert losses(device) == pytest.approx(losses(files), abs=1e-5)


def test_a_gpu_trains_as_a_processor(run_training: Run) -> None:
    gpu, cpu = run_training(GPU, folder="gpu"), run_training("trainer=cpu", folder="cpu")
    assert losses(gpu) == pytest.approx(losses(cpu), abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [("experiment=fast_gpu", "trainer=amp"), ("trainer=amp", "trainer.accelerator=gpu"), (GPU, "trainer.compile=true")],
)
def test_fast_settings_train(run_training: Run, options: tuple[str, ...]) -> None:
    fast = run_training(*options, folder="fast")
    assert losses(fast) == pytest.approx(losses(run_training(GPU, folder="plain")), abs=0.05)


def test_a_run_goes_on_as_if_it_had_not_stopped(run_training: Run, tmp_path: Path) -> None:
    whole = run_training(GPU, "trainer.max_epochs=3", folder="whole")
    run_training(GPU, "trainer.max_epochs=2", folder="half")
    rest = run_training(GPU, "trainer.max_epochs=3", f"resume={tmp_path / 'half' / 'last.ckpt'}", folder="rest")
    assert losses(rest) == pytest.approx(losses(whole), abs=1e-6)


@pytest.mark.parametrize("tta", [False, True])
def test_a_gpu_answers_as_a_processor(trained: Path, tmp_path: Path, tta: bool) -> None:
    tiles = [draw_image(tmp_path / f"{number}.png", number, (32, 32)) for number in range(70)]
    gpu, cpu = (list(Predictor(load_model(trained), device, tta=tta).predict(tiles)) for device in ("cuda", "cpu"))
    for one, other in zip(gpu, cpu, strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        assert one.novelty == pytest.approx(other.novelty, rel=1e-3)
