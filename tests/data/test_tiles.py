from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.data import Dataset

from histo_pl.data.tiles import AugmentedTiles, Sample, SequentialShare, ShuffledSampler, TileFolder
from histo_pl.errors import UserError
from tests.conftest import compose_config


class Copies(Dataset[Sample]):
    """The same tile, many times."""

    def __init__(self, image: Tensor, count: int) -> None:
        self.image, self.count = image, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(image=self.image, label=0, path="")


@pytest.fixture(scope="module")
def augment() -> Callable[[Tensor], Tensor]:
    import histo_pl.training  # noqa: F401  (the resolver that the configuration uses)

    return instantiate(compose_config("train", "data.image_size=64").augment)


def test_folder_gives_label_and_path_and_hides_what_is_hidden(make_folder: Callable[..., Path]) -> None:
    root = make_folder({"cancer": 2, "normal": 1, ".cache": 1, "__MACOSX": 1})
    (root / "cancer" / "._tile000.png").write_bytes(b"macOS")
    folder = TileFolder(root, 4)
    folder.positive_class = "cancer"
    samples = [folder[i] for i in range(len(folder))]
    assert [sample["label"] for sample in samples] == [1, 1, 0]
    assert samples[2]["path"] == str(root / "normal" / "tile000.png")
    assert samples[0]["image"].shape == (3, 4, 4)
    assert samples[0]["image"].dtype == torch.uint8


@pytest.mark.parametrize("counts", [{}, {"benign": 1}, {"a": 1, "b": 1, "c": 1}])
def test_folder_wants_two_classes(make_folder: Callable[..., Path], counts: dict[str, int]) -> None:
    with pytest.raises(UserError, match="two class folders"):
        TileFolder(make_folder(counts), 4)


def test_folder_wants_images_of_each_class(make_folder: Callable[..., Path]) -> None:
    root = make_folder({"benign": 1})
    (root / "malignant").mkdir()
    with pytest.raises(UserError, match="malignant"):
        TileFolder(root, 4)


def test_augmentation_is_drawn_for_each_tile_and_epoch_and_no_worker_changes_it(augment: Callable) -> None:
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    tiles = AugmentedTiles(Copies(image, 4), augment, seed=0)
    alone = torch.stack([tiles[draw]["image"] for draw in range(8)])
    assert len({tuple(pixels.flatten().tolist()) for pixels in alone}) == 8
    loader = torch.utils.data.DataLoader(tiles, batch_size=4, num_workers=2)
    assert torch.equal(next(iter(loader))["image"], alone[:4])


def test_augmentation_leaves_the_random_numbers_of_others_alone(augment: Callable) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    AugmentedTiles(Copies(torch.zeros(3, 64, 64, dtype=torch.uint8), 1), augment, seed=0)[0]
    assert torch.equal(torch.rand(1), expected)


def test_augmentation_makes_no_corner_black_and_keeps_the_size(augment: Callable) -> None:
    white = Copies(torch.full((3, 64, 64), 255, dtype=torch.uint8), 1)
    tiles = AugmentedTiles(white, augment, seed=0)
    drawn = torch.stack([tiles[draw]["image"] for draw in range(200)])
    assert drawn.shape == (200, 3, 64, 64)
    assert drawn.min() >= 254  # rounding


def test_an_augmentation_that_changes_type_or_size_is_refused() -> None:
    tiles = Copies(torch.zeros(3, 8, 8, dtype=torch.uint8), 1)
    for transform in (lambda image: image.float(), lambda image: image[:, :4]):
        with pytest.raises(UserError, match="must give what it takes"):
            AugmentedTiles(tiles, transform, seed=0)[0]


def test_each_epoch_has_its_own_order_of_all_tiles() -> None:
    sampler = ShuffledSampler(10, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == list(range(10))
    assert sorted(second) == list(range(10, 20))
    assert [draw - 10 for draw in second] != first
    assert list(ShuffledSampler(10, seed=1)) != first


@pytest.mark.parametrize(("length", "world_size"), [(10, 3), (8, 2), (2, 4)])
def test_devices_share_an_epoch_evenly_and_completely(length: int, world_size: int) -> None:
    shares = [list(ShuffledSampler(length, 0, rank, world_size)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {-(-length // world_size)}
    assert {draw for share in shares for draw in share} == set(range(length))


@pytest.mark.parametrize("length", [1, 32, 33])
def test_evaluation_counts_every_tile_once(length: int) -> None:
    shares = [list(SequentialShare(length, rank, 2)) for rank in range(2)]
    assert Counter(index for share in shares for index in share) == Counter(range(length))
    assert [len(SequentialShare(length, rank, 2)) for rank in range(2)] == [len(share) for share in shares]


def test_weights_draw_a_rare_class_as_often_and_each_time_afresh() -> None:
    weights = [1 / 90] * 90 + [1 / 10] * 10
    sampler = ShuffledSampler(100, seed=0, weights=weights)
    sampler.set_epoch(3)
    draws = list(sampler)
    assert len(set(draws)) == 100  # a tile that comes again is another draw, so it is augmented anew
    assert 35 <= sum(draw % 100 >= 90 for draw in draws) <= 65
    assert not set(draws) & {draw + 100 * epoch for draw in range(100) for epoch in (0, 1, 2, 4)}
    shares = [list(ShuffledSampler(100, 0, rank, 2, weights)) for rank in range(2)]
    sampler.set_epoch(0)
    assert sorted(shares[0] + shares[1]) == sorted(sampler)
