"""Exact copies of a file in two parts of a split: cheap enough for every training."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from histo_pl.data.splits import Part, Tile
from histo_pl.errors import ImageError

CONTENT_BYTES = 8  # of a hash: two of a million different tiles share one with a probability of 3e-8


def content_hash(file: Path) -> str:
    """Return 16 hexadecimal digits that name a file's content.

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
            f"This file cannot be read ({link}). Mend it or take it out of the folder. Received: {file}"
        ) from error


def hash_files(files: Sequence[Path]) -> list[str]:
    """Return each file's `content_hash`.

    Args:
        files: Any files.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(content_hash, files))


def leak_warnings(tiles: Sequence[Tile], parts: Mapping[str, Part], hashes: Mapping[str, str]) -> list[str]:
    """Say which parts share files, and which files lie in both classes.

    Args:
        tiles: All tiles.
        parts: The part of each path.
        hashes: The `content_hash` of each path.

    Returns:
        One sentence for each finding; empty if there is none.
    """
    by_content: defaultdict[str, list[Tile]] = defaultdict(list)
    for tile in tiles:
        by_content[hashes[tile.path]].append(tile)
    copies = [same for same in by_content.values() if len(same) > 1]
    shared = (_shared(copies, parts, "test", ("train", "val")), _shared(copies, parts, "val", ("train",)))
    return [sentence for sentence in (*shared, _conflicts(copies)) if sentence]


def _shared(copies: Sequence[Sequence[Tile]], parts: Mapping[str, Part], part: Part, seen: Sequence[Part]) -> str:
    names = {"train": "training", "val": "validation", "test": "test"}
    pairs = [
        (tile, next(other for other in same if parts[other.path] in seen))
        for same in copies
        if {parts[other.path] for other in same} & set(seen)
        for tile in same
        if parts[tile.path] == part
    ]
    if not pairs:
        return ""
    total = sum(where == part for where in parts.values())
    return (
        f"{len(pairs)} of the {total} {names[part]} tiles are exact copies of {' or '.join(names[p] for p in seen)} "
        f"tiles, which flatters every figure ({pairs[0][0].path} is {pairs[0][1].path}). "
        f"python -m histo_pl audit finds them all, altered ones too."
    )


def _conflicts(copies: Sequence[Sequence[Tile]]) -> str:
    both = [same for same in copies if len({tile.class_name for tile in same}) > 1]
    if not both:
        return ""
    first = next(tile for tile in both[0] if tile.class_name != both[0][0].class_name)
    return f"{len(both)} images lie in both classes, such as {both[0][0].path} and {first.path}: one label is wrong."
