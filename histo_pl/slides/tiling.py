"""Tiles of a slide: their size at full resolution, their places on the tissue, and their pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo_pl.appearance import LEAST_TISSUE
from histo_pl.slides.slide import Pixels, Slide, best_level, read_padded, read_thumbnail
from histo_pl.slides.tissue import Tissue, find_tissue, thumbnail_side

SHOWN = 1024  # pixels of the longer side of a map, at least, where the slide has as many


@dataclass(frozen=True)
class TileShape:
    """The size of a slide's tiles.

    Attributes:
        width: In pixels at full resolution.
        height: The same.
        level: The level that they are read at.
        read_width: In pixels of that level.
        read_height: The same.
    """

    width: int
    height: int
    level: int
    read_width: int
    read_height: int


@dataclass(frozen=True)
class Tiling:
    """The tiles of a slide that hold tissue, row by row.

    Attributes:
        shape: Their size.
        x: Left edges in pixels at full resolution, of shape (N,).
        y: Upper edges, the same.
        grid: Number of tiles of the whole slide.
        tissue: The slide's tissue.
        thumbnail: RGB of shape (H, W, 3), of the whole slide.
    """

    shape: TileShape
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    grid: int
    tissue: Tissue
    thumbnail: Pixels

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.x)


def shape_tiles(slide: Slide, width: float, own_size: tuple[int, int]) -> TileShape:
    """Choose the level that is no coarser than the training tiles, and a tile's size there.

    Args:
        slide: The slide.
        width: Of a tile, in pixels at full resolution.
        own_size: Width and height of the training tiles' own files in pixels: its aspect is kept.

    Returns:
        The shape.
    """
    height = width * own_size[1] / own_size[0]
    level = best_level(slide, width / own_size[0])
    read = [max(1, round(side / slide.downsamples[level])) for side in (width, height)]
    return TileShape(max(1, round(width)), max(1, round(height)), level, read[0], read[1])


def lay_tiles(slide: Slide, shape: TileShape, overlap: float) -> Tiling:
    """Lay a grid over a slide, and keep the tiles with tissue.

    The grid begins at the upper left corner; its last row and column may reach beyond the slide.

    Args:
        slide: The slide.
        shape: The size of the tiles.
        overlap: Share of a tile's side that it has in common with the next, in [0, 1).

    Returns:
        The tiles whose share of tissue is at least `appearance.LEAST_TISSUE`.
    """
    side = thumbnail_side(slide.size, shape.width)
    thumbnail = read_thumbnail(slide, max(side, min(SHOWN, *slide.size)))
    small = Image.fromarray(thumbnail)
    small.thumbnail((side, side), Image.Resampling.BOX)
    mask = find_tissue(np.asarray(small), shape.width * small.width / slide.size[0])
    tissue = Tissue(mask, slide.size)
    columns, rows = (
        _starts(whole, side, overlap) for whole, side in zip(slide.size, (shape.width, shape.height), strict=True)
    )
    x, y = np.tile(columns, len(rows)), np.repeat(rows, len(columns))
    kept = tissue.shares(x, y, shape.width, shape.height) >= LEAST_TISSUE
    return Tiling(shape, x[kept], y[kept], len(x), tissue, thumbnail)


def _starts(whole: int, side: int, overlap: float) -> NDArray[np.int64]:
    """Return the starts of spans of a side that cover a whole length."""
    step = max(1, round(side * (1 - overlap)))
    return np.arange(0, max(whole - side, 0) + step, step, dtype=np.int64)


def read_region(slide: Slide, shape: TileShape, x: int, y: int) -> Pixels:
    """Read one tile.

    Args:
        slide: The slide.
        shape: The size of the tiles.
        x: Left edge in pixels at full resolution.
        y: Upper edge, the same.

    Returns:
        RGB of shape (read_height, read_width, 3).
    """
    return read_padded(slide, x, y, shape.read_width, shape.read_height, shape.level)
