"""One slide or large photograph: cut into tiles, each answered, summarized, and drawn as maps."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from histo_pl.errors import ImageError, UserError
from histo_pl.images import squeeze_pixels
from histo_pl.inference.pictures import write_top_tiles
from histo_pl.inference.predictor import Prediction, Predictor
from histo_pl.inference.slide_options import SlideOptions
from histo_pl.probability import BENIGN, MALIGNANT, REFER, SCORES, TOP, UNLIKE, score_groups
from histo_pl.slides.geojson import write_geojson
from histo_pl.slides.maps import draw_overlay, write_map, write_tiff
from histo_pl.slides.opening import INSTALL, open_slide
from histo_pl.slides.slide import Slide
from histo_pl.slides.table import TileAnswers, first_row, format_row, open_rows, read_answers
from histo_pl.slides.tiling import Tiling, lay_tiles, read_region, shape_tiles
from histo_pl.storage import atomic_write_text

log = logging.getLogger(__name__)

TILES, UNFINISHED_TILES, SUMMARY, TOP_TILES = "tiles.csv", "tiles.unfinished.csv", "summary.json", "top_tiles.png"
SQUARE_MM = 1e6  # square micrometres


def ask_slide(predictor: Predictor, file: Path, folder: Path, name: str, options: SlideOptions) -> dict[str, Any]:
    """Answer for every tile of a slide that holds tissue, and write the slide's folder.

    A run that stopped goes on where it was: `tiles.unfinished.csv` keeps the answers.

    Args:
        predictor: Asks the model.
        file: The slide.
        folder: The folder to write.
        name: The slide's, for people.
        options: The settings of slides.

    Returns:
        The summary that summary.json holds: size, mpp, counts of tiles by label, tissue, and scores.

    Raises:
        ImageError: The slide cannot be read.
        UserError: Its scale is needed and unknown.
    """
    with closing(open_slide(file)) as slide:
        mpp = options.scale.find(file, slide.mpp)
        own = options.own_size(predictor.model)
        is_pyramid = len(slide.downsamples) > 1
        width = options.tile_width(file, mpp, predictor.model, is_pyramid=is_pyramid)
        tiling = lay_tiles(slide, shape_tiles(slide, width, own), options.overlap)
        print(_describe(name, slide, tiling, mpp), file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        _ask_tiles(predictor, slide, tiling, folder, name, mpp)
        answers = read_answers(folder / UNFINISHED_TILES)
        summary = summarize(answers, tiling, mpp) | {
            "slide": name,
            "mpp_of_file": slide.mpp,
            "mpp_of_training": options.mpp_tile or predictor.model.mpp,
            "level": tiling.shape.level,
            "overlap": options.overlap,
        }
        _write_maps(folder, tiling, answers, mpp, name)
        _draw_top(predictor, slide, tiling, answers, folder / TOP_TILES, options.explain)
    (folder / UNFINISHED_TILES).replace(folder / TILES)
    with atomic_write_text(folder / SUMMARY) as stream:
        stream.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def _describe(name: str, slide: Slide, tiling: Tiling, mpp: float | None) -> str:
    """Say how a slide is read, before it is."""
    scale = "scale unknown" if mpp is None else f"{mpp:g} micrometres per pixel"
    if mpp is not None and mpp != slide.mpp:
        scale += f" (yours; the file says {'nothing' if slide.mpp is None else f'{slide.mpp:g}'})"
    (width, height), shape = slide.size, tiling.shape
    return (
        f"{name}: {width}x{height} pixels, {scale}; {len(tiling)} of {tiling.grid} tiles of "
        f"{shape.width}x{shape.height} pixels hold tissue"
    )


def _ask_tiles(predictor: Predictor, slide: Slide, tiling: Tiling, folder: Path, name: str, mpp: float | None) -> None:
    """Append the answers about all tiles that have none yet."""
    shape = tiling.shape

    def read(place: tuple[int, int]) -> Tensor:
        return squeeze_pixels(read_region(slide, shape, *place), predictor.model.image_size, predictor.model.resize)

    _check_unfinished(folder / UNFINISHED_TILES, shape.width, mpp)
    places = list(zip(tiling.x.tolist(), tiling.y.tolist(), strict=True))
    with open_rows(folder / UNFINISHED_TILES, predictor.batch_size) as (done, rows):
        rest = iter(places[done:])
        with tqdm(total=len(places), initial=done, desc=name, unit="tile") as bar:
            for batch in predictor.stream(places[done:], read):
                _raise_error(batch)
                rows.write(
                    (*place, shape.width, shape.height, mpp, p.probability, p.label, p.novelty, p.spread, p.note)
                    for place, p in zip(islice(rest, len(batch)), batch, strict=True)
                )
                bar.update(len(batch))


def _check_unfinished(file: Path, width: int, mpp: float | None) -> None:
    """Refuse to go on with answers about tiles of another size or scale."""
    before = first_row(file)
    now = format_row((width, mpp))
    if before is not None and [before["width"], before["mpp"]] != now:
        raise UserError(
            f"This folder holds answers about tiles of another size or scale. Expected the same, or another out. "
            f"Received: a width of {now[0]} and {now[1] or 'unknown'} micrometres per pixel instead of "
            f"{before['width']} and {before['mpp'] or 'unknown'} in {file}"
        )


def _raise_error(batch: list[Prediction]) -> None:
    """End a slide whose tile cannot be read or answered: its map would have a hole that looks like glass."""
    for prediction in batch:
        if prediction.error is not None:
            raise ImageError(prediction.error)


def highest(answers: TileAnswers) -> Iterator[int]:
    """Yield the indices, from 0, of the ten highest of N tiles that are not refused, the highest first."""
    order = np.argsort(-answers.probability, kind="stable")
    yield from order[answers.label[order] != UNLIKE][:TOP].tolist()


def summarize(answers: TileAnswers, tiling: Tiling, mpp: float | None) -> dict[str, Any]:
    """Describe a slide's answers in plain values.

    Args:
        answers: The tiles.
        tiling: Their places.
        mpp: The slide's micrometres per pixel; None: unknown.

    Returns:
        size, mpp, tile, grid, tiles, tissue_share, tissue_mm2 (None where the scale is unknown), the counts malignant,
        benign, uncertain and unlike, and the scores of the tiles that are not refused (None where there are none).
    """
    like = answers.label != UNLIKE
    probability, called = answers.probability[like], answers.label[like] == MALIGNANT
    group = np.zeros(len(probability), np.int64)
    area = tiling.tissue.area
    return {
        "size": list(tiling.tissue.size),
        "mpp": mpp,
        "tile": [tiling.shape.width, tiling.shape.height],
        "grid": tiling.grid,
        "tiles": len(answers),
        "tissue_share": round(area / (tiling.tissue.size[0] * tiling.tissue.size[1]), 6),
        "tissue_mm2": None if mpp is None else round(area * mpp**2 / SQUARE_MM, 4),
        "malignant": answers.count(MALIGNANT),
        "benign": answers.count(BENIGN),
        "uncertain": answers.count(REFER),
        "unlike": answers.count(UNLIKE),
        "scores": {
            score: round(float(score_groups(probability, called, group, score)[0]), 6) if len(group) else None
            for score in SCORES
        },
    }


def _draw_top(
    predictor: Predictor, slide: Slide, tiling: Tiling, answers: TileAnswers, file: Path, explain: str | bool
) -> None:
    """Draw the highest-scoring tiles and, if asked, their evidence maps; nothing where there are none."""
    chosen = list(highest(answers))
    if not chosen:
        return
    places = [(int(answers.x[index]), int(answers.y[index])) for index in chosen]
    tiles = [read_region(slide, tiling.shape, x, y) for x, y in places]
    titles = [f"{answers.probability[i]:.3f} at {x}, {y}" for i, (x, y) in zip(chosen, places, strict=True)]
    evidence = None
    if explain is not False:
        model = predictor.model
        images = torch.stack([squeeze_pixels(pixels, model.image_size, model.resize) for pixels in tiles])
        evidence = predictor.explain(images, explain)
    write_top_tiles(file, tiles, titles, evidence)


def _write_maps(folder: Path, tiling: Tiling, answers: TileAnswers, mpp: float | None, name: str) -> None:
    size = tiling.tissue.size
    overlay = draw_overlay(tiling.thumbnail, answers, size)
    write_map(folder / "map.png", overlay)
    write_geojson(folder / "tiles.geojson", answers, size, name)
    scale = None if mpp is None else (mpp * size[0] / overlay.shape[1], mpp * size[1] / overlay.shape[0])
    try:
        write_tiff(folder / "map.tiff", overlay, scale)
    except ModuleNotFoundError:
        log.warning("map.tiff is not written: it needs tifffile. Install it with %s.", INSTALL)
