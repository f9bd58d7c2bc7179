"""The report of slides: their table, maps and highest-scoring tiles on one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from histo_pl.images import read_rgb
from histo_pl.inference.slide import TOP_TILES
from histo_pl.pages import embed_jpeg, write_page
from histo_pl.probability import SCORES

TEMPLATE = Path(__file__).with_name("slides.html.j2")
SIDE = 1000  # pixels of a picture
COUNTS = ("malignant", "uncertain", "unlike")
HEADER = ("slide", "tiles", "malignant", "uncertain", "unlike training", "tissue", *SCORES)
CAPTION = (
    "Counts of tiles by label. Scores are of the tiles that are not unlike the training: the mean and the highest "
    "probability, the mean of the ten highest, and the share called malignant."
)
LIMITS = (
    "Research software, no medical device: nothing here must guide anyone's care.",
    "The model was trained and tested on tiles. How well any of these scores tells malignant slides from benign ones "
    "has not been measured.",
    "The highest of many tiles is high by chance alone: thousands of tiles hold the worst mistakes of the model.",
    "A tile at an edge is padded by repeating its last row and column.",
)


def write_report(file: Path, title: str, notes: Sequence[str], summaries: Sequence[dict[str, Any]]) -> None:
    """Write the report of a run.

    Args:
        file: The HTML file to write, in the run's folder.
        title: Headline.
        notes: Sentences that a reader must know first.
        summaries: As `slide_run.ask_slides` returns them.
    """
    done = [one for one in summaries if not one.get("error")]
    write_page(
        TEMPLATE,
        file,
        title=title,
        notes=notes,
        header=HEADER,
        rows=[_row(one) for one in done],
        caption=CAPTION,
        slides=[_slide(one, file.parent / one["slide"]) for one in summaries],
        limits=LIMITS,
    )


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    counts = (f"{one[key]} ({one[key] / one['tiles']:.1%})" if one["tiles"] else "0" for key in COUNTS)
    scores = ("" if one["scores"][score] is None else f"{one['scores'][score]:.3f}" for score in SCORES)
    return (one["slide"], f"{one['tiles']:,}", *counts, _tissue(one), *scores)


def _tissue(one: dict[str, Any]) -> str:
    return f"{one['tissue_share']:.1%}" if one["tissue_mm2"] is None else f"{one['tissue_mm2']:.1f} mm²"


def _slide(one: dict[str, Any], folder: Path) -> dict[str, Any]:
    if one.get("error"):
        return {"name": one["slide"], "error": one["error"]}
    scale = "scale unknown" if one["mpp"] is None else f"{one['mpp']:g} micrometres per pixel"
    (width, height), tile = one["size"], one["tile"]
    lines = [
        f"{width:,} x {height:,} pixels, {scale}; tiles of {tile[0]} x {tile[1]} pixels.",
        f"{one['tiles']:,} of {one['grid']:,} tiles hold tissue, which covers {one['tissue_share']:.1%} of the image.",
    ]
    top = folder / TOP_TILES
    return {
        "name": one["slide"],
        "error": None,
        "lines": lines,
        "map": embed_jpeg(read_rgb(folder / "map.png"), SIDE),
        "top": embed_jpeg(read_rgb(top), SIDE) if top.exists() else "",
    }
