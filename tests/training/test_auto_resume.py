import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histo_pl import UserError
from histo_pl.cli import auto_resume
from histo_pl.cli.build import training_arguments
from histo_pl.models.checkpoint import update_metadata
from histo_pl.training.run import run_training
from tests.conftest import TINY, TINY_DEMO, compose_config

Start = Callable[..., tuple[dict[str, Any], bool]]


@pytest.fixture
def start(tmp_path: Path, demo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a run as train.py does, each with a run_dir of its own; return its results, and whether it trained."""
    monkeypatch.chdir(tmp_path)
    counter = iter(range(100))

    def run(*overrides: str, release: bool = True) -> tuple[dict[str, Any], bool]:
        folder = tmp_path / "outputs" / "day" / str(next(counter))
        config = compose_config(
            "train",
            *(option for option in TINY if "max_epochs" not in option),
            *TINY_DEMO,
            "trainer.max_epochs=2",
            f"data.root={demo_root}",
            f"run_dir={folder}",
            "resume=auto",
            *overrides,
        )
        try:
            finished = auto_resume.follow_auto(config)
            return finished or run_training(**training_arguments(config)), finished is None
        finally:
            if release:
                auto_resume._held.clear()

    return run


def test_the_same_line_starts_goes_on_and_ends(start: Start, tmp_path: Path) -> None:
    _, trained = start()
    assert trained
    again, trained = start()
    assert not trained and again == json.loads((tmp_path / "outputs" / "day" / "0" / "results.json").read_text())
    _, trained = start("seed=1")  # another run
    assert trained
    assert not (tmp_path / "outputs" / "day" / "1").exists()


def test_a_run_keeps_its_precision_on_another_processor(start: Start, tmp_path: Path) -> None:
    amp = ("trainer=amp", "trainer.accelerator=cpu")
    first, _ = start(*amp)
    other = {"bf16-mixed": "32-true", "32-true": "bf16-mixed"}[first["run"]["precision"]]
    folder = tmp_path / "outputs" / "day" / "0"
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(f"precision: {first['run']['precision']}", f"precision: {other}"))
    (folder / "results.json").unlink()
    second, trained = start(*amp)
    assert trained and second["run"]["precision"] == other
    assert (folder / "results.json").exists()


@pytest.mark.parametrize("lost", ["results.json", "last.ckpt"])
def test_an_unfinished_run_goes_on_in_its_own_folder(start: Start, tmp_path: Path, lost: str) -> None:
    start()
    folder = tmp_path / "outputs" / "day" / "0"
    whole = {name: (folder / name).read_bytes() for name in ("metrics.csv", "predictions.csv")}
    for name in {lost, "results.json"}:
        (folder / name).unlink()
    update_metadata(folder / "best.ckpt", finished=False)
    _, trained = start("trainer.devices=1")
    assert trained and sorted(path.name for path in folder.parent.iterdir()) == ["0"]
    assert {name: (folder / name).read_bytes() for name in whole} == whole


def test_a_finished_model_is_never_removed(start: Start, tmp_path: Path) -> None:
    start()
    folder = tmp_path / "outputs" / "day" / "0"
    for name in ("last.ckpt", "results.json"):
        (folder / name).unlink()
    before = (folder / "best.ckpt").read_bytes()
    for resume in ("resume=auto", "resume=own"):
        with pytest.raises(UserError, match="results of another run"):
            start(resume, f"run_dir={folder}")
    assert (folder / "best.ckpt").read_bytes() == before


def test_two_at_once_are_refused(start: Start) -> None:
    start(release=False)
    with pytest.raises(UserError, match="same settings is at work"):
        start()
    start("seed=2")


def test_a_run_with_other_settings_is_not_taken_up(start: Start, tmp_path: Path) -> None:
    start()
    (tmp_path / "outputs" / "day" / "0" / "results.json").unlink()
    _, trained = start("optim.lr=0.5")
    assert trained and (tmp_path / "outputs" / "day" / "1" / "results.json").is_file()
    shutil.rmtree(tmp_path / "outputs" / "day" / "1")
