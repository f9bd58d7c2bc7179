from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histo_pl.evaluation.color_baseline import colour_only, colours_of, read_colours
from tests.conftest import draw_image


def test_the_regression_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    colours = generator.random((80, 21))
    malignant = colours[:, 0] + 0.5 * generator.random(80) > 0.7
    peer = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-9, max_iter=9999)).fit(
        colours[:60], malignant[:60]
    )
    found = colour_only(colours[:60], malignant[:60], colours[60:])
    assert found == pytest.approx(peer.predict_proba(colours[60:])[:, 1], abs=1e-5)


def test_colours_know_nothing_of_places() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert colours_of(pixels) == pytest.approx(colours_of(pixels[::-1].swapaxes(0, 1)))


def test_files_of_any_size_are_read(tmp_path: Path) -> None:
    files = [draw_image(tmp_path / f"{size}.png", size=(size, 9)) for size in (1, 70, 300)]
    assert read_colours(files).shape == (3, 21)
