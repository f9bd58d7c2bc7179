"""A folder of tiles as Lightning's data module."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms import v2

from histo_pl.data.cache import MappedTiles, check_cache, check_device_cache, tiles_on_device, tiles_on_disk
from histo_pl.data.check import check_tiles
from histo_pl.data.classes import CLASSES
from histo_pl.data.datasets import CacheReader, FileReader, Reader, Sample, TileDataset, Transform
from histo_pl.data.hashing import stable_hash
from histo_pl.data.leaks import leak_warnings
from histo_pl.data.samplers import ShuffledSampler, UnpaddedDistributedSampler, class_weights
from histo_pl.data.scale import scale_of
from histo_pl.data.source import TileSet, make_source
from histo_pl.data.splits import check_no_overlap, check_published, fingerprint, read_split, split_tiles, write_split
from histo_pl.data.tile import SPLITS, Split, Tile
from histo_pl.data.transforms.keras_affine import KerasRandomAffine, warp
from histo_pl.errors import UserError
from histo_pl.hardware import release_freed_memory, usable_cores
from histo_pl.images import RESIZE
from histo_pl.signals import die_with_parent

MAX_WORKERS = 8  # beyond which one GPU gains little, and memory is lost


class HistologyDataModule(L.LightningDataModule):
    """Tiles of two classes, split by seed, a case's tiles kept together.

    `test_fraction` becomes the test set first, and `val_fraction` of what is left validates. Published splits (folders
    train, val and test, or the column of a table) are taken as they are; without val, the validation tiles are drawn
    from train; with val and without test, there is no test. With `folds`, the test set is one fold of a
    cross-validation instead.

    Args:
        root: The folder, or a zip file of it, which is unpacked beside itself once.
        image_size: Side of the network's input in pixels; every tile is squeezed to it.
        batch_size: Tiles a batch and device.
        augment: Applied to each training tile, a uint8 tensor (3, S, S), and only to those. None: nothing.
        name: The data set's name in results and checkpoints; None: the folder's name.
        split_file: A `split.csv` to use instead of drawing a split.
        val_fraction: Share of the tiles left after the test set, in (0, 1).
        test_fraction: Share of all tiles, in (0, 1), where the folder has no test set of its own.
        folds: Number of folds of a cross-validation; None: a single split.
        fold: The one of them that tests, from 0.
        test_all: Put every tile into the test set, for an evaluation.
        balanced: Draw both classes equally often in an epoch, with replacement, instead of every tile once.
        seed: Decides the split, the order and the augmentation.
        resize: The algorithm that brings tiles to `image_size`, one of `images.RESIZES`.
        cache: The place of decoded tiles: `none`; `ram`; `disk`, mapped into memory and there for the next run; or
            `device`, all tiles in the memory of each device.
        cache_dir: The folder of `disk`.
        num_workers: Processes that read tiles; None: none if tiles need neither decoding nor an augmentation of their
            own, else one a processor core, at most 8.
        pin_memory: Put batches into page-locked memory, which a GPU reads faster; None: if there is a GPU.
        prefetch_factor: Batches that each worker holds ready; None: PyTorch's default, 2.
        on_error: `stop` where files cannot be read, or `skip` them.
        blank: `keep` tiles with hardly any tissue, or `skip` them.
        inspections: A database that remembers checked files, see `inspection.inspect_files`; None: none.
        mpp: Micrometres per pixel of all tiles, or the column that holds each tile's own; None: unknown. Slides are
            read at the median.
        **source: The choice of tiles, classes and cases: the attributes of `TileSource`, such as `group_regex`.
    """

    def __init__(
        self,
        root: str | Path | None,
        *,
        image_size: int = 224,
        batch_size: int = 32,
        augment: Transform | None = None,
        name: str | None = None,
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
        on_error: str = "stop",
        blank: str = "keep",
        inspections: str | Path | None = None,
        mpp: float | str | None = None,
        **source: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        if root is None:
            raise UserError("The folder of tiles is missing. Say it with data.root=FOLDER. Received: nothing")
        self.root = Path(root)
        self.name = name or (self.root.stem if self.root.suffix == ".zip" else self.root.resolve().name)
        self.image_size, self.batch_size = image_size, batch_size
        self.augment = augment
        self.source_options = source
        self.on_error, self.blank = on_error, blank
        self.inspections_file = None if inspections is None else Path(inspections)
        self.split_file, self.mpp = split_file, mpp
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.folds, self.fold = folds, fold
        self.test_all = test_all
        self.balanced = balanced
        self.seed = seed
        self.resize = resize
        self.cache, self.cache_dir = cache, Path(cache_dir)
        self._choose_loading(num_workers, pin_memory, prefetch_factor)
        self.tiles: list[Tile] = []
        self.split_of: dict[str, Split] = {}
        self._first_epoch = 0

    def _choose_loading(self, num_workers: int | None, pin_memory: bool | None, prefetch_factor: int | None) -> None:
        """Take what was chosen, and what suits the machine and the cache for the rest."""
        per_tile = self.augment is not None and not isinstance(self.augment, KerasRandomAffine | v2.Identity)
        check_cache(self.cache)
        check_device_cache(self.cache, per_tile, num_workers, pin_memory)
        default = 0 if self.cache != "none" and not per_tile else min(MAX_WORKERS, usable_cores())
        self.num_workers = default if num_workers is None else num_workers
        self.pin_memory = torch.cuda.is_available() and self.cache != "device" if pin_memory is None else pin_memory
        if prefetch_factor is not None and self.num_workers == 0:
            raise UserError(
                f"Only processes that read tiles hold batches ready. Expected data.num_workers of at least 1 with "
                f"data.prefetch_factor. Received: data.prefetch_factor={prefetch_factor} and none"
            )
        self.prefetch_factor = prefetch_factor

    @property
    def is_synthetic(self) -> bool:
        """True if the tiles were drawn by a program."""
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
        found = make_source(self.root, self.source_options).read()
        assert found.classes is not None  # `read` gives them
        self.root, self.found = found.root, found
        self.positive_class, self.negative_class = found.classes.positive, found.classes.negative
        self.checked = check_tiles(found, self.on_error, self.blank, self.inspections_file)
        self.tiles = self.checked.tiles
        self.median_mpp = scale_of(self.tiles, self.mpp)
        self.split_of = self._assign_splits(found)
        check_no_overlap(self.tiles, self.split_of)
        self._check_classes_in_splits()

    def write_split(self, file: str | Path) -> None:
        """Write the split as CSV, for `split_file` to take back.

        Args:
            file: The file to write.
        """
        write_split(Path(file), self.tiles, self.split_of)

    def summary(self) -> dict[str, Any]:
        """Describe the data in plain values, as checkpoints and results carry it.

        Returns:
            name, synthetic, the class names, for each split the tiles, malignant tiles and cases (None where unknown),
            the number of cases with tiles of both classes, fingerprints of the split and of each split's contents, of a
            cross-validation the fold and the number of folds, the numbers of blank, grey and skipped tiles and of those
            that the user's choice leaves out, the median mpp (None where unknown), and the median width and height of
            the tiles' own files in pixels.
        """
        return dict(self._summary)

    @cached_property
    def _summary(self) -> dict[str, Any]:
        """The summary, made once: with very many tiles its fingerprints take seconds."""
        return {
            "name": self.name,
            "synthetic": self.is_synthetic,
            "negative_class": self.negative_class,
            "positive_class": self.positive_class,
            "parts": {split: self._counts(split) for split in SPLITS},
            "split": fingerprint(self.split_of),
            "contents": {split: self._contents(split) for split in SPLITS},
            "mixed_cases": self._count_mixed_cases(),
            "fold": None if self.folds is None else [self.fold, self.folds],
            "checked": self.checked.counts(),
            "mpp": self.median_mpp,
            "tile_size": self.checked.median_size(),
        }

    @property
    def hashes(self) -> dict[str, str]:
        """Each tile's `hashing.content_hash` by its path."""
        return self.checked.inspections.hashes

    @property
    def has_cases(self) -> bool:
        """True if the cases are known."""
        return all(tile.case for tile in self.tiles)

    def leak_warnings(self) -> list[str]:
        """Find files that splits share, see `leaks.leak_warnings`."""
        return leak_warnings(self.tiles, self.split_of, self.hashes)

    @cached_property
    def columns(self) -> list[str]:
        """Names of the tiles' further properties."""
        return list(dict.fromkeys(name for tile in self.tiles for name in tile.columns))

    def values_of_columns(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """Return the further properties of some tiles.

        Args:
            paths: Relative to the root.

        Returns:
            A value for each path, by the column's name; empty where a tile has none.
        """
        of = {tile.path: tile.columns for tile in self.tiles}
        return {name: [of[path].get(name, "") for path in paths] for name in self.columns}

    def other_files(self) -> list[str]:
        """List the visible files below the root that are no images, and the images in no class folder."""
        return sorted([*self.found.others, *(tile.path for tile in self.found.loose)])

    @property
    def has_test(self) -> bool:
        """True unless the data set comes with training and validation tiles alone."""
        return "test" in self.split_of.values()

    def colours_of(self, paths: Sequence[str]) -> NDArray[np.float64]:
        """Describe some tiles' colours, see `appearance.describe_colours`.

        Args:
            paths: Relative to the root.

        Returns:
            Of shape (N, 21).
        """
        return self.checked.inspections.colours_of(paths)

    def tiles_of(self, split: Split) -> list[Tile]:
        """List a split's tiles in the order of its loader: by a hash of the path, so that classes are mixed.

        Args:
            split: train, val or test.
        """
        return sorted(
            (tile for tile in self.tiles if self.split_of[tile.path] == split), key=lambda tile: stable_hash(tile.path)
        )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return shuffled, augmented training tiles."""
        tiles = self.tiles_of("train")
        weights = class_weights(tiles) if self.balanced else None
        current_epoch = self._current_epoch if self.trainer else None
        sampler = ShuffledSampler(len(tiles), self.seed, *self._rank_and_world_size(), weights, current_epoch)
        return self._loader(TileDataset(tiles, self.positive_class, self._reader, self.augment, self.seed), sampler)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return the validation tiles in a fixed order, never augmented."""
        loader = self.plain_dataloader(self.tiles_of("val"))
        iter(loader)  # forks now: later its processes would keep a copy of all memory that the training writes to
        return loader

    def test_dataloader(self) -> DataLoader[Sample]:
        """Return the test tiles in a fixed order, never augmented."""
        return self.plain_dataloader(self.tiles_of("test"))

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Draw the warps of a batch that is to be augmented as Keras does: `seed` becomes `warp`, (B, 2, 3)."""
        if "seed" in batch and isinstance(self.augment, KerasRandomAffine):
            batch["warp"] = self.augment.draw(batch.pop("seed").tolist(), self.image_size)
        return batch

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Warp such a batch, uint8 (B, 3, S, S), each tile on its own, on its device."""
        if "warp" in batch:
            batch["image"] = warp(batch["image"], batch.pop("warp"))
        return batch

    def plain_dataloader(self, tiles: list[Tile]) -> DataLoader[Sample]:
        """Return some tiles in the order of the list, never augmented."""
        sampler = UnpaddedDistributedSampler(len(tiles), *self._rank_and_world_size())
        return self._loader(TileDataset(tiles, self.positive_class, self._reader), sampler)

    def _loader(self, dataset: TileDataset, sampler: Sampler[int]) -> DataLoader[Sample]:
        release_freed_memory()  # of which processes that are forked would keep what their parent changes
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            prefetch_factor=self.prefetch_factor,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=die_with_parent,
            generator=torch.Generator(),  # of its own: what the network draws must not depend on when tiles are read
        )

    def resume_at(self, epoch: int) -> None:
        """Begin the training at an epoch other than the first.

        Lightning makes the loader's iterator, whose processes read ahead, before it restores the epoch, where a
        learning-rate schedule asks for the number of steps.

        Args:
            epoch: From 0.
        """
        self._first_epoch = epoch

    def _current_epoch(self) -> int:
        trainer: Any = self.trainer
        return max(trainer.fit_loop.epoch_progress.current.processed, self._first_epoch)

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Return this process's number and that of all: the samplers share the tiles out themselves."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _assign_splits(self, found: TileSet) -> dict[str, Split]:
        if self.folds is None and self.fold != 0:
            raise UserError(f"data.fold means nothing without data.folds, such as 5. Received: data.fold={self.fold}")
        if self.test_all:
            return {tile.path: "test" for tile in self.tiles}
        if self.split_file is None:
            check_published(self.root, self.tiles)
        if self.folds is not None and (self.split_file is not None or found.is_published):
            raise UserError(
                "data.folds needs one folder with two class folders, and no split file. Leave data.split_file "
                f"out, and give {self.root / 'train'} as data.root if there is train and test. Received: {self.root}"
            )
        if self.split_file is not None:
            return read_split(Path(self.split_file), self.tiles)
        return split_tiles(
            self.tiles,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
            folds=self.folds,
            fold=self.fold,
        )

    def _check_classes_in_splits(self) -> None:
        needed: tuple[Split, ...] = ("test",) if self.test_all else SPLITS
        if self.found.is_published and self.split_file is None and not (self.has_test or self.test_all):
            needed = ("train", "val")
        for split in needed:
            classes = {tile.class_name for tile in self.tiles if self.split_of[tile.path] == split}
            if len(classes) < CLASSES:
                raise UserError(
                    f"Every part of the split needs tiles of both classes. "
                    f"Received: {split} with {', '.join(classes) or 'no tiles'}"
                )

    @cached_property
    def _reader(self) -> Reader:
        """Reads a tile's pixels, from its file or from the cache, which is filled at the first use."""
        if self.cache == "none":
            return FileReader(self.root, self.image_size, self.resize)
        files = [self.root / tile.path for tile in self.tiles]
        pixels: torch.Tensor | MappedTiles
        if self.cache == "disk":
            pixels = tiles_on_disk(files, self.image_size, self.resize, self.cache_dir)
        else:
            device = self._device() if self.cache == "device" else "cpu"
            pixels = tiles_on_device(files, self.image_size, self.resize, device)
        return CacheReader(pixels, {tile.path: index for index, tile in enumerate(self.tiles)})

    def _device(self) -> str | torch.device:
        if self.trainer:
            return self.trainer.strategy.root_device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _contents(self, split: Split) -> str:
        return fingerprint({path: self.hashes[path] for path, one in self.split_of.items() if one == split})

    def _count_mixed_cases(self) -> int | None:
        cases = {tile.case for tile in self.tiles}
        return len({(tile.case, tile.class_name) for tile in self.tiles}) - len(cases) if self.has_cases else None

    def _counts(self, split: Split) -> dict[str, int | None]:
        tiles = [tile for tile in self.tiles if self.split_of[tile.path] == split]
        classes = Counter(tile.class_name for tile in tiles)
        cases = len({tile.case for tile in tiles}) if self.has_cases else None
        return {"tiles": len(tiles), "malignant": classes[self.positive_class], "cases": cases}
