"""Which tile belongs to training, validation and test: pure, seeded, the same on every machine."""

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from histo_pl.data.table import read_table
from histo_pl.errors import UserError
from histo_pl.storage import replacing_text

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
COLUMNS = ("path", "class", "case", "split")


@dataclass(frozen=True)
class Tile:
    """One image file of a data set.

    Attributes:
        path: Relative to the data set's root, with forward slashes.
        class_name: The class folder it lies in.
        case: The patient it was taken from, empty where that is unknown.
        kept_with: Names what a groups file joins it with; empty where nothing does.
    """

    path: str
    class_name: str
    case: str = ""
    kept_with: str = ""

    @property
    def group(self) -> str:
        """What must not be torn apart: a joined group, else the case, else the tile itself."""
        return self.kept_with or self.case or self.path


def case_of(path: str, group_regex: str | None, key: str = "data.group_regex") -> str:
    r"""Read the case out of a tile's path.

    Args:
        path: Relative to the root, with forward slashes.
        group_regex: Searched in `path`; its first group is the case, or the whole match if it has none.
            None: cases are unknown.
        key: What the user calls the expression, for errors.

    Returns:
        The case, empty where cases are unknown.

    Raises:
        UserError: The expression is not valid or does not match.
    """
    if group_regex is None:
        return ""
    try:
        match = re.search(group_regex, path)
    except re.error as error:
        raise UserError(f"{key} is no valid regular expression ({error}). Received: {group_regex}") from error
    case = match and match.group(min(1, match.re.groups))
    if not case:
        raise UserError(
            f"{key} finds no case in a tile's path. Expected one in every path. Received: {group_regex} and {path}"
        )
    return case


def hold_out(tiles: Sequence[Tile], fraction: float, seed: int, name: str) -> set[str]:
    """Choose the groups of tiles to put aside, stratified by class.

    Groups come in the order of a hash of seed and group, so neither the machine nor a library's random
    numbers matter. One is put aside if that brings the classes' shares nearer to `fraction`.

    Args:
        tiles: The tiles to choose from.
        fraction: Share of each class's tiles to put aside, in (0, 1).
        seed: Any integer.
        name: What the held-out tiles are for; two names choose independently.

    Returns:
        The chosen values of `Tile.group`: at least one for each class, and never all of a class's.

    Raises:
        UserError: A class has too few groups.
    """
    sizes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for tile in tiles:
        sizes[tile.group][tile.class_name] += 1
    totals = sum(sizes.values(), Counter[str]())
    missing = {class_name: fraction * count for class_name, count in totals.items()}
    chosen: set[str] = set()

    def put_aside(group: str) -> None:
        chosen.add(group)
        for class_name, count in sizes[group].items():
            missing[class_name] -= count

    def gain(group: str) -> float:
        """How much nearer the classes' shares come to the fraction."""
        return sum(
            (abs(missing[name]) - abs(missing[name] - count)) / totals[name] for name, count in sizes[group].items()
        )

    order = sorted(sizes, key=lambda group: stable_hash(f"{seed}:{name}:{group}"))
    for group in order:
        if gain(group) > 1e-9:  # noqa: PLR2004  (0.2 * 10 is not quite 2)
            put_aside(group)
    for class_name in totals:
        if not any(sizes[group][class_name] for group in chosen):
            put_aside(min((g for g in order if sizes[g][class_name]), key=lambda g: sizes[g][class_name]))
    _check_remainder(sizes, chosen, totals)
    return chosen


def _check_remainder(sizes: Mapping[str, Counter[str]], chosen: set[str], totals: Iterable[str]) -> None:
    for class_name in totals:
        if not any(count[class_name] for group, count in sizes.items() if group not in chosen):
            groups = sum(bool(count[class_name]) for count in sizes.values())
            raise UserError(
                f"There are too few tiles or cases to split. Expected at least one of each class for each of "
                f"training, validation and test. Received: {groups} left of class {class_name}"
            )


def fold_groups(tiles: Sequence[Tile], folds: int, fold: int, seed: int) -> set[str]:
    """Choose the groups of one fold of a cross-validation, stratified by class.

    Large groups are dealt out first, each to the fold in which its class is rarest so far (as scikit-learn's
    `StratifiedGroupKFold`); the order of equally large ones is that of a hash of seed and group.

    Args:
        tiles: The tiles to deal out.
        folds: Their number, at least 2.
        fold: Which one, from 0.
        seed: Any integer.

    Returns:
        The fold's values of `Tile.group`.

    Raises:
        UserError: A number is out of range, or a class has fewer groups than there are folds.
    """
    if folds < 2 or not 0 <= fold < folds:  # noqa: PLR2004
        raise UserError(
            f"data.folds or data.fold is out of range. Expected at least 2 folds, and a fold from 0 to folds - 1. "
            f"Received: data.folds={folds} data.fold={fold}"
        )
    sizes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for tile in tiles:
        sizes[tile.group][tile.class_name] += 1
    totals = sum(sizes.values(), Counter[str]())
    for class_name in totals:
        groups = sum(bool(count[class_name]) for count in sizes.values())
        if groups < folds:
            raise UserError(
                f"There are too few tiles or cases for so many folds. Expected at least {folds} of each class. "
                f"Received: {groups} of class {class_name}"
            )
    dealt = [Counter[str]() for _ in range(folds)]
    mine: set[str] = set()
    for group in sorted(sizes, key=lambda name: (-sizes[name].total(), stable_hash(f"{seed}:fold:{name}"))):
        place = min(range(folds), key=lambda k: sum(dealt[k][c] * n / totals[c] for c, n in sizes[group].items()))
        dealt[place] += sizes[group]
        if place == fold:
            mine.add(group)
    return mine


def split_tiles(
    tiles: Sequence[Tile],
    *,
    val_fraction: float,
    test_fraction: float | None,
    seed: int,
    folds: int | None = None,
    fold: int = 0,
) -> dict[str, Part]:
    """Give every tile its part: first the test tiles, then a share of the rest for validation.

    Args:
        tiles: All tiles.
        val_fraction: Share of the tiles left after the test set, in (0, 1).
        test_fraction: Share of all tiles, in (0, 1); None leaves no tile to the test.
        seed: Any integer.
        folds: Number of folds, of which one tests instead of `test_fraction`; None: no folds.
        fold: Which one tests, from 0.

    Returns:
        The part of each path.

    Raises:
        UserError: A number is out of range, or a class has too few tiles or cases.
    """
    _check_fraction("data.val_fraction", val_fraction)
    test: set[str] = set()
    if folds is not None:
        test = fold_groups(tiles, folds, fold, seed)
    elif test_fraction is not None:
        _check_fraction("data.test_fraction", test_fraction)
        test = hold_out(tiles, test_fraction, seed, "test")
    rest = [tile for tile in tiles if tile.group not in test]
    val = hold_out(rest, val_fraction, seed, "val")

    def part(group: str) -> Part:
        return "test" if group in test else "val" if group in val else "train"

    return {tile.path: part(tile.group) for tile in tiles}


def check_no_overlap(tiles: Iterable[Tile], parts: Mapping[str, Part]) -> None:
    """Refuse a split that has one case on two sides.

    Args:
        tiles: All tiles.
        parts: The part of each path.

    Raises:
        UserError: Names a case, its parts, and how many cases are torn apart.
    """
    seen: defaultdict[str, set[Part]] = defaultdict(set)
    for tile in tiles:
        seen[tile.group].add(parts[tile.path])
    torn = sorted(group for group, where in seen.items() if len(where) > 1)
    if torn:
        raise UserError(
            f"The split has tiles of one case, or of one group, on two sides, which inflates every result. "
            f"Expected each in one part. Received: {torn[0]} in {', '.join(sorted(seen[torn[0]]))} "
            f"({len(torn)} such cases or groups)"
        )


def write_split(file: Path, tiles: Iterable[Tile], parts: Mapping[str, Part]) -> None:
    """Write a split as CSV with the columns path, class, case and split, ordered by path.

    Args:
        file: Where to write.
        tiles: All tiles.
        parts: The part of each path.
    """
    with replacing_text(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for tile in sorted(tiles, key=lambda tile: tile.path):
            writer.writerow((tile.path, tile.class_name, tile.case, parts[tile.path]))


def read_split(file: Path, tiles: Iterable[Tile]) -> dict[str, Part]:
    """Read a split that `write_split`, or a person, wrote.

    Args:
        file: CSV with at least the columns path and split (train, val or test).
        tiles: The tiles found on disk; the file must name each of them, and no others.

    Returns:
        The part of each path.

    Raises:
        UserError: The file is missing or malformed, or it and the folder differ.
    """
    parts: dict[str, Part] = {}
    for path, part in _rows(file):
        if parts.setdefault(path, part) != part:
            raise UserError(f"data.split_file gives a tile two parts. Expected one. Received: {path} in {file}")
    difference = describe_difference(parts.keys(), {tile.path for tile in tiles})
    if difference:
        raise UserError(
            f"data.split_file does not fit the folder: {difference}. Mend the file or the folder, or split afresh "
            f"without it. Received: {file}"
        )
    return parts


def describe_difference(split: Set[str], folder: Set[str]) -> str:
    """Tell which tiles a split and a folder do not share.

    Args:
        split: The paths of the split.
        folder: Those on disk.

    Returns:
        Such as `2 tiles of the folder are not in the split, such as a.png`; empty if they are the same.
    """
    sides = ((folder - split, "of the folder are not in the split"), (split - folder, "of the split are not on disk"))
    return " and ".join(f"{len(paths)} tiles {what}, such as {min(paths)}" for paths, what in sides if paths)


def _rows(file: Path) -> Iterable[tuple[str, Part]]:
    for line, row in enumerate(read_table(file, "data.split_file", ("path", "split")), start=2):
        if row["split"] not in PARTS:
            raise UserError(
                f"data.split_file has an unknown part in line {line}. "
                f"Expected train, val or test. Received: {row['split']}"
            )
        yield row["path"], row["split"]


def fingerprint(parts: Mapping[str, Part]) -> str:
    """Return 64 hexadecimal digits that two splits share only if every tile has the same part in both."""
    return stable_hash("\n".join(f"{path}\t{part}" for path, part in sorted(parts.items())))


def _check_fraction(key: str, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise UserError(f"{key} is out of range. Expected more than 0 and less than 1. Received: {fraction}")


def stable_hash(text: str) -> str:
    """Return 64 hexadecimal digits that a text has on every machine."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
