"""Tissue of a slide, found on its thumbnail: by colour, without pen marks, blood, borders, specks and holes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from histo_pl.appearance import BRIGHTEST, DARKEST
from histo_pl.slides.slide import Pixels

LONGEST = 1536  # pixels of the thumbnail's longer side: what memory a slide takes beyond its tiles
PER_TILE = 16  # pixels of the thumbnail a tile's side, unless the thumbnail becomes too large
LEAST_ABSORBED, MOST_ABSORBED = 12, 40  # levels of 255 that Otsu's threshold stays within: glass is noisy, tissue pale
LEAST_GLASS = 0.01  # share of bright pixels below which there is no glass to compare with
BRIGHT = 90  # percentile of the bright pixels that glass is taken to be
SAMPLE = 100_000  # pixels that glass is looked for in
WHITE = (245, 245, 245)  # of a slide without glass
RED = 0.35  # blue exceeds green by at least this share of what red does in eosin, not in blood and red ink
VIVID = 60  # levels of 255 by which the channels of ink and blood differ at least
SPECK, HOLE = 0.25, 0.6  # widths in tiles: narrower tissue is a speck, a narrower gap is part of the tissue


@dataclass(frozen=True)
class Tissue:
    """The tissue of a slide.

    Attributes:
        mask: True where there is tissue, of shape (H, W), which covers the whole slide.
        size: The slide's width and height at full resolution, in pixels.
    """

    mask: NDArray[np.bool_]
    size: tuple[int, int]

    @property
    def area(self) -> float:
        """The tissue's area in pixels at full resolution."""
        return float(self.mask.mean()) * self.size[0] * self.size[1]

    def _sums(self) -> NDArray[np.int32]:
        """Return the number of tissue pixels above and left of each corner, of shape (H + 1, W + 1)."""
        sums = np.zeros([side + 1 for side in self.mask.shape], np.int32)
        inner = sums[1:, 1:]
        np.cumsum(self.mask, axis=0, out=inner)
        np.cumsum(inner, axis=1, out=inner)
        return sums

    def shares(self, left: NDArray[np.int64], top: NDArray[np.int64], width: int, height: int) -> NDArray[np.float64]:
        """Compute the share of tissue in rectangles, their parts beyond the slide left out.

        Args:
            left: Of shape (N,), in pixels at full resolution, within the slide.
            top: Of shape (N,), the same.
            width: Of all rectangles.
            height: Of all rectangles.

        Returns:
            Of shape (N,), in [0, 1].
        """
        rows, columns = self.mask.shape
        x0, x1 = _span(left, width, self.size[0], columns)
        y0, y1 = _span(top, height, self.size[1], rows)
        sums = self._sums()
        return (sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / ((x1 - x0) * (y1 - y0))


def _span(start: NDArray[np.int64], length: int, whole: int, pixels: int) -> tuple[NDArray, NDArray]:
    """Return the first pixel of a mask that a span covers, and the first that it does not; at least one is covered."""
    first = np.minimum(start * pixels // whole, pixels - 1)
    last = -(-np.minimum(start + length, whole) * pixels // whole)
    return first, np.maximum(last, first + 1)


def thumbnail_side(size: tuple[int, int], tile_width: int) -> int:
    """Return the longer side of the thumbnail to find tissue on, in pixels.

    Args:
        size: The slide's width and height at full resolution, in pixels.
        tile_width: Of a tile, the same.
    """
    return max(1, min(LONGEST, max(size), round(max(size) * PER_TILE / tile_width)))


def find_tissue(thumbnail: Pixels, tile_width: float) -> NDArray[np.bool_]:
    """Find the tissue of a slide.

    A pixel is tissue if it absorbs more light than glass in any channel (Otsu's threshold, IEEE TSMC 9(1), 1979), which
    a colour does as well as a shade of grey, unless it is black, or has a colour of ink or blood.

    Args:
        thumbnail: RGB of shape (H, W, 3).
        tile_width: The width of a tile, in pixels of the thumbnail.

    Returns:
        Of shape (H, W).
    """
    brightest, absorbed = thumbnail.max(axis=2), _absorption(thumbnail)
    possible = (brightest > DARKEST) & ~_is_ink(thumbnail, brightest - thumbnail.min(axis=2))
    limit = np.clip(otsu_threshold(absorbed[possible]), LEAST_ABSORBED, MOST_ABSORBED)
    mask = (absorbed > limit) & possible
    return _without_specks(_without_holes(mask, HOLE * tile_width), SPECK * tile_width)


def _absorption(thumbnail: Pixels) -> NDArray[np.uint8]:
    """Return the levels of 255 by which a pixel is darker than glass in the channel that it absorbs most, (H, W)."""
    pixels = thumbnail.reshape(-1, 3)[:: max(1, thumbnail[..., 0].size // SAMPLE)]  # percentiles take much memory
    bright = pixels[pixels.min(axis=1) >= BRIGHTEST]
    has_glass = len(bright) >= LEAST_GLASS * len(pixels)
    glass = np.percentile(bright, BRIGHT, axis=0) if has_glass else np.array(WHITE)
    table = np.clip(255 - np.arange(256)[:, None] * (255 / glass), 0, 255).round().astype(np.uint8)
    channels = [table[thumbnail[..., channel], channel] for channel in range(3)]
    return np.maximum(np.maximum(channels[0], channels[1]), channels[2])


def _is_ink(thumbnail: Pixels, chroma: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell ink and blood: green or blue exceed red clearly, or blue hardly exceeds green where red does."""
    vivid = chroma > VIVID
    red, green, blue = thumbnail[vivid].astype(np.int16).T
    ink = np.zeros(vivid.shape, bool)
    ink[vivid] = (red < green) | (blue - red > VIVID) | (blue - green < RED * (red - green))
    return ink


def otsu_threshold(values: NDArray[np.uint8]) -> int:
    """Return the level that divides values into two classes with the greatest variance between them.

    Args:
        values: Of any shape.

    Returns:
        From 0 to 255; values above it are the upper class.
    """
    counts = np.bincount(values.ravel(), minlength=256).astype(float)
    levels = np.arange(256)
    below, total = counts.cumsum(), counts.sum()
    sums = (counts * levels).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below / total - sums) ** 2 / (below * (total - below))
    return int(np.nan_to_num(between, posinf=0).argmax())


def _without_holes(mask: NDArray[np.bool_], width: float) -> NDArray[np.bool_]:
    return _filter(_filter(mask, width, ImageFilter.MaxFilter), width, ImageFilter.MinFilter)


def _without_specks(mask: NDArray[np.bool_], width: float) -> NDArray[np.bool_]:
    return _filter(_filter(mask, width, ImageFilter.MinFilter), width, ImageFilter.MaxFilter)


def _filter(
    mask: NDArray[np.bool_], width: float, rank: type[ImageFilter.MinFilter | ImageFilter.MaxFilter]
) -> NDArray[np.bool_]:
    """Take the least or the greatest of the pixels in a square of about a width."""
    side = 2 * int(width / 2) + 1  # it has a middle
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(rank(side))) > 0
