"""Folder layouts, read in one way by training, evaluation and audit."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from histo_pl.data.layout import check_binary, read_layout
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
    layout = read_layout(root)
    assert layout.class_folders == {".": ("cancer", "normal")}
    assert [tile.path for tile in layout.tiles] == [
        "cancer/tile000.png",
        "cancer/tile001.png",
        "normal/__x.png",
        "normal/tile000.png",
    ]


@pytest.mark.parametrize("counts", [{"benign": 1}, {"a": 1, "b": 1, "c": 1}])
def test_training_wants_two_classes(make_folder: MakeFolder, counts: dict[str, int]) -> None:
    with pytest.raises(UserError, match="two class folders"):
        check_binary(read_layout(make_folder(counts)))


def test_training_wants_images_of_each_class(make_folder: MakeFolder) -> None:
    root = make_folder({"benign": 1})
    (root / "malignant").mkdir()
    with pytest.raises(UserError, match=r"no images.*malignant"):
        check_binary(read_layout(root))


def test_images_in_no_class_folder_are_loose(make_folder: MakeFolder) -> None:
    root = make_folder({"train/benign": 1, "train/malignant": 1, "test/benign": 1, "test/malignant": 1, "extra/a": 1})
    draw_image(root / "train" / "stray.png")
    layout = read_layout(root)
    assert [(tile.path, tile.published_split) for tile in layout.loose] == [
        ("extra/a/tile000.png", None),
        ("train/stray.png", "train"),
    ]


@pytest.mark.parametrize("split", ["train", "test", "val"])
def test_a_lone_split_folder_is_not_stepped_into(make_folder: MakeFolder, split: str) -> None:
    root = make_folder({f"{split}/benign": 1, f"{split}/malignant": 1})
    assert read_layout(root).root == root
    assert read_layout(root.parent).root == root


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/benign": 3, "train/malignant": 3}, "must hold train and test"),
        ({"train/benign": 3, "test/benign": 3}, "two class folders"),
        ({"train/benign": 3, "test/benign": 3, "more/benign": 3}, "no others"),
        ({"train/benign": 3, "test/benign": 3, "val/benign": 3, "valid/benign": 3}, "no others"),
        ({"train/a": 3, "train/b": 3, "test/a": 3, "test/c": 3}, "same two class folders"),
        ({"benign": 2, "malignant": 2}, "too few"),
        ({"Train/benign": 3, "Test/malignant": 3}, "same two class folders"),
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
    assert data.other_files() == ["stray.png", "benign/notes.txt"]
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
