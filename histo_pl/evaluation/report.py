"""The report of a run or an evaluation: one HTML file that needs no other, for the screen and for print."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from histo_pl.data.check import describe_counts
from histo_pl.errors import ImageError
from histo_pl.evaluation import plots
from histo_pl.evaluation.levels import Levels
from histo_pl.evaluation.metrics import NAMES
from histo_pl.evaluation.predictions import Predictions, format_estimate, format_number
from histo_pl.images import read_rgb
from histo_pl.overlays import Map, color_limit, overlay_map
from histo_pl.pages import embed_jpeg, write_page

TEMPLATE = Path(__file__).with_name("report.html.j2")
WORST = 12  # mistakes shown, of each kind half
THUMBNAIL = 132  # pixels
HEADLINES = ("auroc", "balanced_accuracy", "sensitivity", "specificity")
MAX_VALUES = 20  # of a column in the report
CAPTIONS = {
    "roc": "ROC",
    "precision_recall": "Precision and recall",
    "calibration": "Calibration of the tiles' probabilities",
    "histogram": "Probabilities of the tiles",
    "novelty": "Distance from the training tiles: refused beyond the limit",
}
HOW_TO_READ = (
    "Blank: undefined. Without an interval: fewer than three cases of a class that the metric rests on, or all cases "
    "alike."
)
LIMITS = (
    "Research software, no medical device: nothing here must guide anyone's care.",
    "The figures hold for tiles of these laboratories, scanners, stains and magnifications; elsewhere they can be "
    "much lower.",
    "Intervals give the uncertainty by chance among the tested cases, not the difference to other hospitals' cases.",
    "The ECE of few tiles is above 0 by chance alone.",
)


@dataclass(frozen=True)
class Report:
    """The contents of a report.

    Attributes:
        title: Headline.
        results: The contents of results.json; `test`, `case_level`, `data`, `decision` and, where known,
            `test_by_case`.
        predictions: The tested tiles, their paths relative to `root`.
        cases: The same by case; None where there is no such result.
        root: The folder of the tiles.
        columns: Further properties of each tile, such as its magnification, by name.
        notes: Sentences that a reader must know first, such as a warning of tiles that trained the model.
        epochs: A run's metrics by epoch; empty for an evaluation.
        settings: The configuration as YAML.
        novelty: The novelty of tiles by the name of their split, of shape (N,) each; empty where unknown.
        maps: A smoothed evidence map of mistakes, of shape (S, S), by the tile's path; empty: none are shown.
        map_notes: Sentences on these maps.
    """

    title: str
    results: Mapping[str, Any]
    predictions: Predictions
    cases: Predictions | None
    root: Path
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    epochs: Sequence[Mapping[str, float]] = ()
    settings: str = ""
    novelty: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    maps: Mapping[str, Map] = field(default_factory=dict)
    map_notes: Sequence[str] = ()

    @property
    def levels(self) -> Levels:
        """The results that a reader looks at."""
        return Levels.of(self.results)

    def write(self, file: Path, drawn: Mapping[str, Figure]) -> None:
        """Write the report.

        Args:
            file: The HTML file.
            drawn: The figures that `figures` returns.
        """
        limit = color_limit(list(self.maps.values())) if self.maps else 1.0
        mistakes = worst_mistakes(self.predictions)
        write_page(
            TEMPLATE,
            file,
            title=self.title,
            notes=self.notes,
            cards=_cards(self.levels),
            metrics=_metrics(self.levels, self.results),
            curves=[(CAPTIONS[name], _svg(figure)) for name, figure in drawn.items()],
            confusions=_confusions(self.levels),
            decision=_decision(self.results),
            data=_data(self.results),
            columns=[_by_column(self.predictions, name, values) for name, values in self.columns.items()],
            mistakes=[_mistake(self.predictions, index, self.root, self.maps, limit) for index in mistakes],
            map_notes=self.map_notes,
            map_limit=f"{limit:.2g}" if self.maps else "",
            training=_training(self.epochs, self.results),
            settings=self.settings,
            limits=LIMITS,
        )


def _cards(levels: Levels) -> list[dict[str, str]]:
    def interval(name: str) -> str:
        ends = levels.tiles["intervals"][name]
        unit = levels.tiles["intervals_over"]
        return (
            f"{' to '.join(map(format_number, ends))} (over {unit})"
            if ends
            else f"no interval: too few {unit}, or all alike"
        )

    return [
        {
            "name": NAMES[name],
            "value": "undefined" if levels.tiles[name] is None else format_number(levels.tiles[name]),
            "interval": interval(name),
        }
        for name in HEADLINES
    ]


def _metrics(levels: Levels, results: Mapping[str, Any]) -> dict[str, Any]:
    tiles, cases, baseline = levels.tiles, levels.cases, results.get("colour_only")
    header = ["", f"{tiles['tiles']} tiles"]
    caption = f"{levels.name}: 95% intervals over the {tiles['units']} {tiles['intervals_over']}."
    if tiles["intervals_over"] == "tiles":
        caption += " The cases are unknown: with several tiles a patient these intervals are too narrow."
    novelty = results.get("novelty")
    answered = novelty["answered"] if novelty and novelty["refused"] else None
    if answered:
        header.append(f"{answered['tiles']} tiles, those unlike the training's left out")
    if cases:
        header.append(f"{cases['tiles']} cases ({results['case_level']['title']})")
    if baseline:
        caption += (
            f" From colour alone, without any shape, the AUROC is {format_estimate(baseline, 'auroc')}: "
            f"a model that does not clearly exceed this has learnt the stain rather than the tissue."
        )
    shown = [level for level in (tiles, answered, cases) if level]
    rows = [(title, *(format_estimate(level, name) for level in shown)) for name, title in NAMES.items()]
    return {"header": header, "rows": rows, "caption": f"{caption} {HOW_TO_READ}"}


def figures(
    predictions: Predictions, cases: Predictions | None, novelty: Mapping[str, NDArray[np.float64]]
) -> dict[str, Figure]:
    """Draw the curves of tested tiles.

    Args:
        predictions: The tiles.
        cases: The cases; None where there are none.
        novelty: See `Report`.

    Returns:
        By the name of the file: roc, precision_recall (if both classes are there), calibration, histogram, and novelty
        (if it is known).
    """
    if not len(predictions) or not np.isfinite(predictions.probability).all():
        return {}
    drawn = {"calibration": plots.plot_calibration(predictions), "histogram": plots.plot_histogram(predictions)}
    drawn |= {"novelty": plots.plot_novelty(novelty)} if novelty else {}
    if predictions.malignant.all() or not predictions.malignant.any():
        return drawn
    both = cases is not None and cases.malignant.any() and not cases.malignant.all()
    levels = {"tiles": predictions} | ({"cases": cases} if cases is not None and both else {})
    return {"roc": plots.plot_roc(levels), "precision_recall": plots.plot_precision_recall(levels)} | drawn


def _svg(figure: Figure) -> Markup:
    """Draw into the page: text and axes take the page's colour, in a light and in a dark one."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "histo_pl"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    drawing = text[text.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawing, count=2)
    return Markup(drawing.replace("#000000", "currentColor"))


def _confusions(levels: Levels) -> list[tuple[Any, Any]]:
    tables = []
    for name, level in (("Tiles", levels.tiles), ("Cases", levels.cases)):
        if level:
            cells = level["confusion"]
            rows = [("truly benign", cells["tn"], cells["fp"]), ("truly malignant", cells["fn"], cells["tp"])]
            tables.append(((name, "called benign", "called malignant"), rows))
    return tables


def _decision(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    decision, refer = results["decision"], results.get("refer")
    rows = [
        ("Malignant above", f"{decision['threshold']:.4g}"),
        ("rule of the threshold", decision["rule"]),
        ("temperature", f"{decision['temperature']:.3f}"),
    ]
    if refer:
        left = "none answered" if refer["error_rate"] is None else f"{refer['error_rate']:.1%} of the answered wrong"
        rows += [
            ("Uncertain: refer", f"from {refer['low']:.3g} to {refer['high']:.3g}"),
            ("referred here", f"{refer['referred']} of {refer['referred'] + refer['answered']} tiles; {left}"),
        ]
    return rows + _novelty(results.get("novelty"))


def _novelty(novelty: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not novelty:
        return []
    rows = [("Unlike training: refer", "a novelty above 1")]
    if "false_alarm" in novelty:
        guaranteed = "" if novelty["is_guaranteed"] else ", too few for that share to be guaranteed"
        chosen = f"{novelty['false_alarm']:.1%}, chosen on {novelty['validated']} tiles{guaranteed}"
        rows.append(("to refuse at most", chosen))
    return [*rows, ("refused here", f"{novelty['refused']} of {novelty['tiles']} tiles, {novelty['share']:.1%}")]


def _data(results: Mapping[str, Any]) -> dict[str, Any]:
    data = results["data"]
    rows = [
        (split, counts["tiles"], counts["malignant"], "unknown" if counts["cases"] is None else counts["cases"])
        for split, counts in (data["parts"] or {}).items()
    ]
    lines = [
        f"{data['name']}, {data['root']}",
        f"Malignant is {data['positive_class']}, benign is {data['negative_class']}.",
    ]
    if data.get("tile_size"):
        width, height = data["tile_size"]
        scale = f", {data['mpp']:g} micrometres per pixel" if data.get("mpp") else ""
        lines.append(f"Tiles of {width} x {height} pixels (median){scale}.")
    lines += [f"Split: {data['split'][:12]}"] if data.get("split") else []
    lines += results.get("warnings") or ["No file lies twice in two parts."]
    lines += describe_counts(data.get("checked") or {}, sum(row[1] for row in rows))
    return {"rows": rows, "lines": lines}


def _by_column(predictions: Predictions, name: str, values: Sequence[str]) -> dict[str, Any]:
    array, shown = np.asarray(values), sorted(set(values))[:MAX_VALUES]
    rows = []
    for value in shown:
        group = predictions.take(array == value).summary()
        cases = "" if group["cases"] is None else group["cases"]
        estimates = (format_estimate(group, metric) for metric in HEADLINES)
        rows.append((value or "(none)", group["tiles"], group["malignant"], cases, *estimates))
    header = ("", "tiles", "malignant", "cases", *(NAMES[metric] for metric in HEADLINES))
    return {"name": name, "header": header, "rows": rows, "more": len(set(values)) - len(shown)}


def worst_mistakes(predictions: Predictions) -> list[int]:
    """Find the tiles that are most certainly wrong.

    Args:
        predictions: The tiles.

    Returns:
        At most `WORST` indices: half benign ones called malignant, half malignant ones called benign, the worst of
        each first.
    """
    chosen: list[int] = []
    for malignant in (False, True):
        wrong = np.flatnonzero((predictions.malignant == malignant) & (predictions.called != malignant))
        distance = np.abs(predictions.probability - predictions.malignant)[wrong]
        chosen += wrong[np.argsort(-distance, kind="stable")][: WORST // 2].tolist()
    return chosen


def _mistake(predictions: Predictions, index: int, root: Path, maps: Mapping[str, Map], limit: float) -> dict[str, Any]:
    truth = "malignant" if predictions.malignant[index] else "benign"
    path = str(predictions.path[index])
    text = f"truly {truth}, probability {predictions.probability[index]:.3f}"
    return {"text": text, "name": Path(path).name, "jpegs": _thumbnails(root / path, maps.get(path), limit)}


def _thumbnails(file: Path, evidence: Map | None, limit: float) -> list[str]:
    """Shrink an image, and its overlay where there is a map, to JPEGs in base64; none if the file is gone."""
    try:
        pixels = read_rgb(file)
    except ImageError:
        return []
    if evidence is None:
        return [embed_jpeg(pixels, THUMBNAIL)]
    return [embed_jpeg(picture, THUMBNAIL) for picture in (pixels, overlay_map(pixels, evidence, limit))]


def _training(epochs: Sequence[Mapping[str, float]], results: Mapping[str, Any]) -> dict[str, Any] | None:
    if not epochs:
        return None
    best = results["validation"]["epoch"]
    return {"svg": _svg(plots.plot_curves(epochs, best - 1, "")), "best": best, "epochs": results["epochs"]}
