"""The metrics of a binary classifier, computed from weighted observations.

With a weight for every observation, leaving a case out is a weight of 0, and all of a jackknife is one matrix.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

ECE_BINS = 15  # of equal width, as in Guo et al., On calibration of modern neural networks, ICML 2017
EPSILON = float(np.finfo(np.float64).eps)  # probabilities of 0 and 1 are this far from them in the log loss

# Each metric's name for people. The order is that of every table.
NAMES: Mapping[str, str] = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "mcc": "MCC",
    "brier": "Brier score",
    "log_loss": "log loss",
    "ece": "ECE",
}


def measure(
    probability: NDArray[np.floating],
    label: NDArray[np.bool_],
    threshold: float | Values,
    weights: Values | None = None,
) -> dict[str, Values]:
    """Compute every metric of `NAMES`, for each row of weights.

    Args:
        probability: Of malignancy, in [0, 1], of shape (N,).
        label: True for malignant, of shape (N,).
        threshold: A probability above it means malignant; one for all, or of shape (N,).
        weights: Not negative, of shape (R, N); None: one row of ones.

    Returns:
        Each metric's values, of shape (R,): NaN where it is undefined, such as the sensitivity without malignant
        observations. scikit-learn returns 0 for an undefined PPV (precision), NPV, F1 and MCC, and for the
        average precision without malignant observations.
    """
    probability = probability.astype(np.float64)
    weights = np.ones((1, len(label))) if weights is None else weights
    with np.errstate(divide="ignore", invalid="ignore"):
        return (
            _ranking(probability, label, weights)
            | _decisions(probability > threshold, label, weights)
            | _calibration(probability, label, weights)
        )


def confusion(
    called: NDArray[np.bool_], label: NDArray[np.bool_], weights: Values
) -> tuple[Values, Values, Values, Values]:
    """Sum the weights of the true and false negatives and positives.

    Args:
        called: True for called malignant, of shape (N,).
        label: True for malignant, of shape (N,).
        weights: Of shape (R, N).

    Returns:
        tn, fp, fn and tp, each of shape (R,).
    """
    cells = (~label & ~called, ~label & called, label & ~called, label & called)
    tn, fp, fn, tp = (weights @ cell.astype(np.float64) for cell in cells)
    return tn, fp, fn, tp


def _decisions(called: NDArray[np.bool_], label: NDArray[np.bool_], weights: Values) -> dict[str, Values]:
    tn, fp, fn, tp = confusion(called, label, weights)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "accuracy": (tp + tn) / (tn + fp + fn + tp),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "mcc": (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
    }


def _ranking(probability: Values, label: NDArray[np.bool_], weights: Values) -> dict[str, Values]:
    """AUROC, where a tie counts half, and average precision, where tied observations are called together."""
    order = np.argsort(-probability, kind="stable")
    ordered = probability[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else np.empty(0, int)
    malignant, benign = (
        np.add.reduceat(weights[:, order] * of_class[order], starts, axis=1) if len(order) else np.zeros_like(weights)
        for of_class in (label, ~label)
    )
    found, called_wrongly = malignant.cumsum(axis=1), benign.cumsum(axis=1)
    malignant_total, benign_total = malignant.sum(axis=1), benign.sum(axis=1)
    won = malignant * (benign_total[:, None] - called_wrongly + benign / 2)
    precision = found / np.maximum(found + called_wrongly, EPSILON)
    return {
        "auroc": won.sum(axis=1) / (malignant_total * benign_total),
        "average_precision": (malignant * precision).sum(axis=1) / malignant_total,
    }


def _calibration(probability: Values, label: NDArray[np.bool_], weights: Values) -> dict[str, Values]:
    total = weights.sum(axis=1)
    inside = np.clip(probability, EPSILON, 1 - EPSILON)
    surprise = -np.log(np.where(label, inside, 1 - inside))
    excess = weights * (label - probability)
    gaps = sum(np.abs(excess[:, bin_of(probability) == number].sum(axis=1)) for number in range(ECE_BINS))
    return {
        "brier": weights @ (label - probability) ** 2 / total,
        "log_loss": weights @ surprise / total,
        "ece": np.asarray(gaps) / total,
    }


def bin_of(probability: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return each probability's bin of the calibration error, from 0 to `ECE_BINS` - 1."""
    return np.minimum(probability * ECE_BINS, ECE_BINS - 1).astype(np.int64)
