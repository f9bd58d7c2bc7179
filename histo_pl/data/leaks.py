"""Exact copies of a file on both sides of a split: cheap enough to look for in every training."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from histo_pl.data.tile import Split, Tile


def leak_warnings(tiles: Sequence[Tile], split_of: Mapping[str, Split], hashes: Mapping[str, str]) -> list[str]:
    """Find files that splits share, and files that lie in both classes.

    Args:
        tiles: All tiles.
        split_of: The split of each path.
        hashes: The `content_hash` of each path.

    Returns:
        One sentence for each finding; empty if there is none.
    """
    by_content: defaultdict[str, list[Tile]] = defaultdict(list)
    for tile in tiles:
        by_content[hashes[tile.path]].append(tile)
    copies = [same for same in by_content.values() if len(same) > 1]
    shared = (_shared(copies, split_of, "test", ("train", "val")), _shared(copies, split_of, "val", ("train",)))
    return [sentence for sentence in (*shared, _conflicts(copies)) if sentence]


def _shared(
    copies: Sequence[Sequence[Tile]], split_of: Mapping[str, Split], split: Split, earlier: Sequence[Split]
) -> str:
    names = {"train": "training", "val": "validation", "test": "test"}
    pairs = [
        (tile, next(other for other in same if split_of[other.path] in earlier))
        for same in copies
        if {split_of[other.path] for other in same} & set(earlier)
        for tile in same
        if split_of[tile.path] == split
    ]
    if not pairs:
        return ""
    total = sum(one == split for one in split_of.values())
    others = " or ".join(names[name] for name in earlier)
    return (
        f"{len(pairs)} of the {total} {names[split]} tiles are exact copies of {others} tiles, which inflates every "
        f"figure ({pairs[0][0].path} is {pairs[0][1].path}). "
        f"python -m histo_pl audit finds them all, altered ones too."
    )


def _conflicts(copies: Sequence[Sequence[Tile]]) -> str:
    both = [same for same in copies if len({tile.class_name for tile in same}) > 1]
    if not both:
        return ""
    first = next(tile for tile in both[0] if tile.class_name != both[0][0].class_name)
    return f"{len(both)} images lie in both classes, such as {both[0][0].path} and {first.path}: one label is wrong."
