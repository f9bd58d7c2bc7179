"""Two processes learn and answer as one with the doubled batch."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, TINY

TILES = {"train": 320, "val": 81, "test": 803}
CHOSEN = ("trainer=", "trainer.max_epochs", "data.batch_size")  # of the options of a short run


def draw_tiles(root: Path) -> None:
    """Write published parts whose classes differ in their brightness, a little."""
    random = np.random.default_rng(0)
    for part, count in TILES.items():
        for number in range(count):
            class_name = ("benign", "malignant")[number % 2]
            pixels = random.normal(150 - 40 * (number % 2), 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            file = root / part / class_name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch(tmp_path: Path) -> None:
    draw_tiles(tmp_path / "tiles")
    options = [option for option in TINY if not option.startswith(CHOSEN)]
    options += ["data=folder", "data.root=tiles", "augment=none", "trainer.max_epochs=2", "optim.lr=3e-4"]
    runs = {"two": ("trainer=ddp_sim", "data.batch_size=8"), "one": ("trainer=cpu", "data.batch_size=16")}
    for name, own in runs.items():
        command = [sys.executable, str(ROOT / "train.py"), *options, *own, f"run_dir={name}"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    two, one = (read(tmp_path / name / "metrics.csv") for name in runs)
    for column in ("train/loss", "val/loss"):
        assert [float(row[column]) for row in two] == pytest.approx([float(row[column]) for row in one], abs=1e-4)
    assert float(one[1]["train/loss"]) < float(one[0]["train/loss"])
    two, one = (json.loads((tmp_path / name / "results.json").read_text())["test"]["tiles"] for name in runs)
    assert two == one == TILES["test"]
    two, one = (read(tmp_path / name / "predictions.csv") for name in runs)
    assert [row["path"] for row in two] == [row["path"] for row in one]
    wanted = [float(row["probability"]) for row in one]
    assert [float(row["probability"]) for row in two] == pytest.approx(wanted, abs=1e-4)
