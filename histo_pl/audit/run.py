"""Audit of folders of tiles: unreadable files, copies, leaks across a split, confounded classes."""

import csv
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from histo_pl.appearance import LEAST_TISSUE, describe_colours, is_grey, sample_pixels, tissue_share
from histo_pl.audit.describe import advice, describe
from histo_pl.audit.near_duplicates import Pair, find_near_duplicates, group
from histo_pl.data.classes import means_malignant
from histo_pl.data.layout import SPLIT_FOLDERS
from histo_pl.data.source import TileSet, make_source
from histo_pl.data.splits import fold_groups
from histo_pl.data.tile import Tile, case_of
from histo_pl.errors import ImageError, UserError
from histo_pl.evaluation.color_baseline import colour_only
from histo_pl.evaluation.intervals import estimate
from histo_pl.images import read_format, read_rgb
from histo_pl.storage import atomic_write_text, new_folder, refuse_results
from histo_pl.tables import read_table

FOLDS = 5  # of the classification by colour
REPORTED_DIFFERENCE = 0.1  # of the classes' shares
COLUMNS = ("group", "path", "folder", "class", "part", "case", "copy")


@dataclass(frozen=True)
class Item:
    """One audited file.

    Attributes:
        file: The image file.
        path: Relative to the audited folder, or to the folder that all audited folders have in common.
        folder: The audited folder.
        class_name: Its class folder; the audited folder's name where there is none.
        split: train, val or test, empty where there is no split.
        case: The patient, empty where unknown.
        pixels: Identifies its pixels; empty where it cannot be read.
        storage: Its size, format and dots an inch, by name.
        colours: See `appearance.describe_colours`, of shape (21,).
        tissue: Share of the tile that is tissue, in [0, 1].
        grey: True if it has no colour.
        error: The reason why it cannot be read; None if it can.
    """

    file: Path
    path: str
    folder: Path
    class_name: str
    split: str
    case: str = ""
    pixels: str = ""
    storage: Mapping[str, str] | None = None
    colours: NDArray[np.float64] | None = None
    tissue: float = 1.0
    grey: bool = False
    error: str | None = None

    @property
    def is_blank(self) -> bool:
        """True if the tile holds hardly any tissue."""
        return self.tissue < LEAST_TISSUE


def audit_tiles(
    folders: Sequence[str | Path] | str | Path,
    *,
    split_file: str | Path | None = None,
    exact_only: bool = False,
    out: str | Path | None = None,
    **source: Any,  # noqa: ANN401
) -> str:
    """Search folders of tiles for everything that would bias a result optimistically.

    Args:
        folders: One or more folders of tiles, or zip files, in any layout that training reads.
        split_file: A split.csv: the split of each path.
        exact_only: Search for exact copies alone.
        out: The folder to write; None: audits/DAY/TIME.
        **source: Attributes of `TileSource` beside the root, such as `group_regex`, which finds the case in a path.

    Returns:
        The findings, for a person; groups.csv, flagged.csv and audit.json are written too.

    Raises:
        UserError: A folder has no image, or an argument is not as expected.
    """
    folders, out = [folders] if isinstance(folders, str | Path) else folders, None if out is None else Path(out)
    if out is not None:
        refuse_results(out, ("audit.json", "groups.csv"), "--out")
    items = _list_items([Path(folder) for folder in folders], source, split_file)
    with ThreadPoolExecutor() as pool:
        read = list(tqdm(pool.map(_read, items), total=len(items), desc="Reading", unit="tile"))
    readable = [item for item in read if item.error is None]
    groups, exact = _find_groups(readable, exact_only)
    findings = _findings(read, readable, groups, exact, exact_only=exact_only)
    out = out or Path(new_folder("audits/%Y-%m-%d/%H-%M-%S"))
    out.mkdir(parents=True, exist_ok=True)
    _write_groups(out / "groups.csv", readable, groups, exact)
    _write_flagged(out / "flagged.csv", read)
    with atomic_write_text(out / "audit.json") as stream:
        stream.write(json.dumps(findings, indent=2) + "\n")
    return "\n".join([*describe(findings), "", *advice(findings, out)])


def _findings(
    read: Sequence[Item],
    readable: Sequence[Item],
    groups: Sequence[int],
    exact: Sequence[int],
    *,
    exact_only: bool,
) -> dict[str, Any]:
    return {
        "tiles": len(read),
        "classes": dict(Counter(item.class_name for item in read)),
        "parts": dict(Counter(item.split for item in read if item.split)),
        "cases": len({item.case for item in read if item.case}) or None,
        "mixed_cases": _count_mixed_cases(read),
        "unreadable": [str(item.file) for item in read if item.error is not None],
        "blank": [str(item.file) for item in readable if item.is_blank],
        "grey": [str(item.file) for item in readable if item.grey and not item.is_blank],
        "exact_copies": _count_copies(exact),
        "copies": None if exact_only else _count_copies(groups),
        "conflicting_labels": _differing(groups, readable, lambda item: item.class_name),
        "copies_across_parts": _differing(groups, readable, lambda item: item.split),
        "cases_across_parts": _divided_cases(readable),
        "storage": _differing_storage(readable),
        "colour_only": _color_baseline(readable, groups),
    }


def _count_mixed_cases(items: Sequence[Item]) -> int:
    """Count the cases with tiles of several classes."""
    classes: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.case:
            classes[item.case].add(item.class_name)
    return sum(len(names) > 1 for names in classes.values())


def _list_items(folders: Sequence[Path], source: Mapping[str, Any], split_file: str | Path | None) -> list[Item]:
    split_of = {}
    if split_file is not None:
        split_of = {
            row["path"]: row["split"] for row in read_table(Path(split_file), "--split-file", ("path", "split"))
        }
    sets = [_read_folder(folder, source) for folder in folders]
    common = sets[0].root
    if len(sets) > 1:
        common = Path(os.path.commonpath([one.root.resolve() for one in sets]))
    group_regex = source.get("group_regex")
    return [_item(tile, one, common, group_regex, split_of) for one in sets for tile in (*one.tiles, *one.loose)]


def _read_folder(folder: Path, options: Mapping[str, Any]) -> TileSet:
    source = make_source(folder, options)
    found = source.read_any() if source.positive_class is None else source.read()
    if not found.tiles and not found.loose:
        raise UserError(f"There is no image to audit. Expected a folder of tiles. Received: {folder}")
    return found


def _item(tile: Tile, found: TileSet, common: Path, group_regex: str | None, split_of: Mapping[str, str]) -> Item:
    folder = found.root.resolve()
    path = tile.path if common == found.root else (folder / tile.path).relative_to(common).as_posix()
    own_split = tile.published_split or SPLIT_FOLDERS.get(folder.name.lower(), "")  # of `audit train test`
    return Item(
        file=found.root / tile.path,
        path=path,
        folder=found.root,
        class_name=tile.class_name or folder.name,
        split=split_of.get(path, split_of.get(tile.path, own_split)),
        case=tile.case or case_of(tile.path, group_regex),
    )


def _read(item: Item) -> Item:
    try:
        pixels = read_rgb(item.file)
        name, dpi = read_format(item.file)
    except ImageError as error:
        return replace(item, error=str(error))
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
    sample, size = sample_pixels(pixels), f"{pixels.shape[1]}x{pixels.shape[0]}"
    return replace(
        item,
        pixels=f"{size} {digest}",
        storage={"size": size, "format": name, "dots an inch": dpi or "not stated"},
        colours=describe_colours(sample),
        tissue=tissue_share(sample),
        grey=is_grey(sample),
    )


def _find_groups(items: Sequence[Item], exact_only: bool) -> tuple[list[int], list[int]]:
    """Number for each item the group of its copies, altered ones included, and that of its exact copies alone."""
    first: dict[str, int] = {}
    exact = [first.setdefault(item.pixels, index) for index, item in enumerate(items)]
    if exact_only:
        return exact, exact
    single = list(first.values())

    def progress(steps: Iterable[Any], total: int) -> Iterable[Any]:
        return tqdm(steps, total=total, desc="Looking for copies", unit="step")

    near = find_near_duplicates([items[index].file for index in single], progress)
    pairs = [replace(pair, first=single[pair.first], second=single[pair.second]) for pair in near]
    pairs += [Pair(one, index, 0, 1.0, 1.0) for index, one in enumerate(exact) if one != index]
    return group(pairs, len(items)), exact


def _count_copies(groups: Sequence[int]) -> dict[str, int]:
    sizes = [size for size in Counter(groups).values() if size > 1]
    return {"groups": len(sizes), "tiles": sum(sizes), "surplus": sum(sizes) - len(sizes)}


def _members(groups: Sequence[int]) -> list[list[int]]:
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(groups):
        members[number].append(index)
    return [group for group in members.values() if len(group) > 1]


def _differing(groups: Sequence[int], items: Sequence[Item], of: Callable[[Item], str]) -> list[list[str]]:
    """List the groups whose members differ in something."""
    return [
        [str(items[index].file) for index in members]
        for members in _members(groups)
        if len({of(items[index]) for index in members}) > 1
    ]


def _divided_cases(items: Sequence[Item]) -> dict[str, list[str]]:
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.case and item.split:
            splits[item.case].add(item.split)
    return {case: sorted(names) for case, names in sorted(splits.items()) if len(names) > 1}


def _differing_storage(items: Sequence[Item]) -> dict[str, dict[str, dict[str, int]]]:
    """Count sizes, formats and dots an inch by class, where their shares differ between the classes."""
    differing = {}
    for name in ("size", "format", "dots an inch"):
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for item in items:
            counts[item.class_name][(item.storage or {})[name]] += 1
        shares = [
            [count[value] / count.total() for count in counts.values()] for value in set().union(*counts.values())
        ]
        if any(max(share) - min(share) > REPORTED_DIFFERENCE for share in shares):
            differing[name] = {class_name: dict(count.most_common(5)) for class_name, count in counts.items()}
    return differing


def _color_baseline(items: Sequence[Item], groups: Sequence[int]) -> dict[str, Any] | None:
    """Cross-validate a classification by colour alone, cases and copies kept together."""
    classes = sorted({item.class_name for item in items})
    if len(classes) != 2:  # noqa: PLR2004
        return None
    positive = next((name for name in classes if means_malignant(name)), classes[1])
    tiles = [
        Tile(str(index), item.class_name, item.case, "" if item.case else f"copies {groups[index]}")
        for index, item in enumerate(items)
    ]
    groups_of_class = [len({tile.group for tile in tiles if tile.class_name == name}) for name in classes]
    folds = min(FOLDS, *groups_of_class)
    if folds < 2:  # noqa: PLR2004
        return None
    truth = np.array([tile.class_name == positive for tile in tiles])
    colours = np.stack([item.colours for item in items if item.colours is not None])
    probability = np.zeros(len(tiles))
    for fold in range(folds):
        chosen = fold_groups(tiles, folds, fold, 0)
        tested = np.array([tile.group in chosen for tile in tiles])
        probability[tested] = colour_only(colours[~tested], truth[~tested], colours[tested])
    auroc = estimate(probability, truth, np.array([tile.group for tile in tiles]), 0.5)["auroc"]
    return {"auroc": auroc.value, "interval": [auroc.low, auroc.high], "folds": folds}


def _write_flagged(file: Path, items: Sequence[Item]) -> None:
    with atomic_write_text(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("path", "class", "finding", "tissue"))
        for item in items:
            for finding, is_so in (
                ("unreadable", item.error is not None),
                ("blank", item.is_blank),
                ("grey", item.grey and not item.is_blank),
            ):
                if is_so:
                    tissue = "" if item.error else f"{item.tissue:.3f}"
                    writer.writerow((item.path, item.class_name, finding, tissue))


def _write_groups(file: Path, items: Sequence[Item], groups: Sequence[int], exact: Sequence[int]) -> None:
    with atomic_write_text(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        exact_sizes = Counter(exact)
        for number, members in enumerate(_members(groups), start=1):
            for index in members:
                item, kind = items[index], "exact" if exact_sizes[exact[index]] > 1 else "altered"
                writer.writerow((number, item.path, item.folder, item.class_name, item.split, item.case, kind))
