"""Tiles that must stay together because someone says so: `data.groups_file`, as an audit writes it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from histo_pl.data.splits import Tile
from histo_pl.data.table import read_table
from histo_pl.errors import UserError


def keep_together(tiles: Sequence[Tile], file: Path) -> list[Tile]:
    """Join cases and tiles that a file puts into one group.

    Args:
        tiles: All tiles.
        file: CSV with the columns path (as in `Tile.path`) and group. Tiles that it does not name stay
            as they are; an audit without a finding names none.

    Returns:
        The tiles in their order, with `kept_with` set where a group joins several.

    Raises:
        UserError: The file is missing or malformed, or names none of the tiles.
    """
    group_of = {row["path"]: row["group"] for row in read_table(file, "data.groups_file", ("path", "group"))}
    if group_of and not group_of.keys() & {tile.path for tile in tiles}:
        raise UserError(
            f"data.groups_file names none of the tiles. Expected paths below data.root, such as {tiles[0].path}. "
            f"Received: {file} with {next(iter(group_of))}"
        )
    parent: dict[str, str] = {}

    def root_of(unit: str) -> str:
        while parent.setdefault(unit, unit) != unit:
            parent[unit] = unit = parent[parent[unit]]
        return unit

    for tile in tiles:
        if group := group_of.get(tile.path):
            parent[root_of(f"group:{group}")] = root_of(tile.group)
    return [replace(tile, kept_with=root_of(tile.group)) if tile.group in parent else tile for tile in tiles]
