"""Hashes that are the same on every machine: of a file's content, of a text, and seeds made from them."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from histo_pl.errors import ImageError

CONTENT_BYTES = 8  # of a hash: two of a million different tiles share one with a probability of 3e-8


def content_hash(file: Path) -> str:
    """Return 16 hexadecimal digits that identify a file's content.

    Args:
        file: Any file.

    Raises:
        ImageError: The file cannot be read: a broken link, or no permission.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=CONTENT_BYTES)).hexdigest()
    except OSError as error:
        link = "a link to a file that is not there" if file.is_symlink() and not file.exists() else error.strerror
        raise ImageError(
            f"This file cannot be read ({link}). Fix it or take it out of the folder. Received: {file}"
        ) from error


def hash_files(files: Sequence[Path]) -> list[str]:
    """Return each file's `content_hash`.

    Args:
        files: N files of any kind.

    Returns:
        N hashes, in the same order.

    Raises:
        ImageError: A file cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(content_hash, files))


def stable_hash(text: str) -> str:
    """Return 64 hexadecimal digits that a text has on every machine."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def stable_seed(seed: int, purpose: str, number: int) -> int:
    """Mix a run's seed with a purpose and a counter into an independent seed in [0, 2**63)."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
