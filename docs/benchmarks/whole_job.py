"""The notebook's whole job by one train.py line, beside a plain loader of JPEGs: training, validations and the test.

python docs/benchmarks/whole_job.py                                                       on a GPU
python docs/benchmarks/whole_job.py --tiles 40 --tests 16 --image-size 64 --epochs 1      to try it on a processor
"""

import argparse
import subprocess
import sys
import tempfile
import time

import torch

from histo_pl.benchmark.limits import least_step
from histo_pl.benchmark.run import REPOSITORY, describe_machine, prepare, start_worker

FAST = ("experiment=fast_gpu",) if torch.cuda.is_available() else ("experiment=fast_cpu", "data.cache=device")
PLAIN = ("trainer=amp", "augment=torchvision", "data.cache=none")


def main() -> None:
    """Time both, and print what they make of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=8000, help="to train on and, a fifth, to validate on")
    parser.add_argument("--tests", type=int, default=2000, help="to test on")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--plain-epochs", type=int, default=1, help="of the plain loader, which takes long")
    options = parser.parse_args()
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(folder, options.image_size, options.batch_size, options.tiles, options.tests)
        fast = run(folder, FAST, options, options.epochs)
        plain = run(folder, PLAIN, options, options.plain_epochs)
        least = limit(setting, options)
    seen = tiles_seen(options, options.epochs)
    ratio = (seen / fast) / (tiles_seen(options, options.plain_epochs) / plain)
    print(f"{fast:.1f} s from start to results: {seen} tiles, {seen / fast:.0f} a second")
    print(f"no less than {least:.1f} s on this device, {least / fast:.0%} of that")
    print(
        f"{ratio:.1f} times the tiles a second of {' '.join(PLAIN)} ({plain:.1f} s for {options.plain_epochs} epochs)"
    )


def run(folder: str, choices: tuple[str, ...], options: argparse.Namespace, epochs: int) -> float:
    """Run train.py, and return its seconds from start to end."""
    command = [sys.executable, str(REPOSITORY / "train.py"), *choices, "data=folder", f"data.root={folder}/tiles"]
    command += [f"data.image_size={options.image_size}", f"data.batch_size={options.batch_size}"]
    command += [
        f"trainer.max_epochs={epochs}",
        "trainer.enable_progress_bar=false",
        f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}",
    ]
    print(" ".join(command), flush=True)
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def tiles_seen(options: argparse.Namespace, epochs: int) -> int:
    """Count the tiles of all epochs, of their validations, and of the last look at validation and test tiles."""
    return epochs * options.tiles + options.tiles // 5 + options.tests


def limit(setting: dict[str, str | int], options: argparse.Namespace) -> float:
    """Return the seconds that the device needs at least: an answer alone takes a third of a step's arithmetic."""
    with start_worker(setting) as asked:
        least = least_step(asked.ask("limits"))
    trained = options.epochs * options.tiles * 4 // 5
    answered = tiles_seen(options, options.epochs) - trained
    return least * (trained + answered / 3) / options.batch_size


if __name__ == "__main__":
    main()
