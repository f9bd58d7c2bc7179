"""Predictions with their labels, one a tile or one a case (`evaluation.cases`), and their summaries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo_pl.evaluation.intervals import Estimate, estimate
from histo_pl.evaluation.metrics import confusion


@dataclass(frozen=True)
class Predictions:
    """A model's probabilities of observations whose class is known.

    Attributes:
        path: Each observation's name, of shape (N,): a tile's path, or a case.
        case: Each one's case, of shape (N,), empty where unknown.
        group: The unit that no split divides (`Tile.group`), of shape (N,): its joined group, its case, or itself.
        malignant: The truth, of shape (N,).
        probability: Of malignancy, in [0, 1], of shape (N,); NaN where the model has no answer.
        threshold: A probability above it means malignant, of shape (N,): one model's is the same everywhere.
        novelty: Distance from the training tiles in units of its limit, of shape (N,); NaN where unknown.
    """

    path: NDArray[np.str_]
    case: NDArray[np.str_]
    group: NDArray[np.str_]
    malignant: NDArray[np.bool_]
    probability: NDArray[np.float64]
    threshold: NDArray[np.float64]
    novelty: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of observations."""
        return len(self.path)

    @property
    def called(self) -> NDArray[np.bool_]:
        """The observations called malignant, of shape (N,)."""
        return self.probability > self.threshold

    @property
    def refused(self) -> NDArray[np.bool_]:
        """The observations unlike those of the training, of shape (N,)."""
        return self.novelty > 1

    @property
    def share_refused(self) -> float | None:
        """The share of the observations that is refused, in [0, 1]; None where no novelty is known."""
        return None if np.isnan(self.novelty).all() else float(self.refused.mean())

    @property
    def has_cases(self) -> bool:
        """True if every observation's case is known."""
        return bool(len(self) and (self.case != "").all())

    @property
    def unit(self) -> str:
        """The unit of intervals: cases or tiles, or groups where a file joins some of them."""
        if self.has_cases and (self.group == self.case).all():
            return "cases"
        return "tiles" if (self.group == self.path).all() else "groups"

    def take(self, chosen: NDArray[np.bool_]) -> "Predictions":
        """Return the chosen observations.

        Args:
            chosen: Of shape (N,).
        """
        return Predictions(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @classmethod
    def join(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Join several runs' predictions, at least one, of different observations."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def with_probability(self, probability: NDArray[np.float64], threshold: float) -> "Predictions":
        """Return the same observations with other probabilities, of shape (N,), and another threshold."""
        return replace(self, probability=probability, threshold=np.full(len(self), threshold))

    def estimates(self) -> dict[str, Estimate]:
        """Return every metric with its interval, see `intervals.estimate`."""
        return estimate(self.probability, self.malignant, self.group, self.threshold)

    def summary(self) -> dict[str, Any]:
        """Describe the result in plain values.

        Returns:
            tiles, malignant and cases (None where unknown); each metric's value and, in `intervals`, its two
            ends, None where undefined; their unit and its number; the confusion matrix.
        """
        found = self.estimates()
        cells = confusion(self.called, self.malignant, np.ones((1, len(self))))
        return {
            "tiles": len(self),
            "malignant": int(self.malignant.sum()),
            "cases": len(np.unique(self.case)) if self.has_cases else None,
            **{name: one.value for name, one in found.items()},
            "intervals": {name: None if one.low is None else [one.low, one.high] for name, one in found.items()},
            "intervals_over": self.unit,
            "units": len(np.unique(self.group)),
            "confusion": {name: int(cell[0]) for name, cell in zip(("tn", "fp", "fn", "tp"), cells, strict=True)},
        }


def referral(predictions: Predictions, band: tuple[float, float]) -> dict[str, float | int | None]:
    """Count the referred observations of a band of uncertainty, and the mistakes among the others.

    Args:
        predictions: The observations.
        band: Probabilities from the first to the second are referred.

    Returns:
        low and high, the numbers referred, answered and wrong among the answered, and their error rate.
    """
    answered = ~in_band(predictions.probability, band)
    wrong = int((predictions.called != predictions.malignant)[answered].sum())
    count = int(answered.sum())
    return {
        "low": band[0],
        "high": band[1],
        "referred": len(predictions) - count,
        "answered": count,
        "wrong": wrong,
        "error_rate": wrong / count if count else None,
    }


def in_band(probability: NDArray[np.float64], band: tuple[float, float]) -> NDArray[np.bool_]:
    """Tell for each probability if it lies in a band, its ends included, of the same shape."""
    return (band[0] <= probability) & (probability <= band[1])


def format_estimate(level: Mapping[str, Any], name: str) -> str:
    """Write a metric and its interval, such as `.915 (.820 to .962)`.

    Args:
        level: As `Predictions.summary` returns it.
        name: The metric.

    Returns:
        The text; empty where the metric is undefined.
    """
    if level[name] is None:
        return ""
    ends = level["intervals"][name]
    interval = f" ({format_number(ends[0])} to {format_number(ends[1])})" if ends else ""
    return format_number(level[name]) + interval


def format_number(value: float) -> str:
    """Write a number with three decimals, without a leading zero where it is in (-1, 1)."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"
