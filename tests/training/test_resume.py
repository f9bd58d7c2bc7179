"""A run that was stopped and resumed ends as one that was not, whatever it trains and wherever it stopped."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from histo_pl.errors import UserError
from histo_pl.models.ensemble import load_model
from histo_pl.models.network import FORMAT_VERSION
from histo_pl.training.callbacks import CollapseWarning
from tests.conftest import TINY, compose_config, draw_image, train
from tests.training.test_run import same_weights, without_times_and_paths

Run = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("data.num_workers=2",), marks=pytest.mark.slow),
        ("data.num_workers=1", "augment=stain", "data.balanced=true"),
        pytest.param(("model=efficientnet_b0", "model.weights=null"), marks=pytest.mark.slow),  # it drops layers
        pytest.param(
            ("data.num_workers=1", "augment=keras", "callbacks=early_stopping", "scheduler=warmup_cosine"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["workers", "balanced", "dropout", "schedule"],
)
def test_a_resume_changes_nothing(run_training: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    whole = run_training(*options, "trainer.max_epochs=3", folder="whole")
    stop_after(2, run_training, tmp_path, *options, "trainer.max_epochs=3")
    resume = f"resume={tmp_path / 'stopped' / 'last.ckpt'}"
    resumed = run_training(*options, "trainer.max_epochs=3", resume, folder="resumed")
    assert without_times_and_paths(resumed) == without_times_and_paths(whole)
    for name in ("last.ckpt", "best.ckpt"):
        assert same_weights(tmp_path / "whole" / name, tmp_path / "resumed" / name)
    for name in ("metrics.csv", "predictions.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


class StopError(Exception):
    pass


def stop_after(epochs: int, run_training: Run, tmp_path: Path, *options: str) -> None:
    """Train with the settings of the whole run, such as its schedule, but fail when some epochs are over."""
    original = CollapseWarning.on_validation_epoch_end

    def stopping(self: CollapseWarning, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == epochs:
            raise StopError
        original(self, trainer, pl_module)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        patch.setattr(CollapseWarning, "on_validation_epoch_end", stopping)
        run_training(*options, folder="stopped")


@pytest.mark.slow
def test_a_run_that_lacks_only_its_test_is_finished_by_a_resume(run_training: Run, tmp_path: Path) -> None:
    """Early stopping had ended the training: no further epoch is trained."""
    options = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optim.lr=0", "trainer.max_epochs=5")
    whole = run_training(*options, folder="whole")
    assert whole["epochs"] == 2
    for name in ("results.json", "predictions.csv"):
        (tmp_path / "whole" / name).unlink()
    again = f"resume={tmp_path / 'whole' / 'last.ckpt'}"
    resumed = run_training(*options, again, folder="whole")  # in its own folder
    assert without_times_and_paths(resumed) == without_times_and_paths(whole)
    assert load_model(tmp_path / "whole" / "best.ckpt").finished


@pytest.mark.slow
def test_a_resumed_probe_computes_no_feature(run_training: Run, tmp_path: Path) -> None:
    options = ("experiment=linear_probe", "data.image_size=32", "trainer.accelerator=cpu", "embeddings.views=1")
    store = f"embeddings.store.folder={tmp_path / 'store'}"
    first = run_training(*options, store, folder="first")
    resumed = run_training(*options, store, f"resume={tmp_path / 'first' / 'last.ckpt'}", folder="resumed")
    assert resumed["embeddings"]["computed"] == 0
    assert resumed["test"] == first["test"]


def test_a_resume_leaves_the_old_run_as_it_was(run_training: Run, tmp_path: Path) -> None:
    run_training("trainer.max_epochs=1", folder="old")
    before = {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()}
    run_training("trainer.max_epochs=3", f"resume={tmp_path / 'old' / 'last.ckpt'}", folder="new")
    assert {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()} == before


def test_a_folder_of_another_run_is_refused(run_training: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(UserError, match="results of another run"):
        run_training()


@pytest.fixture
def tiles(make_folder: Callable[..., Path]) -> Path:
    return make_folder({"benign": 12, "malignant": 12})


def test_tiles_that_changed_are_counted_and_refused(tiles: Path, tmp_path: Path) -> None:
    run_folder(tiles, tmp_path / "old")
    for number, path in enumerate(training_tiles(tmp_path / "old")[:2]):
        draw_image(tiles / path, 9000 + number)
    with pytest.raises(UserError, match="2 of the 20 training and validation tiles"):
        run_folder(tiles, tmp_path / "new", f"resume={tmp_path / 'old' / 'last.ckpt'}")


@pytest.mark.parametrize("change", ["exchange", "test"])
def test_exchanged_tiles_and_changed_test_tiles_are_refused(tiles: Path, tmp_path: Path, change: str) -> None:
    run_folder(tiles, tmp_path / "old")
    benign, malignant = (tiles / next(p for p in training_tiles(tmp_path / "old") if c in p) for c in ("ben", "mal"))
    if change == "exchange":
        benign.rename(tiles / "x"), malignant.rename(benign), (tiles / "x").rename(malignant)
    else:
        draw_image(tiles / tiles_of(tmp_path / "old", "test")[0], 9000)
    expected = "train" if change == "exchange" else "test"
    with pytest.raises(UserError, match=f"Tiles of {expected} are not those of the run"):
        run_folder(tiles, tmp_path / "new", f"resume={tmp_path / 'old'}")


def test_other_settings_are_named_and_those_of_the_optimizer_refused(run_training: Run, tmp_path: Path) -> None:
    run_training("trainer.max_epochs=1", folder="old")
    resume = f"resume={tmp_path / 'old'}"  # the folder's last.ckpt
    for change in ("optim.lr=0.1", "optim=adamw", "scheduler=warmup_cosine"):
        with pytest.raises(UserError, match=r"The optimizer of a resumed run is its checkpoint's"):
            run_training("trainer.max_epochs=2", resume, change, folder="new")
    found = run_training("trainer.max_epochs=2", resume, "data.batch_size=4", folder="new")
    assert found["warnings"] == [
        "Resumed with other settings than before, so that the results are of both: data.batch_size=4 (before: 8)."
    ]


def test_fewer_epochs_than_were_trained_are_refused(run_training: Run, tmp_path: Path) -> None:
    run_training("trainer.max_epochs=2", folder="old")
    with pytest.raises(UserError, match=r"has trained 2 epochs already.*Received: trainer\.max_epochs=1"):
        run_training("trainer.max_epochs=1", f"resume={tmp_path / 'old'}", folder="new")


def test_after_an_added_tile_the_advice_works(tiles: Path, tmp_path: Path) -> None:
    run_folder(tiles, tmp_path / "old")
    resume = f"resume={tmp_path / 'old' / 'last.ckpt'}"
    added = draw_image(tiles / "benign" / "added.png", 9000)
    with pytest.raises(UserError, match=r"1 tiles of the folder are not in the split, such as benign/added.png"):
        run_folder(tiles, tmp_path / "new", resume)
    run_folder(tiles, tmp_path / "from_weights", f"model.weights={tmp_path / 'old' / 'best.ckpt'}")
    added.rename(tmp_path / "added.png")
    run_folder(tiles, tmp_path / "new", resume)


def test_after_another_seed_the_advice_works(tiles: Path, tmp_path: Path) -> None:
    run_folder(tiles, tmp_path / "old")
    resume = f"resume={tmp_path / 'old' / 'last.ckpt'}"
    with pytest.raises(UserError, match=r"another split.*data\.split_file="):
        run_folder(tiles, tmp_path / "new", resume, "seed=1")
    run_folder(tiles, tmp_path / "new", resume, "seed=1", f"data.split_file={tmp_path / 'old' / 'split.csv'}")


def run_folder(tiles: Path, folder: Path, *options: str) -> dict[str, Any]:
    config = compose_config("train", "data=folder", *TINY, f"data.root={tiles}", f"run_dir={folder}", *options)
    return train(config)


def training_tiles(run: Path) -> list[str]:
    return tiles_of(run, "train")


def tiles_of(run: Path, split: str) -> list[str]:
    with (run / "split.csv").open(newline="") as stream:
        return [row["path"] for row in csv.DictReader(stream) if row["split"] == split]


def test_an_unfinished_run_says_so(run_training: Run, tmp_path: Path) -> None:
    stop_after(1, run_training, tmp_path, "trainer.max_epochs=2")
    model = load_model(tmp_path / "stopped" / "best.ckpt")
    assert not model.finished
    assert "not finished: not calibrated, not tested" in model.trained_on
    contents = torch.load(tmp_path / "stopped" / "best.ckpt", weights_only=True)
    assert contents["hyper_parameters"]["format_version"] == FORMAT_VERSION
