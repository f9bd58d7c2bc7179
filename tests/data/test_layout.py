"""Folder layouts, read in one way by training, evaluation and audit."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histo_pl.data.source import TileSource
from histo_pl.errors import UserError
from histo_pl.images import find_files
from tests.conftest import draw_image
from tests.data.test_datamodule import open_folder

MakeFolder = Callable[..., Path]
CLASSES = ("benign", "malignant")


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_a_published_split_is_taken_as_it_is(make_folder: MakeFolder, val: str) -> None:
    counts = {f"{split}/{name}": 4 for split in ("train", val, "test") for name in CLASSES}
    data = open_folder(make_folder(counts))
    assert Counter(data.split_of.values()) == {"train": 8, "val": 8, "test": 8}
    assert all(path.startswith(f"{val}/") for path, split in data.split_of.items() if split == "val")


def test_hidden_files_and_folders_are_left_out_and_underscores_are_not(make_folder: MakeFolder) -> None:
    root = make_folder({"cancer": 2, "normal": 1, ".cache": 1, "__MACOSX": 1})
    (root / "cancer" / "._tile000.png").write_bytes(b"macOS")
    draw_image(root / "normal" / "__x.png")
    assert [tile.path for tile in TileSource(root).read().tiles] == [
        "cancer/tile000.png",
        "cancer/tile001.png",
        "normal/__x.png",
        "normal/tile000.png",
    ]


@pytest.mark.parametrize(
    ("counts", "message"),
    [({"benign": 1}, "two class folders"), ({"a": 1, "b": 1, "c": 1}, "There are 3 class folders")],
)
def test_training_wants_two_classes(make_folder: MakeFolder, counts: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TileSource(make_folder(counts)).read()


def test_training_wants_images_of_each_class(make_folder: MakeFolder) -> None:
    root = make_folder({"benign": 1})
    (root / "malignant").mkdir()
    with pytest.raises(UserError, match=r"two class folders with images.*class folders benign$"):
        TileSource(root).read()


def test_images_in_no_class_folder_are_loose(make_folder: MakeFolder) -> None:
    root = make_folder({"train/benign": 1, "train/malignant": 1, "test/benign": 1, "test/malignant": 1})
    draw_image(root / "train" / "stray.png")
    draw_image(root / "logo.png")
    loose = TileSource(root).read_any().loose
    assert [(tile.path, tile.published_split) for tile in loose] == [("logo.png", None), ("train/stray.png", "train")]


@pytest.mark.parametrize("split", ["train", "test", "val"])
def test_a_lone_folder_is_stepped_into_whatever_lies_beside_it(make_folder: MakeFolder, split: str) -> None:
    root = make_folder({f"{split}/benign": 1, f"{split}/malignant": 1})
    (root / "Folds.csv").touch()
    (root / "empty").mkdir()
    (root.parent / "README.txt").touch()
    assert TileSource(root.parent).read().root == root / split


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"val/benign": 3, "test/malignant": 3}, "must have train"),
        ({"train/benign": 3, "test/benign": 3}, "two class folders"),
        ({"train/benign": 3, "test/benign": 3, "more/benign": 3}, "no other"),
        ({"train/benign": 3, "test/benign": 3, "val/benign": 3, "valid/benign": 3}, "no other"),
        ({"train/a": 3, "train/b": 3, "test/a": 3, "test/c": 3}, "There are 3 class folders"),
        ({"train/benign": 3, "train/malignant": 3, "test/benign": 3}, "same two classes"),
        ({"benign": 2, "malignant": 2}, "too few"),
        ({"Train/benign": 3, "Test/malignant": 3}, "same two classes"),
    ],
)
def test_an_unexpected_layout_is_refused(make_folder: MakeFolder, counts: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_folder(make_folder(counts))


def test_files_that_are_no_images_are_named(make_folder: MakeFolder) -> None:
    root = make_folder({"benign": 5, "malignant": 5})
    (root / "benign" / "notes.txt").touch()
    (root / "benign" / ".DS_Store").touch()
    draw_image(root / "stray.png")
    draw_image(root / "benign" / ".ipynb_checkpoints" / "tile000.png")
    data = open_folder(root)
    assert data.other_files() == ["benign/notes.txt", "stray.png"]
    assert len(data.tiles) == 10


def test_a_link_in_a_circle_is_counted_once(make_folder: MakeFolder) -> None:
    root = make_folder({"benign": 10, "malignant": 10, "malignant/deep": 2})
    for link, target in (("benign/again", "benign"), ("malignant/deep/up", "malignant"), ("malignant/all", ".")):
        (root / link).symlink_to(root / target)
    (root / "benign" / "relative").symlink_to("..")
    files = list(find_files(root))
    assert len(files) == len(set(files)) == 22
    assert len(open_folder(root).tiles) == 22


def test_two_links_that_lead_to_each_other_make_no_circle(make_folder: MakeFolder) -> None:
    root = make_folder({"benign": 10, "malignant": 10})
    (root / "benign" / "other").symlink_to(root / "malignant")
    (root / "malignant" / "other").symlink_to(root / "benign")
    assert len(list(find_files(root))) <= 40


def test_a_link_to_another_folder_is_followed(make_folder: MakeFolder) -> None:
    root = make_folder({"benign": 10, "malignant": 10})
    elsewhere = make_folder({"archive": 5}, root="elsewhere") / "archive"
    (root / "benign" / "more").symlink_to(elsewhere)
    data = open_folder(root)
    assert [tile.path for tile in data.tiles if "more" in tile.path] == [
        f"benign/more/tile{number:03}.png" for number in range(5)
    ]
    assert len(data.tiles) == 25


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("training", "testing"), ("TRAINING", "Validation"), ("train", "Valid")]
)
def test_split_folders_have_many_names(make_folder: MakeFolder, train: str, test: str) -> None:
    data = open_folder(make_folder({f"{split}/{name}": 6 for split in (train, test) for name in CLASSES}))
    other = "test" if test.lower().startswith("test") else "val"
    assert {split for path, split in data.split_of.items() if path.startswith(f"{test}/")} == {other}
    assert data.has_test == (other == "test")


PATIENTS = {f"{patient}/{label}": 3 for patient in (8863, 8864, 8865, 8866, 8867, 8868) for label in (0, 1)}


def test_a_folder_of_each_patient_holds_the_classes(make_folder: MakeFolder) -> None:
    data = open_folder(make_folder(PATIENTS), positive_class="1")
    assert {tile.case for tile in data.tiles} == {"8863", "8864", "8865", "8866", "8867", "8868"}
    assert all((tile.class_name == "1") == ("/1/" in tile.path) for tile in data.tiles)
    with pytest.raises(UserError, match=r"data\.positive_class=NAME.*0, 1"):
        open_folder(make_folder(PATIENTS, root="again"))
    with_regex = open_folder(make_folder(PATIENTS, root="third"), positive_class=1, group_regex=r"^88(\d\d)")
    assert "63" in {tile.case for tile in with_regex.tiles}


def test_a_second_copy_among_the_patients_is_named(make_folder: MakeFolder) -> None:
    """As in Kaggle's download of the IDC tiles."""
    root = make_folder(PATIENTS | {f"IDC_regular/{folder}": 3 for folder in PATIENTS})
    with pytest.raises(UserError, match=r"data\.exclude='IDC_regular/\*\*'"):
        open_folder(root, positive_class="1")
    assert len(open_folder(root, positive_class="1", exclude="IDC_regular/**").tiles) == 36


def test_an_unclear_layout_names_what_was_found_and_the_line_to_type(make_folder: MakeFolder) -> None:
    root = make_folder({f"{first}/{second}": 2 for first in "AB" for second in ("x", "y")})
    with pytest.raises(UserError, match=r"If x, y are the classes.*data\.positive_class=y.*If A, B are.*=B"):
        open_folder(root)
    assert {tile.class_name for tile in TileSource(root, positive_class="B").read().tiles} == {"A", "B"}
    assert {tile.class_name for tile in TileSource(root, positive_class="y").read().tiles} == {"x", "y"}


BREAKHIS_V1 = {
    f"histology_slides/breast/{name}/SOB/{subtype}/SOB_{name[0].upper()}_{letter}_14-{case}/{magnification}X": 2
    for name, subtype, letter in (("benign", "adenosis", "A"), ("malignant", "ductal_carcinoma", "DC"))
    for case in range(100, 105)
    for magnification in (40, 200)
}


def test_class_folders_may_lie_deep(make_folder: MakeFolder) -> None:
    root = make_folder(BREAKHIS_V1)
    assert {tile.class_name for tile in TileSource(root).read().tiles} == {"benign", "malignant"}
    of_subtypes = TileSource(root, positive_class=["ductal_carcinoma"]).read()
    assert {tile.class_name for tile in of_subtypes.tiles} == {"adenosis", "ductal_carcinoma"}
    assert not any(tile.case for tile in of_subtypes.tiles)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"include": "**/200X/**"}, 20),
        ({"include": ["**/200X/*000.png", "benign/**"]}, 25),
        ({"exclude": "**/40X/*"}, 20),
        ({"include": "benign/**", "exclude": ["**/14-10[0-3]/**", "*"]}, 20),
        ({"include": "**/SOB_?_*14-10[!0]/**"}, 32),
    ],
)
def test_patterns_choose_files(make_folder: MakeFolder, options: dict[str, Any], count: int) -> None:
    found = TileSource(make_folder(BREAKHIS_V1), **options).read_any()
    assert (len(found.tiles), found.left_out) == (count, 40 - count)


@pytest.mark.parametrize("option", [{"include": "**/400X/**"}, {"exclude": ["**/40X/**", "*_bad.png"]}])
def test_a_pattern_that_matches_nothing_is_refused(make_folder: MakeFolder, option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"matches no image.*Received: (\*\*/400X/\*\*|\*_bad\.png)$"):
        TileSource(make_folder(BREAKHIS_V1), **option).read()


def test_several_magnifications_are_asked_about_and_stay_with_their_patient(make_folder: MakeFolder) -> None:
    options: dict[str, Any] = {"columns": {"magnification": r"/(\d+)X/"}, "group_regex": r"_14-(\d+)"}
    root = make_folder(BREAKHIS_V1)
    with pytest.raises(UserError, match=r"data\.magnification=40 or 200, or all"):
        open_folder(root, magnification="ask", **options)
    with pytest.raises(UserError, match=r"No tile has this magnification.*data.magnification=400"):
        open_folder(root, magnification=400, **options)
    assert len(open_folder(root, magnification=200, **options).tiles) == 20
    data = open_folder(root, magnification="all", **options)
    splits = {(tile.case, tile.class_name): set() for tile in data.tiles}
    for tile in data.tiles:
        splits[tile.case, tile.class_name].add(data.split_of[tile.path])
    assert {len(of_case) for of_case in splits.values()} == {1}


def test_tiles_of_several_folders_keep_them_as_a_column(make_folder: MakeFolder) -> None:
    root = make_folder(dict.fromkeys(("Benign", "InSitu", "Invasive", "Normal"), 5))
    data = open_folder(root, positive_class=["InSitu", "Invasive"])
    assert data.summary()["positive_class"] == "InSitu, Invasive"
    assert set(data.values_of_columns([tile.path for tile in data.tiles])["class folder"]) == {
        "Benign",
        "InSitu",
        "Invasive",
        "Normal",
    }
