from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision import tv_tensors

from histo_pl.data.transforms.keras_affine import KerasRandomAffine
from histo_pl.errors import UserError
from tests.conftest import compose_config

NOTEBOOK = {"rotation_range": 20, "shear_range": 0.2, "zoom_range": 0.2, "horizontal_flip": True}
EVERYTHING = NOTEBOOK | {"width_shift_range": 0.1, "height_shift_range": 0.2, "vertical_flip": True}


def keras_generator(**options: Any) -> Any:
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    return ImageDataGenerator(**options)


def keras_warp(image: NDArray[np.float32], params: dict[str, Tensor]) -> NDArray[np.float32]:
    """Keras's own warp of an image (H, W, C) with our parameters."""
    warped = keras_generator().apply_transform(image, {name: value.item() for name, value in params.items()})
    return np.ascontiguousarray(warped)  # a flip is a view


@pytest.fixture
def noise() -> NDArray[np.float32]:
    """White noise, in which half a pixel off shows."""
    return np.random.default_rng(0).integers(0, 256, (512, 512, 3)).astype(np.float32)


@pytest.mark.parametrize("options", [NOTEBOOK, EVERYTHING], ids=["notebook", "everything"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_warp_is_keras_own(noise: NDArray[np.float32], options: dict[str, Any]) -> None:
    transform = KerasRandomAffine(**options)
    image = torch.from_numpy(noise).permute(2, 0, 1)
    torch.manual_seed(0)
    for _ in range(50):
        params = transform.make_params([image])
        peer = torch.from_numpy(keras_warp(noise, params)).permute(2, 0, 1)
        assert (transform.transform(image, params) - peer).abs().max() <= 1e-6 * 255
        grey = transform.transform(image.to(torch.uint8), params)
        assert (grey - peer.double()).abs().max() <= 0.52  # rounding, and coordinates in float32


def test_the_drawn_parameters_are_distributed_as_keras_draws_them() -> None:
    generator, count = keras_generator(**EVERYTHING), 20_000
    np.random.seed(0)
    drawn = [generator.get_random_transform((100, 200, 3)) for _ in range(count)]
    torch.manual_seed(0)
    ours = KerasRandomAffine(**EVERYTHING).make_params([torch.empty(1, 100, 200).expand(count, 1, 100, 200)])
    peers = {name: np.array([draw[name] for draw in drawn], dtype=float) for name in ours}
    for name, values in ours.items():
        peer = peers[name]
        width = peer.max() - peer.min()
        assert abs(values.min().item() - peer.min()) <= 1e-3 * width, name
        assert abs(values.max().item() - peer.max()) <= 1e-3 * width, name
        assert abs(values.mean().item() - peer.mean()) <= 0.01 * width, name
        assert ks_2samp(values.numpy(), peer).pvalue > 1e-3, name
    for draws in (np.stack(list(peers.values())), torch.stack(list(ours.values())).numpy()):
        assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 0.03  # 4 standard errors


def test_each_tile_of_a_batch_has_its_own_draw() -> None:
    image = torch.rand(3, 32, 32)
    batch = KerasRandomAffine(**NOTEBOOK)(image.expand(8, 3, 32, 32))
    assert len({tuple(tile.flatten().tolist()) for tile in batch}) == 8


def test_a_tile_is_warped_alike_alone_and_in_a_batch() -> None:
    transform = KerasRandomAffine(**EVERYTHING)
    batch = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8)
    params = transform.make_params([batch])
    together = transform.transform(batch, params)
    for number, tile in enumerate(batch):
        alone = transform.transform(tile, {name: value[number : number + 1] for name, value in params.items()})
        assert torch.equal(alone, together[number])


def test_the_seed_decides() -> None:
    image, transform = torch.rand(2, 3, 16, 16), KerasRandomAffine(**NOTEBOOK)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(transform(image))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_type_and_class_are_kept_and_labels_left_alone(dtype: torch.dtype) -> None:
    sample = {"image": tv_tensors.Image(torch.ones(3, 8, 8, dtype=dtype)), "label": torch.tensor(1), "path": "a.png"}
    result = KerasRandomAffine(**NOTEBOOK)(sample)
    assert isinstance(result["image"], tv_tensors.Image)
    assert torch.equal(result["image"], sample["image"])  # a constant has nothing to warp, not even at its edges
    assert result["image"].dtype == dtype
    assert (result["label"], result["path"]) == (torch.tensor(1), "a.png")


def test_without_ranges_nothing_changes_and_flips_are_exact() -> None:
    image = torch.randint(0, 256, (64, 3, 15, 16), dtype=torch.uint8)
    assert torch.equal(KerasRandomAffine()(image), image)
    for option, axis in (("horizontal_flip", 3), ("vertical_flip", 2)):
        flipped = KerasRandomAffine(**{option: True})(image)
        kinds = [(torch.equal(a, b), torch.equal(a, b.flip(axis - 1))) for a, b in zip(flipped, image, strict=True)]
        assert set(kinds) == {(True, False), (False, True)}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rotation_range", -1),
        ("rotation_range", "abc"),
        ("horizontal_flip", 0.3),
        ("zoom_range", None),
        ("width_shift_range", 1),
        ("zoom_range", 1.0),
        ("zoom_range", (1.2, 0.8)),
        ("zoom_range", (0.8, 1.0, 1.2)),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"augment\.{option}.*Received"):
        KerasRandomAffine(**{option: value})


def test_the_configuration_is_the_notebooks() -> None:
    transform = instantiate(compose_config("train", "experiment=seed", "data.root=x").augment)
    peer = KerasRandomAffine(**NOTEBOOK)
    assert {key: value for key, value in vars(transform).items() if key[0] != "_"} == {
        key: value for key, value in vars(peer).items() if key[0] != "_"
    }


def test_a_tile_of_a_batch_is_warped_by_its_own_seed() -> None:
    transform = KerasRandomAffine(**NOTEBOOK)
    seeds = [5, 2**62, 7]
    together = transform.draw(seeds, 32)
    assert torch.equal(together, torch.cat([transform.draw([seed], 32) for seed in seeds]))
    assert not torch.equal(together[0], together[2])


def test_seeded_warps_are_spread_as_the_others() -> None:
    matrices = KerasRandomAffine(**NOTEBOOK).draw(range(4000), 64).double()
    flipped = torch.linalg.det(matrices[:, :, :2]) < 0
    assert flipped.double().mean() == pytest.approx(0.5, abs=0.03)
    angles = torch.rad2deg(torch.atan2(-matrices[:, 0, 1], matrices[:, 1, 1]))
    assert 17 < angles.max() < 31 and angles.mean() == pytest.approx(0, abs=0.6)  # zooms of 0.8 and 1.2 stretch 20
    zooms = matrices[:, :, 0].norm(dim=1)
    assert zooms.min() >= 0.8 - 1e-6 and zooms.max() <= 1.2 + 1e-6
    assert zooms.mean() == pytest.approx(1, abs=0.01)
