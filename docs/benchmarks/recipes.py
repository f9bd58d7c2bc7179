"""Measure seconds and peak memory of each recipe of train.py on a folder of tiles, and how fast its encoder is alone.

python docs/benchmarks/recipes.py TILES
python docs/benchmarks/recipes.py TILES --batches 8 --steps 2     # a first look

A run of the notebook's network has a few steps, as its memory does not grow after them; the others are whole: the first
run of a linear probe, one that finds its features on the disk, and an epoch of fine-tuning. Memory is what a run takes
of the machine's, all its processes together, so that nothing else should begin or end meanwhile. Needs
pip install -e '.[pretrained]', and Linux.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from histo_pl import Predictor, load_model
from histo_pl.benchmark.limits import limits, seconds_of
from histo_pl.benchmark.run import REPOSITORY, describe_machine
from histo_pl.hardware import keep_freed_memory
from histo_pl.models.checkpoint import TrainedModel

FINETUNE = ("experiment=finetune", "trainer=cpu", "data=breakhis")
ALONE = 10  # batches of the encoder alone


@dataclass(frozen=True)
class Measured:
    """A run's seconds from start to end, and the most gigabytes of the machine's memory that it took."""

    seconds: float
    gigabytes: float


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path, metavar="TILES", help="BreakHis tiles of 224 pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64], help="tiles a batch, to compare")
    parser.add_argument("--steps", type=int, default=4, help="of the notebook's network (default: 4)")
    parser.add_argument("--image-size", type=int, default=512, help="of the notebook's network (default: 512)")
    options = parser.parse_args()
    print(describe_machine())
    root = f"data.root={options.tiles.resolve()}"
    print("\n| the notebook's network, peak GB | " + " | ".join(f"batch {batch}" for batch in options.batches) + " |")
    print(f"|---{'|---' * len(options.batches)}|")
    for name, choices in {"float32": ("trainer=cpu",), "experiment=fast_cpu": ("experiment=fast_cpu",)}.items():
        peaks = [notebook(choices, root, options, batch).gigabytes for batch in options.batches]
        print(f"| {name} | {' | '.join(f'{peak:.1f}' for peak in peaks)} |", flush=True)
    encoders(root)


def notebook(choices: tuple[str, ...], root: str, options: argparse.Namespace, batch: int) -> Measured:
    """Train for a few steps."""
    short = [f"trainer.limit_{part}_batches={options.steps}" for part in ("train", "val", "predict")]
    size = (f"data.image_size={options.image_size}", f"data.batch_size={batch}")
    with tempfile.TemporaryDirectory() as folder:
        return train(folder, *choices, "data=breakhis", root, *size, "trainer.max_epochs=1", "novelty=false", *short)


def encoders(root: str) -> None:
    """Print the table of the recipes with an encoder."""
    with tempfile.TemporaryDirectory() as folder:
        first = train(folder, "experiment=linear_probe", "data=breakhis", root, "run_dir=first")
        again = train(folder, "experiment=linear_probe", "data=breakhis", root, "run_dir=again")
        one, three = (train(folder, *FINETUNE, root, f"trainer.max_epochs={n}", f"run_dir=tuned{n}") for n in (1, 3))
        results = json.loads(Path(folder, "first", "results.json").read_text())
        model = load_model(Path(folder, "first"))
    embeddings, trained = results["embeddings"], results["data"]["parts"]["train"]["tiles"]
    epoch = (three.seconds - one.seconds) / 2
    rows = [
        ("linear probe, first run", first, f"{embeddings['computed'] / embeddings['seconds']:.0f} views"),
        ("linear probe, features on the disk", again, ""),
        ("fine-tuning, one epoch", one, f"{trained / epoch:.0f} tiles trained and a fifth validated"),
    ]
    print("\n| recipe | seconds | peak GB | a second |\n|---|---|---|---|")
    for name, found, rate in rows:
        print(f"| {name} | {found.seconds:.1f} | {found.gigabytes:.1f} | {rate} |")
    alone, most = views_a_second(model), most_views_a_second(model)
    print(f"\nThe encoder alone: {alone:.0f} views a second, {alone / most:.0%} of what arithmetic and memory allow.")


def views_a_second(model: TrainedModel) -> float:
    """Ask a network about the same batch again and again."""
    keep_freed_memory()
    predictor = Predictor(model)
    images = torch.randint(0, 256, (predictor.batch_size, 3, model.image_size, model.image_size), dtype=torch.uint8)
    predictor.answers(images)
    return len(images) / seconds_of(lambda: predictor.answers(images), ALONE)


def most_views_a_second(model: TrainedModel) -> float:
    """Divide the processor's figures by the arithmetic of a view, and by each layer's output written and read."""
    elements: list[int] = []
    for module in model.network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _module, _inputs, output: elements.append(output.numel()))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.network(torch.zeros(1, 3, model.image_size, model.image_size, dtype=torch.uint8))
    device = limits("cpu", mixed=False)
    return 1 / max(counter.get_total_flops() / device["flops"], 2 * 4 * sum(elements) / device["bandwidth"])


def train(folder: str, *arguments: str) -> Measured:
    """Run train.py in a folder."""
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments, "trainer.enable_progress_bar=false"]
    started, before = time.perf_counter(), available_memory()
    least = before
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            least = min(least, available_memory())
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"This run failed: {' '.join(command)}")
    return Measured(time.perf_counter() - started, before - least)


def available_memory() -> float:
    """Return the gigabytes that the machine has left, by Linux's estimate: all processes of a run take of them."""
    (line,) = (one for one in Path("/proc/meminfo").read_text().splitlines() if one.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
