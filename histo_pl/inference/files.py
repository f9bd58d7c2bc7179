"""Image files from a path or a pattern."""

import glob
import os
from pathlib import Path

from histo_pl.errors import UserError
from histo_pl.images import find_files, is_image
from histo_pl.slides.opening import describe_formats, distinct_slides, is_slide


def find_images(name: str | None) -> list[Path]:
    """List the images that a path or pattern means.

    Args:
        name: A file; a folder, searched with all folders in it for names that end as an image's or a slide's; or a
            pattern (`*`, `?`, `**`). What exists under that very name is never read as a pattern.

    Returns:
        The files, in order; a single file is returned whatever it is called, and of a folder's DICOM files one a slide.

    Raises:
        UserError: Nothing was typed, or nothing is there.
    """
    if name is None:
        raise UserError("The image is missing. Say it with img=FILE, img=FOLDER or img='*.png'. Received: nothing")
    path = Path(name)
    if path.is_dir():
        files = distinct_slides([file for file in find_files(path) if is_image(file) or is_slide(file)])
    elif os.path.exists(name):  # noqa: PTH110  (Path.exists fails on a name that is too long)
        files = [path]
    else:
        files = [Path(file) for file in sorted(glob.glob(name, recursive=True)) if not Path(file).is_dir()]  # noqa: PTH207
    if not files:
        raise UserError(
            f"There is no image. Expected a file, a folder with images ({describe_formats()}), or a pattern "
            f"that matches some. Received: {name}"
        )
    return files


def find_others(name: str) -> list[Path]:
    """List the visible files of a folder that `find_images` passes over; none where the name means no folder.

    Args:
        name: As for `find_images`.
    """
    return (
        [file for file in find_files(name) if not is_image(file) and not is_slide(file)] if Path(name).is_dir() else []
    )
