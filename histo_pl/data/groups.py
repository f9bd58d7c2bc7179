"""Groups of tiles that no split may divide, from a file: `data.groups_file`, as an audit writes it."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from histo_pl.data.tile import Tile
from histo_pl.errors import UserError
from histo_pl.tables import read_table

Name = TypeVar("Name", bound=Hashable)


def apply_group_file(tiles: Sequence[Tile], file: Path, root: Path) -> list[Tile]:
    """Join cases and tiles that a file puts into one group.

    Args:
        tiles: All tiles, at least one.
        file: CSV with the columns path and group; a path is relative to the tiles' root, or to a folder above it, as
            an audit of several folders writes it. All rows of a path count. Tiles that it does not name stay
            as they are; an audit without a finding names none.
        root: The folder that the tiles' paths are relative to.

    Returns:
        The tiles in their order, with `joined_group` set where a group joins several.

    Raises:
        UserError: The file is missing or malformed, or names none of the tiles.
    """
    groups_of: defaultdict[str, set[str]] = defaultdict(set)
    for row in read_table(file, "data.groups_file", ("path", "group")):
        groups_of[row["path"]].add(row["group"])
    prefix = _prefix_of(tiles, groups_of.keys(), root)
    if groups_of and prefix is None:
        raise UserError(
            f"data.groups_file names none of the tiles. Expected paths below data.root, such as {tiles[0].path}. "
            f"Received: {file} with {next(iter(groups_of))}"
        )
    united = DisjointSets[str]()
    for tile in tiles:
        for group in groups_of.get(f"{prefix}{tile.path}", ()):
            united.join(f"group:{group}", tile.group)
    return [replace(t, joined_group=united.root_of(t.group)) if t.group in united else t for t in tiles]


def _prefix_of(tiles: Sequence[Tile], named: Iterable[str], root: Path) -> str | None:
    """Find the folders above the root that stand before the tiles' paths in a file; None: no path fits."""
    above = root.resolve().parts[1:]
    known = set(named)
    for count in range(len(above) + 1):
        prefix = "".join(f"{folder}/" for folder in above[len(above) - count :])
        if any(f"{prefix}{tile.path}" in known for tile in tiles):
            return prefix
    return None


class DisjointSets(Generic[Name]):
    """Sets of names that are joined pair by pair (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[Name, Name] = {}

    def __contains__(self, name: Name) -> bool:
        """Tell if a name has been joined or asked for."""
        return name in self._parent

    def root_of(self, name: Name) -> Name:
        """Return the name that stands for the set of a name."""
        while self._parent.setdefault(name, name) != name:
            self._parent[name] = name = self._parent[self._parent[name]]
        return name

    def join(self, first: Name, second: Name) -> None:
        """Join two sets; the root of the second stands for both."""
        self._parent[self.root_of(first)] = self.root_of(second)
