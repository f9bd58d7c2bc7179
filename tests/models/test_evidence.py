import sys
from typing import Any

import pytest
import torch
from torch import nn

from histo_pl.errors import UserError
from histo_pl.models.ensemble import FoldEnsemble
from histo_pl.models.evidence import explain, method_for, with_random_weights
from histo_pl.models.network import build_network
from histo_pl.models.sanity import check_maps, describe_check


def network_of(name: str, **arguments: Any) -> nn.Sequential:
    torch.manual_seed(0)
    network = build_network({"name": name, **arguments}).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.05)  # else the signal of random weights dies away
    return network.requires_grad_(False)


def images_of(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.fixture(scope="module")
def probe() -> nn.Sequential:
    network = network_of("timm", architecture="resnet18", stages=[2, 3])
    backbone: Any = network.backbone
    backbone.standardize.fit(backbone.encoder(network.preprocessing(images_of(8, 70))))
    return network


@pytest.mark.parametrize("size", [64, 70])
def test_the_exact_map_of_a_linear_head_sums_to_the_logit(probe: nn.Sequential, size: int) -> None:
    images = images_of(10, size)
    assert method_for(probe) == "exact"
    evidence = explain(probe, images, "exact")
    assert evidence.maps.shape == (10, size, size)
    assert evidence.maps.sum((1, 2)) == pytest.approx(probe(images), abs=1e-4, rel=1e-5)
    backbone: Any = probe.backbone
    assert evidence.constant == pytest.approx(backbone.head.bias.expand(10))


def test_the_exact_map_is_zero_for_the_mean_training_tile(probe: nn.Sequential) -> None:
    """Evidence of an image whose features are the training's mean: only the bias is left."""
    copy = with_random_weights(probe, images_of(4, 64))
    backbone: Any = copy.backbone
    image = images_of(1, 64)
    backbone.standardize.mean = backbone.encoder(copy.preprocessing(image))[0]
    evidence = explain(copy, image, "exact")
    assert float(evidence.maps.sum()) == pytest.approx(float(backbone.head.bias), abs=1e-4)


def test_exact_evidence_lies_where_the_tile_differs(probe: nn.Sequential) -> None:
    flat = torch.full((1, 3, 128, 128), 200, dtype=torch.uint8)
    spliced = flat.clone()
    spliced[..., :64, :64] = images_of(1, 64)
    difference = (explain(probe, spliced, "exact").maps - explain(probe, flat, "exact").maps).abs()[0]
    assert difference[:64, :64].sum() > 0.6 * difference.sum()


def test_integrated_gradients_are_complete() -> None:
    network = network_of("keras_cnn", image_size=32)
    images = images_of(6, 32)
    assert method_for(network) == "integrated_gradients"
    evidence = explain(network, images, "integrated_gradients")
    white = torch.full_like(images, 255)
    explained = network(images) - network(white)
    assert evidence.constant == pytest.approx(network(white), abs=1e-5)
    wrong = (evidence.maps.sum((1, 2)) - network(images)).abs()
    assert (wrong <= 0.01 * explained.abs().clamp(min=1)).all()
    assert evidence.error == pytest.approx(wrong, abs=1e-4)


def test_grad_cam_for_convolutions_and_occlusion_for_transformers() -> None:
    convolutional = network_of("resnet18")
    assert method_for(convolutional) == "grad_cam"
    assert explain(convolutional, images_of(2, 64), "grad_cam").maps.shape == (2, 64, 64)
    transformer = network_of("timm", architecture="vit_tiny_patch16_224", arguments={"img_size": 32})
    assert method_for(transformer) == "occlusion"
    evidence = explain(transformer, images_of(2, 32), "occlusion")
    assert evidence.maps.shape == (2, 32, 32)
    assert evidence.error is None


def test_occlusion_finds_the_only_place_that_is_looked_at() -> None:
    class Corner(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :, :8, :8].mean((1, 2, 3))

    network = nn.Sequential()
    network.add_module("preprocessing", network_of("keras_cnn", image_size=32).preprocessing)
    network.add_module("backbone", Corner())
    maps = explain(network, images_of(2, 32), "occlusion").maps.abs()
    assert maps[:, :8, :8].sum() == pytest.approx(float(maps.sum()))


def test_folds_have_the_mean_of_their_calibrated_maps(probe: nn.Sequential) -> None:
    other = with_random_weights(probe, images_of(4, 64), seed=3)
    images = images_of(3, 64)
    ensemble = FoldEnsemble([probe, other], [1.0, 2.0])
    wanted = (explain(probe, images, "exact").maps + explain(other, images, "exact").maps / 2) / 2
    assert torch.allclose(explain(ensemble, images, method_for(ensemble)).maps, wanted, atol=1e-6)


@pytest.mark.parametrize(("name", "wanted"), [("keras_cnn", "exact"), ("keras_cnn", "grad_cam"), ("keras_cnn", "x")])
def test_a_method_that_the_network_does_not_allow_is_one_line(name: str, wanted: str) -> None:
    with pytest.raises(UserError, match=f"Received: explain={wanted}"):
        method_for(network_of(name, image_size=32), wanted)


def test_missing_captum_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[explain\]'"):
        explain(network_of("keras_cnn", image_size=32), images_of(1, 32), "integrated_gradients")


def test_random_weights_leave_the_network_and_the_generator_as_they_were(probe: nn.Sequential) -> None:
    before = {name: weight.clone() for name, weight in probe.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    drawn = with_random_weights(probe, images_of(4, 64))
    assert torch.rand(1) == expected
    assert all(torch.equal(weight, before[name]) for name, weight in probe.state_dict().items())
    assert not torch.equal(drawn.state_dict()["backbone.head.weight"], before["backbone.head.weight"])


def test_the_check_tells_a_map_of_what_was_learnt_from_chance() -> None:
    """A network that answers by the darkness of a place: blurring its map changes the answer, elsewhere it does not."""

    class Darkest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Linear(1, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 40 * (0.6 - images.mean(1).flatten(1).min(1).values) * self.weight.weight.squeeze()

    network = nn.Sequential()
    network.add_module("preprocessing", network_of("keras_cnn", image_size=32).preprocessing)
    network.add_module("backbone", Darkest())
    nn.init.ones_(network.get_submodule("backbone.weight").weight)
    images = torch.full((4, 3, 64, 64), 220, dtype=torch.uint8)
    for index in range(4):
        images[index, :, 16 * index : 16 * index + 4, 20:24] = 30
    check = check_maps(network.requires_grad_(False), images, "occlusion")
    assert check["before"] > 0.99
    assert check["after_top"] < 0.5 < check["after_random"]
    assert 0 <= check["correlation"] <= 1
    assert "goes from" in describe_check(check)
