"""Predictions as a table for a person, or as a file for a program."""

import csv
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from histo_pl.errors import UserError
from histo_pl.inference.predictor import Prediction
from histo_pl.storage import atomic_write_text

FORMATS = (".csv", ".json")
NUMBERS = ("probability", "spread", "novelty")


def format_table(predictions: Sequence[Prediction]) -> str:
    """Lay predictions out in the columns file, probability and label; spread and novelty where they are known.

    Args:
        predictions: At least one.

    Returns:
        Lines of text; a file without an answer has its error in place of a label, and a note stands behind it.
    """
    width = max(len("file"), *(len(p.file) for p in predictions))
    known = [name for name in NUMBERS if any(getattr(p, name) is not None for p in predictions)]
    columns = dict.fromkeys(("probability", *known))
    lines = ["  ".join([f"{'file':<{width}}", *columns, "label"])]
    for p in predictions:
        numbers = [f"{_format(getattr(p, name)):>{len(name)}}" for name in columns]
        answer = p.label or f"ERROR: {p.error}"
        lines.append("  ".join([f"{p.file:<{width}}", *numbers, f"{answer}{f' ({p.note})' if p.note else ''}"]))
    return "\n".join(lines)


def _format(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}"


def check_format(file: Path) -> None:
    """Refuse a file of predictions that is neither CSV nor JSON, before any work is done.

    Args:
        file: The file to write later.

    Raises:
        UserError: Its name ends otherwise, or its folder does not exist.
    """
    if file.suffix.lower() not in FORMATS:
        raise UserError(
            f"out must end in {' or '.join(FORMATS)}: a table is written, as no image here is cut into tiles or "
            f"explained. Received: {file}"
        )
    if not file.parent.is_dir():
        raise UserError(f"The folder of out does not exist. Expected one that does. Received: {file}")


def write_table(predictions: Sequence[Prediction], file: Path) -> None:
    """Write predictions with all their attributes: CSV with a header, or JSON, a list of objects.

    Args:
        predictions: The predictions to write.
        file: Ends in .csv or .json.
    """
    rows = [prediction.row() for prediction in predictions]
    if file.suffix.lower() == ".json":
        with atomic_write_text(file, errors="backslashreplace") as stream:
            stream.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return
    with atomic_write_text(file, errors="backslashreplace") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Prediction)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
