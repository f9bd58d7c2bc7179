"""Tiny images and short runs for all tests."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, and would wait for each other's threads
    os.environ["OMP_NUM_THREADS"] = "1"
if "HISTO_PL_START_METHOD" in os.environ:  # tests/test_jobs.py
    multiprocessing.set_start_method(os.environ["HISTO_PL_START_METHOD"], force=True)
os.environ["KERAS_TORCH_DEVICE"] = "cpu"  # a GPU is taken by itself otherwise
os.environ["KERAS_BACKEND"] = "torch"  # TensorFlow and PyTorch cannot live in one process

ROOT = Path(__file__).parents[1]
BREAKHIS = ROOT.parent / "shared" / "data" / "breakhis_200x"

# A run of seconds: 24 drawn tiles of 32 pixels, one epoch, all in this process.
TINY_DEMO = ("data.cases=12", "data.tiles_per_case=2")
TINY = (
    "data.image_size=32",
    "data.batch_size=8",
    "data.num_workers=0",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
)


def compose_config(name: str, *overrides: str) -> DictConfig:
    """Compose a configuration of `conf/` as the programs do."""
    import histo_pl.cli.program  # noqa: F401  (the resolvers that the configuration uses)

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def train(config: DictConfig) -> dict[str, Any]:
    """Train as train.py does, in this process."""
    from histo_pl.cli.build import training_arguments
    from histo_pl.training.run import run_training

    return run_training(**training_arguments(config))


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Evaluate as evaluate.py does, in this process."""
    from histo_pl.cli.build import evaluation_arguments
    from histo_pl.evaluation import run

    return run.evaluate(**evaluation_arguments(config))


def draw_image(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """Write an image of random pixels; size is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of tiles: `make_folder({"benign": 4, "malignant": 4})`."""

    def make(counts: dict[str, int], root: str = "tiles", name: str = "tile{:03}.png") -> Path:
        for seed, (class_name, count) in enumerate(counts.items()):
            for number in range(count):
                draw_image(tmp_path / root / class_name / name.format(number), seed * 1000 + number)
        return tmp_path / root

    return make


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for drawn tiles that all tests share."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def run_training(tmp_path: Path, demo_root: Path) -> Callable[..., dict[str, Any]]:
    """Train in this process on tiny tiles: `run_training("seed=1", folder="a")` writes `tmp_path/a`."""

    def run(*overrides: str, folder: str = "run") -> dict[str, Any]:
        config = compose_config(
            "train", *TINY, *TINY_DEMO, f"data.root={demo_root}", f"run_dir={tmp_path / folder}", *overrides
        )
        return train(config)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, demo_root: Path) -> Path:
    """The folder of one short run, for tests that only read it."""
    folder = tmp_path_factory.mktemp("trained")
    options = (
        *TINY,
        *TINY_DEMO,
        "calibration.temperature=false",
    )  # of a network that has hardly learnt it says nothing
    train(compose_config("train", *options, f"data.root={demo_root}", f"run_dir={folder}"))
    return folder
