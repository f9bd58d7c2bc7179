"""Folders of tiles as data sets, and the order and the random numbers with which they are drawn."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.datasets import ImageFolder

from histo_pl.data.augment import KerasRandomAffine
from histo_pl.data.cache import MappedTiles
from histo_pl.errors import UserError
from histo_pl.images import RESIZE, find_files, is_image, read_tile

Transform = Callable[[Tensor], Tensor]

MOST_EPOCHS = 2**20  # numbers of passes from here on are no epochs


class Sample(TypedDict):
    """One tile on its way to the network.

    Attributes:
        image: uint8 of shape (3, S, S), RGB in [0, 255].
        label: 1 for malignant, 0 for benign.
        path: The file, as the folder was named.
        seed: Of an augmentation that is yet to come, of the whole batch at once.
    """

    image: Tensor
    label: int
    path: str
    seed: NotRequired[int]


class TileFolder(ImageFolder):
    """torchvision's `ImageFolder` of two classes whose samples carry their path.

    Args:
        root: Folder with one folder a class.
        image_size: Side of a sample in pixels.
        resize: How tiles come to that size, one of `images.RESIZES`.

    Raises:
        UserError: There are not exactly two class folders with images in them.
    """

    def __init__(self, root: Path, image_size: int, resize: str = RESIZE) -> None:
        self.name = root.name
        self.image_size = image_size
        self.resize = resize
        self.positive_class = ""
        try:
            super().__init__(str(root))
        except FileNotFoundError as error:
            raise UserError(f"A class folder has no images. Received: {root} ({error})") from error

    @staticmethod
    def make_dataset(
        directory: str | Path,
        class_to_idx: dict[str, int],
        extensions: tuple[str, ...] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> list[tuple[str, int]]:
        """List the tiles as `find_files` does: torchvision's own list follows a link in a circle.

        Args:
            directory: The data set's root.
            class_to_idx: Each class folder's place among them.
            extensions: Not used.
            is_valid_file: Not used.
            allow_empty: Not used.

        Returns:
            Each tile's file and its class.

        Raises:
            FileNotFoundError: A class folder has no images.
        """
        samples = [
            (str(file), index)
            for name, index in class_to_idx.items()
            for file in find_files(Path(directory, name))
            if is_image(file)
        ]
        found = {index for _, index in samples}
        empty = [name for name, index in class_to_idx.items() if index not in found]
        if empty:
            raise FileNotFoundError(f"Found no images in {', '.join(empty)}")
        return samples

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """List the class folders, leaving out hidden ones.

        Args:
            directory: The data set's root.

        Returns:
            The two names in alphabetical order, and each name's place in it.
        """
        folders = Path(directory).iterdir() if Path(directory).is_dir() else ()
        names = sorted(f.name for f in folders if f.is_dir() and not f.name.startswith((".", "__")))
        if len(names) != 2:  # noqa: PLR2004
            raise UserError(
                f"A folder of tiles must hold two class folders, such as benign and malignant. "
                f"Received: {directory} with {len(names)} ({', '.join(names[:5]) or 'none'})"
            )
        return names, {name: index for index, name in enumerate(names)}

    def __getitem__(self, index: int) -> Sample:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read one tile.

        Args:
            index: Place in `samples`.

        Returns:
            The tile, its label and its path.

        Raises:
            ImageError: The file cannot be read.
        """
        path, class_index = self.samples[index]
        return Sample(
            image=read_tile(path, self.image_size, self.resize),
            label=int(self.classes[class_index] == self.positive_class),
            path=path,
        )


class CachedTiles(Dataset[Sample]):
    """Tiles that were decoded before.

    Args:
        pixels: Of all tiles, uint8 of shape (N, 3, S, S).
        places: Which of them these are.
        labels: 1 for malignant, 0 for benign, of each of these.
        files: Each one's file, as the folder was named.
    """

    def __init__(
        self, pixels: Tensor | MappedTiles, places: Sequence[int], labels: Sequence[int], files: Sequence[str]
    ) -> None:
        self.pixels = pixels
        self.places = places
        self.labels = labels
        self.files = files

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        """Return one tile, its label and its path; the pixels are those of the cache, not to be written to."""
        return Sample(image=self.pixels[self.places[index]], label=self.labels[index], path=self.files[index])


class AugmentedTiles(Dataset[Sample]):
    """Tiles with an augmentation drawn afresh for every tile and epoch.

    The random numbers depend on seed, epoch and tile alone: neither the number of workers and devices nor a
    stop and resume between epochs changes a pixel. Keras's warp waits for the batch to be on its device
    (`HistologyDataModule.on_after_batch_transfer`); the sample carries its seed there.

    Args:
        tiles: Samples without augmentation.
        transform: From a uint8 tensor (3, S, S) to another; draws from PyTorch's default generator.
        seed: Any integer.
    """

    def __init__(self, tiles: Dataset[Sample], transform: Transform, seed: int) -> None:
        self.tiles = tiles
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.tiles)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, draw: int) -> Sample:
        """Read one tile, and augment it unless that comes later.

        Args:
            draw: epoch * len(self) + index, as `ShuffledSampler` counts.

        Returns:
            The sample, augmented or with its seed.

        Raises:
            UserError: The transform changes shape or type.
        """
        sample = self.tiles[draw % len(self)]
        seed = stable_seed(self.seed, "augment", draw)
        if isinstance(self.transform, KerasRandomAffine):
            sample["seed"] = seed
        else:
            sample["image"] = augmented(sample["image"], self.transform, seed)
        return sample


def augmented(image: Tensor, transform: Transform, seed: int) -> Tensor:
    """Augment a tile by random numbers of its own, and leave the process's as they were.

    Args:
        image: uint8 of shape (3, S, S).
        transform: Draws from PyTorch's default generator.
        seed: Decides what it draws, in [0, 2**63).

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
            f"The augmentation must give what it takes, uint8 of shape {tuple(image.shape)}. "
            f"Mend augment. Received: {changed.dtype} of shape {tuple(changed.shape)}"
        )
    return changed


class ShuffledSampler(Sampler[int]):
    """Every tile once an epoch, in an order that seed and epoch decide, shared among the devices.

    The devices' shares are of one length, as their gradients need: the first tiles of the epoch's order
    fill up the last shares. It yields draws, pass * length + index, so that a worker knows the pass too: the epoch or,
    if a tile is drawn more than once in it, a number that no epoch has.

    Args:
        length: Number of tiles.
        seed: Any integer.
        rank: This process, from 0.
        world_size: Number of processes.
        weights: How often each tile is drawn relative to the others, with replacement; None: each once.
        epoch: The epoch (from 0) of the first pass, which processes that read ahead begin before `set_epoch`.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] | None = None,
        epoch: int = 0,
    ) -> None:
        self.length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.weights = weights
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next pass draws; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of draws in this process's share."""
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[int]:
        """Yield this process's draws of the epoch."""
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "order", self.epoch))
        if self.weights is None:
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            drawn = torch.multinomial(torch.tensor(self.weights), self.length, replacement=True, generator=generator)
            order = _numbered(drawn.tolist(), self.length)
        for place in range(self.rank, len(self) * self.world_size, self.world_size):
            yield self.epoch * self.length + order[place % self.length]


def _numbered(indices: list[int], length: int) -> list[int]:
    """Add to an index that comes again a number of passes, so that it is augmented afresh."""
    times: Counter[int] = Counter()
    draws = []
    for index in indices:
        draws.append(times[index] * MOST_EPOCHS * length + index)
        times[index] += 1
    return draws


class EmbeddedTiles(Dataset[dict[str, Any]]):
    """Tiles as a frozen encoder saw them.

    Args:
        files: N files, as the folder was named.
        labels: 1 for malignant, 0 for benign, of each.
        features: Of each, of shape (N, width).
    """

    def __init__(self, files: Sequence[str], labels: Sequence[int], features: Tensor) -> None:
        self.files = files
        self.labels = labels
        self.features = features

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.files)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """Return one tile's `features`, of shape (width,), `label` and `path`.

        Args:
            draw: pass * len(self) + index.
        """
        index = draw % len(self)
        return {"features": self.features[index], "label": self.labels[index], "path": self.files[index]}


class SequentialShare(Sampler[int]):
    """Every world_size-th tile, in order and without padding: all processes together see each tile once.

    Args:
        length: Number of tiles.
        rank: This process, from 0.
        world_size: Number of processes.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        """Return the number of tiles in this process's share."""
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this process's share."""
        return iter(self.indices)


def stable_seed(seed: int, purpose: str, number: int) -> int:
    """Mix a run's seed with a purpose and a counter into an independent seed in [0, 2**63)."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
