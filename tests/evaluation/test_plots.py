from pathlib import Path

import numpy as np
from PIL import Image

from histo_pl.evaluation.plots import plot_confusion, plot_curves


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
