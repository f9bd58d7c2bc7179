"""Measure what recalibration gains and costs on a few labelled tiles of another laboratory.

    python docs/recalibration.py RUN TILES

RUN is a linear probe on TILES, whose frozen encoder is taken; its head is trained anew here, without the tested cases.
Three questions are asked, with 50 draws of labelled tiles each:

- Does it do harm where nothing is to be gained? Cases are clustered by mean and deviation of their colours (k-means,
  the best of 300 starts that give every cluster cases of both classes), and each cluster is "another laboratory".
- Does it help where a scanner differs? The tiles of unseen cases are stained anew (`SCANNER`).
- Are its probabilities true? Simulated logits of laboratories whose offset and slope are drawn at random.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from histo_pl.data import HistologyDataModule
from histo_pl.data.splits import fold_groups
from histo_pl.data.tile import Tile
from histo_pl.data.transforms.stain import RandomStain
from histo_pl.evaluation.calibration import fit_temperature, sigmoid
from histo_pl.evaluation.metrics import measure
from histo_pl.evaluation.platt import Shift, fit_shift
from histo_pl.images import read_tile
from histo_pl.models.checkpoint import load_checkpoint
from histo_pl.models.novelty import features_of
from histo_pl.training.linear_probe import LogisticRegression

DRAWS = 50
COUNTS = (3, 5, 10, 20)  # labelled tiles of each class
LEAST_LEFT = 3  # tiles of each class that are not drawn
SCANNER = {"factors": torch.tensor((0.6, 1.4, 1.0)), "shifts": torch.tensor((0.0, 0.3, 0.0))}  # of `RandomStain`
GAMMA = 1.4
Mask = NDArray[np.bool_]
Array = NDArray[np.float64]


def scan(tiles: Tensor) -> Tensor:
    """Show tiles, uint8 (B, 3, S, S), as from another stain and scanner."""
    stain = RandomStain()
    return F.adjust_gamma(torch.stack([stain.transform(tile, SCANNER) for tile in tiles]), GAMMA)


def train(features: Tensor, malignant: Mask, tiles: list[Tile]) -> Callable[[Tensor], Array]:
    """Train a probe on tiles, a fifth of their cases for its temperature; return features to calibrated logits."""
    validating = np.isin([tile.group for tile in tiles], list(fold_groups(tiles, 5, 0, 0)))
    rows, labels = features[~validating], torch.tensor(malignant[~validating]).long()
    mean, deviation = rows.mean(0), rows.std(0).clamp(min=1e-6)
    weights = torch.where(labels == 1, (labels == 0).sum() / (labels == 1).sum(), 1.0)
    weight, bias = LogisticRegression().fit((rows - mean) / deviation, labels, weights)

    def logits(features: Tensor) -> Array:
        return (((features - mean) / deviation) @ weight[0] + bias).double().numpy()

    temperature = fit_temperature(logits(features[validating]), malignant[validating])
    return lambda features: logits(features) / temperature


def cluster(colours: Array, malignant: Mask, case: NDArray[np.str_], count: int) -> NDArray[np.int64]:
    """Divide cases into clusters by colour, each with cases of both classes; return the cluster of each tile."""
    names = np.unique(case)
    described = np.stack([colours[case == name, :6].mean(0) for name in names])
    described = (described - described.mean(0)) / described.std(0)
    of_case = np.array([malignant[case == name].any() for name in names])
    found = [KMeans(count, n_init=1, random_state=seed).fit(described) for seed in range(300)]
    fitting = [one for one in found if all(len(set(of_case[one.labels_ == n])) == 2 for n in range(count))]  # noqa: PLR2004
    best = min(fitting, key=lambda one: one.inertia_)
    return best.labels_[np.searchsorted(names, case)]


def draw(malignant: Mask, count: int, generator: np.random.Generator) -> Mask:
    """Choose tiles to label, `count` of each class."""
    chosen = np.zeros(len(malignant), bool)
    for of_class in (malignant, ~malignant):
        chosen[generator.choice(np.flatnonzero(of_class), count, replace=False)] = True
    return chosen


def by_case(probability: Array, case: NDArray[np.str_]) -> Array:
    """Mean probability of each case, in the order of their names."""
    return np.array([probability[case == name].mean() for name in np.unique(case)])


def accuracies(logits: Array, malignant: Mask, case: NDArray[np.str_], count: int) -> Array:
    """Gain of balanced accuracy of tiles and of cases, on the tiles not drawn, of shape (DRAWS, 2)."""
    generator, gains = np.random.default_rng(count), []
    for _ in range(DRAWS):
        chosen = draw(malignant, count, generator)
        shift = fit_shift(logits[chosen], malignant[chosen], 0.5, "fixed")
        rest, of_case = malignant[~chosen], case[~chosen]
        truth = by_case(rest.astype(float), of_case) > 0.5  # noqa: PLR2004
        old, new = sigmoid(logits[~chosen]), sigmoid(shift.logits(logits[~chosen]))
        tiles = [balanced_accuracy_score(rest, p > t) for p, t in ((old, 0.5), (new, shift.threshold))]
        cases = [
            balanced_accuracy_score(truth, by_case(p, of_case) > t) for p, t in ((old, 0.5), (new, shift.threshold))
        ]
        gains.append((tiles[1] - tiles[0], cases[1] - cases[0]))
    return np.array(gains)


def describe(name: str, logits: Array, malignant: Mask, case: NDArray[np.str_], counts: tuple[int, ...]) -> None:
    """Print one row: the mean gain of balanced accuracy, the share of draws that gain, and the gain by case."""
    area, before = roc_auc_score(malignant, logits), balanced_accuracy_score(malignant, logits > 0)
    cells = []
    for count in counts:
        if min(malignant.sum(), (~malignant).sum()) < count + LEAST_LEFT:
            cells.append(f"{'-':>20}")
            continue
        gains = accuracies(logits, malignant, case, count)
        cells.append(f"{gains[:, 0].mean():+.3f} ({(gains[:, 0] > 0).mean():4.0%}) {gains[:, 1].mean():+.3f}")
    benign = int((~malignant).sum())
    print(f"{name:18} {len(malignant):5} {benign:6} {area:6.3f} {before:6.3f}  " + "  ".join(cells), flush=True)


def simulate() -> None:
    """Print log loss and ECE on 2,000 fresh tiles of simulated laboratories, before and after."""
    generator = np.random.default_rng(0)
    for labelled in (6, 20, 50, 200):
        before, after = [], []
        for _ in range(DRAWS):
            slope, offset = np.exp(generator.normal(0, 0.3)), generator.normal(0, 1.5)
            share = generator.uniform(0.3, 0.7)
            malignant = generator.random(labelled + 2000) < share
            logits = generator.normal(np.where(malignant, 1.5, -1.5), 3**0.5)  # calibrated where half are malignant
            given = (logits - offset) / slope
            shift: Shift = fit_shift(given[:labelled], malignant[:labelled], 0.5, "fixed")
            for found, moved in ((before, given), (after, shift.logits(given))):
                values = measure(sigmoid(moved[labelled:]), malignant[labelled:], 0.5)
                found.append((values["log_loss"].item(), values["ece"].item()))
        (loss, ece), (new_loss, new_ece) = np.mean(before, 0), np.mean(after, 0)
        print(f"{labelled:4} labels: log loss {loss:.3f} before, {new_loss:.3f} after; ECE {ece:.3f}, {new_ece:.3f}")


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a linear probe's folder or checkpoint")
    parser.add_argument("tiles", type=Path, help="BreakHis tiles")
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.run)
    expression = r"SOB_[BM]_[A-Z]+-(\d+-\d+)"
    data = HistologyDataModule(arguments.tiles, image_size=model.image_size, group_regex=expression, test_all=True)
    data.setup()
    tiles = data.tiles_of("test")
    images = torch.stack([read_tile(data.root / tile.path, model.image_size, model.resize) for tile in tiles])
    malignant = np.array([tile.class_name == data.positive_class for tile in tiles])
    case = np.array([tile.case for tile in tiles])
    with torch.inference_mode():
        plain, scanned = (
            torch.cat([features_of(model.network, batch) for batch in some.split(64)])
            for some in (images, scan(images))
        )

    def tell(name: str, tested: Mask, seen: Tensor, counts: tuple[int, ...]) -> None:
        known = [tile for tile, one in zip(tiles, tested, strict=True) if not one]
        ask = train(plain[torch.tensor(~tested)], malignant[~tested], known)
        describe(name, ask(seen[torch.tensor(tested)]), malignant[tested], case[tested], counts)

    header = "  ".join(f"{f'{count} a class':>20}" for count in COUNTS)
    print(f"{'another laboratory':18} tiles benign  AUROC before  {header}")
    colours = data.colours_of([tile.path for tile in tiles])
    for count in (3, 4):
        of_tile = cluster(colours, malignant, case, count)
        for number in range(count):
            tell(f"cluster {number + 1} of {count}", of_tile == number, plain, COUNTS)
    for fold in range(5):
        tell(f"scanner, fold {fold}", np.isin(case, list(fold_groups(tiles, 5, fold, 0))), scanned, COUNTS)
    simulate()


if __name__ == "__main__":
    main()
