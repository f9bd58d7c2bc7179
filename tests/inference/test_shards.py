import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from histo_pl import UserError
from histo_pl.__main__ import main
from histo_pl.inference.run import predict
from histo_pl.inference.shards import Shard, merge
from tests.conftest import draw_image
from tests.inference.test_slides import draw_slide
from tests.slides.test_readers import write_pyramid

COUNT = 4


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Tiles in folders, one of them no image, and two slides; two names differ in their endings alone."""
    for number in range(10):
        draw_image(tmp_path / "images" / f"folder {number % 3}" / f"{number}.png", number, (32, 32))
    draw_image(tmp_path / "images" / "folder 0" / "0.jpg", 11, (32, 32))
    (tmp_path / "images" / "slides").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    for name in ("a", "b"):
        write_pyramid(tmp_path / "images" / "slides" / f"{name}.tiff", draw_slide(), 0.5)
    return tmp_path / "images"


@pytest.fixture
def run(trained: Path, images: Path) -> Any:
    def predict_into(out: Path, **options: Any) -> int:
        return predict(str(trained), str(images), str(out), device="cpu", mpp_tile=0.5, **options)

    return predict_into


def test_merged_shards_equal_one_run(run: Any, tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path / "whole") == 1  # one file has no answer
    for number in range(COUNT, 0, -1):
        run(tmp_path / "parts", shard=f"{number}/{COUNT}")
    main(["merge", str(tmp_path / "parts")])
    assert "4 shards with 14 files joined" in capsys.readouterr().out
    for name in ("predictions.csv", "slides.csv"):
        whole, parts = (list(csv.DictReader((tmp_path / run / name).open())) for run in ("whole", "parts"))
        assert [one.keys() for one in parts] == [one.keys() for one in whole]
        for row, wanted in zip(parts, whole, strict=True):
            for key, value in wanted.items():  # numbers depend a little on the batch that a tile is in
                assert row[key] == value or float(row[key]) == pytest.approx(float(value), abs=1e-6, rel=1e-5)


def test_a_finished_shard_is_not_answered_again(run: Any, tmp_path: Path, capsys: Any) -> None:
    run(tmp_path / "parts", shard="1/2")
    table = tmp_path / "parts" / "shard-1-of-2" / "predictions.csv"
    table.write_text("kept")
    assert run(tmp_path / "parts", shard="1/2") == 0
    assert "finished already" in capsys.readouterr().err and table.read_text() == "kept"


def test_missing_and_unfinished_shards_are_named(run: Any, tmp_path: Path) -> None:
    for number in (1, 3):
        run(tmp_path / "parts", shard=f"{number}/{COUNT}")
    (tmp_path / "parts" / f"shard-3-of-{COUNT}" / "shard.json").unlink()
    with pytest.raises(UserError, match=r"3 of 4 shards are missing or unfinished: 2, 3, 4\..*shard=2/4"):
        merge(tmp_path / "parts")
    assert not (tmp_path / "parts" / "predictions.csv").exists()


def test_shards_of_other_files_or_settings_are_not_joined(run: Any, images: Path, tmp_path: Path) -> None:
    run(tmp_path / "parts", shard="1/2")
    with pytest.raises(UserError, match="other settings"):
        run(tmp_path / "parts", shard="1/2", overlap=0.5)
    shutil.rmtree(tmp_path / "parts" / "shard-1-of-2")
    run(tmp_path / "parts", shard="1/2", overlap=0.5)
    run(tmp_path / "parts", shard="2/2")
    with pytest.raises(UserError, match="different models or settings"):
        merge(tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "shard-1-of-2")
    shutil.rmtree(images / "folder 1")
    run(tmp_path / "parts", shard="1/2")
    with pytest.raises(UserError, match="not made of the same files"):
        merge(tmp_path / "parts")
    with pytest.raises(UserError, match="no shards of one division"):
        merge(tmp_path)


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "1/0", "1"])
def test_a_shard_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="1/16 to 16/16"):
        Shard.of(text)


def test_a_shard_needs_a_folder(run: Any, trained: Path, images: Path) -> None:
    with pytest.raises(UserError, match="out=FOLDER"):
        predict(str(trained), str(images), shard="1/2")


def test_a_shard_without_files_is_finished(run: Any, trained: Path, images: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        predict(str(trained), str(images / "folder 0" / "0.png"), str(tmp_path / "out"), shard=f"{number}/2")
    merge(tmp_path / "out")
    notes = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*/shard.json")]
    assert sorted(len(note["files"]) for note in notes) == [0, 1]
