"""A folder of tiles as Lightning's data module."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import ConcatDataset, DataLoader, Sampler, Subset
from torchvision.transforms import v2

from histo_pl.data.archive import inner_folder, unpack
from histo_pl.data.augment import KerasRandomAffine, warp
from histo_pl.data.cache import MappedTiles, check_cache, tiles_on_device, tiles_on_disk
from histo_pl.data.classes import find_positive_class
from histo_pl.data.duplicates import hash_files, leak_warnings
from histo_pl.data.groups import keep_together
from histo_pl.data.splits import (
    PARTS,
    Part,
    Tile,
    case_of,
    check_no_overlap,
    fingerprint,
    read_split,
    split_tiles,
    stable_hash,
    write_split,
)
from histo_pl.data.tiles import (
    AugmentedTiles,
    CachedTiles,
    EmbeddedTiles,
    Sample,
    SequentialShare,
    ShuffledSampler,
    TileFolder,
    Transform,
)
from histo_pl.errors import UserError
from histo_pl.images import RESIZE, find_files
from histo_pl.speed import usable_cores
from histo_pl.stopping import die_with_parent

MAX_WORKERS = 8  # beyond which one GPU gains little, and memory is lost


class HistologyDataModule(L.LightningDataModule):
    """Tiles of two classes, split by seed, a case's tiles kept together.

    Two layouts: `root/train/<class>` with `root/test/<class>`, or `root/<class>`, of which `test_fraction`
    becomes the test set first. Either way `val_fraction` of what is left validates. With `folds`, the second
    layout's test set is one fold of a cross-validation instead.

    Args:
        root: The folder, or a zip file of it, which is unpacked beside itself once.
        image_size: Side of the network's input in pixels; every tile is squeezed to it.
        batch_size: Tiles a batch and device.
        augment: Applied to each training tile, a uint8 tensor (3, S, S), and only to those. None: nothing.
        name: What the data set is called in results and checkpoints; None: the folder's name.
        positive_class: The folder that means malignant; None: found by its name.
        group_regex: Finds the case in a tile's path, see `splits.case_of`; None: cases are unknown.
        groups_file: Which tiles must stay together besides, see `groups.keep_together`; None: no others.
        columns: Further facts of a tile by name, such as its magnification: expressions that find them in a path,
            as `group_regex` does.
        split_file: A `split.csv` to use instead of drawing a split.
        val_fraction: Share of the tiles left after the test set, in (0, 1).
        test_fraction: Share of all tiles, in (0, 1), where the folder has no test set of its own.
        folds: Number of folds of a cross-validation; None: a single split.
        fold: Which of them tests, from 0.
        test_all: Whether every tile tests: a data set that only evaluates.
        balanced: Whether an epoch draws both classes equally often, with replacement, instead of every tile once.
        seed: Decides the split, the order and the augmentation.
        resize: How tiles come to `image_size`, one of `images.RESIZES`.
        cache: Where decoded tiles are kept: `none`; `ram`; `disk`, mapped into memory and there for the next run; or
            `device`, all tiles in the memory of each device.
        cache_dir: The folder of `disk`.
        num_workers: Processes that read tiles; None: none if tiles need neither decoding nor an augmentation of their
            own, else one a processor core, at most 8.
        pin_memory: Whether batches lie where a GPU fetches them faster; None: if there is a GPU.
        prefetch_factor: Batches that each worker holds ready; None: PyTorch's default, 2.

    Attributes:
        features: If set, what the loaders give instead of images, all in one batch: of each tile by its path a tensor
            (views, width), see `embeddings.Embedder`.
    """

    def __init__(
        self,
        root: str | Path | None,
        *,
        image_size: int = 224,
        batch_size: int = 32,
        augment: Transform | None = None,
        name: str | None = None,
        positive_class: str | None = None,
        group_regex: str | None = None,
        groups_file: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        split_file: str | Path | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        folds: int | None = None,
        fold: int = 0,
        test_all: bool = False,
        balanced: bool = False,
        seed: int = 0,
        resize: str = RESIZE,
        cache: str = "none",
        cache_dir: str | Path = "cache/tiles",
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        prefetch_factor: int | None = None,
    ) -> None:
        super().__init__()
        if root is None:
            raise UserError("The folder of tiles is missing. Say it with data.root=FOLDER. Received: nothing")
        self.root = Path(root)
        self.name = name or (self.root.stem if self.root.suffix == ".zip" else self.root.resolve().name)
        self.image_size, self.batch_size = image_size, batch_size
        self.augment = augment
        self.chosen_positive_class = positive_class
        self.group_regex = group_regex
        self.groups_file = groups_file
        self.columns = dict(columns or {})
        self.split_file = split_file
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.folds, self.fold = folds, fold
        self.test_all = test_all
        self.balanced = balanced
        self.seed = seed
        self.resize = resize
        self.cache, self.cache_dir = cache, Path(cache_dir)
        self._choose_loading(num_workers, pin_memory, prefetch_factor)
        self.tiles: list[Tile] = []
        self.parts: dict[str, Part] = {}
        self.features: Mapping[str, torch.Tensor] | None = None

    def _choose_loading(self, num_workers: int | None, pin_memory: bool | None, prefetch_factor: int | None) -> None:
        """Take what was chosen, and what suits the machine and the cache for the rest."""
        per_tile = self.augment is not None and not isinstance(self.augment, KerasRandomAffine | v2.Identity)
        check_cache(self.cache)
        _check_device_cache(self.cache, per_tile, num_workers, pin_memory)
        own = 0 if self.cache != "none" and not per_tile else min(MAX_WORKERS, usable_cores())
        self.num_workers = own if num_workers is None else num_workers
        self.pin_memory = torch.cuda.is_available() and self.cache != "device" if pin_memory is None else pin_memory
        if prefetch_factor is not None and self.num_workers == 0:
            raise UserError(
                f"Only processes that read tiles hold batches ready. Expected data.num_workers of at least 1 with "
                f"data.prefetch_factor. Received: data.prefetch_factor={prefetch_factor} and none"
            )
        self.prefetch_factor = prefetch_factor

    @property
    def is_synthetic(self) -> bool:
        """Whether the tiles were drawn by a program."""
        return False

    def setup(self, stage: str | None = None) -> None:
        """Find the tiles, name the positive class and split; a second call changes nothing.

        Args:
            stage: Lightning's; every stage needs the whole split.

        Raises:
            UserError: The folder, its classes, its cases or the split file are not as expected.
        """
        if self.tiles:
            return
        if self.root.is_file() and self.root.suffix.lower() == ".zip":
            self.root = unpack(self.root)
        if self.root.is_dir():
            self.root = inner_folder(self.root)
        self._folders = self._open_folders()
        classes = self._folders[0].classes
        self.positive_class = find_positive_class(classes, self.chosen_positive_class)
        self.negative_class = next(name for name in classes if name != self.positive_class)
        for folder in self._folders:
            folder.positive_class = self.positive_class
        self.tiles = [tile for folder in self._folders for tile in self._tiles_in(folder)]
        if self.groups_file is not None:
            self.tiles = keep_together(self.tiles, Path(self.groups_file))
        self.parts = self._split()
        check_no_overlap(self.tiles, self.parts)
        self._check_classes_in_parts()

    def write_split(self, file: Path) -> None:
        """Write the split as CSV, for `split_file` to take back.

        Args:
            file: Where to write.
        """
        write_split(file, self.tiles, self.parts)

    def facts(self) -> dict[str, Any]:
        """Describe the data in plain values, as checkpoints and results carry it.

        Returns:
            name, synthetic, root, the class names, for each part the tiles, malignant tiles and cases (None
            where unknown), the split's fingerprint, and of a cross-validation the fold and the number of folds.
        """
        return {
            "name": self.name,
            "synthetic": self.is_synthetic,
            "root": str(self.root),
            "negative_class": self.negative_class,
            "positive_class": self.positive_class,
            "parts": {part: self._counts(part) for part in PARTS},
            "split": fingerprint(self.parts),
            "fold": None if self.folds is None else [self.fold, self.folds],
        }

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Each tile's `duplicates.content_hash` by its path."""
        paths = [tile.path for tile in self.tiles]
        return dict(zip(paths, hash_files([self.root / path for path in paths]), strict=True))

    @cached_property
    def _class_of(self) -> dict[str, str]:
        return {tile.path: tile.class_name for tile in self.tiles}

    def leak_warnings(self) -> list[str]:
        """Say which parts share files, see `duplicates.leak_warnings`."""
        return leak_warnings(self.tiles, self.parts, self.hashes)

    def values_of_columns(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """Find each of `columns` in some tiles' paths.

        Args:
            paths: Relative to the root.

        Returns:
            A value for each path, by the column's name; empty where the expression does not match.
        """
        return {name: [_value_in(path, expression) for path in paths] for name, expression in self.columns.items()}

    def other_files(self) -> list[str]:
        """List the visible files below the root that take no part: no images, or in no class folder.

        Returns:
            Paths relative to the root, in order.
        """
        return [path for f in find_files(self.root) if (path := f.relative_to(self.root).as_posix()) not in self.parts]

    def part_paths(self, part: Part) -> list[Path]:
        """List a part's files.

        Args:
            part: train, val or test.

        Returns:
            One path a tile, below the root as it was given, in order.
        """
        return [self.root / tile.path for tile in self.tiles if self.parts[tile.path] == part]

    def paths(self, part: Part) -> list[str]:
        """List a part's tiles relative to the root, in the order of its loader: classes mixed."""
        return sorted((tile.path for tile in self.tiles if self.parts[tile.path] == part), key=stable_hash)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return shuffled, augmented training tiles, or the features of all their views."""
        if self.features is None:
            tiles = AugmentedTiles(self._dataset("train"), self.augment or _unchanged, self.seed)
        else:
            tiles = self._embedded("train", self.features)
        weights = self._weights(len(tiles)) if self.balanced else None
        sampler = ShuffledSampler(len(tiles), self.seed, *self._place(), weights=weights, epoch=self._epoch())
        return self._loader(tiles, sampler)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return the validation tiles in a fixed order, never augmented."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Return the test tiles in a fixed order, never augmented."""
        return self._evaluation_loader("test")

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Draw the warps of a batch that is to be augmented as Keras does: `seed` becomes `warp`, (B, 2, 3)."""
        if "seed" in batch and isinstance(self.augment, KerasRandomAffine):
            batch["warp"] = self.augment.draw(batch.pop("seed").tolist(), self.image_size)
        return batch

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Warp such a batch, each tile on its own, where it is."""
        if "warp" in batch:
            batch["image"] = warp(batch["image"], batch.pop("warp"))
        return batch

    def _evaluation_loader(self, part: Part) -> DataLoader[Any]:
        tiles = self._dataset(part) if self.features is None else self._embedded(part, self.features)
        return self._loader(tiles, SequentialShare(len(tiles), *self._place()))

    def _loader(
        self, tiles: "AugmentedTiles | CachedTiles | Subset[Sample] | EmbeddedTiles", sampler: Sampler[int]
    ) -> DataLoader[Any]:
        embedded = self.features is not None
        workers = 0 if embedded else self.num_workers
        return DataLoader(
            tiles,
            batch_size=len(tiles) if embedded else self.batch_size,
            sampler=sampler,
            num_workers=workers,
            pin_memory=self.pin_memory,
            prefetch_factor=self.prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=die_with_parent,
            generator=torch.Generator(),  # of its own: what the network draws must not depend on when tiles are read
        )

    def _embedded(self, part: Part, features: Mapping[str, torch.Tensor]) -> EmbeddedTiles:
        """A part's tiles as features: each view of a training tile counts as a tile, of others there is one."""
        paths = self.paths(part)
        views = len(features[paths[0]])
        labels, files = self._labels_and_files(paths)
        return EmbeddedTiles(
            files * views, labels * views, torch.stack([features[path] for path in paths], 1).flatten(0, 1)
        )

    def _weights(self, draws: int) -> list[float]:
        """Draw each class equally often: a tile weighs as much as its class has few."""
        classes = [self._class_of[path] for path in self.paths("train")]
        counts = Counter(classes)
        return [1 / counts[name] for name in classes] * (draws // len(classes))

    def _epoch(self) -> int:
        """The epoch that is next: after a resume Lightning says it to the sampler too late for the first batches."""
        if not self.trainer:
            return 0
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return progress.processed

    def _place(self) -> tuple[int, int]:
        """This process among all, and their number: the samplers share the tiles out themselves."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _open_folders(self) -> list[TileFolder]:
        if not self.root.is_dir():
            raise UserError(
                f"The folder of tiles does not exist. Expected a folder with two class folders, "
                f"or with train and test. Mend data.root. Received: {self.root}"
            )
        names = {folder.name for folder in self.root.iterdir() if folder.is_dir() and folder.name[0] not in "._"}
        if not {name.lower() for name in names} & {"train", "test"}:
            return [TileFolder(self.root, self.image_size, self.resize)]
        if names != {"train", "test"}:
            raise UserError(
                f"A folder with train or test in it must hold these two and no others: validation tiles are "
                f"drawn from train. To split a single folder use data.root={self.root / 'train'}. "
                f"Received: {self.root} with {', '.join(sorted(names))}"
            )
        train, test = (TileFolder(self.root / name, self.image_size, self.resize) for name in ("train", "test"))
        if train.classes != test.classes:
            raise UserError(
                f"train and test must hold the same two class folders. "
                f"Received: {', '.join(train.classes)} and {', '.join(test.classes)}"
            )
        return [train, test]

    def _tiles_in(self, folder: TileFolder) -> list[Tile]:
        tiles = []
        for file, class_index in folder.samples:
            path = Path(file).relative_to(self.root).as_posix()
            tiles.append(Tile(path, folder.classes[class_index], case_of(path, self.group_regex)))
        return tiles

    def _split(self) -> dict[str, Part]:
        if self.folds is None and self.fold != 0:
            raise UserError(f"data.fold means nothing without data.folds, such as 5. Received: data.fold={self.fold}")
        if self.test_all:
            return {tile.path: "test" for tile in self.tiles}
        if self.folds is not None and (self.split_file is not None or len(self._folders) > 1):
            raise UserError(
                "data.folds needs one folder with two class folders, and no split file. Leave data.split_file "
                f"out, and give {self.root / 'train'} as data.root if there is train and test. Received: {self.root}"
            )
        if self.split_file is not None:
            return read_split(Path(self.split_file), self.tiles)
        own_test = len(self._folders) > 1
        tested = {tile.path for tile in self.tiles if own_test and tile.path.startswith(f"{self._folders[1].name}/")}
        parts = split_tiles(
            [tile for tile in self.tiles if tile.path not in tested],
            val_fraction=self.val_fraction,
            test_fraction=None if own_test else self.test_fraction,
            seed=self.seed,
            folds=self.folds,
            fold=self.fold,
        )
        tests: dict[str, Part] = dict.fromkeys(tested, "test")
        return parts | tests

    def _check_classes_in_parts(self) -> None:
        for part in ("test",) if self.test_all else PARTS:
            classes = {tile.class_name for tile in self.tiles if self.parts[tile.path] == part}
            if len(classes) < 2:  # noqa: PLR2004
                raise UserError(
                    f"Every part of the split needs tiles of both classes. "
                    f"Received: {part} with {', '.join(classes) or 'no tiles'}"
                )

    def _dataset(self, part: Part) -> "Subset[Sample] | CachedTiles":
        """The part's tiles from all folders, classes mixed, so that a few batches hold both."""
        paths = self.paths(part)
        number = {tile.path: index for index, tile in enumerate(self.tiles)}
        places = [number[path] for path in paths]
        if self.cache == "none":
            return Subset(ConcatDataset(self._folders), places)
        return CachedTiles(self._pixels, places, *self._labels_and_files(paths))

    def _labels_and_files(self, paths: Sequence[str]) -> tuple[list[int], list[str]]:
        """Of each tile 1 if it is malignant, else 0, and its file, as the folder was named."""
        labels = [int(self._class_of[path] == self.positive_class) for path in paths]
        return labels, [str(self.root / path) for path in paths]

    @cached_property
    def _pixels(self) -> torch.Tensor | MappedTiles:
        """All tiles, decoded."""
        files = [self.root / tile.path for tile in self.tiles]
        if self.cache == "disk":
            return tiles_on_disk(files, self.image_size, self.resize, self.cache_dir)
        return tiles_on_device(files, self.image_size, self.resize, self._device() if self.cache == "device" else "cpu")

    def _device(self) -> str | torch.device:
        if self.trainer:
            return self.trainer.strategy.root_device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _counts(self, part: Part) -> dict[str, int | None]:
        tiles = [tile for tile in self.tiles if self.parts[tile.path] == part]
        classes = Counter(tile.class_name for tile in tiles)
        cases = len({tile.case for tile in tiles}) if self.group_regex else None
        return {"tiles": len(tiles), "malignant": classes[self.positive_class], "cases": cases}


def _unchanged(image: torch.Tensor) -> torch.Tensor:
    return image


def _value_in(path: str, expression: str) -> str:
    try:
        match = re.search(expression, path)
    except re.error as error:
        raise UserError(f"data.columns holds no valid regular expression ({error}). Received: {expression}") from error
    return (match.group(min(1, match.re.groups)) or "") if match else ""


def _check_device_cache(cache: str, per_tile: bool, num_workers: int | None, pin_memory: bool | None) -> None:
    """Refuse what would draw tiles one by one from a device, or bring there what is there."""
    wrong = {
        "an augmentation that is drawn tile by tile, as the default augment=torchvision is": per_tile,
        f"data.num_workers={num_workers}": num_workers,
        f"data.pin_memory={pin_memory}": pin_memory,
    }
    received = [name for name, is_wrong in wrong.items() if is_wrong]
    if cache == "device" and received:
        raise UserError(
            f"data.cache=device draws whole batches on the device. Expected augment=keras or augment=none, with "
            f"data.num_workers and data.pin_memory left alone; data.cache=ram or disk take any. "
            f"Received: {', '.join(received)}"
        )
