"""Tables of labels, and of cases: CSV or TSV files that say of each image what its folders do not."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from histo_pl.data.layout import SPLIT_FOLDERS, Listing
from histo_pl.data.tile import Split, Tile
from histo_pl.errors import UserError
from histo_pl.tables import describe_some, read_table

NAMES: Mapping[str, str] = {"path": "path", "label": "label", "case": "case", "split": "split"}
REQUIRED = ("path", "label")
NO_COLUMN = "none"  # as the name of a column: the table's own is not read


def read_labels(
    file: Path, listing: Listing, columns: Mapping[str, str | None] | None = None, suffix: str | None = None
) -> list[Tile]:
    """Read the label and, where it says so, the case and the split of each image from a table.

    Args:
        file: The table: `data.table`.
        listing: The images, of which the table must name each once, and no others.
        columns: The table's own names of the columns path, label, case and split, where they differ; `none`: not read.
        suffix: Appended to paths that lack it, such as `.tif`.

    Returns:
        The tiles in the order of their paths; `class_name` is the label, and all columns beside the four are kept.

    Raises:
        UserError: The table is missing or malformed, or it and the folder differ.
    """
    names = {**NAMES, **{key: str(name) for key, name in (columns or {}).items() if name is not None}}
    rows = read_table(file, "data.table", ())
    _check_columns(file, names, [name for name in (rows[0] if rows else ()) if isinstance(name, str)])
    paths = [_with_suffix(row[names["path"]], suffix).removeprefix(listing.inner) for row in rows]
    _check_rows(file, paths, [row[names["label"]] for row in rows], listing)
    wanted = set(listing.images)
    tiles = [_tile(path, row, names, file) for path, row in zip(paths, rows, strict=True) if path in wanted]
    return sorted(tiles, key=lambda tile: tile.path)


def _check_columns(file: Path, names: Mapping[str, str], found: Collection[str]) -> None:
    """Refuse a table without the columns that are needed, and names that the user chose and it does not have."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise UserError(f"data.table_columns has an unknown key. Expected {', '.join(NAMES)}. Received: {unknown[0]}")
    chosen = [key for key in NAMES if key in REQUIRED or names[key] not in (NAMES[key], NO_COLUMN)]
    missing = [key for key in chosen if names[key] not in found]
    if missing:
        hints = " ".join(f"data.table_columns.{key}=NAME" for key in missing)
        raise UserError(
            f"data.table lacks the column {' and '.join(names[key] for key in missing)}. Expected it, or its own name: "
            f"{hints}. Received: {file} with the columns {', '.join(found) or 'none'}"
        )


def _with_suffix(path: str, suffix: str | None) -> str:
    path = path.strip().replace("\\", "/").removeprefix("./")
    return path if suffix is None or path.lower().endswith(suffix.lower()) else path + suffix


def _tile(path: str, row: Mapping[str, str], names: Mapping[str, str], file: Path) -> Tile:
    kept = {name: value for name, value in row.items() if name not in names.values() and isinstance(value, str)}
    case = row.get(names["case"], "").strip()
    return Tile(path, row[names["label"]].strip(), case, "", _split_of(row, names, path, file), kept)


def _split_of(row: Mapping[str, str], names: Mapping[str, str], path: str, file: Path) -> Split | None:
    if names["split"] not in row:
        return None
    split = SPLIT_FOLDERS.get(row[names["split"]].strip().lower())
    if split is None:
        raise UserError(
            f"data.table has an unknown split. Expected train, val or test in each row. "
            f"Received: {row[names['split']]!r} of {path} in {file}"
        )
    return split


def _check_rows(file: Path, paths: Sequence[str], labels: Sequence[str], listing: Listing) -> None:
    """Refuse what does not match one image to one label, and name the first five of each kind."""
    images, rows = set(listing.images), set(paths)
    problems = {
        "rows without a file": sorted(rows - images - set(listing.excluded)),
        "files without a row": sorted(images - rows),
        "paths in several rows": sorted(path for path, count in Counter(paths).items() if count > 1),
        "rows without a label": sorted(path for path, label in zip(paths, labels, strict=True) if not label.strip()),
    }
    found = [f"{title}, {describe_some(names)}" for title, names in problems.items() if names]
    if found:
        raise UserError(
            f"data.table and the folder do not match. Expected one row for each image below data.root, its path "
            f"relative to it (data.suffix=.tif adds a missing suffix, data.include and data.exclude leave files out). "
            f"Received: {file} and {listing.root} with {'; '.join(found)}"
        )


def read_cases(file: Path, paths: Sequence[str]) -> dict[str, str]:
    """Read the case of each image from a table: `data.cases_file`.

    Args:
        file: A table with the columns path and case; a path is relative to the root, or a file's name without its
            suffix.
        paths: The images.

    Returns:
        The case of each path.

    Raises:
        UserError: The table is missing or malformed, names a path twice with two cases, or lacks an image.
    """
    case_of: dict[str, str] = {}
    for row in read_table(file, "data.cases_file", ("path", "case")):
        name, case = row["path"].strip().replace("\\", "/").removeprefix("./"), row["case"].strip()
        if case_of.setdefault(name, case) != case:
            raise UserError(f"data.cases_file gives a tile two cases. Expected one. Received: {name} in {file}")
    found = {path: case_of.get(path) or case_of.get(PurePosixPath(path).stem, "") for path in paths}
    without = sorted(path for path, case in found.items() if not case)
    if without:
        raise UserError(
            f"Tiles have no case in data.cases_file. Expected a row with path (or the file's name without its suffix) "
            f"and case for each. Received: {file} without {describe_some(without)}"
        )
    return found
