"""Maps of a slide: the tiles' probabilities over its thumbnail, as a picture and as a pyramidal TIFF."""

import io
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from histo_pl.probability import UNLIKE
from histo_pl.slides.slide import Pixels
from histo_pl.slides.table import TileAnswers
from histo_pl.storage import atomic_write

COLORS = "coolwarm"  # blue is benign, red malignant
OPACITY = 0.5  # of the colours over the thumbnail
LEVELS = 256  # of the colours
REFUSED = (130, 130, 130)  # the colour of tiles that are all unlike those of the training
BAR = 110  # pixels: the width of the colour bar
LEAST_HEIGHT = 240  # pixels of a picture with a colour bar
TIFF_TILE = 256  # pixels


def draw_overlay(thumbnail: Pixels, answers: TileAnswers, size: tuple[int, int]) -> Pixels:
    """Colour a thumbnail by the mean probability of the tiles over each pixel.

    Args:
        thumbnail: RGB of shape (H, W, 3), of the whole slide.
        answers: The tiles.
        size: The slide's width and height at full resolution, in pixels.

    Returns:
        RGB of the same shape; grey where all tiles are unlike those of the training.
    """
    mean, answered = probability_map(thumbnail.shape[:2], answers, size)
    covered = ~np.isnan(mean)
    table = (colormaps[COLORS](np.arange(LEVELS) / (LEVELS - 1))[:, :3] * 255).round().astype(np.uint8)
    colors = table[(mean[covered] * (LEVELS - 1)).round().astype(np.uint8)]
    colors[~answered[covered]] = REFUSED
    overlay = thumbnail.copy()
    overlay[covered] = colors // 2 + thumbnail[covered] // 2  # bytes alone: a slide's memory must not grow with it
    return overlay


def probability_map(
    shape: tuple[int, int], answers: TileAnswers, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Average the tiles over each pixel of a map; a tile's corner is at the nearest pixel's.

    Args:
        shape: Height and width of the map in pixels.
        answers: The tiles.
        size: The slide's width and height at full resolution, in pixels.

    Returns:
        The mean probability, NaN where there is no tile, of that shape; and True where a tile is not refused.
    """
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    answered = np.zeros(shape, bool)
    (left, right), (top, bottom) = (
        [_to_map(edge, whole, pixels) for edge in (start, start + side)]
        for start, side, whole, pixels in (
            (answers.x, answers.width, size[0], shape[1]),
            (answers.y, answers.height, size[1], shape[0]),
        )
    )
    like = answers.label != UNLIKE
    for x0, x1, y0, y1, probability, is_like in zip(
        left, right, top, bottom, answers.probability.tolist(), like.tolist(), strict=True
    ):
        total[y0:y1, x0:x1] += probability
        count[y0:y1, x0:x1] += 1
        answered[y0:y1, x0:x1] |= is_like
    total[count == 0] = np.nan
    return np.divide(total, count, out=total, where=count > 0), answered


def _to_map(edge: NDArray[np.int64], whole: int, pixels: int) -> list[int]:
    return np.minimum(np.rint(edge * (pixels / whole)), pixels).astype(int).tolist()


def write_map(file: Path, overlay: Pixels) -> None:
    """Write an overlay with its colour bar to the right of it.

    Args:
        file: The PNG to write; its upper left corner is the slide's.
        overlay: RGB of shape (H, W, 3).
    """
    height = max(len(overlay), LEAST_HEIGHT)
    page = Image.new("RGB", (overlay.shape[1] + BAR, height), "white")
    page.paste(Image.fromarray(overlay), (0, 0))
    page.paste(_draw_bar(height), (overlay.shape[1], 0))
    with atomic_write(file) as unfinished:
        page.save(unfinished)


def _draw_bar(height: int) -> Image.Image:
    dots = 100  # an inch
    figure = Figure(figsize=(BAR / dots, height / dots), dpi=dots)
    share = min(0.9, 400 / height)
    axes = figure.add_axes((0.12, 0.96 - share * 0.9, 0.16, share * 0.86))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), COLORS), cax=axes, alpha=OPACITY)
    bar.set_label("probability of malignancy", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    figure.text(0.08, 0.94 - share * 0.94, "grey: unlike\nthe training", fontsize=7, va="top")
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")


def write_tiff(file: Path, overlay: Pixels, mpp: tuple[float, float] | None) -> None:
    """Write an overlay as a pyramidal TIFF that OpenSlide and QuPath open, at the place and scale of the slide.

    The levels follow each other, each in tiles, the smaller ones flagged as reduced: OpenSlide's generic TIFF.

    Args:
        file: The .tiff file to write.
        overlay: RGB of shape (H, W, 3).
        mpp: Micrometres per pixel of the overlay, across and down; None: unknown.

    Raises:
        ModuleNotFoundError: tifffile is not installed.
    """
    import tifffile

    with atomic_write(file) as unfinished, tifffile.TiffWriter(unfinished) as writer:
        level, factor = overlay, 1
        while True:
            writer.write(
                level,
                photometric="rgb",
                tile=(TIFF_TILE, TIFF_TILE),
                compression="deflate",
                subfiletype=int(factor > 1),
                metadata=None,
                resolution=None if mpp is None else (10_000 / (mpp[0] * factor), 10_000 / (mpp[1] * factor)),
                resolutionunit=None if mpp is None else "CENTIMETER",
            )
            if max(level.shape[:2]) <= TIFF_TILE:
                return
            factor *= 2
            level = np.asarray(Image.fromarray(level).reduce(2))
