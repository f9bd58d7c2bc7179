import numpy as np
import pytest
import torch
from torch import Tensor
from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

from histo_pl.data.synthetic.tissue import Stain, draw_tile
from histo_pl.errors import UserError
from histo_pl.models.preprocessing import build_preprocessing
from histo_pl.models.stain_normalization import MacenkoNormalizer


def drawn(count: int = 3, size: int = 96) -> Tensor:
    rng = np.random.default_rng(0)
    tiles = [draw_tile(rng, Stain.draw(rng), malignant=bool(n % 2), size=size) for n in range(count)]
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()


def test_it_is_the_macenko_that_others_have() -> None:
    """On tissue without gaps; where there are some, others take the maxima over the gaps too."""
    tiles = (drawn() * 0.7).to(torch.uint8)
    ours = MacenkoNormalizer()(tiles)
    for tile, normalised in zip(tiles, ours, strict=True):
        theirs, _, _ = NumpyMacenkoNormalizer().normalize(tile.permute(1, 2, 0).numpy(), stains=False)
        assert np.abs(theirs - normalised.permute(1, 2, 0).numpy()).mean() < 1.5  # grey levels; theirs are rounded down


def test_a_strong_and_a_weak_stain_of_one_tissue_become_alike() -> None:
    tile = (drawn() * 0.7).to(torch.uint8)  # tissue everywhere
    density = -torch.log((tile.float() + 1) / 240)
    stronger = (240 * torch.exp(-1.3 * density) - 1).clamp(0, 255).round().to(torch.uint8)
    apart = (tile.float() - stronger.float()).abs().mean()
    together = (MacenkoNormalizer()(tile) - MacenkoNormalizer()(stronger)).abs().mean()
    assert together < 0.1 * apart


@pytest.mark.parametrize("grey", [128, 200, 238, 255])
def test_a_tile_without_tissue_stays_as_it_is(grey: int) -> None:
    torch.manual_seed(0)
    noisy = (grey + torch.randint(-2, 3, (1, 3, 64, 64))).clamp(0, 255).to(torch.uint8)
    normalised = MacenkoNormalizer()(noisy)
    assert normalised.isfinite().all()
    assert (normalised - noisy.float()).abs().max() < 16  # no noise out of nothing


def test_a_pale_tile_does_not_turn_to_noise() -> None:
    torch.manual_seed(0)
    tile = drawn(1).float()
    pale = (235 - (255 - tile) * 0.15 + torch.randn_like(tile)).clamp(0, 255).to(torch.uint8)
    normalised = MacenkoNormalizer()(pale)
    assert normalised.std() < 4 * pale.float().std()


def test_a_tile_is_treated_by_itself() -> None:
    tiles = drawn()
    alone = torch.cat([MacenkoNormalizer()(tile[None]) for tile in tiles])
    assert torch.allclose(MacenkoNormalizer()(tiles), alone, atol=1e-3)


def test_what_stands_before_a_backbone() -> None:
    bytes_ = torch.arange(0, 256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    ready = build_preprocessing(mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.5])(bytes_)
    expected = (bytes_ / 255 - torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1)) / torch.tensor([0.1, 0.2, 0.5]).reshape(
        3, 1, 1
    )
    assert torch.allclose(ready, expected, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"stain": "reinhard"}, {"mean": [0.5] * 3}, {"mean": [0.5], "std": [0.5]}])
def test_what_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match="Received"):
        build_preprocessing(**wrong)
