"""Temperature, threshold and a band of uncertainty, all chosen on validation data."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from histo_pl.errors import UserError
from histo_pl.probability import to_probability

TEMPERATURES = (0.05, 20.0)  # a network that knows nothing gets the largest
RULES = ("youden", "sensitivity")
YOUDEN = "the greatest sensitivity + specificity on validation tiles"
SENSITIVITY = "the highest with a sensitivity of at least"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """Temperature, threshold and band: the rule from logits to answers.

    Attributes:
        temperature: Divides the logits before the sigmoid.
        threshold: A probability above it means malignant, in [0, 1].
        rule: Name of the rule that chose the threshold, for people.
        refer: Probabilities from the first to the second are too uncertain for an answer; None: all are answered.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    rule: str = "fixed"
    refer: tuple[float, float] | None = None

    def probabilities(self, logits: Array) -> Array:
        """Turn logits into probabilities of malignancy, in double precision.

        Args:
            logits: Any shape.

        Returns:
            Of the same shape, in [0, 1]; NaN for NaN.
        """
        return sigmoid(logits / self.temperature)


@dataclass(frozen=True)
class Calibration:
    """Settings of the choice on validation data: `calibration` in `conf/train.yaml`.

    Attributes:
        temperature: Fit a temperature; False: leave it at 1.
        threshold: The rule, see `choose_threshold`.
        least_sensitivity: For the rule `sensitivity`, in (0, 1].
        refer_error_rate: For a band of uncertainty, see `choose_band`, in [0, 1); None: no band.
        tta: Choose all of them for the mean of eight views too, which `tta=true` then takes.
    """

    temperature: bool = True
    threshold: float | str = 0.5
    least_sensitivity: float = 0.95
    refer_error_rate: float | None = None
    tta: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that cannot be met, before hours of training."""
        is_number = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        if not (0 <= float(self.threshold) <= 1 if is_number else self.threshold in RULES):
            raise UserError(
                f"calibration.threshold is not as expected. Expected a number from 0 to 1, {' or '.join(RULES)}. "
                f"Received: {self.threshold}"
            )
        for key, value, fits in (
            ("least_sensitivity", self.least_sensitivity, lambda value: 0 < value <= 1),
            ("refer_error_rate", self.refer_error_rate, lambda value: value is None or 0 <= value < 1),
        ):
            if isinstance(value, str | bool) or not fits(value):
                raise UserError(
                    f"calibration.{key} is out of range. Expected a number between 0 and 1. Received: {value}"
                )

    def choose(self, logits: Array, malignant: NDArray[np.bool_]) -> Decision:
        """Choose temperature, threshold and band.

        Args:
            logits: Of the validation tiles, of shape (N,).
            malignant: The truth, of shape (N,).

        Returns:
            The decision.

        Raises:
            UserError: The threshold cannot be chosen from these tiles.
        """
        temperature = fit_temperature(logits, malignant) if self.temperature else 1.0
        probability = Decision(temperature).probabilities(logits)
        threshold = choose_threshold(self.threshold, self.least_sensitivity, probability, malignant)
        rule = {
            "youden": YOUDEN,
            "sensitivity": f"{SENSITIVITY} {self.least_sensitivity} on validation tiles",
        }.get(str(self.threshold), "fixed")
        wanted = self.refer_error_rate
        band = None if wanted is None else choose_band(wanted, threshold, probability, malignant)
        return Decision(temperature, threshold, rule, band)


def read_rule(name: str) -> tuple[str | None, float]:
    """Read the rule back from its name for people, see `Calibration.choose`.

    Args:
        name: Such as `Decision.rule`.

    Returns:
        One of `RULES`, None for a fixed threshold; and the least sensitivity of that rule.
    """
    if name.startswith(SENSITIVITY):
        return "sensitivity", float(name.removeprefix(SENSITIVITY).split()[0])
    return ("youden" if name.startswith(YOUDEN) else None), 0.0


def fit_temperature(logits: Array, malignant: NDArray[np.bool_]) -> float:
    """Find the number that, dividing the logits, gives the least log loss (Guo et al., ICML 2017).

    The targets are Platt's (1999), (malignant + 1) / (malignant + 2) and 1 / (benign + 2): with 1 and 0, a
    network that makes no mistake on few tiles would be declared certain.

    Args:
        logits: Of shape (N,).
        malignant: The truth, of shape (N,).

    Returns:
        The temperature, within `TEMPERATURES`; 1 if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        return 1.0
    count = malignant.sum()
    targets = np.where(malignant, (count + 1) / (count + 2), 1 / (len(malignant) - count + 2))

    def slope(log_temperature: float) -> float:
        """Compute the slope of the log loss over 1 / temperature, in which it is convex."""
        return float(np.mean(logits * (sigmoid(logits / math.exp(log_temperature)) - targets)))

    low, high = (math.log(end) for end in TEMPERATURES)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return math.exp((low + high) / 2)


def choose_threshold(rule: float | str, least_sensitivity: float, probability: Array, malignant: NDArray) -> float:
    """Choose the probability above which a tile is called malignant.

    Args:
        rule: A number, taken as it is; `youden`: the greatest sensitivity + specificity - 1 (Youden, Cancer 3,
            1950); `sensitivity`: the highest threshold with at least this sensitivity.
        least_sensitivity: For that rule, in (0, 1].
        probability: Of malignancy, of shape (N,).
        malignant: The truth, of shape (N,).

    Returns:
        The threshold, in [0, 1], in the middle between two of the given probabilities where it is chosen.

    Raises:
        UserError: The threshold cannot be chosen from these tiles.
    """
    if isinstance(rule, int | float):
        return float(rule)
    if not np.isfinite(probability).all() or malignant.all() or not malignant.any():
        raise UserError(
            f"A threshold cannot be chosen by {rule}. Expected validation tiles of both classes with an answer each. "
            f"Received: {len(malignant)} tiles, {int(malignant.sum())} malignant, "
            f"{int(np.isfinite(probability).sum())} with an answer"
        )
    distinct = np.unique(probability)
    candidates = np.r_[distinct[0] / 2, (distinct[1:] + distinct[:-1]) / 2, (distinct[-1] + 1) / 2]
    sensitivity, wrongly_called = (_share_above(probability[chosen], candidates) for chosen in (malignant, ~malignant))
    specificity = 1 - wrongly_called
    if rule == "sensitivity":
        return float(candidates[np.flatnonzero(sensitivity >= least_sensitivity)[-1]])
    gain = sensitivity + specificity
    best = candidates[gain > gain.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _share_above(probability: Array, candidates: Array) -> Array:
    """Compute the share of probabilities above each candidate."""
    return 1 - np.searchsorted(np.sort(probability), candidates, side="right") / len(probability)


def choose_band(
    error_rate: float, threshold: float, probability: Array, malignant: NDArray[np.bool_]
) -> tuple[float, float]:
    """Choose the narrowest band around the threshold outside of which the answers are wrong seldom enough.

    Args:
        error_rate: The share of wrong answers allowed among those outside, in [0, 1).
        threshold: A probability above it means malignant.
        probability: Of malignancy, of shape (N,).
        malignant: The truth, of shape (N,).

    Returns:
        Two probabilities, equally far from the threshold on the logit scale; (0, 1) if every answer is referred.
    """
    distance = np.abs(logit(probability) - logit(np.array(threshold)))
    order = np.argsort(-distance, kind="stable")
    wrong = ((probability > threshold) != malignant)[order].cumsum()
    allowed = np.flatnonzero(wrong <= error_rate * np.arange(1, len(order) + 1))
    answered = _without_ties(distance[order], allowed)
    if answered == len(order):
        return threshold, threshold
    if answered == 0:
        return 0.0, 1.0
    reach = (distance[order][answered] + distance[order][answered - 1]) / 2
    centre = logit(np.array(threshold))
    return float(sigmoid(centre - reach)), float(sigmoid(centre + reach))


def _without_ties(distances: Array, allowed: NDArray[np.int64]) -> int:
    """The most observations that may be answered, where equally distant ones are answered together."""
    ends = np.flatnonzero(np.r_[distances[1:] != distances[:-1], True])
    possible = np.intersect1d(allowed, ends)
    return int(possible[-1]) + 1 if len(possible) else 0


def logit(probability: Array) -> Array:
    """Return the logits of probabilities, of any shape, kept off 0 and 1 by 1e-12."""
    inside = np.clip(probability, 1e-12, 1 - 1e-12)
    return np.log(inside / (1 - inside))


def sigmoid(logits: Array) -> Array:
    """Apply `to_probability` to an array, in double precision.

    Args:
        logits: Any shape.

    Returns:
        Of the same shape, in [0, 1]; NaN for NaN.
    """
    return to_probability(torch.from_numpy(np.asarray(logits, np.float64))).numpy()
