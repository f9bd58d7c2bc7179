"""Tiles as samples: labels, keys, and an augmentation that seed, epoch and tile alone decide."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from histo_pl.data.datasets import FileReader, TileDataset, Transform
from histo_pl.data.tile import Tile
from histo_pl.errors import UserError
from tests.conftest import compose_config, draw_image


@dataclass(frozen=True)
class OneImage:
    """A reader that a spawned worker can be given."""

    image: Tensor

    def __call__(self, tile: Tile) -> Tensor:
        return self.image


def copies(image: Tensor, count: int, augment: Transform) -> TileDataset:
    """The same tile, many times."""
    tiles = [Tile(f"benign/{number}.png", "benign") for number in range(count)]
    return TileDataset(tiles, "malignant", OneImage(image), augment)


@pytest.fixture(scope="module")
def augment() -> Callable[[Tensor], Tensor]:
    import histo_pl.cli.build  # noqa: F401  (the resolver that the configuration uses)

    return instantiate(compose_config("train", "data.image_size=64").augment)


def test_a_sample_has_the_label_and_the_path_below_the_root(tmp_path: Path) -> None:
    tiles = [Tile("cancer/a.png", "cancer"), Tile("normal/b.png", "normal")]
    for tile in tiles:
        draw_image(tmp_path / tile.path)
    dataset = TileDataset(tiles, "cancer", FileReader(tmp_path, 4))
    samples = [dataset[index] for index in range(2)]
    assert [(sample["label"], sample["path"]) for sample in samples] == [(1, "cancer/a.png"), (0, "normal/b.png")]
    assert samples[0]["image"].shape == (3, 4, 4)
    assert samples[0]["image"].dtype == torch.uint8


def test_augmentation_is_drawn_for_each_tile_and_epoch_and_no_worker_changes_it(augment: Callable) -> None:
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    tiles = copies(image, 4, augment)
    alone = torch.stack([tiles[draw]["image"] for draw in range(8)])
    assert len({tuple(pixels.flatten().tolist()) for pixels in alone}) == 8
    loader = torch.utils.data.DataLoader(tiles, batch_size=4, num_workers=2)
    assert torch.equal(next(iter(loader))["image"], alone[:4])


def test_augmentation_leaves_the_random_numbers_of_others_alone(augment: Callable) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    copies(torch.zeros(3, 64, 64, dtype=torch.uint8), 1, augment)[0]
    assert torch.equal(torch.rand(1), expected)


def test_augmentation_makes_no_corner_black_and_keeps_the_size(augment: Callable) -> None:
    tiles = copies(torch.full((3, 64, 64), 255, dtype=torch.uint8), 1, augment)
    drawn = torch.stack([tiles[draw]["image"] for draw in range(200)])
    assert drawn.shape == (200, 3, 64, 64)
    assert drawn.min() >= 254  # rounding


def test_an_augmentation_that_changes_type_or_size_is_refused() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for transform in (lambda image: image.float(), lambda image: image[:, :4]):
        with pytest.raises(UserError, match="must return a tensor like its input"):
            copies(image, 1, transform)[0]
