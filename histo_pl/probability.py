"""Probabilities, labels and scores: the one sigmoid, the rules from a probability to a label, from tiles to a score."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MALIGNANT, BENIGN = "Malignant", "Benign"
UNLIKE, REFER = "Unlike training: refer", "Uncertain: refer"
TOP = 10  # tiles
SCORES: Mapping[str, str] = {  # of a case or a slide, and their names for people
    "mean": "mean probability",
    "max": "highest probability",
    "top10": "mean of the ten highest probabilities",
    "share": "share of tiles above the threshold",
}


def to_probability(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Turn logits into probabilities of malignancy.

    Args:
        logits: Any shape.
        temperature: Positive; above 1 makes the probabilities less extreme (Guo et al., ICML 2017).

    Returns:
        Of the same shape, in [0, 1]: float64 of float64, else float32; NaN for NaN.
    """
    return torch.sigmoid((logits if logits.dtype == torch.float64 else logits.float()) / temperature)


def label_of(
    probability: float, threshold: float, refer: tuple[float, float] | None, novelty: float | None = None
) -> str:
    """Call a probability by its name, unless there is no opinion.

    Args:
        probability: Of malignancy, in [0, 1].
        threshold: A probability above it means malignant.
        refer: A band, its ends included, in which there is no answer; None: no band.
        novelty: The distance from the training tiles in units of its limit; None or NaN: not known.

    Returns:
        Malignant, Benign, `Unlike training: refer` of a novelty above 1, or `Uncertain: refer`.
    """
    if novelty is not None and novelty > 1:
        return UNLIKE
    if refer is not None and refer[0] <= probability <= refer[1]:
        return REFER
    return MALIGNANT if probability > threshold else BENIGN


def score_groups(
    probability: NDArray[np.floating], called: NDArray[np.bool_], group: NDArray[np.int64], score: str
) -> NDArray[np.float64]:
    """Make one score of the tiles of each case or slide.

    Args:
        probability: Of N tiles, of shape (N,).
        called: True where a tile is called malignant, of shape (N,).
        group: The number of each tile's case, from 0 to G - 1, all present, of shape (N,).
        score: One of `SCORES`.

    Returns:
        Of shape (G,), in [0, 1].
    """
    counts = np.bincount(group)
    if score == "mean":
        return np.bincount(group, probability) / counts
    if score == "share":
        return np.bincount(group, called) / counts
    most = TOP if score == "top10" else 1
    order = np.lexsort((-probability, group))
    rank = np.arange(len(group)) - np.repeat(np.r_[0, counts.cumsum()[:-1]], counts)
    highest = order[rank < most]
    return np.bincount(group[highest], probability[highest]) / np.minimum(counts, most)
