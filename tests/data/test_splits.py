import csv
from collections import Counter
from pathlib import Path

import pytest

from histo_pl.data.splits import check_no_overlap, fingerprint, read_split, split_tiles, write_split
from histo_pl.data.tile import Tile, case_of
from histo_pl.errors import UserError


def tiles_of(counts: dict[str, int]) -> list[Tile]:
    return [Tile(f"{name}/{i}.png", name) for name, count in counts.items() for i in range(count)]


def cases_of(sizes: dict[str, list[int]]) -> list[Tile]:
    """One case for each number, with so many tiles."""
    return [
        Tile(f"{name}/{case}-{i}.png", name, f"{name}{case}")
        for name, numbers in sizes.items()
        for case, size in enumerate(numbers)
        for i in range(size)
    ]


def split(tiles: list[Tile], seed: int = 0, test_fraction: float = 0.2) -> dict:
    return split_tiles(tiles, val_fraction=0.2, test_fraction=test_fraction, seed=seed)


def test_every_class_is_split_in_its_proportion() -> None:
    tiles = tiles_of({"benign": 100, "malignant": 50})
    parts = split(tiles)
    counts = Counter((tile.class_name, parts[tile.path]) for tile in tiles)
    assert counts["benign", "test"] == 20
    assert counts["benign", "val"] == 16
    assert counts["malignant", "test"] == 10
    assert counts["malignant", "val"] == 8
    assert sum(counts.values()) == 150


def test_a_split_does_not_depend_on_machine_order_or_library() -> None:
    tiles = tiles_of({"benign": 10, "malignant": 10})
    parts = split(tiles)
    assert split(tiles[::-1]) == parts
    # written down once: another machine, or another NumPy, must find the same
    assert sorted(p for p, part in parts.items() if part != "train") == [
        "benign/0.png",
        "benign/2.png",
        "benign/3.png",
        "benign/8.png",
        "malignant/0.png",
        "malignant/4.png",
        "malignant/5.png",
        "malignant/6.png",
    ]


def test_seeds_differ_and_zero_is_one() -> None:
    tiles = tiles_of({"benign": 50, "malignant": 50})
    assert fingerprint(split(tiles, seed=0)) == fingerprint(split(tiles, seed=0))
    assert fingerprint(split(tiles, seed=0)) != fingerprint(split(tiles, seed=1))


@pytest.mark.parametrize("seed", range(20))
def test_cases_stay_together_and_shares_stay_near(seed: int) -> None:
    sizes = {"benign": [8, 14, 20, 27, 30, 12, 25, 19, 22, 25], "malignant": [9 + i % 20 for i in range(34)]}
    tiles = cases_of(sizes)
    parts = split(tiles, seed)
    check_no_overlap(tiles, parts)
    for name, numbers in sizes.items():
        total = sum(numbers)
        shares = Counter(parts[tile.path] for tile in tiles if tile.class_name == name)
        assert shares["test"] / total == pytest.approx(0.2, abs=0.08)
        assert shares["val"] / (total - shares["test"]) == pytest.approx(0.2, abs=0.1)


def test_a_case_with_tiles_of_both_classes_stays_together() -> None:
    tiles = [Tile(f"{name}/{i}.png", name, f"case{i % 10}") for name in ("benign", "malignant") for i in range(60)]
    parts = split(tiles)
    check_no_overlap(tiles, parts)
    assert set(parts.values()) == {"train", "val", "test"}


def test_three_large_cases_a_class_are_enough_and_two_are_not() -> None:
    parts = split(cases_of({"benign": [50, 50, 50], "malignant": [50, 50, 50]}))
    assert Counter(parts.values()) == {"train": 100, "val": 100, "test": 100}
    with pytest.raises(UserError, match="too few tiles or cases"):
        split(cases_of({"benign": [50, 50], "malignant": [50, 50, 50]}))


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.2])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=r"data\.val_fraction"):
        split_tiles(tiles_of({"a": 9, "b": 9}), val_fraction=fraction, test_fraction=0.2, seed=0)


def test_overlap_is_refused() -> None:
    tiles = [Tile("a/1.png", "a", "case1"), Tile("a/2.png", "a", "case1")]
    with pytest.raises(UserError, match=r"such as case1: a/2\.png \(test\) and a/1\.png \(train\)"):
        check_no_overlap(tiles, {"a/1.png": "train", "a/2.png": "test"})


def test_a_split_survives_its_file_with_any_name(tmp_path: Path) -> None:
    tiles = [*tiles_of({"benign": 9, "malignant": 9}), Tile('benign/a, "b" é\n.png', "benign", "x,y")]
    parts = split(tiles)
    write_split(tmp_path / "split.csv", tiles, parts)
    assert read_split(tmp_path / "split.csv", tiles) == parts
    with (tmp_path / "split.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["path", "class", "case", "split"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\na/0.png,train\n", "1 tiles of the folder are not in the split, such as a/1.png"),
        (
            "path,split\na/0.png,train\na/1.png,test\na/2.png,test\n",
            "1 tiles of the split are not on disk, such as a/2.png",
        ),
        ("path,split\na/0.png,train\na/1.png,hold\n", "unknown split in line 3"),
        ("file,split\n", "lacks a column"),
        ("path,split\na/0.png,train\na/1.png,test\na/0.png,test\n", "two splits"),
        ("split,path\ntrain\n", "1 tiles of the split are not on disk"),
    ],
)
def test_a_split_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_split(tmp_path / "split.csv", tiles_of({"a": 2}))


def test_a_renamed_tile_is_counted_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("path,split\na/0.png,train\na/b.png,test\n")
    with pytest.raises(UserError) as caught:
        read_split(tmp_path / "split.csv", tiles_of({"a": 2}))
    assert "1 tiles of the folder are not in the split, such as a/1.png" in str(caught.value)
    assert "1 tiles of the split are not on disk, such as a/b.png" in str(caught.value)


def test_a_split_file_from_excel_is_read(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("path,split\na/0.png,train\n", encoding="utf-8-sig")
    assert read_split(tmp_path / "split.csv", tiles_of({"a": 1})) == {"a/0.png": "train"}


def test_cases_are_read_from_paths() -> None:
    breakhis = r"SOB_[BM]_[A-Z]+-(\d+-\d+)"
    assert case_of("benign/SOB_B_A-14-29960AB-200-001.png", breakhis) == "14-29960"
    assert case_of("benign/SOB_B_A-14-29960CD-200-001.png", breakhis) == "14-29960"
    assert case_of("benign/patient7/a.png", r"patient\d+") == "patient7"
    assert case_of("benign/a.png", None) == ""
    with pytest.raises(UserError, match="finds no case"):
        case_of("benign/a.png", breakhis)
    with pytest.raises(UserError, match="no valid regular expression"):
        case_of("benign/a.png", "(")
