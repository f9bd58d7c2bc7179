"""Measure the share of tiles that the models of a cross-validation refuse as unlike their training.

    python docs/novelty.py multirun/DAY/TIME TILES [--external FOLDER ...]

Each fold's best.ckpt is asked about its own test tiles, about pictures that are no histology (scikit-image's, which
pip install -e '.[test]' brings, and drawn ones), and about altered tiles of its test. The limit of novelty was chosen
on validation tiles alone, so nothing here had a part in it.
"""

import argparse
import csv
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from histo_pl.images import list_files, read_tile
from histo_pl.inference import Predictor
from histo_pl.models.checkpoint import load_checkpoint

SIDE = 224  # pixels of the drawn pictures and of the crops
BATCH = 64
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png"),
    *("rocket.jpg", "color.png", "logo.png", "phantom.png", "cell.png", "microaneurysms.png", "retina.jpg"),
    *("page.png", "text.png", "chessboard_RGB.png"),
)
COLOURS = ((255, 255, 255), (0, 0, 0), (240, 200, 220), (230, 150, 190))  # white, black, pale and full pink


def read(name: str) -> Image.Image:
    """Open a picture that scikit-image brings."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise SystemExit("The pictures are scikit-image's. Install it with pip install -e '.[test]'.")
    return Image.open(Path(package.origin).parent / "data" / name).convert("RGB")


def crops(name: str, side: int) -> list[Image.Image]:
    """Cut a picture into squares."""
    picture = read(name)
    corners = [
        (x, y) for y in range(0, picture.height - side + 1, side) for x in range(0, picture.width - side + 1, side)
    ]
    return [picture.crop((x, y, x + side, y + side)) for x, y in corners]


def blank() -> list[Image.Image]:
    """Draw empty slides, and their like with a scanner's noise."""
    generator = np.random.default_rng(0)
    pixels = [
        np.array(colour) + generator.normal(0, deviation, (SIDE, SIDE, 3))
        for colour in COLOURS
        for deviation in (0, 2, 6)
    ]
    return [Image.fromarray(one.clip(0, 255).astype(np.uint8)) for one in pixels]


def noise() -> list[Image.Image]:
    """Draw noise: uniform, in the colours of eosin, grey, and coarse."""
    generator, drawn = np.random.default_rng(1), []
    for _ in range(10):
        eosin = generator.normal((200, 150, 190), 40, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
        grey = generator.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        drawn += [Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))]
        drawn += [Image.fromarray(eosin), Image.fromarray(grey).convert("RGB")]
        coarse = Image.fromarray(generator.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        drawn.append(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return drawn


def text() -> list[Image.Image]:
    """Draw pages of text on white and on cream paper."""
    generator, pages = np.random.default_rng(2), []
    for number in range(20):
        page = Image.new("RGB", (2 * SIDE, 2 * SIDE), (255, 255, 255) if number % 2 else (250, 240, 225))
        pen, ink = ImageDraw.Draw(page), (20, 20, 20) if number % 3 else (40, 20, 90)
        for line in range(10, 2 * SIDE - 8, 14):
            words = "".join(chr(generator.integers(97, 123)) if generator.random() > 0.15 else " " for _ in range(65))  # noqa: PLR2004
            pen.text((10, line), words, fill=ink)
        pages.append(page)
    return pages


def odd_pictures() -> dict[str, list[Image.Image]]:
    """Collect pictures that are no H&E, by their kind."""
    return {
        "photographs": [read(name) for name in PHOTOGRAPHS],
        "blank": blank(),
        "noise": noise(),
        "text": text(),
        "IHC": [crop for side in (128, 224, 256) for crop in crops("ihc.png", side)],
    }


def altered(tiles: Tensor) -> dict[str, Tensor]:
    """Alter tiles, uint8 (B, 3, S, S), in ways that leave them H&E, or nearly."""
    size = tiles.shape[-1]
    balance = torch.tensor((0.85, 1.0, 1.1)).reshape(3, 1, 1)
    half = F.resize(F.center_crop(tiles, [size // 2, size // 2]), [size, size], antialias=True)
    blur = max(3, size // 9 | 1)
    return {
        "twice the magnification": half,
        "gamma 1.4": F.adjust_gamma(tiles, 1.4),
        "white balance": (tiles * balance).round().clamp(0, 255).to(torch.uint8),
        "out of focus": F.gaussian_blur(tiles, [blur, blur], [size / 56]),
        "grey": F.rgb_to_grayscale(tiles, 3),
        "pixels shuffled": tiles.flatten(2)[..., torch.randperm(size * size)].reshape(tiles.shape),
    }


def to_tiles(pictures: Iterable[Image.Image], size: int) -> Tensor:
    """Squeeze pictures to uint8 (B, 3, size, size), as a prediction does."""
    resized = [picture.resize((size, size), Image.Resampling.BILINEAR) for picture in pictures]
    return torch.from_numpy(np.stack([np.array(one) for one in resized])).permute(0, 3, 1, 2)


def refused(predictor: Predictor, tiles: Tensor) -> float:
    """Return the share of tiles, uint8 (B, 3, S, S), that are unlike the training."""
    novelty = [predictor.answers(batch).novelty for batch in tiles.split(BATCH)]
    return float(torch.cat([one for one in novelty if one is not None]).gt(1).float().mean())


def ask(run: Path, root: Path, odd: Mapping[str, list[Image.Image]], external: list[Path]) -> dict[str, float]:
    """Ask a fold's model about everything."""
    model = load_checkpoint(run)
    size, predictor = model.image_size, Predictor(model)
    with (run / "split.csv").open() as stream:
        paths = [root / row["path"] for row in csv.DictReader(stream) if row["split"] == "test"]
    tiles = torch.stack([read_tile(path, size, model.resize) for path in paths])
    kinds = {"unseen cases": tiles} | {kind: to_tiles(pictures, size) for kind, pictures in odd.items()}
    for folder in external:
        files = [folder / file for file in list_files(folder)]
        kinds[folder.name] = torch.stack([read_tile(file, size, model.resize) for file in files])
    return {kind: refused(predictor, one) for kind, one in (kinds | altered(tiles)).items()}


def main() -> None:
    """Print the share refused of each kind: the folds' mean, least and greatest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a cross-validation's folder")
    parser.add_argument("root", type=Path, help="the tiles it was run on")
    parser.add_argument("--external", type=Path, nargs="*", default=[], help="folders of tiles from elsewhere")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    odd = odd_pictures()
    runs = sorted(path.parent for path in arguments.sweep.glob("*/best.ckpt"))
    folds = [ask(run, arguments.root, odd, arguments.external) for run in runs]
    print(f"{'share refused':24}   mean  least  most  of {len(folds)} folds")
    for kind in folds[0]:
        shares = [fold[kind] for fold in folds]
        print(f"{kind:24}  {np.mean(shares):5.3f}  {min(shares):5.3f} {max(shares):5.3f}")
    no_tissue = ("photographs", "blank", "noise", "text")
    counts = [len(odd[kind]) for kind in no_tissue]
    pooled = [np.average([fold[kind] for kind in no_tissue], weights=counts) for fold in folds]
    print(f"{f'{sum(counts)} that are no tissue':24}  {np.mean(pooled):5.3f}  {min(pooled):5.3f} {max(pooled):5.3f}")


if __name__ == "__main__":
    main()
