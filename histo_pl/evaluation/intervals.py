"""Confidence intervals over cases: tiles of one patient are alike, and only patients are independent.

One method for every metric, whether a case holds one class or both. The delete-one-case jackknife (Efron and Stein,
Ann. Stat. 9, 1981), stratified by what a case holds, benign tiles, malignant ones or both, gives a metric's variance;
for the AUROC this is DeLong's for clustered data, in which a cluster may hold both classes (Obuchowski, Biometrics 53,
1997), up to terms that vanish with the number of cases. The interval is symmetric on the logit scale, so that it stays
inside the metric's range, and takes Student's t with the degrees of freedom that the jackknife's variance itself has,
estimated from the cases (Satterthwaite, Biometrics Bulletin 2, 1946): a bootstrap of cases, or the normal quantile,
covers too rarely. At a value of 0 or 1, whose variance is unknown, it is that of Clopper and Pearson (Biometrika 26,
1934) with every case as one observation. docs/coverage.py measures how often all this holds.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histo_pl.evaluation.metrics import NAMES, Values, measure

LEVEL = 0.95
MAX_CASES = 200  # of a stratum; more are joined to as many random groups (Kott, J. Off. Stat. 17, 2001)
BLOCK = 64  # replicates computed at a time
LEAST_CASES = 3  # of a class, without which there is no interval: two say next to nothing of their spread
LEAST_FREEDOM = 3.0  # of the jackknife's variance; with less the t quantile explodes
TINY = 1e-12  # a difference below this is rounding


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its interval.

    Attributes:
        value: None where the metric is undefined.
        low: The interval's lower end; None where there are too few cases for one.
        high: Its upper end.
    """

    value: float | None
    low: float | None
    high: float | None


def estimate(
    probability: NDArray[np.floating], label: NDArray[np.bool_], cases: NDArray[np.str_], threshold: float | Values
) -> dict[str, Estimate]:
    """Compute every metric with a 95% interval over cases.

    An interval is None with fewer than `LEAST_CASES` cases that hold a class which the metric rests on, or if leaving
    one out makes it undefined. If a probability is not finite, as those of a diverged network, all is None.

    Args:
        probability: Of malignancy, in [0, 1], of shape (N,).
        label: True for malignant, of shape (N,).
        cases: The case of each observation, of shape (N,), which may have tiles of both classes; the observation's
            own name where cases are unknown.
        threshold: A probability above it means malignant; one for all, or of shape (N,).

    Returns:
        An estimate for each of `metrics.NAMES`.
    """
    if not len(label) or not np.isfinite(probability).all():
        return {name: Estimate(None, None, None) for name in NAMES}
    values = measure(probability, label, threshold)
    _, case = np.unique(cases, return_inverse=True)
    group, strata = _groups(_kinds(case, label))
    without = [
        measure(probability, label, threshold, (group[case] != left_out[:, None]).astype(np.float64))
        for left_out in np.split(np.arange(len(strata)), range(BLOCK, len(strata), BLOCK))
    ]
    counts = _cases_of_metrics(probability > threshold, label, case)
    return {
        name: _estimate(
            name, float(values[name][0]), np.concatenate([part[name] for part in without]), strata, counts[name]
        )
        for name in NAMES
    }


def _kinds(case: NDArray[np.int64], label: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Tell of each case if it holds benign tiles (0), malignant ones (1) or both (2); very few of 0 or 1 join 2."""
    malignant, tiles = np.bincount(case, label), np.bincount(case)
    kinds = np.where(malignant == 0, 0, np.where(malignant == tiles, 1, 2))
    if (kinds == 2).any():  # noqa: PLR2004
        for kind in (0, 1):
            if (kinds == kind).sum() < LEAST_CASES:
                kinds[kinds == kind] = 2
    return kinds


def _groups(kinds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give each case its group, and each group its kind: one case a group, unless a kind has very many."""
    group = np.empty(len(kinds), np.int64)
    strata: list[int] = []
    shuffled = np.random.default_rng(0).permutation(len(kinds))
    for kind in np.unique(kinds).tolist():
        members = shuffled[kinds[shuffled] == kind]
        count = min(len(members), MAX_CASES)
        group[members] = len(strata) + np.arange(len(members)) % count
        strata += [kind] * count
    return group, np.array(strata)


def _cases_of_metrics(
    called: NDArray[np.bool_], label: NDArray[np.bool_], case: NDArray[np.int64]
) -> dict[str, tuple[int, int]]:
    """Count the cases that each metric rests on, and those of the rarer class if it takes both."""

    def count(chosen: NDArray[np.bool_]) -> int:
        return len(np.unique(case[chosen]))

    both = min(count(label), count(~label))
    rarer = both or len(np.unique(case))
    of_class = {"sensitivity": count(label), "specificity": count(~label)}
    of_some = {"ppv": count(called), "npv": count(~called)}
    of_all = dict.fromkeys(("accuracy", "brier", "log_loss", "ece"), len(np.unique(case)))
    cases = dict.fromkeys(NAMES, both) | of_all | of_some | of_class
    return {name: (number, number if name in of_class else min(number, rarer)) for name, number in cases.items()}


def _estimate(name: str, value: float, without: Values, strata: NDArray[np.int64], counts: tuple[int, int]) -> Estimate:
    """Make the interval from the values without each group, the groups' kinds, and the numbers of cases."""
    if np.isnan(value):
        return Estimate(None, None, None)
    cases, rarer = counts
    by_kind = [without[strata == kind] for kind in np.unique(strata)]
    variance = sum((len(values) - 1) * float(np.var(values)) for values in by_kind)
    varying = [values for values in by_kind if np.ptp(values) > TINY]
    if np.isnan(variance) or min([cases, *map(len, varying)]) < LEAST_CASES:
        return Estimate(value, None, None)
    spread = t_quantile(_freedom(varying, rarer)) * math.sqrt(variance)
    if name == "ece":  # which chance raises above 0: the lower end is taken from the value without that bias
        bias = sum((len(values) - 1) * float(values.mean() - value) for values in by_kind)
        return Estimate(value, max(value - max(bias, 0) - spread, 0.0), min(value + spread, 1.0))
    if name == "log_loss":
        return Estimate(value, value * math.exp(-spread / value), value * math.exp(spread / value))
    if name == "mcc":
        low, high = _interval((value + 1) / 2, spread / 2, cases)
        return Estimate(value, low and 2 * low - 1, high and 2 * high - 1)
    return Estimate(value, *_interval(value, spread, cases))


def _freedom(varying: list[Values], rarer: int) -> float:
    """Estimate the variance's degrees of freedom, 2 variance^2 / (variance of the variance), from the kurtosis.

    Half of them are taken, as samples understate a kurtosis; never more than cases of the rarer class, less one.
    """
    if not varying:
        return 1.0
    variance, its_variance = 0.0, 0.0
    for values in varying:
        count, square = len(values), float(np.var(values))
        fourth = float(np.mean((values - values.mean()) ** 4))
        variance += (count - 1) * square
        its_variance += (count - 1) ** 2 / count * max(fourth - square**2 * (count - 3) / (count - 1), 0.0)
    estimated = variance**2 / its_variance if its_variance > 0 else math.inf
    return min(max(estimated, LEAST_FREEDOM), rarer - 1)


def _interval(value: float, spread: float, cases: int) -> tuple[float, float] | tuple[None, None]:
    """Turn a value in [0, 1] and t times its standard error into an interval."""
    exact = ((1 - LEVEL) / 2) ** (1 / cases)
    if value > 1 - TINY:
        return exact, 1.0
    if value < TINY:
        return 0.0, 1 - exact
    if spread < TINY:  # all cases alike, which says nothing of their spread
        return None, None
    logit, reach = math.log(value / (1 - value)), spread / (value * (1 - value))
    return 1 / (1 + math.exp(reach - logit)), 1 / (1 + math.exp(-reach - logit))


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """Return the two-sided quantile of Student's t.

    Args:
        freedom: Degrees of freedom, at least 1.
        level: Probability between the quantile and its negative, in (0, 1).

    Returns:
        Such as 2.262 for 9 degrees and 0.95: with t = sqrt(freedom) tan(a), the density of a is cos(a)^(freedom - 1).
    """
    angles = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    area = np.r_[0.0, np.cumsum((density[1:] + density[:-1]) / 2)]
    return float(np.sqrt(freedom) * np.tan(np.interp(level * area[-1], area, angles)))
