import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from histo_pl.errors import UserError
from histo_pl.interop.keras_hdf5 import read_keras, write_keras
from histo_pl.models import KerasCNN
from tests.conftest import ROOT
from tests.fixtures.keras2 import SIZE, images
from tests.keras_peer import keras, layers, notebook, save

KERAS2 = ROOT / "tests" / "fixtures" / "keras2.h5"


def build(file: Path, *given: Any) -> KerasCNN:
    keras_network = read_keras(file, *given)
    network = KerasCNN(**{key: value for key, value in keras_network.model_config.items() if key != "name"})
    network.load_state_dict(keras_network.state)
    return network


def pre_activation(network: KerasCNN, images: np.ndarray) -> torch.Tensor:
    """Compute the outputs of dense-256 before its activation, for Keras's images (B, H, W, 3)."""
    with torch.no_grad():
        return network.dense(network.features(torch.from_numpy(images).permute(0, 3, 1, 2)).flatten(1))


def keras_pre_activation(model: keras.Sequential, images: np.ndarray) -> torch.Tensor:
    kernel, bias = model.layers[-2].get_weights()
    features = keras.Sequential(model.layers[:-2])(images)
    return features.detach() @ torch.from_numpy(kernel) + torch.from_numpy(bias)


def some_images(size: int) -> np.ndarray:
    return np.random.default_rng(0).random((8, size, size, 3), dtype=np.float32)


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "model.weights.h5"])
@pytest.mark.parametrize(("activation", "odd_names"), [("sigmoid", False), ("relu", True)])
def test_keras_files_give_keras_numbers(tmp_path: Path, name: str, activation: str, odd_names: bool) -> None:
    model, images = notebook(128, activation, names=odd_names), some_images(128)
    for weight in model.weights:
        if weight.name == "bias":
            weight.assign(np.random.default_rng(1).normal(size=weight.shape) * 0.1)
    given = (128, activation) if name == "model.weights.h5" else ()
    network = build(save(model, tmp_path / name), *given)
    assert (pre_activation(network, images) - keras_pre_activation(model, images)).abs().max() <= 1e-5
    probability = torch.sigmoid(network(torch.from_numpy(images).permute(0, 3, 1, 2))).detach()
    assert (probability - model(images)[:, 0].detach()).abs().max() <= 1e-6


@pytest.mark.parametrize("size", [22, 31, 128])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_keras_reads_what_is_written_and_the_round_trip_is_exact(tmp_path: Path, size: int, activation: str) -> None:
    model_config = {"name": "keras_cnn", "image_size": size, "dense_units": 32, "dense_activation": activation}
    network, images = KerasCNN(size, 32, activation), some_images(size)  # pyright: ignore[reportArgumentType]
    torch.nn.init.normal_(network.dense.bias)
    write_keras(tmp_path / "a.h5", model_config, network.state_dict())
    model = keras.models.load_model(tmp_path / "a.h5")
    assert (pre_activation(network, images) - keras_pre_activation(model, images)).abs().max() <= 1e-5
    assert np.isfinite(model.train_on_batch(images, np.array([[0.0], [1.0]] * 4))).all()  # it comes compiled
    assert read_keras(tmp_path / "a.h5").model_config == model_config
    for name, weight in read_keras(tmp_path / "a.h5").state.items():
        assert torch.equal(weight, network.state_dict()[name]), name


def test_a_file_of_keras_2_gives_keras_2s_numbers() -> None:
    answers = json.loads(KERAS2.with_suffix(".json").read_text())
    network, given = build(KERAS2), images(2, SIZE)
    expected = torch.tensor(answers["pre_activation"])
    assert (pre_activation(network, given) - expected).abs().max() <= 1e-5
    probability = torch.sigmoid(network(torch.from_numpy(given).permute(0, 3, 1, 2)))
    assert torch.allclose(probability, torch.tensor(answers["probability"]), atol=1e-6)


def test_the_files_of_keras_2_12_are_read_too(tmp_path: Path) -> None:
    """Its .keras is HDF5, and its .weights.h5 calls the folder of layers otherwise."""
    shutil.copy(KERAS2, tmp_path / "a.keras")
    given = save(notebook(30, units=4), tmp_path / "a.weights.h5")
    expected = read_keras(given, 30).state
    with h5py.File(given, "r+") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    assert read_keras(tmp_path / "a.keras").model_config == {
        "name": "keras_cnn",
        "image_size": 30,
        "dense_units": 4,
        "dense_activation": "sigmoid",
    }
    for name, weight in read_keras(given, 30).state.items():
        assert torch.equal(weight, expected[name])


def test_a_model_without_an_input_layer_says_its_size_elsewhere(tmp_path: Path) -> None:
    model = keras.Sequential(unbuilt(notebook(30, units=4)))
    model(some_images(30))
    assert read_keras(save(model, tmp_path / "a.h5")).model_config["image_size"] == 30
    assert read_keras(save(model, tmp_path / "a.keras")).model_config["image_size"] == 30


def unbuilt(model: keras.Sequential) -> list[keras.Layer]:
    return [type(layer).from_config(layer.get_config()) for layer in model.layers]


def with_layer(number: int, layer: keras.Layer) -> keras.Sequential:
    stack = unbuilt(notebook(30, units=4))
    stack[number:] = [layer, *stack[number + 1 :]]
    return keras.Sequential([keras.Input((30, 30, 3)), *stack])


def with_more(*more: keras.Layer) -> keras.Sequential:
    return keras.Sequential([keras.Input((30, 30, 3)), *unbuilt(notebook(30, units=4)), *more])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: with_layer(2, layers.Conv2D(64, 3, activation="elu", name="odd")),
            r"Layer 3 \(odd\).*activation is elu",
        ),
        (lambda: with_layer(2, layers.Conv2D(48, 3, activation="relu", name="odd")), "filters is 48. Expected 64"),
        (lambda: with_layer(4, layers.Conv2D(128, 3, padding="same", activation="relu")), "padding is same"),
        (lambda: with_layer(1, layers.AveragePooling2D(2, name="mean")), r"Layer 2 \(mean\).*AveragePooling2D"),
        (lambda: with_layer(6, layers.GlobalAveragePooling2D(name="gap")), r"Layer 7 \(gap\)"),
        (
            lambda: with_layer(7, layers.Dense(4, activation="tanh", name="h")),
            "activation is tanh. Expected sigmoid or r",
        ),
        (lambda: with_layer(8, layers.Dense(2, activation="softmax", name="o")), r"Layer 9 \(o\).*units is 2"),
        (lambda: with_more(layers.Dropout(0.5, name="drop")), r"Layer 10 \(drop\) is one too many"),
        (lambda: keras.Sequential([keras.Input((30, 30, 3)), layers.Lambda(lambda x: x)]), r"Layer 1 .*Lambda"),
        (
            lambda: keras.Sequential([keras.Input((30, 20, 3)), *unbuilt(notebook(30))[:2]]),
            r"shape \[None, 30, 20, 3\]",
        ),
        (lambda: keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten()]), "image size is 8"),
        (lambda: keras.Sequential([keras.Input((30, 30, 3)), *unbuilt(notebook(30))[:8]]), "Layer 9 is missing"),
    ],
)
@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_another_network_is_refused_by_the_layer_that_differs(
    tmp_path: Path, model: Callable[[], keras.Sequential], message: str, suffix: str
) -> None:
    file = save(model(), tmp_path / f"a.{suffix}")
    with pytest.raises(UserError, match=message) as caught:
        read_keras(file)
    assert str(caught.value).endswith(f"Received: {file}")
    assert "\n" not in str(caught.value)


@keras.saving.register_keras_serializable("mine")
class Dense(layers.Dense):
    """Somebody's own, by Keras's name."""

    def call(self, inputs: Any) -> Any:
        return 2 * super().call(inputs)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_custom_class_of_a_known_name_is_refused(tmp_path: Path, suffix: str) -> None:
    file = save(with_layer(7, Dense(4, activation="sigmoid", name="own")), tmp_path / f"a.{suffix}")
    with pytest.raises(UserError, match=r"Layer 8 \(own\).*it is mine>Dense"):
        read_keras(file)


def test_resnet50_is_refused(tmp_path: Path) -> None:
    model = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 3))
    with pytest.raises(UserError, match=r"Functional model\. Expected the notebook's network"):
        read_keras(save(model, tmp_path / "a.h5"))
    with pytest.raises(UserError, match=r"Layer \w+ is not the notebook's conv2d: its weights have the shapes"):
        read_keras(save(model, tmp_path / "a.weights.h5"), 32)


def test_weights_alone_need_the_right_image_size(tmp_path: Path) -> None:
    file = save(notebook(64, units=4), tmp_path / "a.weights.h5")
    with pytest.raises(UserError, match="fit --image-size 62 to 69"):
        read_keras(file)
    with pytest.raises(UserError, match=r"dense: its weights have the shapes.*62 to 69"):
        read_keras(file, 128)
    assert read_keras(file, 62).model_config["image_size"] == 62
    with pytest.raises(UserError, match=r"own image_size is 64, not 128\. Expected no --image-size"):
        read_keras(save(notebook(64, units=4), tmp_path / "a.h5"), 128)
    with pytest.raises(UserError, match=r"own dense_activation is sigmoid, not relu\. Expected no --dense-activation"):
        read_keras(tmp_path / "a.h5", dense_activation="relu")


def truncated(file: Path) -> None:
    file.write_bytes(KERAS2.read_bytes()[: KERAS2.stat().st_size // 2])


def pickled(file: Path) -> None:
    file.write_bytes(pickle.dumps({"model": print}))


def nothing_but_hdf5(file: Path) -> None:
    h5py.File(file, "w").close()


def no_json(file: Path) -> None:
    shutil.copy(KERAS2, file)
    with h5py.File(file, "r+") as opened:
        opened.attrs["model_config"] = "{"


def deep_json(file: Path) -> None:
    shutil.copy(KERAS2, file)
    with h5py.File(file, "r+") as opened:
        opened.attrs["model_config"] = "[" * 30_000


def another_json(file: Path) -> None:
    shutil.copy(KERAS2, file)
    with h5py.File(file, "r+") as opened:
        opened.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": [3]}})


def linked_out(file: Path) -> None:
    """A kernel that is another file's: opening it would read what the user did not name."""
    shutil.copy(KERAS2, file)
    with h5py.File(file, "r+") as opened:
        del opened["model_weights/dense/dense/kernel:0"]
        opened["model_weights/dense/dense/kernel:0"] = h5py.ExternalLink(KERAS2, "/model_weights/dense/dense/kernel:0")


def swollen(file: Path) -> None:
    """A kernel that claims more than the file holds."""
    shutil.copy(KERAS2, file)
    with h5py.File(file, "r+") as opened:
        del opened["model_weights/dense/dense/kernel:0"]
        opened.create_dataset("model_weights/dense/dense/kernel:0", (512, 4), "f4", chunks=(1, 4), compression="gzip")


KERNEL = "model_weights/dense/dense/kernel:0"


def with_kernel(make: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    """A whole model whose dense kernel (512, 4) is made in another way."""

    def damage(file: Path) -> None:
        shutil.copy(KERAS2, file)
        with h5py.File(file, "r+") as opened:
            del opened[KERNEL]
            make(opened)

    return damage


def stored_outside(opened: h5py.File) -> None:
    """Its numbers are the bytes of another file."""
    opened.create_dataset(KERNEL, (512, 4), "f4", external=[(str(KERAS2), 0, 512 * 4 * 4)])


def virtual(opened: h5py.File) -> None:
    layout = h5py.VirtualLayout((512, 4), "f4")
    layout[:] = h5py.VirtualSource(str(KERAS2), KERNEL, (512, 4))
    opened.create_virtual_dataset(KERNEL, layout)


def never_written(opened: h5py.File) -> None:
    opened.create_dataset(KERNEL, (512, 4), "f4")


def of_integers(opened: h5py.File) -> None:
    opened[KERNEL] = np.zeros((512, 4), "i4")


def diverged(opened: h5py.File) -> None:
    opened[KERNEL] = np.full((512, 4), np.nan, "f4")


def described_otherwise(**changes: Any) -> Callable[[Path], None]:
    """A whole model whose dense layer of 4 is described otherwise."""

    def damage(file: Path) -> None:
        shutil.copy(KERAS2, file)
        with h5py.File(file, "r+") as opened:
            model = json.loads(opened.attrs["model_config"])
            model["config"]["layers"][-2]["config"].update(changes)
            opened.attrs["model_config"] = json.dumps(model)

    return damage


def without_config(file: Path) -> None:
    shutil.copy(KERAS2, file)
    with h5py.File(file, "r+") as opened:
        model = json.loads(opened.attrs["model_config"])
        del model["config"]["layers"][3]["config"]
        opened.attrs["model_config"] = json.dumps(model)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_kernel(stored_outside), "not stored as Keras stores them"),
        (with_kernel(virtual), "not stored as Keras stores them"),
        (with_kernel(never_written), "not stored as Keras stores them"),
        (with_kernel(of_integers), "not stored as Keras stores them"),
        (with_kernel(diverged), "not all finite"),
        (described_otherwise(units=77), "Layer dense is not the notebook's dense"),
        (described_otherwise(name="a\nb\x1b[31m", activation="x" * 9999), r"Layer 8 \(a b\?\[31m\)"),
        (without_config, "damaged, or no Keras file"),
        (truncated, "damaged, or no Keras file"),
        (pickled, "damaged, or no Keras file"),
        (nothing_but_hdf5, "holds no layers"),
        (no_json, "damaged, or no Keras file"),
        (deep_json, "damaged, or no Keras file"),
        (another_json, "damaged, or no Keras file"),
        (linked_out, "no 'dense/dense/kernel:0' of its own"),
        (swollen, "not stored as Keras stores them"),
        (Path.mkdir, "no such Keras file"),
    ],
)
def test_a_damaged_or_hostile_h5_gets_one_line(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    file = tmp_path / "a.h5"
    damage(file)
    with pytest.raises(UserError, match=message) as caught:
        read_keras(file, 30)
    assert str(caught.value).endswith(f"Received: {file}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def repacked(tmp_path: Path, file: Path, change: str) -> None:
    """A .keras file of the notebook's network with one thing wrong."""
    save(notebook(30, units=4), tmp_path / "good.keras")
    compression = zipfile.ZIP_DEFLATED if change == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / "good.keras") as good, zipfile.ZipFile(file, "w", compression) as bad:
        for name in good.namelist():
            if name != change:
                bad.writestr(name, good.read(name))
        if "/" in change:
            bad.writestr(change, b"harm")
        if change == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                bad.writestr("config.json", good.read("config.json"))
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-2000])
    if change == "hollow":  # a member ends before the size that the archive's directory claims
        bytes_ = file.read_bytes()
        size = zipfile.ZipFile(file).getinfo("model.weights.h5").file_size.to_bytes(4, "little")
        file.write_bytes(bytes_.replace(size, (2**31).to_bytes(4, "little")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("../evil.py", "harmful"),
        ("/etc/evil", "harmful"),
        ("..\\..\\/evil", "harmful"),
        ("C:/evil", "harmful"),
        ("compressed", "is compressed"),
        ("twice", "2 members 'config.json'"),
        ("hollow", "damaged, or no Keras file"),
        ("config.json", "0 members 'config.json'"),
        ("model.weights.h5", "0 members 'model.weights.h5'"),
        ("cut", "damaged, or no Keras file"),
    ],
)
def test_a_damaged_or_hostile_archive_gets_one_line(tmp_path: Path, change: str, message: str) -> None:
    file = tmp_path / "bad.keras"
    repacked(tmp_path, file, change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        read_keras(file)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_h5py_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[keras\]'"):
        read_keras(KERAS2)
