"""Trainings that start from an encoder, from train.py's settings to a prediction, without a network."""

import csv
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from histo_pl.errors import UserError
from histo_pl.inference import Predictor
from histo_pl.models.ensemble import load_model
from histo_pl.models.network import build_network
from tests.conftest import draw_image

Run = Callable[..., dict[str, Any]]
TIMM = ("model=timm", "model.architecture=test_efficientnet", "model.weights=null")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("a test asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def predict(checkpoint: Path, tmp_path: Path) -> float:
    predictor = Predictor(load_model(checkpoint), "cpu")
    (answer,) = predictor.predict([draw_image(tmp_path / "tile.png", size=(32, 32))])
    assert answer.probability is not None
    return answer.probability


def learning_rates(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    (column,) = (name for name in rows[0] if name.endswith("/encoder"))
    return [float(row[column]) for row in rows]


def test_an_epoch_of_timm(run_training: Run, tmp_path: Path) -> None:
    options = ("optim=adamw", "scheduler=warmup_cosine", "augment=stain", "model.stain=macenko", "pos_weight=2")
    results = run_training(*TIMM, *options, "data.balanced=true", "trainer.max_epochs=2")
    assert results["epochs"] == 2
    first, last = learning_rates(tmp_path / "run")
    assert last < first
    model = load_model(tmp_path / "run" / "best.ckpt")
    assert model.model_config["mean"] == list(timm.get_pretrained_cfg("test_efficientnet").mean)
    assert model.trained_on == "synthetic demo"
    predict(tmp_path / "run" / "best.ckpt", tmp_path)


def test_an_epoch_of_torchvision_from_a_file(run_training: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = resnet18(num_classes=1000).state_dict()
    torch.save(theirs, tmp_path / "resnet18.pth")
    options = ("model=resnet18", "optim=adamw", "model.trainable=[encoder.layer4,head]")
    results = run_training(*options, f"model.weights={tmp_path / 'resnet18.pth'}")
    assert results["data"]["pretrained_on"] == str(tmp_path / "resnet18.pth")
    model = load_model(tmp_path / "run" / "best.ckpt")
    trained = model.network.state_dict()
    for name in ("conv1.weight", "bn1.running_mean", "layer3.0.conv1.weight"):
        assert torch.equal(trained[f"backbone.encoder.{name}"], theirs[name])
    assert not torch.equal(trained["backbone.encoder.layer4.0.conv1.weight"], theirs["layer4.0.conv1.weight"])
    predict(tmp_path / "run" / "best.ckpt", tmp_path)


def test_a_probe_goes_on_as_a_finetuning(run_training: Run, tmp_path: Path) -> None:
    """The probe starts from a file of weights; its checkpoint is what the last blocks go on from."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.safetensors")
    probe = ("experiment=linear_probe", "trainer.accelerator=cpu", "data.image_size=32", *TIMM, "model.stages=null")
    store = f"embeddings.store.folder={tmp_path / 'store'}"
    run_training(*probe, store, f"model.weights={tmp_path / 'weights.safetensors'}", folder="probe")
    before = predict(tmp_path / "probe" / "best.ckpt", tmp_path)
    start = f"model.weights={tmp_path / 'probe' / 'best.ckpt'}"
    options = ("model.trainable=[encoder.conv_head,head]", "optim=adamw", "optim.lr=0", "optim.encoder_lr=0")
    run_training(*TIMM[:2], *options, start, "calibration.temperature=false", folder="tuned")
    probe_logit, tuned = (load_model(tmp_path / name / "best.ckpt") for name in ("probe", "tuned"))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(probe_logit.network(images), tuned.network(images), atol=1e-6)
    assert 0 < before < 1
    assert "weights.safetensors" in tuned.trained_on


def test_a_checkpoint_of_another_encoder_is_refused(run_training: Run, trained: Path) -> None:
    with pytest.raises(UserError, match="another network"):
        run_training("model=resnet18", f"model.weights={trained / 'best.ckpt'}")


def test_pos_weight_is_a_number_or_balanced(run_training: Run) -> None:
    with pytest.raises(UserError, match="pos_weight"):
        run_training("pos_weight=often")


def test_eight_views_are_one_answer_however_a_tile_is_turned(tmp_path: Path) -> None:
    from dataclasses import replace

    torch.manual_seed(0)
    network = build_network({"name": "timm", "architecture": "test_efficientnet"}).eval()
    from histo_pl.models.checkpoint import TrainedModel

    model = TrainedModel(network, {}, 32, "", 0.5, 1.0, {})
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    once, often = Predictor(model, "cpu"), Predictor(replace(model), "cpu", tta=True)
    views = [
        images.rot90(turns, (2, 3)).flip(3) if mirrored else images.rot90(turns, (2, 3))
        for turns in range(4)
        for mirrored in (0, 1)
    ]
    mean = torch.stack([once.logits(view) for view in views]).mean(0)
    assert torch.allclose(often.logits(images), mean, atol=1e-5)
    assert torch.allclose(often.logits(images.rot90(1, (2, 3))), mean, atol=1e-5)
