import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from histo_pl.errors import UserError
from histo_pl.models import build_network
from histo_pl.models.checkpoint import find_checkpoint, load_checkpoint
from histo_pl.training.module import TileClassifier

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"


def test_a_checkpoint_holds_all_that_a_prediction_needs_in_plain_values(trained: Path) -> None:
    contents = torch.load(trained / "best.ckpt", weights_only=True)
    facts = contents["hyper_parameters"]
    assert facts["network"] == {
        "name": "keras_cnn",
        "image_size": 32,
        "dense_units": 256,
        "dense_activation": "sigmoid",
    }
    assert facts["classes"] == ["benign", "malignant"]
    assert facts["data"]["name"] == "synthetic demo"
    assert facts["data"]["synthetic"]
    assert len(facts["data"]["split"]) == 64
    assert "optimizer_states" not in contents


def test_the_loaded_network_answers_as_lightnings_module(trained: Path) -> None:
    model = load_checkpoint(trained / "best.ckpt")
    peer = TileClassifier.load_from_checkpoint(trained / "best.ckpt", weights_only=True).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model.network(images), peer(images).detach())
    assert not any(p.requires_grad or p.is_meta for p in model.network.parameters())


def test_a_runs_folder_means_its_best_weights(trained: Path) -> None:
    assert find_checkpoint(str(trained)) == trained / "best.ckpt"


def test_best_and_last_both_load(trained: Path) -> None:
    best, last = load_checkpoint(trained / "best.ckpt"), load_checkpoint(trained / "last.ckpt")
    assert best.data == last.data
    assert best.threshold == 0.5


def test_a_checkpoint_says_whether_its_training_ended(trained: Path) -> None:
    best, last = load_checkpoint(trained / "best.ckpt"), load_checkpoint(trained / "last.ckpt")
    assert best.finished and not last.finished
    assert best.trained_on == "synthetic demo"
    assert last.trained_on == "synthetic demo (not finished: not calibrated, not tested)"


@pytest.mark.parametrize("kind", ["text", "empty", "tensor", "another", "pickle", "resize"])
def test_another_file_is_refused_in_one_line(tmp_path: Path, trained: Path, kind: str) -> None:
    file = tmp_path / "x.ckpt"
    if kind == "text":
        file.write_text("no checkpoint")
    elif kind == "empty":
        file.touch()
    elif kind == "tensor":
        torch.save(torch.zeros(3), file)
    elif kind == "another":
        torch.save({"state_dict": build_network({"name": "keras_cnn", "image_size": 22}).state_dict()}, file)
    elif kind == "pickle":
        torch.save({"state_dict": {"harm": os.system}}, file)
    else:
        contents = torch.load(trained / "best.ckpt", weights_only=True)
        contents["hyper_parameters"]["resize"] = "another"
        torch.save(contents, file)
    with pytest.raises(UserError) as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_checkpoint_without_its_end_is_called_damaged(tmp_path: Path, trained: Path, share: float) -> None:
    whole = (trained / "best.ckpt").read_bytes()
    (tmp_path / "x.ckpt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="damaged: its end is missing") as caught:
        load_checkpoint(tmp_path / "x.ckpt")
    assert str(tmp_path / "x.ckpt") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path, trained: Path) -> None:
    contents = torch.load(trained / "best.ckpt", weights_only=True)
    contents["hyper_parameters"]["format_version"] = 99
    torch.save(contents, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"newer histo_pl.*Received: format 99 in .*x\.ckpt"):
        load_checkpoint(tmp_path / "x.ckpt")


def put_run(folder: str, checkpoint: Path, started: float) -> Path:
    """Copy a checkpoint as the best.ckpt of a run that began at some time."""
    file = Path(folder, "best.ckpt")
    file.parent.mkdir(parents=True)
    shutil.copyfile(checkpoint, file)
    os.utime(file, (started, started))
    return file


def test_latest_is_the_newest_run_that_has_finished(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run yet"):
        find_checkpoint("latest")
    stopped = put_run("outputs/d/v", trained / "last.ckpt", 1e9)
    with pytest.raises(UserError, match=r"No run here has finished.*outputs/d/v"):
        find_checkpoint("latest")
    old = put_run("outputs/d/t", trained / "best.ckpt", 1e9 - 3)
    new = put_run("multirun/d/t/0", trained / "best.ckpt", 1e9 - 2)
    with caplog.at_level(logging.WARNING, "histo_pl"):
        assert find_checkpoint("latest") == new
    assert [record.getMessage() for record in caplog.records] == [
        f"Passed over, as its training has not finished: {stopped}"
    ]
    old.with_name("config.yaml").touch()  # a resumed run: its best.ckpt is an old one's
    caplog.clear()
    assert find_checkpoint("latest") == old
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "logits", "temperature"),
    [
        ("keras_cnn_best", [-0.0310096, -0.0360583], 0.05),
        ("keras_cnn_last", [-0.0310096, -0.0360583], 1.0),
        ("linear_probe_best", [-4.7006922, -4.3947964], 0.8285295),
        ("format2_keras_cnn_best", [0.7682174, 0.7752247], 20.0),
    ],
)
def test_checkpoints_of_earlier_formats_answer_as_they_did(name: str, logits: list[float], temperature: float) -> None:
    """Files of November 2026: of format 1, which does not state its number, and 2."""
    if name.startswith("linear_probe"):
        pytest.importorskip("timm")
    model = load_checkpoint(FIXTURES / f"{name}.ckpt")
    shape = (2, 3, model.image_size, model.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert model.network(images).tolist() == pytest.approx(logits, abs=1e-4)
    assert (model.threshold, model.temperature) == (0.5, pytest.approx(temperature, abs=1e-6))
    assert model.trained_on.startswith("synthetic demo")
    assert set(model.training_hashes.values()) == {"train", "val"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image_size", r"incomplete: it lacks image_size"),
        ("network", r"incomplete: it lacks network"),
        ("weights", r"incomplete: it lacks the network's weights"),
        ("tensor", r"weights do not fit its network .*dense\.bias"),
    ],
)
def test_an_incomplete_checkpoint_is_told_in_one_line(trained: Path, tmp_path: Path, name: str, message: str) -> None:
    contents = torch.load(trained / "best.ckpt", weights_only=True)
    if name == "weights":
        contents["state_dict"] = {}
    elif name == "tensor":
        del contents["state_dict"]["network.backbone.dense.bias"]
    else:
        del contents["hyper_parameters"][name]
    torch.save(contents, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)


def test_absent_metadata_has_its_default(trained: Path, tmp_path: Path) -> None:
    contents = torch.load(trained / "best.ckpt", weights_only=True)
    for name in ("resize", "threshold", "temperature", "rule", "refer", "training_hashes", "finished"):
        del contents["hyper_parameters"][name]
    torch.save(contents, tmp_path / "x.ckpt")
    model = load_checkpoint(tmp_path / "x.ckpt")
    assert (model.threshold, model.temperature, model.refer, model.training_hashes) == (0.5, 1.0, None, {})


def test_a_checkpoint_holds_no_local_path(trained: Path, demo_root: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        contents = torch.load(trained / name, weights_only=True)
        assert str(demo_root) not in str(contents["hyper_parameters"])


def test_latest_after_a_cross_validation_says_that_it_took_one_fold(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    contents = torch.load(trained / "best.ckpt", weights_only=True)
    contents["hyper_parameters"]["data"]["fold"] = [2, 5]
    folder = tmp_path / "multirun" / "2"
    folder.mkdir(parents=True)
    torch.save(contents, folder / "best.ckpt")
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("latest") == Path("multirun/2/best.ckpt")
    assert "model of fold 2 of 5 of a cross-validation alone" in caplog.text
