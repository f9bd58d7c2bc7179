import re
import subprocess
import sys
from pathlib import Path

import pytest

from histo_pl.benchmark import BenchmarkWorker, alternate, benchmark, table
from histo_pl.errors import UserError
from tests.conftest import ROOT, draw_image

ECHO = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["task"] == "die":
        sys.exit("it has no legs")
    print(json.dumps({"seconds": request["steps"] / 10}), flush=True)
"""


def run_script(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "docs" / "benchmarks" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_a_contender_answers_and_its_end_is_told() -> None:
    with BenchmarkWorker([sys.executable, "-c", ECHO]) as asked:
        assert asked.ask("step", steps=5) == {"seconds": 0.5}
        with pytest.raises(UserError, match="it has no legs"):
            asked.ask("die")


def test_contenders_take_turns_after_a_round_that_does_not_count() -> None:
    order = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = alternate({"a": lambda: measure("a"), "b": lambda: measure("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_table_compares_round_by_round() -> None:
    lines = table("step", "ms", {"a": [1.0, 10.0, 2.0], "b": [0.5, 5.0, 2.0]}).splitlines()
    assert lines[2] == "| a | 2 (1 to 10) | 1.00 |"
    assert lines[3] == "| b | 2 (0.5 to 5) | 0.50 |"


def test_a_benchmark_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="rounds=0"):
        next(benchmark(rounds=0))


@pytest.mark.slow
def test_the_benchmark_measures_everything(capsys: pytest.CaptureFixture[str]) -> None:
    from histo_pl.__main__ import main

    main(["benchmark", "--image-size", "32", "--batch-size", "4", "--tiles", "24", "--rounds", "1"])
    report = capsys.readouterr().out
    for name in (
        "input",
        "training step",
        "training epoch",
        "prediction",
        "start",
        "cache=disk",
        "folder of files",
        "debug=fast",
    ):
        assert name in report
    assert re.search(r"trainer=amp takes (bf16-mixed|32-true)", report)
    assert re.search(r"a step takes [\d.]+ ms at least, which is \d+%[^\n]*Peak memory: [\d.]+ GB", report)


@pytest.mark.slow
def test_memory_is_measured_by_number_of_tiles() -> None:
    said = run_script("memory.py", "--tiles", "30", "60", "--image-size", "32")
    assert re.search(r"60 tiles: RssAnon [\d.]+ GB, ratio [\d.]+", said)


@pytest.mark.slow
def test_the_whole_job_is_run_on_a_processor_too() -> None:
    said = run_script(
        "whole_job.py", "--tiles", "40", "--tests", "16", "--image-size", "32", "--epochs", "2", "--batch-size", "8"
    )
    assert "experiment=fast_cpu data.cache=device" in said
    assert re.search(r"s from start to results: 104 tiles", said)
    assert re.search(r"[\d.]+ times the tiles a second", said)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "told"), [("gpu.py", "fine"), ("gpu_inputs.py", "predict.py, start included")])
def test_a_gpus_scripts_are_run_on_a_processor_too(script: str, told: str) -> None:
    assert told in run_script(script, "--try")


@pytest.mark.slow
def test_predictions_are_compared(trained: Path, tmp_path: Path) -> None:
    for number in range(20):
        draw_image(tmp_path / "tiles" / f"{number}.png", number, (32, 32))
    arguments = (str(tmp_path / "tiles"), str(trained), "--count", "40", "--rounds", "1")
    said = run_script("prediction.py", *arguments)
    assert "| Predictor, onnxruntime |" in said and "probabilities of 20 tiles differ by" in said
    assert re.search(r"\| 16 shards in turn, merged \|.*e-\d+ \|", run_script("engines.py", *arguments))


@pytest.mark.slow
def test_recipes_and_precisions_are_compared(tmp_path: Path) -> None:
    for number in range(60):
        folder = tmp_path / ("breast_malignant" if number % 2 else "breast_benign")
        name = f"SOB_M_DC-14-{number // 3}-200-{number:03}.png"
        draw_image(folder / name, number, (32, 32))
    said = run_script("recipes.py", str(tmp_path), "--batches", "2", "--steps", "1", "--image-size", "32")
    assert re.search(r"\| experiment=fast_cpu \| [\d.]+ \|", said)
    assert re.search(r"fine-tuning, one epoch \| [\d.]+ \| [\d.]+ \| \d+ tiles", said)
    said = run_script(
        "precision.py", str(tmp_path), "--image-size", "32", "--draws", "1", "--epochs", "1", "--seeds", "3"
    )
    assert re.search(r"draw 0 \| [\d.]+%, [\d.]+% \| [\d.]+%, [\d.]+% \|", said)
    assert re.search(r"\| bf16-mixed \| [\d.]+ \|", said)


@pytest.mark.slow
def test_a_step_is_taken_apart() -> None:
    said = run_script("step_parts.py", "--image-size", "64", "--batch-size", "2")
    for part in ("second and third convolution", "the dense layer's products", "pooling and ReLU", "Adam"):
        assert re.search(rf"\| {part} \| [\d.]*[1-9][\d.]* \|", said)


def test_the_scripts_are_where_the_page_says() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for script in re.findall(r"docs/benchmarks/\w+\.py", page):
        assert Path(ROOT, script).is_file()
