"""The synthetic demo: tiles that a program draws, so that everything runs before there are data."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from histo_pl.data.datamodule import HistologyDataModule
from histo_pl.data.synthetic.tissue import Stain, draw_tile
from histo_pl.errors import UserError
from histo_pl.storage import atomic_directory

VERSION = 1  # to be raised with every change to a drawn pixel
MIN_CASES = 6  # one of each class for training, validation and test
MIN_TILE_SIZE = 32
FIELD = 1.6  # sides of a tile in the field that it is cut from, for nuclei of a few pixels


class DemoDataModule(HistologyDataModule):
    """Synthetic H&E-like tiles of synthetic cases, drawn once and kept.

    Args:
        root: Folder under which each choice of the arguments below gets a folder of its own.
        image_size: Side of the network's input in pixels.
        cases: Number of cases, half of them malignant, at least 6. A case has one class and one stain.
        tiles_per_case: Number of tiles drawn of each case.
        tile_size: Side of a drawn tile in pixels, at least 32; None: `image_size`.
        tile_seed: Decides every pixel.
        **options: As for `HistologyDataModule`.

    Raises:
        UserError: A number is too small.
    """

    def __init__(
        self,
        root: str | Path | None,
        *,
        image_size: int = 96,
        cases: int = 48,
        tiles_per_case: int = 10,
        tile_size: int | None = None,
        tile_seed: int = 0,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(root, image_size=image_size, **options)
        size = tile_size or image_size
        for key, value, least in (
            ("cases", cases, MIN_CASES),
            ("tiles_per_case", tiles_per_case, 1),
            ("tile_size", size, MIN_TILE_SIZE),
        ):
            if value < least:
                raise UserError(f"data.{key} is too small. Expected at least {least}. Received: {value}")
        self.root = self.root / f"v{VERSION}-{cases}x{tiles_per_case}-{size}px-seed{tile_seed}"
        self._drawing = {"cases": cases, "tiles_per_case": tiles_per_case, "size": size, "seed": tile_seed}

    @property
    def is_synthetic(self) -> bool:
        """True: the tiles were drawn by a program."""
        return True

    def setup(self, stage: str | None = None) -> None:
        """Draw the tiles if no one has, then split them."""
        self._refuse_foreign_folder()
        if not self.root.is_dir():
            draw_demo(self.root, **self._drawing)
        super().setup(stage)

    def _refuse_foreign_folder(self) -> None:
        parent = self.root.parent
        folders = [f.name for f in parent.iterdir() if f.is_dir()] if parent.is_dir() else []
        foreign = [name for name in folders if not name.startswith(("v", "."))]
        if foreign:
            raise UserError(
                f"The demo draws its own tiles and would put them among others. To train on this folder add "
                f"data=folder. Received: data.root={parent} with {', '.join(sorted(foreign)[:3])}"
            )


def draw_demo(root: Path, *, cases: int, tiles_per_case: int, size: int, seed: int) -> None:
    """Draw a data set as `root/benign` and `root/malignant`.

    Args:
        root: The folder to make.
        cases: Number of cases; the even ones are benign.
        tiles_per_case: Number of tiles of each.
        size: Side of a tile in pixels.
        seed: Decides every pixel.
    """
    with atomic_directory(root) as unfinished:
        for case in range(cases):
            _draw_case(unfinished, case, tiles_per_case, size, seed)


def _draw_case(root: Path, case: int, tiles: int, size: int, seed: int) -> None:
    malignant = case % 2 == 1
    folder = root / ("malignant" if malignant else "benign")
    folder.mkdir(exist_ok=True)
    stain = Stain.draw(np.random.default_rng((seed, case)))
    for number in range(tiles):
        rng = np.random.default_rng((seed, case, number + 1))
        field = draw_tile(rng, stain, malignant=malignant, size=round(FIELD * size))
        Image.fromarray(field[:size, :size]).save(folder / f"case{case:03}_{number:03}.png", compress_level=1)
