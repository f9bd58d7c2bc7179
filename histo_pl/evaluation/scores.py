"""Answers of a model beside the truth, one a tile or one a case."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo_pl.evaluation.intervals import Estimate, estimate
from histo_pl.evaluation.measures import confusion


@dataclass(frozen=True)
class Scores:
    """What a model says of observations whose truth is known.

    Attributes:
        path: Each observation's name, of shape (N,): a tile's path, or a case.
        case: Each one's case, of shape (N,), empty where unknown.
        malignant: The truth, of shape (N,).
        probability: Of malignancy, in [0, 1], of shape (N,); NaN where the model has no answer.
        threshold: A probability above it means malignant, of shape (N,): one model's is the same everywhere.
    """

    path: NDArray[np.str_]
    case: NDArray[np.str_]
    malignant: NDArray[np.bool_]
    probability: NDArray[np.float64]
    threshold: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of observations."""
        return len(self.path)

    @property
    def called(self) -> NDArray[np.bool_]:
        """Which observations are called malignant."""
        return self.probability > self.threshold

    @property
    def unit(self) -> str:
        """What intervals are taken over: cases if all are known, else tiles."""
        return "cases" if len(self) and (self.case != "").all() else "tiles"

    def take(self, chosen: NDArray[np.bool_]) -> "Scores":
        """Return the chosen observations.

        Args:
            chosen: Of shape (N,).
        """
        return Scores(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def by_case(self) -> "Scores":
        """Return one observation a case: its tiles' mean probability; malignant if any of its tiles is."""
        names, case = np.unique(self.case, return_inverse=True)
        counts = np.bincount(case)
        return Scores(
            path=names,
            case=names,
            malignant=np.bincount(case, self.malignant) > 0,
            probability=np.bincount(case, self.probability) / counts,
            threshold=np.bincount(case, self.threshold) / counts,
        )

    def with_probability(self, probability: NDArray[np.float64], threshold: float) -> "Scores":
        """Return the same observations with other answers."""
        return replace(self, probability=probability, threshold=np.full(len(self), threshold))

    def estimates(self) -> dict[str, Estimate]:
        """Return every metric with its interval, see `intervals.estimate`."""
        units = self.case if self.unit == "cases" else self.path
        return estimate(self.probability, self.malignant, units, self.threshold)

    def summary(self) -> dict[str, Any]:
        """Describe the result in plain values.

        Returns:
            tiles, malignant and cases (None where unknown); each metric's value and, in `intervals`, its two
            ends, None where undefined; what they are taken over; the confusion matrix.
        """
        found = self.estimates()
        cells = confusion(self.called, self.malignant, np.ones((1, len(self))))
        return {
            "tiles": len(self),
            "malignant": int(self.malignant.sum()),
            "cases": len(np.unique(self.case)) if self.unit == "cases" else None,
            **{name: one.value for name, one in found.items()},
            "intervals": {name: None if one.low is None else [one.low, one.high] for name, one in found.items()},
            "intervals_over": self.unit,
            "confusion": {name: int(cell[0]) for name, cell in zip(("tn", "fp", "fn", "tp"), cells, strict=True)},
        }

    def summary_by_case(self) -> dict[str, Any] | None:
        """Return the `summary` of `by_case`; None where cases are unknown."""
        return self.by_case().summary() if self.unit == "cases" else None


def referral(scores: Scores, band: tuple[float, float]) -> dict[str, float | int | None]:
    """Count what a band of uncertainty refers and what is left wrong.

    Args:
        scores: The observations.
        band: Probabilities from the first to the second are referred.

    Returns:
        low and high, the numbers referred, answered and wrong among the answered, and their error rate.
    """
    answered = ~in_band(scores.probability, band)
    wrong = int((scores.called != scores.malignant)[answered].sum())
    count = int(answered.sum())
    return {
        "low": band[0],
        "high": band[1],
        "referred": len(scores) - count,
        "answered": count,
        "wrong": wrong,
        "error_rate": wrong / count if count else None,
    }


def in_band(probability: NDArray[np.float64], band: tuple[float, float]) -> NDArray[np.bool_]:
    """Return which probabilities lie in a band, its ends included."""
    return (band[0] <= probability) & (probability <= band[1])
