"""Programs that are started, stopped and compared."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

LONGEST = 60  # seconds to wait for the end of a stopped program

ROOT = Path(__file__).parents[2]

# A run of seconds: drawn tiles, two processes that read them.
TINY = (
    "data.cases=24",
    "data.tiles_per_case=6",
    "data.image_size=64",
    "data.batch_size=16",
    "data.num_workers=2",
    "trainer.max_epochs=6",
    "trainer.enable_progress_bar=false",
)


class Program:
    """One of the programs, running in a process group of its own.

    Args:
        name: Such as train.py.
        arguments: Its command line.
        folder: Where it runs.
        environment: Variables that it gets besides.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.log = (folder / f"log-{time.monotonic_ns()}.txt").open("w+", encoding="utf-8", errors="backslashreplace")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / name), *arguments],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def wait_for(self, file: Path, seconds: float = 300) -> None:
        """Wait until a file is there, or the program has ended."""
        while not file.exists() and self.process.poll() is None and time.monotonic() - self.started < seconds:
            time.sleep(0.05)

    def stop(self, number: signal.Signals, group: bool = False) -> float:
        """Send a signal to the program, or to its whole group, and return the seconds until nothing of it is left."""
        began = time.monotonic()
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        self.process.wait(LONGEST)
        while processes_left(self.process.pid) and time.monotonic() - began < LONGEST:
            time.sleep(0.02)
        return time.monotonic() - began

    def output(self) -> str:
        """Return what it has printed so far."""
        self.log.flush()
        return Path(self.log.name).read_text(encoding="utf-8", errors="backslashreplace")

    def last_line(self) -> str:
        """Return the last line that it printed."""
        return next((line for line in reversed(self.output().splitlines()) if line.strip()), "")


def processes_left(group: int) -> list[int]:
    """List the living processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(its_group) == group and state != "Z":
                found.append(int(entry.name))
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Compare two runs: the weights of both checkpoints, metrics.csv, predictions.csv and results.json.

    Of the results times, folders and what caches held are left out.

    Args:
        one: A run's folder.
        other: Another's.

    Returns:
        The names of what differs.
    """
    found = [name for name in ("last.ckpt", "best.ckpt") if not _same_weights(one / name, other / name)]
    tables = ("metrics.csv", "predictions.csv")
    found += [name for name in tables if (one / name).read_bytes() != (other / name).read_bytes()]
    return found + (["results.json"] if _results(one) != _results(other) else [])


def _same_weights(one: Path, other: Path) -> bool:
    a, b = (torch.load(file, weights_only=True)["state_dict"] for file in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _results(run: Path) -> dict[str, Any]:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return {name: value for name, value in results.items() if name not in ("run", "embeddings")}
