"""Other laboratories' stains, as an augmentation."""

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from histo_pl.errors import UserError

# Optical density that haematoxylin, eosin and a residual give red, green and blue (Ruifrok and Johnston 2001, with
# diaminobenzidine for the residual, as scikit-image has them).
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


class RandomStain(v2.Transform):
    """Change how much haematoxylin and eosin a tile took, in optical density (Tellez et al. 2018).

    A tile's amounts of the stains are each multiplied by one number and moved by another, drawn uniformly from
    PyTorch's default generator. White stays evenly coloured: no noise is amplified beyond 1 + scale.

    Args:
        scale: In [0, 1]; the factors are drawn from 1 - scale to 1 + scale.
        shift: Optical density, at least 0; the shifts are drawn from -shift to shift.

    Raises:
        UserError: A number is out of range.
    """

    def __init__(self, scale: float = 0.5, shift: float = 0.12) -> None:
        super().__init__()
        if not 0 <= scale <= 1 or not 0 <= shift < math.inf:
            raise UserError(
                f"The stain augmentation is out of range. Expected a scale from 0 to 1 and a shift of at least 0. "
                f"Received: scale={scale} shift={shift}"
            )
        self.scale = scale
        self.shift = shift
        self._stains = torch.tensor(STAINS)
        self._amounts = torch.linalg.inv(self._stains)
        self._density = -torch.log((torch.arange(256) + 1) / 256)  # of each byte; 0 for white

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Tensor]:
        """Draw `factors` and `shifts`, of shape (3,): haematoxylin, eosin, the rest."""
        return {
            "factors": torch.empty(3).uniform_(1 - self.scale, 1 + self.scale),
            "shifts": torch.empty(3).uniform_(-self.shift, self.shift),
        }

    def transform(self, inpt: Any, params: dict[str, Tensor]) -> Tensor:  # noqa: ANN401
        """Stain a tile anew.

        Args:
            inpt: uint8 of shape (3, H, W), RGB.
            params: As `make_params` returns them.

        Returns:
            uint8 of the same shape.
        """
        mixing = self._amounts @ torch.diag(params["factors"]) @ self._stains  # from density to density, rows
        density = self._density[inpt.flatten(1).long()]  # (3, H * W)
        changed = mixing.T @ density + (params["shifts"] @ self._stains).unsqueeze(1)
        return (256 * torch.exp(-changed) - 1).round().clamp(0, 255).to(torch.uint8).reshape(inpt.shape)
