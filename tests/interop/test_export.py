import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from histo_pl import Predictor, UserError, evaluate, load_model, save_model
from histo_pl.__main__ import main
from histo_pl.inference.run import predict
from histo_pl.interop.export import export
from histo_pl.interop.parity import Answer, ParityTiles, compare
from histo_pl.models import build_network
from histo_pl.models.checkpoint import TrainedModel
from histo_pl.models.ensemble import FoldEnsemble
from histo_pl.models.novelty import Novelty, features_of
from tests.conftest import draw_image

DATA = {
    "name": "tiles",
    "synthetic": True,
    "negative_class": "benign",
    "positive_class": "malignant",
    "parts": None,
    "split": None,
    "fold": None,
    "mpp": 0.5,
    "tile_size": [40, 40],
}
KERAS = {"name": "keras_cnn", "image_size": 32, "dense_units": 8, "dense_activation": "relu"}
RESNET = {"name": "resnet18", "mean": [0.5, 0.4, 0.5], "std": [0.2, 0.2, 0.3]}


def make_model(config: dict[str, Any], seed: int = 0, **changes: Any) -> TrainedModel:
    torch.manual_seed(seed)
    network = build_network(config).eval().requires_grad_(False)
    novelty = Novelty.fit(features_of(network, images_of(200, 9))).with_limit(torch.tensor([3.0, 40.0]), 0.4)
    base = TrainedModel(network, config, 32, "pillow-bilinear-antialias", 0.5, 1.7, DATA, novelty=novelty)
    return replace(base, **changes)


def images_of(count: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def save_folds(folder: Path) -> Path:
    for number in range(2):
        model = make_model(KERAS, number, data=DATA | {"fold": [number, 2]}, temperature=1 + number)
        (folder / str(number)).mkdir(parents=True)
        save_model(model, folder / str(number) / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    save_model(make_model(KERAS, threshold=0.25, refer=(0.2, 0.3)), folder / "keras.ckpt")
    save_model(make_model(RESNET), folder / "resnet18.ckpt")
    return {
        "keras": folder / "keras.ckpt",
        "resnet18": folder / "resnet18.ckpt",
        "folds": save_folds(folder / "folds"),
    }


@pytest.fixture(scope="module")
def exported(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The notebook's network, exported once: an export takes seconds. Tests copy what they change."""
    folder, files = tmp_path_factory.mktemp("exported"), {}
    for to, name in (("onnx", "model.onnx"), ("torch", "model.pt2")):
        told = export(checkpoints["keras"], folder / to, to)
        assert "0 of 16 labels differ" in told and f"python predict.py ckpt={folder / to / name} img=TILES" in told
        files[to] = folder / to / name
    return files


def file_of(kind: str, to: str, exported: dict[str, Path], checkpoints: dict[str, Path], folder: Path) -> Path:
    if kind == "keras":
        return exported[to]
    export(checkpoints[kind], folder / "out", to)
    return folder / "out" / exported[to].name


@pytest.mark.parametrize(
    "kind", ["keras", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("resnet18", "folds"))]
)
@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_an_export_answers_as_its_checkpoint(
    checkpoints: dict[str, Path], exported: dict[str, Path], kind: str, to: str, tmp_path: Path
) -> None:
    file = file_of(kind, to, exported, checkpoints, tmp_path)
    model, again = load_model(checkpoints[kind]), load_model(file)
    assert isinstance(model.network, FoldEnsemble) == (kind == "folds")
    for threshold in (0.5, 0.25):
        for count in (1, 7, 64):
            names = [str(number) for number in range(count)]
            wanted = Predictor(replace(model, threshold=threshold)).predict_images(names, images_of(count))
            found = Predictor(replace(again, threshold=threshold)).predict_images(names, images_of(count))
            for attribute in ("probability", "novelty", *(["spread"] if kind == "folds" else [])):
                values = [[getattr(one, attribute) for one in answers] for answers in (wanted, found)]
                np.testing.assert_allclose(values[0], values[1], atol=1e-5, rtol=1e-5)
            assert [one.label for one in found] == [one.label for one in wanted]
            assert [one.note for one in found] == [one.note for one in wanted]
    for name in ("threshold", "refer", "image_size", "resize", "rule", "data", "mpp", "tile_size", "trained_on"):
        assert getattr(again, name) == getattr(model, name)


@pytest.mark.parametrize("threshold", [0.5, 0.25, 1.0])
def test_the_graph_of_qupath_decides_as_the_checkpoint(threshold: float, tmp_path: Path) -> None:
    model = make_model(KERAS, threshold=threshold)
    save_model(model, tmp_path / "model.ckpt")
    export(tmp_path / "model.ckpt", tmp_path / "out", "qupath")
    graph = torch.jit.load(tmp_path / "out" / "torchscript_model.pt")
    probability = Predictor(model).probabilities(images_of(64)).double()
    shares = graph(images_of(64).float() / 255).double().softmax(1)
    assert torch.equal(shares.argmax(1) == 1, probability > threshold)
    if threshold < 1:
        moved = torch.sigmoid(torch.logit(probability) - torch.logit(torch.tensor(threshold).double()))
        torch.testing.assert_close(shares[:, 1], moved, atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["patch_size_pixels"] == 32 and config["class_names"] == ["benign", "malignant"]
    assert config["spacing_um_px"] == 0.5 * 40 / 32
    assert "novelty" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="This is TorchScript"):
        load_model(tmp_path / "out" / "torchscript_model.pt")


def test_predict_prints_the_same_table(
    checkpoints: dict[str, Path], exported: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    draw_image(tmp_path / "tiles" / "a.png", size=(40, 30))
    draw_image(tmp_path / "tiles" / "b.jpg", seed=3, size=(32, 32))
    tables = []
    for ckpt in (checkpoints["keras"], exported["onnx"], exported["torch"].parent):
        assert predict(str(ckpt), str(tmp_path / "tiles"), device="cpu") == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] == tables[2] and "Unlike training" in tables[0]


@pytest.mark.slow
def test_views_are_averaged_as_the_checkpoint_averages_them(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tta = {"temperature": 2.0, "threshold": 0.4, "rule": "youden", "refer": None}
    model = replace(load_model(checkpoints["keras"]), decision_tta=tta)
    save_model(model, tmp_path / "model.ckpt")
    export(tmp_path / "model.ckpt", tmp_path / "out", "torch")
    again = load_model(tmp_path / "out" / "model.pt2")
    answers = [Predictor(one, tta=True).probabilities(images_of(5)) for one in (model, again)]
    torch.testing.assert_close(*answers)
    assert again.of_views().threshold == 0.4


def test_the_metadata_of_onnx_say_how_to_use_it(exported: dict[str, Path]) -> None:
    model = onnx.load(exported["onnx"])
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts["classes"] == ["benign", "malignant"] and facts["threshold"] == 0.25 and facts["refer"] == [0.2, 0.3]
    assert facts["mpp"] == 0.5 and len(facts["checkpoints"]["keras.ckpt"]) == 64
    assert not {"training_hashes", "training_cases"} & facts.keys()
    (shown,) = onnxruntime.InferenceSession(exported["onnx"]).get_inputs()
    assert shown.name == "images" and shown.shape[1:] == [3, 32, 32] and isinstance(shown.shape[0], str)


def test_the_example_needs_no_torch_and_agrees(
    checkpoints: dict[str, Path], exported: dict[str, Path], tmp_path: Path
) -> None:
    tiles = [draw_image(tmp_path / f"{number}.png", number, (40, 30)) for number in range(3)]
    code = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    program = [sys.executable, "-c", code, str(exported["onnx"].with_name("example.py")), *map(str, tiles)]
    told = subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()
    wanted = Predictor(load_model(checkpoints["keras"])).predict(tiles)
    for line, answer in zip(told, wanted, strict=True):
        assert line.startswith(f"{answer.file} {answer.probability:.5f}"[:-1]) and line.endswith(str(answer.label))


@pytest.mark.slow
def test_the_example_runs_where_there_are_only_three_packages(
    checkpoints: dict[str, Path], exported: dict[str, Path], tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "onnxruntime", "pillow", "numpy"], check=True)
    tile = draw_image(tmp_path / "tile.png", 1, (40, 30))
    told = subprocess.run(
        [python, exported["onnx"].with_name("example.py"), tile], check=True, capture_output=True, text=True
    )
    (answer,) = Predictor(load_model(checkpoints["keras"])).predict([tile])
    assert abs(float(told.stdout.split()[-2 if "refer" not in str(answer.label) else -4]) - answer.probability) < 1e-5
    assert told.stdout.strip().endswith(str(answer.label))


def fake_code(path: Path) -> Path:
    """Put a pickle that runs a command into a program."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    harm = path.with_name("harm.pt")
    torch.save({"harm": os.system}, harm)
    name = next(name for name in members if name.endswith("sample_inputs/model.pt"))
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in (members | {name: harm.read_bytes()}).items():
            archive.writestr(member, content)
    return path


def add_library(path: Path) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/aotinductor/model/x.so", b"")
    return path


def pickle_weights(path: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next((name for name in members if name.endswith("model_weights_config.json")), None)
    if name is None:
        pytest.skip("this PyTorch keeps weights as tensors alone")
    members[name] = members[name].replace(b'"use_pickle": false', b'"use_pickle": true')
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:1000])
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [(fake_code, "could be code"), (add_library, "could be code"), (pickle_weights, "could be code"), (cut, "read")],
)
def test_a_program_that_could_run_code_is_refused(
    exported: dict[str, Path], change: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        load_model(change(Path(shutil.copy(exported["torch"], tmp_path))))
    assert "\n" not in str(caught.value)


def test_an_onnx_model_of_another_program_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    file = Path(shutil.copy(exported["onnx"], tmp_path))
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {**{one.key: one.value for one in model.metadata_props}, "format": "2"})
    onnx.save(model, tmp_path / "newer.onnx")
    onnx.helper.set_model_props(model, {"task": '"other"'})
    onnx.save(model, tmp_path / "other.onnx")
    for name, reason in (("newer", "newer histo_pl"), ("other", "not exported by histo_pl")):
        with pytest.raises(UserError, match=reason):
            load_model(tmp_path / f"{name}.onnx")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(cut(file))
    with pytest.raises(UserError, match="no such model"):
        load_model(tmp_path / "none.onnx")


def test_what_an_export_cannot_do_is_said(exported: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(exported["onnx"])
    with pytest.raises(UserError, match="no evidence maps"):
        Predictor(model).explain(images_of(1))
    with pytest.raises(UserError, match="on the processor"):
        Predictor(model, device="cuda")
    with pytest.raises(UserError, match="exported model, which"):
        evaluate(exported["onnx"], tmp_path)
    for command in (
        ["card", str(exported["onnx"])],
        ["export", str(exported["torch"].parent), str(tmp_path / "again")],
        ["robustness", str(exported["onnx"]), str(tmp_path)],
    ):
        with pytest.raises(SystemExit, match="exported model, which"):
            main(command)


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"model_config": KERAS | {"stain": "macenko"}}, {}, "Macenko"),
        ({"data": DATA | {"mpp": None}}, {"to": "qupath"}, "--mpp 0.5"),
        ({"data": DATA | {"tile_size": [70, 46]}}, {"to": "qupath"}, "70x46"),
        ({"data": DATA | {"tile_size": None}}, {"to": "qupath", "mpp": 0.5}, "earlier version"),
        ({}, {"mpp": 0.5}, "for QuPath alone"),
        ({}, {"to": "qupath", "mpp": -1.0}, "above 0"),
        ({}, {"to": "coreml"}, "onnx, torch, qupath"),
        ({}, {"tiles": "nowhere"}, "no such folder"),
        ({}, {"to": "qupath", "mpp": 0.25}, "another scale"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    changes: dict[str, Any], options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = make_model(KERAS, **changes)
    if "model_config" in changes:
        model = replace(model, network=build_network(changes["model_config"]).eval())
    save_model(model, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=reason):
        export(tmp_path / "model.ckpt", tmp_path / "out", **options)
    assert [file.name for file in tmp_path.iterdir()] == ["model.ckpt"]


def test_an_existing_folder_is_kept(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export(checkpoints["keras"], tmp_path / "out")


def test_a_graph_that_answers_otherwise_is_refused_with_the_tile() -> None:
    tiles = ParityTiles(["a", "b", "c"], images_of(3), "three")
    wanted = Answer(np.array([0.1, 0.2, 0.3]), ["Benign"] * 3)

    def ask(images: Tensor) -> Answer:
        index = [int((tiles.images == image).flatten(1).all(1).nonzero()) for image in images]
        return Answer(np.array([0.1, 0.2005, np.nan])[index], ["Benign"] * len(index))

    with pytest.raises(UserError, match=r"nan for 0\.300000 of c, in 2 of 3 tiles"):
        compare(wanted, ask, tiles)


def test_the_graph_takes_the_bytes_that_pillow_reads(
    checkpoints: dict[str, Path], exported: dict[str, Path], tmp_path: Path
) -> None:
    tile = draw_image(tmp_path / "tile.png", 5, (32, 32))
    pixels = np.asarray(Image.open(tile)).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(exported["onnx"])
    (answer,) = Predictor(load_model(checkpoints["keras"])).predict([tile])
    assert abs(session.run(["probability"], {"images": pixels})[0][0] - answer.probability) < 1e-6
