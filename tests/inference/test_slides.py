import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_pl.data.synthetic.tissue import Stain, draw_tile
from histo_pl.errors import UserError
from histo_pl.inference import Predictor
from histo_pl.inference.folder import names_of
from histo_pl.inference.run import predict
from histo_pl.inference.slide_options import SlideOptions
from histo_pl.models.checkpoint import load_checkpoint, save_model
from tests.conftest import ROOT
from tests.slides.test_readers import write_pyramid

GLASS = (244, 243, 245)
FIXTURES = ROOT / "tests" / "fixtures" / "checkpoints"


def draw_slide(columns: int = 8, rows: int = 6) -> np.ndarray:
    """Lay drawn tiles of 32 pixels side by side, with glass around them."""
    generator = np.random.default_rng(0)
    stain = Stain.draw(generator)
    tiles = [draw_tile(generator, stain, malignant=bool(n % 2), size=32) for n in range(12)]
    pixels = np.full(((rows + 2) * 32, (columns + 2) * 32, 3), GLASS, np.uint8)
    for row in range(rows):
        for column in range(columns):
            y, x = (row + 1) * 32, (column + 1) * 32
            pixels[y : y + 32, x : x + 32] = tiles[(row * columns + column) % 12]
    return pixels


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_pyramid(tmp_path / "slide.tiff", draw_slide(), 0.5)


def with_data(trained: Path, file: Path, **changes: Any) -> Path:
    """Write a checkpoint whose training data had other facts."""
    model = load_checkpoint(trained)
    save_model(replace(model, data=model.data | changes), file)
    return file


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_slide_is_answered_tile_by_tile(trained: Path, slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(str(trained), str(slide), str(out), tile=32) == 0
    folder = out / "slide"
    names = {"map.png", "map.tiff", "summary.json", "tiles.csv", "tiles.geojson", "top_tiles.png"}
    assert {file.name for file in folder.iterdir()} == names
    pixels, model = draw_slide(), load_checkpoint(trained)
    rows = rows_of(folder / "tiles.csv")
    assert len(rows) >= 48
    files = []
    for number, row in enumerate(rows):
        x, y = int(row["x"]), int(row["y"])
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels[y : y + 32, x : x + 32]).save(files[-1])
    for row, answer in zip(rows, Predictor(model, "cpu").predict(files), strict=True):
        assert float(row["probability"]) == pytest.approx(answer.probability, abs=2e-6)
        assert row["label"] == answer.label
    summary = json.loads((folder / "summary.json").read_text())
    counts = [summary[name] for name in ("malignant", "benign", "uncertain", "unlike")]
    assert sum(counts) == summary["tiles"] == len(rows)
    assert summary["mpp"] == pytest.approx(0.5, rel=1e-3)
    assert summary["tissue_mm2"] == pytest.approx(48 * (32 * 0.0005) ** 2, rel=0.2)
    (line,) = rows_of(out / "slides.csv")
    assert line["slide"] == "slide"
    report = (out / "report.html").read_text()
    assert "has not been measured" in report
    assert report.count("data:image/jpeg") == 2


def test_the_scale_of_the_training_decides_the_tile(trained: Path, slide: Path, tmp_path: Path) -> None:
    checkpoint = with_data(trained, tmp_path / "x.ckpt", mpp=1.0, tile_size=[32, 32])
    predict(str(checkpoint), str(slide), str(tmp_path / "a"))
    summary = json.loads((tmp_path / "a" / "slide" / "summary.json").read_text())
    assert summary["tile"] == [64, 64]  # 32 pixels of 1 micrometre are 64 of 0.5
    assert summary["level"] == 1
    predict(str(checkpoint), str(slide), str(tmp_path / "b"), mpp=0.25)
    assert json.loads((tmp_path / "b" / "slide" / "summary.json").read_text())["tile"] == [128, 128]
    predict(str(checkpoint), str(slide), str(tmp_path / "c"), magnification=10)
    assert json.loads((tmp_path / "c" / "slide" / "summary.json").read_text())["tile"] == [32, 32]


def test_an_unknown_scale_is_an_error_and_never_a_guess(trained: Path, tmp_path: Path) -> None:
    file = write_pyramid(tmp_path / "no_scale.tiff", draw_slide())
    known = with_data(trained, tmp_path / "known.ckpt", mpp=0.5, tile_size=[32, 32])
    with pytest.raises(UserError, match="micrometres per pixel of this slide are unknown"):
        predict(str(known), str(file), str(tmp_path / "out"))
    with pytest.raises(UserError, match="does not say the micrometres per pixel of its training tiles"):
        predict(str(trained), str(file), str(tmp_path / "out"), mpp=0.5)
    assert predict(str(known), str(file), str(tmp_path / "out"), mpp=0.5) == 0  # in the folder that was refused before
    old = FIXTURES / "keras_cnn_best.ckpt"
    with pytest.raises(UserError, match="does not say the size of its training tiles"):
        predict(str(old), str(file), str(tmp_path / "old"), mpp=0.5, mpp_tile=0.5)


def test_a_broken_slide_gets_its_error_and_the_others_go_on(
    trained: Path, slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slide.parent / "broken 😐.svs").write_bytes(b"no slide")
    (slide.parent / "tile.png").write_bytes(b"no image")
    Image.fromarray(draw_slide()[32:64, 32:64]).save(slide.parent / "small.png")
    assert predict(str(trained), str(slide.parent), str(tmp_path / "out"), tile=32) == 1
    rows = {row["slide"]: row for row in rows_of(tmp_path / "out" / "slides.csv")}
    assert rows["broken 😐"]["error"].startswith("This slide is of no format that OpenSlide knows")
    assert int(rows["slide"]["tiles"]) >= 48
    plain = {Path(row["file"]).name: row for row in rows_of(tmp_path / "out" / "predictions.csv")}
    assert plain.keys() == {"tile.png", "small.png"}
    assert "2 of 4 files have no answer" in capsys.readouterr().err
    assert "broken 😐" in (tmp_path / "out" / "report.html").read_text()


def test_a_killed_run_goes_on_where_it_was(trained: Path, tmp_path: Path) -> None:
    file = write_pyramid(tmp_path / "slide.tiff", draw_slide(40, 30), 0.5)
    arguments = [f"ckpt={trained}", f"img={file}", "tile=32", "batch_size=2", "device=cpu"]
    command = [sys.executable, str(ROOT / "predict.py"), *arguments, f"out={tmp_path / 'killed'}"]
    unfinished = tmp_path / "killed" / "slide" / "tiles.unfinished.csv"
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (not unfinished.exists() or unfinished.read_bytes().count(b"\n") < 40) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 40 <= unfinished.read_bytes().count(b"\n") < 1200
    predict(str(trained), str(file), str(tmp_path / "killed"), "cpu", 2, tile=32)
    predict(str(trained), str(file), str(tmp_path / "whole"), "cpu", 2, tile=32)
    for name in ("tiles.csv", "summary.json", "tiles.geojson", "map.png"):
        assert (tmp_path / "killed" / "slide" / name).read_bytes() == (tmp_path / "whole" / "slide" / name).read_bytes()


def test_a_stopped_run_names_the_line_that_goes_on(trained: Path, tmp_path: Path) -> None:
    file = write_pyramid(tmp_path / "a slide.tiff", draw_slide(40, 30), 0.5)
    command = [sys.executable, str(ROOT / "predict.py"), f"ckpt={trained}", f"img={file}", "tile=32", "batch_size=1"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("predictions/*/*/a slide/tiles.unfinished.csv")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    error = process.communicate()[1]
    assert process.returncode == 143
    (folder,) = tmp_path.glob("predictions/*/*")
    line = error.splitlines()[-1]
    assert line.startswith(f"Stopped (SIGTERM). What was answered is in {folder.relative_to(tmp_path)}. Go on with: ")
    assert line.endswith(f"out={folder.relative_to(tmp_path)}")


def test_another_model_or_other_settings_are_refused(trained: Path, slide: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    predict(str(trained), str(slide), out, tile=32)
    before = (tmp_path / "out" / "slide" / "tiles.csv").read_bytes()
    with pytest.raises(UserError, match=r"other settings.*tile=16 instead of 32"):
        predict(str(trained), str(slide), out, tile=16)
    other = with_data(trained, tmp_path / "other.ckpt", name="another")
    with pytest.raises(UserError, match="answers of another model"):
        predict(str(other), str(slide), out, tile=32)
    with pytest.raises(UserError, match="answered at another scale"):
        predict(str(trained), str(slide), out, tile=32, mpp=0.7)
    assert predict(str(trained), str(slide), out, tile=32) == 0
    assert (tmp_path / "out" / "slide" / "tiles.csv").read_bytes() == before


def test_results_of_something_else_are_not_overwritten(trained: Path, slide: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match="results of another run"):
        predict(str(trained), str(slide), str(tmp_path), tile=32)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{")
    with pytest.raises(UserError, match="no run of predictions"):
        predict(str(trained), str(slide), str(tmp_path / "other"), tile=32)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_answers_about_tiles_of_another_scale_are_not_continued(trained: Path, slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(str(trained), str(slide), str(out), tile=32)
    (out / "slide" / "summary.json").unlink()
    (out / "slide" / "tiles.csv").rename(out / "slide" / "tiles.unfinished.csv")
    with pytest.raises(UserError, match="tiles of another size or scale"):
        predict(str(trained), str(slide), str(out), tile=32, mpp=0.7)


def test_a_large_photograph_is_cut_into_tiles_and_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = with_data(trained, tmp_path / "x.ckpt", tile_size=[48, 32])
    Image.fromarray(draw_slide()).save(tmp_path / "photo.png")
    predict(str(checkpoint), str(tmp_path / "photo.png"), str(tmp_path / "out"))
    assert "larger than twice the training's (48x32 pixels" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "photo" / "summary.json").read_text())["tile"] == [48, 32]
    predict(str(checkpoint), str(tmp_path / "photo.png"), str(tmp_path / "whole.csv"), tile=False)
    assert len(rows_of(tmp_path / "whole.csv")) == 1
    assert not (tmp_path / "predictions").exists()


def test_a_table_of_scales_leaves_an_unlisted_photograph_as_it_is(trained: Path, slide: Path, tmp_path: Path) -> None:
    checkpoint = with_data(trained, tmp_path / "x.ckpt", mpp=0.5, tile_size=[48, 32])
    (tmp_path / "both").mkdir()
    slide.rename(tmp_path / "both" / "slide.tiff")
    Image.fromarray(draw_slide()).save(tmp_path / "both" / "photo.png")
    (tmp_path / "mpp.csv").write_text("slide,mpp\nslide.tiff,0.25\n")
    predict(str(checkpoint), str(tmp_path / "both"), str(tmp_path / "out"), mpp_file=str(tmp_path / "mpp.csv"))
    tiles = {
        name: json.loads((tmp_path / "out" / name / "summary.json").read_text())["tile"] for name in ("slide", "photo")
    }
    assert tiles == {"slide": [96, 64], "photo": [48, 32]}


def test_an_older_checkpoint_squeezes_a_large_image_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(draw_slide()).save(tmp_path / "photo.png")
    predict(str(FIXTURES / "keras_cnn_best.ckpt"), str(tmp_path / "photo.png"))
    assert "does not say the size of its training tiles" in capsys.readouterr().err


def test_a_tile_of_another_scale_is_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = with_data(trained, tmp_path / "x.ckpt", mpp=0.5)
    Image.fromarray(draw_slide()[32:64, 32:64]).save(tmp_path / "tile.png")
    predict(str(checkpoint), str(tmp_path / "tile.png"), mpp=0.25)
    assert "The tiles have 0.25 micrometres per pixel, those of the training 0.5." in capsys.readouterr().err


def test_evidence_maps_of_tiles_and_of_the_highest_tiles(trained: Path, slide: Path, tmp_path: Path) -> None:
    Image.fromarray(draw_slide()[32:64, 32:64]).save(tmp_path / "tile.png")
    predict(str(trained), str(tmp_path), str(tmp_path / "out"), tile=32, explain=True)
    assert Image.open(tmp_path / "out" / "evidence" / "tile.png").size == (960, 504)
    alone = tmp_path / "alone"
    predict(str(trained), str(slide), str(alone), tile=32)
    with_maps = Image.open(tmp_path / "out" / "slide" / "top_tiles.png").size
    assert with_maps[1] > Image.open(alone / "slide" / "top_tiles.png").size[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile is not as expected"),
        ({"tile": True}, "tile is not as expected"),
        ({"tile": "big"}, "tile is not as expected"),
        ({"overlap": 1}, "overlap is out of range"),
        ({"mpp_tile": -1, "tile": None}, "mpp_tile is out of range"),
        ({"mpp_tile": 0.5}, "given twice"),
        ({"tile": 32.5}, "tile is not as expected"),
        ({"explain": "magic"}, "no such evidence map"),
        ({"out": "table.csv"}, "written into a folder"),
    ],
)
def test_a_wrong_setting_is_one_line(options: dict[str, Any], message: str, trained: Path, slide: Path) -> None:
    with pytest.raises(UserError, match=message):
        predict(str(trained), str(slide), **({"tile": 32} | options))


def test_a_slide_cannot_be_squeezed(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be squeezed"):
        SlideOptions.of(tile=False).is_tiled(tmp_path / "x.svs", load_checkpoint(trained))


def test_slides_are_named_by_their_paths(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a/one.svs", "b/one.svs", "b/two.svs", "b/two.tiff")]
    assert names_of(files) == ["a/one", "b/one", "b/two.svs", "b/two.tiff"]
    assert names_of(files[:1]) == ["one"]
