"""Pictures of a run and of an evaluation, as matplotlib figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from histo_pl.evaluation.metrics import ECE_BINS, bin_of
from histo_pl.evaluation.predictions import Predictions
from histo_pl.storage import atomic_write

TRAIN, VAL = "#2a6f97", "#d1495b"
TILES, CASES = "#2a6f97", "#e08e45"
BENIGN, MALIGNANT = "#2a9d8f", "#d1495b"
GREY = "0.55"
HISTOGRAM_BINS = 25
MOST_NOVELTY = 2.0  # of the histogram's axis, in units of the limit


def plot_curves(epochs: Sequence[Mapping[str, float]], best_epoch: int, title: str) -> Figure:
    """Draw loss, AUROC and balanced accuracy of training and validation over the epochs.

    Args:
        epochs: One mapping an epoch: `epoch` (from 0) and `train/...` and `val/...` values.
        best_epoch: The epoch (from 0) whose weights were kept, marked by a line.
        title: Headline.

    Returns:
        A figure of 1350 by 450 pixels.
    """
    figure = Figure(figsize=(9, 3), dpi=150)
    printable = title.encode(errors="backslashreplace").decode()  # a folder's name may be no Unicode
    figure.suptitle(printable, fontsize=10, parse_math=False)  # nor TeX, if it has two dollar signs
    margins = {"left": 0.05, "right": 0.99, "bottom": 0.15, "top": 0.83, "wspace": 0.2}
    names = {"loss": "loss (BCE)", "auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
    for axes, (metric, label) in zip(figure.subplots(1, len(names), gridspec_kw=margins), names.items(), strict=True):
        _plot_metric(axes, epochs, metric, label)
        axes.axvline(best_epoch + 1, color="0.6", linewidth=1, linestyle=":", label="kept")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def _plot_metric(axes: Axes, epochs: Sequence[Mapping[str, float]], metric: str, label: str) -> None:
    numbers = [epoch["epoch"] + 1 for epoch in epochs]
    for split, name, colour in (("train", "training", TRAIN), ("val", "validation", VAL)):
        values = [epoch.get(f"{split}/{metric}", np.nan) for epoch in epochs]
        axes.plot(numbers, values, marker="o", markersize=3, linewidth=1.5, color=colour, label=name)
    axes.set(xlabel="epoch", title=label)
    axes.title.set_fontsize(9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes)
    if metric == "loss":
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(0, 1.03)


def plot_confusion(matrix: ArrayLike, title: str) -> Figure:
    """Draw a confusion matrix with counts and the share of each true class.

    Args:
        matrix: Counts of shape (2, 2): true class by predicted class, benign first.
        title: Headline.

    Returns:
        A figure of 600 by 540 pixels.
    """
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(4, 3.6), dpi=150)
    axes = figure.subplots(gridspec_kw={"left": 0.15, "right": 0.96, "bottom": 0.13, "top": 0.9})
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
    return figure


def plot_roc(levels: Mapping[str, Predictions]) -> Figure:
    """Draw each level's ROC curve, and a point for its threshold.

    Args:
        levels: Predictions by the name of their level, such as tiles and cases.

    Returns:
        A square figure.
    """

    def curve(predictions: Predictions) -> tuple[ArrayLike, ArrayLike]:
        found, called_wrongly = _cumulated(predictions)
        return called_wrongly / max(called_wrongly[-1], 1), found / max(found[-1], 1)

    def point(predictions: Predictions) -> tuple[float, float]:
        called, malignant = predictions.called, predictions.malignant
        return float(called[~malignant].mean()), float(called[malignant].mean())

    figure, axes = _square("1 - specificity", "sensitivity")
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=1, linestyle=":", label="chance")
    _draw_levels(axes, levels, curve, point)
    return figure


def plot_precision_recall(levels: Mapping[str, Predictions]) -> Figure:
    """Draw each level's precision over its recall, and a point for its threshold.

    Args:
        levels: Predictions by the name of their level.

    Returns:
        A square figure; the dotted lines are the shares of malignant observations.
    """

    def curve(predictions: Predictions) -> tuple[ArrayLike, ArrayLike]:
        found, called_wrongly = _cumulated(predictions)
        some = found + called_wrongly > 0
        return (found / max(found[-1], 1))[some], found[some] / (found + called_wrongly)[some]

    def point(predictions: Predictions) -> tuple[float, float]:
        called, malignant = predictions.called, predictions.malignant
        return float(called[malignant].mean()), float(malignant[called].mean()) if called.any() else np.nan

    figure, axes = _square("recall (sensitivity)", "precision (PPV)")
    for predictions, colour in zip(levels.values(), (TILES, CASES), strict=False):
        axes.axhline(predictions.malignant.mean(), color=colour, linewidth=1, linestyle=":")
    _draw_levels(axes, levels, curve, point)
    return figure


def plot_calibration(predictions: Predictions) -> Figure:
    """Draw the share of malignant tiles over the mean probability, for each bin of the ECE; the area is the count.

    Args:
        predictions: Of tiles.

    Returns:
        A square figure.
    """
    figure, axes = _square("mean probability", "share malignant")
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=1, linestyle=":", label="calibrated")
    bin_numbers = bin_of(predictions.probability)
    bins = [bin_numbers == number for number in range(ECE_BINS) if (bin_numbers == number).any()]
    means = [predictions.probability[chosen].mean() for chosen in bins]
    shares = [predictions.malignant[chosen].mean() for chosen in bins]
    areas = [15 + 300 * chosen.mean() for chosen in bins]
    axes.plot(means, shares, color=TILES, linewidth=1)
    axes.scatter(means, shares, s=areas, color=TILES, alpha=0.75, label="tiles")
    axes.legend(frameon=False, fontsize=8, loc="upper left", markerscale=0.6)
    return figure


def plot_histogram(predictions: Predictions) -> Figure:
    """Draw histograms of the probabilities of benign and of malignant tiles, and the threshold.

    Args:
        predictions: Of tiles.

    Returns:
        A square figure.
    """
    figure, axes = _square("probability of malignancy", "tiles")
    for chosen, label, colour in (
        (~predictions.malignant, "benign", BENIGN),
        (predictions.malignant, "malignant", MALIGNANT),
    ):
        axes.hist(
            predictions.probability[chosen], bins=HISTOGRAM_BINS, range=(0, 1), color=colour, alpha=0.6, label=label
        )
    for number, threshold in enumerate(np.unique(predictions.threshold)):
        axes.axvline(threshold, color=GREY, linewidth=1, linestyle="--", label="" if number else "threshold")
    axes.autoscale(axis="y")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_novelty(splits: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Draw the distribution of the novelty of some splits, and the limit.

    Args:
        splits: The novelty of tiles, of shape (N,), by the split's name.

    Returns:
        A square figure; what is beyond twice the limit stands at its right edge.
    """
    figure, axes = _square("novelty (1: the limit)", "share of tiles")
    for (name, novelty), colour in zip(splits.items(), (TRAIN, VAL, CASES), strict=False):
        shown = np.minimum(novelty, MOST_NOVELTY)
        weights = np.full(len(shown), 1 / max(len(shown), 1))
        style = {"histtype": "step", "linewidth": 1.5, "color": colour, "label": name}
        axes.hist(shown, bins=HISTOGRAM_BINS, range=(0, MOST_NOVELTY), weights=weights, **style)
    axes.axvline(1, color=GREY, linewidth=1, linestyle="--", label="limit")
    axes.set_xlim(0, MOST_NOVELTY * 1.01)
    axes.autoscale(axis="y")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_robustness(metrics: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw metrics over the strength of alterations.

    Args:
        metrics: For each metric's name its values by the kind of alteration, from none to the strongest.

    Returns:
        A figure of 1650 by 675 pixels, with a line a kind.
    """
    figure = Figure(figsize=(11, 4.5), dpi=150, layout="constrained")
    for axes, (name, kinds) in zip(figure.subplots(1, len(metrics)), metrics.items(), strict=True):
        for number, (kind, values) in enumerate(kinds.items()):
            style = {"linestyle": ("-", "--")[number % 2], "color": f"C{number // 2}", "label": kind}
            axes.plot(range(len(values)), values, marker="o", markersize=3, linewidth=1.5, **style)
        axes.set(xlabel="strength (steps of robustness.csv)")
        axes.set_title(name, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _tidy(axes)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    return figure


def plot_folds(values: Mapping[str, Sequence[float | None]], pooled: Mapping[str, Sequence[float | None]]) -> Figure:
    """Draw every run's value of some metrics, and the pooled value with its interval.

    Args:
        values: One value a run, for each metric's name; None where undefined.
        pooled: For each of these names the value and its interval's ends.

    Returns:
        A figure of 1050 pixels' width.
    """
    figure = Figure(figsize=(7, 0.9 + 0.55 * len(values)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row, (name, of_runs) in enumerate(values.items()):
        known = [value for value in of_runs if value is not None]
        axes.plot(known, [row - 0.12] * len(known), "o", color=TILES, alpha=0.6, label="" if row else "a run")
        value, low, high = pooled[name]
        if value is not None:
            axes.plot(value, row + 0.15, "D", color=CASES, label="" if row else "pooled, 95% interval")
        if low is not None and high is not None:
            axes.plot((low, high), (row + 0.15,) * 2, color=CASES, linewidth=2)
    axes.set_yticks(range(len(values)), list(values))
    axes.set(ylim=(len(values) - 0.4, -0.6), xlim=(None, 1.01))
    _tidy(axes)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return figure


def save(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write each figure as a PNG of its name.

    Args:
        figures: By name.
        folder: The folder to write into.
    """
    for name, figure in figures.items():
        with atomic_write(folder / f"{name}.png") as unfinished:
            figure.savefig(unfinished)


def _cumulated(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Malignant and benign observations above each distinct probability, from 0 on."""
    order = np.argsort(-predictions.probability, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(predictions.probability[order]) != 0, True])
    return tuple(
        np.r_[0, of_class[order].cumsum()[last]] for of_class in (predictions.malignant, ~predictions.malignant)
    )  # pyright: ignore[reportReturnType]


def _draw_levels(
    axes: Axes,
    levels: Mapping[str, Predictions],
    curve: Callable[[Predictions], tuple[ArrayLike, ArrayLike]],
    point: Callable[[Predictions], tuple[float, float]],
) -> None:
    for (name, predictions), colour in zip(levels.items(), (TILES, CASES), strict=False):
        axes.plot(*curve(predictions), color=colour, linewidth=1.5, label=name)
        axes.plot(*point(predictions), "o", color=colour, markersize=5)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _square(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.6, 3.4), dpi=150)
    axes = figure.subplots(gridspec_kw={"left": 0.16, "right": 0.97, "bottom": 0.14, "top": 0.96})
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
