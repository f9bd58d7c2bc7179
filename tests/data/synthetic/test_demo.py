from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histo_pl.data import DemoDataModule
from histo_pl.data.synthetic.demo import draw_demo
from histo_pl.data.synthetic.tissue import Stain, draw_tile
from histo_pl.errors import UserError
from histo_pl.images import read_rgb

DRAWING = {"cases": 6, "tiles_per_case": 2, "size": 32, "seed": 0}


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*.png")}


def draw(root: Path) -> None:
    draw_demo(root, **DRAWING)


def test_a_seed_draws_the_same_tiles_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_demo(tmp_path / name, **(DRAWING | {"seed": seed}))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a").keys() == contents(tmp_path / "c").keys()
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


@pytest.mark.slow
def test_processes_that_draw_at_once_make_one_whole_set(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(draw, [tmp_path / "demo"] * 2))
    draw(tmp_path / "alone")
    assert contents(tmp_path / "demo") == contents(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "demo"]  # nothing is left over


def test_every_case_has_one_class_and_is_on_one_side(tmp_path: Path) -> None:
    data = DemoDataModule(tmp_path, image_size=32, cases=12, tiles_per_case=3, group_regex=r"(case\d+)", num_workers=0)
    data.setup()
    assert len(data.tiles) == 36
    assert len({(tile.case, tile.class_name) for tile in data.tiles}) == 12
    assert sum(counts["cases"] for counts in data.summary()["parts"].values()) == 12
    assert data.summary()["synthetic"]


@pytest.mark.parametrize("options", [{"cases": 5}, {"tiles_per_case": 0}, {"tile_size": 8}])
def test_a_number_too_small_is_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        DemoDataModule(tmp_path, **options)


@pytest.mark.parametrize("size", [32, 100, 300])
def test_a_tile_of_any_size_shows_the_same_tissue(size: int) -> None:
    small, large = (
        draw_tile(np.random.default_rng(3), Stain.draw(np.random.default_rng(1)), malignant=True, size=side)
        for side in (size, 600)
    )
    assert small.shape == (size, size, 3)
    assert small.dtype == np.uint8
    assert np.abs(small.mean((0, 1)) - large.mean((0, 1))).max() < 6


def colours(file: Path) -> np.ndarray:
    """16-bin histograms, means and deviations of the channels: no morphology."""
    pixels = read_rgb(file)
    bins = [np.histogram(pixels[..., c], 16, (0, 256), density=True)[0] for c in range(3)]
    return np.concatenate([*bins, pixels.mean((0, 1)), pixels.std((0, 1))])


@pytest.mark.slow
def test_colour_does_not_give_the_class_away(tmp_path: Path) -> None:
    figures = []
    for seed in range(3):
        draw_demo(tmp_path / str(seed), cases=48, tiles_per_case=10, size=96, seed=seed)
        files = sorted((tmp_path / str(seed)).rglob("*.png"))
        labels = np.array([file.parent.name == "malignant" for file in files])
        cases = [file.name[:7] for file in files]
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        probabilities = cross_val_predict(
            model,
            np.stack([colours(file) for file in files]),
            labels,
            groups=cases,
            cv=StratifiedGroupKFold(5, shuffle=True, random_state=seed),
            method="predict_proba",
        )
        area = roc_auc_score(labels, probabilities[:, 1])
        figures.append(max(area, 1 - area))
    print("AUROC of colour alone:", [round(figure, 3) for figure in figures])
    assert np.mean(figures) <= 0.65
