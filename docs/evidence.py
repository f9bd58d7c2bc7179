"""Do evidence maps say where the answer comes from? On BreakHis tiles of cases that the model has not seen.

python docs/evidence.py RUN TILES   # a training on TILES: a linear probe (exact maps) or the notebook's network

Sum: the greatest difference between a map's sum and the logit. Quarter: 64 tiles of benign test cases, one quarter of
each replaced by that of a malignant one; its share of the positive evidence, .25 by chance. Random: the same of
networks of random weights, whose sign is arbitrary, so that single ones scatter. Check: as the report prints it.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histo_pl import load_model
from histo_pl.images import read_tile
from histo_pl.models.evidence import explain, method_for, with_random_weights
from histo_pl.models.sanity import check_maps, describe_check

TILES = 64
DRAWS = 24


def read_test_tiles(run: Path, root: Path, size: int, resize: str) -> tuple[list[Tensor], list[Tensor]]:
    """Read the run's malignant and benign test tiles, in the order of a generator."""
    with (run / "split.csv").open(newline="") as stream:
        paths = [row["path"] for row in csv.DictReader(stream) if row["split"] == "test"]
    generator = np.random.default_rng(0)

    def draw(word: str) -> list[Tensor]:
        chosen = generator.choice([path for path in paths if word in path], TILES)
        return [read_tile(root / path, size, resize) for path in chosen]

    return draw("malignant"), draw("benign")


def splice(malignant: list[Tensor], benign: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Replace a quarter of each benign tile; return the tiles, and masks of the quarters."""
    generator = np.random.default_rng(1)
    images = torch.stack(benign)
    half = images.shape[2] // 2
    quarters = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    for index, tile in enumerate(malignant):
        y, x = (int(start) * half for start in generator.integers(0, 2, 2))
        images[index, :, y : y + half, x : x + half] = tile[:, y : y + half, x : x + half]
        quarters[index, y : y + half, x : x + half] = True
    return images, quarters


def share(maps: Tensor, quarters: Tensor) -> float:
    """Return the mean share of the positive evidence that lies in the quarters."""
    positive = maps.clamp(min=0)
    return float(((positive * quarters).sum((1, 2)) / positive.sum((1, 2)).clamp(min=1e-12)).mean())


def main() -> None:
    """Print all figures of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("tiles", type=Path)
    options = parser.parse_args()
    run, root = options.run, options.tiles
    model = load_model(run)
    images, quarters = splice(*read_test_tiles(run, root, model.image_size, model.resize))
    method = method_for(model.network)
    evidence = explain(model.network, images, method)
    with torch.no_grad():
        logits = model.network(images)
    wrong = (evidence.maps.sum((1, 2)) - logits).abs()
    relative = (wrong / (logits - (0 if evidence.constant is None else evidence.constant)).abs().clamp(min=1)).max()
    print(f"{method}: sum {float(wrong.max()):.2g} ({float(relative):.2%} of what is explained, at least of 1)")
    print(f"quarter: {share(evidence.maps, quarters):.3f}")
    draws = [
        share(explain(with_random_weights(model.network, images, seed), images, method).maps, quarters)
        for seed in range(DRAWS if method == "exact" else 4)
    ]
    spread = f"{min(draws):.3f} to {max(draws):.3f} of {len(draws)}, deviation {np.std(draws):.3f}"
    print(f"random: {np.mean(draws):.3f} ({spread})")
    print(describe_check(check_maps(model.network, images, method)))


if __name__ == "__main__":
    main()
