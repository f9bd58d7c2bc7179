"""Slides and large photographs of one command, one after the other, and their table."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from histo_pl.errors import UserError
from histo_pl.inference.predictor import Predictor
from histo_pl.inference.slide import SUMMARY, ask_slide
from histo_pl.inference.slide_options import SlideOptions
from histo_pl.probability import SCORES
from histo_pl.storage import atomic_write_text

COLUMNS = ("slide", "tiles", "malignant", "benign", "uncertain", "unlike", "tissue_mm2", "mpp", *SCORES, "error")


def ask_slides(
    predictor: Predictor, files: Mapping[Path, str], folder: Path, options: SlideOptions
) -> list[dict[str, Any]]:
    """Answer for slides one after the other; one that cannot be read gets its error, and the others go on.

    Args:
        predictor: Asks the model.
        files: The slides, and the names of their folders.
        folder: The run's.
        options: The settings of slides.

    Returns:
        A summary of each slide; of one that failed, `slide` and `error`.
    """
    summaries = []
    for file, name in files.items():
        summaries.append(ask_or_fail(predictor, file, name, folder, options))
        if len(files) > 1 and "error" in summaries[-1]:
            print(f"{name}: {summaries[-1]['error'].partition('. ')[0]}.", file=sys.stderr)
    return summaries


def ask_or_fail(predictor: Predictor, file: Path, name: str, folder: Path, options: SlideOptions) -> dict[str, Any]:
    """Answer for one slide, or read the summary of one that is answered already.

    Args:
        predictor: Asks the model.
        file: The slide.
        name: Of its folder.
        folder: The run's.
        options: The settings of slides.

    Returns:
        Its summary; `slide` and `error`, if it cannot be read.

    Raises:
        UserError: It was answered at another scale.
    """
    finished = folder / name / SUMMARY
    if finished.exists():
        summary = json.loads(finished.read_text(encoding="utf-8"))
        _check_scale(summary["mpp"], options.scale.said_of(file), file)
        return summary
    try:
        return ask_slide(predictor, file, folder / name, name, options)
    except UserError as error:
        return {"slide": name, "error": str(error)}


def _check_scale(before: float | None, said: float | None, file: Path) -> None:
    if said is not None and said != before:
        raise UserError(
            f"This slide was answered at another scale, {before} micrometres per pixel. Expected the same, or another "
            f"out. Received: {said} for {file}"
        )


def write_summaries(file: Path, summaries: Sequence[dict[str, Any]]) -> None:
    """Write one row a slide as CSV.

    Args:
        file: The file to write.
        summaries: As `ask_slides` returns them.
    """
    with atomic_write_text(file, errors="backslashreplace") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(one | (one.get("scores") or {}) for one in summaries)


def format_summaries(summaries: Sequence[dict[str, Any]]) -> str:
    """Lay slides out as a table for a person.

    Args:
        summaries: As `ask_slides` returns them, at least one.
    """
    width = max(len("slide"), *(len(one["slide"]) for one in summaries))
    lines = [f"{'slide':<{width}}    tiles  malignant  benign  uncertain  unlike     max    mean   top10   share"]
    for one in summaries:
        if one.get("error"):
            lines.append(f"{one['slide']:<{width}}  ERROR: {one['error']}")
            continue
        if not one["tiles"]:
            lines.append(f"{one['slide']:<{width}}        0  no tissue was found")
            continue
        counts = (
            f"{one['tiles']:>7}  {one['malignant']:>9}  {one['benign']:>6}  {one['uncertain']:>9}  {one['unlike']:>6}"
        )
        scores = (one["scores"][score] for score in ("max", "mean", "top10", "share"))
        written = "  ".join(f"{'' if score is None else f'{score:.4f}':>6}" for score in scores)
        lines.append(f"{one['slide']:<{width}}  {counts}  {written}")
    refused = [one for one in summaries if not one.get("error") and 2 * one["unlike"] > one["tiles"]]
    lines += [
        f"{one['slide']}: {one['unlike']} of {one['tiles']} tiles are unlike the training, and in no score."
        for one in refused
    ]
    return "\n".join(lines)
