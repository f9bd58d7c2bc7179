"""Turns, mirror images and zooms: symmetries of tissue beyond Keras's augmentation."""

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from histo_pl.errors import UserError


class RandomDihedral(v2.Transform):
    """Turn by a multiple of 90 degrees and mirror, each of the eight views alike often: tissue has no up or down."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        """Draw the number of the `view`, from 0 to 7."""
        return {"view": int(torch.randint(8, ()))}

    def transform(self, inpt: Any, params: dict[str, int]) -> Tensor:  # noqa: ANN401
        """Turn and mirror a square tile, of shape (..., S, S)."""
        turned = torch.rot90(inpt, params["view"] % 4, (-2, -1))
        return turned.flip(-1) if params["view"] >= 4 else turned  # noqa: PLR2004


class RandomZoom(v2.Transform):
    """Show a tile smaller or larger, as at another magnification; its edges are mirrored where it is too small.

    Args:
        least: Smallest factor, above 0.5: a mirror image is no larger than the tile.
        greatest: Largest factor. Factors are drawn so that n-fold and 1/n-fold are alike likely.

    Raises:
        UserError: A number is out of range.
    """

    def __init__(self, least: float = 0.6, greatest: float = 1.6) -> None:
        super().__init__()
        if not 0.5 < least <= greatest:  # noqa: PLR2004
            raise UserError(
                f"The zoom is out of range. Expected a least factor above 0.5 and a greatest that is not less. "
                f"Received: least={least} greatest={greatest}"
            )
        self.bounds = math.log(least), math.log(greatest)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, float]:
        """Draw the `factor`, a positive number."""
        return {"factor": math.exp(torch.empty(()).uniform_(*self.bounds).item())}

    def transform(self, inpt: Any, params: dict[str, float]) -> Tensor:  # noqa: ANN401
        """Zoom a square tile, uint8 of shape (3, S, S)."""
        side = inpt.shape[-1]
        zoomed = v2.functional.resize(inpt, [round(side * params["factor"])] * 2, antialias=True)
        missing = max(0, side - zoomed.shape[-1])
        before = missing // 2
        mirrored = v2.functional.pad(
            zoomed, [before, before, missing - before, missing - before], padding_mode="symmetric"
        )
        return v2.functional.center_crop(mirrored, [side, side])
