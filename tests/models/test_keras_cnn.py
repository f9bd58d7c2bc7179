import pytest
import torch
from torch import nn

from histo_pl.errors import UserError
from histo_pl.hardware import multiplies_bfloat16
from histo_pl.models import KerasCNN, build_network, keras_cnn
from histo_pl.models.backbones import EncoderWithHead
from histo_pl.probability import to_probability

# What Keras's model.summary() says of the notebook's network: output shape (H, W, C) and parameters.
KERAS_SUMMARY = {
    "features.conv2d": ((510, 510, 32), 896),
    "features.max_pooling2d": ((255, 255, 32), 0),
    "features.conv2d_1": ((253, 253, 64), 18_496),
    "features.max_pooling2d_1": ((126, 126, 64), 0),
    "features.conv2d_2": ((124, 124, 128), 73_856),
    "features.max_pooling2d_2": ((62, 62, 128), 0),
    "dense": ((256,), 125_960_448),
    "dense_1": ((1,), 257),
}


def test_layer_by_layer_as_keras_summarises_it() -> None:
    with torch.device("meta"):
        network = KerasCNN(512)
        shapes: dict[str, tuple[int, ...]] = {}
        for name in KERAS_SUMMARY:
            network.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])})
            )
        assert network(torch.zeros(1, 3, 512, 512)).shape == (1,)
    for name, (shape, parameters) in KERAS_SUMMARY.items():
        height_width_channels = shapes[name][1:] + shapes[name][:1] if len(shape) == 3 else shapes[name]
        assert height_width_channels == shape, name
        assert sum(p.numel() for p in network.get_submodule(name).parameters()) == parameters, name
    assert sum(p.numel() for p in network.parameters()) == 126_053_953


def test_weights_start_as_keras_glorot_uniform() -> None:
    network = KerasCNN(64)
    for layer in (network.features.conv2d_1, network.dense):
        taps = layer.weight[0, 0].numel()
        limit = (6 / (taps * (layer.weight.shape[0] + layer.weight.shape[1]))) ** 0.5  # keras.initializers
        assert layer.weight.abs().max().item() == pytest.approx(limit, rel=0.01)
        assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
        assert layer.bias.abs().max() == 0


@pytest.mark.parametrize("size", [22, 31, 64])
def test_any_size_from_bytes_to_logits(size: int) -> None:
    network = build_network({"name": "keras_cnn", "image_size": size})
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    logits = network(images)
    assert logits.shape == (2,)
    by_hand = network.backbone(images / 255)  # pyright: ignore[reportCallIssue]
    assert torch.equal(logits, by_hand)


def test_what_cannot_be_built_is_refused() -> None:
    for model_config, message in (
        ({"name": "keras_cnn", "image_size": 21}, "at least 22"),
        ({"name": "keras_cnn", "dense_activation": "tanh"}, "sigmoid or relu"),
        ({"name": "keras_cnn", "depth": 3}, "depth"),
        ({"name": "os.system"}, "unknown"),
    ):
        with pytest.raises(UserError, match=message):
            build_network(model_config)


def test_frozen_units_are_counted() -> None:
    network = KerasCNN(32)
    images = torch.rand(4, 3, 32, 32)
    assert network.frozen_units(images) == 0
    with torch.no_grad():
        network.dense.bias[:64] = 100.0
    assert network.frozen_units(images) == pytest.approx(0.25)


def test_probability_is_the_sigmoid_of_the_tempered_logit() -> None:
    logits = torch.tensor([-2.0, 0.0, 2.0])
    assert torch.allclose(to_probability(logits), torch.sigmoid(logits))
    assert torch.allclose(to_probability(logits, 2.0), torch.sigmoid(logits / 2))
    assert to_probability(logits.bfloat16()).dtype == torch.float32


def test_logits_have_more_than_the_bits_of_bfloat16() -> None:
    for network in (KerasCNN(32), EncoderWithHead(nn.Flatten(), 3 * 32 * 32)):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            logits = network(torch.rand(8, 3, 32, 32))
        assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_blocked_layout_changes_no_gradient(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if dtype == torch.bfloat16 and not multiplies_bfloat16():
        pytest.skip("this processor has no products of bfloat16")
    torch.manual_seed(0)
    network, images = KerasCNN(64), torch.rand(4, 3, 64, 64)
    found = []
    for in_blocks in (True, False):
        monkeypatch.setattr(keras_cnn, "_prefers_blocks", lambda _, answer=in_blocks: answer)
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            network(images).float().square().sum().backward()
        found.append([weight.grad for weight in network.parameters()])
    near = 1e-4 if dtype == torch.float32 else 0.05
    for blocked, plain in zip(*found, strict=True):
        assert blocked is not None and plain is not None
        assert (blocked - plain).norm() < near * plain.norm()
