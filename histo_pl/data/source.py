"""A data set as its owner keeps it: a root folder or zip file, with or without tables, to a list of tiles."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from histo_pl.data.classes import CLASSES, ClassChoice, Classes
from histo_pl.data.groups import apply_group_file
from histo_pl.data.layout import ClassFolders, FoundFile, Listing, list_root, read_folders
from histo_pl.data.selection import as_list, path_filter, unmatched_patterns
from histo_pl.data.table import read_cases, read_labels
from histo_pl.data.tile import Tile, case_of
from histo_pl.errors import UserError
from histo_pl.tables import describe_some

CLASS_FOLDER = "class folder"  # the column of the folder among several of one class
MAGNIFICATION = "magnification"  # the column that data.magnification chooses by
ALL, ASK = "all", "ask"


@dataclass(frozen=True)
class TileSet:
    """The tiles of a data set.

    Attributes:
        root: The folder that the tiles' paths are relative to.
        tiles: The tiles.
        loose: Images in no class folder; their `class_name` is empty.
        others: Paths of the visible files that are no images.
        left_out: Number of images that the user's choice leaves out: by their path, their magnification or their class.
        classes: The two classes; None where they were not asked for.
        unmatched: Patterns of include and exclude that match no image.
    """

    root: Path
    tiles: tuple[Tile, ...]
    loose: tuple[Tile, ...]
    others: tuple[str, ...]
    left_out: int
    classes: Classes | None
    unmatched: tuple[str, ...] = ()

    @property
    def is_published(self) -> bool:
        """True if the data set comes with splits of its own."""
        return any(tile.published_split for tile in self.tiles)


@dataclass(frozen=True)
class TileSource:
    """Source of tiles, classes and cases: keys of `conf/data/folder.yaml` and `table.yaml`.

    Attributes:
        root: The folder, or a zip file of it, which is unpacked beside itself once.
        include: A pattern, or several, of which a tile's path must match one, such as `**/200X/**`; None: all do.
        exclude: A pattern, or several, of which a tile's path must match none.
        positive_class: The class folders or labels that mean malignant; None: found by name.
        negative_class: Those that mean benign; None: all others.
        ignore_class: Those whose tiles are left out.
        table: A table of labels instead of class folders, see `table.read_labels`.
        table_columns: Its columns' own names.
        suffix: Appended to the table's paths that lack it.
        group_regex: Finds the case in a tile's path, see `tile.case_of`.
        cases_file: A table of cases, see `table.read_cases`.
        groups_file: Further groups that no split may divide, see `groups.apply_group_file`.
        columns: Further properties of a tile by name: expressions that find them in a path, as `group_regex` does.
        magnification: A value of the column magnification whose tiles are taken; `all`; `ask`: refuse where there are
            several; None: no choice.
    """

    root: str | Path
    include: object = None
    exclude: object = None
    positive_class: object = None
    negative_class: object = None
    ignore_class: object = None
    table: str | Path | None = None
    table_columns: Mapping[str, str | None] | None = None
    suffix: str | None = None
    group_regex: str | None = None
    cases_file: str | Path | None = None
    groups_file: str | Path | None = None
    columns: Mapping[str, str] | None = None
    magnification: str | int | None = None

    def read(self) -> TileSet:
        """Find the tiles of two classes.

        Returns:
            The tiles.

        Raises:
            UserError: The root, a table, the classes or the cases are not as expected.
        """
        found = self.read_any()
        self._check_patterns(found)
        counts = Counter(tile.class_name for tile in found.tiles)
        names = sorted(counts)
        if self.table is not None and len(names) > CLASSES and self.negative_class is None:
            listed = ", ".join(f"{name} ({counts[name]} tiles)" for name in names)
            raise UserError(
                f"The table has {len(names)} labels. Say of each what it means, as one may be misspelt: "
                f"data.positive_class=[...], data.negative_class=[...] and data.ignore_class=[...]. Received: {listed}"
            )
        if len(names) < CLASSES:
            raise _no_classes(found, names)
        classes = ClassChoice(self.positive_class, self.negative_class, self.ignore_class).resolve(names)
        kept = [tile for tile in found.tiles if tile.class_name in classes.is_positive]
        several = len(classes.is_positive) > CLASSES
        tiles = [_in_class(tile, classes, several) for tile in kept]
        if self.groups_file is not None:
            tiles = apply_group_file(tiles, Path(self.groups_file), found.root)
        left_out = found.left_out + len(found.tiles) - len(kept)
        return replace(found, tiles=tuple(tiles), left_out=left_out, classes=classes)

    def read_any(self) -> TileSet:
        """Find the tiles of any number of classes, each with the name of its own folder or label.

        Returns:
            The tiles.

        Raises:
            UserError: The root, a table or the cases are not as expected.
        """
        listing = list_root(Path(self.root), path_filter(self.include, self.exclude))
        if self.table is None:
            files = read_folders(listing, as_list(self.positive_class))
            tiles, loose = self._from_folders(listing, files)
        else:
            tiles, loose = read_labels(Path(self.table), listing, self.table_columns, self.suffix), []
        tiles = self._with_columns(self._with_cases(tiles))
        kept = self._of_magnification(tiles)
        left_out = len(listing.excluded) + len(tiles) - len(kept)
        unmatched = unmatched_patterns([*as_list(self.include), *as_list(self.exclude)], listing.all_images)
        return TileSet(listing.root, tuple(kept), tuple(loose), listing.others, left_out, None, tuple(unmatched))

    def _check_patterns(self, found: TileSet) -> None:
        """Refuse patterns that match no image and so are probably misspelt."""
        if found.unmatched:
            raise UserError(
                f"A pattern of data.include or data.exclude matches no image. Expected one of paths below "
                f"{found.root}, in which * is anything but a slash and ** is anything, such as '**/*_bad.png'. "
                f"Received: {found.unmatched[0]}"
            )

    def _from_folders(self, listing: Listing, files: Sequence[FoundFile]) -> tuple[list[Tile], list[Tile]]:
        """Make tiles of the files in class folders, and loose ones of the others."""
        in_class = [file for file in files if file.folder]
        folders = ClassFolders(listing.root, in_class)
        tiles = [
            Tile(file.path, folders.classes[index], file.patient, "", file.split)
            for file, (_, index) in zip(in_class, folders.samples, strict=True)
        ]
        return tiles, [Tile(file.path, "", "", "", file.split) for file in files if not file.folder]

    def _with_cases(self, tiles: Sequence[Tile]) -> list[Tile]:
        """Fill in the cases from the one source that is chosen."""
        in_table = self.table is not None and any(tile.case for tile in tiles)
        sources = {
            "a case column of data.table": in_table,
            "data.cases_file": self.cases_file is not None,
            "data.group_regex": self.group_regex is not None,
        }
        chosen = [name for name, is_chosen in sources.items() if is_chosen]
        if len(chosen) > 1:
            raise UserError(
                f"The cases are given twice. Expected one of a case column of the table, data.cases_file and "
                f"data.group_regex (data.table_columns.case=none passes over the table's). "
                f"Received: {' and '.join(chosen)}"
            )
        if self.cases_file is not None:
            cases = read_cases(Path(self.cases_file), [tile.path for tile in tiles])
            return [replace(tile, case=cases[tile.path]) for tile in tiles]
        if self.group_regex is not None:
            return [replace(tile, case=case_of(tile.path, self.group_regex)) for tile in tiles]
        without = [tile.path for tile in tiles if not tile.case]
        if without and len(without) < len(tiles):
            raise UserError(
                f"Some tiles have a case and others none. Expected one for each. "
                f"Received: none for {describe_some(without)}"
            )
        return list(tiles)

    def _with_columns(self, tiles: Sequence[Tile]) -> list[Tile]:
        if not self.columns:
            return list(tiles)
        if not isinstance(self.columns, Mapping):
            raise UserError(
                f"data.columns names facts, each with its expression: data.columns.scanner='scan-([a-z]+)'. "
                f"Received: data.columns={self.columns}"
            )
        expressions = {name: _compile(expression) for name, expression in self.columns.items()}
        return [
            replace(tile, columns={**tile.columns, **{n: _found(e, tile.path) for n, e in expressions.items()}})
            for tile in tiles
        ]

    def _of_magnification(self, tiles: Sequence[Tile]) -> list[Tile]:
        """Take the tiles of the chosen magnification, and ask for one where several are present."""
        if self.magnification is None:
            return list(tiles)
        wanted = str(self.magnification)
        present = sorted({tile.columns.get(MAGNIFICATION, "") for tile in tiles}, key=lambda one: (len(one), one))
        if wanted == ALL or (wanted == ASK and len(present) <= 1):
            return list(tiles)
        if wanted not in present:
            choices = " or ".join(filter(None, present)) or ALL
            problem = "There are tiles of several magnifications" if wanted == ASK else "No tile has this magnification"
            raise UserError(
                f"{problem}. Say which is meant: data.magnification={choices}, or all "
                f"(data.columns.magnification finds it in a path). Received: {self.root}, "
                f"data.magnification={wanted}"
            )
        return [tile for tile in tiles if tile.columns.get(MAGNIFICATION) == wanted]


def make_source(root: str | Path, options: Mapping[str, Any]) -> TileSource:
    """Make a source of what a user chose.

    Args:
        root: The folder or zip file.
        options: Further attributes of `TileSource` by name.

    Returns:
        The source.

    Raises:
        UserError: There is no such attribute.
    """
    known = [name for name in TileSource.__dataclass_fields__ if name != "root"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        near = get_close_matches(unknown[0], known, 1)
        raise UserError(
            f"A setting of the data is unknown. Expected one of {', '.join(known)}. "
            f"Received: {unknown[0]}{f', did you mean {near[0]}?' if near else ''}"
        )
    return TileSource(root, **options)


def _in_class(tile: Tile, classes: Classes, several: bool) -> Tile:
    """Replace a folder's name by that of its class, and keep it as a column where a class has several folders."""
    columns = {CLASS_FOLDER: tile.class_name, **tile.columns} if several else tile.columns
    return replace(tile, class_name=classes.name_of(tile.class_name), columns=columns)


def _no_classes(found: TileSet, names: Sequence[str]) -> UserError:
    images = len(found.tiles) + len(found.loose)
    left_out = f", {found.left_out} left out by data.include, exclude or magnification," if found.left_out else ""
    return UserError(
        f"A folder of tiles must hold two class folders with images, such as benign and malignant, also in train and "
        f"test, or in a folder of each patient; or there is a table: data=table data.table=labels.csv. "
        f"Received: {found.root} with {images} images{left_out} and the class folders {', '.join(names) or 'none'}"
    )


def _compile(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise UserError(f"data.columns holds no valid regular expression ({error}). Received: {expression}") from error


def _found(expression: re.Pattern[str], path: str) -> str:
    match = expression.search(path)
    return (match.group(min(1, expression.groups)) or "") if match else ""
