import pytest
import torch

from histo_pl.models import KerasCNN
from histo_pl.models.optimizers import adam


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
