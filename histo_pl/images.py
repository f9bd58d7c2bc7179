"""One image file in, RGB pixels out: the only way in which histo_pl reads and resizes a picture."""

import io
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from histo_pl.errors import ImageError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# Algorithms that bring a picture to a square, by the names that checkpoints carry. Another algorithm gets another name.
RESIZE = "pillow-bilinear-antialias"  # of every training here: averages over the shrunken area
KERAS_RESIZE = "pillow-nearest"  # of Keras's generators: `target_size` picks single pixels unless told otherwise
OPENCV_RESIZE = "opencv-bilinear"  # of the notebook's prediction: `cv2.resize`, which does not average either

ORIENTATION = ExifTags.Base.Orientation
TURNED = (5, 6, 7, 8)  # orientations that exchange width and height

_limit = threading.Lock()  # held while `Image.MAX_IMAGE_PIXELS` is another
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `_check_pixels` refuses such a picture


def find_files(folder: str | Path) -> Iterator[Path]:
    """List the files below a folder, through links too, without those that are hidden or in hidden folders.

    A link to a folder that it lies in, or came by, leads in a circle and is not followed: there is no further file.

    Args:
        folder: The folder to search.

    Yields:
        Paths that begin with `folder`, in order.
    """
    yield from map(Path, list_files(folder))


def list_files(folder: str | Path) -> Iterator[str]:
    """List the same files as `find_files` as texts, which for a hundred thousand take a third of the time."""
    yield from _files_below(str(folder), frozenset())


def _files_below(folder: str, passed: frozenset[str]) -> Iterator[str]:
    """List the files below a folder that was reached through others, named by their real paths."""
    here = os.path.realpath(folder)
    if any(folder_before == here or folder_before.startswith(here + os.sep) for folder_before in passed):
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ImageError(
            f"This folder cannot be read ({error.strerror}). Expected one that may be listed. Received: {folder}"
        ) from error
    folders = {e.name for e in entries if (os.path.isdir(e.path) if e.is_symlink() else e.is_dir())}  # noqa: PTH112
    yield from (e.path for e in entries if e.name not in folders and not e.name.startswith("."))
    for name in sorted(folders):
        if not name.startswith((".", "__")):
            yield from _files_below(os.path.join(folder, name), passed | {here})  # noqa: PTH118


def is_image(path: str | Path) -> bool:
    """Return whether a file's name ends as an image's."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS  # noqa: PTH122


def read_rgb(path: str | Path, most_pixels: int | None = None) -> NDArray[np.uint8]:
    """Read an image file as it is meant to be seen.

    JPEG (grayscale, CMYK, progressive), PNG (palette, alpha, 16-bit), TIFF, BMP and WebP. The EXIF orientation
    is applied, transparency is laid over white, 16 bits a channel become 8.

    Args:
        path: The file.
        most_pixels: An image of more is refused; None: more than Pillow deems safe (`PIL.Image.MAX_IMAGE_PIXELS`).

    Returns:
        Pixels of shape (H, W, 3), RGB in [0, 255].

    Raises:
        ImageError: The file does not exist, is no image, is damaged, or claims too many pixels.
    """
    if most_pixels is None:
        return np.array(_open_rgb(path))
    with _safe_up_to(most_pixels):
        return np.array(_open_rgb(path))


@contextmanager
def _safe_up_to(pixels: int) -> Iterator[None]:
    """Let this process decode larger images for a while, one thread at a time: Pillow's limit is the process's."""
    with _limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def read_size(path: str | Path, content: bytes | None = None) -> tuple[int, int]:
    """Read an image's width and height in pixels, as it is meant to be seen, from its header; it may be of any size.

    Args:
        path: The file.
        content: Its bytes, if they are known; the path then only names it in errors.

    Raises:
        ImageError: The file cannot be opened as an image.
    """
    with _image_errors(path, content), _safe_up_to(sys.maxsize), Image.open(_source(path, content)) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION, 1) in TURNED else (width, height)


def read_content(path: Path) -> bytes:
    """Read a file's bytes.

    Args:
        path: Any file.

    Raises:
        ImageError: The file cannot be read: a broken link, or no permission.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        link = "a link to a file that is not there" if path.is_symlink() and not path.exists() else error.strerror
        raise ImageError(
            f"This file cannot be read ({link}). Fix it or take it out of the folder. Received: {path}"
        ) from error


def decode_some(content: bytes, path: str | Path, most: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode the bytes of an image file as `read_rgb` does, and take evenly spaced pixels.

    Args:
        content: The bytes.
        path: The file that they are of, for errors.
        most: Sides of at least twice this many pixels are thinned to at least this many.

    Returns:
        Every n-th pixel of every n-th row, RGB in [0, 255], of shape (H', W', 3); and the image's width and height.

    Raises:
        ImageError: As `read_rgb`.
    """
    image = _open_rgb(path, content)
    across, down = (max(1, side // most) for side in image.size)
    if across == down == 1:
        return np.array(image), image.size
    size = (-(-image.width // across), -(-image.height // down))
    every = (across, 0, (1 - across) / 2, 0, down, (1 - down) / 2)  # centres of pixels onto centres
    return np.array(image.transform(size, Image.Transform.AFFINE, every, Image.Resampling.NEAREST)), image.size


def read_format(path: str | Path) -> tuple[str, str]:
    """Read how an image file is stored, without its pixels.

    Args:
        path: The file.

    Returns:
        The format's name, such as JPEG, and the stored dots an inch, empty where the file says nothing of them.

    Raises:
        ImageError: The file cannot be opened as an image.
    """
    with _image_errors(path), Image.open(path) as image:
        dpi = image.info.get("dpi")
        return str(image.format), "" if dpi is None else f"{round(float(dpi[0]))}"


def read_tile(path: str | Path, size: int, resize: str = RESIZE, content: bytes | None = None) -> Tensor:
    """Read an image file at the size of a network's input.

    The whole picture is squeezed into a square. One that has this size already keeps its pixels.

    Args:
        path: The file.
        size: Side of the square in pixels.
        resize: One of `RESIZES`.
        content: The file's bytes, if they are known; the path then only names it in errors.

    Returns:
        uint8 tensor of shape (3, size, size), RGB in [0, 255].

    Raises:
        ImageError: As `read_rgb`.
    """
    return _squeeze(_open_rgb(path, content), size, resize)


def squeeze_pixels(pixels: NDArray[np.uint8], size: int, resize: str = RESIZE) -> Tensor:
    """Bring pixels to the size of a network's input, as `read_tile` does those of a file.

    Args:
        pixels: RGB of shape (H, W, 3).
        size: Side of the square in pixels.
        resize: One of `RESIZES`.

    Returns:
        uint8 tensor of shape (3, size, size), RGB in [0, 255].
    """
    return _squeeze(Image.fromarray(pixels), size, resize)


def _squeeze(image: Image.Image, size: int, resize: str) -> Tensor:
    return _to_tensor(image) if image.size == (size, size) else RESIZES[resize](image, size)


def _resize_bilinear(image: Image.Image, size: int) -> Tensor:
    return _to_tensor(image.resize((size, size), Image.Resampling.BILINEAR))


def _resize_nearest(image: Image.Image, size: int) -> Tensor:
    return _to_tensor(image.resize((size, size), Image.Resampling.NEAREST))


def _resize_as_opencv(image: Image.Image, size: int) -> Tensor:
    """Interpolate between four pixels: OpenCV's INTER_LINEAR, which rounds its weights to 11 bits."""
    pixels = _to_tensor(image)[None].float()
    return interpolate(pixels, (size, size), mode="bilinear", align_corners=False)[0].round().to(torch.uint8)


RESIZES: dict[str, Callable[[Image.Image, int], Tensor]] = {
    RESIZE: _resize_bilinear,
    KERAS_RESIZE: _resize_nearest,
    OPENCV_RESIZE: _resize_as_opencv,
}


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))


def _open_rgb(path: str | Path, content: bytes | None = None) -> Image.Image:
    with _image_errors(path, content), Image.open(_source(path, content)) as image:
        _check_pixels(image)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


@contextmanager
def _image_errors(path: str | Path, content: bytes | None = None) -> Iterator[None]:
    """Say what is wrong with an image, whatever Pillow raises."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(f"There is no such file. Expected an image. Received: {path}") from error
    except UnidentifiedImageError as error:
        empty = not content if content is not None else os.path.getsize(path) == 0  # noqa: PTH202
        what = "This file is empty" if empty else "This file's content is no image of a known format, whatever its name"
        raise ImageError(f"{what}. Expected one of {', '.join(EXTENSIONS)}. Received: {path}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"This image claims more than {Image.MAX_IMAGE_PIXELS:,} pixels, as a decompression bomb does. "
            f"Cut it into tiles first. Received: {path}"
        ) from error
    except Exception as error:  # Pillow lets many kinds through from damaged headers
        raise ImageError(
            f"This image cannot be decoded ({error}). Replace the file or take it out of the folder. Received: {path}"
        ) from error


def _source(path: str | Path, content: bytes | None) -> str | Path | io.BytesIO:
    return path if content is None else io.BytesIO(content)


def _check_pixels(image: Image.Image) -> None:
    """Refuse what Pillow only warns of: a warning cannot be made an error in one of several threads alone."""
    if Image.MAX_IMAGE_PIXELS is not None and math.prod(image.size) > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        return _sixteen_bit_to_rgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _sixteen_bit_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255: Pillow's own conversion clips at 255 instead."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:  # noqa: PLR2004
        raise ValueError("its pixels go beyond 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
