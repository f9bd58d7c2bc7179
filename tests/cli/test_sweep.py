import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from histo_pl import UserError
from histo_pl.cli.sweep import sweep
from tests.conftest import TINY, TINY_DEMO, compose_config, train

SPACE = "optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\ndata.batch_size: {choices: [4, 8]}\n"


@pytest.fixture
def arguments(demo_root: Path) -> list[str]:
    return [*TINY, *TINY_DEMO, f"data.root={demo_root}"]


@pytest.fixture
def space(tmp_path: Path) -> Path:
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    return file


def read_trials(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open() as stream:
        return list(csv.DictReader(stream))


def rerun(line: str, folder: Path) -> float:
    """Run the best line again, and return its objective."""
    overrides = shlex.split(line)[2:]
    return train(compose_config("train", *overrides, f"run_dir={folder}"))["validation"]["auroc"]


def test_a_study_is_begun_extended_and_its_best_line_gives_its_value(
    arguments: list[str], space: Path, tmp_path: Path
) -> None:
    sweep(tmp_path / "study", str(space), 1, arguments)
    told = sweep(tmp_path / "study", str(space), 2, arguments)
    trials = read_trials(tmp_path / "study")
    assert [trial["trial"] for trial in trials] == ["0", "1"]
    best = max(float(trial["auroc"]) for trial in trials if trial["state"] == "complete")
    assert rerun(told.splitlines()[-1].strip(), tmp_path / "again") == best
    assert (tmp_path / "study" / "study.png").stat().st_size > 1000
    with pytest.raises(UserError, match="other arguments"):
        sweep(tmp_path / "study", str(space), 2, [*arguments, "seed=1"])


def test_a_trial_whose_process_died_is_taken_up(arguments: list[str], space: Path, tmp_path: Path) -> None:
    sweep(tmp_path / "study", str(space), 1, arguments)
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study" / "journal.log"))
    study = optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(journal))
    distributions = {
        "optim.lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "data.batch_size": optuna.distributions.CategoricalDistribution((4, 8)),
    }
    wanted = study.ask(distributions).params
    sweep(tmp_path / "study", str(space), 2, arguments)
    trials = read_trials(tmp_path / "study")
    assert len(trials) == 2 and trials[1]["state"] in ("complete", "pruned")
    assert float(trials[1]["optim.lr"]) == wanted["optim.lr"]


def test_a_trial_that_is_refused_fails_alone(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("optim.lr: {choices: [-1]}\n")
    told = sweep(tmp_path / "study", str(tmp_path / "space.yaml"), 1, arguments)
    assert "1 fail" in told and "Nothing was found" in told


def test_a_mistyped_key_is_one_line_and_begins_no_study(space: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such key\. Did you mean data\.batch_size\?"):
        sweep(tmp_path / "study", str(space), 1, ["data.batch_sise=4"])
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_folds_are_an_objective(arguments: list[str], space: Path, tmp_path: Path) -> None:
    told = sweep(tmp_path / "study", str(space), 1, [*arguments, "data.folds=2"])
    values = [json.loads(file.read_text()) for file in (tmp_path / "study" / "trials" / "0").glob("*/results.json")]
    mean = sum(value["validation"]["auroc"] for value in values) / 2
    assert float(read_trials(tmp_path / "study")[0]["auroc"]) == pytest.approx(mean) and "1 complete" in told


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "space is empty"), ("optim.lr: {low: 2, high: 1}", "is not as expected"), ("optim.lr: 3", "not as expected")],
)
def test_a_wrong_space_is_one_line(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UserError, match=reason):
        sweep(tmp_path / "study", str(tmp_path / "space.yaml"), 1)
    with pytest.raises(UserError, match="learning, probe"):
        sweep(tmp_path / "study", "nowhere", 1)


@pytest.mark.slow
def test_a_killed_study_is_ended_by_two_processes(arguments: list[str], space: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "histo_pl", "sweep", "study", "--space", str(space), "--trials", "12", *arguments]

    def start() -> subprocess.Popen[Any]:
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=None)

    first = start()
    while len(list((tmp_path / "study" / "trials").glob("*/results.json"))) < 4:
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    both = [start(), start()]
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    trials = read_trials(tmp_path / "study")
    assert [trial["trial"] for trial in trials] == [str(number) for number in range(12)]
    assert {trial["state"] for trial in trials} <= {"complete", "pruned"}
    best = max(float(trial["auroc"]) for trial in trials if trial["state"] == "complete")
    line = told[0].splitlines()[-1].strip()
    assert rerun(line, tmp_path / "again") == best
