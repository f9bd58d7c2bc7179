"""QuPath's folder in the hands of the real WSInfer: an environment of its own, as it needs zarr below 3."""

import csv
import json
import subprocess
import sys
import sysconfig
import textwrap
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from histo_pl import Predictor, load_model, save_model
from histo_pl.images import read_rgb
from histo_pl.interop.export import export
from tests.conftest import BREAKHIS
from tests.interop.test_export import KERAS, make_model

SIDE = 4  # tiles along a side of the slide
RUN = """
    import json, sys
    from pathlib import Path
    from wsinfer_zoo.client import ModelConfiguration, validate_config_json
    from wsinfer.modellib.models import LocalModelTorchScript
    from wsinfer.modellib.run_inference import run_inference
    folder, slides, results = map(Path, sys.argv[1:])
    config = json.loads((folder / "config.json").read_text())
    validate_config_json(config)
    model = LocalModelTorchScript(
        config=ModelConfiguration.from_dict(config), model_path=str(folder / "torchscript_model.pt")
    )
    run_inference(slides, results, model)
"""


@pytest.fixture(scope="session")
def wsinfer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with WSInfer, which borrows PyTorch from this one."""
    folder = tmp_path_factory.mktemp("wsinfer") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    Path(site.stdout.strip(), "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    packages = ["wsinfer==0.6.1", "zarr<3", "numpy<2.3", "tifffile<2025", "setuptools<81"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.25])
def test_wsinfer_answers_as_predict(threshold: float, wsinfer: Path, tmp_path: Path) -> None:
    if not BREAKHIS.is_dir():
        pytest.skip(f"the real tiles are not here: {BREAKHIS}")
    config = KERAS | {"image_size": 224}
    model = make_model(config, image_size=224, threshold=threshold, novelty=None)
    model = replace(model, data=model.data | {"tile_size": [224, 224]})
    save_model(model, tmp_path / "model.ckpt")
    export(tmp_path / "model.ckpt", tmp_path / "model", "qupath")
    files = sorted(BREAKHIS.rglob("*.png"))[:: 839 // SIDE**2][: SIDE**2]
    pixels = np.concatenate(
        [np.concatenate([read_rgb(file) for file in files[row * SIDE : (row + 1) * SIDE]], 1) for row in range(SIDE)]
    )
    (tmp_path / "slides").mkdir()
    tifffile.imwrite(tmp_path / "slides" / "slide.tif", pixels, tile=(224, 224), photometric="rgb")
    (tmp_path / "results" / "patches").mkdir(parents=True)
    with h5py.File(tmp_path / "results" / "patches" / "slide.h5", "w") as stream:
        places = [(224 * column, 224 * row) for row in range(SIDE) for column in range(SIDE)]
        coordinates = stream.create_dataset("coords", data=np.array(places))
        coordinates.attrs.update({"patch_level": 0, "patch_size": 224})
    program = [wsinfer, "-c", textwrap.dedent(RUN), tmp_path / "model", tmp_path / "slides", tmp_path / "results"]
    subprocess.run(program, check=True, env={"WSINFER_FORCE_CPU": "1", "HOME": str(tmp_path)})
    with (tmp_path / "results" / "model-outputs-csv" / "slide.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    answers = list(Predictor(load_model(tmp_path / "model.ckpt")).predict(files))
    found = {(int(row["minx"]), int(row["miny"])): float(row["prob_malignant"]) for row in rows}
    assert len(found) == SIDE**2
    for place, answer in zip(places, answers, strict=True):
        odds = answer.probability / (1 - answer.probability) / (threshold / (1 - threshold))
        assert abs(found[place] - odds / (1 + odds)) < 1e-4
        assert (found[place] > 0.5) == (answer.label == "Malignant")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["spacing_um_px"] == 0.5
