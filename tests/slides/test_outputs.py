import json
import uuid
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from histo_pl.probability import BENIGN, MALIGNANT, REFER, UNLIKE
from histo_pl.slides.geojson import write_geojson
from histo_pl.slides.maps import draw_overlay, probability_map, write_map, write_tiff
from histo_pl.slides.table import COLUMNS, TileAnswers, first_row, open_rows, read_answers

SIZE = (2000, 1500)


def answers_at(places: list[tuple[int, int]], width: int = 224, height: int = 150) -> TileAnswers:
    count = len(places)
    x, y = np.array(places).T
    labels = np.resize([MALIGNANT, BENIGN, REFER, UNLIKE], count)
    return TileAnswers(
        x,
        y,
        np.full(count, width),
        np.full(count, height),
        np.linspace(0.05, 0.95, count),
        np.where(np.arange(count) % 2, np.nan, 0.5),
        np.full(count, np.nan),
        labels,
    )


def test_geojson_keeps_the_rules_of_qupaths_reader(tmp_path: Path) -> None:
    """QuPathTypeAdapters.java: one feature that breaks a rule makes it drop the whole file."""
    answers = answers_at([(0, 0), (224, 0), (1800, 1400), (448, 300), (7, 900)])
    write_geojson(tmp_path / "x.geojson", answers, SIZE, "slide")
    document = json.loads((tmp_path / "x.geojson").read_text(encoding="utf-8"))
    assert document["type"] == "FeatureCollection"
    ids = [feature["id"] for feature in document["features"]]
    assert len(set(ids)) == len(ids) == 5
    for feature in document["features"]:
        assert set(feature) == {"type", "id", "geometry", "properties"}  # no plane, no children
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        properties = feature["properties"]
        assert set(properties) == {"objectType", "classification", "measurements"}
        assert properties["objectType"] == "tile"
        assert set(properties["classification"]) == {"name", "color"}
        color = properties["classification"]["color"]
        assert len(color) == 3
        assert all(isinstance(level, int) and 0 <= level <= 255 for level in color)
        assert all(type(value) in (int, float) and np.isfinite(value) for value in properties["measurements"].values())
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) == 5
        assert all(0 <= x <= SIZE[0] and 0 <= y <= SIZE[1] for x, y in ring)
        assert ring[2][0] > ring[0][0]
        assert ring[2][1] > ring[0][1]
    assert [feature["properties"]["classification"]["name"] for feature in document["features"]] == list(answers.label)
    assert "Novelty" not in document["features"][1]["properties"]["measurements"]  # it is unknown, and NaN is no JSON


def test_the_same_slide_gives_the_same_ids(tmp_path: Path) -> None:
    answers = answers_at([(0, 0), (224, 0)])
    for name, slide in (("a", "s1"), ("b", "s1"), ("c", "s2")):
        write_geojson(tmp_path / name, answers, SIZE, slide)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_tiles_corner_is_the_same_place_in_all_maps(tmp_path: Path) -> None:
    """A dark thumbnail with one bright tile on it: its corner is looked for in each file."""
    x, y = 845, 610
    answers = answers_at([(x, y)])
    thumbnail = np.zeros((300, 400, 3), np.uint8)
    overlay = draw_overlay(thumbnail, answers, SIZE)
    mpp = 0.5
    write_map(tmp_path / "map.png", overlay)
    write_tiff(tmp_path / "map.tiff", overlay, (mpp * SIZE[0] / 400, mpp * SIZE[1] / 300))
    write_geojson(tmp_path / "tiles.geojson", answers, SIZE, "slide")
    ring = json.loads((tmp_path / "tiles.geojson").read_text())["features"][0]["geometry"]["coordinates"][0]
    picture = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))[:300, :400]
    with openslide.OpenSlide(tmp_path / "map.tiff") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        tiff = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        scale = float(slide.properties["openslide.mpp-x"]) / mpp
        assert scale == pytest.approx(5, rel=1e-3)
    for image in (picture, tiff):
        rows, columns = np.nonzero(image.max(2))
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(found - np.array([*ring[0], *ring[2]]) / scale).max() <= 1


def test_map_tiff_keeps_the_rules_of_openslide_and_qupath(tmp_path: Path) -> None:
    overlay = np.random.default_rng(0).integers(0, 255, (1100, 900, 3), dtype=np.uint8)
    write_tiff(tmp_path / "map.tiff", overlay, (4.0, 4.0))
    with tifffile.TiffFile(tmp_path / "map.tiff") as tiff:
        sizes = [page.shape[:2] for page in tiff.pages]
        assert sizes == [(1100, 900), (550, 450), (275, 225), (138, 113)]
        assert [page.subfiletype for page in tiff.pages] == [0, 1, 1, 1]
        for page in tiff.pages:
            assert page.is_tiled
            assert all(count > 0 for count in page.databytecounts)
        assert (tiff.pages[0].asarray() == overlay).all()
    with openslide.OpenSlide(tmp_path / "map.tiff") as slide:
        assert slide.level_count == 4
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(4, rel=1e-4)
        assert "openslide.bounds-x" not in slide.properties  # QuPath would shift all coordinates


def test_the_map_is_the_mean_of_the_tiles_over_a_pixel() -> None:
    answers = answers_at([(0, 0), (112, 0)], 224, 224)
    mean, answered = probability_map((15, 20), answers, SIZE)
    assert mean[0, 0] == pytest.approx(0.05)
    assert mean[0, 1] == pytest.approx(0.5)
    assert mean[0, 2] == pytest.approx(0.95)
    assert np.isnan(mean[14, 19])
    assert answered[0, 0]
    assert not answered[14, 19]


def test_tiles_unlike_the_training_are_grey() -> None:
    one = answers_at([(0, 0)])
    refused = TileAnswers(**{**vars(one), "label": np.array([UNLIKE])})
    red, green, blue = draw_overlay(np.full((15, 20, 3), 128, np.uint8), refused, SIZE)[0, 0].tolist()
    assert red == green == blue


def row(number: int) -> tuple[object, ...]:
    return (number, 0, 10, 10, None, number / 7, BENIGN, None, None, "a, note")


def test_rows_outlive_a_kill_and_a_cut_batch_is_answered_again(tmp_path: Path) -> None:
    file = tmp_path / "tiles.csv"
    with open_rows(file, 4) as (done, rows):
        assert done == 0
        rows.write(row(number) for number in range(8))
    whole = file.read_bytes()
    assert whole.splitlines()[0].decode() == ",".join(COLUMNS)
    for cut in (1, 30, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with open_rows(file, 4) as (done, rows):
            assert done == max(0, whole[:cut].count(b"\n") - 1) // 4 * 4
            rows.write(row(number) for number in range(done, 8))
        assert file.read_bytes() == whole
    answers = read_answers(file)
    assert answers.x.tolist() == list(range(8))
    assert answers.probability == pytest.approx(np.arange(8) / 7, abs=1e-6)
    assert np.isnan(answers.novelty).all()
    assert (first_row(file) or {})["note"] == "a, note"


def test_no_tiles_are_a_table_without_rows(tmp_path: Path) -> None:
    with open_rows(tmp_path / "x.csv", 4):
        pass
    assert len(read_answers(tmp_path / "x.csv")) == 0
    assert first_row(tmp_path / "x.csv") is None
