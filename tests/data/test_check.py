"""Files that cannot be read, and tiles with nothing on them."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_pl.data import inspection
from histo_pl.data.inspection import inspect_files
from histo_pl.errors import UserError
from tests.data.test_datamodule import open_folder

MakeFolder = Callable[..., Path]
DAMAGED = [
    "benign/tile001.png",
    "benign/tile002.png",
    "malignant/tile000.png",
    "malignant/tile003.png",
    "malignant/tile004.png",
]


@pytest.fixture
def damaged(make_folder: MakeFolder) -> Path:
    """200 tiles, of which three are truncated, one is empty and one is a text."""
    root = make_folder({"benign": 100, "malignant": 100})
    for name in DAMAGED[:3]:
        (root / name).write_bytes((root / name).read_bytes()[:60])
    (root / DAMAGED[3]).write_bytes(b"")
    (root / DAMAGED[4]).write_text("no image")
    return root


def test_all_unreadable_files_are_named(damaged: Path) -> None:
    with pytest.raises(UserError, match=r"data.on_error=skip") as caught:
        open_folder(damaged)
    assert f"5: {', '.join(DAMAGED)}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_left_out_and_listed(damaged: Path, tmp_path: Path) -> None:
    data = open_folder(damaged, on_error="skip")
    assert len(data.tiles) == 195
    assert data.summary()["checked"]["unreadable_skipped"] == 5
    data.checked.write_skipped(tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == DAMAGED
    assert "no image" in rows[4]["reason"]


def test_blank_tiles_are_counted_and_left_out_on_request(make_folder: MakeFolder) -> None:
    root = make_folder({"benign": 10, "malignant": 10})
    Image.new("RGB", (32, 32), "white").save(root / "benign" / "tile000.png")
    grey = np.random.default_rng(0).integers(0, 200, (32, 32), dtype=np.uint8)
    Image.fromarray(grey).save(root / "benign" / "tile001.png")
    assert open_folder(root).summary()["checked"] == {
        "blank": 1,
        "grey": 1,
        "unreadable_skipped": 0,
        "blank_skipped": 0,
        "left_out": 0,
    }
    data = open_folder(root, blank="skip")
    assert data.checked.skipped == {"benign/tile000.png": "hardly any tissue (less than 5% of the tile)"}
    assert len(data.tiles) == 19
    with pytest.raises(UserError, match=r"data.blank is unknown"):
        open_folder(root, blank="drop")


def test_a_file_is_read_once_and_again_only_when_it_changes(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, store = make_folder({"benign": 5, "malignant": 5}), tmp_path / "cache" / "store.sqlite"
    paths = [f"{name}/tile{number:03}.png" for name in ("benign", "malignant") for number in range(5)]
    reads: list[Path] = []
    read = inspection.read_content
    monkeypatch.setattr(inspection, "read_content", lambda file: reads.append(file) or read(file))
    first = inspect_files(root, paths, store)
    assert len(reads) == len(set(reads)) == 10
    again = inspect_files(root, paths, store)
    assert len(reads) == 10
    assert again.hashes == first.hashes
    assert (again.colours_of(paths) == first.colours_of(paths)).all()
    (root / paths[3]).write_bytes((root / paths[4]).read_bytes())
    os.utime(root / paths[3], ns=(1, 1))  # a tool may set the old time back; ctime tells
    changed = inspect_files(root, paths, store)
    assert reads[10:] == [root / paths[3]]
    assert changed.hashes[paths[3]] == changed.hashes[paths[4]]


def test_a_store_that_cannot_be_used_is_said_and_passed_over(
    make_folder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store.sqlite"
    store.write_text("no database, but a text that is long enough to be read as one" * 10)
    data = open_folder(make_folder({"benign": 5, "malignant": 5}), inspections=store)
    assert len(data.hashes) == 10
    assert "cannot be remembered" in caplog.text
