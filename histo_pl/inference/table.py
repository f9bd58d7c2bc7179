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


def format_table(predictions: Sequence[Prediction]) -> str:
    """Lay predictions out in the columns file, probability and label, and spread where there are several folds.

    Args:
        predictions: At least one.

    Returns:
        Lines of text; a file without an answer has its error in place of a label, and a note stands behind it.
    """
    width = max(len("file"), *(len(p.file) for p in predictions))
    of_folds = any(p.spread is not None for p in predictions)
    lines = [f"{'file':<{width}}  probability  {'spread  ' if of_folds else ''}label"]
    for p in predictions:
        probability = "" if p.probability is None else f"{p.probability:.4f}"
        spread = "" if p.spread is None else f"{p.spread:.4f}"
        probability = f"{probability:>11}" + (f"  {spread:>6}" if of_folds else "")
        answer = p.label or f"ERROR: {p.error}"
        lines.append(f"{p.file:<{width}}  {probability}  {answer}{f' ({p.note})' if p.note else ''}")
    return "\n".join(lines)


def check_format(file: Path) -> None:
    """Refuse a file of predictions that is neither CSV nor JSON, before any work is done.

    Args:
        file: The file to write later.

    Raises:
        UserError: Its name ends otherwise, or its folder does not exist.
    """
    if file.suffix.lower() not in FORMATS:
        raise UserError(f"out must end in {' or '.join(FORMATS)}. Received: {file}")
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
