"""Stain normalisation: every tile as if one laboratory had stained it."""

import torch
from torch import Tensor, nn

from histo_pl.hardware import without_autocast

# The reference of Macenko et al. 2009 (ISBI, pp. 1107-1110), as their published code has it.
REFERENCE_STAINS = ((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581))  # optical density of haematoxylin and eosin
REFERENCE_MAXIMA = (1.9705, 1.0308)  # 99th percentiles of their concentrations
WHITE = 240.0  # transmitted light where there is no tissue
LEAST_DENSITY = 0.15  # of every channel, below which a pixel is no tissue
EXTREMES = (0.01, 0.99)  # quantiles of the angle at which the two stains lie
LEAST_TISSUE = 0.02  # share of a tile's pixels; with less the stains cannot be told
LEAST_ANGLE_SINE = 0.15  # between the two stains, below which they are one; 0.21 and more on BreakHis
GREATEST_GAIN = 3.0  # of a stain: a pale tile stays pale rather than turns to noise


class MacenkoNormalizer(nn.Module):
    """Find a tile's two stains and replace them by a reference (Macenko et al. 2009).

    Tiles with too little tissue, or with one stain alone, are left as they are. Each tile is treated by itself: what
    else is in the batch changes nothing.
    """

    stains: Tensor
    maxima: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stains", torch.tensor(REFERENCE_STAINS))
        self.register_buffer("maxima", torch.tensor(REFERENCE_MAXIMA))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            images: uint8 of shape (B, 3, H, W), RGB in [0, 255].

        Returns:
            float32 of the same shape in [0, 255].
        """
        with without_autocast(images.device.type):
            pixels = images.float().flatten(2)  # (B, 3, N)
            density = -torch.log((pixels + 1) / WHITE)
            tissue = (density > LEAST_DENSITY).all(1)  # (B, N)
            stains = _stains(density, tissue)  # (B, 3, 2)
            amounts = torch.linalg.pinv(stains) @ density  # (B, 2, N)
            maxima = _quantile(amounts, tissue.unsqueeze(1), EXTREMES[1])  # (B, 2)
            gain = (self.maxima / maxima.clamp(min=1e-6)).clamp(max=GREATEST_GAIN)
            stained = WHITE * torch.exp(-self.stains @ (amounts * gain.unsqueeze(2)))
            can = (tissue.float().mean(1) >= LEAST_TISSUE) & (_sine(stains) >= LEAST_ANGLE_SINE) & (maxima > 0).all(1)
            return torch.where(can[:, None, None], stained.clamp(0, 255), pixels).reshape(images.shape)


def _stains(density: Tensor, tissue: Tensor) -> Tensor:
    """Find haematoxylin and eosin, (B, 3, 2): the extreme directions in the plane of the tissue's densities."""
    weight = tissue.unsqueeze(1) / tissue.sum(1).clamp(min=1)[:, None, None]
    centred = (density - (density * weight).sum(2, keepdim=True)) * weight.sqrt()
    plane = torch.linalg.eigh(centred @ centred.mT).eigenvectors[:, :, 1:]  # (B, 3, 2), the two largest
    plane = plane * torch.where(plane[:, :1] < 0, -1.0, 1.0)
    across, along = (plane.mT @ density).unbind(1)
    angle = torch.atan2(along, across)
    ends = torch.stack([_quantile(angle, tissue, share) for share in EXTREMES], 1)  # (B, 2)
    stains = plane @ torch.stack((ends.cos(), ends.sin()), 1)
    haematoxylin_first = stains[:, 0, 0] > stains[:, 0, 1]  # it takes more of the red light
    return torch.where(haematoxylin_first[:, None, None], stains, stains.flip(2))


def _quantile(values: Tensor, tissue: Tensor, share: float) -> Tensor:
    """Take a quantile of the tissue's values along the last dimension, 0 where there is none."""
    ordered = values.masked_fill(~tissue, torch.inf).sort(-1).values
    rank = ((tissue.sum(-1, keepdim=True) - 1) * share).round().long().clamp(min=0)
    found = ordered.gather(-1, rank.expand(*values.shape[:-1], 1)).squeeze(-1)
    return torch.where(found.isfinite(), found, 0.0)


def _sine(stains: Tensor) -> Tensor:
    return torch.linalg.cross(stains[:, :, 0], stains[:, :, 1]).norm(dim=1)
