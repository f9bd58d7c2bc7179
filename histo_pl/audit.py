"""What makes a number untrue before any training: what `python -m histo_pl audit` does."""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from histo_pl.data.classes import means_malignant
from histo_pl.data.copies import Pair, find_copies, group
from histo_pl.data.splits import Tile, case_of, fold_groups
from histo_pl.data.table import read_table
from histo_pl.errors import ImageError, UserError
from histo_pl.evaluation.colour import colour_only, colours_of
from histo_pl.evaluation.intervals import estimate
from histo_pl.images import find_files, is_image, read_format, read_rgb
from histo_pl.storage import new_folder, refuse_results, replacing_text

PARTS = ("train", "val", "valid", "validation", "test")
FOLDS = 5  # of the classification by colour
MUCH = 0.1  # difference of the classes' shares that is worth a word
COLUMNS = ("group", "path", "folder", "class", "part", "case", "copy")


@dataclass(frozen=True)
class Item:
    """One audited file.

    Attributes:
        folder: The audited folder that it lies in.
        path: Relative to that, with forward slashes.
        class_name: Its class folder, empty where there is none.
        part: train, test or another part of a split, empty where there is none.
        case: The patient, empty where unknown.
        pixels: Names its pixels; empty where it cannot be read.
        storage: Its size, format and dots an inch, by name.
        colours: See `colour.colours_of`.
        error: Why it cannot be read; None if it can.
    """

    folder: Path
    path: str
    class_name: str
    part: str
    case: str = ""
    pixels: str = ""
    storage: Mapping[str, str] | None = None
    colours: NDArray[np.float64] | None = None
    error: str | None = None

    @property
    def file(self) -> Path:
        """Where it lies."""
        return self.folder / self.path


def audit(
    folders: Sequence[Path],
    *,
    group_regex: str | None = None,
    split_file: Path | None = None,
    exact_only: bool = False,
    out: Path | None = None,
) -> str:
    """Look for everything in folders of tiles that would flatter a result.

    Args:
        folders: Folders of tiles: `<class>/...`, or train and test with these.
        group_regex: Finds the case in a path below its folder, see `splits.case_of`.
        split_file: A split.csv: which part each path belongs to.
        exact_only: Whether to look for exact copies alone.
        out: The folder to write; None: audits/DAY/TIME.

    Returns:
        The findings, for a person; groups.csv and audit.json are written too.

    Raises:
        UserError: A folder has no image, or an argument is not as expected.
    """
    if out is not None:
        refuse_results(out, ("audit.json", "groups.csv"), "--out")
    items = _list_items(folders, group_regex, split_file)
    with ThreadPoolExecutor() as pool:
        read = list(tqdm(pool.map(_read, items), total=len(items), desc="Reading", unit="tile"))
    sound = [item for item in read if item.error is None]
    groups, exact = _find_groups(sound, exact_only)
    findings = {
        "tiles": len(read),
        "classes": dict(Counter(item.class_name for item in read)),
        "parts": dict(Counter(item.part for item in read if item.part)),
        "cases": len({item.case for item in read if item.case}) if group_regex else None,
        "unreadable": [str(item.file) for item in read if item.error is not None],
        "exact_copies": _count_copies(exact),
        "copies": None if exact_only else _count_copies(groups),
        "conflicting_labels": _paths_of(groups, sound, lambda item: item.class_name),
        "copies_across_parts": _paths_of(groups, sound, lambda item: item.part),
        "cases_across_parts": _torn_cases(sound),
        "storage": _differing_storage(sound),
        "colour_only": _colour_result(sound, groups),
    }
    out = out or Path(new_folder("audits/%Y-%m-%d/%H-%M-%S"))
    out.mkdir(parents=True, exist_ok=True)
    _write_groups(out / "groups.csv", sound, groups, exact)
    with replacing_text(out / "audit.json") as stream:
        stream.write(json.dumps(findings, indent=2) + "\n")
    return "\n".join([*_describe(findings), "", *_advice(findings, out)])


def _list_items(folders: Sequence[Path], group_regex: str | None, split_file: Path | None) -> list[Item]:
    part_of = {}
    if split_file is not None:
        part_of = {row["path"]: row["split"] for row in read_table(split_file, "--split-file", ("path", "split"))}
    items = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"There is no such folder. Expected a folder of tiles. Received: {folder}")
        files = [file for file in find_files(folder) if is_image(file)]
        if not files:
            raise UserError(f"There is no image to audit. Expected a folder of tiles. Received: {folder}")
        for file in files:
            path = file.relative_to(folder).as_posix()
            first, *rest = path.split("/")
            part, within = (first, rest) if first.lower() in PARTS else ("", [first, *rest])
            class_name = within[0] if len(within) > 1 else folder.resolve().name
            items.append(
                Item(folder, path, class_name, part_of.get(path, part), case_of(path, group_regex, "--group-regex"))
            )
    return items


def _read(item: Item) -> Item:
    try:
        pixels = read_rgb(item.file)
        name, dpi = read_format(item.file)
    except ImageError as error:
        return replace(item, error=str(error))
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    return replace(
        item,
        pixels=f"{size} {digest}",
        storage={"size": size, "format": name, "dots an inch": dpi or "not stated"},
        colours=colours_of(pixels),
    )


def _find_groups(items: Sequence[Item], exact_only: bool) -> tuple[list[int], list[int]]:
    """Give each item the group of its copies, altered ones included, and that of its exact copies alone."""
    first: dict[str, int] = {}
    exact = [first.setdefault(item.pixels, index) for index, item in enumerate(items)]
    if exact_only:
        return exact, exact
    single = list(first.values())

    def progress(steps: Iterable[Any], total: int) -> Iterable[Any]:
        return tqdm(steps, total=total, desc="Looking for copies", unit="step")

    near = find_copies([items[index].file for index in single], progress)
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
    return [ones for ones in members.values() if len(ones) > 1]


def _paths_of(groups: Sequence[int], items: Sequence[Item], of: Callable[[Item], str]) -> list[list[str]]:
    """List the groups whose members differ in something."""
    return [
        [str(items[index].file) for index in members]
        for members in _members(groups)
        if len({of(items[index]) for index in members}) > 1
    ]


def _torn_cases(items: Sequence[Item]) -> dict[str, list[str]]:
    parts: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.case and item.part:
            parts[item.case].add(item.part)
    return {case: sorted(where) for case, where in sorted(parts.items()) if len(where) > 1}


def _differing_storage(items: Sequence[Item]) -> dict[str, dict[str, dict[str, int]]]:
    """Find what of size, format and dots an inch tells the classes apart: counts by class."""
    differing = {}
    for name in ("size", "format", "dots an inch"):
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for item in items:
            counts[item.class_name][(item.storage or {})[name]] += 1
        shares = [
            [count[value] / count.total() for count in counts.values()] for value in set().union(*counts.values())
        ]
        if any(max(share) - min(share) > MUCH for share in shares):
            differing[name] = {class_name: dict(count.most_common(5)) for class_name, count in counts.items()}
    return differing


def _colour_result(items: Sequence[Item], groups: Sequence[int]) -> dict[str, Any] | None:
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


def _write_groups(file: Path, items: Sequence[Item], groups: Sequence[int], exact: Sequence[int]) -> None:
    with replacing_text(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        exact_sizes = Counter(exact)
        for number, members in enumerate(_members(groups), start=1):
            for index in members:
                item, kind = items[index], "exact" if exact_sizes[exact[index]] > 1 else "altered"
                writer.writerow((number, item.path, item.folder, item.class_name, item.part, item.case, kind))


def _describe(findings: Mapping[str, Any]) -> list[str]:
    exact, copies = findings["exact_copies"], findings["copies"]
    altered = "not looked for (--exact-only)"
    if copies is not None:
        altered = _counted_groups(copies)
    parts, cases = findings["parts"], findings["cases"]
    torn = "unknown" if cases is None else _some(list(findings["cases_across_parts"]))
    unsplit = "not checked: no train and test, no --split-file" if len(parts) < 2 else ""  # noqa: PLR2004
    lines = [
        f"{findings['tiles']} tiles: {_counted(findings['classes'])}",
        f"  cases                 {'unknown (--group-regex)' if cases is None else cases}",
        f"  unreadable            {_some(findings['unreadable'])}",
        f"  exact copies          {_counted_groups(exact)}",
        f"  copies, altered too   {altered}",
        f"  conflicting labels    {_some(_pairs(findings['conflicting_labels']))}",
        f"  copies across parts   {unsplit or _some(_pairs(findings['copies_across_parts']))}",
        f"  cases across parts    {unsplit or torn}",
    ]
    for name, counts in findings["storage"].items():
        by_class = "; ".join(f"{class_name}: {_counted(count)}" for class_name, count in counts.items())
        lines.append(f"  classes differ in {name}: {by_class}")
    colour = findings["colour_only"]
    if colour is None:
        lines.append("  class from colour     not measurable: it takes two classes of at least two cases each")
    else:
        low, high = colour["interval"]
        interval = "" if low is None else f" (95% interval {low:.3f} to {high:.3f})"
        lines.append(f"  class from colour     AUROC {colour['auroc']:.3f}{interval}; .5 would be chance")
    return lines


def _counted_groups(copies: Mapping[str, int]) -> str:
    if not copies["groups"]:
        return "none"
    return f"{copies['tiles']} tiles in {copies['groups']} groups: {copies['surplus']} are surplus"


def _pairs(groups: Sequence[Sequence[str]]) -> list[str]:
    return [" and ".join(paths[:2]) for paths in groups]


def _some(names: Sequence[str]) -> str:
    return "none" if not names else f"{len(names)}, such as {names[0]}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {value}" for value, count in counts.items())


def _advice(findings: Mapping[str, Any], out: Path) -> list[str]:
    lines = [f"Written: {out / 'audit.json'} and groups.csv."]
    if (findings["copies"] or findings["exact_copies"])["groups"]:
        lines.append(f"To keep copies on one side of the split add data.groups_file={out / 'groups.csv'} to train.py.")
    if findings["copies_across_parts"]:
        lines.append("train and test share images: results on this test set flatter, whatever the model.")
    return lines
