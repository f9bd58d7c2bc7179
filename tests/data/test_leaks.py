"""Exact copies across a split and across classes."""

from collections.abc import Callable
from pathlib import Path

from histo_pl.data import HistologyDataModule
from histo_pl.data.hashing import content_hash
from histo_pl.data.leaks import leak_warnings
from histo_pl.data.tile import Tile
from tests.conftest import draw_image

MakeFolder = Callable[..., Path]


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
    hashes = dict(zip(paths, (content_hash((tmp_path / path).read_bytes()) for path in paths), strict=True))
    (warning,) = leak_warnings(tiles, dict.fromkeys(paths, "train"), hashes)
    assert warning == "1 images lie in both classes, such as a/1.png and b/2.png: one label is wrong."
