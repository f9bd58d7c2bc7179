"""Alterations of tiles by known strengths: other stains, magnifications, scanners and cameras."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from histo_pl.data.transforms.geometric import RandomZoom
from histo_pl.data.transforms.stain import RandomStain

REFERENCE = 224  # pixels of a side that a blur's strength is told for
Change = Callable[[Tensor], Tensor]  # uint8 (B, 3, S, S) to the same


@dataclass(frozen=True)
class Shift:
    """One alteration.

    Attributes:
        kind: What differs, such as `gamma above 1`.
        strength: By how much, such as 1.4; within a kind in the order of harm.
        change: Alters tiles, uint8 (B, 3, S, S).
    """

    kind: str
    strength: float
    change: Change


def shifts() -> list[Shift]:
    """List all kinds and strengths; no two kinds are mixed."""
    kinds: Mapping[str, tuple[Sequence[float], Callable[[float], Change]]] = {
        "stains weaker": ((0.8, 0.6, 0.4), lambda factor: _stain(factor, factor)),
        "stains stronger": ((1.25, 1.6, 2.0), lambda factor: _stain(factor, factor)),
        "haematoxylin to eosin": ((1.25, 1.6, 2.0), lambda factor: _stain(1 / factor, factor)),
        "eosin to haematoxylin": ((1.25, 1.6, 2.0), lambda factor: _stain(factor, 1 / factor)),
        "lower magnification": ((0.85, 0.7, 0.55), _zoom),
        "higher magnification": ((1.25, 1.6, 2.0), _zoom),
        "gamma below 1": ((0.85, 0.7, 0.55), _gamma),
        "gamma above 1": ((1.2, 1.5, 2.0), _gamma),
        "white balance to blue": ((1.05, 1.1, 1.2), lambda factor: _balance(1 / factor, factor)),
        "white balance to red": ((1.05, 1.1, 1.2), lambda factor: _balance(factor, 1 / factor)),
        "blur, pixels of 224": ((0.75, 1.5, 3.0), _blur),
        "JPEG quality": ((70, 40, 15), _jpeg),
    }
    return [Shift(kind, one, make(one)) for kind, (strengths, make) in kinds.items() for one in strengths]


def _each(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda images: torch.stack([change(image) for image in images])


def _stain(haematoxylin: float, eosin: float) -> Change:
    params = {"factors": torch.tensor((haematoxylin, eosin, 1.0)), "shifts": torch.zeros(3)}
    stain = RandomStain()
    return _each(lambda tile: stain.transform(tile, params))


def _zoom(factor: float) -> Change:
    zoom = RandomZoom()
    return _each(lambda tile: zoom.transform(tile, {"factor": factor}))


def _gamma(gamma: float) -> Change:
    return lambda images: F.adjust_gamma(images, gamma)


def _balance(red: float, blue: float) -> Change:
    factors = torch.tensor((red, 1.0, blue)).reshape(3, 1, 1)
    return lambda images: (images * factors).round().clamp(0, 255).to(torch.uint8)


def _blur(deviation: float) -> Change:
    def change(images: Tensor) -> Tensor:
        own = deviation * images.shape[-1] / REFERENCE
        side = 2 * max(1, round(3 * own)) + 1
        return F.gaussian_blur(images, [side, side], [own, own])

    return change


def _jpeg(quality: float) -> Change:
    def compress(tile: Tensor) -> Tensor:
        stored = io.BytesIO()
        Image.fromarray(tile.permute(1, 2, 0).numpy()).save(stored, "JPEG", quality=int(quality))
        return torch.from_numpy(np.array(Image.open(stored))).permute(2, 0, 1)

    return _each(compress)
