"""Settings of slides and large photographs: which images are tiled, and the field of view of a tile."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histo_pl.errors import ImageError, UserError
from histo_pl.images import read_size
from histo_pl.models.checkpoint import TrainedModel
from histo_pl.slides.opening import TIFF, is_slide, open_slide
from histo_pl.slides.scale import Scale, unknown_scale

LEAST_TILE = 16  # pixels of a tile's width: less is a slip
LARGE = 2  # times the side of a training tile beyond which a plain image is tiled


@dataclass(frozen=True)
class SlideOptions:
    """Keys of `conf/predict.yaml` that concern slides and large images.

    Attributes:
        tile: Width of a tile in pixels at full resolution; None: the field of view of the training tiles; False: plain
            images are squeezed whole.
        scale: The slides' micrometres per pixel.
        mpp_tile: Micrometres per pixel of the training tiles, where the checkpoint does not say them.
        overlap: Share of a tile's side that it has in common with the next, in [0, 0.9].
        explain: The method of the evidence maps, see `evidence.method_for`; False: none.
    """

    tile: int | None = None
    scale: Scale = field(default_factory=Scale)
    mpp_tile: float | None = None
    overlap: float = 0.0
    explain: str | bool = False

    @classmethod
    def of(
        cls,
        tile: int | None = None,
        overlap: float = 0.0,
        mpp: float | None = None,
        magnification: float | None = None,
        mpp_file: str | None = None,
        mpp_tile: float | None = None,
        explain: str | bool = False,
    ) -> "SlideOptions":
        """Check what a user chose.

        Args:
            tile: See the attribute.
            overlap: See the attribute.
            mpp: Micrometres per pixel of all slides, at full resolution.
            magnification: The objective's, instead of it.
            mpp_file: A CSV with each slide's.
            mpp_tile: See the attribute.
            explain: See the attribute.

        Raises:
            UserError: A value is out of range.
        """
        if tile is not None and tile is not False and (not isinstance(tile, int) or tile < LEAST_TILE):
            raise UserError(
                f"tile is not as expected. Expected a tile's width in whole pixels at full resolution, at least "
                f"{LEAST_TILE}, or false to squeeze whole images. Received: tile={tile}"
            )
        if tile is not None and mpp_tile is not None:
            raise UserError(
                f"The tiles' size is given twice. Expected tile or mpp_tile. Received: tile={tile} mpp_tile={mpp_tile}"
            )
        if isinstance(overlap, bool | str) or not 0 <= overlap <= 0.9:  # noqa: PLR2004
            raise UserError(f"overlap is out of range. Expected from 0 to 0.9. Received: overlap={overlap}")
        if mpp_tile is not None and (isinstance(mpp_tile, bool | str) or not 0 < mpp_tile < math.inf):
            raise UserError(f"mpp_tile is out of range. Expected a number above 0. Received: mpp_tile={mpp_tile}")
        return cls(tile, Scale.of(mpp, magnification, mpp_file), mpp_tile, overlap, explain)

    def own_size(self, model: TrainedModel) -> tuple[int, int]:
        """Return a training tile's own width and height in pixels; of an older checkpoint the network's input."""
        return model.tile_size or (model.image_size, model.image_size)

    def is_tiled(self, file: Path, model: TrainedModel) -> bool:
        """Tell whether an image is cut into tiles, or squeezed whole.

        Args:
            file: An image that may be unreadable.
            model: The model to be asked.

        Raises:
            UserError: A slide is to be squeezed whole.
        """
        if is_slide(file):
            if self.tile is False:
                raise UserError(f"A slide cannot be squeezed into one tile. Leave tile=false out. Received: {file}")
            return True
        size = None if self.tile is False else _size_of(file)
        if size is None:
            return False
        if self.tile is not None:
            width, height = self.own_size(model)
            return size[0] > self.tile or size[1] > self.tile * height / width
        if model.tile_size is None:
            return self.scale.said_of(file) is not None or self.mpp_tile is not None
        return is_large(size, model.tile_size)

    def tile_width(self, file: Path, mpp: float | None, model: TrainedModel, *, is_pyramid: bool) -> float:
        """Return the width of a tile in pixels at full resolution.

        Args:
            file: The slide's.
            mpp: The slide's micrometres per pixel; None: unknown.
            model: The model to be asked.
            is_pyramid: It has several levels, as photographs do not.

        Raises:
            UserError: The scale of the slide or of the training tiles is needed and unknown.
        """
        if self.tile is not None:
            return float(self.tile)
        of_tiles, own = self.mpp_tile or model.mpp, model.tile_size
        needs_scale = is_slide(file) or is_pyramid or self.scale.said_of(file) is not None or self.mpp_tile is not None
        if needs_scale and (of_tiles is None or own is None):
            raise UserError(
                f"This checkpoint does not say {'the size' if own is None else 'the micrometres per pixel'} of its "
                f"training tiles. Expected {'' if own is None else 'mpp_tile=0.5, their micrometres per pixel, or '}"
                f"tile=PIXELS, a tile's width in pixels of the slide at full resolution. Received: {file}"
            )
        if needs_scale and mpp is None:
            raise unknown_scale(file, self.scale)
        if mpp is None or of_tiles is None or own is None:
            return float(self.own_size(model)[0])
        return own[0] * of_tiles / mpp

    def settings(self) -> dict[str, Any]:
        """Return the settings of all slides in plain values, as a run's folder keeps them.

        A slide's scale is its own: it may be given later for those that lacked it.
        """
        return {"tile": self.tile, "overlap": self.overlap, "mpp_tile": self.mpp_tile, "explain": self.explain}


def is_large(size: tuple[int, int], tile: tuple[int, int]) -> bool:
    """Tell whether a plain image is too large to be one tile.

    Args:
        size: Its width and height in pixels.
        tile: Those of the training tiles.
    """
    return any(side > LARGE * of_tile for side, of_tile in zip(size, tile, strict=True))


def _size_of(file: Path) -> tuple[int, int] | None:
    """Read an image's width and height; None where it cannot be opened."""
    try:
        return read_size(file)
    except ImageError:
        if file.suffix.lower() not in TIFF:
            return None
    try:
        slide = open_slide(file)
    except UserError:
        return None
    slide.close()
    return slide.size
