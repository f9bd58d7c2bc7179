"""The tiles of a data set that can be used: unreadable and blank ones are said, refused or left out."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histo_pl.appearance import LEAST_TISSUE
from histo_pl.data.inspection import Inspections, inspect_files
from histo_pl.data.source import TileSet
from histo_pl.data.tile import Tile
from histo_pl.errors import UserError
from histo_pl.storage import atomic_write_text
from histo_pl.tables import describe_some

SHOWN_ERRORS = 20  # files in a message
STOP, KEEP, SKIP = "stop", "keep", "skip"


@dataclass(frozen=True)
class CheckedTiles:
    """Tiles after their files were checked.

    Attributes:
        tiles: Those that are used.
        inspections: The findings of all readable files.
        skipped: The reason why each of the others is left out, by its path.
        left_out: Number of images that the user's choice leaves out, see `TileSet`.
    """

    tiles: list[Tile]
    inspections: Inspections
    skipped: Mapping[str, str]
    left_out: int

    def counts(self) -> dict[str, int]:
        """Count the tiles that are blank or grey, and those that are left out for each reason."""
        unreadable = len(self.inspections.errors)
        return {
            "blank": sum(self.inspections.is_blank(tile.path) for tile in self.tiles),
            "grey": sum(self.inspections.is_grey(tile.path) for tile in self.tiles),
            "unreadable_skipped": unreadable,
            "blank_skipped": len(self.skipped) - unreadable,
            "left_out": self.left_out,
        }

    def median_size(self) -> list[int]:
        """Return the median width and height of the tiles' files in pixels."""
        sizes = self.inspections.sizes_of([tile.path for tile in self.tiles])
        return np.median(sizes, axis=0).round().astype(int).tolist()

    def write_skipped(self, file: Path) -> None:
        """Write the tiles that are left out, with the reasons, as CSV, if there are any.

        Args:
            file: The file to write.
        """
        if not self.skipped:
            return
        with atomic_write_text(file) as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("path", "reason"))
            writer.writerows(sorted(self.skipped.items()))


def check_tiles(found: TileSet, on_error: str, blank: str, memory: Path | None) -> CheckedTiles:
    """Read every file once, and leave out what cannot be read, and blank tiles, where the user says so.

    Args:
        found: The tiles.
        on_error: `stop` where files cannot be read, or `skip` them.
        blank: `keep` tiles with hardly any tissue, or `skip` them.
        memory: A database that remembers checked files, see `inspection.inspect_files`; None: none.

    Returns:
        The tiles that are used.

    Raises:
        UserError: Files cannot be read and are not to be left out.
    """
    for key, value, otherwise in (("on_error", on_error, STOP), ("blank", blank, KEEP)):
        if value not in (otherwise, SKIP):
            raise UserError(f"data.{key} is unknown. Expected {otherwise} or {SKIP}. Received: {value}")
    inspections = inspect_files(found.root, [tile.path for tile in found.tiles], memory)
    skipped = dict(inspections.errors)
    if skipped and on_error == STOP:
        raise UserError(
            f"Files cannot be read. Fix them or take them out of the folder; or leave them out by data.on_error=skip. "
            f"Received: {found.root} with {describe_some(sorted(skipped), SHOWN_ERRORS)} "
            f"(the first: {skipped[min(skipped)].partition('. ')[0]})"
        )
    if blank == SKIP:
        empty = [tile.path for tile in found.tiles if tile.path not in skipped and inspections.is_blank(tile.path)]
        skipped |= dict.fromkeys(empty, f"hardly any tissue (less than {LEAST_TISSUE:.0%} of the tile)")
    tiles = [tile for tile in found.tiles if tile.path not in skipped]
    return CheckedTiles(tiles, inspections, skipped, found.left_out)


def describe_counts(counts: Mapping[str, int], tiles: int) -> list[str]:
    """Write what a check found, for people.

    Args:
        counts: As `CheckedTiles.counts` returns them.
        tiles: Number of tiles that are used.

    Returns:
        Sentences; empty if there is nothing to say.
    """
    sentences: Sequence[tuple[str, str]] = (
        (
            "unreadable_skipped",
            "Left out, as they cannot be read (data.on_error=skip): {}; skipped.csv lists them.",
        ),
        ("blank_skipped", "Left out, with hardly any tissue (data.blank=skip): {}; skipped.csv lists them."),
        ("left_out", "Left out by data.include, exclude, magnification or ignore_class: {}."),
        ("blank", "Tiles with hardly any tissue: {} of {tiles} (data.blank=skip leaves them out)."),
        ("grey", "Grey tiles, without any colour: {} of {tiles}."),
    )
    return [text.format(counts[key], tiles=tiles) for key, text in sentences if counts.get(key)]
