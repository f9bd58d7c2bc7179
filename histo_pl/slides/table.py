"""Answers about a slide's tiles: written batch by batch, taken up again where a run stopped, and read as columns."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("x", "y", "width", "height", "mpp", "probability", "label", "novelty", "spread", "note")
NUMBERS = ("x", "y", "width", "height", "probability", "novelty", "spread")
PLACES = 6  # decimals of a written number: what a batch's size changes lies beyond


@dataclass(frozen=True)
class TileAnswers:
    """The answers about N tiles, as columns.

    Attributes:
        x: Left edges in pixels at full resolution, of shape (N,).
        y: Upper edges, the same.
        width: Of the tiles, the same.
        height: The same.
        probability: Of malignancy, in [0, 1], of shape (N,).
        novelty: NaN where unknown, of shape (N,).
        spread: Standard deviation between the folds; NaN of a single model; of shape (N,).
        label: Texts, of shape (N,).
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    probability: NDArray[np.float64]
    novelty: NDArray[np.float64]
    spread: NDArray[np.float64]
    label: NDArray[np.str_]

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.x)

    def count(self, label: str) -> int:
        """Return the number of tiles with a label."""
        return int((self.label == label).sum())


def read_answers(file: Path) -> TileAnswers:
    """Read a whole table.

    Args:
        file: A `tiles.csv`.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        columns = list(zip(*csv.reader(stream), strict=True))
    by_name = {name: values for name, *values in columns}
    numbers = {name: np.array([float(value or "nan") for value in by_name[name]]) for name in NUMBERS}
    places = {name: numbers[name].astype(np.int64) for name in ("x", "y", "width", "height")}
    answers = {name: numbers[name] for name in ("probability", "novelty", "spread")}
    return TileAnswers(**places, **answers, label=np.array(by_name["label"], np.str_))


@contextmanager
def open_rows(file: Path, batch_size: int) -> Iterator[tuple[int, "RowWriter"]]:
    """Open a table to append whole batches to, and take up the whole batches that are there.

    Args:
        file: The unfinished table; it stays if the run stops.
        batch_size: Rows a batch. A batch that was cut off is answered again as a whole, so that the numbers are those
            of a run that never stopped.

    Yields:
        The number of rows that are there, and a function that appends rows.
    """
    rows = _keep_batches(file, batch_size)
    with file.open("a", newline="", encoding="utf-8") as stream:
        yield rows, RowWriter(stream)


@dataclass
class RowWriter:
    """Appends rows and hands them to the system at once, so that they outlive the process."""

    stream: Any

    def write(self, rows: Iterable[Sequence[object]]) -> None:
        """Append rows in the order of `COLUMNS`, see `format_row`."""
        writer = csv.writer(self.stream, lineterminator="\n")
        writer.writerows(map(format_row, rows))
        self.stream.flush()


def format_row(row: Sequence[object]) -> list[str]:
    """Write the cells of a row: None is left empty, a float gets `PLACES` decimals."""
    return [f"{cell:.{PLACES}f}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row]


def first_row(file: Path) -> dict[str, str] | None:
    """Return the first row of a table that may be unfinished, by its columns; None where there is none."""
    if not file.exists():
        return None
    with file.open(newline="", encoding="utf-8") as stream:
        return next(csv.DictReader(stream, restval=""), None)


def _keep_batches(file: Path, batch_size: int) -> int:
    """Cut an unfinished table behind its last whole batch, or begin one; return its rows."""
    header = ",".join(COLUMNS).encode() + b"\n"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines[1:] if line.endswith(b"\n")]
    if not lines or lines[0] != header:
        file.write_bytes(header)
        return 0
    kept = len(whole) // batch_size * batch_size
    os.truncate(file, len(header) + sum(map(len, whole[:kept])))
    return kept
