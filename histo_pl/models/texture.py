"""A tile's colours and texture in a few numbers, by operations that a network can be exported with."""

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_PIXELS = 256  # along a side: a larger tile is averaged first, by a whole factor
LEAST_PIXELS = 8  # along a side of a band
BANDS = 4  # at most
GREATEST_CORRELATION = 0.999  # where Fisher's transform is cut: grey tiles have 1
PAIRS = ((0, 1), (0, 2), (1, 2))  # of red, green and blue


def describe_texture(images: Tensor) -> Tensor:
    """Describe colours and texture: saturation, optical densities, and bands of a Laplacian pyramid of these.

    Of each band and channel it takes the energy (Burt and Adelson 1983 for the pyramid), and of each pair of channels
    the correlation, which two stains bind together in a way that photographs, ink and grey tiles do not.

    Args:
        images: uint8 of shape (B, 3, S, S), S at least 8.

    Returns:
        float32 of shape (B, 8 + 6 * bands), at most 32 numbers: logarithms, and correlations by Fisher's transform.
    """
    pixels = images.float()
    pixels = F.avg_pool2d(pixels, -(-int(pixels.shape[-1]) // MOST_PIXELS))
    saturation = (pixels.amax(1) - pixels.amin(1)).flatten(1) / 255
    density = -torch.log10((pixels + 1) / 256)
    found = [
        torch.stack((saturation.mean(1), saturation.std(1)), 1).add(0.01).log(),
        density.mean((2, 3)).add(0.02).log(),
        _correlations(density)[1],
    ]
    bands = 0
    while bands < BANDS and density.shape[-1] >= LEAST_PIXELS:
        coarse = F.avg_pool2d(density, 2)
        detail = density - F.interpolate(coarse, size=density.shape[-2:], mode="bilinear", align_corners=False)
        found += _correlations(detail)
        density, bands = coarse, bands + 1
    return torch.cat(found, 1)


def _correlations(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the channels' variances, and their correlations by Fisher's transform, (B, 3) each."""
    centred = channels - channels.mean((2, 3), keepdim=True)
    variance = centred.square().mean((2, 3)) + 1e-6
    products = torch.stack([(centred[:, one] * centred[:, other]).mean((1, 2)) for one, other in PAIRS], 1)
    scales = torch.stack([(variance[:, one] * variance[:, other]).sqrt() for one, other in PAIRS], 1)
    correlation = (products / scales).clamp(-GREATEST_CORRELATION, GREATEST_CORRELATION)
    return variance.log(), torch.atanh(correlation)
