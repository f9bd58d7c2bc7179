"""Fill the disk under a training at random moments: what is kept must be whole, and the run must go on afterwards.

python docs/promises/full_disk.py    (as root: it mounts a small file system in memory)
"""

import argparse
import hashlib
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from common import TINY, Program

SIZE = "80m"
LONG = ("trainer=cpu", "trainer.max_epochs=500")


def main() -> None:
    """Print a row a trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10, help="how often the disk is filled (default: 10)")
    draw = random.Random(0)
    trials = parser.parse_args().trials
    print("| filled | status | lines of error | last.ckpt | best.ckpt | resumed | old files changed |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "disk")
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)], check=True)
        try:
            _train(Path(folder), "trainer.max_epochs=1", "run_dir=disk/tiles")  # draws the tiles
            shutil.rmtree(disk / "tiles")
            for number in range(trials):
                begun = "config.yaml" if number % 5 == 0 else "last.ckpt"
                print(_row(begun, draw.uniform(0.0, 3.0), Path(folder), disk), flush=True)
        finally:
            subprocess.run(["umount", str(disk)], check=False)


def _train(folder: Path, *options: str) -> Program:
    program = Program("train.py", [*TINY, *LONG, *options], folder, {"TMPDIR": str(folder)})
    program.process.wait()
    return program


def _row(begun: str, seconds: float, folder: Path, disk: Path) -> str:
    stopped, resumed = disk / "stopped", disk / "resumed"
    program = Program("train.py", [*TINY, *LONG, "run_dir=disk/stopped"], folder, {"TMPDIR": str(folder)})
    program.wait_for(stopped / begun)
    time.sleep(seconds)
    while program.process.poll() is None:  # what the run gives back is taken too
        _fill(disk / "filler")
        time.sleep(0.05)
    status = program.process.returncode
    errors = [line for line in program.output().splitlines() if "Error" in line or "Traceback" in line]
    (disk / "filler").unlink()
    kept = {name: _epoch(stopped / name) for name in ("last.ckpt", "best.ckpt")}
    before = _checksums(stopped)
    resume = [f"resume={stopped / 'last.ckpt'}"] if (stopped / "last.ckpt").exists() else []
    epochs = int(kept["last.ckpt"]) + 2 if resume else 1
    again = _train(folder, f"trainer.max_epochs={epochs}", "run_dir=disk/resumed", *resume)
    changed = sum(_checksums(stopped)[name] != value for name, value in before.items())
    for run in (stopped, resumed):
        shutil.rmtree(run, ignore_errors=True)
    answer = "yes" if again.process.returncode == 0 else again.last_line()
    loaded = " | ".join(map(_loads, kept.values()))
    return f"| {seconds:.1f} s after {begun} | {status} | {len(errors)} | {loaded} | {answer} | {changed} |"


def _fill(file: Path) -> None:
    try:
        with file.open("ab", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
    except OSError:
        return


def _epoch(file: Path) -> str:
    if not file.exists():
        return ""
    return str(torch.load(file, weights_only=True)["epoch"])


def _loads(epoch: str) -> str:
    return f"loads, epoch {int(epoch) + 1}" if epoch else "none"


def _checksums(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}


if __name__ == "__main__":
    main()
