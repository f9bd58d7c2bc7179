"""Cross-validation, groups that stay together, exact copies, and archives."""

import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from histo_pl.data import HistologyDataModule
from histo_pl.data.archive import inner_folder, unpack
from histo_pl.data.duplicates import hash_files, leak_warnings
from histo_pl.data.groups import keep_together
from histo_pl.data.splits import Tile, fold_groups, split_tiles
from histo_pl.errors import UserError
from tests.conftest import draw_image

MakeFolder = Callable[..., Path]
TILES = [
    Tile(f"{name}/{case}_{number}.png", name, f"{name}{case}")
    for name, cases in (("benign", 10), ("malignant", 34))
    for case in range(cases)
    for number in range(3 + 7 * case % 11)
]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_case_is_tested_in_exactly_one_fold_and_classes_are_even(seed: int) -> None:
    folds = [fold_groups(TILES, 5, fold, seed) for fold in range(5)]
    assert Counter(case for fold in folds for case in fold) == dict.fromkeys({tile.case for tile in TILES}, 1)
    for class_name in ("benign", "malignant"):
        counts = [sum(t.class_name == class_name and t.case in fold for t in TILES) for fold in folds]
        assert max(counts) < 1.5 * min(counts)


def test_the_seed_deals_equally_large_cases_anew() -> None:
    tiles = [Tile(f"{n % 2}/{n}.png", "ab"[n % 2], f"case{n}") for n in range(20)]
    assert fold_groups(tiles, 5, 0, seed=0) == fold_groups(tiles, 5, 0, seed=0) != fold_groups(tiles, 5, 0, seed=1)


def test_a_fold_tests_and_the_rest_trains_and_validates() -> None:
    parts = split_tiles(TILES, val_fraction=0.2, test_fraction=0.2, seed=0, folds=5, fold=3)
    assert {t.case for t in TILES if parts[t.path] == "test"} == fold_groups(TILES, 5, 3, 0)
    assert set(parts.values()) == {"train", "val", "test"}


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (5, 5), (5, -1), (11, 0)])
def test_folds_that_cannot_be_are_refused(folds: int, fold: int) -> None:
    with pytest.raises(UserError, match="folds"):
        fold_groups(TILES, folds, fold, 0)


def test_folds_of_a_folder_with_its_own_test_set_are_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"train/benign": 4, "train/malignant": 4, "test/benign": 2, "test/malignant": 2})
    with pytest.raises(UserError, match=r"data\.folds needs one folder"):
        HistologyDataModule(root, folds=2).setup()


def test_a_group_joins_cases_and_tiles_through_chains(tmp_path: Path) -> None:
    tiles = [Tile("a/1.png", "a", "p1"), Tile("a/2.png", "a", "p1"), Tile("b/3.png", "b", "p2"), Tile("b/4.png", "b")]
    tiles += [Tile("b/5.png", "b", "p3"), Tile("b/6.png", "b")]
    file = tmp_path / "groups.csv"
    file.write_text("path,group\na/2.png,x\nb/3.png,x\nb/3.png,x\nb/4.png,y\nelsewhere.png,y\n")
    joined = keep_together(tiles, file)
    groups = [tile.group for tile in joined]
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 4
    assert [tile.case for tile in joined] == [tile.case for tile in tiles]


def test_a_groups_file_of_other_tiles_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    file.write_text("path,group\nother.png,1\n")
    with pytest.raises(UserError, match="names none of the tiles"):
        keep_together(TILES, file)


def test_copies_of_training_tiles_in_the_test_are_counted(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"train/benign": 6, "train/malignant": 6, "test/benign": 3, "test/malignant": 3})
    data = HistologyDataModule(root, num_workers=0)
    data.setup()
    clean = data.leak_warnings()
    for number, tile in enumerate(sorted((root / "train" / "benign").iterdir())[:2]):
        (root / "test" / "benign" / f"copy{number}.png").write_bytes(tile.read_bytes())
    data = HistologyDataModule(root, num_workers=0)
    data.setup()
    (warning,) = data.leak_warnings()
    assert clean == []
    assert warning.startswith("2 of the 8 test tiles are exact copies of training or validation tiles")


def test_one_image_in_both_classes_is_told(tmp_path: Path) -> None:
    tiles = [Tile("a/1.png", "a"), Tile("b/2.png", "b"), Tile("b/3.png", "b")]
    for tile in tiles:
        draw_image(tmp_path / tile.path, seed=tile.path == "b/3.png")
    paths = [tile.path for tile in tiles]
    hashes = dict(zip(paths, hash_files([tmp_path / path for path in paths]), strict=True))
    (warning,) = leak_warnings(tiles, dict.fromkeys(paths, "train"), hashes)
    assert warning == "1 images lie in both classes, such as a/1.png and b/2.png: one label is wrong."


def write_zip(file: Path, *names: str) -> Path:
    content = draw_image(file.parent / "content" / "one.png").read_bytes()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return file


def test_a_zip_of_a_mac_is_unpacked_once_and_its_nested_folder_found(tmp_path: Path) -> None:
    names = [
        f"Breast Cancer/{part}/{kind}/{n}.png"
        for part in ("train", "test")
        for kind in ("breast_benign", "breast_malignant")
        for n in range(5)
    ]
    junk = "__MACOSX/Breast Cancer/train/breast_benign/._0.png"
    archive = write_zip(tmp_path / "Breast_Cancer.zip", *names, junk)
    for _ in range(2):
        data = HistologyDataModule(archive, num_workers=0)
        data.setup()
        assert data.name == "Breast_Cancer"
        assert Counter(data.parts.values()) == {"train": 8, "val": 2, "test": 10}
    assert not list(tmp_path.glob("**/__MACOSX"))
    assert not list(tmp_path.glob(".unfinished*"))


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../outside.png", "C:\\outside.png"])
def test_a_zip_that_writes_elsewhere_is_refused_whole(tmp_path: Path, name: str) -> None:
    archive = write_zip(tmp_path / "tiles.zip", "benign/1.png", name)
    with pytest.raises(UserError, match="outside of its folder"):
        unpack(archive)
    assert not (tmp_path / "tiles").exists()


def test_a_folder_of_someone_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    with pytest.raises(UserError, match="exists and is not from this zip file"):
        unpack(write_zip(tmp_path / "tiles.zip", "benign/1.png"))


def test_a_damaged_zip_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tiles.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tmp_path / "tiles.zip")


def test_a_lone_train_folder_is_not_stepped_into(make_folder: MakeFolder) -> None:
    root = make_folder({"train/benign": 1, "train/malignant": 1})
    assert inner_folder(root) == root
    assert inner_folder(root.parent) in (root, root.parent)


def test_columns_are_read_from_paths(make_folder: MakeFolder) -> None:
    data = HistologyDataModule(make_folder({"benign": 5, "malignant": 5}), columns={"kind": r"(\w+)/", "no": "x(y)"})
    assert data.values_of_columns(["benign/a.png"]) == {"kind": ["benign"], "no": [""]}


def test_the_groups_file_of_an_audit_without_a_finding_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    file.write_text("group,path,folder\n")
    assert keep_together(TILES, file) == TILES


def test_a_fold_without_folds_is_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(UserError, match="means nothing without data"):
        HistologyDataModule(make_folder({"benign": 5, "malignant": 5}), fold=2).setup()
