"""Compare training in bfloat16, as fast_cpu and fast_gpu do it where it pays, with float32.

python docs/benchmarks/precision.py TILES                 losses of 20 steps; demo's AUROC of three seeds: ten minutes
python docs/benchmarks/precision.py TILES --image-size 64 --draws 1 --epochs 1 --seeds 0     a first look

TILES has a folder a class. Steps see the same tiles, weights and order. Beside bfloat16 stands float32 from weights
that were moved in their last digit: where it differs as much, the training amplifies whatever it is given. The demo is
trained by train.py, and its AUROC is that of the test.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from histo_pl.benchmark.notebook import notebook_model_config
from histo_pl.benchmark.run import REPOSITORY, describe_machine
from histo_pl.hardware import keep_freed_memory
from histo_pl.images import find_files, read_tile
from histo_pl.models import build_network
from histo_pl.training.optimizers import adam

STEPS, BATCH = 20, 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISIONS = ("32-true", "bf16-mixed")
LAST_DIGIT = 1e-7  # of a weight in float32


def main() -> None:
    """Print the differences of losses by draw, and the AUROC by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path, metavar="TILES")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--draws", type=int, default=5, help="of the tiles of the steps (default: 5)")
    parser.add_argument("--epochs", type=int, default=20, help="of the demo (default: 20)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the demo; none: no demo")
    options = parser.parse_args()
    keep_freed_memory()
    print(describe_machine())
    print(f"\nLosses of {STEPS} steps at {options.image_size} pixels, mean and largest difference from float32:\n")
    print("| | bfloat16 | float32, weights moved in their last digit |\n|---|---|---|", flush=True)
    for draw in range(options.draws):
        train = partial(losses, *read_batches(options.tiles, options.image_size, draw))
        single = train()
        others = (differences(single, other) for other in (train(mixed=True), train(moved=LAST_DIGIT)))
        print(f"| tiles of draw {draw} | {' | '.join(others)} |", flush=True)
    if not options.seeds:
        return
    print(f"\n| AUROC of the demo, {options.epochs} epochs | {' | '.join(f'seed {seed}' for seed in options.seeds)} |")
    print(f"|---{'|---' * len(options.seeds)}|")
    for precision in PRECISIONS:
        found = [f"{auroc(precision, seed, options.epochs):.4f}" for seed in options.seeds]
        print(f"| {precision} | {' | '.join(found)} |", flush=True)


def differences(base: Tensor, others: Tensor) -> str:
    """Describe how far losses are from those of a base, as a share of it."""
    found = (others - base).abs() / base
    return f"{found.mean():.2%}, {found.max():.2%}"


def losses(images: Tensor, labels: Tensor, *, mixed: bool = False, moved: float = 0.0) -> Tensor:
    """Train the notebook's network from the same weights, and return the loss of each step, of shape (STEPS,)."""
    torch.manual_seed(0)
    network = build_network(notebook_model_config(images.shape[-1]))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1 + moved * torch.randn_like(weight))
    network.to(DEVICE)
    optimizer, found = adam(network, lr=1e-3, base_fan_in=256), []
    for batch, truth in zip(images, labels, strict=True):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=mixed):
            logits = network(batch.to(DEVICE))
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), truth.to(DEVICE))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return torch.tensor(found)


def read_batches(root: Path, size: int, draw: int) -> tuple[Tensor, Tensor]:
    """Read tiles, uint8 (STEPS, BATCH, 3, S, S), and 1 for those of the last folder by name, (STEPS, BATCH)."""
    files = sorted(find_files(root))
    order = torch.randint(len(files), (STEPS * BATCH,), generator=torch.Generator().manual_seed(draw)).tolist()
    last = max(file.relative_to(root).parts[0] for file in files)
    tiles = torch.stack([read_tile(files[index], size) for index in order])
    labels = torch.tensor([float(files[index].relative_to(root).parts[0] == last) for index in order])
    return tiles.unflatten(0, (STEPS, BATCH)), labels.unflatten(0, (STEPS, BATCH))


def auroc(precision: str, seed: int, epochs: int) -> float:
    """Train the demo, and return the AUROC of its test."""
    recipe = "fast_gpu" if DEVICE == "cuda" else "fast_cpu"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(REPOSITORY / "train.py"), f"experiment={recipe}", f"run_dir={folder}/run"]
        command += [f"trainer.precision={precision}", f"seed={seed}", f"trainer.max_epochs={epochs}"]
        subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
        return json.loads(Path(folder, "run", "results.json").read_text())["test"]["auroc"]


if __name__ == "__main__":
    main()
