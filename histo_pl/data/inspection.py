"""Inspection of image files: each is read and decoded once, before it is trusted, and remembered while it is unchanged.

One reading gives all that is to be known of a file before a training: its hash, whether it can be decoded, its size,
its colours, and how much of it is tissue.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from histo_pl.appearance import COLOURS, LEAST_TISSUE, SAMPLES, describe_colours, is_grey, sample_pixels, tissue_share
from histo_pl.data.hashing import content_hash
from histo_pl.errors import ImageError
from histo_pl.hardware import usable_cores
from histo_pl.images import decode_some, read_content

log = logging.getLogger(__name__)

VERSION = 2  # of what is remembered: raise it when a number changes
TABLE = f"files_{VERSION}"  # an older version's table stays as it is
CHUNK = 64  # files a task
SAVED_AT_ONCE = 4096  # files
PATIENCE = 60.0  # seconds to wait for another process that writes
QUIET = 2.0  # seconds without a progress bar

Row = tuple[str, float, bool, bytes, int, int]  # hash, share of tissue, grey, colours, width, height


@dataclass(frozen=True)
class Inspections:
    """All that inspections found, by tile.

    Attributes:
        hashes: The `content_hash` of each readable file, by its path.
        errors: The reason why each of the other files cannot be read, by its path.
        index: The row of each readable file in the arrays below.
        tissue: Share of each tile that is tissue, of shape (N,).
        grey: True for a tile without colour, of shape (N,).
        colours: See `appearance.describe_colours`, of shape (N, 21).
        sizes: Width and height in pixels, of shape (N, 2).
    """

    hashes: dict[str, str]
    errors: dict[str, str]
    index: dict[str, int]
    tissue: NDArray[np.float32]
    grey: NDArray[np.bool_]
    colours: NDArray[np.float64]
    sizes: NDArray[np.int64]

    def is_blank(self, path: str) -> bool:
        """Return whether a tile holds hardly any tissue."""
        return bool(self.tissue[self.index[path]] < LEAST_TISSUE)

    def is_grey(self, path: str) -> bool:
        """Return whether a tile has no colour; one that is blank does not count."""
        return bool(self.grey[self.index[path]]) and not self.is_blank(path)

    def colours_of(self, paths: Sequence[str]) -> NDArray[np.float64]:
        """Return the colours of some tiles, of shape (N, 21), see `appearance.describe_colours`."""
        return self.colours[[self.index[path] for path in paths]]

    def sizes_of(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """Return the width and height of some tiles in pixels, of shape (N, 2)."""
        return self.sizes[[self.index[path] for path in paths]]


def inspect_files(root: Path, paths: Sequence[str], store: Path | None = None) -> Inspections:
    """Inspect files in parallel, with a progress bar if it takes more than two seconds.

    Args:
        root: The folder that the paths are relative to.
        paths: N image files.
        store: A database that remembers files by path, size, times and inode; made if it is not there. None: nothing is
            remembered.

    Returns:
        The findings; nothing is raised for a file that cannot be read.
    """
    memory = None if store is None else _Memory(store, root)
    stamps = {path: stamp for path in paths if memory and (stamp := _stamp(root / path))}
    rows = dict(memory.load(stamps)) if memory else {}
    errors: dict[str, str] = {}
    unsaved: dict[str, Row] = {}
    missing = [path for path in paths if path not in rows]
    with tqdm(total=len(missing), desc="Checking tiles", unit="tile", delay=QUIET) as bar:
        for results in _inspect_in_parallel(root, missing):
            bar.update(len(results))
            errors |= {path: result for path, result in results if isinstance(result, str)}
            unsaved |= {path: result for path, result in results if not isinstance(result, str)}
            if memory and len(unsaved) >= SAVED_AT_ONCE:
                memory.save(unsaved, stamps)
                rows |= unsaved
                unsaved = {}
    if memory and unsaved:
        memory.save(unsaved, stamps)
    rows |= unsaved
    readable = [path for path in paths if path in rows]
    return Inspections(
        hashes={path: rows[path][0] for path in readable},
        errors=errors,
        index={path: index for index, path in enumerate(readable)},
        tissue=np.array([rows[path][1] for path in readable], np.float32),
        grey=np.array([rows[path][2] for path in readable], bool),
        colours=np.frombuffer(b"".join(rows[path][3] for path in readable)).reshape(-1, COLOURS),
        sizes=np.array([rows[path][4:] for path in readable], np.int64).reshape(-1, 2),
    )


def _inspect_in_parallel(root: Path, paths: Sequence[str]) -> Iterator[list[tuple[str, Row | str]]]:
    def inspect_chunk(start: int) -> list[tuple[str, Row | str]]:
        return [(path, _inspect(root / path)) for path in paths[start : start + CHUNK]]

    with ThreadPoolExecutor(usable_cores()) as pool:
        yield from pool.map(inspect_chunk, range(0, len(paths), CHUNK))


def _inspect(file: Path) -> Row | str:
    """Read one file; return what is wrong with it where it cannot be read."""
    try:
        content = read_content(file)
        pixels, size = decode_some(content, file, SAMPLES)
    except ImageError as error:
        return str(error)
    sample = sample_pixels(pixels)
    colours = describe_colours(sample).tobytes()
    return content_hash(content), tissue_share(sample), is_grey(sample), colours, *size


def _stamp(file: Path) -> str | None:
    """Identify a file's state without reading it; None if it is not there."""
    try:
        state = os.stat(file)  # noqa: PTH116
    except OSError:
        return None
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"


class _Memory:
    """Findings on disk. Nothing depends on them: a database that cannot be used is said once and passed over."""

    def __init__(self, file: Path, root: Path) -> None:
        self.file, self.root = file, os.fsencode(root.resolve())
        self.usable = True

    def load(self, stamps: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
        """Return the findings of the files that have not changed since."""
        for path, stamp, *row in self._run(self._select):
            name = os.fsdecode(path)
            if stamps.get(name) == stamp:
                yield name, (row[0], row[1], bool(row[2]), *row[3:])

    def save(self, rows: Mapping[str, Row], stamps: Mapping[str, str]) -> None:
        """Remember findings."""
        values = [(self.root, os.fsencode(path), stamps[path], *row) for path, row in rows.items() if path in stamps]
        self._run(lambda database: database.executemany(f"REPLACE INTO {TABLE} VALUES ({', '.join('?' * 9)})", values))

    def _select(self, database: sqlite3.Connection) -> list[tuple]:
        columns = "path, stamp, hash, tissue, grey, colours, width, height"
        return database.execute(f"SELECT {columns} FROM {TABLE} WHERE root = ?", (self.root,)).fetchall()

    def _run(self, query: Callable[[sqlite3.Connection], Iterable[tuple]]) -> list[tuple]:
        if not self.usable:
            return []
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.file, timeout=PATIENCE)) as database, database:
                database.execute(
                    f"CREATE TABLE IF NOT EXISTS {TABLE} (root BLOB, path BLOB, stamp TEXT, hash TEXT, tissue REAL, "
                    "grey INTEGER, colours BLOB, width INTEGER, height INTEGER, PRIMARY KEY (root, path)) WITHOUT ROWID"
                )
                return list(query(database))
        except (sqlite3.Error, OSError) as error:
            self.usable = False
            log.warning(
                "The check of the tiles cannot be remembered in %s (%s): it is repeated next time.", self.file, error
            )
            return []
