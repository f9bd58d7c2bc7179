"""How often do the 95% intervals hold the true value? Simulated cases with tiles that resemble each other.

python docs/coverage.py                    # 2,000 simulations of each design, seed 0; about 20 minutes on 2 cores
python docs/coverage.py --simulations 100  # a first look

A tile's score is its class's mean plus a part of its case plus a part of its own, all normal; a case has 5 to 34
tiles. The true AUROC is known in closed form, the other metrics' true values are those of a very large sample.
"""

import argparse
import math
from collections import Counter
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from histo_pl.evaluation.intervals import estimate
from histo_pl.evaluation.metrics import NAMES, measure

DESIGNS = ((20, 20), (10, 34))  # benign and malignant cases: even, and BreakHis's
SEPARATIONS = (1.0, 1.9, 2.9)  # of the classes' means, in standard deviations: AUROC .76, .91 and .98
WITHIN_CASE = 0.5  # correlation of two tiles of one case
THRESHOLD = 0.5

Sample = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.str_]]


def draw(generator: np.random.Generator, benign: int, malignant: int, separation: float) -> Sample:
    """Draw the probabilities, labels and cases of a test set whose probabilities are calibrated."""
    of_case = np.repeat([False, True], [benign, malignant])
    sizes = generator.integers(5, 35, len(of_case))
    case = np.repeat(np.arange(len(of_case)), sizes)
    own = generator.standard_normal(len(case)) * math.sqrt(1 - WITHIN_CASE)
    shared = generator.standard_normal(len(of_case))[case] * math.sqrt(WITHIN_CASE)
    score = separation * of_case[case] + shared + own
    logit = separation * score - separation**2 / 2 + math.log(malignant / benign)
    return 1 / (1 + np.exp(-logit)), of_case[case], case.astype(str)


def true_values(benign: int, malignant: int, separation: float) -> dict[str, float]:
    """Measure a sample of 2,000 times as many cases, and take the AUROC from the formula."""
    generator = np.random.default_rng(2**32)
    probability, label, _ = draw(generator, 2000 * benign, 2000 * malignant, separation)
    values = {name: float(value[0]) for name, value in measure(probability, label, THRESHOLD).items()}
    return values | {"auroc": NormalDist().cdf(separation / math.sqrt(2))}


def coverage(benign: int, malignant: int, separation: float, simulations: int, seed: int) -> None:
    """Print, for one design, how many intervals over cases and over tiles hold the true value."""
    truth = true_values(benign, malignant, separation)
    generator = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {"cases": Counter(), "tiles": Counter(), "blank": Counter()}
    for _ in range(simulations):
        probability, label, cases = draw(generator, benign, malignant, separation)
        by_tile = np.arange(len(cases)).astype(str)
        for over, units in (("cases", cases), ("tiles", by_tile)):
            for name, found in estimate(probability, label, units, THRESHOLD).items():
                if found.low is None or found.high is None:
                    counts["blank"][name] += over == "cases"
                else:
                    counts[over][name] += found.low <= truth[name] <= found.high
    print(f"\n{benign} benign and {malignant} malignant cases, true AUROC {truth['auroc']:.3f}")
    print(f"  {'metric':18} {'true':>6}  over cases  over tiles (naive)  blank")
    for name, title in NAMES.items():
        shares = [counts[over][name] / simulations for over in ("cases", "tiles")]
        print(
            f"  {title:18} {truth[name]:6.3f} {shares[0]:11.1%} {shares[1]:19.1%} {counts['blank'][name]:6}", flush=True
        )


def main() -> None:
    """Run every design."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000, help="of each design")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated data")
    options = parser.parse_args()
    print(f"{options.simulations} simulations of each design, seed {options.seed}; nominal 95%")
    for separation in SEPARATIONS:
        for benign, malignant in DESIGNS:
            coverage(benign, malignant, separation, options.simulations, options.seed)


if __name__ == "__main__":
    main()
