"""Features of a frozen encoder, computed once for each tile and view, and kept on disk."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from histo_pl.data import HistologyDataModule
from histo_pl.data.datasets import Transform, augmented
from histo_pl.data.hashing import stable_seed
from histo_pl.images import read_tile
from histo_pl.signals import die_with_parent
from histo_pl.training.feature_store import FeatureStore, Key

log = logging.getLogger(__name__)

BATCH = 32  # tiles
PLAIN = "plain"  # the view that is not augmented
SHARD = 512  # views that are computed before they are stored: what a run that is killed loses at most
RECIPE = 2  # version of the augmentation and stain code: raise it when they change a pixel
# Modules that have moved, by their first names: a view's key, which also seeds its augmentation, stays what it was.
MOVED = {
    "histo_pl.data.transforms.geometric.": "histo_pl.data.augment.",
    "histo_pl.data.transforms.keras_affine.": "histo_pl.data.augment.",
    "histo_pl.data.transforms.stain.": "histo_pl.data.stain.",
}


@dataclass(frozen=True)
class Features:
    """Features of all tiles of a data set.

    Attributes:
        by_path: float32 of shape (views, width) by the tile's path, the plain view first.
        width: Number of features of a view.
        stored: Number of views found in the store.
        computed: Number of views computed.
        seconds: Time that it took.
    """

    by_path: Mapping[str, Tensor]
    width: int
    stored: int
    computed: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return the numbers, as results.json carries them."""
        return {name: getattr(self, name) for name in ("width", "stored", "computed", "seconds")}


@dataclass(frozen=True)
class FeatureExtractor:
    """Shows the tiles of a data module to a frozen encoder, each view once.

    Attributes:
        store: The store of features.
        views: Number of augmented views of each training tile beside the plain one, at least 0.
    """

    store: FeatureStore
    views: int = 0

    def extract(
        self, data: HistologyDataModule, encoder: nn.Module, model_config: Mapping[str, Any], augmentation: str
    ) -> Features:
        """Find the features of all tiles, or compute them.

        Args:
            data: Set up.
            encoder: From uint8 (B, 3, S, S) to features (B, width), on the device where it is to run.
            model_config: The arguments of `build_network` for its network.
            augmentation: The augmentation's settings, as text.

        Returns:
            The features.

        Raises:
            UserError: The store cannot be used, or a tile cannot be read.
        """
        started = time.monotonic()
        encoder_key = fingerprint(encoder, model_config, data.image_size, data.resize)
        settings = augmentation_key(augmentation)
        keys = {path: self._keys_of(data, path, settings) for path in data.split_of}
        found = self.store.load(encoder_key, [key for views in keys.values() for key in views])
        missing = {key: data.root / path for path, views in keys.items() for key in views if key not in found}
        stored = len(found)
        for shard in _compute(missing, data, encoder):
            self.store.save(encoder_key, shard)
            found |= shard
        log.info("Embeddings: %d were in %s, %d computed.", stored, self.store.folder, len(missing))
        return Features(
            by_path={path: torch.stack([found[key] for key in views]) for path, views in keys.items()},
            width=next(iter(found.values())).numel(),
            stored=stored,
            computed=len(missing),
            seconds=round(time.monotonic() - started, 2),
        )

    def _keys_of(self, data: HistologyDataModule, path: str, settings: str) -> list[Key]:
        """List the views of a tile: the plain one and, for training, the augmented ones."""
        count = self.views if data.split_of[path] == "train" else 0
        views = [PLAIN, *(f"{settings}/{number}" for number in range(count))]
        return [(data.hashes[path], view) for view in views]


def augmentation_key(augmentation: str) -> str:
    """Return 16 hexadecimal digits that identify the settings of an augmentation, wherever its modules have moved.

    Args:
        augmentation: The settings as YAML.
    """
    for module, first_name in MOVED.items():
        augmentation = augmentation.replace(module, first_name)
    return hashlib.sha256(augmentation.encode()).hexdigest()[:16]


def _compute(missing: Mapping[Key, Path], data: HistologyDataModule, encoder: nn.Module) -> Iterator[dict[Key, Tensor]]:
    if not missing:
        return
    encoder.eval()
    device = next(encoder.parameters()).device
    views = _Views(list(missing.items()), data.image_size, data.resize, data.augment)
    loader = DataLoader(
        views, batch_size=BATCH, num_workers=data.num_workers, collate_fn=_collate, worker_init_fn=die_with_parent
    )
    shard: dict[Key, Tensor] = {}
    for keys, images in tqdm(loader, desc="Embedding", unit="batch"):
        with torch.inference_mode():
            features = encoder(images.to(device)).float().cpu()
        shard |= zip(keys, features.clone(), strict=True)
        if len(shard) >= SHARD:
            yield shard
            shard = {}
    if shard:
        yield shard


class _Views(Dataset[tuple[Key, Tensor]]):
    """Tiles by key, augmented by random numbers that tile and view alone decide."""

    def __init__(
        self, items: Sequence[tuple[Key, Path]], image_size: int, resize: str, augment: Transform | None
    ) -> None:
        self.items = items
        self.image_size = image_size
        self.resize = resize
        self.augment = augment

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Key, Tensor]:
        (tile, view), path = self.items[index]
        image = read_tile(path, self.image_size, self.resize)
        if view == PLAIN or self.augment is None:
            return (tile, view), image
        return (tile, view), augmented(image, self.augment, stable_seed(0, f"{tile}:{view}", 0))


def fingerprint(encoder: nn.Module, model_config: Mapping[str, Any], image_size: int, resize: str) -> str:
    """Hash all that decides an encoder's features: weights, architecture, the resize, the version of the code.

    Args:
        encoder: The encoder with its preprocessing.
        model_config: The arguments of `build_network` for its network.
        image_size: Side of its input in pixels.
        resize: The algorithm that brings tiles to that size.

    Returns:
        A hash of 64 hexadecimal digits.
    """
    settings = [dict(model_config), image_size, resize, RECIPE, PIL.__version__]
    hashed = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in encoder.state_dict().items():
        hashed.update(name.encode())
        hashed.update(weight.cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def _collate(samples: Sequence[tuple[Key, Tensor]]) -> tuple[list[Key], Tensor]:
    keys, images = zip(*samples, strict=True)
    return list(keys), torch.stack(images)
