"""Opening of a slide by the reader that knows its format."""

from collections.abc import Sequence
from pathlib import Path

from histo_pl.errors import ImageError, UserError
from histo_pl.images import EXTENSIONS
from histo_pl.slides.flat import FlatSlide
from histo_pl.slides.slide import Slide

DICOM = ".dcm"
SLIDE_EXTENSIONS = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", DICOM)  # OpenSlide's own
TIFF = (".tif", ".tiff")
INSTALL = "pip install -e '.[slides]'"


def is_slide(path: str | Path) -> bool:
    """Return whether a file's name ends as a slide's that is no plain image."""
    return Path(path).suffix.lower() in SLIDE_EXTENSIONS


def open_slide(path: str | Path) -> Slide:
    """Open a slide, a large photograph or any other image.

    Args:
        path: A file that OpenSlide reads (.svs, .ndpi, .mrxs, .scn, .tiff, DICOM), a TIFF of any size, or any image
            of up to `flat.MOST_PIXELS` pixels.

    Returns:
        The slide; the caller closes it.

    Raises:
        ImageError: There is no such file, or it is damaged, of an unknown kind or too large.
        UserError: The package that reads it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"There is no such file. Expected a slide or an image. Received: {path}")
    if is_slide(path):
        return _open_with_openslide(path)
    return _open_tiff(path) if path.suffix.lower() in TIFF else FlatSlide(path)


def _open_with_openslide(path: Path) -> Slide:
    try:
        from histo_pl.slides.openslide_reader import OpenSlideReader
    except ModuleNotFoundError as error:
        raise UserError(
            f"This slide needs OpenSlide. Install it with {INSTALL}. Received: {path}, no module named {error.name}"
        ) from error
    return OpenSlideReader(path)


def _open_tiff(path: Path) -> Slide:
    """Try the readers of TIFF in the order of what they can do; a small flat one needs none but Pillow."""
    try:
        from histo_pl.slides.openslide_reader import OpenSlideReader, is_readable

        if is_readable(path):
            return OpenSlideReader(path)
    except (ModuleNotFoundError, ImageError):
        pass  # tifffile knows further compressions
    try:
        from histo_pl.slides.tiff import TiffSlide
    except ModuleNotFoundError:
        return FlatSlide(path)
    return TiffSlide(path)


def describe_formats() -> str:
    """List the endings of the files that can be opened, for messages."""
    return ", ".join((*SLIDE_EXTENSIONS, *EXTENSIONS))


def distinct_slides(files: Sequence[Path]) -> list[Path]:
    """Keep one file of each slide: DICOM stores its levels in several, and OpenSlide opens them all by any one.

    Args:
        files: Files of any kind.

    Returns:
        The files without the further ones of a series; one that OpenSlide cannot open is kept.
    """
    series: set[str] = set()
    kept = []
    for file in files:
        name = _series_of(file) if file.suffix.lower() == DICOM else None
        if name is None or name not in series:
            kept.append(file)
        series |= {name} if name else set()
    return kept


def _series_of(file: Path) -> str | None:
    try:
        from histo_pl.slides.openslide_reader import series_of
    except ModuleNotFoundError:
        return None
    return series_of(file)
