"""Shards of a prediction: the files of one command divided among many, and their answers joined again."""

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histo_pl.errors import UserError
from histo_pl.inference.folder import RUN
from histo_pl.storage import atomic_write_text

DONE = "shard.json"  # in a finished shard's folder
TABLES: Mapping[str, str] = {"predictions.csv": "file", "slides.csv": "slide"}  # and the column that names a row
FORM = re.compile(r"(\d+)/(\d+)")
FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of the files.

    Attributes:
        number: From 1 to `count`.
        count: Number of shards.
    """

    number: int
    count: int

    @classmethod
    def of(cls, text: str | None) -> "Shard | None":
        """Read a shard as it is typed, such as 3/16; None of nothing.

        Raises:
            UserError: It is no such pair, or out of range.
        """
        if text is None:
            return None
        found = FORM.fullmatch(str(text))
        shard = cls(int(found[1]), int(found[2])) if found else None
        if shard is None or not 1 <= shard.number <= shard.count:
            raise UserError(f"shard is not as expected. Expected 1/16 to 16/16, for example. Received: shard={text}")
        return shard

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"shard-{self.number}-of-{self.count}"

    def holds(self, name: str) -> bool:
        """Tell if a file belongs to this shard, by the hash of its name, which is the same on every machine."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1


def is_done(folder: Path) -> bool:
    """Return whether the shard of a folder has been answered whole."""
    return (folder / DONE).exists()


def mark_done(folder: Path, names: Mapping[Path, str], chosen: Sequence[Path], errors: int) -> None:
    """Note that a shard has been answered whole.

    Args:
        folder: The shard's.
        names: Of all files of the command, in order, see `folder.names_of`.
        chosen: The shard's files.
        errors: Number of files without an answer.
    """
    place = {file: number for number, file in enumerate(names)}
    files = {str(file): [names[file], place[file]] for file in chosen}
    with atomic_write_text(folder / DONE) as stream:
        stream.write(json.dumps({"of": len(names), "files": files, "errors": errors}) + "\n")


def merge(folder: Path) -> str:
    """Join the tables of all shards, in the order of one run, and write them beside the shards' folders.

    Args:
        folder: The `out` of the shards.

    Returns:
        A summary for a person.

    Raises:
        UserError: A shard is missing or unfinished, or they do not belong together.
    """
    shards = _find_shards(folder)
    notes = [json.loads((one / DONE).read_text(encoding="utf-8")) for one in shards]
    named = [entry for note in notes for entry in note["files"].values()]
    if {note["of"] for note in notes} != {len(named)} or sorted(place for _, place in named) != list(range(len(named))):
        raise UserError(
            f"These shards were not made of the same files: some came or went in between. Expected the same folder for "
            f"each; run those anew that saw another. Received: {folder}, {_describe_counts(shards, notes)}"
        )
    by_file = {file: place for note in notes for file, (_, place) in note["files"].items()}
    places = by_file | dict(named)
    written = [name for name, column in TABLES.items() if _join(shards, name, column, places, folder)]
    errors = sum(note["errors"] for note in notes)
    return (
        f"{len(shards)} shards with {len(named)} files joined: {', '.join(str(folder / name) for name in written)}"
        f"{f'; {errors} files have no answer' if errors else ''}."
    )


def _find_shards(folder: Path) -> list[Path]:
    """List the folders of all shards in order, each finished, of one model and the same settings."""
    found = {path: FOLDER.fullmatch(path.name) for path in folder.glob("shard-*")}
    numbers = {path: (int(match[1]), int(match[2])) for path, match in found.items() if match}
    counts = {count for _, count in numbers.values()}
    if len(counts) != 1:
        raise UserError(
            f"There are no shards of one division. Expected the out of predict.py shard=1/N and its like. "
            f"Received: {folder} with {', '.join(sorted(path.name for path in numbers)) or 'none'}"
        )
    (count,) = counts
    done = {number: path for path, (number, _) in numbers.items() if is_done(path)}
    missing = [number for number in range(1, count + 1) if number not in done]
    if missing:
        raise UserError(
            f"{len(missing)} of {count} shards are missing or unfinished: {', '.join(map(str, missing))}. Run them: "
            f"the same line with shard={missing[0]}/{count}. Received: {folder}"
        )
    shards = [done[number] for number in range(1, count + 1)]
    runs = [json.loads((path / RUN).read_text(encoding="utf-8")) for path in shards]
    for path, run in zip(shards, runs, strict=True):
        if any(run[key] != runs[0][key] for key in ("sha256", "settings")):
            raise UserError(
                f"These shards are of different models or settings. Expected one model and one line but for the shard. "
                f"Received: {path} beside {shards[0]}"
            )
    return shards


def _join(shards: Sequence[Path], name: str, column: str, places: Mapping[str, int], folder: Path) -> bool:
    """Join one table of all shards; return whether any has it."""
    tables = [shard / name for shard in shards if (shard / name).exists()]
    rows: list[dict[str, Any]] = []
    header: Sequence[str] = ()
    for table in tables:
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            rows += reader
            header = reader.fieldnames or ()
    if not tables:
        return False
    with atomic_write_text(folder / name) as stream:
        writer = csv.DictWriter(stream, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: places[row[column]]))
    return True


def _describe_counts(shards: Sequence[Path], notes: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{shard.name} of {note['of']} files" for shard, note in zip(shards, notes, strict=True))
