"""A frozen encoder sees each tile once; a logistic regression on its features takes seconds."""

import csv
import multiprocessing
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torchvision.transforms import v2

from histo_pl.data import HistologyDataModule
from histo_pl.data.datasets import augmented
from histo_pl.data.tile import Tile
from histo_pl.data.transforms.geometric import RandomDihedral, RandomZoom
from histo_pl.data.transforms.stain import RandomStain
from histo_pl.errors import UserError
from histo_pl.inference import Predictor
from histo_pl.models.backbones import PooledStages
from histo_pl.models.ensemble import load_model
from histo_pl.training import features
from histo_pl.training.feature_store import FeatureStore
from histo_pl.training.features import FeatureExtractor, Features, augmentation_key, fingerprint
from histo_pl.training.linear_probe import AUTO, LogisticRegression, choose_penalty
from tests.conftest import compose_config

PROBE = ("experiment=linear_probe", "data.image_size=32", "trainer.accelerator=cpu", "embeddings.views=2")


def save_and_load(folder: Path, first: int) -> None:
    store = FeatureStore(folder)
    for number in range(first, first + 40):
        store.save("lite0", {(f"{number}", "plain"): torch.full((8,), float(number))})
        assert store.load("lite0", [(f"{number}", "plain")])


def test_the_second_run_needs_no_encoder(
    run_training: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"embeddings.store.folder={tmp_path / 'store'}"
    first = run_training(*PROBE, store, folder="a")
    train, val, test = (first["data"]["parts"][part]["tiles"] for part in ("train", "val", "test"))
    assert first["embeddings"]["computed"] == 3 * train + val + test  # the plain view, and two more of training tiles
    seen = []
    forward = PooledStages.forward
    monkeypatch.setattr(PooledStages, "forward", lambda self, images: seen.append(images) or forward(self, images))
    second = run_training(*PROBE, store, "optim.weight_decay=0.1", folder="b")
    assert not seen
    assert second["embeddings"]["computed"] == 0
    third = run_training(*PROBE, store, folder="c")
    assert third["test"] == first["test"]
    assert second["test"]["log_loss"] != first["test"]["log_loss"]
    predictor = Predictor(load_model(tmp_path / "a" / "best.ckpt"), "cpu")
    rows = np.genfromtxt(tmp_path / "a" / "predictions.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    files = [Path(first["data"]["root"], row["path"]) for row in rows]
    answers = [prediction.probability for prediction in predictor.predict(files)]
    assert answers == pytest.approx(rows["probability"].tolist(), abs=1e-5)  # as the table rounds


@pytest.fixture
def extract(make_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[HistologyDataModule, Features]]:
    def run(views: int) -> tuple[HistologyDataModule, Features]:
        root = make_folder({"benign": 8, "malignant": 12})
        data = HistologyDataModule(root, image_size=8, num_workers=0, augment=lambda x: x.flip(-1))
        data.setup()
        encoder = nn.Sequential(Float(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(12))
        store = FeatureStore(tmp_path / "store")
        return data, FeatureExtractor(store, views).extract(data, encoder, {"name": "x"}, "flip")

    return run


def test_the_penalty_is_that_of_a_mean_loss_and_weights_count() -> None:
    """The gradient of the mean weighted loss plus weight_decay / 2 times the squared weights vanishes."""
    torch.manual_seed(0)
    features, labels = torch.randn(60, 5), torch.randint(0, 2, (60,))
    weights = torch.where(labels == 1, 3.0, 1.0)
    weight, bias = LogisticRegression(weight_decay=0.1).fit(features, labels, weights)
    weight.requires_grad_()
    bias.requires_grad_()
    logits = (features @ weight.T + bias).squeeze(1)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=torch.tensor(3.0))
    (loss + 0.1 / 2 * weight.square().sum()).backward()
    assert weight.grad is not None and bias.grad is not None
    assert weight.grad.abs().max() < 1e-5 and bias.grad.abs().max() < 1e-5


@pytest.mark.parametrize("setting", [{"weight_decay": -1.0}, {"max_iter": 0}, {"weight_decay": "much"}])
def test_a_penalty_out_of_range_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"out of range"):
        LogisticRegression(**setting)


def test_the_penalty_is_chosen_by_cases_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Features that tell cases apart but not classes ask for a strong penalty; a clear one for a weak one."""
    generator = torch.Generator().manual_seed(1)
    tiles = [Tile(f"{n}.png", "ab"[n // 8 % 2], f"case{n // 8}") for n in range(160)]
    labels = torch.tensor([int(tile.class_name == "b") for tile in tiles])
    noise = torch.randn(20, 40, generator=generator).repeat_interleave(8, 0)
    clear = noise * 0.01
    clear[:, 0] = 4.0 * labels - 2
    chosen = [
        float(choose_penalty(LogisticRegression(AUTO), tiles, features, labels, torch.ones(160)).weight_decay)
        for features in (noise, clear)
    ]
    assert chosen[0] >= 1
    assert chosen[1] <= 0.1
    few = [Tile(f"{n}.png", "ab"[n % 2], f"case{n % 2}") for n in range(160)]
    alone = choose_penalty(LogisticRegression(AUTO), few, noise, torch.arange(160) % 2, torch.ones(160))
    assert alone.weight_decay == 1.0
    assert "cannot be chosen" in caplog.text


def test_too_few_iterations_are_told(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    LogisticRegression(1e-6, max_iter=1).fit(torch.randn(60, 5), torch.randint(0, 2, (60,)), torch.ones(60))
    assert "raise optim.max_iter" in caplog.text


class Float(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


def test_only_training_tiles_have_augmented_views(extract: Callable[..., tuple[HistologyDataModule, Features]]) -> None:
    data, features = extract(views=2)
    for path, views in features.by_path.items():
        assert views.shape == ((3 if data.split_of[path] == "train" else 1), 12)
        assert len({tuple(view.tolist()) for view in views}) == (2 if len(views) == 3 else 1)  # plain, mirrored twice
    assert features.computed == sum(len(views) for views in features.by_path.values())
    _, again = extract(views=1)
    assert (again.computed, again.stored) == (0, features.computed - len(data.tiles_of("train")))


def test_features_of_earlier_versions_are_found_again() -> None:
    """The augmentation's settings name its modules, which have moved: neither keys nor draws may change with that."""
    text = OmegaConf.to_yaml(compose_config("train", "augment=stain", "data.image_size=32").augment, resolve=True)
    assert augmentation_key(text) == "08d18398f5310059"


def test_the_store_gives_back_what_it_took_and_stays_bounded(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "a" / "store", max_gigabytes=1e-3)
    for number in range(100):
        store.save("lite0", {(f"{number}", "plain"): torch.rand(5000), (f"{number}", "view"): torch.rand(5000)})
        store.load("lite0", [("0", "plain")])  # what is used stays
    found = store.load("lite0", [(f"{n}", view) for n in range(100) for view in ("plain", "view")])
    assert 20 < len(found) < 55
    assert ("0", "plain") in found and ("99", "view") in found and ("20", "view") not in found
    assert sum(file.stat().st_size for file in store.folder.glob("*/*")) < 1e6
    assert not store.load("another", [("99", "view")])
    kept = torch.rand(5000)
    store.save("lite0", {("x", "plain"): kept})
    assert torch.equal(store.load("lite0", [("x", "plain")])["x", "plain"], kept)


@pytest.mark.slow
def test_several_processes_share_a_store_though_one_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=save_and_load, args=(tmp_path, first)) for first in (0, 20, 1000)]
    for worker in workers:
        worker.start()
    while not FeatureStore(tmp_path).load("lite0", [("1001", "plain")]):
        time.sleep(0.01)
    workers[-1].kill()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, -signal.SIGKILL]
    found = FeatureStore(tmp_path).load("lite0", [(f"{number}", "plain") for number in range(60)])
    assert {key: float(value[0]) for key, value in found.items()} == {(f"{n}", "plain"): float(n) for n in range(60)}


def test_half_a_shard_is_never_found(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.save("lite0", {("a", "plain"): torch.ones(8)})
    (shard,) = (tmp_path / "lite0").iterdir()
    shard.with_name(f".{shard.stem}.part.npz").write_bytes(shard.read_bytes()[:100])
    assert list(store.load("lite0", [("a", "plain")])) == [("a", "plain")]


def test_another_encoder_has_another_fingerprint() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    prints = {
        fingerprint(one, {"name": "x"}, 32, "bilinear"),
        fingerprint(other, {"name": "x"}, 32, "bilinear"),
        fingerprint(one, {"name": "y"}, 32, "bilinear"),
        fingerprint(one, {"name": "x"}, 64, "bilinear"),
    }
    assert len(prints) == 4
    assert fingerprint(one, {"name": "x"}, 32, "bilinear") in prints


def test_another_recipe_has_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = nn.Linear(2, 2)
    before = fingerprint(encode, {"name": "x"}, 32, "bilinear")
    monkeypatch.setattr(features, "RECIPE", features.RECIPE + 1)
    assert fingerprint(encode, {"name": "x"}, 32, "bilinear") != before


# Means of 4 x 4 blocks of a tile's red, green and blue as RECIPE 2 augments it, by the seed. Kept features are found
# again by RECIPE: whoever changes one of these numbers must raise it, or a store gives what older code computed.
AUGMENTED = {
    5: """
        78 111 147 185   75 108 143 181   72 104 139 177   70 101 136 173
       104 120 136 153   85 100 114 131   67  81  94 109   50  63  75  89
        77  97 117 139   73  87 101 117   68  78  87  97   63  68  73  78""",  # larger, turned, mirrored
    29: """
        57  54  49  46   94  91  85  82  163 160 155 153  209 207 203 202
        93  75  46  30  115  95  64  45  151 129  94  73  174 151 114  92
        73  71  67  65  100  91  77  69  147 127  95  76  178 150 105  80""",  # smaller, turned
}


@pytest.mark.parametrize("seed", AUGMENTED)
def test_whoever_changes_the_augmentation_must_raise_the_recipe(seed: int) -> None:
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    tile = torch.stack([60 + 5 * x + y // 2, 40 + 2 * x + 3 * y, 90 + x * y // 8]).to(torch.uint8)
    changed = augmented(tile, v2.Compose([RandomZoom(), RandomDihedral(), RandomStain()]), seed)
    means = changed.float().reshape(3, 4, 8, 4, 8).mean((2, 4))
    assert means.flatten().tolist() == pytest.approx([float(mean) for mean in AUGMENTED[seed].split()], abs=2.0)


@pytest.mark.parametrize("name", ["store", "store/lite0/damaged.npz"])
def test_what_is_no_store_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"something else" * 100)
    with pytest.raises(UserError, match="only a cache"):
        FeatureStore(tmp_path / "store").load("lite0", [("0", "plain")])


def test_a_probe_needs_a_frozen_encoder_and_its_solver(run_training: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"model.trainable=head"):
        run_training(*PROBE, "model.trainable=all")
    with pytest.raises(UserError, match=r"Received: model=keras_cnn"):
        run_training(*PROBE, "model=keras_cnn", "model.trainable=dense_1")
    with pytest.raises(UserError, match=r"Expected experiment=linear_probe"):
        run_training(*PROBE, "optim=adamw")
    with pytest.raises(UserError, match=r"Expected experiment=linear_probe"):
        run_training("optim=lbfgs")


def test_both_checkpoints_and_one_row_of_metrics_are_written(
    run_training: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = run_training(
        *PROBE, f"embeddings.store.folder={tmp_path / 'store'}", "data.balanced=true", "pos_weight=null"
    )
    (row,) = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    assert float(row["val/auroc"]) == pytest.approx(found["validation"]["auroc"])
    assert found["epochs"] == 1
    last, best = (load_model(tmp_path / "run" / name) for name in ("last.ckpt", "best.ckpt"))
    assert best.finished and not last.finished
    assert torch.equal(last.network.backbone.head.weight, best.network.backbone.head.weight)  # pyright: ignore
