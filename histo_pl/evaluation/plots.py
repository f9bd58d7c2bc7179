"""Pictures of a run, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

TRAIN, VAL = "#2a6f97", "#d1495b"


def plot_curves(epochs: Sequence[Mapping[str, float]], best_epoch: int, title: str, file: Path) -> None:
    """Draw loss, AUROC and balanced accuracy of training and validation over the epochs.

    Args:
        epochs: One mapping an epoch: `epoch` (from 0) and `train/...` and `val/...` values.
        best_epoch: The epoch (from 0) whose weights were kept, marked by a line.
        title: Headline.
        file: The PNG to write, 1350 by 450 pixels.
    """
    figure = Figure(figsize=(9, 3), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=10)
    names = {"loss": "loss (BCE)", "auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
    for axes, (metric, label) in zip(figure.subplots(1, len(names)), names.items(), strict=True):
        _plot_metric(axes, epochs, metric, label)
        axes.axvline(best_epoch + 1, color="0.6", linewidth=1, linestyle=":", label="kept")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file)


def _plot_metric(axes: Axes, epochs: Sequence[Mapping[str, float]], metric: str, label: str) -> None:
    numbers = [epoch["epoch"] + 1 for epoch in epochs]
    for part, name, colour in (("train", "training", TRAIN), ("val", "validation", VAL)):
        values = [epoch.get(f"{part}/{metric}", np.nan) for epoch in epochs]
        axes.plot(numbers, values, marker="o", markersize=3, linewidth=1.5, color=colour, label=name)
    axes.set(xlabel="epoch", title=label)
    axes.title.set_fontsize(9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if metric == "loss":
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(0, 1.03)


def plot_confusion(matrix: ArrayLike, title: str, file: Path) -> None:
    """Draw a confusion matrix with counts and the share of each true class.

    Args:
        matrix: Counts of shape (2, 2): true class by predicted class, benign first.
        title: Headline.
        file: The PNG to write, 600 by 540 pixels.
    """
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(4, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        colour = "white" if share > 0.5 else "black"  # noqa: PLR2004
        axes.text(column, row, f"{count}\n{share:.1%}", ha="center", va="center", color=colour)
    names = ("benign", "malignant")
    axes.set_xticks((0, 1), names)
    axes.set_yticks((0, 1), names, rotation=90, va="center")
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=9)
    figure.savefig(file)
