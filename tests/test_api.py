"""The Python API: a dozen names, imported lazily, from a clone and from a wheel."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import histo_pl
from histo_pl import Predictor, UserError, audit_tiles, evaluate, load_model, train
from tests.conftest import ROOT, draw_image

SMALL = {"image_size": 32, "num_workers": 0, "batch_size": 8}
TRAINER = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}


def test_every_public_name_is_there_and_none_is_a_room() -> None:
    rooms = {path.parent.name for path in (ROOT / "histo_pl").glob("*/__init__.py")}
    assert not rooms & set(histo_pl.__all__)
    for name in histo_pl.__all__:
        assert getattr(histo_pl, name).__doc__


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, histo_pl; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "lightning", "hydra", "numpy"} & set(loaded.stdout.split())


def test_training_takes_nested_settings(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_folder({"benign": 12, "malignant": 12}, name="case{:03}, (a).png")
    columns = {"kind": r"(\w+)/"}
    data = SMALL | {"group_regex": r"case\d+", "columns": columns}
    found = train(root, data=data, trainer=TRAINER, optim={"betas": [0.8, 0.99]}, model={"weights": None})
    assert Path(found["run"]["checkpoint"]).is_file()
    assert found["data"]["parts"]["test"]["cases"] > 0
    again = evaluate(found["run"]["checkpoint"], root, num_workers=0, columns=columns)
    assert again["seen"]["train"] == found["data"]["parts"]["train"]["tiles"]
    assert load_model(found["run"]["checkpoint"]).image_size == 32
    assert "24 tiles" in audit_tiles(str(root), exact_only=True, out=str(tmp_path / "audit"))
    assert not list(tmp_path.glob("outputs/*/*-2"))


def test_a_mistake_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for settings, message in (
        ({"optim": {"nonsense": 1}}, "optim.nonsense"),
        ({"recipe": "nonsense"}, "linear_probe"),
        ({"recipe": "crossval"}, r"sweep of several runs"),
        ({"recipe": ["crossval", "linear_probe"]}, r"train\.py 'experiment=\[crossval,linear_probe\]'"),
        ({"data": {"image_sise": 32}}, r"Did you mean data\.image_size"),
        ({"image_size": 32}, r"Did you mean .*data\.image_size"),
        ({"trainer": 1}, r"A setting is not as expected"),
        ({"data": {"image_size": "big"}}, r"data\.image_size is not as expected"),
    ):
        with pytest.raises(UserError, match=message):
            train("tiles", **settings)
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").glob("*/*"))


def test_images_and_models_of_another_kind_are_refused(trained: Path) -> None:
    predictor = Predictor(load_model(trained), "cpu")  # a run's folder
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert predictor.probabilities(images).shape == (2,)
    for wrong in (images.float() / 255, images[0], images.permute(0, 2, 3, 1), images[:, :, :16, :16], images.numpy()):
        with pytest.raises(UserError, match=r"Expected a tensor of torch\.uint8 .* \(B, 3, 32, 32\)"):
            predictor.probabilities(wrong)
    with pytest.raises(UserError, match=r"load_model.*Received: str"):
        Predictor(str(trained / "best.ckpt"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"A setting of the data is unknown.*group_regx, did you mean group_regex"):
        evaluate(trained, "x", group_regx="x")


def test_one_file_is_not_read_letter_by_letter(trained: Path, tmp_path: Path) -> None:
    file = draw_image(tmp_path / "tile.png")
    predictor = Predictor(load_model(trained / "best.ckpt"), "cpu")
    for files in (file, str(file), [str(file)], tmp_path):
        (answer,) = predictor.predict(files)
        assert answer.file == str(file) and answer.label


def test_a_wheel_has_every_template_and_says_what_training_needs(trained: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"  # the build writes beside what it reads
    shutil.copytree(ROOT / "histo_pl", source / "histo_pl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    files = [file for file in (source / "histo_pl").rglob("*") if file.is_file() and "egg-info" not in str(file)]
    assert [file for file in files if not (tmp_path / "site" / file.relative_to(source)).is_file()] == []
    code = f"""
import histo_pl
from pathlib import Path
assert Path(histo_pl.__file__).is_relative_to({str(tmp_path)!r}), histo_pl.__file__
tiles = {next(iter((trained / "config.yaml").read_text().split("root: ")[1:])).splitlines()[0]!r}
found = histo_pl.evaluate({str(trained / "best.ckpt")!r}, next(Path(tiles).iterdir()), num_workers=0)
assert (Path(found["folder"]) / "report.html").stat().st_size > 1000
try:
    histo_pl.train("tiles")
except histo_pl.UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert re.search(r"^Training needs the configuration files of a clone", done.stdout), done.stderr
