"""Parity of an exported graph with its checkpoint, on tiles: a part of every export."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histo_pl.data.synthetic.tissue import Stain, draw_tile
from histo_pl.errors import UserError
from histo_pl.images import find_files, is_image, read_tile, squeeze_pixels
from histo_pl.models.checkpoint import TrainedModel

TOLERANCE = 1e-4  # of a probability, above which an export is refused
MOST_TILES = 64
DRAWN = 16  # tiles, where none are given
DRAWN_SIDE = 128  # pixels
BATCHES = (1, 7)  # sizes of the first batches; the rest is one


@dataclass(frozen=True)
class ParityTiles:
    """Tiles that both the checkpoint and its export are asked about.

    Attributes:
        names: Of N tiles.
        images: uint8 of shape (N, 3, S, S).
        source: Their origin, for people.
    """

    names: Sequence[str]
    images: Tensor
    source: str


@dataclass(frozen=True)
class Answer:
    """Answers about N tiles.

    Attributes:
        probability: Of shape (N,), in [0, 1].
        label: Of each tile.
    """

    probability: NDArray[np.float64]
    label: Sequence[str]


def read_tiles(folder: Path | None, model: TrainedModel) -> ParityTiles:
    """Read tiles spread evenly over a folder's, or draw some as the demo does.

    Args:
        folder: A folder of tiles; None: they are drawn.
        model: The model that they are for.

    Raises:
        UserError: There is no such folder, it holds no image, or one of them cannot be read.
    """
    if folder is None:
        names = [f"drawn tile {number}" for number in range(DRAWN)]
        images = [_draw(number, model) for number in range(DRAWN)]
        return ParityTiles(names, torch.stack(images), f"{DRAWN} tiles drawn by a program")
    if not folder.is_dir():
        raise UserError(f"There is no such folder. Expected one of tiles to compare the export on. Received: {folder}")
    files = [file for file in find_files(folder) if is_image(file)]
    if not files:
        raise UserError(f"This folder holds no image. Expected tiles to compare the export on. Received: {folder}")
    chosen = files[:: max(1, len(files) // MOST_TILES)][:MOST_TILES]
    images = [read_tile(file, model.image_size, model.resize) for file in chosen]
    return ParityTiles([str(file) for file in chosen], torch.stack(images), f"{len(chosen)} tiles of {folder}")


def compare(wanted: Answer, ask: Callable[[Tensor], Answer], tiles: ParityTiles) -> str:
    """Ask an export about tiles, in batches of 1, of 7 and of the rest, and compare.

    Args:
        wanted: The checkpoint's answers.
        ask: Asks the export about images.
        tiles: The tiles.

    Returns:
        The largest difference and the number of labels that differ, for a person.

    Raises:
        UserError: A probability differs by more than `TOLERANCE`.
    """
    sizes = [size for size in BATCHES if size < len(tiles.names)]
    parts = [ask(part) for part in tiles.images.split([*sizes, len(tiles.names) - sum(sizes)])]
    probability = np.concatenate([part.probability for part in parts])
    labels = [label for part in parts for label in part.label]
    difference = np.abs(probability - wanted.probability)
    if not difference.max() <= TOLERANCE:  # NaN too
        worst = int(np.nan_to_num(difference, nan=np.inf).argmax())
        raise UserError(
            f"The export does not answer as its checkpoint, and was not kept. Expected probabilities within "
            f"{TOLERANCE:g}. Received: {probability[worst]:.6f} for {wanted.probability[worst]:.6f} of "
            f"{tiles.names[worst]}, in {int((~(difference <= TOLERANCE)).sum())} of {len(labels)} tiles"
        )
    differing = sum(one != other for one, other in zip(labels, wanted.label, strict=True))
    return (
        f"Compared with the checkpoint on {tiles.source}: largest difference of a probability {difference.max():.1g}, "
        f"{differing} of {len(labels)} labels differ."
    )


def _draw(number: int, model: TrainedModel) -> Tensor:
    generator = np.random.default_rng(number)
    stain = Stain.draw(generator)
    pixels = draw_tile(generator, stain, malignant=bool(number % 2), size=DRAWN_SIDE)
    return squeeze_pixels(pixels, model.image_size, model.resize)
