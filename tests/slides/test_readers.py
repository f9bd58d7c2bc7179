from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from histo_pl.errors import ImageError, UserError
from histo_pl.slides import Slide, open_slide
from histo_pl.slides import flat as flat_module
from histo_pl.slides.opening import distinct_slides
from histo_pl.slides.openslide_reader import OpenSlideReader
from histo_pl.slides.slide import best_level, read_padded, read_thumbnail
from histo_pl.slides.tiff import TiffSlide

WIDTH, HEIGHT = 700, 530


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH))
    return np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, noise], -1).astype(np.uint8)


def write_pyramid(file: Path, pixels: NDArray[np.uint8], mpp: float | None = None, **options: Any) -> Path:
    """Write a tiled TIFF of three levels, each half the size, as OpenSlide's generic format wants it."""
    with tifffile.TiffWriter(file) as writer:
        for factor in (1, 2, 4):
            level = np.asarray(Image.fromarray(pixels).reduce(factor))
            resolution = None if mpp is None else (1e4 / (mpp * factor), 1e4 / (mpp * factor))
            writer.write(
                level,
                photometric="rgb",
                tile=(128, 128),
                subfiletype=int(factor > 1),
                metadata=None,
                resolution=resolution,
                resolutionunit=None if mpp is None else "CENTIMETER",
                **options,
            )
    return file


def regions() -> Iterator[tuple[int, int, int, int]]:
    yield from [(0, 0, WIDTH, HEIGHT), (123, 77, 300, 200), (WIDTH - 1, HEIGHT - 1, 1, 1), (120, 0, 16, HEIGHT)]


def check_regions(slide: Slide, pixels: NDArray[np.uint8]) -> None:
    assert slide.size == (WIDTH, HEIGHT)
    for x, y, width, height in regions():
        assert (slide.read(x, y, width, height) == pixels[y : y + height, x : x + width]).all()


def test_a_plain_image_is_a_slide_of_one_level(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    slide = open_slide(tmp_path / "photo.png")
    assert (slide.downsamples, slide.mpp) == ((1.0,), None)
    check_regions(slide, pixels)


def test_openslide_and_tifffile_read_the_same(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    file = write_pyramid(tmp_path / "slide.tiff", pixels, 0.25, compression="deflate")
    first, second = open_slide(file), TiffSlide(file)
    assert isinstance(first, OpenSlideReader)
    for slide in (first, second):
        check_regions(slide, pixels)
        assert slide.mpp == pytest.approx(0.25, rel=1e-4)
        assert slide.downsamples == pytest.approx((1, 2, 4), rel=0.01)
    assert (first.read(100, 60, 90, 80, 1) == second.read(100, 60, 90, 80, 1)).all()


@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 7}, {"compression": "lzw"}, {"tile": (64, 96)}])
def test_a_tiff_of_strips_or_tiles_is_read_by_regions(
    options: dict[str, Any], tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", **options)
    check_regions(TiffSlide(tmp_path / "x.tif"), pixels)


def test_a_tiff_that_openslide_does_not_know_goes_to_tifffile(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    tifffile.imwrite(tmp_path / "strips.tif", pixels, photometric="rgb", compression="lzw")
    slide = open_slide(tmp_path / "strips.tif")
    assert isinstance(slide, TiffSlide)
    check_regions(slide, pixels)


def test_grey_and_16_bits_become_rgb_of_8(tmp_path: Path) -> None:
    grey = (np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", grey, photometric="minisblack")
    read = TiffSlide(tmp_path / "x.tif").read(0, 0, 16, 16)
    assert (read == np.arange(256).reshape(16, 16, 1)).all()


def test_a_tile_that_was_never_written_is_white(tmp_path: Path) -> None:
    written = np.full((64, 64, 3), 9, np.uint8)
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        tiles = iter([written, None])
        writer.write(tiles, shape=(64, 128, 3), dtype=np.uint8, photometric="rgb", tile=(64, 64), compression="deflate")
    read = TiffSlide(tmp_path / "x.tif").read(0, 0, 128, 64)
    assert (read[:, :64] == 9).all()
    assert (read[:, 64:] == 255).all()


def test_padding_repeats_the_last_row_and_column(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    slide = TiffSlide(write_pyramid(tmp_path / "x.tiff", pixels))
    padded = read_padded(slide, 600, 500, 150, 100)
    assert (padded[:30, :100] == pixels[500:, 600:]).all()
    assert (padded[30:, :100] == pixels[-1, 600:]).all()
    assert (padded[:30, 100:] == pixels[500:, -1:]).all()


def test_thumbnail_covers_the_whole_slide(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    slide = open_slide(write_pyramid(tmp_path / "x.tiff", pixels))
    thumbnail = read_thumbnail(slide, 70).astype(int)
    assert thumbnail.shape == (53, 70, 3)
    wanted = np.asarray(Image.fromarray(pixels).resize((70, 53), Image.Resampling.BOX)).astype(int)
    assert np.abs(thumbnail - wanted)[..., :2].max() <= 3


def test_the_level_is_never_coarser_than_asked_for(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    slide = open_slide(write_pyramid(tmp_path / "x.tiff", pixels))
    assert [best_level(slide, factor) for factor in (0.5, 1, 1.9, 2, 3, 4, 100)] == [0, 0, 0, 1, 1, 2, 2]


def test_a_truncated_tiff_is_one_line(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    whole = write_pyramid(tmp_path / "x.tiff", pixels).read_bytes()
    for share in (0.001, 0.5):
        file = tmp_path / f"cut{share}.tiff"
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match="cannot be read") as raised:
            open_slide(file).read(0, 0, WIDTH, HEIGHT)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a.svs", "b.ndpi", "c.mrxs", "😐.svs"])
def test_a_file_that_is_no_slide_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no slide")
    with pytest.raises(ImageError, match="no format that OpenSlide knows"):
        open_slide(tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        open_slide(tmp_path / f"missing_{name}")


def test_an_image_that_is_too_large_to_be_decoded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (60, 50)).save(tmp_path / "x.png")
    monkeypatch.setattr(flat_module, "MOST_PIXELS", 2999)
    with pytest.raises(ImageError, match="60x50 pixels"):
        open_slide(tmp_path / "x.png")


def test_channels_that_are_no_rgb_are_one_line(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((5, 20, 20), np.float32), photometric="minisblack", planarconfig=2)
    with pytest.raises(ImageError, match="8 or 16 bits"):
        open_slide(tmp_path / "x.tif")


def test_a_missing_reader_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openslide", None)
    monkeypatch.delitem(__import__("sys").modules, "histo_pl.slides.openslide_reader", raising=False)
    (tmp_path / "x.svs").touch()
    with pytest.raises(UserError, match=r"pip install -e '\.\[slides\]'"):
        open_slide(tmp_path / "x.svs")


def test_files_that_are_no_dicom_are_all_kept(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.svs", "b.dcm", "c.dcm")]
    for file in files:
        file.touch()
    assert distinct_slides(files) == files
