"""A plain image as a slide of one level, decoded whole."""

from pathlib import Path

from histo_pl.errors import ImageError
from histo_pl.images import read_rgb, read_size
from histo_pl.slides.slide import Pixels

MOST_PIXELS = 500_000_000  # 1.5 GB of RGB


class FlatSlide:
    """An image of JPEG, PNG, TIFF, BMP or WebP, see `Slide`.

    Args:
        path: The file.

    Raises:
        ImageError: It cannot be decoded, or has more than `MOST_PIXELS` pixels.
    """

    mpp: float | None = None  # their dots an inch are those of print
    downsamples: tuple[float, ...] = (1.0,)

    def __init__(self, path: Path) -> None:
        width, height = read_size(path)
        if width * height > MOST_PIXELS:
            raise ImageError(
                f"This image is too large to be decoded whole. Expected at most {MOST_PIXELS / 1e6:g} megapixels; a "
                f"pyramidal TIFF may have any size. Received: {path} with {width}x{height} pixels"
            )
        self._pixels = read_rgb(path, MOST_PIXELS)
        self.size = (self._pixels.shape[1], self._pixels.shape[0])

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> Pixels:
        """Read a region, RGB of shape (height, width, 3), see `Slide.read`."""
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Let the pixels go."""
        self._pixels = self._pixels[:0]
