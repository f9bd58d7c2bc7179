"""From what a person typed to the image files meant."""

import glob
from pathlib import Path

from histo_pl.errors import UserError
from histo_pl.images import EXTENSIONS


def find_images(name: str | None) -> list[Path]:
    """List the images that a path or pattern means.

    Args:
        name: A file; a folder, searched with all folders in it for names that end as an image's; or a
            pattern (`*`, `?`, `**`). What exists under that very name is never read as a pattern.

    Returns:
        The files, in order; a single file is returned whatever it is called.

    Raises:
        UserError: Nothing was typed, or nothing is there.
    """
    if name is None:
        raise UserError("The image is missing. Say it with img=FILE, img=FOLDER or img='*.png'. Received: nothing")
    path = Path(name)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _looks_like_an_image(file)]
    elif path.exists():
        files = [path]
    else:
        files = [Path(file) for file in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207
        files = [file for file in files if file.is_file()]
    if not files:
        raise UserError(
            f"There is no image. Expected a file, a folder with images ({', '.join(EXTENSIONS)}), or a pattern "
            f"that matches some. Received: {name}"
        )
    return files


def _looks_like_an_image(file: Path) -> bool:
    return file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
