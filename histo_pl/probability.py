"""Probabilities and labels: the one sigmoid, and the one rule from a probability to a label."""

import torch
from torch import Tensor

MALIGNANT, BENIGN = "Malignant", "Benign"
UNLIKE, REFER = "Unlike training: refer", "Uncertain: refer"


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
