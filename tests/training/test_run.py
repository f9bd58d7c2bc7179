import csv
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from histo_pl.cli.command_line import one_line_errors, quote
from histo_pl.data import HistologyDataModule
from histo_pl.errors import UserError
from histo_pl.inference import Predictor
from histo_pl.models.ensemble import load_model
from tests.conftest import ROOT, TINY, TINY_DEMO, compose_config, draw_image, train

Run = Callable[..., dict[str, Any]]
RUN_FILES = {
    "best.ckpt",
    "calibration.png",
    "config.yaml",
    "confusion.png",
    "curves.png",
    "histogram.png",
    "novelty.png",
    "last.ckpt",
    "metrics.csv",
    "precision_recall.png",
    "predictions.csv",
    "report.html",
    "results.json",
    "roc.png",
    "split.csv",
}


def without_times_and_paths(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name != "run"}


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["state_dict"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run_program(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_run_writes_its_folder(trained: Path) -> None:
    assert {file.name for file in trained.iterdir()} == RUN_FILES
    results = json.loads((trained / "results.json").read_text())
    assert not results["collapsed"]
    assert results["data"]["name"] == "synthetic demo"
    assert (
        results["test"]["tiles"]
        == results["data"]["parts"]["test"]["tiles"]
        == sum(results["test"]["confusion"].values())
    )
    with (trained / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    for part in ("train", "val"):
        assert {f"{part}/{name}" for name in ("loss", "auroc", "balanced_accuracy")} <= set(columns)


def test_results_are_those_of_the_kept_weights(trained: Path) -> None:
    """predict.py, on the test tiles, gives what results.json says."""
    results = json.loads((trained / "results.json").read_text())
    root = Path(results["data"]["root"])
    with (trained / "split.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    answers = Predictor(load_model(trained / "best.ckpt"), "cpu").predict([root / row["path"] for row in rows])
    right = [(answer.label or "").lower() == row["class"] for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(results["test"]["accuracy"], abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_results(run_training: Run, seed: int) -> None:
    first = run_training(f"seed={seed}", folder="a")
    again = run_training(f"seed={seed}", "data.num_workers=1", folder="b")
    other = run_training(f"seed={seed + 1}", folder="c")
    assert without_times_and_paths(first) == without_times_and_paths(again)
    assert first["test"]["log_loss"] != other["test"]["log_loss"]


def test_a_resumed_run_ends_as_one_that_was_not_stopped(run_training: Run, tmp_path: Path) -> None:
    whole = run_training("trainer.max_epochs=4", folder="whole")
    run_training("trainer.max_epochs=2", folder="stopped")
    before = {file.name: file.read_bytes() for file in (tmp_path / "stopped").iterdir()}
    (tmp_path / "stopped").rename(tmp_path / "moved")
    resume = f"resume={tmp_path / 'moved' / 'last.ckpt'}"
    resumed = run_training("trainer.max_epochs=4", resume, folder="resumed")
    assert without_times_and_paths(resumed) == without_times_and_paths(whole)
    assert (tmp_path / "resumed" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    for name in ("last.ckpt", "best.ckpt"):
        assert same_weights(tmp_path / "whole" / name, tmp_path / "resumed" / name)
    assert {file.name: file.read_bytes() for file in (tmp_path / "moved").iterdir()} == before


def test_the_best_epoch_before_a_stop_is_still_the_best_after_it(run_training: Run, tmp_path: Path) -> None:
    first = run_training("trainer.max_epochs=1", folder="stopped")
    ruin = ("trainer.max_epochs=2", f"resume={tmp_path / 'stopped' / 'last.ckpt'}")
    checkpoint = torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        group["lr"] = 10.0
    torch.save(checkpoint, tmp_path / "stopped" / "last.ckpt")
    resumed = run_training(*ruin, folder="resumed")
    assert resumed["validation"]["epoch"] == 1
    assert resumed["test"] == first["test"]
    assert same_weights(tmp_path / "stopped" / "best.ckpt", tmp_path / "resumed" / "best.ckpt")


def test_a_resume_that_would_mix_the_split_is_refused(run_training: Run, trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "x.ckpt"
    text.write_text("no checkpoint")
    for overrides, message in (
        ((f"resume={trained / 'last.ckpt'}", "seed=5"), "another split"),
        ((f"resume={trained / 'best.ckpt'}",), "weights alone"),
        ((f"resume={tmp_path / 'none.ckpt'}",), "no checkpoint to resume"),
        ((f"resume={text}",), "no checkpoint"),
        ((f"resume={trained / 'last.ckpt'}", "model.dense_units=8"), "another network"),
        ((f"resume={trained / 'last.ckpt'}", "model.weights=x.ckpt"), "did not start from given weights"),
    ):
        with pytest.raises(UserError, match=message):
            run_training(*overrides)


def test_a_collapsed_run_says_so_and_why(run_training: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "histo_pl"):
        results = run_training("optim=adam", "optim.lr=10", "trainer.max_epochs=2")
    assert results["collapsed"]
    assert "the network has collapsed" in caplog.text
    assert "100% of the dense layer's activations are frozen" in caplog.text


def test_an_unreadable_tile_ends_the_run_with_its_name(tmp_path: Path) -> None:
    root = tmp_path / "tiles"
    for class_name in ("benign", "malignant"):
        for number in range(5):
            draw_image(root / class_name / f"{number}.png", number)
            (root / class_name / f"{number}.png").write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        train(compose_config("train", "data=folder", *TINY, f"data.root={root}", f"run_dir={tmp_path / 'run'}"))
    assert "10: benign/0.png, benign/1.png" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_mixed_precision_trains_in_bfloat16(run_training: Run) -> None:
    half = run_training("trainer=amp", "trainer.accelerator=cpu", "trainer.precision=bf16-mixed", folder="half")
    full = run_training(folder="full")
    assert half["test"]["log_loss"] == pytest.approx(full["test"]["log_loss"], abs=0.05)
    assert half["test"]["log_loss"] != full["test"]["log_loss"]


def test_a_tiny_run_can_learn_a_batch_by_heart(run_training: Run, tmp_path: Path) -> None:
    results = run_training("debug=overfit", "trainer.max_epochs=60", "callbacks.best.monitor=train/loss")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert len(losses) == results["epochs"] == 60
    assert losses[-1] < losses[0] / 2  # both classes are in the batch: a constant stays at ln 2


@pytest.mark.slow
def test_program_goes_on_after_a_failing_job_of_a_sweep(tmp_path: Path, demo_root: Path) -> None:
    options = ["-m", "optim.lr=1e-3,-1,1e-4", *TINY, *TINY_DEMO, f"data.root={demo_root}"]
    command = [sys.executable, str(ROOT / "train.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    runs = sorted((tmp_path / "multirun").glob("*/*/*/results.json"))
    assert [run.parent.name for run in runs] == ["0", "2"]
    losses = {json.loads(run.read_text())["test"]["log_loss"] for run in runs}
    assert len(losses) == 2
    counted, told = done.stderr.splitlines()[-2:]
    assert counted == "1 of the sweep's jobs failed:"
    assert "optim.lr=-1" in told and told.endswith("Expected a number of at least 0. Received: -1")


@pytest.mark.slow
def test_program_goes_on_with_an_interrupted_sweep(tmp_path: Path, demo_root: Path) -> None:
    run_program(tmp_path, "-m", "optim.lr=1e-3,1e-4", *TINY, *TINY_DEMO, f"data.root={demo_root}")
    (sweep,) = (tmp_path / "multirun").glob("*/*")
    (sweep / "1" / "results.json").unlink()
    whole = (sweep / "1" / "predictions.csv").read_bytes()
    finished = (sweep / "0" / "results.json").stat().st_mtime_ns
    run_program(tmp_path, "-m", f"resume={sweep.relative_to(tmp_path)}")
    assert (sweep / "0" / "results.json").stat().st_mtime_ns == finished
    assert (sweep / "1" / "results.json").is_file() and (sweep / "1" / "predictions.csv").read_bytes() == whole
    assert list((tmp_path / "multirun").glob("*/*")) == [sweep]


@pytest.mark.slow
def test_program_sweeps_runs_of_two_processes(tmp_path: Path, demo_root: Path) -> None:
    options = [option for option in TINY if option != "trainer=cpu"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", "optim.lr=1e-3,-1,1e-4", "trainer=ddp_sim", *options]
    done = subprocess.run(
        [*command, *TINY_DEMO, f"data.root={demo_root}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (sweep,) = (tmp_path / "multirun").glob("*/*")
    assert sorted(path.name for path in sweep.iterdir()) == ["0", "1", "2", "multirun.yaml"]
    assert not (tmp_path / "outputs").exists()
    rates = {}
    for name in ("0", "2"):
        assert {file.name for file in (sweep / name).iterdir()} == RUN_FILES
        results = json.loads((sweep / name / "results.json").read_text())
        assert results["run"]["processes"] == 2
        assert results["test"]["tiles"] == results["data"]["parts"]["test"]["tiles"]
        rates[name] = OmegaConf.load(sweep / name / "config.yaml").optim.lr
    assert rates == {"0": 1e-3, "2": 1e-4}
    told = done.stderr.splitlines()[-1]
    assert "optim.lr=-1" in told and told.endswith("Expected a number of at least 0. Received: -1")


def test_program_trains_on_two_processes_in_one_folder(tmp_path: Path) -> None:
    root = tmp_path / "My tiles, (v2)"
    for class_name in ("benign", "malignant"):
        for number in range(41):
            draw_image(root / class_name / f"{number}.png", number)
    options = ["data=folder", f"data.root={root.name}", "data.test_fraction=0.4", *TINY]
    on_two = [option.replace("trainer=cpu", "trainer=ddp_sim") for option in options]
    done = run_program(tmp_path, *on_two, "hydra.run.dir=two")
    here = [option for option in options if not option.startswith("data.root=")]
    train(compose_config("train", *here, f"data.root={quote(str(root))}", f"run_dir={tmp_path / 'one'}"))
    assert {file.name for file in (tmp_path / "two").iterdir()} == RUN_FILES
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    assert two["run"]["processes"] == 2
    assert (tmp_path / "two" / "split.csv").read_bytes() == (tmp_path / "one" / "split.csv").read_bytes()
    assert two["test"]["tiles"] == one["test"]["tiles"] == 32
    assert done.stdout.count("To ask for an opinion") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data=folder",), "data.root=FOLDER"),
        (("data=folder", "data.root='nowhere, (really)'"), r"nowhere, \(really\)"),
        (("model.dense_activation=tanh", *TINY, *TINY_DEMO), "sigmoid or relu"),
        (("trainer.precision=fp17", *TINY, *TINY_DEMO), "trainer.*'fp17' is invalid"),
        (("trainer.strategy=foo", *TINY, *TINY_DEMO), "trainer.*foo"),
        (("+trainer.foo=1", *TINY, *TINY_DEMO), "trainer.*foo"),
        (("trainer.precision=64-true", *TINY, *TINY_DEMO), "32-true, bf16-mixed"),
        (("trainer=gpu", "trainer.devices=99", *TINY[1:2], *TINY_DEMO, "data.image_size=32"), "gpu"),
        (("data.root=data",), "data=folder"),
        (("data.image_size=big",), r"data\.image_size"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "benign").mkdir(parents=True)
    with pytest.raises(SystemExit, match=rf"^Error: .*{message}[^\n]*$"), one_line_errors():
        train(compose_config("train", *arguments, "run_dir=run"))
    assert [path.name for path in (tmp_path / "data").iterdir() if path.name != "demo"] == ["benign"]


def test_program_tells_a_mistake_in_one_line_and_leaves_no_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "data=folder", "data.root=nowhere, (really)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ") and line.endswith("nowhere, (really)")
    assert not list(tmp_path.glob("outputs/*/*"))


def test_names_that_are_not_utf_8_come_through(tmp_path: Path) -> None:
    root, run = tmp_path / os.fsdecode(b"t\xff"), tmp_path / "run"
    for seed in range(24):
        name = os.fsdecode(b"t\xff%d.png" % seed) if seed % 3 else f"{seed}.png"
        draw_image(root / ("benign", "malignant")[seed % 2] / name, seed, (32, 32))
    results = train(compose_config("train", "data=folder", *TINY, f"data.root={quote(str(root))}", f"run_dir={run}"))
    assert sum(part["tiles"] for part in results["data"]["parts"].values()) == 24
    for name in ("report.html", "predictions.csv", "config.yaml"):
        assert (run / name).stat().st_size > 0
    assert json.loads((run / "results.json").read_text())["test"] == results["test"]
    assert load_model(run / "best.ckpt").finished
    data = HistologyDataModule(root, split_file=run / "split.csv")
    data.setup()  # it reads the names back
    assert len(data.split_of) == 24
