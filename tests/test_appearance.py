"""Colours, tissue and greyness of a tile."""

import numpy as np
import pytest

from histo_pl.appearance import COLOURS, LEAST_TISSUE, describe_colours, is_grey, sample_pixels, tissue_share
from histo_pl.data.synthetic.tissue import Stain, draw_tile
from tests.conftest import BREAKHIS


def flat(*colour: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-1, 2, (64, 64, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def test_colours_know_nothing_of_places_and_are_numpys() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = describe_colours(sample_pixels(pixels))
    assert found == pytest.approx(describe_colours(sample_pixels(pixels[::-1].swapaxes(0, 1))))
    some = pixels.reshape(-1, 3) / 255
    percentiles = np.percentile(some, (5, 25, 50, 75, 95), axis=0).ravel()
    assert found == pytest.approx(np.r_[some.mean(0), some.std(0), percentiles])


@pytest.mark.parametrize("size", [(1, 9), (70, 9), (300, 200)])
def test_tiles_of_any_size_are_described(size: tuple[int, int]) -> None:
    assert describe_colours(sample_pixels(np.zeros((*size, 3), np.uint8))).shape == (COLOURS,)


@pytest.mark.parametrize("colour", [(255, 255, 255), (244, 240, 245), (0, 0, 0), (230, 150, 190), (128, 128, 128)])
def test_a_tile_of_one_colour_is_no_tissue(colour: tuple[int, int, int]) -> None:
    assert tissue_share(sample_pixels(flat(*colour))) == 0


def test_half_a_tile_of_tissue_is_half() -> None:
    tile = draw_tile(np.random.default_rng(0), Stain.draw(np.random.default_rng(0)), malignant=True, size=64)
    whole = tissue_share(sample_pixels(tile))
    tile[:, 32:] = 250
    assert tissue_share(sample_pixels(tile)) == pytest.approx(whole / 2, abs=0.05)


def test_a_grey_tile_is_known_by_its_channels() -> None:
    tile = draw_tile(np.random.default_rng(0), Stain.draw(np.random.default_rng(0)), malignant=True, size=64)
    assert not is_grey(sample_pixels(tile))
    grey = np.repeat(tile.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    assert is_grey(sample_pixels(grey))
    assert tissue_share(sample_pixels(grey)) > LEAST_TISSUE


def test_no_real_tile_is_blank() -> None:
    from histo_pl.images import read_rgb

    if not BREAKHIS.is_dir():
        pytest.skip("needs the BreakHis tiles")
    files = sorted(BREAKHIS.rglob("*.png"))[::20]
    assert min(tissue_share(sample_pixels(read_rgb(file))) for file in files) > LEAST_TISSUE
