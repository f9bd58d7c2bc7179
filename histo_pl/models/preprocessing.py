"""Preprocessing from bytes to the numbers that a network was trained on: part of the network itself."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from histo_pl.errors import UserError
from histo_pl.models.stain_normalization import MacenkoNormalizer

STAINS: dict[str, type[nn.Module]] = {"macenko": MacenkoNormalizer}


class UnitRange(nn.Module):
    """Scale bytes to [0, 1], as the notebook's `rescale=1/255`."""

    def forward(self, images: Tensor) -> Tensor:
        """Scale a batch.

        Args:
            images: Of shape (B, 3, S, S), RGB in [0, 255].

        Returns:
            float32 of the same shape in [0, 1].
        """
        return images.float() / 255


class Normalize(nn.Module):
    """Subtract a mean and divide by a deviation, as the images were that an encoder learnt from.

    Args:
        mean: Of each channel, in [0, 1].
        std: Of each channel, positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            images: Of shape (B, 3, S, S), RGB in [0, 1].

        Returns:
            float32 of the same shape, about -3 to 3.
        """
        return (images - self.mean) / self.std


def build_preprocessing(
    stain: str | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> nn.Module:
    """Build the preprocessing of a backbone.

    Args:
        stain: `macenko` to bring every tile to one stain first; None: as they are.
        mean: Of each channel, in [0, 1]; None: the backbone takes [0, 1] as it is.
        std: Of each channel, positive; given with `mean`.

    Returns:
        From uint8 (B, 3, S, S) to float32 of the same shape.

    Raises:
        UserError: The stain normalisation is unknown, or mean and deviation are not three numbers each.
    """
    if stain is not None and stain not in STAINS:
        raise UserError(f"model.stain is unknown. Expected null or {', '.join(STAINS)}. Received: {stain}")
    if (mean is None) != (std is None) or any(values and len(values) != 3 for values in (mean, std)):  # noqa: PLR2004
        raise UserError(
            f"model.mean and model.std are not as expected. Expected three numbers each, or null for both. "
            f"Received: mean={mean} std={std}"
        )
    steps = OrderedDict({} if stain is None else {"stain": STAINS[stain]()}, scale=UnitRange())
    if mean is not None and std is not None:
        steps["normalize"] = Normalize(mean, std)
    return nn.Sequential(steps)
