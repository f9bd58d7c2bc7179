"""Tiles decoded once: kept in memory, in a file that all processes map into theirs, or on the device."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from histo_pl.errors import UserError, WriteError
from histo_pl.hardware import usable_cores
from histo_pl.images import read_tile
from histo_pl.storage import atomic_write

log = logging.getLogger(__name__)

CACHES = ("none", "ram", "disk", "device")
CHUNK = 128  # tiles decoded at a time: 100 MB at 512 pixels


def check_cache(cache: str) -> None:
    """Refuse an unknown cache.

    Args:
        cache: The name of a cache.

    Raises:
        UserError: It is none of `CACHES`.
    """
    if cache not in CACHES:
        raise UserError(f"data.cache is unknown. Expected one of {', '.join(CACHES)}. Received: {cache}")


class MappedTiles:
    """A file of tiles, mapped into memory: the operating system reads it as needed, and all processes share the pages.

    Args:
        file: Bytes of N tiles of 3 x size x size.
        size: Side of a tile in pixels.
    """

    def __init__(self, file: Path, size: int) -> None:
        self.file = file
        self.size = size
        count = file.stat().st_size // (3 * size**2)
        self._pixels = np.memmap(file, np.uint8, "r", shape=(count, 3, size, size))

    def __getitem__(self, index: int) -> Tensor:
        """Return a copy of a tile, uint8 of shape (3, size, size)."""
        return torch.from_numpy(self._pixels[index].copy())

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process by the file's name: its bytes are not copied."""
        return MappedTiles, (self.file, self.size)


def tiles_on_device(files: Sequence[Path], size: int, resize: str, device: str | torch.device) -> Tensor:
    """Decode tiles into a device's memory.

    Args:
        files: Image files.
        size: Side of a tile in pixels.
        resize: One of `images.RESIZES`.
        device: Such as `cpu` or `cuda:0`.

    Returns:
        uint8 of shape (N, 3, size, size).

    Raises:
        UserError: They do not fit, or a file cannot be read.
    """
    needed = len(files) * 3 * size**2
    if torch.device(device).type == "cpu" and needed > _memory():
        raise _too_large(needed, f"{_memory() / 1e9:.1f} GB of memory are installed")
    try:
        pixels = torch.empty((len(files), 3, size, size), dtype=torch.uint8, device=device)
    except RuntimeError as error:  # of which torch.OutOfMemoryError is one
        raise _too_large(needed, f"not free on {device}") from error
    for start, some in decode(files, size, resize):
        pixels[start : start + len(some)] = some
    return pixels


def tiles_on_disk(files: Sequence[Path], size: int, resize: str, folder: Path) -> MappedTiles:
    """Decode tiles into a file, once for all runs to come.

    The file is named by each tile's path, size and time of change, and by the decoder's version: where one changed, all
    tiles are decoded again, and the file that is out of date makes room. It is renamed into place when it is whole, so
    a run that was killed leaves none that could be mistaken for it; of several processes one decodes, and the others
    wait.

    Args:
        files: Image files.
        size: Side of a tile in pixels.
        resize: One of `images.RESIZES`.
        folder: The folder of the file; made if it is not there.

    Returns:
        The tiles.

    Raises:
        UserError: The disk is too small, the folder cannot be written, or a file cannot be read.
    """
    prefix = _hash([os.path.commonpath([file.parent.absolute() for file in files]), size, resize])
    stats = [[str(file.absolute()), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]
    kept = folder / f"{prefix}-{_hash([PIL.__version__, stats])}.tiles"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{prefix}.lock"):
            if kept.exists():
                log.info("Tiles: %d found decoded in %s.", len(files), kept)
            else:
                for outdated in (*folder.glob(f"{prefix}-*"), *folder.glob(f".{prefix}-*")):  # or half written
                    with suppress(PermissionError):  # Windows keeps a file that another run has mapped
                        outdated.unlink()
                _write(kept, files, size, resize)
            return MappedTiles(kept, size)
    except (OSError, WriteError) as error:
        raise UserError(
            f"The decoded tiles cannot be kept ({error}). Name a folder that can be written, on a disk with room, by "
            f"data.cache_dir, or take data.cache=none. Received: {folder}"
        ) from error


def decode(files: Sequence[Path], size: int, resize: str) -> Iterator[tuple[int, Tensor]]:
    """Decode tiles on all cores, some at a time.

    Args:
        files: Image files.
        size: Side of a tile in pixels.
        resize: One of `images.RESIZES`.

    Yields:
        The place of the first, and uint8 of shape (up to `CHUNK`, 3, size, size).
    """
    with ThreadPoolExecutor(usable_cores()) as pool, tqdm(total=len(files), desc="Decoding", disable=None) as bar:
        for start in range(0, len(files), CHUNK):
            some = files[start : start + CHUNK]
            yield start, torch.stack(list(pool.map(lambda file: read_tile(file, size, resize), some)))
            bar.update(len(some))


def _write(kept: Path, files: Sequence[Path], size: int, resize: str) -> None:
    needed, free = len(files) * 3 * size**2, shutil.disk_usage(kept.parent).free
    if needed > free:
        raise _too_large(needed, f"{free / 1e9:.1f} GB are free in {kept.parent}")
    with atomic_write(kept) as unfinished, unfinished.open("wb") as stream:
        for _, some in decode(files, size, resize):
            stream.write(some.numpy().data)
    log.info("Tiles: %d decoded into %s (%.0f MB), for all runs to come.", len(files), kept, needed / 1e6)


def _hash(values: Any) -> str:  # noqa: ANN401
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _memory() -> float:
    """Bytes of memory installed, where the system says it."""
    if not hasattr(os, "sysconf"):
        return float("inf")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _too_large(needed: int, there: str) -> UserError:
    return UserError(
        f"The decoded tiles do not fit. Expected room for {needed / 1e9:.1f} GB. Take data.cache=disk with "
        f"data.cache_dir on a larger disk, data.cache=none, or a smaller data.image_size. Received: {there}"
    )


def check_device_cache(cache: str, per_tile: bool, num_workers: int | None, pin_memory: bool | None) -> None:
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
