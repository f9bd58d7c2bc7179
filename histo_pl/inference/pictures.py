"""Pictures of evidence maps, and of a slide's highest-scoring tiles."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from histo_pl.models.evidence import METHODS, Evidence
from histo_pl.storage import atomic_write

COLORS = "RdBu_r"  # red speaks for malignant, blue for benign
OPACITY = 0.7
SMOOTHING = 64  # a square's side is two of so many parts of a tile's: the gradient of a single pixel is noise
LIMIT_PERCENTILE = 99.5
UNIT = "logit a hundredth of the area; red speaks for malignant"
COLUMNS = 5  # of the highest-scoring tiles

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]


def smooth(evidence: Tensor) -> Map:
    """Average a map over small squares for display, in units of the logit a hundredth of the tile's area.

    Args:
        evidence: Contributions of the pixels, of shape (S, S).

    Returns:
        Of the same shape.
    """
    side = 2 * (len(evidence) // SMOOTHING) + 1
    blurred = avg_pool2d(evidence[None], side, stride=1, padding=side // 2, count_include_pad=False)[0]
    return (blurred * (evidence.numel() / 100)).numpy()


def color_limit(maps: Sequence[Map]) -> float:
    """Return the value that is drawn in the strongest colour, for several maps to share."""
    return max(float(np.percentile(np.abs(np.stack(maps)), LIMIT_PERCENTILE)), 1e-9)


def draw_overlay(axes: Axes, pixels: Pixels, evidence: Map, limit: float) -> None:
    """Draw a map over its tile without colours.

    Args:
        axes: What is drawn on.
        pixels: The tile, RGB of shape (H, W, 3).
        evidence: A smoothed map, of shape (S, S), which covers the tile.
        limit: See `color_limit`.
    """
    height, width = pixels.shape[:2]
    axes.imshow(Image.fromarray(pixels).convert("L"), cmap="gray", vmin=0, vmax=255)
    strength = np.clip(np.abs(evidence) / limit, 0, 1) * OPACITY  # what says little leaves the tissue as it is
    axes.imshow(
        evidence, cmap=COLORS, vmin=-limit, vmax=limit, alpha=strength, extent=(-0.5, width - 0.5, height - 0.5, -0.5)
    )
    axes.axis("off")


def add_color_bar(figure: Figure, axes: Sequence[Axes], limit: float, unit: str) -> None:
    """Add the colour bar of maps to a figure."""
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), COLORS), ax=list(axes), fraction=0.05, alpha=OPACITY)
    bar.set_label(unit, fontsize=7)
    bar.ax.tick_params(labelsize=7)


def write_evidence(file: Path, pixels: Pixels, evidence: Evidence, probability: float, name: str) -> None:
    """Write a tile beside its evidence map.

    Args:
        file: The PNG to write.
        pixels: The tile, RGB of shape (H, W, 3).
        evidence: The map of this one tile.
        probability: Of malignancy, in [0, 1].
        name: The tile's.
    """
    drawn = smooth(evidence.maps[0])
    limit = color_limit([drawn])
    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    plain, overlaid = figure.subplots(1, 2)
    plain.imshow(pixels)
    plain.axis("off")
    draw_overlay(overlaid, pixels, drawn, limit)
    add_color_bar(figure, [overlaid], limit, UNIT)
    figure.suptitle(_printable(f"{name}: probability {probability:.4f}"), fontsize=9, parse_math=False)
    figure.supxlabel(textwrap.fill(describe(evidence), 110), fontsize=7)
    save_figure(figure, file)


def describe(evidence: Evidence) -> str:
    """Say what the numbers of a map are, with its constant and its error where there are some."""
    text = METHODS[evidence.method]
    if evidence.constant is not None and evidence.error is not None:
        text += f"; {float(evidence.constant[0]):+.3f} of it has no place and is spread evenly"
        text += f"; error of the sum {float(evidence.error[0]):.1g}"
    return f"{text[0].upper()}{text[1:]}."


def write_top_tiles(file: Path, tiles: Sequence[Pixels], titles: Sequence[str], evidence: Evidence | None) -> None:
    """Write a slide's highest-scoring tiles, and below each its evidence map.

    Args:
        file: The PNG to write.
        tiles: RGB of shape (H, W, 3) each; at least one.
        titles: One a tile.
        evidence: Their maps; None: the tiles alone.
    """
    rows_each = 1 if evidence is None else 2
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns) * rows_each
    figure = Figure(figsize=(1.9 * columns + 0.8, 2.1 * rows + 0.3), dpi=110, layout="constrained")
    axes = np.atleast_2d(figure.subplots(rows, columns, squeeze=False))
    for one in axes.flat:
        one.axis("off")
    drawn = [] if evidence is None else [smooth(one) for one in evidence.maps]
    limit = color_limit(drawn) if drawn else 1.0
    for index, (pixels, title) in enumerate(zip(tiles, titles, strict=True)):
        row, column = index // columns * rows_each, index % columns
        axes[row, column].imshow(pixels)
        axes[row, column].set_title(title, fontsize=7)
        if drawn:
            draw_overlay(axes[row + 1, column], pixels, drawn[index], limit)
    if drawn:
        add_color_bar(figure, list(axes.flat), limit, UNIT)
    save_figure(figure, file)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with atomic_write(file) as unfinished:
        figure.savefig(unfinished)


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()  # a file's name may be no Unicode
