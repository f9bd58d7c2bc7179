import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from histo_pl.__main__ import main
from histo_pl.errors import UserError
from histo_pl.images import KERAS_RESIZE
from histo_pl.inference import Predictor
from histo_pl.inference.run import predict
from histo_pl.interop.convert import convert
from histo_pl.models import build_network
from histo_pl.models.checkpoint import TrainedModel, save_model
from histo_pl.models.ensemble import load_model
from histo_pl.training.module import TileClassifier
from tests.conftest import ROOT, draw_image
from tests.keras_peer import keras, notebook, save

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def keras_file(tmp_path: Path) -> Path:
    return save(notebook(32, units=16), tmp_path / "Breast_Cancer_Model.h5")


def run_program(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "histo_pl", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_converted_model_answers_as_keras_does(keras_file: Path, tmp_path: Path) -> None:
    convert(keras_file, tmp_path / "model.ckpt")
    file = draw_image(tmp_path / "tile.png", size=(32, 32))
    (answer,) = Predictor(load_model(tmp_path / "model.ckpt"), "cpu").predict([file])
    pixels = keras.utils.img_to_array(keras.utils.load_img(file))[None] / 255
    expected = keras.models.load_model(keras_file)(pixels).item()
    assert answer.probability == pytest.approx(expected, abs=1e-6)
    assert answer.label == ("Malignant" if expected > 0.5 else "Benign")
    assert answer.trained_on == "a Keras model, Breast_Cancer_Model.h5"


def test_the_resize_of_a_converted_model_is_that_of_its_training(keras_file: Path, tmp_path: Path) -> None:
    convert(keras_file, tmp_path / "model.ckpt")
    model, file = load_model(tmp_path / "model.ckpt"), draw_image(tmp_path / "tile.png", size=(70, 46))
    assert model.resize == KERAS_RESIZE
    pixels = keras.utils.img_to_array(keras.utils.load_img(file, target_size=(32, 32)))[None] / 255
    (answer,) = Predictor(model, "cpu").predict([file])
    assert answer.probability == pytest.approx(keras.models.load_model(keras_file)(pixels).item(), abs=1e-6)


def test_lightning_opens_a_converted_model_too(keras_file: Path, tmp_path: Path) -> None:
    convert(keras_file, tmp_path / "model.ckpt")
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    peer = TileClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    assert torch.equal(load_model(tmp_path / "model.ckpt").network(images), peer(images).detach())


def test_there_and_back_is_exact(keras_file: Path, tmp_path: Path) -> None:
    convert(keras_file, tmp_path / "model.ckpt")
    convert(tmp_path / "model.ckpt", tmp_path / "back.h5")
    for a, b in zip(
        keras.models.load_model(keras_file).get_weights(),
        keras.models.load_model(tmp_path / "back.h5").get_weights(),
        strict=True,
    ):
        assert np.array_equal(a, b)


def test_many_training_hashes_survive_the_way_there_and_back(trained: Path, tmp_path: Path) -> None:
    """An attribute of HDF5 would hold 64 KB."""
    model = load_model(trained / "best.ckpt")
    model = replace(model, training_hashes={f"{number:016x}": "train" for number in range(10_000)})
    save_model(model, tmp_path / "many.ckpt")
    convert(tmp_path / "many.ckpt", tmp_path / "many.h5")
    convert(tmp_path / "many.h5", tmp_path / "back.ckpt")
    assert load_model(tmp_path / "back.ckpt").training_hashes == model.training_hashes
    assert keras.models.load_model(tmp_path / "many.h5").count_params() > 0


def test_there_and_back_a_checkpoint_stays_what_it_is(trained: Path, tmp_path: Path) -> None:
    convert(trained / "best.ckpt", tmp_path / "there.h5")
    convert(tmp_path / "there.h5", tmp_path / "back.ckpt")
    first, again = load_model(trained / "best.ckpt"), load_model(tmp_path / "back.ckpt")
    for name in ("model_config", "image_size", "resize", "threshold", "temperature", "data"):
        assert getattr(again, name) == getattr(first, name)
    keras.models.load_model(tmp_path / "there.h5").save(tmp_path / "saved_anew.h5")
    convert(tmp_path / "saved_anew.h5", tmp_path / "anew.ckpt")
    assert load_model(tmp_path / "anew.ckpt").trained_on == "a Keras model, saved_anew.h5"


def test_arguments_that_a_checkpoint_leaves_out_are_the_networks_own(tmp_path: Path) -> None:
    network = build_network({"name": "keras_cnn", "image_size": 32})
    facts = {"name": "x", "negative_class": "benign", "positive_class": "malignant"}
    model = TrainedModel(network, {"name": "keras_cnn", "image_size": 32}, 32, KERAS_RESIZE, 0.5, 1.0, facts)
    save_model(model, tmp_path / "a.ckpt")
    assert "dense layer of 256 with sigmoid" in convert(tmp_path / "a.ckpt", tmp_path / "a.h5")
    with pytest.raises(UserError, match="noted in this file has been changed"):  # the facts above are not whole
        convert(tmp_path / "a.h5", tmp_path / "b.ckpt")


def test_where_keras_first_class_is_malignant_the_sign_is_turned(keras_file: Path, tmp_path: Path) -> None:
    convert(keras_file, tmp_path / "one.ckpt", malignant=1)
    convert(keras_file, tmp_path / "zero.ckpt", malignant=0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    one, zero = (load_model(tmp_path / f"{name}.ckpt").network(images) for name in ("one", "zero"))
    assert torch.equal(one, -zero)


def test_a_temperature_goes_into_the_last_layer(keras_file: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    convert(keras_file, tmp_path / "a.ckpt")
    model = replace(load_model(tmp_path / "a.ckpt"), temperature=2.0)
    save_model(model, tmp_path / "b.ckpt")
    convert(tmp_path / "b.ckpt", tmp_path / "b.h5")
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = Predictor(model, "cpu").probabilities(images)
    peer = keras.models.load_model(tmp_path / "b.h5")(images.permute(0, 2, 3, 1) / 255)[:, 0].detach()
    assert torch.allclose(peer, expected, atol=1e-6)


def test_training_goes_on_from_a_converted_model(
    run_training: Run, keras_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(keras_file, tmp_path / "model.ckpt")
    options = (f"model.weights={tmp_path / 'model.ckpt'}", "model.dense_units=16")
    with caplog.at_level("INFO", "histo_pl"):
        results = run_training(*options, "optim.lr=0")
    start, end = (load_model(tmp_path / name) for name in ("model.ckpt", "run/best.ckpt"))
    for name, weight in start.network.state_dict().items():
        assert torch.equal(weight, end.network.state_dict()[name]), name
    assert "Its training tiles are unknown" in caplog.text
    assert results["data"]["pretrained_on"] == "a Keras model, Breast_Cancer_Model.h5"
    assert end.trained_on == "synthetic demo, starting from a Keras model, Breast_Cancer_Model.h5"
    assert "resized by pillow-nearest, these are by pillow-bilinear-antialias" in caplog.text
    resume = ("optim.lr=0", "trainer.max_epochs=2", f"resume={tmp_path / 'run'}")
    (tmp_path / "model.ckpt").unlink()  # last.ckpt has the weights, and knows what they began with
    for folder, given in (("with", options), ("without", options[1:])):
        assert run_training(*given, *resume, folder=folder)["data"] == results["data"]


def test_weights_of_another_network_are_refused(run_training: Run, keras_file: Path, tmp_path: Path) -> None:
    convert(keras_file, tmp_path / "model.ckpt")
    message = r"Expected model\.dense_units=16, as .*Received: model\.dense_units=256 model\.weights="
    with pytest.raises(UserError, match=message):
        run_training(f"model.weights={tmp_path / 'model.ckpt'}")
    for command in (
        lambda: run_training(f"model.weights={keras_file}"),
        lambda: predict(str(keras_file), str(draw_image(tmp_path / "tile.png"))),
    ):
        with pytest.raises(UserError, match=r"python -m histo_pl convert .*Breast_Cancer_Model\.h5"):
            command()


def test_what_cannot_be_converted_is_refused(keras_file: Path, trained: Path, tmp_path: Path) -> None:
    ckpt = trained / "best.ckpt"
    for arguments, message in (
        ((keras_file, tmp_path / "a.h5"), "cannot be converted"),
        ((ckpt, tmp_path / "a.keras"), "cannot be converted"),
        ((ckpt, tmp_path / "a.weights.h5"), "a whole model is written"),
        ((keras_file, Path("/proc/a.ckpt")), "cannot be written"),
        ((keras_file, keras_file.with_suffix(".h5")), "exists already"),
        ((tmp_path / "none.h5", tmp_path / "a.ckpt"), "no such Keras file"),
        ((tmp_path / "none.ckpt", tmp_path / "a.h5"), "no such checkpoint"),
        ((keras_file, tmp_path / "no" / "a.ckpt"), "folder to write to"),
    ):
        with pytest.raises(UserError, match=message):
            convert(*arguments)
    with pytest.raises(UserError, match="Expected no options"):
        convert(ckpt, tmp_path / "a.h5", image_size=32)


def test_an_interrupted_conversion_leaves_nothing(
    keras_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("histo_pl.interop.convert.save_model", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(keras_file, tmp_path / "model.ckpt")
    assert list(tmp_path.iterdir()) == [keras_file]


def test_the_command_converts_a_name_with_spaces_and_says_what_to_do_next(
    keras_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = keras_file.rename(tmp_path / "My model (v2).h5")
    main(["convert", str(odd), str(tmp_path / "my model.ckpt")])
    said = capsys.readouterr().out
    assert f"python predict.py ckpt='{tmp_path / 'my model.ckpt'}' img=TILE" in said
    assert f"python train.py model.weights='{tmp_path / 'my model.ckpt'}' model.dense_units=16" in said


def test_program_tells_a_mistake_in_one_line(tmp_path: Path) -> None:
    done = run_program("convert", tmp_path / "none.h5", tmp_path / "a.ckpt")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "Received: " in done.stderr


def test_the_command_says_what_it_assumes_of_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(notebook(32, "relu", units=16), tmp_path / "a.weights.h5")
    main(["convert", str(file), str(tmp_path / "a.ckpt"), "--image-size", "32", "--dense-activation", "relu"])
    assert "Taken for the notebook's network: no padding" in capsys.readouterr().out
    assert load_model(tmp_path / "a.ckpt").model_config["dense_activation"] == "relu"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert "convert" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    assert "python -m histo_pl convert Breast_Cancer_Model.h5 model.ckpt" in capsys.readouterr().out
