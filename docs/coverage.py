"""Measure how often the 95% intervals hold the true value, on simulated cases with tiles that resemble each other.

python docs/coverage.py                    # 2,000 simulations of each design, seed 0; about 20 minutes on 2 cores
python docs/coverage.py --simulations 100  # a first look

A tile's score is its class's mean plus a part of its case plus a part of its own, all normal; a case has 5 to 34
tiles, and in a mixed case each of them is of either class with equal chance. The true AUROC is known in closed form,
the other metrics' true values are those of a very large sample.
"""

import argparse
import itertools
import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from histo_pl.evaluation.intervals import estimate
from histo_pl.evaluation.metrics import NAMES, measure

# Mixed, benign and malignant cases. Of pure ones: even, and BreakHis's; then all mixed, then partly.
DESIGNS = ((0, 20, 20), (0, 10, 34), (20, 0, 0), (60, 0, 0), (20, 10, 10), (10, 5, 25))
SEPARATIONS = (1.0, 1.9, 2.9)  # of the classes' means, in standard deviations: AUROC .76, .91 and .98
WITHIN_CASE = 0.5  # correlation of two tiles of one case
THRESHOLD = 0.5

Sample = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.str_]]


def draw(generator: np.random.Generator, mixed: int, benign: int, malignant: int, separation: float) -> Sample:
    """Draw the probabilities, labels and cases of a test set whose probabilities are calibrated."""
    of_case = np.repeat([0.5, 0.0, 1.0], [mixed, benign, malignant])  # the chance of a malignant tile
    sizes = generator.integers(5, 35, len(of_case))
    case = np.repeat(np.arange(len(of_case)), sizes)
    label = generator.random(len(case)) < of_case[case]
    own = generator.standard_normal(len(case)) * math.sqrt(1 - WITHIN_CASE)
    shared = generator.standard_normal(len(of_case))[case] * math.sqrt(WITHIN_CASE)
    score = separation * label + shared + own
    share = of_case.mean()
    logit = separation * score - separation**2 / 2 + math.log(share / (1 - share))
    return 1 / (1 + np.exp(-logit)), label, case.astype(str)


def true_values(design: tuple[int, int, int], separation: float) -> dict[str, float]:
    """Measure a sample of 2,000 times as many cases, and take the AUROC from the formula."""
    generator = np.random.default_rng(2**32)
    mixed, benign, malignant = (2000 * count for count in design)
    probability, label, _ = draw(generator, mixed, benign, malignant, separation)
    values = {name: float(value[0]) for name, value in measure(probability, label, THRESHOLD).items()}
    return values | {"auroc": NormalDist().cdf(separation / math.sqrt(2))}


def coverage(design: tuple[int, int, int], separation: float, simulations: int, seed: int) -> str:
    """Write, for one design, how many intervals over cases and over tiles hold the true value."""
    truth = true_values(design, separation)
    generator = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {"cases": Counter(), "tiles": Counter(), "blank": Counter()}
    for _ in range(simulations):
        probability, label, cases = draw(generator, *design, separation)
        by_tile = np.arange(len(cases)).astype(str)
        for over, units in (("cases", cases), ("tiles", by_tile)):
            for name, found in estimate(probability, label, units, THRESHOLD).items():
                if found.low is None or found.high is None:
                    counts["blank"][name] += over == "cases"
                else:
                    counts[over][name] += found.low <= truth[name] <= found.high
    mixed, benign, malignant = design
    lines = [f"\n{mixed} mixed, {benign} benign and {malignant} malignant cases, true AUROC {truth['auroc']:.3f}"]
    lines.append(f"  {'metric':18} {'true':>6}  over cases  over tiles (naive)  blank")
    for name, title in NAMES.items():
        shares = [counts[over][name] / simulations for over in ("cases", "tiles")]
        lines.append(f"  {title:18} {truth[name]:6.3f} {shares[0]:11.1%} {shares[1]:19.1%} {counts['blank'][name]:6}")
    return "\n".join(lines)


def main() -> None:
    """Run every design."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000, help="of each design")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated data")
    options = parser.parse_args()
    print(f"{options.simulations} simulations of each design, seed {options.seed}; nominal 95%")
    settings = [(*one, options.simulations, options.seed) for one in itertools.product(DESIGNS, SEPARATIONS)]
    with ProcessPoolExecutor() as pool:
        for table in pool.map(coverage, *zip(*settings, strict=True)):
            print(table, flush=True)


if __name__ == "__main__":
    main()
