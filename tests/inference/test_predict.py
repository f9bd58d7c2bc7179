import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from histo_pl.cli.command_line import one_line_errors
from histo_pl.errors import UserError
from histo_pl.inference import Predictor
from histo_pl.inference.files import find_images
from histo_pl.inference.run import predict
from histo_pl.inference.table import format_table, write_table
from histo_pl.models.ensemble import load_model
from tests.conftest import BREAKHIS, ROOT, compose_config, draw_image

ODD_NAME = "odd, name (1) = [x] 'q' é.png"


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Three readable images, an unreadable one, and a file that is no image."""
    folder = tmp_path / "tiles"
    for number, name in enumerate(("b.png", "deep/er/a.JPG", ODD_NAME)):
        draw_image(folder / name, seed=number, size=(40, 30))
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n")
    (folder / "notes.txt").touch()
    return folder


def run_program(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "predict.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_files_of_a_folder_and_of_patterns(tiles: Path) -> None:
    names = [str(file.relative_to(tiles)) for file in find_images(str(tiles))]
    assert names == ["b.png", "damaged.png", ODD_NAME, "deep/er/a.JPG"]
    assert find_images(f"{tiles}/**/*.JPG") == [tiles / "deep/er/a.JPG"]
    assert find_images(f"{tiles}/notes.txt") == [tiles / "notes.txt"]


def test_links_are_followed_and_hidden_files_are_not_found(tiles: Path) -> None:
    draw_image(tiles.parent / "elsewhere" / "x.png")
    (tiles / "linked").symlink_to(tiles.parent / "elsewhere")
    draw_image(tiles / ".ipynb_checkpoints" / "y.png")
    draw_image(tiles / "._z.png")
    names = {file.name for file in find_images(str(tiles))}
    assert "x.png" in names
    assert not names & {"y.png", "._z.png"}


def test_a_lone_damaged_file_in_a_folder_still_gets_its_row(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "only.png").touch()
    assert predict(str(trained / "best.ckpt"), str(tmp_path), str(tmp_path / "out.json")) == 1
    assert json.loads((tmp_path / "out.json").read_text())[0]["error"]


def test_an_existing_name_wins_over_its_pattern(tmp_path: Path) -> None:
    draw_image(tmp_path / "x.png")
    draw_image(tmp_path / "[x].png")
    assert find_images(f"{tmp_path}/[x].png") == [tmp_path / "[x].png"]
    (tmp_path / "[x].png").unlink()
    assert find_images(f"{tmp_path}/[x].png") == [tmp_path / "x.png"]


def test_batches_and_order_do_not_change_an_answer(trained: Path, tiles: Path) -> None:
    files = find_images(str(tiles))
    answers = [list(Predictor(load_model(trained / "best.ckpt"), "cpu", size).predict(files)) for size in (1, 3)]
    for one, other in zip(*answers, strict=True):
        assert (one.file, one.label, one.error) == (other.file, other.label, other.error)
        assert one.probability == pytest.approx(other.probability, abs=1e-6)
    damaged = next(answer for answer in answers[0] if "damaged" in answer.file)
    assert damaged.probability is None
    assert damaged.label is None
    assert "no image" in str(damaged.error)


def test_a_label_follows_the_checkpoints_threshold(trained: Path, tiles: Path) -> None:
    from dataclasses import replace

    model = replace(load_model(trained / "best.ckpt"), novelty=None)
    file = tiles / "b.png"
    (answer,) = Predictor(model, "cpu").predict([file])
    assert answer.probability is not None
    for threshold, label in ((answer.probability, "Benign"), (answer.probability - 1e-4, "Malignant")):
        (again,) = Predictor(replace(model, threshold=threshold), "cpu").predict([file])
        assert again.label == label


def test_an_answer_that_is_no_number_is_no_answer(trained: Path, tiles: Path) -> None:
    model = load_model(trained / "best.ckpt")
    model.network.get_parameter("backbone.dense_1.bias").fill_(float("nan"))
    (answer,) = Predictor(model, "cpu").predict([tiles / "b.png"])
    assert (answer.probability, answer.label) == (None, None)
    assert "no number" in str(answer.error)


def test_temperature_softens(trained: Path) -> None:
    from dataclasses import replace

    model = load_model(trained / "best.ckpt")
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    sharp = Predictor(model, "cpu").probabilities(images)
    soft = Predictor(replace(model, temperature=4.0), "cpu").probabilities(images)
    assert torch.allclose(torch.logit(soft) * 4, torch.logit(sharp), atol=1e-5)


@pytest.mark.parametrize("extension", ["csv", "json"])
def test_predictions_are_written_for_programs(trained: Path, tiles: Path, tmp_path: Path, extension: str) -> None:
    out = tmp_path / f"out.{extension}"
    assert predict(str(trained / "best.ckpt"), str(tiles), str(out)) == 1
    if extension == "json":
        rows = json.loads(out.read_text())
    else:
        with out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert set(rows[0]) == {"file", "probability", "label", "error", "note", "novelty", "spread", "trained_on"}
    assert {row["trained_on"] for row in rows} == {"synthetic demo"}
    assert sum(bool(row["error"]) for row in rows) == 1
    assert str(tiles / ODD_NAME) in {row["file"] for row in rows}


def test_mistakes_are_told_before_any_work(trained: Path, tiles: Path, tmp_path: Path) -> None:
    ckpt, img = str(trained / "best.ckpt"), str(tiles)
    for arguments, message in (
        ((None, img), "checkpoint is missing"),
        ((ckpt, None), "image is missing"),
        ((ckpt, str(tmp_path / "*.gif")), "There is no image"),
        ((ckpt, img, "x.txt"), "out must end in"),
        ((ckpt, img, str(tmp_path / "no" / "x.csv")), "folder of out"),
        ((ckpt, img, None, "tpu"), "device"),
        ((ckpt, img, None, "cpu", 0), "batch_size"),
        ((ckpt, img, None, "cpu", 1, "keras"), "preprocess is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            predict(*arguments)


def test_preprocess_opencv_gives_the_notebooks_numbers(trained: Path, tmp_path: Path) -> None:
    file = draw_image(tmp_path / "x.png", size=(70, 46))
    predict(str(trained / "best.ckpt"), str(file), str(tmp_path / "out.json"), preprocess="opencv", tile=False)
    (answer,) = json.loads((tmp_path / "out.json").read_text())
    pixels = cv2.resize(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB), (32, 32))
    model = load_model(trained / "best.ckpt")
    as_notebook = Predictor(model, "cpu").probabilities(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    (by_default,) = Predictor(model, "cpu").predict([file])
    assert answer["probability"] == pytest.approx(as_notebook.item(), abs=1e-3)  # within one grey level
    assert by_default.probability != pytest.approx(as_notebook.item(), abs=1e-3)


def test_program_answers_for_an_odd_name_and_leaves_nothing_behind(trained: Path, tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs" / "d" / "t").mkdir(parents=True)
    shutil.copy(trained / "best.ckpt", tmp_path / "outputs" / "d" / "t")
    before = sorted(tmp_path.rglob("*"))
    shutil.copy(tiles / ODD_NAME, tmp_path / ODD_NAME)
    done = run_program(tmp_path, "ckpt=latest", f"img={ODD_NAME}")
    assert done.returncode == 0, done.stderr
    header, row = done.stdout.splitlines()
    assert header.split() == ["file", "probability", "novelty", "label"]
    assert row.startswith(ODD_NAME)
    assert row.endswith(("Benign", "Malignant", "Unlike training: refer"))
    assert "outputs/d/t/best.ckpt, trained on: synthetic demo" in done.stderr
    (tmp_path / ODD_NAME).unlink()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("ckpt={ckpt}",),
        ("ckpt={ckpt}", "img=/no/such.png"),
        ("ckpt={text}", "img={text}"),
        ("ckpt={ckpt}", "img={text}"),
    ],
    ids=["nothing", "no image", "wrong path", "text as checkpoint", "text as image"],
)
def test_a_mistake_is_told_in_one_line(
    trained: Path, tiles: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.format(ckpt=trained / "best.ckpt", text=tiles / "notes.txt") for a in arguments]
    config: Any = OmegaConf.to_container(compose_config("predict", *filled))
    with pytest.raises(SystemExit, match=r"^Error: [^\n]*Received: [^\n]*$"), one_line_errors():
        predict(**config)
    assert capsys.readouterr() == ("", "")


def test_program_tells_a_mistake_in_one_line(tiles: Path) -> None:
    done = run_program(tiles, "ckpt=none.ckpt", "img=notes.txt", "batch_size=big")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Error: ")
    assert "Received: " in done.stderr


@pytest.mark.skipif(not BREAKHIS.is_dir(), reason="the BreakHis tiles are not beside this repository")
def test_a_real_tile_gets_an_answer(trained: Path) -> None:
    file = next(BREAKHIS.rglob("*.png"))
    (answer,) = Predictor(load_model(trained / "best.ckpt"), "cpu").predict([file])
    assert answer.label == "Unlike training: refer"  # that of the demo
    assert answer.probability is not None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_that_is_no_unicode_is_printed(trained: Path, tmp_path: Path) -> None:
    draw_image(tmp_path / "x.png").rename(os.fsdecode(bytes(tmp_path) + b"/\xff.png"))
    Path(os.fsdecode(bytes(tmp_path) + b"/\xfe.png")).touch()
    done = run_program(tmp_path, f"ckpt={trained / 'best.ckpt'}", f"img={tmp_path}", "out=out.csv")
    assert done.returncode == 1, done.stderr
    predictions = list(Predictor(load_model(trained / "best.ckpt"), "cpu").predict(find_images(str(tmp_path))))
    write_table(predictions, tmp_path / "out.json")
    assert done.stdout.count("udcff") == 1
    assert all("udcff" in (tmp_path / name).read_text() for name in ("out.csv", "out.json"))


def test_a_tile_without_tissue_or_colour_has_a_note(trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (96, 96), (246, 244, 247)).save(tmp_path / "blank.png")
    grey = np.random.default_rng(0).integers(0, 200, (96, 96), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    draw_image(tmp_path / "usual.png")
    model = load_model(trained / "best.ckpt")
    notes = {Path(one.file).stem: one.note for one in Predictor(model, "cpu").predict(tmp_path)}
    assert notes == {"blank": "hardly any tissue", "grey": "grey, unlike the training tiles", "usual": None}
    parts = {"train": {"tiles": 10}}
    trained_on_grey = replace(model, data={**model.data, "parts": parts, "checked": {"grey": 9}})
    (answer,) = Predictor(trained_on_grey, "cpu").predict(tmp_path / "grey.png")
    assert answer.note is None
    assert "(hardly any tissue)" in format_table(list(Predictor(model, "cpu").predict(tmp_path / "blank.png")))


def test_files_of_a_folder_that_are_passed_over_are_counted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_image(tmp_path / "tiles" / "a.png")
    for name in ("slide.jp2", "notes.txt"):
        (tmp_path / "tiles" / name).touch()
    assert predict(str(trained / "best.ckpt"), str(tmp_path / "tiles")) == 0
    assert "Passed over, as no images: 2 files" in capsys.readouterr().err
