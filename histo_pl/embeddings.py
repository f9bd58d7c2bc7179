"""What a frozen encoder makes of the tiles, computed once and kept on disk."""

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
from histo_pl.data.tiles import Transform, augmented, stable_seed
from histo_pl.errors import UserError
from histo_pl.images import read_tile
from histo_pl.stopping import die_with_parent

log = logging.getLogger(__name__)

BATCH = 32  # tiles
PLAIN = "plain"  # the view that is not augmented
CHUNK = 500  # keys a query; SQLite takes at least 999
RECIPE = 2  # of what happens to a tile before the encoder: raise it when augmentation or stain change a pixel
PATIENCE = 60.0  # seconds to wait for another process that writes

Key = tuple[str, str]  # a tile by the hash of its file, and the view of it


class EmbeddingStore:
    """Features on disk, by encoder, by the content of the tile's file and by the view of it.

    It is an SQLite database: several processes may use one at once, and one that is killed leaves it whole.

    Args:
        file: Where it lies; made if it is not there.
        max_gigabytes: Its greatest size in 1e9 bytes; what was used longest ago is dropped first.
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
        """
        wanted, found = set(keys), {}
        tiles = sorted({tile for tile, _ in keys})
        with self._open() as database:
            for start in range(0, len(tiles), CHUNK):
                some = tiles[start : start + CHUNK]
                where = f"WHERE encoder = ? AND tile IN ({', '.join('?' * len(some))})"
                rows = database.execute(f"SELECT tile, view, features FROM embeddings {where}", (encoder, *some))
                found |= {(tile, view): features for tile, view, features in rows if (tile, view) in wanted}
                database.execute(f"UPDATE embeddings SET used = ? {where}", (time.time(), encoder, *some))
        return {key: torch.frombuffer(bytearray(features), dtype=torch.float32) for key, features in found.items()}

    def save(self, encoder: str, features: Mapping[Key, Tensor]) -> None:
        """Keep features, all or none, and drop the oldest beyond the greatest size.

        Args:
            encoder: The encoder's `fingerprint`.
            features: float32 of shape (width,) by tile and view.
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
class Embedder:
    """Shows the tiles of a data module to a frozen encoder, each view once.

    Attributes:
        store: Where features are kept.
        views: Augmented views of each training tile beside the plain one, at least 0.
    """

    store: EmbeddingStore
    views: int = 0

    def embed(
        self,
        data: HistologyDataModule,
        encode: nn.Module,
        spec: Mapping[str, Any],
        augment: str,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Find the features of all tiles, or compute them.

        Args:
            data: Set up.
            encode: From uint8 (B, 3, S, S) to features (B, width), where it is to run.
            spec: What built its network.
            augment: The augmentation's settings, as text.

        Returns:
            By the tile's path float32 of shape (views, width), the plain view first; and in plain values the `width`,
            how many features were `stored` and how many `computed`, and the `seconds`.

        Raises:
            UserError: The store cannot be used, or a tile cannot be read.
        """
        started = time.monotonic()
        encoder = fingerprint(encode, spec, data.image_size, data.resize)
        settings = hashlib.sha256(augment.encode()).hexdigest()[:16]
        own = [PLAIN, *(f"{settings}/{number}" for number in range(self.views))]
        views = {path: own if part == "train" else own[:1] for path, part in data.parts.items()}
        keys = {path: [(data.hashes[path], view) for view in views[path]] for path in views}
        found = self.store.load(encoder, [key for some in keys.values() for key in some])
        missing = {key: data.root / path for path, some in keys.items() for key in some if key not in found}
        for batch in self._compute(missing, data, encode):
            self.store.save(encoder, batch)
            found |= batch
        features = {path: torch.stack([found[key] for key in some]) for path, some in keys.items()}
        facts = {"width": next(iter(found.values())).numel(), "stored": len(found) - len(missing)}
        facts |= {"computed": len(missing), "seconds": round(time.monotonic() - started, 2)}
        log.info("Embeddings: %d were in %s, %d computed.", facts["stored"], self.store.file, facts["computed"])
        return features, facts

    def _compute(
        self,
        missing: Mapping[Key, Path],
        data: HistologyDataModule,
        encode: nn.Module,
    ) -> Iterator[dict[Key, Tensor]]:
        if not missing:
            return
        encode.eval()
        device = next(encode.parameters()).device
        views = _Views(list(missing.items()), data.image_size, data.resize, data.augment)
        loader = DataLoader(
            views, batch_size=BATCH, num_workers=data.num_workers, collate_fn=_collate, worker_init_fn=die_with_parent
        )
        for keys, images in tqdm(loader, desc="Embedding", unit="batch"):
            with torch.inference_mode():
                features = encode(images.to(device)).float().cpu()
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


def fingerprint(encode: nn.Module, spec: Mapping[str, Any], image_size: int, resize: str) -> str:
    """Tell an encoder by what decides its features: weights, what built it, how tiles come to it, the code's version.

    Args:
        encode: The encoder with what stands before it.
        spec: What built its network.
        image_size: Side of its input in pixels.
        resize: How tiles come to that size.

    Returns:
        A hash of 64 hexadecimal digits.
    """
    facts = [dict(spec), image_size, resize, RECIPE, PIL.__version__]
    hashed = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, weight in encode.state_dict().items():
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
