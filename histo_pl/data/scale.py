"""The physical scale of tiles: micrometres per pixel (mpp), and their size in pixels."""

import math
from collections.abc import Sequence
from statistics import median

from histo_pl.data.source import MAGNIFICATION
from histo_pl.data.tile import Tile
from histo_pl.errors import UserError
from histo_pl.tables import describe_some


def scale_of(tiles: Sequence[Tile], mpp: float | str | None) -> float | None:
    """Find the scale that slides are read at.

    Args:
        tiles: The tiles of a data set, at least one.
        mpp: Micrometres per pixel of all tiles; or the column that holds each tile's own; None: unknown.

    Returns:
        The median of the tiles' micrometres per pixel; None: unknown.

    Raises:
        UserError: The number is out of range, the column is missing or holds no number, or one number is given for
            tiles of several magnifications.
    """
    if mpp is None:
        return None
    if isinstance(mpp, str):
        return median(_number(tile, mpp) for tile in tiles)
    if isinstance(mpp, bool) or not 0 < mpp < math.inf:
        raise UserError(f"data.mpp is out of range. Expected micrometres per pixel, such as 0.5. Received: {mpp}")
    present = sorted({tile.columns.get(MAGNIFICATION, "") for tile in tiles})
    if len(present) > 1:
        raise UserError(
            f"There are tiles of several magnifications, and one data.mpp. Expected the column that holds each tile's "
            f"own, data.mpp=COLUMN, or one magnification. Received: data.mpp={mpp}, magnifications "
            f"{', '.join(one or '(none)' for one in present)}"
        )
    return float(mpp)


def _number(tile: Tile, column: str) -> float:
    if column not in tile.columns:
        raise UserError(
            f"There is no such column. Expected a number, or a column of data.table or data.columns"
            f"{f': {describe_some(sorted(tile.columns))}' if tile.columns else ''}. Received: data.mpp={column}"
        )
    try:
        number = float(tile.columns[column])
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(
            f"The column {column} does not hold micrometres per pixel for every tile. Expected a number above 0. "
            f"Received: {tile.columns[column] or 'nothing'} for {tile.path}"
        )
    return number
