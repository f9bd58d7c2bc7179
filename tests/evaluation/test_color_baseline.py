import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histo_pl.evaluation.color_baseline import colour_only


def test_the_regression_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    colours = generator.random((80, 21))
    malignant = colours[:, 0] + 0.5 * generator.random(80) > 0.7
    peer = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-9, max_iter=9999)).fit(
        colours[:60], malignant[:60]
    )
    found = colour_only(colours[:60], malignant[:60], colours[60:])
    assert found == pytest.approx(peer.predict_proba(colours[60:])[:, 1], abs=1e-5)
