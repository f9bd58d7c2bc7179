import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from histo_pl.appearance import sample_pixels, tissue_share
from histo_pl.images import read_rgb
from histo_pl.slides.tissue import Tissue, find_tissue, otsu_threshold, thumbnail_side
from tests.conftest import BREAKHIS

SIDE, TILE = 640, 16  # pixels of a thumbnail, and of a tile on it
GLASS = (243, 242, 244)
Pixels = NDArray[np.uint8]


def blobs(generator: np.random.Generator) -> NDArray[np.bool_]:
    """Draw three overlapping ellipses and a core of a needle biopsy."""
    image = Image.new("1", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = generator.uniform(0.3, 0.6, 2) * SIDE
        a, b = generator.uniform(0.12, 0.25, 2) * SIDE
        draw.ellipse((x - a, y - b, x + a, y + b), fill=1)
    draw.line((0.85 * SIDE, 0.1 * SIDE, 0.8 * SIDE, 0.9 * SIDE), fill=1, width=30)
    return np.asarray(image)


def mosaic(case: int) -> Pixels:
    """Lay the tiles of one real case side by side, each shrunk to `TILE` pixels."""
    files = sorted(BREAKHIS.rglob("*.png"))
    cases = sorted({file.name.rsplit("-200-", 1)[0] for file in files})
    name = cases[case * 4 % len(cases)]
    tiles = [read_rgb(file) for file in files if file.name.startswith(name)]
    full = [tile for tile in tiles if tissue_share(sample_pixels(tile)) > 0.8] or tiles
    small = [np.asarray(Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.BOX)) for tile in full]
    rows = [
        np.concatenate([small[(i * 7 + j) % len(small)] for j in range(SIDE // TILE)], 1) for i in range(SIDE // TILE)
    ]
    return np.concatenate(rows)


def draw_lines(pixels: Pixels, color: tuple[int, int, int], *, width: int = 9) -> tuple[Pixels, NDArray[np.bool_]]:
    """Draw a pen's ring around the tissue and a stroke across it; return what it covers."""
    image, cover = Image.fromarray(pixels), Image.new("1", (SIDE, SIDE))
    for target, fill in ((image, color), (cover, 1)):
        draw = ImageDraw.Draw(target)
        draw.ellipse((20, 30, SIDE - 20, SIDE - 25), outline=fill, width=width)
        draw.line((30, 100, SIDE - 60, SIDE - 40), fill=fill, width=width)
    return np.asarray(image), np.asarray(cover)


def draw_blood(pixels: Pixels, mask: NDArray[np.bool_], color: tuple[int, int, int]) -> tuple[Pixels, NDArray]:
    """Draw two pools of blood, one beside the tissue and one in it."""
    cover = Image.new("1", (SIDE, SIDE))
    draw = ImageDraw.Draw(cover)
    draw.ellipse((40, 480, 150, 600), fill=1)
    draw.ellipse((250, 250, 330, 320), fill=1)
    pool = np.asarray(cover)
    noise = np.random.default_rng(0).normal(0, 8, pixels.shape)
    return np.where(pool[..., None], np.clip(color + noise, 0, 255), pixels).astype(np.uint8), mask & ~pool


def draw_fat(pixels: Pixels, mask: NDArray[np.bool_]) -> tuple[Pixels, NDArray]:
    """Draw a lobule of fat beside the tissue: white cells of seven pixels with thin pink walls."""
    image, region = Image.fromarray(pixels), Image.new("1", (SIDE, SIDE))
    ImageDraw.Draw(region).ellipse((60, 40, 260, 220), fill=1)
    y, x = np.mgrid[:SIDE, :SIDE]
    walls = (((x + (y // 7 % 2) * 3) % 7 == 0) | (y % 7 == 0)) & np.asarray(region) & ~mask
    cells = np.asarray(region) & ~mask & ~walls
    drawn = np.asarray(image).copy()
    drawn[cells], drawn[walls] = GLASS, (222, 170, 196)
    return drawn, mask | np.asarray(region)


def black_border(pixels: Pixels, mask: NDArray[np.bool_]) -> tuple[Pixels, NDArray]:
    framed, inside = np.zeros_like(pixels), np.zeros_like(mask)
    framed[30:-20, 45:-10], inside[30:-20, 45:-10] = pixels[30:-20, 45:-10], mask[30:-20, 45:-10]
    return framed, inside


def slide_of(kind: str) -> tuple[Pixels, NDArray[np.bool_]]:
    """Draw a thumbnail and its known tissue."""
    number = KINDS.index(kind)
    generator = np.random.default_rng(number)
    mask, tissue = blobs(generator), mosaic(number)
    if "pale" in kind:
        tissue = (tissue * 0.4 + np.array(GLASS) * 0.6).astype(np.uint8)
    noise = generator.normal(0, 1.5, (SIDE, SIDE, 3))
    glass = np.array((246, 244, 232) if "yellow" in kind else GLASS)
    pixels = np.clip(np.where(mask[..., None], tissue, glass) + noise, 0, 255).astype(np.uint8)
    if "fat" in kind:
        pixels, mask = draw_fat(pixels, mask)
    if "blood" in kind:
        pixels, mask = draw_blood(pixels, mask, (176, 38, 48))
    pens = {"blue": (25, 60, 190), "green": (20, 140, 70), "red": (215, 30, 40), "black": (25, 22, 28)}
    for name, color in pens.items():
        if name in kind:
            pixels, cover = draw_lines(pixels, color)
            mask = mask & ~cover
    return black_border(pixels, mask) if "border" in kind else (pixels, mask)


KINDS = [
    "plain",
    "blue pen",
    "green pen",
    "red pen",
    "black pen",
    "black border",
    "blood",
    "pale",
    "fat",
    "pale, green pen, border, blood, yellow glass",
]


@pytest.mark.skipif(not BREAKHIS.is_dir(), reason="the real tiles of ../shared are not here")
@pytest.mark.parametrize("kind", KINDS)
def test_tissue_is_found_beside_pen_border_blood_and_fat(kind: str) -> None:
    pixels, known = slide_of(kind)
    found = find_tissue(pixels, TILE)
    overlap = (found & known).sum() / (found | known).sum()
    assert overlap >= 0.9, f"{kind}: IoU {overlap:.3f}"


def test_shares_are_those_of_the_mask() -> None:
    mask = np.zeros((30, 40), bool)
    mask[10:20, 5:35] = True
    tissue = Tissue(mask, (4000, 3000))
    left, top = np.array([0, 500, 3000, 3900]), np.array([0, 1000, 1500, 2950])
    shares = tissue.shares(left, top, 1000, 500)
    assert shares == pytest.approx([0, 1, 0.5, 0])
    assert tissue.area == pytest.approx(3000 * 1000)


@pytest.mark.parametrize("level", [255, 240, 0])
def test_a_slide_of_one_colour_has_no_tissue(level: int) -> None:
    assert not find_tissue(np.full((50, 60, 3), level, np.uint8), TILE).any()


def test_otsu_divides_two_groups() -> None:
    values = np.r_[np.full(100, 20), np.full(50, 90), np.full(3, 95)].astype(np.uint8)
    assert 20 <= otsu_threshold(values) < 90


def test_the_thumbnail_of_a_huge_slide_stays_small() -> None:
    assert thumbnail_side((10_000, 8_000), 224) == round(10_000 * 16 / 224)
    assert thumbnail_side((200_000, 80_000), 224) == 1536
    assert thumbnail_side((100, 80), 224) == 7
