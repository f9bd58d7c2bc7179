"""Encoders, what of them learns, and that a prediction sees what the training saw."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from histo_pl.errors import UserError
from histo_pl.images import RESIZE, read_tile
from histo_pl.inference import Predictor
from histo_pl.models import build_network
from histo_pl.models.backbones import TORCHVISION
from histo_pl.models.checkpoint import TrainedModel, save_model
from histo_pl.models.ensemble import load_model
from histo_pl.models.pretrained import load_encoder, load_lite0_weights, read_state, resolve_model_config
from histo_pl.probability import to_probability
from histo_pl.training.freezing import freeze_all_but
from histo_pl.training.module import TileClassifier
from histo_pl.training.optimizers import adamw
from tests.conftest import compose_config, draw_image

LITE0 = {"name": "timm", "architecture": "tf_efficientnet_lite0", "arguments": {}, "mean": [0.5] * 3, "std": [0.5] * 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "keras_cnn": {"name": "keras_cnn", "image_size": 32},
    "keras_cnn_macenko": {"name": "keras_cnn", "image_size": 32, "stain": "macenko"},
    **{name: {"name": name, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]} for name in TORCHVISION},
    "vit_b_16": {"name": "vit_b_16", "image_size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    "lite0": LITE0 | {"stages": None},
    "lite0_stages": LITE0 | {"stages": [1, 3], "stain": "macenko"},
    "test_vit": {"name": "timm", "architecture": "test_vit", "arguments": {"img_size": 32}, "stages": None},
    "swin": {
        "name": "timm",
        "architecture": "swin_tiny_patch4_window7_224",
        "arguments": {"img_size": 32, "window_size": 4, "depths": [1, 1], "num_heads": [2, 2], "embed_dim": 16},
        "stages": None,
    },
}


LARGE = ("vgg16", "resnet50", "densenet121", "convnext_tiny", "vit_b_16")  # seconds each


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("a test asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def facts(model_config: dict[str, Any]) -> dict[str, Any]:
    return {"negative_class": "benign", "positive_class": "malignant", "name": "x", "synthetic": False}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in FAMILIES]
)
def test_training_checkpoint_and_prediction_agree(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model_config = FAMILIES[family]
    file = draw_image(tmp_path / "tile.png", size=(48, 40))
    tile = read_tile(file, 32)
    options = {"image_size": 32, "classes": ["benign", "malignant"], "data": facts(model_config), "resize": RESIZE}
    classifier = TileClassifier(network=model_config, **options).eval()
    with torch.no_grad():
        trained = to_probability(classifier(tile[None]))
        backbone, images = classifier.network.backbone, tile[None].float() / 255
        if "mean" in model_config and not model_config.get("stain"):
            mean, std = (torch.tensor(model_config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
            assert torch.allclose(to_probability(backbone((images - mean) / std)), trained, atol=1e-6)
    save_model(
        TrainedModel(classifier.network, model_config, 32, RESIZE, 0.5, 1.0, facts(model_config)), tmp_path / "a.ckpt"
    )
    predictor = Predictor(load_model(tmp_path / "a.ckpt"), "cpu")
    (answer,) = predictor.predict([file])
    assert torch.allclose(predictor.probabilities(tile[None]), trained, atol=1e-6)
    assert answer.probability == pytest.approx(trained.item(), abs=1e-6)


def test_frozen_is_frozen(tmp_path: Path) -> None:
    """Neither a parameter nor a statistic of BatchNorm moves, though the network is in training mode."""
    torch.manual_seed(0)
    classifier = TileClassifier(
        network={"name": "resnet18"}, image_size=32, classes=["a", "b"], data={}, resize=RESIZE,
        trainable=["encoder.layer4", "head"],
    )  # fmt: skip
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    optimizer = adamw(classifier.network, weight_decay=0.5)
    classifier.train()
    for _ in range(2):
        optimizer.zero_grad()
        logits = classifier(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
        nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([0.0, 1, 0, 1])).backward()
        optimizer.step()
    learns = ("backbone.encoder.layer4.", "backbone.head.")
    for name, value in classifier.network.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(learns), name


def test_parts_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match=r"encoder.layer4.*Received: encoder.layer5"):
        freeze_all_but(build_network({"name": "resnet18"})[1], ["encoder.layer5"])


def test_the_embedded_weights_know_a_cup_of_coffee_and_a_cat() -> None:
    from skimage.data import chelsea, coffee

    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(load_lite0_weights())
    preprocess = build_network(LITE0)[0]
    for photograph, classes in ((coffee(), {967}), (chelsea(), {281, 282, 285})):  # espresso; three kinds of cats
        square = torch.from_numpy(photograph[:, : photograph.shape[0]].copy()).permute(2, 0, 1)[None].float()
        image = nn.functional.interpolate(square, (224, 224), mode="bilinear", antialias=True).to(torch.uint8)
        with torch.no_grad():
            assert network.eval()(preprocess(image)).argmax().item() in classes


def test_the_embedded_encoder_is_that_network_up_to_its_stage() -> None:
    torch.manual_seed(0)
    model_config = resolve_model_config(LITE0 | {"stages": [3]}, 64)
    network = build_network(model_config)
    state, origin = load_encoder(model_config, "embedded")
    network[1].encoder.load_state_dict(state)
    whole = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(load_lite0_weights())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        maps = whole.eval().forward_features
        stage: Any = whole.bn1(whole.conv_stem((images.float() / 255 - 0.5) / 0.5))
        stage = whole.blocks[:5](stage)
        features = nn.Sequential(network[0], network[1].encoder).eval()(images)
    assert maps is not None and "ImageNet" in origin
    assert torch.allclose(features[:, :112], stage.mean((2, 3)), atol=1e-5)
    assert torch.allclose(features[:, 112:], stage.flatten(2).std(2), atol=1e-5)


@pytest.mark.usefixtures("no_network")
def test_weights_of_others_are_taken_from_their_file(tmp_path: Path) -> None:
    from torchvision.models import DenseNet, vit_b_16

    peer = DenseNet(block_config=(1, 1, 1, 1), num_classes=7)
    names = [re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name) for name in peer.state_dict()]  # as the download has them
    torch.save({"state_dict": dict(zip(names, peer.state_dict().values(), strict=True))}, tmp_path / "densenet.pth")
    assert read_state(tmp_path / "densenet.pth").keys() == peer.state_dict().keys()
    torch.save(vit_b_16(image_size=64).state_dict(), tmp_path / "vit.pth")
    state, _ = load_encoder({"name": "vit_b_16", "image_size": 96}, str(tmp_path / "vit.pth"))
    assert state["encoder.pos_embedding"].shape[1] == 6 * 6 + 1


@pytest.mark.usefixtures("no_network")
def test_what_the_hub_says_of_an_encoder_is_written_out(tmp_path: Path) -> None:
    """A folder such as the hub holds: its normalisation and arguments are written out, its weights are found."""
    from timm.models import save_for_hf

    torch.manual_seed(0)
    peer = timm.create_model("test_vit", num_classes=0, img_size=64, init_values=0.5)
    peer.pretrained_cfg |= {"mean": (0.7, 0.6, 0.7), "std": (0.2, 0.2, 0.1)}
    save_for_hf(peer, tmp_path / "hub", model_args={"img_size": 64, "init_values": 0.5})
    name = f"local-dir:{tmp_path / 'hub'}"
    named = {"name": "timm", "architecture": name, "arguments": {}, "stages": None, "mean": None, "std": None}
    model_config = resolve_model_config(named, 64)
    assert model_config["architecture"] == "test_vit"
    assert model_config["arguments"]["init_values"] == 0.5
    assert (model_config["mean"], model_config["std"]) == ([0.7, 0.6, 0.7], [0.2, 0.2, 0.1])
    state, _ = load_encoder(model_config, "pretrained", name)
    assert all(torch.equal(state[key], value) for key, value in peer.state_dict().items())


@pytest.mark.parametrize("preset", ["uni2_h", "h_optimus_0"])
def test_presets_are_what_their_makers_say(preset: str) -> None:
    """The arguments on the model cards of MahmoodLab/UNI2-h and bioptimus/H-optimus-0."""
    cards: dict[str, tuple[str, dict[str, Any]]] = {
        "uni2_h": (
            "vit_giant_patch14_224",
            {
                "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2,
                "no_embed_class": True, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU, "reg_tokens": 8,
                "dynamic_img_size": True, "img_size": 224, "init_values": 1e-5, "num_classes": 0,
            },
        ),
        "h_optimus_0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5, "num_classes": 0}),
    }  # fmt: skip
    architecture, arguments = cards[preset]
    config = compose_config("train", f"model={preset}").model
    with torch.device("meta"):
        peer = timm.create_model(architecture, **arguments)
        ours = timm.create_model(config.architecture, num_classes=0, **config.arguments)
    shapes = [{name: w.shape for name, w in model.state_dict().items()} for model in (ours, peer)]
    assert shapes[0] == shapes[1]
    assert str(ours) == str(peer)
    assert ours.global_pool == peer.global_pool == "token"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("model_config", "weights", "message"),
    [
        ({"name": "resnet18"}, "pretrained", "downloaded or read"),
        (LITE0 | {"stages": None}, "hf-hub:MahmoodLab/UNI2-h", "downloaded or read.*token"),
        (LITE0 | {"architecture": "test_vit", "stages": None}, "embedded", "efficientnet_lite0 alone"),
        ({"name": "resnet18"}, "embedded", "no such weights"),
        ({"name": "keras_cnn"}, "pretrained", "no such weights"),
        ({"name": "resnet50"}, "resnet18.pth", "not those of this encoder"),
        (LITE0 | {"stages": None}, "resnet18.pth", "cannot be loaded"),
        ({"name": "resnet18"}, "text.pth", "cannot be loaded"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_had_are_one_clear_error(
    model_config: dict[str, Any], weights: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.save(build_network({"name": "resnet18"})[1].encoder.state_dict(), "resnet18.pth")
    Path("text.pth").write_text("no weights", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_encoder(model_config, weights)


@pytest.mark.parametrize(
    ("model_config", "message"),
    [
        ({"name": "timm", "architecture": "resnet19"}, "timm does not know.*resnet18"),
        ({"name": "timm", "architecture": "hf-hub:someone/something"}, "timm does not know"),
        ({"name": "timm", "architecture": "test_resnet", "arguments": {"depth": 3}}, "does not take"),
        ({"name": "timm", "architecture": "test_resnet", "stages": [9]}, "does not take"),
        ({"name": "vit_b_16", "image_size": 100}, "multiple of 16"),
    ],
)
def test_networks_that_cannot_be_are_refused(model_config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_network(model_config)


def test_a_name_that_timm_does_not_know_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match=r"timm does not know.*tf_efficientnet_lite0"):
        resolve_model_config(LITE0 | {"architecture": "tf_efficientnet_lite00", "mean": None}, 32)
