"""TIFF files of any size, flat or pyramidal, that OpenSlide does not know: tiles or strips are decoded as needed."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from histo_pl.errors import ImageError
from histo_pl.slides.slide import Pixels

CACHE = 128 * 2**20  # bytes of decoded tiles and strips that are kept
MICROMETRES = {2: 25_400.0, 3: 10_000.0}  # of an inch and a centimetre, by TIFF's ResolutionUnit
BIT_DEPTHS = {"uint8": 1, "uint16": 257}  # and the divisor that brings each to 8 bits
CHANNELS = (1, 3, 4)


class TiffSlide:
    """A TIFF, see `Slide`.

    Args:
        path: The file.

    Raises:
        ImageError: It is damaged, or its pixels are no RGB or grey ones of 8 or 16 bits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._decoded: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        self._bytes = 0
        try:
            self._file = tifffile.TiffFile(path)
            levels = self._file.series[0].levels
            self._pages: list[Any] = [level.keyframe for level in levels]
        except Exception as error:  # tifffile lets many kinds through from damaged headers
            raise self._damaged(error) from error
        for page in self._pages:
            self._check(page)
        first = self._pages[0]
        self.size: tuple[int, int] = (first.imagewidth, first.imagelength)
        self.downsamples = tuple(first.imagewidth / page.imagewidth for page in self._pages)
        self.mpp = _read_mpp(first)

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> Pixels:
        """Read a region, RGB of shape (height, width, 3), see `Slide.read`."""
        page, factor = self._pages[level], self.downsamples[level]
        left = max(0, min(round(x / factor), page.imagewidth - width))
        top = max(0, min(round(y / factor), page.imagelength - height))
        rows, columns = _chunk(page)
        across = -(-page.imagewidth // columns)
        region = np.empty((height, width, 3), np.uint8)
        for row in range(top // rows, (top + height - 1) // rows + 1):
            for column in range(left // columns, (left + width - 1) // columns + 1):
                part = self._segment(level, row * across + column)
                _paste(part, region, column * columns - left, row * rows - top)
        return region

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _segment(self, level: int, index: int) -> Pixels:
        key = (level, index)
        with self._lock:
            if key in self._decoded:
                self._decoded.move_to_end(key)
                return self._decoded[key]
            handle, page = self._file.filehandle, self._pages[level]
            handle.seek(page.dataoffsets[index])
            data = handle.read(page.databytecounts[index])
        pixels = self._decode(page, data, index)
        with self._lock:
            if key not in self._decoded:
                self._bytes += pixels.nbytes
            self._decoded[key] = pixels
            while self._bytes > CACHE and len(self._decoded) > 1:
                self._bytes -= self._decoded.popitem(last=False)[1].nbytes
        return pixels

    def _decode(self, page: Any, data: bytes, index: int) -> Pixels:  # noqa: ANN401
        shortened = len(data) < page.databytecounts[index]
        try:
            if shortened:
                raise ValueError("its end is missing")
            decoded, _, shape = page.decode(data or None, index, jpegtables=page.jpegtables)
        except Exception as error:  # of the decoder of each compression
            raise self._damaged(error) from error
        if decoded is None:  # a tile that was never written
            return np.full((*shape[1:3], 3), page.nodata or 255, np.uint8)
        pixels = decoded[0]
        scale = BIT_DEPTHS[str(page.dtype)]
        pixels = pixels if scale == 1 else ((pixels.astype(np.uint32) + scale // 2) // scale).astype(np.uint8)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]

    def _check(self, page: Any) -> None:  # noqa: ANN401
        planar = page.planarconfig != 1 and page.samplesperpixel > 1
        named = page.photometric.name
        is_known = str(page.dtype) in BIT_DEPTHS and page.samplesperpixel in CHANNELS and not planar
        if not is_known or named not in ("RGB", "YCBCR", "MINISBLACK"):
            self.close()
            raise ImageError(
                f"This TIFF cannot be read as a slide. Expected RGB or grey pixels of 8 or 16 bits, channels side by "
                f"side. Received: {self.path} with {page.samplesperpixel} channels of {page.dtype}, {named}"
            )

    def _damaged(self, error: Exception) -> ImageError:
        reason = " ".join(str(error).split())[:200]
        return ImageError(f"This TIFF cannot be read ({reason}). Fetch it again. Received: {self.path}")


def _chunk(page: Any) -> tuple[int, int]:  # noqa: ANN401
    """Return the height and width of a page's tiles or strips."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _paste(part: Pixels, region: Pixels, left: int, top: int) -> None:
    """Copy the overlap of a part, whose upper left corner is at a place of a region."""
    height, width = (min(part.shape[a], region.shape[a] - start) for a, start in enumerate((top, left)))
    row, column = max(0, top), max(0, left)
    region[row : top + height, column : left + width] = part[row - top : height, column - left : width]


def _read_mpp(page: Any) -> float | None:  # noqa: ANN401
    tags = page.tags
    unit = MICROMETRES.get(int(tags.valueof("ResolutionUnit", 1)))
    numerator, denominator = tags.valueof("XResolution", (0, 1))
    return unit * denominator / numerator if unit and numerator else None
