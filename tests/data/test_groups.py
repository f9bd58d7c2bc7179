"""Groups of tiles from a file."""

from pathlib import Path

import pytest

from histo_pl.data.groups import apply_group_file
from histo_pl.data.tile import Tile
from histo_pl.errors import UserError

TILES = [
    Tile(f"{name}/{number}.png", name, f"{name}{number // 2}")
    for name in ("benign", "malignant")
    for number in range(6)
]


def test_a_group_joins_cases_and_tiles_through_chains(tmp_path: Path) -> None:
    tiles = [Tile("a/1.png", "a", "p1"), Tile("a/2.png", "a", "p1"), Tile("b/3.png", "b", "p2"), Tile("b/4.png", "b")]
    tiles += [Tile("b/5.png", "b", "p3"), Tile("b/6.png", "b")]
    file = tmp_path / "groups.csv"
    file.write_text("path,group\na/2.png,x\nb/3.png,x\nb/3.png,x\nb/4.png,y\nelsewhere.png,y\n")
    joined = apply_group_file(tiles, file, tmp_path)
    groups = [tile.group for tile in joined]
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 4
    assert [tile.case for tile in joined] == [tile.case for tile in tiles]


def test_a_groups_file_of_other_tiles_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    file.write_text("path,group\nother.png,1\n")
    with pytest.raises(UserError, match="names none of the tiles"):
        apply_group_file(TILES, file, tmp_path)


def test_the_groups_file_of_an_audit_without_a_finding_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    file.write_text("group,path,folder\n")
    assert apply_group_file(TILES, file, tmp_path) == TILES


def test_all_rows_of_a_path_count(tmp_path: Path) -> None:
    """A path that an audit of several folders names in two groups joins both."""
    file = tmp_path / "groups.csv"
    file.write_text("path,group\nbenign/0.png,1\nbenign/4.png,1\nbenign/0.png,2\nmalignant/0.png,2\n")
    joined = {tile.path: tile.group for tile in apply_group_file(TILES, file, tmp_path)}
    assert joined["benign/0.png"] == joined["benign/4.png"] == joined["malignant/0.png"]


def test_paths_below_a_folder_above_the_root_are_found(tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    file.write_text("path,group\none/benign/0.png,1\none/benign/4.png,1\nother/benign/2.png,1\n")
    joined = {tile.path: tile.group for tile in apply_group_file(TILES, file, tmp_path / "one")}
    assert joined["benign/0.png"] == joined["benign/4.png"] != joined["benign/2.png"]
