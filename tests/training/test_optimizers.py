from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from histo_pl.interop.keras_hdf5 import read_keras
from histo_pl.models import KerasCNN, build_network
from histo_pl.training.optimizers import KerasAdam, adam, adamw
from histo_pl.training.schedules import warmup_cosine
from tests.keras_peer import keras, notebook, save


def test_only_wide_dense_layers_get_the_scaled_rate() -> None:
    network = KerasCNN(64)  # dense has 6 * 6 * 128 = 4608 inputs, dense_1 has 256
    groups = {group["name"]: group for group in adam(network, lr=1e-2, base_fan_in=256).param_groups}
    assert groups["base"]["lr"] == 1e-2
    assert groups["wide_4608"]["lr"] == pytest.approx(1e-2 * 256 / 4608)
    assert groups["wide_4608"]["params"] == [network.dense.weight]
    counted = sum(len(group["params"]) for group in groups.values())
    assert counted == len(list(network.parameters()))


def test_without_a_base_it_is_adam_on_every_parameter() -> None:
    torch.manual_seed(0)
    network, peer = KerasCNN(32), KerasCNN(32)
    peer.load_state_dict(network.state_dict())
    ours, theirs = adam(network), torch.optim.Adam(peer.parameters(), lr=1e-3, eps=1e-7)
    assert [group["name"] for group in ours.param_groups] == ["base"]
    images = torch.rand(4, 3, 32, 32)
    for optimizer, model in ((ours, network), (theirs, peer)):
        model(images).sum().backward()
        optimizer.step()
    for a, b in zip(network.parameters(), peer.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_originals_step_freezes_a_large_image_and_the_scaled_one_does_not() -> None:
    """At 256 pixels one step of the original's rate already saturates the dense layer."""
    images = torch.rand(4, 3, 256, 256)
    frozen = {}
    for base_fan_in in (None, 256):
        torch.manual_seed(0)
        network = KerasCNN(256)
        optimizer = adam(network, base_fan_in=base_fan_in)
        for _ in range(3):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(network(images), torch.ones(4))
            loss.backward()
            optimizer.step()
        frozen[base_fan_in] = network.frozen_units(images, least_slope=1e-3)
    assert frozen[None] > 0.9
    assert frozen[256] < 0.1


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e-3, 1.0])
def test_on_the_same_gradients_adam_moves_as_keras_adam(scale: float) -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(-0.05, 0.05, (64, 64)).astype(np.float32)
    ours, peer = torch.nn.Parameter(torch.from_numpy(weights.copy())), keras.Variable(weights)
    optimizer, keras_optimizer = KerasAdam([ours], lr=1e-3, fused=True), keras.optimizers.Adam(1e-3)
    pytorchs = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    pytorchs_optimizer = torch.optim.Adam([pytorchs], lr=1e-3, eps=1e-7)
    for _ in range(10):
        gradient = (rng.normal(size=weights.shape) * scale).astype(np.float32)
        ours.grad, pytorchs.grad = torch.from_numpy(gradient), torch.from_numpy(gradient)
        optimizer.step()
        pytorchs_optimizer.step()
        keras_optimizer.apply([keras.ops.convert_to_tensor(gradient)], [peer])
    expected = peer.value.detach()  # pyright: ignore[reportAttributeAccessIssue]
    assert (ours - expected).abs().max() <= 1e-7
    assert (pytorchs - expected).abs().max() > 1e-6  # what the class is for


def test_a_step_of_the_whole_network_is_keras_step(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    peer = notebook(64)
    network = KerasCNN(64)
    network.load_state_dict(read_keras(save(peer, tmp_path / "0.h5")).state)
    optimizer = adam(network, keras_eps=True)
    rng = np.random.default_rng(0)
    images, labels = rng.random((8, 64, 64, 3), dtype=np.float32), np.array([0, 1] * 4, dtype=np.float32)
    for step, tolerance in ((1, 2e-5), (2, 1e-4), (3, 1e-4)):
        peer.train_on_batch(images, labels[:, None])
        optimizer.zero_grad()
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
        binary_cross_entropy_with_logits(logits, torch.from_numpy(labels)).backward()
        optimizer.step()
        expected = read_keras(save(peer, tmp_path / f"{step}.h5")).state
        for name, weight in network.state_dict().items():
            assert (weight - expected[name]).abs().max() <= tolerance, (step, name)


def test_keras_adam_goes_on_where_it_was_saved() -> None:
    gradients = torch.randn(4, 8) * 1e-7
    whole, first, second = (torch.nn.Parameter(torch.zeros(8)) for _ in range(3))
    optimizers = {id(p): KerasAdam([p], lr=1e-3) for p in (whole, first)}

    def step(weight: torch.nn.Parameter, optimizer: KerasAdam, gradient: torch.Tensor) -> None:
        weight.grad = gradient.clone()
        optimizer.step()

    for gradient in gradients:
        step(whole, optimizers[id(whole)], gradient)
    for gradient in gradients[:2]:
        step(first, optimizers[id(first)], gradient)
    with torch.no_grad():
        second.copy_(first)
    resumed = KerasAdam([second], lr=1e-3)
    saved = optimizers[id(first)].state_dict()
    assert saved["param_groups"][0]["eps"] == 1e-7  # what PyTorch's own Adam would go on with
    resumed.load_state_dict(saved)
    for gradient in gradients[2:]:
        step(second, resumed, gradient)
    assert torch.equal(second, whole)


def test_adamw_spares_what_was_trained_before_and_decays_matrices_alone() -> None:
    network = build_network({"name": "resnet18"})
    network.get_submodule("backbone.encoder.conv1").requires_grad_(False)
    groups = {group["name"]: group for group in adamw(network, lr=1e-2, encoder_lr=1e-3).param_groups}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "encoder": (1e-3, 0.05),
        "encoder_undecayed": (1e-3, 0.0),
        "head": (1e-2, 0.05),
        "head_undecayed": (1e-2, 0.0),
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(list(network.parameters())) - 1


def test_the_rate_rises_and_falls_along_a_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_cosine(optimizer, 100, warmup_fraction=0.2)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:20] == pytest.approx([0.1 * (step + 1) for step in range(20)])
    assert rates[60] == pytest.approx(1.0)  # half-way down
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-6)
