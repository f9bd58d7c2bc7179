"""Folders that a program makes."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """Make a folder that appears whole or not at all.

    Several processes may make it at once, and the first to finish wins.

    Args:
        folder: The folder to make; the folders above it are made too.

    Yields:
        A hidden folder beside it, to fill.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
    try:
        yield unfinished
        unfinished.chmod(0o755)  # a temporary folder is its owner's alone
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
