"""Scalar fields over a tile, for the synthetic tissue: noise, ranks of areas, and points."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
Points = NDArray[np.complex128]

MAX_RANK = 1.5  # areas are ranked, and their edges soft, up to this multiple of their share


def rank_areas(field: Floats, where: NDArray[np.bool_], share: float) -> Floats:
    """Rank a field's values by the area that is lower, 1 being a given share of the tile.

    Args:
        field: (size, size).
        where: (size, size): the part of the tile whose area counts.
        share: Share of the whole tile, at most that of `where`.

    Returns:
        Ranks, (size, size), from 0 to 1.5.
    """
    ranks = np.linspace(0, MAX_RANK, 16)
    levels = np.quantile(field[where], np.minimum(ranks * share / where.mean(), 1))
    return np.interp(field, levels, ranks)


def soft_mask(rank: Floats, softness: float) -> Floats:
    """Return a mask, in [0, 1], of the ranks below 1, its edge as wide in rank as any other's of its softness."""
    return np.clip((1 + softness - rank) / (2 * softness), 0, 1)


def scatter_points(rng: np.random.Generator, count: int) -> Points:
    """Draw points, (count,), in the square of -1..1 by -1..1."""
    return rng.uniform(-1, 1, count) + 1j * rng.uniform(-1, 1, count)


def draw_directions(rng: np.random.Generator, count: int) -> Points:
    """Draw unit vectors in random directions, of shape (count,)."""
    return np.exp(2j * np.pi * rng.random(count))


def draw_noise(rng: np.random.Generator, cells: int, size: int) -> Floats:
    """Draw smooth noise, (size, size), of mean 0 and a deviation near 1, with `cells` across the tile."""
    return enlarge(rng.normal(0, 1, (cells, cells)), size)


def enlarge(field: Floats, size: int) -> Floats:
    """Resize a field to (size, size), bicubically."""
    image = Image.fromarray(field.astype(np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float64)


def pixel_positions(size: int) -> Points:
    """Return the positions of pixels' centres, (size, size)."""
    steps = (np.arange(size) + 0.5) / size
    return steps + 1j * steps[:, None]


def sample_field(field: Floats, positions: Points) -> Floats:
    """Return a field's values at positions (n,), those beyond the tile's edge taken to it."""
    cells = np.stack([positions.imag, positions.real]) * len(field)
    row, column = np.clip(cells, 0, len(field) - 1).astype(int)
    return field[row, column]


def near_tile(positions: Points, margin: float = 0.04) -> NDArray[np.bool_]:
    """Tell for each position if it lies on the tile or within a margin (share of the side) of it."""
    centred = positions - (0.5 + 0.5j)
    return np.maximum(np.abs(centred.real), np.abs(centred.imag)) < 0.5 + margin
