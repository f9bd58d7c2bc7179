"""Slides that OpenSlide reads."""

from pathlib import Path

import numpy as np
import openslide

from histo_pl.errors import ImageError
from histo_pl.slides.slide import Pixels


def is_readable(path: Path) -> bool:
    """Return whether OpenSlide knows a file's format."""
    return openslide.OpenSlide.detect_format(path) is not None


def series_of(path: Path) -> str | None:
    """Return the unique name of the DICOM series that a file belongs to; None where it cannot be opened."""
    try:
        with openslide.OpenSlide(path) as slide:
            return slide.properties.get("dicom.SeriesInstanceUID")
    except openslide.OpenSlideError:
        return None


class OpenSlideReader:
    """A slide of OpenSlide's, see `Slide`; its handle may be used from several threads.

    Args:
        path: The file.

    Raises:
        ImageError: OpenSlide cannot read it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            known = isinstance(error, openslide.OpenSlideUnsupportedFormatError)
            what = "is of no format that OpenSlide knows" if known else f"cannot be read ({error})"
            raise ImageError(
                f"This slide {what}. Fetch it again, with the files that belong to it, or take it out of the folder. "
                f"Received: {path}"
            ) from error
        self.size = self._slide.dimensions
        self.downsamples = (1.0, *self._slide.level_downsamples[1:])
        self.mpp = self._read_mpp()

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> Pixels:
        """Read a region, RGB of shape (height, width, 3), see `Slide.read`; what was never scanned is white."""
        try:
            pixels = np.asarray(self._slide.read_region((x, y), level, (width, height)))
        except openslide.OpenSlideError as error:
            raise ImageError(
                f"This slide is damaged ({error}). Fetch it again. Received: {self.path}, the region at {x}, {y}"
            ) from error
        alpha = pixels[..., 3:]
        if (alpha == 255).all():  # noqa: PLR2004
            return pixels[..., :3]
        opaque = alpha / 255
        return (pixels[..., :3] * opaque + 255 * (1 - opaque)).round().astype(np.uint8)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def _read_mpp(self) -> float | None:
        sides = [self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        return (float(sides[0]) + float(sides[1])) / 2 if sides[0] and sides[1] else None
