"""Micrometres per pixel (mpp) of slides: from the user, or the file, and never a guess."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from histo_pl.errors import UserError
from histo_pl.tables import describe_some, read_table

PLAUSIBLE = (0.01, 20.0)  # micrometres per pixel of a microscope; beyond lie the dots an inch of print
AT_ONE = 10.0  # micrometres per pixel of an objective of 1x by the scanners' convention: 0.5 at 20x, 0.25 at 40x
MAGNIFICATIONS = (AT_ONE / PLAUSIBLE[1], AT_ONE / PLAUSIBLE[0])
COLUMNS = ("slide", "mpp")


@dataclass(frozen=True)
class Scale:
    """The slides' scale, as far as the user says it.

    Attributes:
        mpp: Micrometres per pixel at full resolution of all slides; None: not said.
        of_slide: Those of single slides by their files' names.
    """

    mpp: float | None = None
    of_slide: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, mpp: float | None, magnification: float | None, mpp_file: str | None) -> "Scale":
        """Check what was said.

        Args:
            mpp: Micrometres per pixel at full resolution.
            magnification: The objective's, such as 20, instead of it.
            mpp_file: A CSV with the columns slide (a file's name) and mpp.

        Raises:
            UserError: A number is out of range, both are given, or the table is not as expected.
        """
        if mpp is not None and magnification is not None:
            raise UserError(
                f"The scale is given twice. Expected mpp or magnification. Received: mpp={mpp} "
                f"magnification={magnification}"
            )
        for key, value, (least, most) in (("mpp", mpp, PLAUSIBLE), ("magnification", magnification, MAGNIFICATIONS)):
            if value is not None and (isinstance(value, bool | str) or not least <= value <= most):
                raise UserError(
                    f"{key} is out of range. Expected a number from {least:g} to {most:g}. Received: {key}={value}"
                )
        if magnification is not None:
            mpp = AT_ONE / magnification
        return cls(mpp, {} if mpp_file is None else _read_table(Path(mpp_file)))

    def said_of(self, path: Path) -> float | None:
        """Return the micrometres per pixel that the user says of a slide; None: nothing."""
        return self.of_slide.get(path.name, self.mpp)

    def find(self, path: Path, from_file: float | None) -> float | None:
        """Return a slide's micrometres per pixel: what the user says, else what the file says; None: unknown.

        Args:
            path: The slide's file.
            from_file: What the file says.
        """
        said = self.said_of(path)
        if said is not None:
            return said
        is_plausible = from_file is not None and PLAUSIBLE[0] <= from_file <= PLAUSIBLE[1]
        return from_file if is_plausible else None


def unknown_scale(path: Path, scale: Scale) -> UserError:
    """Make the error of a slide whose scale nobody says.

    Args:
        path: The slide's file.
        scale: What the user says of other slides.
    """
    if scale.of_slide:
        return UserError(
            f"mpp_file has no row for this slide, whose file does not say its micrometres per pixel. Expected its name "
            f"{path.name} in the column {COLUMNS[0]}, or mpp=0.5 for all others. Received: rows for "
            f"{describe_some(sorted(scale.of_slide))}"
        )
    return UserError(
        f"The micrometres per pixel of this slide are unknown: the file does not say them. Expected one of four: a "
        f"file that says them, mpp=0.5, magnification=20, or mpp_file=TABLE.csv with the columns "
        f"{' and '.join(COLUMNS)}; or tile=PIXELS, a tile's width at full resolution, which needs no scale. "
        f"Received: {path}"
    )


def _read_table(file: Path) -> dict[str, float]:
    rows = read_table(file, "mpp_file", COLUMNS)
    twice = [name for name, times in Counter(row["slide"] for row in rows).items() if times > 1]
    if twice:
        raise UserError(f"mpp_file names a slide twice. Expected one row a slide. Received: {twice[0]} in {file}")
    return {row["slide"]: _number(row, file) for row in rows}


def _number(row: Mapping[str, str], file: Path) -> float:
    try:
        number = float(row["mpp"])
    except ValueError:
        number = math.nan
    if not PLAUSIBLE[0] <= number <= PLAUSIBLE[1]:
        raise UserError(
            f"mpp_file does not hold micrometres per pixel. Expected a number from {PLAUSIBLE[0]:g} to "
            f"{PLAUSIBLE[1]:g}. Received: "
            f"{row['mpp'] or 'nothing'} for {row['slide']} in {file}"
        )
    return number
