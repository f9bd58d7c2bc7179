from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from histo_pl.errors import ImageError
from histo_pl.images import EXTENSIONS, KERAS_RESIZE, OPENCV_RESIZE, decode_some, read_rgb, read_tile
from tests.conftest import draw_image
from tests.keras_peer import keras

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_extension_is_read(tmp_path: Path, extension: str) -> None:
    file = tmp_path / f"x{extension}"
    Image.new("RGB", (6, 4), RED).save(file)
    pixels = read_rgb(file)
    assert pixels.shape == (4, 6, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - RED).max() <= 2  # JPEG


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_other_colour_models(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (16, 16), "gray").convert(mode).save(tmp_path / "x.jpg", progressive=True)
    assert np.abs(read_rgb(tmp_path / "x.jpg").astype(int) - 128).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_lies_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.convert("P" if mode == "PA" else mode).save(tmp_path / "x.png")
    pixels = read_rgb(tmp_path / "x.png")
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[3, 3].tolist() == [255, 255, 255]


def test_half_transparency_is_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "x.png")
    assert np.abs(read_rgb(tmp_path / "x.png").astype(int) - 127).max() <= 1


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_sixteen_bits_keep_their_brightness(tmp_path: Path, extension: str) -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{extension}")
    assert read_rgb(tmp_path / f"x.{extension}")[0, :, 0].tolist() == [0, 100, 255]


def test_palette_image(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), GREEN).convert("P").save(tmp_path / "x.png")
    assert read_rgb(tmp_path / "x.png")[0, 0].tolist() == list(GREEN)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), RED)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_rgb(tmp_path / "x.jpg").shape == (8, 4, 3)


def test_tile_is_squeezed_with_pillows_bilinear_filter(tmp_path: Path) -> None:
    file = draw_image(tmp_path / "x.png", size=(20, 10))
    tile = read_tile(file, 5)
    with Image.open(file) as image:
        peer = np.asarray(image.resize((5, 5), Image.Resampling.BILINEAR))
    assert np.array_equal(tile.permute(1, 2, 0).numpy(), peer)


def test_tile_of_the_right_size_is_not_touched(tmp_path: Path) -> None:
    file = draw_image(tmp_path / "x.png")
    assert np.array_equal(read_tile(file, 8).permute(1, 2, 0).numpy(), read_rgb(file))


@pytest.mark.parametrize("extension", ["png", "jpg"])
@pytest.mark.parametrize("size", [(224, 224), (448, 448), (700, 460), (100, 150), (225, 31)])
def test_a_tile_can_be_read_as_the_notebook_does_with_opencv(
    tmp_path: Path, size: tuple[int, int], extension: str
) -> None:
    file = draw_image(tmp_path / f"x.{extension}", size=size)
    peer = cv2.resize(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB), (224, 224))
    difference = np.abs(read_tile(file, 224, OPENCV_RESIZE).permute(1, 2, 0).numpy().astype(int) - peer)
    assert difference.max() <= (0 if size == (224, 224) and extension == "png" else 1)


def test_a_tile_can_be_read_as_keras_generators_do(tmp_path: Path) -> None:
    file = draw_image(tmp_path / "x.png", size=(70, 46))
    peer = keras.utils.img_to_array(keras.utils.load_img(file, target_size=(32, 32)))
    assert np.array_equal(read_tile(file, 32, KERAS_RESIZE).permute(1, 2, 0).numpy(), peer)


def _truncated(file: Path) -> None:
    draw_image(file, size=(64, 64))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _text(file: Path) -> None:
    file.write_text("no image")


def _bomb(file: Path) -> None:
    Image.new("1", (16000, 12000)).save(file)


def _float(file: Path) -> None:
    Image.new("F", (4, 4)).save(file, format="TIFF")


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (_truncated, "x.png", "cannot be decoded"),
        (_truncated, "x.jpg", "cannot be decoded"),
        (_text, "x.png", "no image"),
        (_bomb, "x.png", "bomb"),
        (_float, "x.tiff", "floating-point"),
        (Path.mkdir, "x.png", "cannot be decoded"),
        (lambda _: None, "x.png", "no such file"),
    ],
)
def test_a_bad_file_gets_one_error_that_names_it(tmp_path: Path, damage, name: str, message: str) -> None:  # noqa: ANN001
    file = tmp_path / name
    damage(file)
    with pytest.raises(ImageError, match=message) as caught:
        read_rgb(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "size", [(1, 1), (9, 70), (63, 64), (127, 128), (129, 200), (224, 224), (700, 460), (1000, 77)]
)
def test_every_nth_pixel_is_taken_from_the_file(size: tuple[int, int], tmp_path: Path) -> None:
    file = draw_image(tmp_path / "a.png", size=size)
    across, down = (max(1, side // 64) for side in size)
    assert (decode_some(file.read_bytes(), file, 64)[0] == read_rgb(file)[::down, ::across]).all()
