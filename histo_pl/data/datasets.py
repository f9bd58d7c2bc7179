"""Tiles as samples: read from files or from a cache, and augmented by a seed of their own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from histo_pl.data.cache import MappedTiles
from histo_pl.data.hashing import stable_seed
from histo_pl.data.tile import Tile
from histo_pl.data.transforms.keras_affine import KerasRandomAffine
from histo_pl.errors import UserError
from histo_pl.images import RESIZE, read_tile

Transform = Callable[[Tensor], Tensor]
Reader = Callable[[Tile], Tensor]  # a tile to its pixels, uint8 of shape (3, S, S)


class Sample(TypedDict):
    """One tile on its way to the network.

    Attributes:
        image: uint8 of shape (3, S, S), RGB in [0, 255].
        label: 1 for malignant, 0 for benign.
        path: The tile's path, relative to the data set's root.
        seed: Of an augmentation that is yet to come, of the whole batch at once.
    """

    image: Tensor
    label: int
    path: str
    seed: NotRequired[int]


@dataclass(frozen=True)
class FileReader:
    """Reads tiles from their files.

    Attributes:
        root: The folder that paths are relative to.
        image_size: Side of a sample in pixels.
        resize: The algorithm that brings tiles to that size, one of `images.RESIZES`.
    """

    root: Path
    image_size: int
    resize: str = RESIZE

    def __call__(self, tile: Tile) -> Tensor:
        """Read a tile, uint8 of shape (3, image_size, image_size).

        Raises:
            ImageError: The file cannot be read.
        """
        return read_tile(self.root / tile.path, self.image_size, self.resize)


@dataclass(frozen=True)
class CacheReader:
    """Reads tiles that were decoded before.

    Attributes:
        pixels: Of all tiles, uint8 of shape (N, 3, S, S).
        index_of: The index of each tile in `pixels`, by its path.
    """

    pixels: Tensor | MappedTiles
    index_of: Mapping[str, int]

    def __call__(self, tile: Tile) -> Tensor:
        """Return a tile's pixels, uint8 of shape (3, S, S): those of the cache, not to be written to."""
        return self.pixels[self.index_of[tile.path]]


class TileDataset(Dataset[Sample]):
    """Tiles with their labels, each augmented by random numbers that seed, epoch and tile alone decide.

    Neither the number of workers and devices nor a stop and resume between epochs changes a pixel. Keras's warp waits
    for the batch to be on its device (`HistologyDataModule.on_after_batch_transfer`); the sample carries its seed.

    Args:
        tiles: N tiles.
        positive_class: The class folder that means malignant.
        read: Reads a tile's pixels.
        augment: From a uint8 tensor (3, S, S) to another; draws from PyTorch's default generator. None: no change.
        seed: Any integer.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        positive_class: str,
        read: Reader,
        augment: Transform | None = None,
        seed: int = 0,
    ) -> None:
        self.tiles = tiles
        self.positive_class = positive_class
        self.read = read
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.tiles)

    def __getitem__(self, draw: int) -> Sample:
        """Read one tile, and augment it unless that comes later.

        Args:
            draw: epoch * len(self) + index, as `ShuffledSampler` counts.

        Returns:
            The sample, augmented or with its seed.

        Raises:
            ImageError: The file cannot be read.
            UserError: The augmentation changes shape or type.
        """
        tile = self.tiles[draw % len(self)]
        label = int(tile.class_name == self.positive_class)
        sample = Sample(image=self.read(tile), label=label, path=tile.path)
        seed = stable_seed(self.seed, "augment", draw)
        if isinstance(self.augment, KerasRandomAffine):
            sample["seed"] = seed
        elif self.augment is not None:
            sample["image"] = augmented(sample["image"], self.augment, seed)
        return sample


def augmented(image: Tensor, transform: Transform, seed: int) -> Tensor:
    """Augment a tile by random numbers of its own, and leave the process's as they were.

    Args:
        image: uint8 of shape (3, S, S).
        transform: Draws from PyTorch's default generator.
        seed: Decides the random numbers, in [0, 2**63).

    Returns:
        uint8 of the same shape.

    Raises:
        UserError: The transform changes shape or type.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        changed = transform(image.clone())  # a transform in place would change the cache
    if changed.dtype != torch.uint8 or changed.shape != image.shape:
        raise UserError(
            f"The augmentation must return a tensor like its input, uint8 of shape {tuple(image.shape)}. "
            f"Fix augment. Received: {changed.dtype} of shape {tuple(changed.shape)}"
        )
    return changed
