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
    pixels = _shrink(images.float(), -(-int(images.shape[-1]) // MOST_PIXELS))
    saturation = (pixels.amax(1) - pixels.amin(1)).flatten(1)
    density = -torch.log10((pixels + 1) / 256)
    mean = density.mean((2, 3), keepdim=True)
    density = density - mean
    found = [
        torch.stack((saturation.mean(1), _deviation(saturation)), 1).div(255).add(0.01).log(),
        mean.flatten(1).add(0.02).log(),
        _correlations(density)[1],
    ]
    bands = 0
    while bands < BANDS and density.shape[-1] >= LEAST_PIXELS:
        coarse = _shrink(density, 2)
        found += _correlations(density - _resize(coarse, int(density.shape[-1])))
        density, bands = coarse, bands + 1
    return torch.cat(found, 1)


def _shrink(images: Tensor, factor: int) -> Tensor:
    """Average squares of a side of `factor`, and leave out the rows and columns that fill none."""
    if factor == 1:
        return images
    side = int(images.shape[-1]) // factor
    if factor == 2:  # noqa: PLR2004  (a pixel between four is their mean: a quarter of the time of avg_pool2d)
        return _resize(images[..., : 2 * side, : 2 * side], side)
    return F.avg_pool2d(images, factor)


def _resize(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def _deviation(rows: Tensor) -> Tensor:
    """Compute the standard deviation of each row of (B, N), a fifth of the time of `Tensor.std`."""
    centred = rows - rows.mean(1, keepdim=True)
    return (centred.square().sum(1) / (rows.shape[1] - 1)).sqrt()


def _correlations(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the channels' variances, and their correlations by Fisher's transform, (B, 3) each.

    Means must be near 0, as those of bands are: the variance is the mean square minus the square of the mean. There is
    no matrix product in it, which mixed precision would round.
    """
    rows = channels.flatten(2)
    mean = rows.mean(2)
    variance = rows.square().mean(2) - mean.square() + 1e-6
    products = torch.stack(
        [(rows[:, one] * rows[:, other]).mean(1) - mean[:, one] * mean[:, other] for one, other in PAIRS], 1
    )
    scales = torch.stack([(variance[:, one] * variance[:, other]).sqrt() for one, other in PAIRS], 1)
    correlation = (products / scales).clamp(-GREATEST_CORRELATION, GREATEST_CORRELATION)
    return variance.log(), torch.atanh(correlation)
