"""Draw synthetic H&E-like breast tissue, benign or malignant, from a random generator.

Lengths are fractions of the tile's side and positions are complex numbers (x + iy, the tile being the unit
square), so that a tile shows the same field of view at any size in pixels. Whatever a colour histogram can
measure (the areas of nuclei, lumens and cytoplasm, their stain and sharpness) has one distribution for both
classes; only the size, the shape and the order of nuclei and glands differ. That is why edges are soft in
proportion to what they bound: a blur in pixels would leave more pale pixels around smaller nuclei.

Constants without a named source were set by eye, to resemble tissue at about 200x.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from histo_pl.data.synthetic.fields import (
    MAX_RANK,
    Floats,
    Points,
    draw_directions,
    draw_noise,
    enlarge,
    near_tile,
    pixel_positions,
    rank_areas,
    sample_field,
    scatter_points,
    soft_mask,
)

Vector = tuple[float, float, float]

# Optical density per unit of stain in R, G and B: Ruifrok & Johnston, Anal Quant Cytol Histol 23 (2001) 291.
HAEMATOXYLIN: Vector = (0.650, 0.704, 0.286)
EOSIN: Vector = (0.072, 0.990, 0.105)

_LAYOUT_CELLS = 64  # the grid on which glands and nests are laid out, whatever the size of the tile
_HARMONICS = 3  # of an outline: 2 (oval), 3 and 4 lobes
_CANDIDATES = 1000  # places tried for nuclei, many times what a tile can hold
_CIRCLE: Points = np.exp(1j * np.linspace(0, 2 * np.pi, 121))
_BATCH = 16  # nuclei rasterized at once: enough to be quick, few enough to stay in the cache
_REACH = 1.35  # the relative radius up to which a nucleus is rasterized
_ROOM = 0.85  # the part of a nucleus that must lie on none painted before
_COLLAR = 1.25  # the relative radius of the cytoplasm around a nucleus
_PRIORITY = 10.0  # more than a layout's fields vary


@dataclass(frozen=True)
class Stain:
    """The stain of the slides of one case.

    Attributes:
        haematoxylin: Unit vector (3,): optical density of haematoxylin in R, G and B.
        eosin: Unit vector (3,): optical density of eosin in R, G and B.
        haematoxylin_strength: Optical density of an average nucleus.
        eosin_strength: Optical density of average stroma.
    """

    haematoxylin: Vector
    eosin: Vector
    haematoxylin_strength: float
    eosin_strength: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw the stain of a case: hue and strength both vary, whatever the class."""
        return cls(
            haematoxylin=_vary_hue(rng, HAEMATOXYLIN),
            eosin=_vary_hue(rng, EOSIN),
            haematoxylin_strength=rng.uniform(1.0, 1.5),
            eosin_strength=rng.uniform(0.45, 0.7),
        )


def draw_tile(rng: np.random.Generator, stain: Stain, *, malignant: bool, size: int) -> NDArray[np.uint8]:
    """Draw one tile.

    Args:
        rng: Source of all randomness; the tile is a function of its state and the other arguments.
        stain: The stain of the tile's case.
        malignant: Draw crowds of pleomorphic nuclei instead of orderly glands.
        size: Side of the tile in pixels, at least 32.

    Returns:
        The tile, (size, size, 3), RGB in 0..255.
    """
    shares = _Shares.draw(rng)
    fibres = _draw_fibres(rng)
    layout = (_draw_nests if malignant else _draw_glands)(rng, shares)
    painted = _PaintedNuclei(size)
    for nuclei in layout.nuclei:
        painted.fill(nuclei, (1 - shares.fibroblasts) * shares.nuclei)
    painted.fill(_draw_fibroblasts(rng, layout, shares, fibres), shares.nuclei)
    regions = _Regions.draw(rng, shares, layout, painted.radius)
    haematoxylin, eosin = _concentrations(rng, regions, enlarge(fibres, size))
    return _photograph(rng, stain, haematoxylin, eosin)


@dataclass(frozen=True)
class _Shares:
    """Shares of the tile's area (fibroblasts: of the nuclei's area), drawn alike for both classes."""

    nuclei: float
    fibroblasts: float
    void: float
    cytoplasm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        return cls(
            nuclei=rng.uniform(0.22, 0.3),
            fibroblasts=rng.uniform(0.03, 0.08),
            void=rng.uniform(0.05, 0.13),
            cytoplasm=rng.uniform(0.22, 0.32),
        )

    @property
    def epithelium(self) -> float:
        """The share of glands or nests, with their lumens."""
        return self.nuclei + self.void + self.cytoplasm


class _Nuclei(NamedTuple):
    """Nuclei in the order in which they are to be painted, as arrays (n,)."""

    centres: Points
    axes: Points  # unit vectors along their lengths
    half_lengths: Floats
    half_widths: Floats
    outlines: Points  # (harmonics, n)

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        centres: Points,
        axes: Points,
        *,
        half_width: Floats,
        elongation: Floats,
        irregularity: float,
    ) -> Self:
        """Draw the outlines of nuclei whose other properties are given."""
        outlines = _outlines(rng, irregularity, centres.size)
        return cls(centres, axes, half_width * elongation, half_width, outlines)


class _Layout(NamedTuple):
    """Fields of a tile's structures: the lowest values of a field are inside the structure."""

    void: Floats
    epithelium: Floats
    nuclei: list[_Nuclei]


class _PaintedNuclei:
    """The nuclei of a tile, painted until they cover a given share of it.

    Attributes:
        radius: (size, size): relative distance from the nearest nucleus's centre, 1 being its outline.
    """

    def __init__(self, size: int) -> None:
        self.radius = np.full((size, size), _REACH)
        self._covered = 0

    def fill(self, nuclei: _Nuclei, share: float) -> None:
        """Paints nuclei where there is room until they cover `share` of the tile, or run out."""
        for patch, radius in _rasterize(nuclei, len(self.radius)):
            if self._covered >= share * self.radius.size:
                return
            before = self.radius[patch]
            inside = radius < 1
            gained = np.count_nonzero(inside > (before < 1))
            if gained > _ROOM * np.count_nonzero(inside):
                self._covered += gained
                np.minimum(before, radius, out=before)


def _rasterize(nuclei: _Nuclei, size: int) -> Iterator[tuple[tuple[slice, slice], Floats]]:
    """Yields the square of pixels around each nucleus, with their relative distances from its centre."""
    for start in range(0, nuclei.centres.size, _BATCH):
        part = slice(start, start + _BATCH)
        centres, lengths = nuclei.centres[part], nuclei.half_lengths[part]
        side = min(size, int(2.2 * _REACH * lengths.max() * size) + 2)
        rows = np.clip((centres.imag * size - side / 2).astype(int), 0, size - side)
        columns = np.clip((centres.real * size - side / 2).astype(int), 0, size - side)
        corners = (columns + 1j * rows) / size - centres
        offsets = corners[:, None, None] + pixel_positions(side) * (side / size)
        offsets *= nuclei.axes[part].conj()[:, None, None]
        offsets.real /= lengths[:, None, None]
        offsets.imag /= nuclei.half_widths[part][:, None, None]
        radii = _radius(offsets, nuclei.outlines[:, part, None, None])
        for row, column, radius in zip(rows.tolist(), columns.tolist(), radii, strict=True):
            yield (slice(row, row + side), slice(column, column + side)), radius


class _Layer(NamedTuple):
    """A layer of a gland's nuclei."""

    depth: float  # from the lumen's edge to the nuclei's centres
    spacing: float
    half_width: float
    elongation: float
    turn: complex  # from the ring's tangent to the nuclei's length


_COLUMNAR = _Layer(depth=0.048, spacing=0.048, half_width=0.020, elongation=1.4, turn=1j)
_MYOEPITHELIAL = _Layer(depth=0.095, spacing=0.066, half_width=0.014, elongation=2.0, turn=1 + 0j)


def _draw_glands(rng: np.random.Generator, shares: _Shares) -> _Layout:
    """Lay out glands: a lumen in a layer of upright nuclei, in a second one of flat nuclei."""
    glands = [_Gland.draw(rng, complex(centre)) for centre in _gland_centres(rng)]
    field = np.min([gland.distance(pixel_positions(_LAYOUT_CELLS)) for gland in glands], axis=0)
    lumen = float(np.quantile(field, shares.void))

    def ring_nuclei(layer: _Layer) -> _Nuclei:
        level = lumen + layer.depth
        rings = [gland.ring(rng, level, layer.spacing) for gland in glands]
        centres, tangents = (np.concatenate(parts) for parts in zip(*rings, strict=True))
        visible = near_tile(centres) & (sample_field(field, centres) > level - 0.02)  # neither in another gland
        count = int(np.count_nonzero(visible))
        return _Nuclei.draw(
            rng,
            centres[visible] + 0.003 * scatter_points(rng, count),
            tangents[visible] * layer.turn * np.exp(1j * rng.normal(0, 0.12, count)),
            half_width=layer.half_width * rng.uniform(0.92, 1.08, count),
            elongation=layer.elongation * rng.uniform(0.92, 1.08, count),
            irregularity=0.04,
        )

    return _Layout(field, field, [ring_nuclei(_COLUMNAR), ring_nuclei(_MYOEPITHELIAL)])


@dataclass(frozen=True)
class _Gland:
    centre: complex
    growth: float  # how much further its edges lie from the centre than an average gland's
    outline: Points

    @classmethod
    def draw(cls, rng: np.random.Generator, centre: complex) -> Self:
        return cls(centre, rng.normal(0, 0.012), _outlines(rng, 0.22, 1)[:, 0])

    def distance(self, positions: Points) -> Floats:
        return _radius(positions - self.centre, self.outline) - self.growth

    def ring(self, rng: np.random.Generator, level: float, spacing: float) -> tuple[Points, Points]:
        """Return evenly spaced points at a distance `level`, and the ring's unit tangents there."""
        radius = max(level + self.growth, 0.03)
        ring = self.centre + radius * _CIRCLE / _radius(_CIRCLE, self.outline)
        travelled = np.cumsum(np.abs(np.diff(ring)))
        count = round(travelled[-1] / spacing)
        stops = np.searchsorted(travelled, (np.arange(count) + rng.random()) / count * travelled[-1])
        tangents = np.diff(ring)[stops]
        return ring[stops], tangents / np.abs(tangents)


def _gland_centres(rng: np.random.Generator) -> Points:
    """Draw a jittered triangular lattice over the tile and its surroundings."""
    steps = np.arange(-3, 4)
    lattice = (steps[:, None] + 1j * steps + 0.5 * (steps % 2)).ravel()
    shift = complex(rng.random(), rng.random())
    lattice = lattice + shift + 0.1 * scatter_points(rng, lattice.size)
    centres = 0.5 + 0.5j + lattice * rng.uniform(0.46, 0.56) * draw_directions(rng, 1)
    return centres[near_tile(centres, 0.2)]


def _draw_nests(rng: np.random.Generator, shares: _Shares) -> _Layout:
    """Lay out irregular nests of crowded, pleomorphic nuclei, torn by clefts."""
    nests = draw_noise(rng, 4, _LAYOUT_CELLS) + 0.4 * draw_noise(rng, 9, _LAYOUT_CELLS)
    clefts = np.maximum(nests, draw_noise(rng, 5, _LAYOUT_CELLS) + 0.4 * draw_noise(rng, 11, _LAYOUT_CELLS))
    centres = 0.5 + 0.5j + 0.54 * scatter_points(rng, _CANDIDATES)
    in_nest = sample_field(nests, centres) < np.quantile(nests, shares.epithelium)
    in_cleft = sample_field(clefts, centres) < np.quantile(clefts, 2 * shares.void)
    centres = centres[in_nest & ~in_cleft]
    nuclei = _Nuclei.draw(
        rng,
        centres,
        draw_directions(rng, centres.size),
        half_width=0.050 * np.exp(rng.normal(0, 0.2, centres.size)),
        elongation=rng.uniform(1.0, 1.6, centres.size),
        irregularity=0.12,
    )
    return _Layout(clefts, nests, [nuclei])


def _draw_fibroblasts(rng: np.random.Generator, layout: _Layout, shares: _Shares, fibres: Floats) -> _Nuclei:
    """Draw spindle nuclei along the stroma's fibres."""
    centres = 0.5 + 0.5j + 0.54 * scatter_points(rng, _CANDIDATES)
    in_epithelium = sample_field(layout.epithelium, centres) < np.quantile(layout.epithelium, shares.epithelium)
    in_void = sample_field(layout.void, centres) < np.quantile(layout.void, 1.5 * shares.void)
    centres = centres[~in_epithelium & ~in_void]
    down, across = (sample_field(np.gradient(fibres, axis=axis), centres) for axis in (0, 1))
    along = 1j * across - down
    return _Nuclei.draw(
        rng,
        centres,
        along / np.abs(along),
        half_width=rng.uniform(0.008, 0.012, centres.size),
        elongation=rng.uniform(3, 4.5, centres.size),
        irregularity=0.1,
    )


class _Regions(NamedTuple):
    """Shares of each pixel, 0..1, as arrays (size, size)."""

    nuclei: Floats
    membranes: Floats
    void: Floats
    epithelium: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, shares: _Shares, layout: _Layout, radius: Floats) -> Self:
        """Gives each region exactly its share, with edges of one softness.

        Nuclei and lumens are lined with cytoplasm, so that in both classes the same regions meet.
        """
        size = len(radius)
        nuclei = rank_areas(radius, np.ones((size, size), dtype=bool), shares.nuclei)
        free = nuclei > 1
        collar = _PRIORITY * np.maximum(_COLLAR - radius, 0)
        void = rank_areas(enlarge(layout.void, size) + collar, free, shares.void)
        lining = collar + _PRIORITY * (MAX_RANK - void)
        epithelium = rank_areas(enlarge(layout.epithelium, size) - lining, free, shares.void + shares.cytoplasm)
        softness = rng.uniform(0.2, 0.5)
        return cls(
            nuclei=soft_mask(nuclei, softness),
            membranes=np.exp(-(((nuclei - 0.8) / 0.2) ** 2)),
            void=soft_mask(void, softness),
            epithelium=soft_mask(epithelium, softness),
        )


def _concentrations(rng: np.random.Generator, regions: _Regions, fibres: Floats) -> tuple[Floats, Floats]:
    """Return how much haematoxylin and eosin each pixel holds, (size, size) each, in units of the stain."""
    nuclei, membranes, void, epithelium = regions
    size = len(fibres)
    grain = draw_noise(rng, 48, size)
    strands = _strands(rng, 14 * fibres) + 0.6 * _strands(rng, 40 * fibres)
    stroma = 1 + rng.uniform(0.12, 0.26) * strands + 0.12 * draw_noise(rng, 6, size) + 0.1 * grain
    cytoplasm = rng.uniform(0.5, 0.75) + 0.1 * grain
    clumps = rng.uniform(0.12, 0.22) * draw_noise(rng, 56, size) + 0.08 * draw_noise(rng, 10, size)
    chromatin = 0.85 + clumps + rng.uniform(0.2, 0.45) * membranes
    tissue = (1 - void) * (1 - nuclei)
    haematoxylin = chromatin * nuclei + 0.1 * epithelium * tissue
    eosin = 0.3 * nuclei + (stroma + (cytoplasm - stroma) * epithelium) * tissue
    return np.maximum(haematoxylin, 0), np.maximum(eosin, 0.03)


def _photograph(rng: np.random.Generator, stain: Stain, haematoxylin: Floats, eosin: Floats) -> NDArray[np.uint8]:
    """Render stain concentrations by the Beer-Lambert law, then adds the camera's noise."""
    strengths = rng.uniform(0.88, 1.12, 2) * (stain.haematoxylin_strength, stain.eosin_strength)
    density = haematoxylin[..., None] * (strengths[0] * np.array(stain.haematoxylin))
    density += eosin[..., None] * (strengths[1] * np.array(stain.eosin))
    light = rng.uniform(242, 255) * np.exp(-density)
    noisy = light + rng.normal(0, rng.uniform(1, 4), light.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _outlines(rng: np.random.Generator, irregularity: float, count: int) -> Points:
    """Draw Fourier coefficients, (harmonics, count), of outlines' relative deviation from a circle."""
    deviations = rng.uniform(-1, 1, (_HARMONICS, count)) + 1j * rng.uniform(-1, 1, (_HARMONICS, count))
    return irregularity * deviations / np.arange(1, _HARMONICS + 1)[:, None]


def _radius(offset: Points, outline: Points) -> Floats:
    """Return the distance from a centre, 1 being an outline that is a unit circle deformed."""
    length = np.abs(offset)
    turn = offset / np.maximum(length, 1e-9)
    deviation = outline[-1] * turn
    for coefficient in outline[-2::-1]:
        deviation = (deviation + coefficient) * turn
    return length * (1 + (deviation * turn).real)


def _draw_fibres(rng: np.random.Generator) -> Floats:
    """Draw the field whose level lines are the stroma's wavy fibres."""
    along = (pixel_positions(_LAYOUT_CELLS) * draw_directions(rng, 1)).real
    return 3 * along + 0.35 * draw_noise(rng, 3, _LAYOUT_CELLS) + 0.06 * draw_noise(rng, 10, _LAYOUT_CELLS)


def _strands(rng: np.random.Generator, phase: Floats) -> Floats:
    """Draw noise that is constant along the level lines of `phase` and changes at its every unit."""
    units = np.arange(-256, 257)  # wider than any tile's phase
    return np.interp(phase, units, rng.normal(0, 1, units.size))


def _vary_hue(rng: np.random.Generator, density: Vector) -> Vector:
    varied = np.maximum(np.array(density) + rng.normal(0, 0.04, 3), 0.02)
    red, green, blue = (varied / np.sqrt(np.sum(varied**2))).tolist()
    return red, green, blue
