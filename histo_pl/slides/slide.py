"""The protocol of a slide, whatever its file's format, and what all slides share."""

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from histo_pl.hardware import usable_cores

Pixels = NDArray[np.uint8]

BLOCK = 1024  # pixels: the side of the regions that a thumbnail is made from
QUIET = 2.0  # seconds without a progress bar


class Slide(Protocol):
    """An image that is read by regions, from several threads at once.

    Attributes:
        size: Width and height at full resolution, in pixels.
        downsamples: The factor by which each level is smaller than full resolution, ascending from 1.
        mpp: Micrometres per pixel at full resolution, as the file says; None: it does not.
    """

    size: tuple[int, int]
    downsamples: tuple[float, ...]
    mpp: float | None

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> Pixels:
        """Read a region that lies within the slide.

        Args:
            x: Left edge, in pixels at full resolution.
            y: Upper edge, the same.
            width: In pixels of the level.
            height: In pixels of the level.
            level: From 0, full resolution.

        Returns:
            RGB of shape (height, width, 3).

        Raises:
            ImageError: The file is damaged there.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def read_padded(slide: Slide, x: int, y: int, width: int, height: int, level: int = 0) -> Pixels:
    """Read a region that may reach beyond the slide, whose last row and column are repeated there.

    Args:
        slide: The slide.
        x: Left edge, in pixels at full resolution, within the slide.
        y: Upper edge, the same.
        width: In pixels of the level.
        height: In pixels of the level.
        level: From 0, full resolution.

    Returns:
        RGB of shape (height, width, 3).
    """
    columns, rows = (
        max(1, min(length, round((whole - start) / slide.downsamples[level])))
        for length, whole, start in zip((width, height), slide.size, (x, y), strict=True)
    )
    pixels = slide.read(x, y, columns, rows, level)
    missing = ((0, height - rows), (0, width - columns), (0, 0))
    return pixels if (height, width) == pixels.shape[:2] else np.pad(pixels, missing, mode="edge")


def best_level(slide: Slide, downsample: float) -> int:
    """Return the smallest level that is at least as fine as a downsampling."""
    fine = [level for level, factor in enumerate(slide.downsamples) if factor <= downsample * 1.01]
    return fine[-1] if fine else 0


def read_thumbnail(slide: Slide, most: int) -> Pixels:
    """Shrink a slide block by block, so that memory does not grow with it.

    Args:
        slide: The slide.
        most: The longer side of the thumbnail in pixels, at most.

    Returns:
        RGB of shape (H, W, 3): the pixel (i, j) covers the same share of the slide as of the thumbnail.
    """
    factor = max(1.0, max(slide.size) / most)
    size = tuple(max(1, round(side / factor)) for side in slide.size)
    level = best_level(slide, factor)
    step = max(1, int(BLOCK * slide.downsamples[level] / factor))
    thumbnail = np.empty((size[1], size[0], 3), np.uint8)
    corners = [(left, top) for top in range(0, size[1], step) for left in range(0, size[0], step)]

    def fill(corner: tuple[int, int]) -> None:
        left, top = corner
        block = thumbnail[top : top + step, left : left + step]
        block[:] = _shrunk(slide, (left, top, left + block.shape[1], top + block.shape[0]), size, level)

    with ThreadPoolExecutor(usable_cores()) as pool:
        filled = pool.map(fill, corners)
        for _ in tqdm(filled, desc="Looking for tissue", total=len(corners), unit="block", delay=QUIET, leave=False):
            pass
    return thumbnail


def _shrunk(slide: Slide, box: tuple[int, int, int, int], size: tuple[int, ...], level: int) -> Pixels:
    """Read the part of a slide that a box of a thumbnail of some size covers, at the box's size."""
    scale = [whole / part for whole, part in zip(slide.size, size, strict=True)]
    left, top, right, bottom = (round(edge * scale[axis % 2]) for axis, edge in enumerate(box))
    width, height = (
        max(1, round(length / slide.downsamples[level])) for length in (max(1, right - left), max(1, bottom - top))
    )
    pixels = read_padded(slide, min(left, slide.size[0] - 1), min(top, slide.size[1] - 1), width, height, level)
    image = Image.fromarray(pixels)
    shape = (box[2] - box[0], box[3] - box[1])
    return np.asarray(image if image.size == shape else image.resize(shape, Image.Resampling.BOX))
