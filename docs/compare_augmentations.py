"""Compare augment=keras with augment=torchvision: a picture, and a table on the screen.

python docs/compare_augmentations.py FOLDER   (a folder of real tiles, any size; the picture's tissue is synthetic)
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import conv2d

import histo_pl.cli.program  # noqa: F401  (the resolver that the configurations use)
from histo_pl.data.synthetic.tissue import Stain, draw_tile
from histo_pl.images import find_files, is_image, read_tile

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("keras", "torchvision")
Transform = Callable[[Tensor], Tensor]


def load(name: str, size: int) -> Transform:
    """Make an augmentation for tiles of a side in pixels."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose("train", [f"augment={name}", f"data.image_size={size}"]).augment)


def draw_grid(size: int, cells: int = 8) -> Tensor:
    """Black lines on white with a red frame along the edge, uint8 (3, size, size)."""
    grid = torch.full((3, size, size), 255, dtype=torch.uint8)
    lines = torch.arange(0, size, size // cells)
    for width in range(2):
        grid[:, lines + width], grid[:, :, lines + width] = 0, 0
    for edge in (slice(0, 4), slice(size - 4, size)):
        grid[0, edge], grid[0, :, edge] = 200, 200
        grid[1:, edge], grid[1:, :, edge] = 0, 0
    return grid


def draw_picture(file: Path, size: int = 192, draws: int = 3) -> None:
    """Lay a grid and synthetic tissue out: as they are, then some draws of each augmentation."""
    rng = np.random.default_rng(3)
    tissue = torch.from_numpy(draw_tile(rng, Stain.draw(rng), malignant=False, size=size)).permute(2, 0, 1)
    figure = Figure(figsize=(1.45 * (1 + 2 * draws), 3.2), dpi=150, layout="constrained")
    rows = figure.subplots(2, 1 + 2 * draws)
    for number, image in enumerate((draw_grid(size), tissue)):
        cells = [(image, "the tile")]
        for name in NAMES:
            torch.manual_seed(4)
            transform = load(name, size)
            cells += [(transform(image), f"augment={name}") for _ in range(draws)]
        for axes, (picture, title) in zip(rows[number], cells, strict=True):
            axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="none")
            axes.set_axis_off()
            if number == 0:
                axes.set_title(title, fontsize=7)
    figure.savefig(file)


def fit_affine(transform: Transform, size: int) -> Tensor:
    """Read where one draw looks: least squares over the centre of a picture of its own coordinates, (2, 3)."""
    place = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    seen = transform(torch.stack((x, y, torch.ones_like(x))))
    centre = slice(size * 3 // 8, size * 5 // 8)
    known = torch.stack((x, y, torch.ones_like(x)))[:, centre, centre].flatten(1)
    return torch.linalg.lstsq(known.T, seen[:2, centre, centre].flatten(1).T).solution.T


def measure_geometry(name: str, draws: int = 2000, size: int = 96) -> str:
    """Zooms and shifts over many draws, as a row of the table."""
    torch.manual_seed(0)
    transform = load(name, size)
    matrices = torch.stack([fit_affine(transform, size) for _ in range(draws)])
    zooms = matrices[:, :, :2].norm(dim=1)
    shifts = matrices[:, :, 2].abs() / size
    return f"{zooms.min():.2f} to {zooms.max():.2f}, mean {zooms.mean():.2f} | {shifts.max():.2f} of a side"


def sharpness(image: Tensor) -> float:
    """Mean absolute Laplacian of the central half: what fine detail there is."""
    side = image.shape[-1]
    centre = image[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4].float().mean(0)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return conv2d(centre[None, None], kernel).abs().mean().item()


def measure_softness(name: str, tiles: list[Tensor]) -> str:
    """Measure the share of the tiles' fine detail that is left."""
    torch.manual_seed(0)
    transform = load(name, tiles[0].shape[-1])
    left = [sharpness(transform(tile)) / sharpness(tile) for tile in tiles]
    return f"{np.mean(left):.0%}"


def measure_times(size: int = 512, rounds: int = 50) -> dict[str, list[float]]:
    """Milliseconds a tile on one core, in turns: a machine that others use too is not always as fast."""
    transforms, times = {name: load(name, size) for name in NAMES}, {name: [] for name in NAMES}
    tile = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    for _ in range(rounds):
        for name, transform in transforms.items():
            started = time.perf_counter()
            transform(tile)
            times[name].append(1000 * (time.perf_counter() - started))
    return times


def main() -> None:
    """Draw the picture and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="TILES", help="folders of real tiles")
    folders = parser.parse_args().folders
    torch.set_num_threads(1)
    real = [read_tile(file, 224) for folder in folders for file in find_files(folder) if is_image(file)][::8]
    if not real:
        sys.exit(f"There are no tiles. Expected a folder of images. Received: {' '.join(folders)}")
    draw_picture(ROOT / "docs" / "images" / "augment.png")
    print("augment | zooms | largest shift | detail left | ms a tile of 512 pixels, median (least to most)")
    milliseconds = measure_times()
    for chosen in NAMES:
        spent = milliseconds[chosen]
        spread = f"{median(spent):.0f} ({min(spent):.0f} to {max(spent):.0f})"
        print(f"{chosen} | {measure_geometry(chosen)} | {measure_softness(chosen, real)} | {spread}")
    ratios = sorted(slow / fast for fast, slow in zip(*(milliseconds[name] for name in NAMES), strict=True))
    print(f"torchvision takes {median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) times as long as keras")


if __name__ == "__main__":
    main()
