"""Pictures of evidence maps, and of a slide's highest-scoring tiles."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from histo_pl.models.evidence import METHODS, Evidence
from histo_pl.overlays import COLORS, OPACITY, UNIT, Pixels, color_limit, overlay_map, smooth_map
from histo_pl.storage import atomic_write

COLUMNS = 5  # of the highest-scoring tiles


def add_color_bar(figure: Figure, axes: Sequence[Axes], limit: float, unit: str) -> None:
    """Add the colour bar of maps to a figure."""
    bar = figure.colorbar(
        ScalarMappable(Normalize(-limit, limit), COLORS), ax=list(axes), fraction=0.05, shrink=0.7, alpha=OPACITY
    )
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
    drawn = smooth_map(evidence.maps[0])
    limit = color_limit([drawn])
    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    plain, overlaid = figure.subplots(1, 2)
    plain.imshow(pixels)
    overlaid.imshow(overlay_map(pixels, drawn, limit))
    for axes in (plain, overlaid):
        axes.axis("off")
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
    drawn = [] if evidence is None else [smooth_map(one) for one in evidence.maps]
    limit = color_limit(drawn) if drawn else 1.0
    for index, (pixels, title) in enumerate(zip(tiles, titles, strict=True)):
        row, column = index // columns * rows_each, index % columns
        axes[row, column].imshow(pixels)
        axes[row, column].set_title(title, fontsize=7)
        if drawn:
            axes[row + 1, column].imshow(overlay_map(pixels, drawn[index], limit))
    if drawn:
        add_color_bar(figure, list(axes.flat), limit, UNIT)
    save_figure(figure, file)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with atomic_write(file) as unfinished:
        figure.savefig(unfinished)


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()  # a file's name may be no Unicode
