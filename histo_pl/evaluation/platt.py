"""Slope and offset of a model's logits for another laboratory, shrunk towards what they were."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histo_pl.data.splits import fold_groups
from histo_pl.data.tile import Tile
from histo_pl.evaluation.calibration import choose_threshold, logit, read_rule, sigmoid

# The prior: the offset is Cauchy of this scale, the slope's logarithm normal. Laboratories colour a slide much as the
# training did or quite otherwise; heavy tails leave the former alone and let the latter be moved by few tiles.
# docs/recalibration.py measures them.
OFFSET_SCALE = 0.3
SLOPE_DEVIATION = 0.2
STARTS = (0.0, -2.5, 2.5)  # offsets that the search starts from, as such a prior may leave two maxima
STEPS = 200  # at most, of Newton's method with the prior's curvature bounded
HALF_WEIGHT = 20  # tiles of the rarer class at which a chosen threshold counts as much as the old one
FOLDS = 10  # at most
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Shift:
    """A line from a model's calibrated logits to those of another laboratory.

    Attributes:
        slope: Positive; 1: as it was.
        offset: Added after it; 0: as it was.
        threshold: A probability above it means malignant, in [0, 1].
    """

    slope: float
    offset: float
    threshold: float

    def logits(self, logits: Array) -> Array:
        """Move calibrated logits, of any shape."""
        return self.slope * logits + self.offset


def fit_shift(logits: Array, malignant: NDArray[np.bool_], threshold: float, rule: str) -> Shift:
    """Find the most probable slope and offset (Platt 1999, with a prior), and the threshold.

    Args:
        logits: Calibrated, of labelled tiles, of shape (N,).
        malignant: The truth, of shape (N,).
        threshold: The model's, in [0, 1].
        rule: The name of the rule that chose it. A fixed one is taken where both classes count alike, however many
            tiles of each were labelled. Another is applied anew, and averaged with that on the logit scale by the
            number of tiles and `HALF_WEIGHT`.

    Returns:
        The shift; its threshold is one of the probabilities as they are after it.
    """
    truth, counts = malignant.astype(np.float64), (int(malignant.sum()), int((~malignant).sum()))
    slope, offset = _most_probable(logits, truth, np.ones(len(logits)))
    if not all(counts):
        return Shift(slope, offset, threshold)
    even = 2 / (1 / counts[0] + 1 / counts[1])  # tiles of each class that tell as much of a difference between them
    even_slope, even_offset = _most_probable(logits, truth, even / np.where(malignant, *counts))
    boundary = slope * (logit(np.array(threshold)) - even_offset) / even_slope + offset
    name, least = read_rule(rule)
    if name is not None:
        chosen = choose_threshold(name, least, sigmoid(slope * logits + offset), malignant)
        weight = min(counts) / (min(counts) + HALF_WEIGHT)
        boundary = weight * logit(np.array(chosen)) + (1 - weight) * boundary
    return Shift(slope, offset, float(sigmoid(boundary)))


def move_band(band: tuple[float, float] | None, threshold: float, new_threshold: float) -> tuple[float, float] | None:
    """Move a band of uncertainty with the threshold, as wide on the scale of calibrated logits.

    Args:
        band: Two probabilities; (0, 1), in which all is referred, stays; None: no band.
        threshold: That it surrounds, in [0, 1].
        new_threshold: Of the moved model, in [0, 1].
    """
    if band is None or band == (0.0, 1.0):
        return band
    by = logit(np.array(new_threshold)) - logit(np.array(threshold))
    low, high = (float(sigmoid(logit(np.array(end)) + by)) for end in band)
    return low, high


def _most_probable(logits: Array, truth: Array, weights: Array) -> tuple[float, float]:
    """Minimize the weighted log loss plus the prior's over slope and offset."""

    def loss(at: Array) -> float:
        moved = np.exp(at[0]) * logits + at[1]
        prior = (at[0] / SLOPE_DEVIATION) ** 2 / 2 + np.log1p((at[1] / OFFSET_SCALE) ** 2)
        return float(weights @ (np.logaddexp(0, moved) - truth * moved) + prior)

    def descend(offset: float) -> Array:
        at: Array = np.array([0.0, offset])
        for _ in range(STEPS):
            scaled = np.exp(at[0]) * logits
            probability = sigmoid(scaled + at[1])
            design = np.stack((scaled, np.ones_like(scaled)))
            precision = np.array([SLOPE_DEVIATION**-2, 2 / (OFFSET_SCALE**2 + at[1] ** 2)])
            gradient = design @ (weights * (probability - truth)) + precision * at
            hessian = (design * weights * probability * (1 - probability)) @ design.T + np.diag(precision)
            step: Array = np.linalg.solve(hessian, gradient).astype(np.float64)
            size = 1.0
            while loss(at - size * step) > loss(at) and size > 1e-6:  # noqa: PLR2004
                size /= 2
            at -= size * step
            if np.abs(size * step).max() < 1e-7:  # noqa: PLR2004
                break
        return at

    best = min((descend(offset) for offset in STARTS), key=loss)
    return float(np.exp(best[0])), float(best[1])


def cross_validate(
    tiles: Sequence[Tile], malignant: NDArray[np.bool_], fit: Callable[[NDArray[np.bool_]], Shift], logits: Array
) -> tuple[Array, Array]:
    """Move each tile by a shift that was fitted without its case.

    Args:
        tiles: N labelled tiles, each class of at least two groups.
        malignant: The truth, of shape (N,).
        fit: Fits a shift on chosen tiles, of shape (N,).
        logits: Calibrated, of shape (N,).

    Returns:
        The moved logits, and the threshold of each, of shape (N,).
    """
    groups = np.array([tile.group for tile in tiles])
    folds = min(FOLDS, *(len(np.unique(groups[chosen])) for chosen in (malignant, ~malignant)))
    moved, thresholds = logits.copy(), np.empty(len(tiles))
    for fold in range(folds):
        left_out = np.isin(groups, list(fold_groups(tiles, folds, fold, 0)))
        shift = fit(~left_out)
        moved[left_out], thresholds[left_out] = shift.logits(logits[left_out]), shift.threshold
    return moved, thresholds
