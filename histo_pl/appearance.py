"""The look of a tile without its positions: its colours, and the share of it that is tissue."""

import numpy as np
from numpy.typing import NDArray

SAMPLES = 64  # pixels looked at along each side, at most twice as many
POSITIONS = np.array((5, 25, 50, 75, 95)) / 100  # of the percentiles
COLOURS = 21  # numbers that describe a tile's colours
# A pixel is tissue unless light passes it, or none does. An optical density of .15 is the limit of Macenko et al.
# (ISBI 2009) for stain vectors; .1 keeps pale eosin.
LEAST_DENSITY = 0.1
BRIGHTEST = 255 * 10**-LEAST_DENSITY
DARKEST = 40
FLAT = 8  # levels of 255 by which the pixels of a tile of one colour differ at most, in each channel
LEAST_TISSUE = 0.05  # share of a tile's pixels below which it holds hardly any tissue
GREY = 4  # levels of 255 by which the channels of a grey pixel differ at most

LEVELS = 256
VALUES = np.arange(LEVELS) / 255
CHANNELS = (np.arange(3) * LEVELS)[:, None].astype(np.int16)  # the first level of each channel in one count

Pixels = NDArray[np.uint8]


def sample_pixels(pixels: Pixels) -> Pixels:
    """Take at most some 128 by 128 pixels, evenly spaced.

    Args:
        pixels: RGB of shape (H, W, 3), already thinned or not.

    Returns:
        RGB of shape (3, N).
    """
    rows, columns = (max(1, side // SAMPLES) for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[::rows, ::columns].transpose(2, 0, 1)).reshape(3, -1)


def describe_colours(sample: Pixels) -> NDArray[np.float64]:
    """Describe a tile's colours.

    Args:
        sample: RGB of shape (3, N), as `sample_pixels` returns it.

    Returns:
        Mean, standard deviation and percentiles of each channel, in [0, 1], of shape (21,).
    """
    total = sample.shape[1]
    counts = np.bincount((sample + CHANNELS).ravel(), minlength=3 * LEVELS).reshape(3, LEVELS)  # faster than sorting
    mean = counts @ VALUES / total
    deviation = np.sqrt(np.maximum(counts @ VALUES**2 / total - mean**2, 0))
    return np.concatenate((mean, deviation, _percentiles(counts, total)))


def _percentiles(counts: NDArray[np.int64], total: int) -> NDArray[np.float64]:
    """Interpolate as `np.percentile` does, from the number of pixels of each channel and level."""
    position = POSITIONS * (total - 1)
    below = position.astype(np.int64)
    ranks = np.concatenate((below, np.minimum(below + 1, total - 1))) + total * np.arange(3)[:, None]
    found = np.searchsorted(counts.ravel().cumsum(), ranks, side="right") - CHANNELS
    low, high = VALUES[found[:, : len(below)]], VALUES[found[:, len(below) :]]
    return (low + (high - low) * (position - below)).T.ravel()


def tissue_share(sample: Pixels) -> float:
    """Estimate the share of a tile that is tissue: neither bright background, nor black, nor without any structure.

    Args:
        sample: RGB of shape (3, N), such as `sample_pixels` returns it.

    Returns:
        A share in [0, 1].
    """
    if (sample.max(axis=1) - sample.min(axis=1) <= FLAT).all():
        return 0.0
    darkest, brightest = _extremes(sample)
    return np.count_nonzero((darkest < BRIGHTEST) & (brightest > DARKEST)) / sample.shape[1]


def _extremes(sample: Pixels) -> tuple[Pixels, Pixels]:
    """Return each pixel's least and greatest channel, of shape (N,)."""
    red, green, blue = sample
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def is_grey(sample: Pixels) -> bool:
    """Return whether a tile has no colour.

    Args:
        sample: RGB of shape (3, N), such as `sample_pixels` returns it.
    """
    darkest, brightest = _extremes(sample)
    return int((brightest - darkest).max()) <= GREY
