"""Features of a frozen encoder, computed once for each tile and view, and kept on disk."""

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from histo_pl.errors import UserError
from histo_pl.images import read_tile
from histo_pl.signals import die_with_parent

log = logging.getLogger(__name__)

BATCH = 32  # tiles
PLAIN = "plain"  # the view that is not augmented
CHUNK = 500  # keys a query; SQLite takes at least 999
RECIPE = 2  # version of the augmentation and stain code: raise it when they change a pixel
PATIENCE = 60.0  # seconds to wait for another process that writes
# Modules that have moved, by their first names: a view's key, which also seeds its augmentation, stays what it was.
MOVED = {
    "histo_pl.data.transforms.geometric.": "histo_pl.data.augment.",
    "histo_pl.data.transforms.keras_affine.": "histo_pl.data.augment.",
    "histo_pl.data.transforms.stain.": "histo_pl.data.stain.",
}

Key = tuple[str, str]  # the hash of a tile's file, and the view of it


class FeatureStore:
    """Features on disk, by encoder, by the content of the tile's file and by the view of it.

    It is an SQLite database: several processes may use one at once, and one that is killed leaves it whole.

    Args:
        file: The database; made if it is not there.
        max_gigabytes: Its greatest size in 1e9 bytes; the features used longest ago are dropped first.
    """

    def __init__(self, file: str | Path, max_gigabytes: float = 4.0) -> None:
        self.file = Path(file)
        self.max_bytes = max_gigabytes * 1e9

    def load(self, encoder: str, keys: Sequence[Key]) -> dict[Key, Tensor]:
        """Fetch features.

        Args:
            encoder: The encoder's `fingerprint`.
            keys: Tiles and views.

        Returns:
            Of those that are there, float32 of shape (width,) each.

        Raises:
            UserError: The database cannot be used.
        """
        wanted, found = set(keys), {}
        tiles = sorted({tile for tile, _ in keys})
        with self._open() as database:
            for start in range(0, len(tiles), CHUNK):
                chunk = tiles[start : start + CHUNK]
                where = f"WHERE encoder = ? AND tile IN ({', '.join('?' * len(chunk))})"
                rows = database.execute(f"SELECT tile, view, features FROM embeddings {where}", (encoder, *chunk))
                found |= {(tile, view): features for tile, view, features in rows if (tile, view) in wanted}
                database.execute(f"UPDATE embeddings SET used = ? {where}", (time.time(), encoder, *chunk))
        return {key: torch.frombuffer(bytearray(features), dtype=torch.float32) for key, features in found.items()}

    def save(self, encoder: str, features: Mapping[Key, Tensor]) -> None:
        """Keep features, all or none, and drop the oldest beyond the greatest size.

        Args:
            encoder: The encoder's `fingerprint`.
            features: float32 of shape (width,) by tile and view.

        Raises:
            UserError: The database cannot be used.
        """
        rows = [(encoder, *key, time.time(), value.numpy().tobytes()) for key, value in features.items()]
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?, ?)", rows)
            excess = _bytes_of(database) - self.max_bytes
            if excess > 0:
                size = sum(len(row[-1]) for row in rows) / len(rows)
                oldest = "SELECT rowid FROM embeddings ORDER BY used LIMIT ?"
                database.execute(f"DELETE FROM embeddings WHERE rowid IN ({oldest})", (int(excess / size) + 1,))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            database = sqlite3.connect(self.file, timeout=PATIENCE)
            try:
                with database:
                    database.execute(
                        "CREATE TABLE IF NOT EXISTS embeddings (encoder TEXT, tile TEXT, view TEXT, used REAL, "
                        "features BLOB, PRIMARY KEY (encoder, tile, view))"
                    )
                    yield database
            finally:
                database.close()
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"The store of embeddings cannot be used ({error}). Delete it, it is only a cache, or name another "
                f"file: embeddings.store.file=PATH. Received: {self.file}"
            ) from error


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
        for batch in _compute(missing, data, encoder):
            self.store.save(encoder_key, batch)
            found |= batch
        log.info("Embeddings: %d were in %s, %d computed.", stored, self.store.file, len(missing))
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
    for keys, images in tqdm(loader, desc="Embedding", unit="batch"):
        with torch.inference_mode():
            features = encoder(images.to(device)).float().cpu()
        yield dict(zip(keys, features.clone(), strict=True))


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


def _bytes_of(database: sqlite3.Connection) -> int:
    size, pages, free = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    return size * (pages - free)
