"""Splits into training, validation and test: pure, seeded, the same on every machine."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from histo_pl.data.hashing import stable_hash
from histo_pl.data.tile import SPLITS, Split, Tile
from histo_pl.errors import UserError
from histo_pl.storage import atomic_write_text
from histo_pl.tables import read_table

COLUMNS = ("path", "class", "case", "split")


def hold_out(tiles: Sequence[Tile], fraction: float, seed: int, name: str) -> set[str]:
    """Choose the groups of tiles to put aside, stratified by class.

    Groups come in the order of a hash of seed and group, so neither the machine nor a library's random
    numbers matter. One is put aside if that brings the classes' shares nearer to `fraction`.

    Args:
        tiles: The tiles to choose from.
        fraction: Share of each class's tiles to put aside, in (0, 1).
        seed: Any integer.
        name: Purpose of the held-out tiles; two names choose independently.

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
        """Compute how much nearer the classes' shares come to the fraction."""
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
        fold: Its index, from 0.
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
    chosen: set[str] = set()
    for group in sorted(sizes, key=lambda name: (-sizes[name].total(), stable_hash(f"{seed}:fold:{name}"))):
        target = min(range(folds), key=lambda k: sum(dealt[k][c] * n / totals[c] for c, n in sizes[group].items()))
        dealt[target] += sizes[group]
        if target == fold:
            chosen.add(group)
    return chosen


def split_tiles(
    tiles: Sequence[Tile],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    folds: int | None = None,
    fold: int = 0,
) -> dict[str, Split]:
    """Assign every tile to a split: first the test tiles, then a share of the rest for validation.

    Published splits are taken as they are. Where they lack the validation tiles, these are drawn from the training
    tiles; where they lack the test, there is none.

    Args:
        tiles: All tiles.
        val_fraction: Share of the tiles left after the test set, in (0, 1).
        test_fraction: Share of all tiles, in (0, 1).
        seed: Any integer.
        folds: Number of folds, of which one tests instead of `test_fraction`; None: no folds.
        fold: The one that tests, from 0.

    Returns:
        The split of each path.

    Raises:
        UserError: A number is out of range, or a class has too few tiles or cases.
    """
    split_of: dict[str, Split] = {t.path: t.published_split for t in tiles if t.published_split in ("val", "test")}
    rest = [tile for tile in tiles if tile.path not in split_of]
    _check_fraction("data.val_fraction", val_fraction)
    test: set[str] = set()
    if folds is not None:
        test = fold_groups(rest, folds, fold, seed)
    elif not any(tile.published_split for tile in tiles):
        _check_fraction("data.test_fraction", test_fraction)
        test = hold_out(rest, test_fraction, seed, "test")
    val: set[str] = set()
    if "val" not in split_of.values():
        val = hold_out([tile for tile in rest if tile.group not in test], val_fraction, seed, "val")
    for tile in rest:
        split_of[tile.path] = "test" if tile.group in test else "val" if tile.group in val else "train"
    return split_of


def check_published(root: Path, tiles: Sequence[Tile]) -> None:
    """Refuse published splits without training tiles, or with nothing else, or with one class alone.

    Args:
        root: The folder of the tiles, for errors.
        tiles: All tiles; nothing is refused where they have no published split.

    Raises:
        UserError: Says what is missing.
    """
    classes: defaultdict[Split | None, set[str]] = defaultdict(set)
    for tile in tiles:
        classes[tile.published_split].add(tile.class_name)
    if set(classes) == {None}:
        return
    present = ", ".join(f"{split} with {' and '.join(sorted(names))}" for split, names in classes.items())
    if "train" not in classes or len(classes) == 1:
        raise UserError(
            f"Published splits must have train, and val or test or both. To draw a split anew, give one folder alone "
            f"as data.root; to evaluate every tile, add split=all to evaluate.py. Received: {root} with {present}"
        )
    if len({frozenset(names) for names in classes.values()}) > 1:
        raise UserError(f"All splits must hold the same two classes. Received: {root} with {present}")


def check_no_overlap(tiles: Iterable[Tile], split_of: Mapping[str, Split]) -> None:
    """Refuse a split that divides a case.

    Args:
        tiles: All tiles.
        split_of: The split of each path.

    Raises:
        UserError: Names a case, its splits, and how many cases are divided.
    """
    members: defaultdict[str, dict[Split, str]] = defaultdict(dict)  # a path of each split
    for tile in tiles:
        members[tile.group].setdefault(split_of[tile.path], tile.path)
    divided = sorted(group for group, paths in members.items() if len(paths) > 1)
    if divided:
        example = " and ".join(f"{path} ({split})" for split, path in sorted(members[divided[0]].items()))
        raise UserError(
            f"The split has tiles of one case, or of one group, on two sides, which inflates every result. Expected "
            f"each in one split: if the folder or the split file put them there, take one side's tiles out, or give a "
            f"corrected split.csv as data.split_file. Received: {len(divided)} divided cases or groups, such as "
            f"{divided[0]}: {example}"
        )


def write_split(file: Path, tiles: Iterable[Tile], split_of: Mapping[str, Split]) -> None:
    """Write a split as CSV with the columns path, class, case and split, ordered by path.

    Args:
        file: The file to write.
        tiles: All tiles.
        split_of: The split of each path.
    """
    with atomic_write_text(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for tile in sorted(tiles, key=lambda tile: tile.path):
            writer.writerow((tile.path, tile.class_name, tile.case, split_of[tile.path]))


def read_split(file: Path, tiles: Iterable[Tile]) -> dict[str, Split]:
    """Read a split that `write_split`, or a person, wrote.

    Args:
        file: CSV with at least the columns path and split (train, val or test).
        tiles: The tiles found on disk; the file must name each of them, and no others.

    Returns:
        The split of each path.

    Raises:
        UserError: The file is missing or malformed, or it and the folder differ.
    """
    split_of: dict[str, Split] = {}
    for path, split in _rows(file):
        if split_of.setdefault(path, split) != split:
            raise UserError(f"data.split_file puts a tile into two splits. Expected one. Received: {path} in {file}")
    difference = describe_difference(split_of.keys(), {tile.path for tile in tiles})
    if difference:
        raise UserError(
            f"data.split_file does not fit the folder: {difference}. Fix the file or the folder, or split anew "
            f"without it. Received: {file}"
        )
    return split_of


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


def _rows(file: Path) -> Iterable[tuple[str, Split]]:
    for line, row in enumerate(read_table(file, "data.split_file", ("path", "split")), start=2):
        if row["split"] not in SPLITS:
            raise UserError(
                f"data.split_file has an unknown split in line {line}. "
                f"Expected train, val or test. Received: {row['split']}"
            )
        yield row["path"], row["split"]


def fingerprint(values: Mapping[str, str]) -> str:
    """Return 64 hexadecimal digits that two mappings of tiles, such as two splits, share only if they are equal.

    Args:
        values: By the tile's path.
    """
    return stable_hash("\n".join(f"{path}\t{value}" for path, value in sorted(values.items())))


def _check_fraction(key: str, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise UserError(f"{key} is out of range. Expected more than 0 and less than 1. Received: {fraction}")
