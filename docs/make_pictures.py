"""Draw the README's pictures again.

python docs/make_pictures.py tiles data/demo/v1-48x10-96px-seed0
python docs/make_pictures.py tissue SLIDE
python docs/make_pictures.py freeze outputs/SEED outputs/DEFAULT   (run folders of the commands in docs/freeze.md)
"""

import csv
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from histo_pl.slides import open_slide
from histo_pl.slides.slide import read_thumbnail
from histo_pl.slides.tissue import find_tissue, thumbnail_side

IMAGES = Path(__file__).parent / "images"


def draw_tiles(root: Path, columns: int = 5, rows: int = 3, side: int = 120) -> None:
    """Lay tiles of different cases out: benign in the left half, malignant in the right."""
    gap = 4
    sheet = Image.new("RGB", (2 * columns * (side + gap) + 3 * gap, rows * (side + gap) - gap), "white")
    for half, class_name in enumerate(("benign", "malignant")):
        files = sorted((root / class_name).glob("*_000.png"))[: columns * rows]
        for place, file in enumerate(files):
            column, row = place % columns + half * columns, place // columns
            tile = Image.open(file).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(tile, (column * (side + gap) + half * 4 * gap, row * (side + gap)))
    sheet.save(IMAGES / "demo_tiles.png", optimize=True)


def draw_tissue(file: Path, tile_width: int = 224, most: int = 420) -> None:
    """Draw a slide beside its tissue, where glass is darkened."""
    with closing(open_slide(file)) as slide:
        thumbnail = read_thumbnail(slide, max(most, thumbnail_side(slide.size, tile_width)))
        mask = find_tissue(thumbnail, tile_width * thumbnail.shape[1] / slide.size[0])
    shown = np.where(mask[..., None], thumbnail, thumbnail // 3)
    Image.fromarray(np.concatenate((thumbnail, shown), 1)).save(IMAGES / "tissue.png", optimize=True)


def draw_freeze(original: Path, default: Path) -> None:
    """Draw validation AUROC and loss of two runs beside each other."""
    figure = Figure(figsize=(8, 3), dpi=150, layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("auroc", "loss"), strict=True):
        for run, name, colour in (
            (original, "the notebook's Adam", "#d1495b"),
            (default, "adam_width_scaled", "#2a6f97"),
        ):
            with (run / "metrics.csv").open() as file:
                values = [float(row[f"val/{metric}"]) for row in csv.DictReader(file) if row[f"val/{metric}"]]
            axes.plot(range(1, len(values) + 1), values, marker="o", color=colour, label=name)
        axes.set(xlabel="epoch", title=f"validation {'AUROC' if metric == 'auroc' else 'loss'}")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(IMAGES / "freeze.png")


if __name__ == "__main__":
    {"tiles": draw_tiles, "tissue": draw_tissue, "freeze": draw_freeze}[sys.argv[1]](*map(Path, sys.argv[2:]))
