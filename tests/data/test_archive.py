"""Zip files: unpacked once, whole, and nowhere else."""

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from histo_pl.data import HistologyDataModule
from histo_pl.data.archive import unpack
from histo_pl.errors import UserError
from tests.conftest import draw_image


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
        assert Counter(data.split_of.values()) == {"train": 8, "val": 2, "test": 10}
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


def test_a_zip_with_backslashes_is_unpacked_into_folders(tmp_path: Path) -> None:
    """As some Windows tools write them. Unpacked flat by an earlier version, the folder is not taken for it."""
    names = [rf"tiles\{kind}\{n}.png" for kind in ("benign", "malignant") for n in range(5)]
    archive = write_zip(tmp_path / "tiles.zip", *names)
    with zipfile.ZipFile(archive, "a") as contents:
        contents.writestr("tiles\\empty\\", b"")
    data = HistologyDataModule(archive, num_workers=0, on_error="stop")
    data.setup()
    assert len(data.tiles) == 10
    assert not [path for path in (tmp_path / "tiles").rglob("*") if "\\" in path.name]
    note = tmp_path / "tiles" / ".unpacked_from"
    note.write_text(note.read_text().replace(" with backslashes", ""))
    with pytest.raises(UserError, match="is not from this zip file"):
        unpack(archive)
