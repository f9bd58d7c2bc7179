import math

import numpy as np
import pytest
import torch

from histo_pl.data.synthetic.tissue import Stain, draw_tile
from histo_pl.data.transforms.geometric import RandomDihedral, RandomZoom
from histo_pl.data.transforms.stain import RandomStain
from histo_pl.errors import UserError


@pytest.fixture
def tile() -> torch.Tensor:
    rng = np.random.default_rng(0)
    pixels = draw_tile(rng, Stain.draw(rng), malignant=True, size=64)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def test_no_change_of_the_stain_is_none(tile: torch.Tensor) -> None:
    assert (RandomStain(0.0, 0.0)(tile).int() - tile.int()).abs().max() <= 1


def test_it_changes_one_stain_as_scikit_image_separates_them(tile: torch.Tensor) -> None:
    """Twice the eosin, by our arithmetic, is twice the eosin that scikit-image finds."""
    from skimage.color import rgb2hed

    transform = RandomStain()
    changed = transform.transform(tile, {"factors": torch.tensor([1.0, 1.4, 1.0]), "shifts": torch.zeros(3)})
    before, after = (rgb2hed(image.permute(1, 2, 0).numpy()) for image in (tile, changed))
    clear = (before > 0.01)[..., :2].all(2) & (tile.amin(0).numpy() > 20)  # where neither clips
    assert np.median(after[clear][:, 1] / before[clear][:, 1]) == pytest.approx(1.4, abs=0.05)
    assert np.median(after[clear][:, 0] / before[clear][:, 0]) == pytest.approx(1.0, abs=0.05)


def test_every_tile_gets_its_own_stain(tile: torch.Tensor) -> None:
    torch.manual_seed(0)
    transform = RandomStain()
    means = {tuple(transform(tile).float().mean((1, 2)).round().tolist()) for _ in range(8)}
    assert len(means) > 6


def test_an_empty_tile_stays_even_and_a_pale_one_calm() -> None:
    torch.manual_seed(0)
    transform = RandomStain()
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    pale = (235 + 2 * torch.randn(3, 32, 32)).round().to(torch.uint8)
    for _ in range(20):
        assert transform(white).float().std((1, 2)).max() == 0
        assert transform(pale).float().std((1, 2)).max() < 8


def test_a_zoom_shows_the_middle_or_mirrors_the_edges(tile: torch.Tensor) -> None:
    zoom = RandomZoom(0.6, 1.6)
    assert torch.equal(zoom.transform(tile, {"factor": 1.0}), tile)
    larger = zoom.transform(tile, {"factor": 1.5}).float()
    assert larger.shape == tile.shape
    assert (larger[:, 32, 32] - tile[:, 32, 32]).abs().max() < 40
    smaller = zoom.transform(tile, {"factor": 0.6})
    assert smaller.shape == tile.shape
    assert smaller.amin().item() > 0  # no black border
    assert smaller.float().mean().item() == pytest.approx(tile.float().mean().item(), rel=0.1)


def test_all_eight_views_are_drawn(tile: torch.Tensor) -> None:
    torch.manual_seed(0)
    views = {RandomDihedral()(tile).numpy().tobytes() for _ in range(80)}
    assert len(views) == 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomStain(1.5),
        lambda: RandomStain(shift=-1),
        lambda: RandomStain(shift=math.nan),
        lambda: RandomStain(shift=math.inf),
        lambda: RandomStain(scale=math.nan),
        lambda: RandomZoom(0.4),
        lambda: RandomZoom(1.5, 1.2),
    ],
)
def test_ranges_that_cannot_be_are_refused(make: object) -> None:
    with pytest.raises(UserError, match="Received"):
        make()  # type: ignore[operator]
