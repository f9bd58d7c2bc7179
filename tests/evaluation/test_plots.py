from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from histo_pl.evaluation.metrics import ECE_BINS
from histo_pl.evaluation.plots import (
    plot_calibration,
    plot_confusion,
    plot_curves,
    plot_precision_recall,
    plot_roc,
)
from histo_pl.evaluation.predictions import Predictions


def test_curves_show_what_they_are_given(tmp_path: Path) -> None:
    names = ("loss", "auroc", "balanced_accuracy")
    for values, file in (((0.9, 0.2), "a.png"), ((0.5, 0.6), "b.png")):
        epochs = [
            {"epoch": i} | {f"{part}/{name}": value for part in ("train", "val") for name in names}
            for i, value in enumerate(values)
        ]
        plot_curves(epochs, 0, "title").savefig(tmp_path / file)
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert first.shape == second.shape == (450, 1350, 4)
    assert (first != second).any()


def test_confusion_of_an_empty_class_is_drawn(tmp_path: Path) -> None:
    plot_confusion([[0, 0], [3, 1]], "title").savefig(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (600, 540)


def make_predictions() -> Predictions:
    """With ties, as a network of few bits has them."""
    rng = np.random.default_rng(0)
    malignant = rng.random(200) < 0.4
    probability = np.clip(np.round(0.3 * malignant + 0.7 * rng.random(200), 2), 0, 1)
    names = np.array([str(number) for number in range(200)])
    return Predictions(names, np.full(200, ""), names, malignant, probability, np.full(200, 0.5), np.full(200, np.nan))


def drawn(figure: Figure, label: str) -> np.ndarray:
    return next(np.column_stack(line.get_data()) for line in figure.axes[0].lines if line.get_label() == label)


def test_the_roc_curve_is_scikit_learns() -> None:
    found = make_predictions()
    peer = roc_curve(found.malignant, found.probability, drop_intermediate=False)
    assert drawn(plot_roc({"tiles": found}), "tiles") == pytest.approx(np.column_stack(peer[:2]))


def test_precision_over_recall_is_scikit_learns() -> None:
    found = make_predictions()
    precision, recall, _ = precision_recall_curve(found.malignant, found.probability)
    ours = drawn(plot_precision_recall({"tiles": found}), "tiles")
    peer = np.column_stack((recall, precision))[:-1][::-1]  # without its point of recall 0
    assert ours == pytest.approx(peer)


def test_the_calibration_curve_is_scikit_learns() -> None:
    found = make_predictions()
    found = found.with_probability(0.999 * found.probability + 0.0005, 0.5)  # off the bins' edges, where the two differ
    share, mean = calibration_curve(found.malignant, found.probability, n_bins=ECE_BINS)
    line = plot_calibration(found).axes[0].lines[1]
    assert np.column_stack(line.get_data()) == pytest.approx(np.column_stack((mean, share)))
