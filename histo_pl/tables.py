"""CSV tables that a person may have edited."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from histo_pl.errors import UserError


def read_table(file: Path, key: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV or TSV that a person may have edited.

    Args:
        file: UTF-8, with or without a byte order mark; separated by tabs if its first line has one, else by commas.
        key: The option that names it, for errors.
        columns: Those it must have.

    Returns:
        One dictionary a row; a cell that is missing is empty.

    Raises:
        UserError: The file is missing, no CSV, or lacks a column.
    """
    if not file.is_file():
        raise UserError(f"{key} does not exist. Expected a CSV. Received: {file}")
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # Excel writes a signature
        separator = "\t" if "\t" in text.partition("\n")[0] else ","
        rows = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=separator)
        found, contents = list(rows.fieldnames or ()), list(rows)
    except (OSError, csv.Error) as error:
        raise UserError(f"{key} is no CSV. Received: {file}") from error
    if not set(columns) <= set(found):
        raise UserError(
            f"{key} lacks a column. Expected {' and '.join(columns)}. Received: {file} with the columns "
            f"{', '.join(found)[:200]}"
        )
    return contents


def describe_some(names: Sequence[str], shown: int = 5) -> str:
    """Write the first few of many names, and their count.

    Args:
        names: At least one.
        shown: Number of names.

    Returns:
        Such as `7: a.png, b.png, ...`.
    """
    return f"{len(names)}: {', '.join(names[:shown])}{', ...' if len(names) > shown else ''}"
