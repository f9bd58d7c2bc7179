from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_pl.slides import open_slide
from histo_pl.slides.tiling import lay_tiles, read_region, shape_tiles
from tests.slides.test_readers import write_pyramid

PINK, GLASS = (205, 140, 180), (244, 243, 245)


@pytest.fixture
def slide_file(tmp_path: Path) -> Path:
    pixels = np.full((600, 1000, 3), GLASS, np.uint8)
    pixels[200:600, 300:1000] = PINK
    return write_pyramid(tmp_path / "x.tiff", pixels)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles_cover_the_tissue_and_no_more(slide_file: Path, overlap: float) -> None:
    slide = open_slide(slide_file)
    tiling = lay_tiles(slide, shape_tiles(slide, 96, (96, 64)), overlap)
    assert (tiling.shape.width, tiling.shape.height) == (96, 64)
    covered = np.zeros((600, 1000), bool)
    for x, y in zip(tiling.x, tiling.y, strict=True):
        covered[y : y + 64, x : x + 96] = True
        assert x + 96 > 290
        assert y + 64 > 190
    assert covered[210:, 310:].all()
    assert len(tiling) < tiling.grid
    assert (np.diff(tiling.y) >= 0).all()  # row by row


def test_a_tile_keeps_the_field_of_view_and_the_aspect_of_the_training(slide_file: Path) -> None:
    slide = open_slide(slide_file)
    fine = shape_tiles(slide, 100, (100, 60))
    assert (fine.width, fine.height, fine.level) == (100, 60, 0)
    coarse = shape_tiles(slide, 400, (100, 60))  # four times the training's resolution
    assert (coarse.width, coarse.height, coarse.level, coarse.read_width, coarse.read_height) == (400, 240, 2, 100, 60)
    between = shape_tiles(slide, 300, (100, 60))  # never coarser than the training
    assert (between.level, between.read_width) == (1, 150)


def test_a_tile_at_the_edge_repeats_it(slide_file: Path) -> None:
    slide = open_slide(slide_file)
    shape = shape_tiles(slide, 96, (96, 96))
    tile = read_region(slide, shape, 960, 576)
    assert tile.shape == (96, 96, 3)
    assert (tile == PINK).all()


def test_a_slide_without_tissue_has_no_tiles(tmp_path: Path) -> None:
    Image.new("RGB", (500, 400), GLASS).save(tmp_path / "x.png")
    slide = open_slide(tmp_path / "x.png")
    tiling = lay_tiles(slide, shape_tiles(slide, 50, (50, 50)), 0)
    assert len(tiling) == 0
    assert tiling.grid == 80
