"""Tiles of a slide as GeoJSON that QuPath opens by drag and drop."""

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from histo_pl.probability import BENIGN, MALIGNANT, REFER, UNLIKE
from histo_pl.slides.table import TileAnswers
from histo_pl.storage import atomic_write_text

COLORS: Mapping[str, tuple[int, int, int]] = {  # of QuPath's classes, RGB
    MALIGNANT: (200, 40, 60),
    BENIGN: (50, 110, 190),
    REFER: (235, 190, 60),
    UNLIKE: (130, 130, 130),
}


def write_geojson(file: Path, answers: TileAnswers, size: tuple[int, int], name: str) -> None:
    """Write tiles as a FeatureCollection, in pixels at full resolution.

    QuPath's reader (`QuPathTypeAdapters.java`, 0.4 and later) takes `objectType`, `classification` and `measurements`
    below `properties`, a UUID as `id`, closed rings, and no null.

    Args:
        file: The .geojson file to write.
        answers: The tiles.
        size: The slide's width and height at full resolution; tiles that reach beyond are cut there.
        name: The slide's, which the ids are made from: the same slide gives the same ids.
    """
    with atomic_write_text(file) as stream:
        stream.write('{"type": "FeatureCollection", "features": [\n')
        for number, feature in enumerate(_features(answers, size, name)):
            stream.write(f"{',' if number else ''}{feature}\n")
        stream.write("]}\n")


def _features(answers: TileAnswers, size: tuple[int, int], name: str) -> Iterator[str]:
    slide = uuid.uuid5(uuid.NAMESPACE_URL, name)
    classes = {
        label: json.dumps({"name": label, "color": list(color)}, ensure_ascii=False) for label, color in COLORS.items()
    }
    columns = (answers.x, answers.y, answers.width, answers.height, answers.probability, answers.novelty)
    for x, y, width, height, probability, novelty, label in zip(
        *(column.tolist() for column in columns), answers.label.tolist(), strict=True
    ):
        right, bottom = min(x + width, size[0]), min(y + height, size[1])
        ring = f"[[{x}, {y}], [{right}, {y}], [{right}, {bottom}], [{x}, {bottom}], [{x}, {y}]]"
        measured = f'"Probability": {probability}' + ("" if math.isnan(novelty) else f', "Novelty": {novelty}')
        yield (
            f'{{"type": "Feature", "id": "{uuid.uuid5(slide, f"{x},{y}")}", '
            f'"geometry": {{"type": "Polygon", "coordinates": [{ring}]}}, '
            f'"properties": {{"objectType": "tile", "classification": {classes[label]}, '
            f'"measurements": {{{measured}}}}}}}'
        )
