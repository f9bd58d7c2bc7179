"""Start eight trainings and four evaluations at once: each must have a folder of its own, and be of one piece.

python docs/promises/together.py
"""

import argparse
import csv
import tempfile
from pathlib import Path

from common import TINY, Program
from omegaconf import OmegaConf

DATA = ("data=demo", *TINY[:3], "data.num_workers=0")


def main() -> None:
    """Print what was found."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    tiny = [*TINY, "trainer=cpu", "trainer.max_epochs=1", "data.num_workers=0"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Program("train.py", [*tiny, "run_dir=model"], folder).process.wait()
        for leftover in (folder / "outputs").glob("*/*"):
            leftover.rmdir()
        programs = [Program("train.py", [*tiny, f"seed={seed}"], folder) for seed in range(8)]
        evaluation = ["ckpt=model/best.ckpt", *DATA]
        programs += [Program("evaluate.py", [*evaluation, f"seed={seed}"], folder) for seed in range(4)]
        statuses = [program.process.wait() for program in programs]
        runs, evaluations = sorted((folder / "outputs").glob("*/*")), sorted((folder / "evaluations").glob("*/*"))
        print(f"exit statuses: {statuses}")
        print(f"trainings: {len(runs)} folders, named {', '.join(run.name for run in runs)}")
        print(f"evaluations: {len(evaluations)} folders, named {', '.join(run.name for run in evaluations)}")
        seeds = sorted(int(OmegaConf.load(run / "config.yaml").seed) for run in runs)
        print(f"seeds of the trainings: {seeds}")
        print(f"tiles whose part in split.csv is not that in predictions.csv: {sum(map(_torn, runs))}")
        expected = {_tested(run) for run in runs}
        print(
            f"evaluations whose tiles are the test of one training: {sum(_tested(e) in expected for e in evaluations)}"
        )


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _torn(run: Path) -> int:
    parts = {row["path"]: row["split"] for row in _rows(run / "split.csv")}
    return sum(parts[row["path"]] != row["split"] for row in _rows(run / "predictions.csv"))


def _tested(run: Path) -> frozenset[str]:
    return frozenset(row["path"] for row in _rows(run / "predictions.csv") if row["split"] == "test")


if __name__ == "__main__":
    main()
