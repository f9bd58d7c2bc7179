"""The look of a tile without its positions: its colours, and the share of it that is tissue."""

import numpy as np
from numpy.typing import NDArray

SAMPLES = 64  # pixels looked at along each side, at most twice as many
PERCENTILES = (5, 25, 50, 75, 95)
COLOURS = 21  # numbers that describe a tile's colours
# A pixel is tissue unless light passes it, or none does. An optical density of .15 is the limit of Macenko et al.
# (ISBI 2009) for stain vectors; .1 keeps pale eosin.
LEAST_DENSITY = 0.1
BRIGHTEST = 255 * 10**-LEAST_DENSITY
DARKEST = 40
FLAT = 2.0  # standard deviation of all channels, in levels of 255, below which nothing is to be seen
LEAST_TISSUE = 0.05  # share of a tile's pixels below which it holds hardly any tissue
GREY = 4  # levels of 255 by which the channels of a grey pixel differ at most

Pixels = NDArray[np.uint8]


def sample_pixels(pixels: Pixels) -> Pixels:
    """Take at most some 128 by 128 pixels, evenly spaced.

    Args:
        pixels: RGB of shape (H, W, 3).

    Returns:
        RGB of shape (3, N).
    """
    rows, columns = (max(1, side // SAMPLES) for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[::rows, ::columns].reshape(-1, 3).T)


def describe_colours(sample: Pixels) -> NDArray[np.float64]:
    """Describe a tile's colours.

    Args:
        sample: RGB of shape (3, N), as `sample_pixels` returns it.

    Returns:
        Mean, standard deviation and percentiles of each channel, in [0, 1], of shape (21,).
    """
    some = sample / 255
    return np.r_[some.mean(axis=1), some.std(axis=1), _percentiles(sample)]


def _percentiles(sample: Pixels) -> NDArray[np.float64]:
    """Interpolate as `np.percentile` does; bytes are sorted ten times as fast as the fractions made of them."""
    ordered = np.sort(sample, axis=1, kind="stable") / 255
    position = np.array(PERCENTILES) / 100 * (sample.shape[1] - 1)
    below = position.astype(np.int64)
    above = np.minimum(below + 1, sample.shape[1] - 1)
    return (ordered[:, below] + (ordered[:, above] - ordered[:, below]) * (position - below)).T.ravel()


def tissue_share(sample: Pixels) -> float:
    """Estimate the share of a tile that is tissue: neither bright background, nor black, nor without any structure.

    Args:
        sample: RGB of shape (3, N), such as `sample_pixels` returns it.

    Returns:
        A share in [0, 1].
    """
    if (np.ptp(sample, axis=1) < FLAT).all() or (sample.std(axis=1) < FLAT).all():
        return 0.0
    return float(((sample.min(axis=0) < BRIGHTEST) & (sample.max(axis=0) > DARKEST)).mean())


def is_grey(sample: Pixels) -> bool:
    """Return whether a tile has no colour.

    Args:
        sample: RGB of shape (3, N), such as `sample_pixels` returns it.
    """
    return int((sample.max(axis=0) - sample.min(axis=0)).max()) <= GREY
