"""The sigmoid: the one function that turns logits into probabilities."""

import torch
from torch import Tensor


def to_probability(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Turn logits into probabilities of malignancy.

    Args:
        logits: Any shape.
        temperature: Positive; above 1 makes the probabilities less extreme (Guo et al., ICML 2017).

    Returns:
        Of the same shape, in [0, 1]: float64 of float64, else float32; NaN for NaN.
    """
    return torch.sigmoid((logits if logits.dtype == torch.float64 else logits.float()) / temperature)
