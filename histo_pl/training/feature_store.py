"""Features of a frozen encoder on disk, shared by all runs, on one machine or on many."""

import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histo_pl.errors import UserError
from histo_pl.storage import atomic_write

Key = tuple[str, str]  # the hash of a tile's file, and the view of it


class FeatureStore:
    """Features by encoder, by the content of the tile's file and by the view of it.

    Features that are saved together are a file of their own, a shard, in the encoder's folder. It is renamed into place
    when it is whole, and never changed: any number of processes and machines may read and write at once, on a network's
    disk too and without a lock, and one that is killed leaves no shard that could be mistaken for a whole one.

    Args:
        folder: Made if it is not there.
        max_gigabytes: Its greatest size in 1e9 bytes; the shards used longest ago are dropped first.
    """

    def __init__(self, folder: str | Path, max_gigabytes: float = 4.0) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_gigabytes * 1e9

    def load(self, encoder: str, keys: Sequence[Key]) -> dict[Key, Tensor]:
        """Fetch features.

        Args:
            encoder: The encoder's `fingerprint`.
            keys: Tiles and views.

        Returns:
            Of those that are there, float32 of shape (width,) each.

        Raises:
            UserError: A shard is damaged, or the folder cannot be read.
        """
        wanted = set(keys)
        found: dict[Key, Tensor] = {}
        for shard in self._shards(encoder):
            stored = {key: value for key, value in self._read(shard).items() if key in wanted}
            if stored:
                found |= stored
                with suppress(OSError):  # another process has dropped it, or owns it
                    os.utime(shard)
        return found

    def save(self, encoder: str, features: Mapping[Key, Tensor]) -> None:
        """Keep features as one shard, and drop the oldest shards beyond the greatest size.

        Args:
            encoder: The encoder's `fingerprint`.
            features: float32 of shape (width,) by tile and view.

        Raises:
            UserError: The folder cannot be written.
        """
        shard = self.folder / encoder / f"{uuid.uuid4().hex}.npz"
        try:
            shard.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error, self.folder) from error
        keys = np.array(list(features), np.bytes_)
        with atomic_write(shard) as unfinished:
            np.savez(unfinished, keys=keys, features=torch.stack(list(features.values())).numpy())
        self._drop_oldest()

    def _shards(self, encoder: str) -> Iterator[Path]:
        folder = self.folder / encoder
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208  (a folder that is not there must not be empty)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable(error, folder) from error
        yield from (folder / name for name in names if not name.startswith("."))

    def _read(self, shard: Path) -> dict[Key, Tensor]:
        try:
            with np.load(shard, allow_pickle=False) as arrays:
                keys, features = arrays["keys"].astype(np.str_).tolist(), torch.from_numpy(arrays["features"])
        except FileNotFoundError:  # another process has dropped it
            return {}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise self._unusable(error, shard) from error
        return {(tile, view): row for (tile, view), row in zip(keys, features, strict=True)}

    def _drop_oldest(self) -> None:
        states = []
        for file in self.folder.glob("*/*.npz"):  # those that a killed process left half written too
            with suppress(OSError):
                state = file.stat()
                states.append((state.st_mtime_ns, state.st_size, file))
        excess = sum(size for _, size, _ in states) - self.max_bytes
        for _, size, file in sorted(states):
            if excess <= 0:
                return
            with suppress(OSError):
                file.unlink()
            excess -= size

    def _unusable(self, error: Exception, path: Path) -> UserError:
        return UserError(
            f"The store of embeddings cannot be used ({error}). Delete it, it is only a cache, or name another folder: "
            f"embeddings.store.folder=PATH. Received: {path}"
        )
