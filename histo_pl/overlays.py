"""Overlays of evidence maps: contributions to the logit in colours over a tile without colours."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

COLORS = "RdBu_r"  # red speaks for malignant, blue for benign
OPACITY = 0.7
UNIT = "logit a hundredth of the area; red speaks for malignant"
SMOOTHING = 64  # a square's side is two of so many parts of a tile's: the gradient of a single pixel is noise
LIMIT_PERCENTILE = 99.5

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]


def smooth_map(evidence: Tensor) -> Map:
    """Average a map over small squares for display, in units of the logit a hundredth of the tile's area.

    Args:
        evidence: Contributions of the pixels, of shape (S, S), on the CPU.

    Returns:
        Of the same shape.
    """
    side = 2 * (len(evidence) // SMOOTHING) + 1
    blurred = avg_pool2d(evidence[None], side, stride=1, padding=side // 2, count_include_pad=False)[0]
    return (blurred * (evidence.numel() / 100)).numpy()


def color_limit(maps: Sequence[Map]) -> float:
    """Return the positive value drawn in the strongest colour, for several maps, each of shape (S, S), to share."""
    return max(float(np.percentile(np.abs(np.stack(maps)), LIMIT_PERCENTILE)), 1e-9)


def overlay_map(pixels: Pixels, evidence: Map, limit: float) -> Pixels:
    """Draw a map over its tile: the more it says, the stronger its colour.

    Args:
        pixels: The tile, RGB of shape (H, W, 3).
        evidence: A smoothed map, of shape (S, S), which covers the tile.
        limit: See `color_limit`.

    Returns:
        RGB of shape (H, W, 3).
    """
    height, width = pixels.shape[:2]
    fitted = np.asarray(Image.fromarray(evidence).resize((width, height), Image.Resampling.NEAREST)) / limit
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)[..., None]
    colors = colormaps[COLORS]((np.clip(fitted, -1, 1) + 1) / 2)[..., :3] * 255
    strength = np.clip(np.abs(fitted), 0, 1)[..., None] * OPACITY
    return (grey * (1 - strength) + colors * strength).round().astype(np.uint8)
